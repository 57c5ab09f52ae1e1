"""Figures of one step: where its time goes, what its fullest rank holds, and how two steps differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from profiles.units import UNITS, show
from reports.compare import share, shown
from reports.figures.drawing import bare, brief, drawn, scale, sheet
from reports.figures.palette import GREEN, GREY, INK, MEMORY_COLOURS, TERM_COLOURS, VERMILLION, ink_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@drawn
def waterfall(frame: pd.DataFrame) -> Figure:
    """Return where a step's time goes: one bar a row (term, name, seconds), beginning where the one before ends."""
    total = float(frame["seconds"].sum())
    factor, unit = scale(total)
    figure = sheet(5.4, 0.75 + 0.36 * (len(frame) + 1))
    axes, begin = figure.add_subplot(), 0.0
    for row, (term, seconds) in enumerate(zip(frame["term"], frame["seconds"], strict=True)):
        length = seconds / factor
        axes.barh(row, length, left=begin, height=0.7, color=TERM_COLOURS[term])
        _value_label(axes, (begin, length), total / factor, row, TERM_COLOURS[term], share(seconds / total))
        begin += length
    axes.barh(len(frame), begin, height=0.7, color="none", edgecolor=INK, linewidth=0.8)
    axes.text(begin / 2, len(frame), shown(total, "s"), ha="center", va="center")
    axes.set_yticks(range(len(frame) + 1), [*map(_short, frame["name"]), "step"])
    axes.set_xlabel(f"time from the start of the step, {unit}")
    bare(axes)
    axes.invert_yaxis()
    return figure


def _short(name: str) -> str:
    return name.replace(" communication", "").replace("pipeline ", "")


def _value_label(axes: Axes, bar: tuple[float, float], total: float, row: float, colour: str, text: str) -> None:
    """Write a bar's value where there is room, inside or beside it; a bar is where it begins and its length."""
    begin, length = bar
    if length > 0.14 * total:
        axes.text(begin + length / 2, row, text, ha="center", va="center", color=ink_on(colour))
    elif begin > 0.5 * total:
        axes.text(begin - 0.01 * total, row, text, ha="right", va="center")
    else:
        axes.text(begin + length + 0.01 * total, row, text, ha="left", va="center")


@drawn
def memory_stack(frame: pd.DataFrame, usable_bytes: float) -> Figure:
    """Return the bytes of the fullest rank (rows: part, name, bytes) in one stack, against what is usable."""
    gib = UNITS["bytes"]["GiB"]
    peak, usable, begin = float(frame["bytes"].sum()) / gib, usable_bytes / gib, 0.0
    figure = sheet(5.4, 1.75)
    axes = figure.add_subplot()
    for part, size in zip(frame["part"], frame["bytes"], strict=True):
        length, colour = size / gib, MEMORY_COLOURS[part]
        axes.barh(0, length, left=begin, height=0.8, color=colour)
        text = f"{part}\n{show(size, 'bytes')}"
        if length > 0.024 * max(map(len, text.split("\n"))) * max(peak, usable):
            axes.text(begin + length / 2, 0, text, ha="center", va="center", color=ink_on(colour), fontsize=9)
        begin += length
    axes.axvline(usable, color=INK, linewidth=1.6, linestyle=(0, (4, 2)))
    left = usable >= peak / 2
    axes.annotate(f"usable {show(usable_bytes, 'bytes')}", (usable, 0.56), (-5 if left else 5, 0),
                  textcoords="offset points", ha="right" if left else "left")
    axes.set(xlabel="memory of the fullest rank, GiB", yticks=[], ylim=(-0.45, 0.9), xlim=(0, 1.02 * max(peak, usable)))
    bare(axes)
    return figure


@drawn
def side_by_side(frame: pd.DataFrame) -> Figure:
    """Return the parts of a step (rows: term, predicted_s, measured_s) as two stacks, predicted over measured."""
    sides = {name: frame[f"{name}_s"].clip(lower=0.0) for name in ("predicted", "measured")}
    factor, unit = scale(max(float(side.sum()) for side in sides.values()))
    figure = sheet(5.4, 1.7)
    axes = figure.add_subplot()
    for row, side in enumerate(sides.values()):
        lengths = side.to_numpy(float) / factor
        for term, length, end in zip(frame["term"], lengths, np.cumsum(lengths), strict=True):
            axes.barh(row, length, left=end - length, height=0.7, color=TERM_COLOURS[term])
    axes.set_yticks((0, 1), list(sides))
    axes.set_xlabel(f"time, {unit}")
    axes.set_ylim(1.5, -0.5)
    bare(axes)
    return figure


@drawn
def between(frame: pd.DataFrame, sides: tuple[str, str], ends_s: tuple[float, float], what: str) -> Figure:
    """Return what leads from one step to another: rows (name, seconds) that add up from the first end to the second.

    Green bars save time, red ones cost it.
    """
    factor, short = scale(max(ends_s))
    changes = frame["seconds"].to_numpy(float) / factor
    begins = ends_s[0] / factor + np.concatenate([[0.0], np.cumsum(changes)[:-1]]) if len(changes) else changes
    ends = [e / factor for e in ends_s]
    levels = [0.0, *ends, *begins.tolist(), *(begins + changes).tolist()]
    # where all changes are small beside the steps, the axis begins near them
    low = min(levels[1:])
    start = 0.0 if max(levels) - low > 0.25 * max(levels) else low - 0.25 * (max(levels) - low or low)
    figure = sheet(7.6, 0.8 + 0.32 * (len(changes) + 2))
    axes, last, pad = figure.add_subplot(), len(changes) + 1, 0.01 * (max(levels) - start)
    for row, end, seconds in ((0, ends[0], ends_s[0]), (last, ends[1], ends_s[1])):
        axes.barh(row, end - start, left=start, height=0.7, color=GREY)
        axes.text(end + pad, row, shown(seconds, "s", 4), ha="left", va="center")
    for row, (begin, change) in enumerate(zip(begins.tolist(), changes.tolist(), strict=True), start=1):
        axes.barh(row, change, left=begin, height=0.7, color=VERMILLION if change > 0 else GREEN)
        axes.plot([begin, begin], [row - 1.35, row - 0.35], color=INK, linewidth=0.6)
        sign = "+" if change > 0 else "-"
        axes.text(max(begin, begin + change) + pad, row, sign + shown(abs(change) * factor, "s"), ha="left", va="center")
    axes.plot([ends[1], ends[1]], [last - 1.35, last - 0.35], color=INK, linewidth=0.6)
    axes.set_yticks(range(last + 1), [brief(name) for name in (sides[0], *frame["name"], sides[1])])
    axes.set_xlim(start, max(levels) + 0.16 * (max(levels) - start))
    axes.set_ylim(last + 0.6, -0.6)
    axes.set_xlabel(f"{what}, {short}" + (f" (from {shown(start * factor, 's')})" if start else ""))
    bare(axes)
    return figure
