"""Figures of a what-if: lines along an input, and the tornado. From a table of rows to SVG text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from profiles.units import show, significant
from reports import figures
from reports.compare import TERMS
from reports.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, TERM_COLOURS, VERMILLION, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, GREY)
DRAWN_TERM = 0.003
"""A term that is always below this share of the longest step is not drawn."""
MOST_TICKS = 10
"""More values than these are not written below the axis one by one."""
MARKS = {"hides": "hides", "fits": "fits", "strategy": "other strategy", "plans": "plans cross"}


class Axis(NamedTuple):
    """What the horizontal axis is; without values in between, its values stand side by side."""

    title: str
    is_continuous: bool


def sweep_lines(rows: pd.DataFrame, axis: Axis, y_title: str, marks: Sequence[tuple[float, str]] = ()) -> str:
    """Return lines over an input, one for each `line` of the rows: `x`, `text`, `y`, and whether it `fits` (open dots: not).

    `marks`: values of x at which an answer changes, and which.
    """
    places = {text: i for i, text in enumerate(dict.fromkeys(rows["text"]))}
    positions = [float(x) for x in rows["x"]] if axis.is_continuous else [float(places[t]) for t in rows["text"]]
    rows = rows.assign(position=positions)
    lines = _drawn(rows)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for i, line in enumerate(lines):
            of_line = rows[rows["line"] == line].sort_values("position")
            colour = TERM_COLOURS.get(line, LINES[i % len(LINES)]) if line != "step" else INK
            axes.plot(of_line["position"], of_line["y"], color=colour, linewidth=2.2 if line == "step" else 1.4,
                      label=TERMS.get(line, line))
            for fits, face in ((True, colour), (False, "none")):
                some = of_line[of_line["fits"] == fits]
                axes.plot(some["position"], some["y"], linestyle="none", marker="o", markersize=4.5, color=colour,
                          markerfacecolor=face)
        _ticks(axes, rows, places, axis)
        _marks(axes, [m for m in marks if rows["position"].min() <= m[0] <= rows["position"].max()])
        axes.set_ylim(0, 1.12 * float(rows["y"].max()))
        axes.set(xlabel=axis.title, ylabel=y_title)
        axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
        figure.legend(loc="outside right upper", fontsize=9)

    return figures._svg("sweep", f"{y_title} over {axis.title}", (8.6, 3.6), draw)


def _drawn(rows: pd.DataFrame) -> list[str]:
    """Return the lines that are tall enough to be seen, in the order of the rows."""
    top = float(rows["y"].max()) if len(rows) else 0.0
    return [line for line in dict.fromkeys(rows["line"])
            if line not in TERMS or float(rows.loc[rows["line"] == line, "y"].max()) > DRAWN_TERM * top]


def _ticks(axes: Axes, rows: pd.DataFrame, places: dict[str, int], axis: Axis) -> None:
    if not axis.is_continuous:
        axes.set_xticks(list(places.values()), list(places))
        axes.set_xlim(-0.4, len(places) - 0.6)
        return
    values = sorted(set(rows["position"]))
    if values[0] > 0 and values[-1] > 3 * values[0]:
        axes.set_xscale("log")
    if len(values) <= MOST_TICKS:
        axes.set_xticks(values, [significant(v) for v in values])
        axes.minorticks_off()


def _marks(axes: Axes, marks: Sequence[tuple[float, str]]) -> None:
    for x, kind in marks:
        axes.axvline(x, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.annotate(f"{MARKS[kind]} {significant(x)}", (x, 0.98), (4, 0), xycoords=("data", "axes fraction"),
                      textcoords="offset points", va="top", fontsize=9)


def tornado(bars: pd.DataFrame, now: float, title: str, by: str) -> str:
    """Return bars from what is now to each end of an input's range, the widest on top.

    Rows: `title`, `low_text` and `high_text` of the ends, and the metric `at_low` and `at_high`.
    """
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        ends = [now, *bars["at_low"], *bars["at_high"]]
        room = 0.28 * (max(ends) - min(ends))
        for row, bar in enumerate(bars.to_dict("records")):
            for value, text, colour in ((bar["at_low"], bar["low_text"], SKY), (bar["at_high"], bar["high_text"], ORANGE)):
                if math.isclose(value, now, rel_tol=1e-9):
                    continue
                axes.barh(row, value - now, left=now, height=0.7, color=colour)
                right = value > now
                axes.annotate(text, (value, row), (4 if right else -4, 0), textcoords="offset points", va="center",
                              ha="left" if right else "right", fontsize=9)
        axes.axvline(now, color=INK, linewidth=1)
        axes.set_yticks(range(len(bars)), list(bars["title"]))
        axes.set_ylim(len(bars) - 0.4, -0.6)
        if len(bars):
            axes.set_xlim(min(ends) - room, max(ends) + room)
        shown = significant(now, 4) if by == "days" else show(now, "usd", 4)
        axes.set_xlabel(f"{title}: {shown} now; blue: the low end of the input, orange: the high end")
        figures._bare(axes)

    return figures._svg("tornado", f"what moves the {title} most", (8.6, 0.9 + 0.34 * max(1, len(bars))), draw)
