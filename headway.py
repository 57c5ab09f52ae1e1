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

from executor.data.bench import check_samples, measure_rates, measure_stalls
from executor.data.check import faults
from executor.data.prepare import BLOCK_TOKENS, LEVEL, SHARD_BYTES
from executor.data.prepare import prepare as prepare_shards
from executor.data.shards import open_shards
from executor.data.texts import find_texts
from executor.data.tokens import BYTES, load_tokenizer
from executor.engine import refusal
from executor.exports import EXPORTS, export_plan, write_export
from executor.launch import launch
from executor.run import Job, read_run
from planner.fit import fit as fit_strategy
from planner.plan import Plan, StrategyFile, plan_from_prediction, plan_from_search, read_plan, write_plan
from planner.predict import predict, predict_replayed
from planner.question import Question, ask
from planner.readers import software_of
from planner.rules import illegal_reason
from planner.search import Refuse, search
from planner.shapes import model_cases
from planner.space import AXES
from profiles import files
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import Price, load_cluster, with_num_gpus
from profiles.measure import measure_machine
from profiles.measure.devices import num_devices
from profiles.model import ModelSpec
from profiles.tables import write_table
from profiles.units import parse, show
from reports.bill_tables import bill_tables, plan_bill
from reports.compare import compare_plan_run, comparison_table
from reports.compare_command import compare_json, compare_paths, compare_screen, write_waterfall
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
from reports.data_command import bench_json, rates_table, shards_json, shards_table, stalls_table, with_data
from reports.disturbed import condition_of, disturb, disturbed_table, noise_of, own_table
from reports.fit_command import STRATEGY_OPTIONS, asked_of, fit_json, fit_screen
from reports.goal_tables import goal_figure, goal_json, goal_screen
from reports.goals_command import Asked, GoalOptions, answer_goal, goal_options, spaces
from reports.goals_command import exit_status as goal_status
from reports.local import local_json, local_tables, validate_local
from reports.memory_peaks import memory_of, peaks_json, peaks_table
from reports.page import write_page
from reports.quickstart import quickstart as run_quickstart
from reports.run_command import exit_status, run_json, run_options, simulate_plan
from reports.run_facts import compare_facts, facts_json, facts_table
from reports.run_tables import run_screen
from reports.size_command import SizeOptions
from reports.size_command import size as size_run
from reports.size_tables import size_json, size_screen
from reports.validate_command import COLUMNS_HELP, accuracy_json, accuracy_tables, calibrate_runs, read_before
from reports.validate_command import validate as validate_runs
from reports.whatif_command import WhatIfOptions, what_if, whatif_json
from reports.whatif_page import whatif_target, write_whatif
from reports.whatif_tables import whatif_screen
from simulator.data_stall import write_data_profile
from simulator.layout import check_order
from simulator.replay import rank_names
from simulator.software import Software, load_software
from simulator.strategy import Strategy
from simulator.timeline import write_trace

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True,
    help="Plan, simulate and run large-model training: will it fit, which strategy, how fast, how long, at what cost.",
)
data_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Text to shards that training reads.")
app.add_typer(data_app, name="data")

