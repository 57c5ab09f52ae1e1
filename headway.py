"""The command line: thin verbs over public functions of the rooms."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table
from typer.exceptions import TyperException

from executor.engine import refusal
from executor.launch import launch
from executor.run import Job, read_run
from planner.plan import Plan, StrategyFile, plan_from_prediction, plan_from_search, read_plan, write_plan
from planner.predict import predict, predict_replayed
from planner.question import Question, ask
from planner.rules import illegal_reason
from planner.search import search
from planner.shapes import model_cases
from profiles import files
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import Price, load_cluster, with_num_gpus
from profiles.measure import measure_machine
from profiles.measure.devices import num_devices
from profiles.tables import write_table
from profiles.units import parse
from reports.compare import Comparison, compare_plan_run, compare_plans, comparison_table
from reports.console import (
    KINDS,
    catalog_rows,
    console,
    plan_json,
    prediction_table,
    progress,
    rejected_table,
    runners_up_table,
    status,
)
from reports.disturbed import condition_of, disturb, disturbed_table, noise_of, own_table
from reports.local import local_json, local_tables, validate_local
from reports.page import write_page
from reports.quickstart import quickstart as run_quickstart
from reports.run_command import exit_status, run_json, run_options, simulate_plan
from reports.run_facts import compare_facts, facts_json, facts_table
from reports.run_tables import run_screen
from reports.traced import compare_plan_trace, trace_files
from reports.validate_command import COLUMNS_HELP, accuracy_json, accuracy_tables, calibrate_runs, read_before
from reports.validate_command import validate as validate_runs
from simulator.layout import check_order
from simulator.replay import rank_names
from simulator.software import load_software
from simulator.strategy import Strategy
from simulator.timeline import write_trace

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True,
    help="Plan, simulate and run large-model training: will it fit, which strategy, how fast, how long, at what cost.",
)

Model = Annotated[str, typer.Argument(help="Catalogue name, a Hugging Face config.json, or a YAML with its keys.")]
ClusterArg = Annotated[str, typer.Argument(help="Catalogue name and nodes ('dgx-h100:16'), a YAML, or 'local[:ranks]'.")]
PlanArg = Annotated[Path, typer.Argument(help="A plan file, as `headway plan` writes it.")]
Tokens = Annotated[str, typer.Option(help="Token budget of the run, like 15T.")]
Gpus = Annotated[int | None, typer.Option(help="Use only that many accelerators of the cluster.")]
SeqLen = Annotated[int | None, typer.Option(help="Sequence length, tokens. [the model's context, at most 8192]")]
GlobalBatch = Annotated[int | None, typer.Option(help="Sequences in a step, over all ranks. [about 4 Mi tokens]")]
Precision = Annotated[str | None, typer.Option(
    help="bf16, fp16, fp32, or what linear maps compute in: fp8, fp8-block, mxfp8, nvfp4. [bf16 on GPUs, fp32 on CPU]"
)]
SoftwareOption = Annotated[str | None, typer.Option(
    "--software", help="What trains: a name of `headway catalog software`, or a YAML. [Headway's own torch engine]"
)]
Kernels = Annotated[str | None, typer.Option(help="eager, or fused (torch.compile). [fused on GPUs, eager on CPU]")]
LoraRank = Annotated[int, typer.Option(
    help="Fine-tune by low-rank adapters of this rank, all other weights frozen; 0: train all."
)]
LoraTargets = Annotated[str, typer.Option(help="Which linear maps adapters stand beside: attention or all.")]
PriceOption = Annotated[str | None, typer.Option("--price", help="Override the price, like '2.20 USD/h' per GPU.")]
Profile = Annotated[Path | None, typer.Option(help="A profile file, for the cluster 'local'.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, SI numbers, nothing else.")]


def _question(
    model: str, cluster: str, tokens: str, gpus: int | None, seq_len: int | None, global_batch: int | None,
    precision: str | None, kernels: str | None, software: str | None, price: str | None, profile: Path | None,
    lora_rank: int, lora_targets: str,
) -> Question:
    machine = load_cluster(cluster, profile)
    if gpus is not None:
        machine = with_num_gpus(machine, gpus)
    given = None if price is None else Price(
        usd_per_gpu_hour=parse(price, "usd_per_hour", "price"), term="given", provider="command line", date="now",
        source="--price",
    )
    return ask(
        load_model(model), machine, tokens=parse(tokens, "count", "tokens"), cluster_text=cluster, seq_len=seq_len,
        global_batch=global_batch, precision=precision, kernels=kernels,
        software=load_software(software, precision or "") if software else None, price=given, lora_rank=lora_rank,
        lora_targets=lora_targets,
    )


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))


@app.command()
def catalog(
    kind: Annotated[str, typer.Argument(help="models, accelerators, clusters, software or prices.")] = "models",
    as_json: Json = False,
) -> None:
    """List what the catalogue holds, with sources."""
    if kind not in KINDS:
        raise BadInput(f"kind: {kind!r} is not in the catalogue; it has {', '.join(KINDS)}")
    head, rows = catalog_rows(kind)
    if as_json:
        _print_json({kind: [dict(zip(head, row, strict=True)) for row in rows]})
        return
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)


@app.command()
def profile(
    out: Annotated[Path, typer.Option(help="The profile file to write.")] = Path("profile.csv"),
    ranks: Annotated[int | None, typer.Option(help="Processes that measure at once. [one for each core or GPU]")] = None,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 45.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[list[str] | None, typer.Option(
        help="fp32, bf16, fp16 or, on CUDA, fp8; may be repeated. [all of the GPU's; fp32 on CPU]"
    )] = None,
    model: Annotated[str | None, typer.Option(help="Measure the very shapes that this model needs, too.")] = None,
    seq_len: SeqLen = None,
    global_batch: GlobalBatch = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: kernels, collectives, copies and disk. Then: `headway plan MODEL local --profile FILE`."""
    num_ranks = ranks if ranks is not None else num_devices(device)
    files.make_folder(out.resolve().parent)
    cases = model_cases(load_model(model), num_ranks, device, seq_len, global_batch) if model else []
    with progress("measuring this machine") as advance:
        table = measure_machine(
            num_ranks=num_ranks, cases=cases, device=device, seconds=seconds, folder=out.resolve().parent, dtypes=dtype,
            on_progress=lambda stage, share: advance(share, stage),
        )
    write_table(table, out)
    if as_json:
        _print_json({"path": str(out), "rows": len(table.rows)} | table.head)
    else:
        console.print(f"{len(table.rows)} measured costs of {num_ranks} ranks in {out}", soft_wrap=True)


