"""After a run: predicted against measured throughout, the loss, the goodput, the drift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from executor.goodput import Goodput
from executor.run import Run
from planner.plan import Plan
from planner.predict import Prediction
from profiles.units import significant
from reports.compare import Comparison, comparable_bytes, compare_plan_run, per_cent, share, shown, span
from reports.figures import between, goodput_bar, loss_curve, side_by_side, step_times
from reports.figures.palette import TERM_COLOURS
from reports.page.findings import Brief, Findings
from reports.page.values import Exhibit, Picture, Section, Table
from reports.page.words import plural
from reports.running import terms_of
from reports.waterfall import WORDS, Waterfall, signed, waterfall_between
from simulator.layout import coordinates
from simulator.memory import rank_memory
from simulator.workload import build_workload

NUM_LOSSES_SHOWN = 8
MAX_RANKS_SHOWN = 64


def measured(found: Findings, run: Run) -> Section:
    """Return how the prediction and the run compare."""
    plan, p = found.plan, found.prediction
    comparison = compare_plan_run(plan, run)
    fall = waterfall_between(plan, run)
    exhibits = [
        _quantities(comparison, run), *([_parts(comparison)] if comparison.breakdown else []), *([_fall(fall)] if fall else []),
        _steps(run, p), *([_goodput(found.spent)] if found.spent else []), _loss(run), _memory(plan, run), _environment(run),
    ]
    return Section(key="measured", title="Predicted against measured", gist=measured_gist(found, run), exhibits=tuple(exhibits))


def measured_gist(found: Brief, run: Run) -> str:
    """Return how far off the prediction was, in a sentence or two."""
    plan, p = found.plan, found.prediction
    error = compare_plan_run(plan, run).row("step_time_s").error
    return (f"The predicted step is off by {per_cent(error)}: {shown(p.step_time_s, 's')} predicted, "
            f"{shown(run.step_time_s, 's')} measured over {plural(run.job.num_steps, 'step')} on "
            f"{plural(int(plan.strategy.world_size), found.noun)}. Steps drift by {per_cent(drift(run))}"
            f"{f', goodput {share(found.spent.ratio)}' if found.spent else ''}.")


def drift(run: Run) -> float:
    """Return how much longer a step takes in the second half of the run than in the first, by medians, without the warm-up."""
    times = run.measured_step_times_s
    half = len(times) // 2
    return median(times[-half:]) / median(times[:half]) - 1 if half else 0.0


def _quantities(comparison: Comparison, run: Run) -> Exhibit:
    words = "quantity"
    rows = tuple((r.quantity, shown(r.first, r.unit), shown(r.second, r.unit), per_cent(r.error)) for r in comparison.rows)
    return Exhibit(
        prose=(f"Medians after {plural(run.job.num_warmup_steps, 'step')} of warm-up. Error = (predicted - measured) / "
               "measured.",),
        table=Table(head=(words, "predicted", "measured", "error"), words=(words,), rows=rows),
    )


def _parts(comparison: Comparison) -> Exhibit:
    rows = comparison.breakdown
    frame = pd.DataFrame([(r.key, r.first or 0.0, r.second or 0.0) for r in rows],
                         columns=["term", "predicted_s", "measured_s"])
    return Exhibit(
        title="Parts of the step",
        picture=Picture(name="sides", title="parts of the step, predicted and measured", figure=side_by_side(frame)),
        table=Table(head=("part", "predicted", "measured", "error"), words=("part",),
                    rows=tuple((r.quantity, shown(r.first, "s"), shown(r.second, "s"), per_cent(r.error)) for r in rows),
                    colours=tuple(TERM_COLOURS[r.key] for r in rows)),
        notes=("On the busiest rank. Measured parts are medians over the steps; they need not add up to the median step.",),
    )


def _fall(fall: Waterfall) -> Exhibit:
    return Exhibit(
        title="From predicted to measured",
        picture=Picture(name="between", title=f"from {fall.sides[0]} to {fall.sides[1]}, term by term", figure=between(
            fall.frame, fall.sides, (fall.first_s, fall.second_s), WORDS[fall.unit])),
        table=Table(head=("term", "adds", "what it is, and what helps"), words=("term", "what it is, and what helps"),
                    rows=tuple((c.name, signed(c.seconds), c.note) for c in fall.shown)),
    )


def _steps(run: Run, p: Prediction) -> Exhibit:
    times, warm_up = np.array(run.measured_step_times_s), run.step_times_s[run.first_step : run.first_measured]
    inside = int(((times >= p.p10_s) & (times <= p.p90_s)).sum())
    frame = pd.DataFrame({
        "step": range(1, len(run.step_times_s) + 1), "step_time_s": run.step_times_s,
        "is_warm_up": [i < run.first_measured for i in range(len(run.step_times_s))],
    })
    rows = [("median", shown(p.step_time_s, "s"), shown(run.step_time_s, "s"), per_cent(p.step_time_s / run.step_time_s - 1))]
    rows += [(name, "-", shown(value, "s"), "-") for name, value in (
        ("P10 over the steps", run.p10_s), ("P90 over the steps", run.p90_s), ("shortest", float(times.min())),
        ("longest", float(times.max())))]
    rows.append(("drift, second half over first", "-", per_cent(drift(run)), "-"))
    note = (f"The predicted P10 to P90, {span(p.p10_s, p.p90_s, 's')}, is how sure the prediction is of its median. {inside} "
            f"of {len(times)} measured steps lie between them.")
    if warm_up:
        note += f" Warm-up: {', '.join(shown(s, 's') for s in warm_up)}."
    return Exhibit(
        title="Time of each step, and drift",
        picture=Picture(name="steps", title="time of each step", figure=step_times(frame, (p.p10_s, p.step_time_s, p.p90_s))),
        table=Table(head=("step time", "predicted", "measured", "error"), words=("step time",), rows=tuple(rows)),
        notes=(note,),
    )


def _goodput(spent: Goodput) -> Exhibit:
    parts = sorted(((name, seconds) for name, seconds in terms_of(spent).items() if seconds > 0 and name != "training"),
                   key=lambda part: -part[1])
    rows = [("training", spent.training_s), *parts]
    frame = pd.DataFrame([(name, name, seconds / spent.wall_s) for name, seconds in rows], columns=["part", "name", "share"])
    return Exhibit(
        title="Goodput",
        picture=Picture(name="spent", title="shares of the time of the run that was made", figure=goodput_bar(frame)),
        table=Table(head=("part", "time", "share"), words=("part",), strong=(0,),
                    rows=tuple((name, shown(seconds, "s"), share(seconds / spent.wall_s)) for name, seconds in rows)),
        notes=("By the journal of the run, over all its restarts: the terms add up to its time.",),
    )


def _loss(run: Run) -> Exhibit:
    frame = pd.DataFrame({"step": range(1, len(run.losses) + 1), "loss": run.losses})
    shown_steps = np.unique(np.linspace(0, len(run.losses) - 1, NUM_LOSSES_SHOWN).round().astype(int)).tolist()
    return Exhibit(
        title="Loss", picture=Picture(name="loss", title="loss of each step", figure=loss_curve(frame)),
        table=Table(head=("step", "loss, nats per token"),
                    rows=tuple((str(i + 1), f"{run.losses[i]:.4f}") for i in shown_steps)),
    )


def _memory(plan: Plan, run: Run) -> Exhibit:
    rows = tuple(_memory_rows(plan, run))
    note = ("Measured is what tensors hold; predicted is without the framework and the allocator's slack, which it does not "
            "count." if run.job.device == "cuda" else
            "Measured is the resident memory of the process, predicted with the framework in it.")
    if len(run.peak_memory_bytes) > len(rows):
        note += f" The first {len(rows)} of {len(run.peak_memory_bytes)} ranks."
    return Exhibit(title="Peak memory by rank", notes=(note,), table=Table(
        head=("rank", "stage", "predicted", "measured", "error", "reserved", "before the model was built"), rows=rows,
        wide=True))


def _memory_rows(plan: Plan, run: Run) -> Iterator[tuple[str, ...]]:
    strategy, accelerator = plan.strategy, plan.question.cluster.accelerator
    workload = build_workload(plan.question.model, strategy)
    for rank, peak in enumerate(run.peak_memory_bytes[:MAX_RANKS_SHOWN]):
        stage = int(coordinates(strategy, rank)["pp"])
        parts = {k: float(v) for k, v in rank_memory(workload, accelerator, stage).items()}
        predicted = comparable_bytes(sum(parts.values()), parts, cuda=run.job.device == "cuda")
        error = per_cent(predicted / peak - 1) if peak else "-"
        yield (str(rank), str(stage), shown(predicted, "bytes"), shown(peak, "bytes"), error,
               shown(run.reserved_memory_bytes[rank], "bytes"), shown(run.idle_memory_bytes[rank], "bytes"))


def _environment(run: Run) -> Exhibit:
    rows = [(name, str(value)) for name, value in run.environment.items()]
    rate = significant(run.job.learning_rate)
    rows.append(("data, seed, learning rate", f"{Path(run.job.data).name}, {run.job.seed}, {rate}"))
    head = ("what", "value")
    return Exhibit(title="Environment of the run", table=Table(head=head, words=head, rows=tuple(rows)))
