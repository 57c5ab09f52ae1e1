"""The figure of a what-if: lines along an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from profiles.units import significant
from reports.compare import TERMS
from reports.figures.drawing import drawn, sheet
from reports.figures.palette import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, TERM_COLOURS, VERMILLION, YELLOW

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


@drawn
def sweep_lines(rows: pd.DataFrame, axis: Axis, y_title: str, marks: Sequence[tuple[float, str]] = ()) -> Figure:
    """Return lines over an input, one for each `line` of the rows: `x`, `text`, `y`, and whether it `fits` (open dots: not).

    `marks`: values of x at which an answer changes, and which.
    """
    places = {text: i for i, text in enumerate(dict.fromkeys(rows["text"]))}
    positions = [float(x) for x in rows["x"]] if axis.is_continuous else [float(places[t]) for t in rows["text"]]
    rows = rows.assign(position=positions)
    figure = sheet(8.6, 3.6)
    axes = figure.add_subplot()
    for i, line in enumerate(_drawn(rows)):
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
    return figure


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
