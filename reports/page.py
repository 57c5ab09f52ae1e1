"""One self-contained HTML page of a plan, and of the run that was made of it: verdict, why, what else, evidence."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from executor.run import Run
from planner.economics import gpu_hours, run_usd
from planner.plan import Plan, write_plan
from planner.predict import Prediction, predict_replayed
from planner.question import Question
from profiles import files
from profiles.efficiency import load_efficiency
from profiles.families import num_params
from profiles.units import show, significant
from reports import figures
from reports.compare import (
    ROUNDING_S,
    TERMS,
    comparable_bytes,
    compare_plan_run,
    current_prediction,
    error_name,
    per_cent,
    prediction_from_dict,
    share,
    shown,
    span,
)
from reports.waterfall import WORDS, signed, waterfall_between
from reports.waterfall_figure import waterfall_figure
from simulator.layout import coordinates, distinct_ranks
from simulator.memory import rank_memory
from simulator.strategy import Strategy
from simulator.timeline import Timeline
from simulator.workload import build_workload

MEMORY_NAMES = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimizer states", "gathered": "gathered weights",
    "activations": "activations", "transient": "transient, inside one pass", "framework": "framework",
    "slack": "allocator slack",
}
PASS_NAMES = {"F": "forward", "B": "backward", "W": "weight gradient", "U": "optimizer"}
NUM_REJECTED_SHOWN = 20
NUM_LOSSES_SHOWN = 8
MAX_RANKS_SHOWN = 64
DRAWN_WHOLE = 48
"""A step of at most this many micro-batches is drawn whole; of a longer one the beginning and the end are drawn."""
DRAWN_MICROBATCHES = 16


class Part(NamedTuple):
    """A row of a table beside a figure: its colour there, its name, its value and its share of the whole."""

    colour: str
    name: str
    value: float
    share: float


class Figure(NamedTuple):
    """A quantity that went into the plan, as people write it, and where it comes from."""

    name: str
    value: str
    source: str


class RankRow(NamedTuple):
    """A distinct rank's step: seconds by pass, seconds in none of them, and seconds of communication by stream."""

    stage: int
    rank: int
    passes_s: dict[Any, float]
    idle_s: float
    streams_s: dict[Any, float]


def write_page(plan: Plan, path: str | Path, *, run: Run | None = None, timeline: Timeline | None = None) -> Path:
    """Write the page of a plan, with the run beside it if there is one; `timeline` is the plan's replay, if at hand."""
    return files.write_text(path, render_page(plan, run=run, timeline=timeline))


def render_page(plan: Plan, *, run: Run | None = None, timeline: Timeline | None = None) -> str:
    """Return the page's HTML; the same values give the same text."""
    prediction, edited = current_prediction(plan)
    timeline = timeline or predict_replayed(plan.question, plan.strategy)[1]
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "si": shown, "per_cent": per_cent, "significant": significant, "share": share, "span": span,
        "duration": _days, "signed": signed,
    }
    context = {
        "plan": plan, "question": plan.question, "strategy": plan.strategy, "p": prediction,
        "notes": list(_notes(prediction, edited, timeline)),
        **_verdict(plan.question, prediction), **_why(prediction), **_alternatives(plan, prediction),
        **_pipeline(plan.strategy, timeline), "run": run, **(_run(plan, prediction, run) if run else {}),
        "inputs": list(_inputs(plan.question)), "plan_text": plan_text(plan),
    }
    return environment.get_template("page.html.j2").render(context)


def _notes(prediction: Prediction, edited: str | None, timeline: Timeline) -> Iterator[str]:
    """Return what a reader must know before the figures: where they are not those of the plan file."""
    if edited:
        yield f"The plan file was edited after its prediction was made: {edited}. What is shown here is predicted anew."
    if abs(timeline.step_time_s / prediction.step_time_s - 1) > 1e-3:
        yield (f"The plan states a step of {shown(prediction.step_time_s, 's', 4)}; replayed now it takes "
               f"{shown(timeline.step_time_s, 's', 4)}. The plan was made with other inputs or another version.")


def _verdict(question: Question, p: Prediction) -> dict[str, Any]:
    cluster = question.cluster
    noun = "GPU" if cluster.accelerator.device == "cuda" else "rank"
    usd = [run_usd(gpu_hours(days, cluster.num_gpus), question.price) for days in (p.days_p10, p.days_p90)]
    where = cluster.title if cluster.name == "local" else f"{cluster.num_nodes} x {cluster.title}"
    losses = sorted(((s, t) for t, s in p.breakdown_s.items() if t != "compute" and s > ROUNDING_S), reverse=True)
    return {
        "noun": noun, "where": where, "num_params": num_params(question.model),
        "days": [_days(d) for d in (p.days_p10, p.days, p.days_p90)],
        "usd": None if p.usd is None else [show(float(v), "usd") for v in (usd[0], p.usd, usd[1]) if v is not None],
        "largest_loss": (TERMS[losses[0][1]], losses[0][0] / p.step_time_s) if losses else None,
    }