@app.command()
def estimate(
    model: Model,
    cluster: ClusterArg,
    dp: Annotated[int | None, typer.Option(help="Data-parallel degree. [what the others leave]")] = None,
    tp: Annotated[int, typer.Option(help="Tensor-parallel degree.")] = 1,
    sequence_parallel: Annotated[bool, typer.Option(help="Shard the residual stream over tp.")] = True,
    cp: Annotated[int, typer.Option(help="Context-parallel degree.")] = 1,
    context: Annotated[str, typer.Option(help="How keys reach other cp ranks: ring, all_gather or ulysses.")] = "ring",
    pp: Annotated[int, typer.Option(help="Pipeline-parallel degree.")] = 1,
    order: Annotated[str, typer.Option(help="Axes on the machine, innermost first. [tp-cp-dp-pp]")] = "",
    chunks: Annotated[int, typer.Option(help="Chunks of layers a pipeline rank holds (interleaved).")] = 1,
    ep: Annotated[int, typer.Option(help="Expert-parallel degree.")] = 1,
    etp: Annotated[int, typer.Option(help="Tensor-parallel degree inside an expert.")] = 1,
    imbalance: Annotated[float, typer.Option(help="Tokens of the busiest expert rank over the mean.")] = 1.0,
    zero: Annotated[int, typer.Option(help="ZeRO level, 0 to 3.")] = 0,
    shard_group: Annotated[int, typer.Option(help="Ranks that share one copy of sharded state; 0: all of dp.")] = 0,
    recompute: Annotated[str, typer.Option(help="none, selective or full.")] = "none",
    recompute_share: Annotated[float, typer.Option(help="Share of the layers that recompute.")] = 1.0,
    schedule: Annotated[str | None, typer.Option(
        help="1F1B, GPipe, Interleaved1F1B, LoopedBFS, ZBH1, InterleavedZeroBubble, ZBV or DualPipeV. [1F1B; Interleaved1F1B "
        "where there are chunks]"
    )] = None,
    micro_batch: Annotated[int, typer.Option(help="Sequences in a micro-batch.")] = 1,
    tokens: Tokens = "1T",
    gpus: Gpus = None,
    seq_len: SeqLen = None,
    global_batch: GlobalBatch = None,
    precision: Precision = None,
    kernels: Kernels = None,
    software: SoftwareOption = None,
    lora_rank: LoraRank = 0,
    lora_targets: LoraTargets = "attention",
    price: PriceOption = None,
    profile: Profile = None,
    out: Annotated[Path | None, typer.Option(help="Write the strategy as a plan file, too.")] = None,
    as_json: Json = False,
) -> None:
    """Price one given strategy: step time, memory, days, dollars. Exit status 1 if it does not fit."""
    question = _question(model, cluster, tokens, gpus, seq_len, global_batch, precision, kernels, software, price, profile,
                         lora_rank, lora_targets)
    strategy = _given_strategy(question, dp, {
        "tp": tp, "sequence_parallel": sequence_parallel, "cp": cp, "context": context, "pp": pp, "chunks": chunks,
        "order": check_order(order),
        "ep": ep, "etp": etp, "imbalance": imbalance, "zero": zero, "shard_group": shard_group, "recompute": recompute,
        "recompute_share": recompute_share, "micro_batch": micro_batch, "lora_rank": lora_rank, "lora_targets": lora_targets,
        "schedule": schedule or ("1F1B" if chunks == 1 else "Interleaved1F1B"),
    })
    prediction = predict(question, strategy)
    plan_ = plan_from_prediction(question, prediction, profile)
    if out is not None:
        write_plan(plan_, out)
    if as_json:
        _print_json(plan_.prediction)
    else:
        console.print(prediction_table(plan_.prediction, strategy, _title(question)))
        _print_assumptions(question)
    raise typer.Exit(0 if prediction.fits else 1)


