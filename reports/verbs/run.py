"""`headway run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from executor.launch import launch
from executor.run import Job
from planner.plan import read_plan
from profiles.units import show
from reports.compare import compare_plan_run, comparison_table
from reports.console import console, progress
from reports.disturbed import own_table
from reports.verbs.options import PlanArg
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples("run plan.yaml --steps 50", "run plan.yaml --data shards --out out/run"))
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
        print_json(comparison.as_dict() | {"data_wait_s": run_.data_wait_s, "next_sample": run_.next_sample})
    else:
        console.print(comparison_table(comparison))
        console.print(f"loss {run_.losses[0]:.3f} -> {run_.losses[-1]:.3f}; run in {out}", soft_wrap=True)
        if Path(data).is_dir():
            console.print(f"a step waited {show(run_.data_wait_s, 's')} for its data; they go on with --first-sample "
                          f"{run_.next_sample}", soft_wrap=True)