ShardsArg = Annotated[Path, typer.Argument(help="A folder that `headway data prepare` made.")]
Model = Annotated[str, typer.Argument(help="Catalogue name, a Hugging Face config.json, or a YAML with its keys.")]
ClusterArg = Annotated[str, typer.Argument(help="Catalogue name and nodes ('dgx-h100:16'), a YAML, or 'local[:ranks]'.")]
PlanArg = Annotated[Path, typer.Argument(help="A plan file, as `headway plan` writes it.")]
Dp = Annotated[int | None, typer.Option(help="Data-parallel degree. [what the others leave]")]
Tp = Annotated[int, typer.Option(help="Tensor-parallel degree.")]
SequenceParallel = Annotated[bool, typer.Option(help="Shard the residual stream over tp.")]
Cp = Annotated[int, typer.Option(help="Context-parallel degree.")]
Context = Annotated[str, typer.Option(help="How keys reach other cp ranks: ring, all_gather or ulysses.")]
Pp = Annotated[int, typer.Option(help="Pipeline-parallel degree.")]
Order = Annotated[str, typer.Option(help="Axes on the machine, innermost first. [tp-cp-dp-pp]")]
Chunks = Annotated[int, typer.Option(help="Chunks of layers a pipeline rank holds (interleaved).")]
Layers = Annotated[str, typer.Option(help="Layers of each stage, like 7-8-8-7. [as the software splits them]")]
Ep = Annotated[int, typer.Option(help="Expert-parallel degree.")]
Etp = Annotated[int, typer.Option(help="Tensor-parallel degree inside an expert.")]
Imbalance = Annotated[float, typer.Option(help="Tokens of the busiest expert rank over the mean.")]
Zero = Annotated[int, typer.Option(help="ZeRO level, 0 to 3.")]
ShardGroup = Annotated[int, typer.Option(help="Ranks that share one copy of sharded state; 0: all of dp.")]
Recompute = Annotated[str, typer.Option(help="none, selective or full.")]
RecomputeShare = Annotated[float, typer.Option(help="Share of the layers that recompute.")]
ScheduleOption = Annotated[str | None, typer.Option(
    help="1F1B, GPipe, Interleaved1F1B, LoopedBFS, ZBH1, InterleavedZeroBubble, ZBV or DualPipeV. [1F1B; Interleaved1F1B "
    "where there are chunks]"
)]
MicroBatch = Annotated[int, typer.Option(help="Sequences in a micro-batch.")]
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
AXES_HELP = ("Search only these values of an axis, like tp=1,2,4; may be repeated. Axes: "
             + "; ".join(f"{name}: {what}" for name, what in AXES.items()) + ".")
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, SI numbers, nothing else.")]


def _question(
    model: str | ModelSpec, cluster: str, tokens: str, gpus: int | None, seq_len: int | None, global_batch: int | None,
    precision: str | None, kernels: str | None, software: str | Software | None, price: str | Price | None,
    profile: Path | None, lora_rank: int, lora_targets: str,
) -> Question:
    machine = load_cluster(cluster, profile)
    if gpus is not None:
        machine = with_num_gpus(machine, gpus)
    given = price if not isinstance(price, str) else Price(
        usd_per_gpu_hour=parse(price, "usd_per_hour", "price"), term="given", provider="command line", date="now",
        source="--price",
    )
    return ask(
        load_model(model) if isinstance(model, str) else model, machine, tokens=parse(tokens, "count", "tokens"),
        cluster_text=cluster, seq_len=seq_len, global_batch=global_batch, precision=precision, kernels=kernels,
        software=load_software(software, precision or "") if isinstance(software, str) else software, price=given,
        lora_rank=lora_rank, lora_targets=lora_targets,
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
    dp: Dp = None,
    tp: Tp = 1,
    sequence_parallel: SequenceParallel = True,
    cp: Cp = 1,
    context: Context = "ring",
    pp: Pp = 1,
    order: Order = "",
    chunks: Chunks = 1,
    layers: Layers = "",
    ep: Ep = 1,
    etp: Etp = 1,
    imbalance: Imbalance = 1.0,
    zero: Zero = 0,
    shard_group: ShardGroup = 0,
    recompute: Recompute = "none",
    recompute_share: RecomputeShare = 1.0,
    schedule: ScheduleOption = None,
    micro_batch: MicroBatch = 1,
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
        "order": check_order(order), "layers": layers,
        "ep": ep, "etp": etp, "imbalance": imbalance, "zero": zero, "shard_group": shard_group, "recompute": recompute,
        "recompute_share": recompute_share, "micro_batch": micro_batch, "lora_rank": lora_rank, "lora_targets": lora_targets,
        "schedule": schedule or ("1F1B" if chunks == 1 else "Interleaved1F1B"),
    })
    prediction = predict(question, strategy)
    plan_ = plan_from_prediction(question, prediction, profile)
    if out is not None:
        write_plan(plan_, out)
    paid = plan_bill(plan_)
    if as_json:
        _print_json(plan_.prediction | {"bill": paid.as_dict()})
    else:
        console.print(prediction_table(plan_.prediction, strategy, _title(question)))
        console.print(*bill_tables(paid), sep="\n")
        _print_assumptions(question, paid.assumptions)
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