def _given_strategy(question: Question, dp: int | None, given: dict[str, Any]) -> Strategy:
    given = given | {"seq_len": question.seq_len, "precision": question.precision}
    files.validate(StrategyFile, given if dp is None else given | {"dp": dp}, "strategy")
    num, others = question.cluster.num_gpus, given["tp"] * given["cp"] * given["pp"]
    if dp is None and num % others:
        raise BadInput(
            f"dp: tp {given['tp']} x cp {given['cp']} x pp {given['pp']} = {others} does not divide the {num} accelerators"
        )
    dp = dp or num // others
    num_microbatches = max(1, question.global_batch // (dp * given["micro_batch"]))
    strategy = Strategy(dp=dp, num_microbatches=num_microbatches, software=question.software, **given)
    reason = illegal_reason(strategy, question)
    if reason:
        raise BadInput(f"strategy: {reason}")
    return strategy


def _refuse_own_input(given: Path, target: Path | None, option: str) -> None:
    if target is not None and target.resolve() == given.resolve():
        raise BadInput(f"{option}: {target} is the plan that is read; give another name")


def _title(question: Question) -> str:
    cluster = question.cluster
    return f"{question.model.name} on {question.cluster_text} ({cluster.num_gpus} x {cluster.accelerator.title})"


def _print_assumptions(question: Question) -> None:
    console.print("Assumed:", style="bold")
    for line in question.assumptions:
        console.print(f"  {line}", soft_wrap=True, highlight=False)


@app.command()
def plan(
    model: Model,
    cluster: ClusterArg,
    tokens: Tokens,
    gpus: Gpus = None,
    seq_len: SeqLen = None,
    global_batch: GlobalBatch = None,
    precision: Precision = None,
    kernels: Kernels = None,
    software: SoftwareOption = None,
    lora_rank: LoraRank = 0,
    lora_targets: LoraTargets = "attention",
    price: PriceOption = None,
    profile: Profile = None,
    runnable: Annotated[bool, typer.Option(help="Only strategies that `headway run` can run. [on for 'local']")] = False,
    out: Annotated[Path, typer.Option(help="The plan file to write; the page goes beside it.")] = Path("plan.yaml"),
    as_json: Json = False,
) -> None:
    """Choose the strategy: price all of them, replay the best, write plan and page. Exit status 1 if nothing fits."""
    question = _question(model, cluster, tokens, gpus, seq_len, global_batch, precision, kernels, software, price, profile,
                         lora_rank, lora_targets)
    if out.suffix == ".html":
        raise BadInput(f"out: {out} would be overwritten by the page; name the plan file, like 'plan.yaml'")
    files.check_target(out)
    files.check_target(out.with_suffix(".html"))
    device = question.cluster.accelerator.device
    engine_only = runnable or question.cluster.table is not None
    with progress("searching strategies") as advance:
        found = search(
            question, (lambda s: refusal(s, question.model, device)) if engine_only else None, lambda x: advance(x, "")
        )
    if found.best is None:
        if as_json:
            _print_json({"best": None, "strategies_total": found.strategies_total, "rejected": found.rejected})
        else:
            console.print(rejected_table(found))
        status.print(f"headway: nothing fits: no strategy of {found.strategies_total:,} does", soft_wrap=True)
        raise typer.Exit(1)
    plan_ = plan_from_search(question, found, profile)
    write_plan(plan_, out)
    write_page(plan_, out.with_suffix(".html"), timeline=predict_replayed(question, plan_.strategy)[1])
    if as_json:
        _print_json(plan_json(plan_, found))
        return
    console.print(prediction_table(plan_.prediction, plan_.strategy, _title(question)))
    console.print(runners_up_table(found.best, found.runners_up))
    console.print(rejected_table(found))
    _print_assumptions(question)
    console.print(f"{out} and {out.with_suffix('.html')}", soft_wrap=True)


@app.command()
def simulate(
    plan: PlanArg,
    trace: Annotated[Path | None, typer.Option(help="Write a Perfetto/Chrome trace of one step; packed if named .gz.")] = None,
    run: Annotated[bool, typer.Option("--run", help="The whole run, with failures: days, dollars, goodput.")] = False,
    checkpoint_interval: Annotated[str | None, typer.Option(help="With --run: 'auto' or a time like 30min. [auto]")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="With --run: sync or async. [sync]")] = None,
    storage: Annotated[str | None, typer.Option(help="With --run: rate of the storage, like 200GB/s. [by the GPU]")] = None,
    spares: Annotated[int | None, typer.Option(help="With --run: spare nodes. [as many as pay]")] = None,
    fleet: Annotated[str | None, typer.Option(help="With --run: how often what fails; a name or a YAML. [published]")] = None,
    runs: Annotated[int | None, typer.Option(help="With --run: how many runs. [1000]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the failures (--run) or of the noise. [0]")] = None,
    elastic: Annotated[bool, typer.Option("--elastic", help="With --run: go on with fewer replicas.")] = False,
    eval_every: Annotated[int | None, typer.Option(help="With --run: steps between evaluations; 0: none. [1000]")] = None,
    eval_batches: Annotated[int | None, typer.Option(help="With --run: batches of an evaluation. [1]")] = None,
    start: Annotated[str | None, typer.Option(help="With --run: the first day, like 2027-01-15, for dates of the end.")] = None,
    schedule: Annotated[Path | None, typer.Option(help="Replay this schedule table (CSV, torch's grammar) instead.")] = None,
    slow_gpu: Annotated[list[str] | None, typer.Option(help="A rank that computes slower, like 17=1.2; repeatable.")] = None,
    slow_node: Annotated[list[str] | None, typer.Option(help="A node with a slower network, like 3=2; repeatable.")] = None,
    speed_spread: Annotated[str | None, typer.Option(help="Spread of the ranks' speeds for good, like 2%.")] = None,
    jitter: Annotated[str | None, typer.Option(help="Spread of each rank's speed from step to step, like 1%.")] = None,
    pauses: Annotated[str | None, typer.Option(help="Pauses that every rank makes, like 5ms/1s.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps that are sampled under noise. [200]")] = None,
    as_json: Json = False,
) -> None:
    """Replay one step of a plan with SimPy, or with --run the whole run, from the first token to the last."""
    _refuse_own_input(plan, trace, "trace")
    options = run_options(
        run, checkpoint_interval=checkpoint_interval, checkpoint=checkpoint, storage=storage, spares=spares, fleet=fleet,
        runs=runs, seed=seed if run else None, elastic=elastic or None, eval_every=eval_every,
        eval_batches=eval_batches, start=start,
    )
    plan_ = read_plan(plan)
    table = own_table(schedule, plan_) if schedule else None
    condition = condition_of(plan_, slow_gpu or [], slow_node or [])
    disturbed = disturb(plan_, condition, noise_of(speed_spread, jitter, pauses), steps, seed or 0)
    prediction, timeline = predict_replayed(plan_.question, plan_.strategy, condition=condition, table=table)
    if trace is not None:
        write_trace(trace, timeline, rank_names(plan_.strategy, condition))
    fresh = plan_from_prediction(plan_.question, prediction, plan_.profile)
    if options is not None:
        with progress("simulating runs") as advance:
            report = simulate_plan(plan_, fresh.prediction, options, advance)
        if as_json:
            _print_json(run_json(report))
        else:
            console.print(run_screen(report))
        raise typer.Exit(exit_status(report))
    if as_json:
        _print_json(fresh.prediction | ({"disturbed": disturbed.as_dict()} if disturbed else {}))
        return
    console.print(prediction_table(fresh.prediction, plan_.strategy, _title(plan_.question)))
    if table is not None:
        console.print(f"steps as {schedule} orders them; memory as under {plan_.strategy.schedule}", soft_wrap=True)
    if disturbed is not None:
        console.print(disturbed_table(disturbed, prediction.days * disturbed.healthy_s / prediction.step_time_s))
    if trace is not None:
        console.print(f"trace in {trace}; open it at ui.perfetto.dev", soft_wrap=True)


