"""`headway run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from executor.elastic import smaller_strategy
from executor.goodput import goodput
from executor.journal import read_journal
from executor.launch import Left, launch
from executor.run import Expected, Job, Run
from executor.supervise import Survival
from planner.plan import Plan, read_plan
from profiles.units import parse, show
from reports.compare import compare_plan_run, comparison_table
from reports.console import console, progress, status
from reports.disturbed import own_table
from reports.running import (
    data_place,
    default_restarts,
    dry_run,
    dry_run_json,
    dry_run_table,
    event_text,
    expected_of,
    goodput_text,
    on_nodes,
)
from reports.verbs.options import PlanArg, unfolded
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalOptions:
    """Options of checkpoints and restarts."""

    checkpoint_every: Annotated[int, typer.Option(help="Write a checkpoint after so many steps; 0: never.")] = 0
    keep: Annotated[int, typer.Option(help="Checkpoints that are kept, the newest ones.")] = 2
    async_checkpoint: Annotated[bool, typer.Option(
        "--async-checkpoint", help="Write checkpoints while training goes on, from a copy in memory.")] = False
    resume: Annotated[Path | None, typer.Option(help="Go on from the newest good checkpoint of this run folder.")] = None
    max_restarts: Annotated[int | None, typer.Option(help="Restarts after failures. [3 with checkpoints, else none]")] = None
    hang_timeout: Annotated[str, typer.Option(help="How long a step may go without progress before it hangs.")] = "10min"
    grace: Annotated[str, typer.Option(help="How long ranks may take to write a checkpoint and leave after SIGTERM.")] = "30s"
    elastic: Annotated[bool, typer.Option(
        "--elastic", help="With fewer ranks left, go on with the best strategy for them.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorOptions:
    """Options of what is told while training runs."""

    log_every: Annotated[int, typer.Option(help="Steps between lines of progress; 0: none.")] = 0
    prometheus: Annotated[Path | None, typer.Option(help="Keep the last line in this file for Prometheus, too.")] = None
    tensorboard: Annotated[Path | None, typer.Option(help="Write scalars for TensorBoard into this folder, too.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """Options of how ranks are started."""

    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Start every rank, run one step without data, report, and keep nothing.")] = False
    nodes: Annotated[str | None, typer.Option(
        help="Only write the job for slurm, kubernetes or torchrun, into --out.")] = None
    submit: Annotated[bool, typer.Option("--submit", help="With --nodes: submit it, too.")] = False


@app.command(epilog=examples("run plan.yaml --steps 50", "run plan.yaml --data shards --out out/run",
                             "run plan.yaml --weights llama/ --save-weights tuned/",
                             "run plan.yaml --steps 1000 --checkpoint-every 100 --out out/run",
                             "run plan.yaml --steps 1000 --checkpoint-every 100 --out out/run --resume out/run"))
@unfolded
def run(
    plan: PlanArg,
    survival: SurvivalOptions,
    monitor: MonitorOptions,
    start: LaunchOptions,
    steps: Annotated[int, typer.Option(help="Steps to train, those before a checkpoint included.")] = 20,
    warmup_steps: Annotated[int, typer.Option(help="First steps, left out of the medians.")] = 3,
    data: Annotated[str, typer.Option(
        help="What to train on: 'stdlib' (Python's own sources), a text file, or a folder of shards."
    )] = "stdlib",
    first_sample: Annotated[str, typer.Option(
        help="Samples that were trained before, the order goes on; N, or N:FINGERPRINT of the data they were.")] = "0",
    learning_rate: Annotated[float, typer.Option(help="Step size of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights and order of data.")] = 0,
    schedule: Annotated[Path | None, typer.Option(help="Run this schedule table (CSV, torch's grammar) instead.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Start from the weights in this Hugging Face folder.")] = None,
    save_weights: Annotated[Path | None, typer.Option(help="Write the trained model there, as transformers reads it.")] = None,
    out: Annotated[Path, typer.Option(help="The run folder to write.")] = Path("run"),
    as_json: Json = False,
) -> None:
    """Train for real with torchrun, as the plan says, and compare with its prediction."""
    plan_ = read_plan(plan)
    if schedule:
        own_table(schedule, plan_)
    sample, fingerprint = data_place(first_sample)
    job = Job(
        model=plan_.question.model, strategy=plan_.strategy, out=str(out), num_steps=steps,
        num_warmup_steps=warmup_steps, data=data, first_sample=sample, learning_rate=learning_rate, seed=seed,
        device=plan_.question.cluster.accelerator.device, table=str(schedule.resolve()) if schedule else "",
        fingerprint=fingerprint, checkpoint_every=survival.checkpoint_every, keep=survival.keep,
        async_checkpoint=survival.async_checkpoint, resume=str(survival.resume or ""), log_every=monitor.log_every,
        prometheus=str(monitor.prometheus or ""), tensorboard=str(monitor.tensorboard or ""),
        expected=expected_of(plan_) if monitor.log_every else Expected(),
        weights=str(weights or ""), save_weights=str(save_weights or ""),
    )
    if start.nodes:
        done = on_nodes(plan_, job, start.nodes, submit=start.submit)
        if as_json:
            print_json({"nodes": start.nodes, "done": done})
        else:
            console.print("\n".join(done), soft_wrap=True, highlight=False, markup=False)
    elif start.dry_run:
        with progress("dry run"):
            tried = dry_run(job)
        if as_json:
            print_json(dry_run_json(tried))
        else:
            console.print(dry_run_table(tried))
    else:
        _report(plan_, _train(plan_, job, survival), as_json)


def _train(plan: Plan, job: Job, options: SurvivalOptions) -> Run:
    def on_event(line: dict[str, object]) -> None:
        if text := event_text(line, job.num_steps):
            status.print(text, soft_wrap=True, highlight=False, markup=False)

    survival = Survival(
        max_restarts=default_restarts(options.max_restarts, job.checkpoint_every), node_ranks=1 if options.elastic else 0,
        hang_timeout_s=parse(options.hang_timeout, "s", "hang_timeout"), grace_s=parse(options.grace, "s", "grace"),
    )
    try:
        with progress("training") as advance:
            return launch(
                job, lambda e: advance((e["step"] + 1) / job.num_steps, f"loss {e['loss']:.3f}"), survival, on_event=on_event,
                smaller=(lambda ranks: smaller_strategy(plan.question, ranks)) if options.elastic else None,
            )
    except Left as e:
        status.print(f"headway: {e}; go on with --resume {job.out}", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(1) from None


def _report(plan: Plan, run_: Run, as_json: bool) -> None:
    job, spent = run_.job, goodput(read_journal(run_.job.out))
    comparison = compare_plan_run(plan, run_)
    if as_json:
        print_json(comparison.as_dict() | {"data_wait_s": run_.data_wait_s, "next_sample": run_.next_sample,
                                           "data_fingerprint": run_.environment["data"],
                                           "goodput": spent.ratio, "goodput_s": spent.as_dict()})
        return
    console.print(comparison_table(comparison))
    console.print(f"loss {run_.losses[0]:.3f} -> {run_.losses[-1]:.3f}; run in {job.out}", soft_wrap=True)
    console.print(goodput_text(spent), soft_wrap=True, highlight=False)
    if Path(job.data).is_dir():
        console.print(f"a step waited {show(run_.data_wait_s, 's')} for its data; they go on with --first-sample "
                      f"{run_.next_sample}:{run_.environment['data'][:16]}", soft_wrap=True)