def _days(days: float) -> str:
    """Return a duration, in days where it is at least one."""
    return f"{significant(days)} days" if days >= 1 else show(days * 86400, "s")


def _why(p: Prediction) -> dict[str, Any]:
    memory = {name: size for name, size in p.memory_bytes.items() if size > 0}
    terms = {term: seconds for term, seconds in p.breakdown_s.items() if seconds > ROUNDING_S}
    return {
        "waterfall": Markup(figures.waterfall(terms, TERMS)),
        "terms": [Part(figures.TERM_COLOURS[t], TERMS[t], s, s / p.step_time_s) for t, s in terms.items()],
        "zero_terms": [TERMS[t] for t in p.breakdown_s if t not in terms],
        "memory_figure": Markup(figures.memory_stack(memory, p.usable_memory_bytes)),
        "memory": [
            Part(figures.MEMORY_COLOURS[n], MEMORY_NAMES[n], s, s / p.usable_memory_bytes) for n, s in memory.items()
        ],
    }


def _alternatives(plan: Plan, p: Prediction) -> dict[str, Any]:
    others = [prediction_from_dict(data, f"plan: runners_up.{i}") for i, data in enumerate(plan.runners_up)]
    steps = [(o.p10_s, o.step_time_s, o.p90_s) for o in (p, *others)]
    return {
        "considered": [p, *others], "rejected_examples": plan.rejected_examples[:NUM_REJECTED_SHOWN],
        "alternatives_figure": Markup(figures.alternatives(steps)) if others else None,
        "num_close": sum(o.p10_s <= p.p90_s for o in others),
    }


def _pipeline(strategy: Strategy, timeline: Timeline) -> dict[str, Any]:
    rows: dict[Any, pd.DataFrame] = dict(iter(timeline.rows.groupby("rank")))
    ranks = distinct_ranks(strategy)
    table = [_rank_row(stage, rank, rows[rank], timeline.step_time_s) for stage, rank in enumerate(ranks)]
    names = [f"rank {rank}" if strategy.pp == 1 else f"stage {stage}" for stage, rank in enumerate(ranks)]
    windows = drawn_windows(strategy, timeline.step_time_s)
    drawn = {name: rows[rank] for name, rank in zip(names, ranks, strict=True)}
    return {
        "gantt": Markup(figures.gantt(drawn, timeline.step_time_s, windows)), "windows": windows, "rank_rows": table,
        "passes": [
            (p, name, figures.PASS_COLOURS[p]) for p, name in PASS_NAMES.items() if any(p in r.passes_s for r in table)
        ],
        "streams": [
            (s, colour) for s, colour in figures.STREAM_COLOURS.items() if any(s in row.streams_s for row in table)
        ],
        "alike": int(strategy.world_size) // len(ranks),
    }


def _rank_row(stage: int, rank: int, rows: pd.DataFrame, step_time_s: float) -> RankRow:
    actions = figures.action_spans(rows)
    passes = (actions["end_s"] - actions["start_s"]).groupby(actions["pass"]).sum().to_dict()
    streams = (rows["end_s"] - rows["start_s"]).groupby(rows["stream"]).sum().to_dict()
    return RankRow(stage, rank, passes, step_time_s - sum(passes.values()), streams)


def drawn_windows(strategy: Strategy, step_time_s: float) -> list[tuple[float, float]]:
    """Return the windows of a step that are drawn: the whole of a short one, beginning and end of a long one."""
    num, stages = int(strategy.num_microbatches), int(strategy.pp)
    width = (stages + DRAWN_MICROBATCHES) * step_time_s / (num + stages - 1)
    if num <= DRAWN_WHOLE or 2 * width >= step_time_s:
        return [(0.0, step_time_s)]
    return [(0.0, width), (step_time_s - width, step_time_s)]


def _run(plan: Plan, p: Prediction, run: Run) -> dict[str, Any]:
    comparison = compare_plan_run(plan, run)
    terms = {row.key: (row.first or 0.0, row.second or 0.0) for row in comparison.breakdown}
    sides = [{t: max(0.0, values[i]) for t, values in terms.items()} for i in (0, 1)]
    times = np.array(run.measured_step_times_s)
    shown_steps = np.unique(np.linspace(0, len(run.losses) - 1, NUM_LOSSES_SHOWN).round().astype(int)).tolist()
    band, fall = (p.p10_s, p.step_time_s, p.p90_s), waterfall_between(plan, run)
    return {
        "comparison": comparison, "error_name": error_name(comparison),
        "step_figure": Markup(figures.step_times(run.step_times_s, run.job.num_warmup_steps, band)),
        "step_rows": [
            ("P10 over the steps", run.p10_s), ("P90 over the steps", run.p90_s), ("shortest", times.min()),
            ("longest", times.max()),
        ],
        "num_inside": int(((times >= p.p10_s) & (times <= p.p90_s)).sum()), "num_measured": len(times),
        "data": Path(run.job.data).name, "warmup_s": run.step_times_s[: run.job.num_warmup_steps],
        "loss_figure": Markup(figures.loss_curve(run.losses)),
        "losses": [(i + 1, run.losses[i]) for i in shown_steps],
        "sides_figure": Markup(figures.side_by_side(*sides)) if terms else None,
        "fall": fall, "fall_figure": Markup(waterfall_figure(
            fall.frame, fall.sides, (fall.first_s, fall.second_s), WORDS[fall.unit])) if fall else None,
        "term_colours": figures.TERM_COLOURS, "memory_ranks": _memory_by_rank(plan, run),
    }