@app.command()
def run(
    plan: PlanArg,
    steps: Annotated[int, typer.Option(help="Steps to train.")] = 20,
    warmup_steps: Annotated[int, typer.Option(help="First steps, left out of the medians.")] = 3,
    data: Annotated[str, typer.Option(help="Training text: 'stdlib' (Python's own sources) or a text file.")] = "stdlib",
    learning_rate: Annotated[float, typer.Option(help="Step size of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights and order of data.")] = 0,
    out: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("run"),
    as_json: Json = False,
) -> None:
    """Train for real with torchrun, as the plan says, and compare with its prediction."""
    plan_ = read_plan(plan)
    job = Job(
        model=plan_.question.model, strategy=plan_.strategy, out=str(out), num_steps=steps,
        num_warmup_steps=warmup_steps, data=data, learning_rate=learning_rate, seed=seed,
        device=plan_.question.cluster.accelerator.device,
    )
    with progress("training") as advance:
        run_ = launch(job, lambda e: advance((e["step"] + 1) / steps, f"loss {e['loss']:.3f}"))
    comparison = compare_plan_run(plan_, run_)
    if as_json:
        _print_json(comparison.as_dict())
    else:
        console.print(comparison_table(comparison))
        console.print(f"loss {run_.losses[0]:.3f} -> {run_.losses[-1]:.3f}; run in {out}", soft_wrap=True)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A plan file.")],
    b: Annotated[list[Path], typer.Argument(
        help="A plan file, a run folder, or torch.profiler traces of a step: a file for each rank, or their folder."
    )],
    as_json: Json = False,
) -> None:
    """Compare a plan with its run, with traces of it, or with another plan: where the difference comes from."""
    comparison = _comparison(read_plan(a), b)
    if as_json:
        _print_json(comparison.as_dict())
    else:
        console.print(comparison_table(comparison))


