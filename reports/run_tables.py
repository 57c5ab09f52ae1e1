"""A whole run on one screen: the days and the money, where the time goes, what interrupts it, and the two choices."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from profiles.units import show, significant
from reports.run_command import RunReport, end_dates, interruptions, quantiles
from simulator.run.outcome import PRODUCTIVE

MOST_CAUSES = 7
"""Causes that are shown one by one; the others are added up."""
WORDS = {
    "productive": "new steps", "evaluation": "evaluation", "checkpoint": "writing checkpoints", "redone": "steps done again",
    "detection": "noticing failures", "restart": "starting again", "waiting": "waiting for nodes",
    "maintenance": "maintenance", "stall": "data stalls", "reduced": "fewer replicas",
}
"""What the parts of the time are called on the screen."""


def run_screen(report: RunReport) -> RenderableType:
    """Return what the terminal shows of a whole run."""
    side = Table.grid(padding=(0, 2))
    side.add_row(_time_table(report), _cause_table(report), _choices(report))
    return Group(_summary(report), side, *_remarks(report))


def _summary(report: RunReport) -> Table:
    question, case = report.plan.question, report.case
    t, c = case.training, case.checkpoints
    table = Table(title=f"{question.model.name} on {question.cluster_text}, {show(question.tokens, 'count')} tokens: "
                        f"{len(report.runs.elapsed_s):,} runs, fleet '{case.fleet.name}'",
                  show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    found = quantiles(report)
    table.add_row("days", f"{_three(found['days'], lambda v: significant(v, 4))}; {significant(t.undisturbed_s / 86400, 4)} "
                          "with no failure and no checkpoint")
    dates = end_dates(report)
    if dates:
        table.add_row("ends on", ", ".join(f"{k.upper()} {v or '-'}" for k, v in dates.items()))
    table.add_row("GPU-hours", _three(found["gpu_hours"], lambda v: show(v, "count")))
    table.add_row("cost", _three(found["usd"], lambda v: show(v, "usd")) if question.price else "no price known")
    low, high = np.percentile(report.runs.goodputs, (10, 90)).tolist()
    table.add_row("goodput", f"{report.runs.goodput:.3f}  (P10 {low:.3f}, P90 {high:.3f}): time of new steps over elapsed time")
    by_cause = interruptions(report)
    planned = sum(by_cause[p.name] for p in case.fleet.planned)
    count = f"{significant(sum(by_cause.values()) - planned)} unplanned, {significant(planned)} planned"
    table.add_row("interruptions", f"{count}; one failure in {show(report.mttf_s, 's')} at the fleet's median rates")
    mode = "training waits" if not c.write_s else f"training waits {show(c.stall_s, 's')}, the write goes on beside it"
    every = f"every {show(c.interval_steps * t.step_time_s, 's')} ({_count(c.interval_steps, 'step')})"
    written = f"written in {show(c.write_s or c.stall_s, 's')}: {mode}"
    table.add_row("checkpoints", f"{show(report.checkpoint_bytes, 'bytes')} {every}, {written}")
    elastic = f"; elastic, {_count(t.unit_nodes, 'node')} at a time" if case.reserve.elastic else ""
    table.add_row("nodes", f"{t.num_nodes:,} of {t.gpus_per_node} GPUs and {case.reserve.num_spares} spare{elastic}")
    return table


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _three(values: Mapping[str, float | None], text: Callable[[float], str]) -> str:
    p10, p50, p90 = ("-" if values[k] is None else text(values[k] or 0.0) for k in ("p10", "p50", "p90"))
    return f"{p50}  (P10 {p10}, P90 {p90})"


def _time_table(report: RunReport) -> Table:
    table = Table(title="Where the time goes", title_justify="left")
    table.add_column("part")
    table.add_column("share", justify="right")
    parts = report.runs.shares
    lost = sorted((k for k in parts if k != PRODUCTIVE and parts[k] > 0.00005), key=lambda k: -parts[k])
    for name in (PRODUCTIVE, *lost):
        table.add_row(WORDS[name], f"{parts[name]:.2%}")
    return table


def _cause_table(report: RunReport) -> Table:
    table = Table(title="Interruptions a run", title_justify="left")
    table.add_column("cause")
    table.add_column("times", justify="right")
    by_cause = list(interruptions(report).items())
    for name, times in by_cause[:MOST_CAUSES]:
        table.add_row(name, significant(times))
    rest = by_cause[MOST_CAUSES:]
    if rest:
        table.add_row(f"{len(rest)} others", significant(sum(times for _, times in rest)))
    return table


def _choices(report: RunReport) -> Group:
    return Group(*[t for t in (_interval_table(report), _spare_table(report)) if t.row_count])


def _interval_table(report: RunReport) -> Table:
    curve = report.intervals
    caption = f"Young {show(curve.young_s, 's')}, Daly {show(curve.daly_s, 's')},\nexact {show(curve.exact_s, 's')}"
    table = Table(title="Checkpoint interval", title_justify="left", caption=caption, caption_justify="left")
    for name in ("every", "goodput", "closed form"):
        table.add_column(name, justify="right")
    for p in curve.points:
        chosen = p.interval_steps == report.case.checkpoints.interval_steps
        table.add_row(show(p.interval_s, "s"), f"{p.goodput:.4f}", f"{p.expected_goodput:.4f}", style="bold" if chosen else "")
    return table


def _spare_table(report: RunReport) -> Table:
    table = Table(title="Spare nodes", title_justify="left")
    for name in ("spares", "days", "GPU-hours", "waiting"):
        table.add_column(name, justify="right")
    for p in report.spares:
        chosen = p.num_spares == report.case.reserve.num_spares
        table.add_row(str(p.num_spares), significant(p.days, 4), show(p.gpu_hours, "count", 4), f"{p.waiting:.2%}",
                      style="bold" if chosen else "")
    return table


def _remarks(report: RunReport) -> list[str]:
    lines = []
    if report.share_finished < 1.0:
        lines.append(f"{1 - report.share_finished:.1%} of the runs did not end within {report.case.limit:g} times the "
                     "undisturbed time: failures come faster than work is saved")
    return [*lines, "Assumed: " + "; ".join(report.assumptions)]