def _memory_by_rank(plan: Plan, run: Run) -> list[tuple[int, int, float, int, int, int]]:
    """Return rank, stage, predicted peak, measured peak, reserved and idle bytes of the first ranks."""
    strategy, accelerator = plan.strategy, plan.question.cluster.accelerator
    workload = build_workload(plan.question.model, strategy)
    rows = []
    for rank, peak in enumerate(run.peak_memory_bytes[:MAX_RANKS_SHOWN]):
        stage = int(coordinates(strategy, rank)["pp"])
        parts = {k: float(v) for k, v in rank_memory(workload, accelerator, stage).items()}
        predicted = comparable_bytes(sum(parts.values()), parts, cuda=run.job.device == "cuda")
        rows.append((rank, stage, predicted, peak, run.reserved_memory_bytes[rank], run.idle_memory_bytes[rank]))
    return rows


def _inputs(question: Question) -> Iterator[Figure]:
    model, cluster = question.model, question.cluster
    accelerator, sources = cluster.accelerator, cluster.accelerator.sources
    yield Figure(
        f"model {model.name}", f"{show(num_params(model), 'count', 4)} parameters: {model.num_layers} layers, hidden "
        f"{model.hidden}, {model.describe_layers()}, vocabulary {model.vocab}, context {model.max_seq_len}", model.source,
    )
    yield Figure(f"{accelerator.title}: usable memory", show(accelerator.memory_bytes, "bytes"), sources["memory"])
    yield Figure("memory bandwidth", show(accelerator.memory_bytes_per_s, "bytes_per_s"), sources["memory_bandwidth"])
    for dtype, peak in accelerator.peak_flop_per_s.items():
        yield Figure(f"peak {dtype}, dense", show(peak, "flop_per_s", 4), sources[f"peak.{dtype}"])
    yield Figure("framework memory", show(accelerator.framework_bytes, "bytes"), sources["framework_memory"])
    yield Figure("allocator slack", f"{100 * accelerator.allocator_slack:.1f} %", sources["allocator_slack"])
    links = [("inside the node", cluster.scale_up), ("between nodes", cluster.scale_out)]
    for name, link in links if cluster.num_nodes > 1 else links[:1]:
        rate = f"{show(link.bytes_per_s, 'bytes_per_s')} ({significant(link.bytes_per_s * 8e-9, 4)} Gb/s)"
        yield Figure(f"link {name}, per accelerator and direction: {link.name}", rate, link.source)
    if question.price is not None:
        price = question.price
        yield Figure("price", f"{show(price.usd_per_gpu_hour, 'usd_per_hour')} per GPU, {price.term}, {price.provider}",
                     f"{price.source}, as of {price.date}")
    yield from _costs(question)


def _costs(question: Question) -> Iterator[Figure]:
    """Return what the seconds come from: the measured table, or the fitted laws with their spread."""
    table = question.cluster.table
    if table is not None:
        head = table.head
        yield Figure("measured table", f"{len(table.rows)} rows, {head['num_ranks']} ranks busy, {head['backend']}",
                     f"headway profile, {head['date']}")
        return
    laws = load_efficiency(question.cluster.accelerator.laws)
    for name, law in (("GEMM", laws.gemm), ("attention", laws.attention), ("memory-bound kernels", laws.memory_bound)):
        rates = law.efficiency if isinstance(law.efficiency, dict) else {"": law.efficiency}
        shares = ", ".join(f"{100 * rate:.0f} % {kind}".rstrip() for kind, rate in rates.items())
        yield Figure(f"efficiency of {name}", f"{shares} of peak, spread {100 * law.spread:.0f} %", law.source)
    for name, link in (("inside a node", laws.scale_up), ("between nodes", laws.scale_out)):
        yield Figure(f"collectives {name}", f"fitted law, spread {100 * link.spread:.0f} %", link.source)


def plan_text(plan: Plan) -> str:
    """Return the plan file's text; a profile is named as if it lay beside the file."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder).resolve() / "plan.yaml"
        beside = replace(plan, profile=target.parent / plan.profile.name if plan.profile else None)
        return files.read_text(write_plan(beside, target))