def _comparison(first: Plan, others: list[Path]) -> Comparison:
    if traces := trace_files(others):
        with progress("reading traces") as advance:
            return compare_plan_trace(first, traces, lambda share: advance(share, ""))
    if len(others) > 1:
        raise BadInput(f"b: {others[1]}: only of traces can there be several; give one plan file or run folder")
    return compare_plan_run(first, read_run(others[0])) if others[0].is_dir() else compare_plans(first, read_plan(others[0]))


@app.command()
def report(
    plan: PlanArg,
    run: Annotated[Path | None, typer.Argument(help="A run folder, to show measured beside predicted.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write. [the plan's name with .html]")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page."""
    plan_: Plan = read_plan(plan)
    target = out or plan.with_suffix(".html")
    _refuse_own_input(plan, target, "out")
    page = write_page(plan_, target, run=read_run(run) if run else None,
                      timeline=predict_replayed(plan_.question, plan_.strategy)[1])
    if as_json:
        _print_json({"path": str(page)})
    else:
        console.print(f"page in {page}", soft_wrap=True)


@app.command()
def validate(
    runs: Annotated[Path | None, typer.Argument(help=COLUMNS_HELP)] = None,
    where: Annotated[list[str] | None, typer.Option(
        help="Only rows with column=glob or column>=number, like 'gpu=H100*'; may be repeated."
    )] = None,
    out: Annotated[Path, typer.Option(help="The folder for the page and for every row.")] = Path("out/validate"),
    before: Annotated[Path | None, typer.Option(help="The accuracy.json of an earlier run, to show what changed.")] = None,
    leave_out: Annotated[bool, typer.Option(
        help="Predict each row also by numbers that were fitted without its source (refits; about a minute)."
    )] = False,
    calibrate: Annotated[Path | None, typer.Option(
        help="Fit the calibrations on these runs, and write them into this folder instead of predicting."
    )] = None,
    local: Annotated[bool, typer.Option(
        "--local", help="Predict and run small models on this machine instead (some minutes)."
    )] = False,
    profile: Annotated[Path | None, typer.Option(help="With --local: a profile file. [measure this machine first]")] = None,
    cases: Annotated[int | None, typer.Option(help="With --local: only so many cases, the cheapest. [all]")] = None,
    reliability: Annotated[bool, typer.Option(
        "--reliability", help="Compare published facts of whole runs (failures, goodput, checkpoints) with predictions instead."
    )] = False,
    as_json: Json = False,
) -> None:
    """Predict published measured runs, and show how far off the predictions are."""
    if reliability:
        if runs or where or local or before or leave_out or calibrate:
            raise BadInput("--reliability: takes no runs and no other option than --json")
        _validate_reliability(as_json)
    if local:
        _validate_local(out, profile, cases, [name for name, given in (
            ("RUNS", runs), ("--where", where), ("--before", before), ("--leave-out", leave_out), ("--calibrate", calibrate)
        ) if given], as_json)
        return
    for name, given in (("--profile", profile), ("--cases", cases)):
        if given is not None:
            raise BadInput(f"{name}: goes with --local only")
    if calibrate is not None:
        with progress("fitting on measured runs") as advance:
            written = calibrate_runs(runs, where or (), calibrate, on_progress=lambda share: advance(share, ""))
        console.print("\n".join(map(str, written)), soft_wrap=True)
        return
    earlier = read_before(before) if before else None
    with progress("predicting measured runs") as advance:
        accuracy = validate_runs(
            runs, where or (), out, on_progress=lambda share: advance(share, ""), leave_out=leave_out
        )
    if as_json:
        _print_json(accuracy_json(accuracy))
        return
    for table in accuracy_tables(accuracy, earlier):
        console.print(table)
    console.print(f"{out / 'accuracy.html'} and {out / 'rows.csv'}", soft_wrap=True)


def _validate_reliability(as_json: bool) -> NoReturn:
    with progress("simulating published runs") as advance:
        compared = compare_facts(lambda share: advance(share, ""))
    if as_json:
        _print_json(facts_json(compared))
    else:
        console.print(facts_table(compared))
    raise typer.Exit(1 if any(c.met is False for c in compared) else 0)


def _validate_local(out: Path, profile: Path | None, cases: int | None, others: list[str], as_json: bool) -> None:
    if others:
        raise BadInput(f"{others[0]}: does not go with --local, which makes its own runs")
    with progress("predicting and running on this machine") as advance:
        result = validate_local(out, profile=profile, num_cases=cases, on_progress=advance)
    for warning in result.warnings:
        status.print(f"headway: warning: {warning}", soft_wrap=True, highlight=False)
    if as_json:
        _print_json(local_json(result))
        return
    for table in local_tables(result):
        console.print(table)
    console.print(f"{out / 'accuracy.html'} and {out / 'rows.csv'}", soft_wrap=True)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="The folder for everything that it makes.")] = Path("out/quickstart"),
    seconds: Annotated[float, typer.Option(help="About how long to measure this machine.")] = 45.0,
    steps: Annotated[int, typer.Option(help="Steps to train.")] = 30,
    ranks: Annotated[int | None, typer.Option(help="Local ranks. [one for each core]")] = None,
    as_json: Json = False,
) -> None:
    """Show the whole loop: plan Llama-3-8B, then profile, plan, replay, train and compare on this machine."""
    result = run_quickstart(out, seconds=seconds, steps=steps, ranks=ranks, quiet=as_json)
    if as_json:
        _print_json(result)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; a person's mistake is one line on stderr and exit status 2."""
    try:
        status_ = typer.main.get_command(app).main(args=arguments, prog_name="headway", standalone_mode=False)
    except BadInput as e:
        _fail(str(e), 2)
    except TyperException as e:
        _fail(_usage_message(e, list(arguments if arguments is not None else sys.argv[1:])), 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except BrokenPipeError:
        # the reader of our stdout has left; say nothing more to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except RuntimeError as e:
        _fail(str(e), 1)
    sys.exit(status_ if isinstance(status_, int) else 0)


def _usage_message(error: TyperException, arguments: list[str]) -> str:
    """Return one line that names the option, what was typed after it, and the mend."""
    message = str(getattr(error, "format_message", lambda: str(error))()).splitlines()[0]
    option = next((a for a in arguments if a.startswith("--") and f"'{a}'" in message), None)
    typed = arguments[arguments.index(option) + 1 : arguments.index(option) + 2] if option else []
    return message + (f" (is {typed[0]!r})" if typed else "") + "; see `headway --help`"


def _fail(message: str, code: int) -> NoReturn:
    print(f"headway: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
