"""What the terminal and the page show of a what-if: rows of text."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.inputs import INPUTS
from planner.tornado import Tornado
from planner.whatif import METRICS, Point, Sweep
from profiles.units import show, significant
from reports.compare import TERMS, per_cent
from reports.whatif_command import WhatIf

CHANGED = 0.005
"""A term that changes by less than this share of the plan's step is not shown."""
MOST_TERMS = 3
LEFT = ("range from", "what changes", "strategy", "input")
"""Columns of words."""

Rows = tuple[list[str], list[list[str]]]


def whatif_screen(found: WhatIf) -> Group:
    """Return what the terminal shows."""
    shown: list[RenderableType] = [Text(found.title)]
    if found.tornado is not None:
        base = found.tornado.base.metric(found.tornado.by)
        title = f"What moves the {METRICS[found.tornado.by]} most: {_metric(base, found.tornado.by)} now"
        shown.append(_table(title, tornado_rows(found.tornado)))
        shown += [Text(f"not tried: {line}") for line in found.tornado.refused]
    for i, _ in enumerate(found.sweeps):
        title = found.names[i] if len(found.sweeps) > 1 else "What if"
        shown.append(_table(title, sweep_rows(found, i)))
    if found.sweeps and len(found.sweeps[0].settings) == 1:
        shown += [Text(f"- {b.sentence}") for b in found.break_evens] or [Text("- no break-even in or near these values")]
    shown.append(Text("\n".join(found.assumptions), style="dim"))
    return Group(*shown)


def _table(title: str, rows: Rows) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name in LEFT else "right")
    for row in rows[1]:
        table.add_row(*map(Text, row))
    return table


def sweep_rows(found: WhatIf, index: int) -> Rows:
    """Return a sweep's head and rows, the plan as it is first."""
    swept = found.sweeps[index]
    replan = found.options.replan
    head = [*(s.name for s in swept.settings), "step", "change", "MFU", "memory", "fits", "days", "cost",
            "goodput", "days with\nfailures", "cost with\nfailures", "strategy" if replan else "what changes"]
    return head, [_row(swept, p, replan) for p in (swept.base, *swept.points)]


def _row(swept: Sweep, point: Point, replan: bool) -> list[str]:
    base = swept.base
    is_base = point is base
    names = ["plan" if is_base and i == 0 else "" if is_base else s.text(point.values[s.name])
             for i, s in enumerate(swept.settings)]
    p, b = point.prediction, base.prediction
    if p is None:
        return [*names, *[""] * 10, f"cannot be: {point.refused}"]
    why = p.strategy.describe() if replan else "" if is_base else what_changes(point, base)
    return [
        *names, show(p.step_time_s, "s", 4), "" if is_base or b is None else per_cent(p.step_time_s / b.step_time_s - 1),
        f"{p.mfu:.3f}", show(p.peak_memory_bytes, "bytes"), "yes" if p.fits else "NO", significant(p.days, 4),
        "-" if p.usd is None else show(p.usd, "usd", 4), "-" if point.goodput is None else f"{point.goodput:.3f}",
        _metric(point.days_with_failures, "days"), _metric(point.usd_with_failures, "usd"), why,
    ]


def _metric(value: float | None, by: str) -> str:
    if value is None:
        return "-"
    return significant(value, 4) if by == "days" else show(value, "usd", 4)


def what_changes(point: Point, base: Point) -> str:
    """Return the terms of the step that differ most from the plan's, with how much."""
    p, b = point.prediction, base.prediction
    if p is None or b is None:
        return ""
    moved = {term: p.breakdown_s[term] - b.breakdown_s[term] for term in TERMS if term in p.breakdown_s}
    largest = sorted((t for t in moved if abs(moved[t]) > CHANGED * b.step_time_s), key=lambda t: -abs(moved[t]))
    words = [f"{TERMS[t].removesuffix(' communication')} {'+' if moved[t] > 0 else '-'}{show(abs(moved[t]), 's')}"
             for t in largest[:MOST_TERMS]]
    others = [p.strategy.describe()] if p.strategy.world_size != b.strategy.world_size else []
    return ", ".join([*others, *words])


def tornado_rows(found: Tornado) -> Rows:
    """Return a tornado's head and rows, the input that moves most first."""
    base = found.base.metric(found.by)
    head = ["input", "now", "low", "high", f"{found.by} at low", f"{found.by} at high", "swing", "range from"]
    rows = []
    for bar in found.bars:
        at = [bar.at_low.metric(found.by), bar.at_high.metric(found.by)]
        ends = [f"{_metric(v, found.by)} ({per_cent(v / base - 1)})" for v in at]
        title = f"{bar.name}: {INPUTS[bar.name].title}"
        rows.append([title, *bar.texts, *ends, _metric(bar.swing, found.by), bar.source])
    return head, rows
