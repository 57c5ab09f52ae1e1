"""`headway simulate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from planner.plan import plan_from_prediction, read_plan
from planner.predict import predict_played
from reports.console import console, progress
from reports.data_command import with_data
from reports.disturbed import condition_of, disturb, disturbed_table, noise_of, own_table
from reports.memory_peaks import peaks_json, peaks_table, usable_by_rank
from reports.plan_tables import prediction_table, title_of
from reports.run_command import exit_status, run_json, run_options, simulate_plan
from reports.run_tables import run_screen
from reports.verbs.options import PlanArg, refuse_own_input, unfolded
from reports.verbs.style import Json, examples, print_json, verb_app
from simulator.memory_timeline import memory_timeline
from simulator.replay import rank_names
from simulator.timeline import write_trace

app = verb_app()


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """Options that go with --run; None where not given."""

    checkpoint_interval: Annotated[str | None, typer.Option(help="With --run: 'auto' or a time like 30min. [auto]")] = None
    checkpoint: Annotated[str | None, typer.Option(help="With --run: sync or async. [sync]")] = None
    keep: Annotated[int | None, typer.Option(help="With --run: checkpoints that are kept, the newest ones. [all]")] = None
    storage: Annotated[str | None, typer.Option(help="With --run: rate of the storage, like 200GB/s. [by the GPU]")] = None
    spares: Annotated[int | None, typer.Option(help="With --run: spare nodes. [as many as pay]")] = None
    fleet: Annotated[str | None, typer.Option(help="With --run: how often what fails; a name or a YAML. [published]")] = None
    runs: Annotated[int | None, typer.Option(help="With --run: how many runs. [1000]")] = None
    elastic: Annotated[bool | None, typer.Option("--elastic", help="With --run: go on with fewer replicas.")] = None
    eval_every: Annotated[int | None, typer.Option(help="With --run: steps between evaluations; 0: none. [1000]")] = None
    eval_batches: Annotated[int | None, typer.Option(help="With --run: batches of an evaluation. [1]")] = None
    start: Annotated[str | None, typer.Option(help="With --run: the first day, like 2027-01-15, for dates of the end.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbances:
    """Options that disturb the step: ranks and nodes that are slow, and noise."""

    slow_gpu: Annotated[list[str] | None, typer.Option(help="A rank that computes slower, like 17=1.2; repeatable.")] = None
    slow_node: Annotated[list[str] | None, typer.Option(help="A node with a slower network, like 3=2; repeatable.")] = None
    speed_spread: Annotated[str | None, typer.Option(help="Spread of the ranks' speeds for good, like 2%.")] = None
    jitter: Annotated[str | None, typer.Option(help="Spread of each rank's speed from step to step, like 1%.")] = None
    pauses: Annotated[str | None, typer.Option(help="Pauses that every rank makes, like 5ms/1s.")] = None
    steps: Annotated[int | None, typer.Option(help="Steps that are sampled under noise. [200]")] = None


@app.command(epilog=examples(
    "simulate plan.yaml --trace step.json", "simulate plan.yaml --slow-gpu 17=1.2 --jitter 1%",
    "simulate plan.yaml --run --start 2027-01-15", "simulate plan.yaml --run --checkpoint async --spares 2",
))
@unfolded
def simulate(
    plan: PlanArg,
    whole: WholeRun,
    disturbed_by: Disturbances,
    trace: Annotated[Path | None, typer.Option(help="Write a Perfetto/Chrome trace of one step; packed if named .gz.")] = None,
    run: Annotated[bool, typer.Option("--run", help="The whole run, with failures: days, dollars, goodput.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the failures (--run) or of the noise. [0]")] = None,
    schedule: Annotated[Path | None, typer.Option(help="Replay this schedule table (CSV, torch's grammar) instead.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rates that `headway data bench` measured: steps wait for data.")] = None,
    as_json: Json = False,
) -> None:
    """Replay one step of a plan with SimPy, or with --run the whole run, from the first token to the last."""
    refuse_own_input(plan, trace, "trace")
    options = run_options(run, **asdict(whole), seed=seed if run else None)
    plan_ = read_plan(plan)
    table = own_table(schedule, plan_) if schedule else None
    by = disturbed_by
    condition = condition_of(plan_, by.slow_gpu or [], by.slow_node or [])
    disturbed = disturb(plan_, condition, noise_of(by.speed_spread, by.jitter, by.pauses), by.steps, seed or 0)
    prediction, timeline, step = predict_played(plan_.question, plan_.strategy, condition=condition, table=table)
    memory = memory_timeline(step, plan_.question.cluster.accelerator)
    usable = usable_by_rank(plan_, memory)
    if trace is not None:
        write_trace(trace, timeline, rank_names(plan_.strategy, condition), memory.rows)
    prediction = with_data(prediction, plan_, data)
    fresh = plan_from_prediction(plan_.question, prediction, plan_.profile)
    if options is not None:
        with progress("simulating runs") as advance:
            report = simulate_plan(plan_, fresh.prediction, options, advance)
        if as_json:
            print_json(run_json(report))
        else:
            console.print(run_screen(report))
        raise typer.Exit(exit_status(report))
    if as_json:
        print_json(fresh.prediction | {"peak_memory_by_rank": peaks_json(memory, usable)}
                   | ({"disturbed": disturbed.as_dict()} if disturbed else {}))
        return
    console.print(prediction_table(fresh.prediction, plan_.strategy, title_of(plan_.question)))
    console.print(peaks_table(memory, rank_names(plan_.strategy, condition), usable))
    if table is not None:
        console.print(f"steps, and peaks by rank, as {schedule} orders them; peak memory as under {plan_.strategy.schedule}",
                      soft_wrap=True)
    if disturbed is not None:
        console.print(disturbed_table(disturbed, prediction.days * disturbed.healthy_s / prediction.step_time_s))
    if trace is not None:
        console.print(f"trace in {trace}; open it at ui.perfetto.dev", soft_wrap=True)