@app.command()
def fit(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(
        metavar="MODEL CLUSTER | PLAN", help="A model and a cluster, or a plan file; with --from a cluster, and a model before "
        "it where the file states none."
    )],
    from_: Annotated[Path | None, typer.Option(
        "--from", help="A run that you have: Megatron-LM's script or arguments (.sh, .txt, .yaml), torchtitan's .toml, "
        "DeepSpeed's .json."
    )] = None,
    dp: Dp = None,
    tp: Tp = 1,
    sequence_parallel: SequenceParallel = True,
    cp: Cp = 1,
    context: Context = "ring",
    pp: Pp = 1,
    order: Order = "",
    chunks: Chunks = 1,
    layers: Layers = "",
    ep: Ep = 1,
    etp: Etp = 1,
    imbalance: Imbalance = 1.0,
    zero: Zero = 0,
    shard_group: ShardGroup = 0,
    recompute: Recompute = "none",
    recompute_share: RecomputeShare = 1.0,
    schedule: ScheduleOption = None,
    micro_batch: MicroBatch = 1,
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
    as_json: Json = False,
) -> None:
    """Say whether a run fits, with how much room, and what would make it fit. Exit status 1 if it does not."""
    given = [name for name in ctx.params if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")]
    asked = asked_of(names, from_, given)
    if asked.plan is not None:
        question, strategy = asked.plan.question, asked.plan.strategy
    else:
        values = asked.options(given, ctx.params, gpus or load_cluster(asked.cluster, profile).num_gpus)
        made = software_of(asked.reading, software, values["precision"]) if asked.reading else software
        question = _question(asked.model, asked.cluster, tokens, gpus, values["seq_len"], values["global_batch"],
                             values["precision"], kernels, made, price, profile, lora_rank, lora_targets)
        values["schedule"] = values["schedule"] or ("1F1B" if values["chunks"] == 1 else "Interleaved1F1B")
        values["order"] = check_order(values["order"])
        strategy = _given_strategy(question, values["dp"], {name: values[name] for name in STRATEGY_OPTIONS})
    found = fit_strategy(question, strategy)
    if as_json:
        plan_ = plan_from_prediction(question, found.prediction, asked.plan.profile if asked.plan else profile)
        _print_json(fit_json(found, plan_.prediction, asked.reading))
    else:
        console.print(fit_screen(found, _title(question), asked.reading))
        _print_assumptions(question)
    raise typer.Exit(0 if found.prediction.fits else 1)


def _refuse_own_input(given: Path, target: Path | None, option: str) -> None:
    if target is not None and target.resolve() == given.resolve():
        raise BadInput(f"{option}: {target} is the plan that is read; give another name")


def _title(question: Question) -> str:
    cluster = question.cluster
    return f"{question.model.name} on {question.cluster_text} ({cluster.num_gpus} x {cluster.accelerator.title})"


def _print_assumptions(question: Question, more: Sequence[str] = ()) -> None:
    console.print("Assumed:", style="bold")
    for line in (*question.assumptions, *more):
        console.print(f"  {line}", soft_wrap=True, highlight=False)


@app.command()
def size(
    cluster: Annotated[str | None, typer.Option(help="Catalogue name and nodes ('dgx-h100:16') or a YAML.")] = None,
    budget: Annotated[str | None, typer.Option(help="Dollars for the accelerators, like 2M.")] = None,
    days: Annotated[float | None, typer.Option(help="Days on the cluster.")] = None,
    flop: Annotated[float | None, typer.Option(help="Model FLOP, like 1e24, where no cluster is to say them.")] = None,
    model: Annotated[str | None, typer.Option(help="A model that is fixed: how many tokens it gets.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens that are fixed, like 15T.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps; with --global-batch and --seq-len they are tokens.")] = None,
    global_batch: Annotated[int | None, typer.Option(help="Sequences in a step, held against the critical batch.")] = None,
    seq_len: SeqLen = None,
    mfu: Annotated[float | None, typer.Option(help="Model FLOP utilization that is reached. [0.4, P10 0.3, P90 0.5]")] = None,
    goodput: Annotated[float | None, typer.Option(help="Share of the time that makes new steps. [0.9]")] = None,
    gpus: Gpus = None,
    precision: Annotated[str, typer.Option(help="What linear maps compute in, for the peak.")] = "bf16",
    price: PriceOption = None,
    law: Annotated[str | None, typer.Option(help="Scaling law: besiroglu-2024 or hoffmann-2022. [besiroglu-2024]")] = None,
    as_json: Json = False,
) -> None:
    """Size a run: the model and tokens that a budget is best spent on, and how large a batch may be."""
    report = size_run(SizeOptions(
        cluster=cluster, budget=budget, days=days, flop=flop, model=model, tokens=tokens, steps=steps,
        global_batch=global_batch, seq_len=seq_len, mfu=mfu, goodput=goodput, gpus=gpus, precision=precision, price=price,
        law=law,
    ))
    if as_json:
        _print_json(size_json(report))
    else:
        console.print(size_screen(report))


@app.command()
def plan(
    model: Model,
    tokens: Tokens,
    cluster: Annotated[str | None, typer.Argument(
        help="Catalogue name and nodes ('dgx-h100:16'), a YAML, or 'local[:ranks]'. [--clusters]", show_default=False
    )] = None,
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
    deadline: Annotated[str | None, typer.Option(help="To end in so long, like 30d: the fewest accelerators that do.")] = None,
    budget: Annotated[str | None, typer.Option(help="To cost at most so much, like 5M: the fastest that does.")] = None,
    max_gpus: Annotated[int | None, typer.Option(help="At most so many accelerators, fewer if they are as fast.")] = None,
    counts: Annotated[str | None, typer.Option(help="Accelerators to try, like 8,16. [nodes: 1, 2, 3, 4, 6, 8, ...]")] = None,
    clusters: Annotated[str | None, typer.Option(help="Machines to compare, like dgx-h100:16,p5:8.")] = None,
    terms: Annotated[str | None, typer.Option(help="Terms to compare, like on-demand,spot. [all, with --clusters]")] = None,
    failures: Annotated[str | None, typer.Option(help="Count failures: a fleet's name ('published') or a YAML. [none]")] = None,
    preemptions_per_day: Annotated[float | None, typer.Option(help="How often a spot node is taken back. [10.5]")] = None,
    odds: Annotated[str | None, typer.Option(help="Percentile to meet deadline and budget: p10, p50 or p90. [p50]")] = None,
    axis: Annotated[list[str] | None, typer.Option("--search", help=AXES_HELP)] = None,
    runnable: Annotated[bool, typer.Option(help="Only strategies that `headway run` can run. [on for 'local']")] = False,
    out: Annotated[Path, typer.Option(help="The plan file to write; page and figure go beside it.")] = Path("plan.yaml"),
    as_json: Json = False,
) -> None:
    """Choose the strategy, with a deadline or a budget also how many accelerators, of several machines also which: price all,
    replay the best, write plan and page. Exit status 1 if nothing fits or no plan meets the goal."""
    options = goal_options(
        cluster, clusters, axis or (), odds, price, deadline=deadline, budget=budget, max_gpus=max_gpus, counts=counts,
        terms=terms, failures=failures, preemptions_per_day=preemptions_per_day,
    )
    files.check_target(out)
    for suffix in (".html", ".svg") if options else (".html",):
        if out.suffix == suffix:
            raise BadInput(f"out: {out} would be overwritten by the page; name the plan file, like 'plan.yaml'")
        files.check_target(out.with_suffix(suffix))

    def question_of(name: str, on_price: str | Price | None, length: int | None, batch: int | None) -> Question:
        return _question(model, name, tokens, gpus, length or seq_len, batch or global_batch, precision, kernels, software,
                         on_price, profile, lora_rank, lora_targets)

    def refuse_of(question: Question) -> Refuse | None:
        device = question.cluster.accelerator.device
        engine_only = runnable or question.cluster.table is not None
        return (lambda s: refusal(s, question.model, device)) if engine_only else None

    if options is not None:
        _plan_for_goal(options, Asked(question=question_of, refuse=refuse_of, profile=profile), out, as_json)
    assert cluster is not None
    question = question_of(cluster, price, None, None)
    with progress("searching strategies") as advance:
        found = search(question, refuse_of(question), lambda x: advance(x, ""), spaces(axis or ())[1](question))
    if found.best is None:
        if as_json:
            _print_json({"best": None, "strategies_total": found.strategies_total, "rejected": found.rejected})
        else:
            console.print(rejected_table(found))
        status.print(f"headway: nothing fits: no strategy of {found.strategies_total:,} does", soft_wrap=True)
        raise typer.Exit(1)
    plan_ = plan_from_search(found.question, found, profile)
    write_plan(plan_, out)
    write_page(plan_, out.with_suffix(".html"), timeline=predict_replayed(found.question, plan_.strategy)[1])
    paid = plan_bill(plan_)
    if as_json:
        _print_json(plan_json(plan_, found) | {"bill": paid.as_dict()})
        return
    console.print(prediction_table(plan_.prediction, plan_.strategy, _title(question)))
    console.print(*bill_tables(paid), sep="\n")
    console.print(runners_up_table(found.best, found.runners_up))
    console.print(rejected_table(found))
    _print_assumptions(question, paid.assumptions)
    console.print(f"{out} and {out.with_suffix('.html')}", soft_wrap=True)


def _plan_for_goal(options: GoalOptions, asked: Asked, out: Path, as_json: bool) -> NoReturn:
    with progress("searching counts and strategies") as advance:
        answer = answer_goal(options, asked, advance)
    written = []
    if answer.plan is not None:
        write_plan(answer.plan, out)
        write_page(answer.plan, out.with_suffix(".html"),
                   timeline=predict_replayed(answer.plan.question, answer.plan.strategy)[1])
        written = [out, out.with_suffix(".html")]
    if figure := goal_figure(answer):
        written.append(files.write_text(out.with_suffix(".svg"), figure))
    if as_json:
        _print_json(goal_json(answer))
    else:
        console.print(goal_screen(answer, _title(answer.plan.question) if answer.plan else ""))
        console.print(", ".join(map(str, written)), soft_wrap=True)
    if reason := answer.considered.binding or ("" if answer.plan else "nothing fits on any of these"):
        status.print(f"headway: {reason}", soft_wrap=True)
    raise typer.Exit(goal_status(answer))


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
    data: Annotated[Path | None, typer.Option(help="Rates that `headway data bench` measured: steps wait for data.")] = None,
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
    memory, usable_bytes = memory_of(plan_, condition, table), prediction.usable_memory_bytes
    if trace is not None:
        write_trace(trace, timeline, rank_names(plan_.strategy, condition), memory.rows)
    prediction = with_data(prediction, plan_, data)
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
        _print_json(fresh.prediction | {"peak_memory_by_rank": peaks_json(memory, usable_bytes)}
                    | ({"disturbed": disturbed.as_dict()} if disturbed else {}))
        return
    console.print(prediction_table(fresh.prediction, plan_.strategy, _title(plan_.question)))
    console.print(peaks_table(memory, rank_names(plan_.strategy, condition), usable_bytes))
    if table is not None:
        console.print(f"steps, and peaks by rank, as {schedule} orders them; peak memory as under {plan_.strategy.schedule}",
                      soft_wrap=True)
    if disturbed is not None:
        console.print(disturbed_table(disturbed, prediction.days * disturbed.healthy_s / prediction.step_time_s))
    if trace is not None:
        console.print(f"trace in {trace}; open it at ui.perfetto.dev", soft_wrap=True)


@app.command()
def run(
    plan: PlanArg,
    steps: Annotated[int, typer.Option(help="Steps to train.")] = 20,
    warmup_steps: Annotated[int, typer.Option(help="First steps, left out of the medians.")] = 3,
    data: Annotated[str, typer.Option(
        help="What to train on: 'stdlib' (Python's own sources), a text file, or a folder of shards."
    )] = "stdlib",
    first_sample: Annotated[int, typer.Option(help="With shards: samples that were trained before; the order goes on.")] = 0,
    learning_rate: Annotated[float, typer.Option(help="Step size of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights and order of data.")] = 0,
    schedule: Annotated[Path | None, typer.Option(help="Run this schedule table (CSV, torch's grammar) instead.")] = None,
    out: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("run"),
    as_json: Json = False,
) -> None:
    """Train for real with torchrun, as the plan says, and compare with its prediction."""
    plan_ = read_plan(plan)
    if schedule:
        own_table(schedule, plan_)
    job = Job(
        model=plan_.question.model, strategy=plan_.strategy, out=str(out), num_steps=steps,
        num_warmup_steps=warmup_steps, data=data, first_sample=first_sample, learning_rate=learning_rate, seed=seed,
        device=plan_.question.cluster.accelerator.device, table=str(schedule.resolve()) if schedule else "",
    )
    with progress("training") as advance:
        run_ = launch(job, lambda e: advance((e["step"] + 1) / steps, f"loss {e['loss']:.3f}"))
    comparison = compare_plan_run(plan_, run_)
    if as_json:
        _print_json(comparison.as_dict() | {"data_wait_s": run_.data_wait_s, "next_sample": run_.next_sample})
    else:
        console.print(comparison_table(comparison))
        console.print(f"loss {run_.losses[0]:.3f} -> {run_.losses[-1]:.3f}; run in {out}", soft_wrap=True)
        if Path(data).is_dir():
            console.print(f"a step waited {show(run_.data_wait_s, 's')} for its data; they go on with --first-sample "
                          f"{run_.next_sample}", soft_wrap=True)


@app.command()
def export(
    plan: PlanArg,
    to: Annotated[str, typer.Option(help=f"The framework or launcher: {', '.join(EXPORTS)}.")],
    out: Annotated[Path | None, typer.Option(
        "-o", "--out", help="The folder to write, or the name of a single file. [out/export/TO]"
    )] = None,
    as_json: Json = False,
) -> None:
    """Write a plan in the words of the framework or launcher that runs it, or say what cannot be said there."""
    target = out or Path("out/export") / to
    _refuse_own_input(plan, target, "out")
    exported = export_plan(read_plan(plan), to)
    written = write_export(exported, target) if exported.files else []
    if as_json:
        _print_json({"target": to, "files": list(map(str, written)), "notes": list(exported.notes),
                     "refusals": list(exported.refusals)})
    else:
        for path in written:
            console.print(str(path), soft_wrap=True, highlight=False)
        for note in exported.notes:
            console.print(f"- {note}", soft_wrap=True, highlight=False, markup=False)
        for reason in exported.refusals:
            status.print(f"headway: {to}: {reason}", soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(1 if exported.refusals else 0)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A plan file or a run folder.")],
    b: Annotated[list[Path], typer.Argument(
        help="A plan file, a run folder, or torch.profiler traces of a step: a file for each rank, or their folder."
    )],
    figure: Annotated[Path | None, typer.Option(help="Write the waterfall as an SVG file, too.")] = None,
    as_json: Json = False,
) -> None:
    """Compare plans, runs, one of each, or a plan with traces of it: what leads from A to B, term by term."""
    with progress("comparing") as advance:
        comparison, fall = compare_paths(a, b, lambda share: advance(share, ""))
    if figure is not None:
        for read in (a, *b):
            _refuse_own_input(read, figure, "figure")
        write_waterfall(fall, figure)
    if as_json:
        _print_json(compare_json(comparison, fall))
    else:
        for table in compare_screen(comparison, fall):
            console.print(table)


@app.command()
def whatif(
    plans: Annotated[list[Path], typer.Argument(help="A plan file; or two, to see where they cross.")],
    set_: Annotated[list[str] | None, typer.Option(
        "--set", help="An input and its values, like network=400Gb/s,800Gb/s, failure_rate=x2 or tp=2..16:4; repeatable."
    )] = None,
    replan: Annotated[bool, typer.Option("--replan", help="Search the strategy again at every point.")] = False,
    tornado: Annotated[bool, typer.Option("--tornado", help="What matters most; also where nothing is set.")] = False,
    by: Annotated[str, typer.Option(help="What inputs are ranked and plans compared by: days or usd.")] = "days",
    replay: Annotated[bool, typer.Option("--replay", help="Replay every point instead of the closed form.")] = False,
    fleet: Annotated[str, typer.Option(help="How often what fails; a name or a YAML.")] = "published",
    out: Annotated[Path | None, typer.Option(help="Write a page (.html), the figure (.svg) or the rows (.csv), too.")] = None,
    as_json: Json = False,
) -> None:
    """Change inputs of a plan: sweeps, break-even points, and what matters most. Exit status 1 if nothing of it fits."""
    for plan in plans if out is not None else ():
        _refuse_own_input(plan, out, "out")
    target = None if out is None else whatif_target(out)
    options = WhatIfOptions(sets=tuple(set_ or ()), replan=replan, tornado=tornado, by=by, replay=replay, fleet=fleet)
    with progress("trying what if") as advance:
        found = what_if(tuple(read_plan(p) for p in plans), tuple(map(str, plans)), options, lambda share: advance(share, ""))
    if target is not None:
        write_whatif(found, target)
    if as_json:
        _print_json(whatif_json(found))
    else:
        console.print(whatif_screen(found))
        if out is not None:
            console.print(f"in {out}", soft_wrap=True)
    raise typer.Exit(0 if found.can_be else 1)


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


@data_app.command("prepare")
def data_prepare(
    texts: Annotated[list[Path], typer.Argument(
        help="Text: .txt (a document each), .jsonl (one on each line), with .gz or .zst behind; or folders of them."
    )],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")] = Path("shards"),
    tokenizer: Annotated[str, typer.Option(help="'bytes', or a tokenizer.json of Hugging Face's tokenizers.")] = BYTES,
    end_of_document: Annotated[str | None, typer.Option(help="The token that ends a document. [by its usual names]")] = None,
    field: Annotated[str, typer.Option(help="Which field of .jsonl holds the text.")] = "text",
    workers: Annotated[int | None, typer.Option(help="Processes that tokenise. [one for each core]")] = None,
    level: Annotated[int, typer.Option(help="Level of zstd: 1 is fast, 19 is small.")] = LEVEL,
    block_tokens: Annotated[int, typer.Option(help="Tokens that are compressed together.")] = BLOCK_TOKENS,
    shard_size: Annotated[str, typer.Option(help="Bytes of a shard.")] = show(SHARD_BYTES, "bytes"),
    as_json: Json = False,
) -> None:
    """Tokenise text, pack, compress and checksum it; the folder appears when it is whole."""
    kind, size = load_tokenizer(tokenizer, end_of_document), parse(shard_size, "bytes", "shard_size")
    left_out = find_texts(texts)[1]
    with progress("preparing data") as advance:
        shards = prepare_shards(texts, out, kind, field=field, workers=workers, level=level, block_tokens=block_tokens,
                                shard_bytes=int(size), on_progress=lambda share: advance(share, ""))
    if left_out:
        status.print(f"headway: warning: {left_out:,} files that are no .txt or .jsonl were left out", soft_wrap=True)
    if as_json:
        _print_json(shards_json(shards))
    else:
        console.print(shards_table(shards, ()))


@data_app.command("check")
def data_check(shards: ShardsArg, as_json: Json = False) -> None:
    """Read every block and name those that are damaged. Exit status 1 if any is."""
    opened = open_shards(shards)
    with progress("checking blocks") as advance:
        found = faults(opened, lambda share: advance(share, ""))
    if as_json:
        _print_json({"ok": not found, "num_blocks": opened.num_blocks, "faults": found})
    else:
        console.print("\n".join(found or [f"all {opened.num_blocks:,} blocks are whole"]), soft_wrap=True, highlight=False)
    raise typer.Exit(1 if found else 0)


@data_app.command("info")
def data_info(
    shards: ShardsArg,
    seq_len: Annotated[list[int] | None, typer.Option(help="Count samples of this length; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is in shards."""
    opened, lengths = open_shards(shards), seq_len or [2048, 4096, 8192]
    for length in seq_len or ():
        check_samples(opened, length)
    if as_json:
        _print_json(shards_json(opened) | {"num_samples": {str(length): opened.num_samples(length) for length in lengths}})
    else:
        console.print(shards_table(opened, lengths))


@data_app.command("bench")
def data_bench(
    shards: ShardsArg,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sample.")] = 2048,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 15.0,
    throttle: Annotated[str | None, typer.Option(help="Read no faster than this, like 20MB/s: a slower disk.")] = None,
    out: Annotated[Path, typer.Option(help="The file of rates to write, for `headway simulate --data`.")] = Path("data.yaml"),
    as_json: Json = False,
) -> None:
    """Measure fetching, unpacking and copying, and show predicted beside measured waiting for data."""
    opened, limit = open_shards(shards), parse(throttle, "bytes_per_s", "throttle") if throttle else None
    check_samples(opened, seq_len)
    if limit == 0 or not seconds > 0:
        raise BadInput(f"throttle, seconds: must be more than zero (are {throttle}, {seconds})")
    files.check_target(out)
    with progress("measuring shards") as advance:
        rates = measure_rates(opened, seq_len, seconds=seconds / 3, bytes_per_s=limit)
        advance(1 / 3, "waiting")
        stalls = measure_stalls(opened, rates, seq_len, seconds=2 * seconds / 3, bytes_per_s=limit)
    write_data_profile(rates, out)
    if as_json:
        _print_json(bench_json(out, rates, seq_len, stalls))
        return
    console.print(rates_table(rates, seq_len))
    console.print(stalls_table(stalls))
    console.print(f"rates in {out}", soft_wrap=True)


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
