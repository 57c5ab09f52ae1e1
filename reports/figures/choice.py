"""Figures of a choice: the strategies that came next, and cost against time of every count and offer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from reports.figures.drawing import bare, brief, drawn, plain_numbers, scale, sheet
from reports.figures.palette import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
MARKS = ("o", "s", "^", "D", "v", "P")
PARETO_COLUMNS = ("offer", "num_gpus", "days", "days_p10", "days_p90", "cost", "is_change", "is_front", "is_chosen")


@drawn
def alternatives(frame: pd.DataFrame) -> Figure:
    """Return the step times (rows: p10_s, step_time_s, p90_s) of the chosen strategy, first, and of those that came next."""
    factor, unit = scale(float(frame["step_time_s"].max()))
    figure = sheet(5.8, 0.75 + 0.27 * len(frame))
    axes = figure.add_subplot()
    for row, (low, middle, high) in enumerate(zip(frame["p10_s"], frame["step_time_s"], frame["p90_s"], strict=True)):
        colour = BLUE if row == 0 else GREY
        axes.plot([low / factor, high / factor], [row, row], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot(middle / factor, row, "o", color=colour, markersize=8)
    axes.axvline(frame["step_time_s"].iloc[0] / factor, color=BLUE, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(frame)), ["chosen", *map(str, range(1, len(frame)))])
    axes.set_xlabel(f"step time, {unit}: median and P10 to P90")
    axes.set_ylim(len(frame) - 0.4, -0.6)
    bare(axes)
    return figure


@drawn
def pareto(points: pd.DataFrame, cost: str, limits: dict[str, float] | None = None) -> Figure:
    """Return cost against days of rows with `PARETO_COLUMNS`; `limits`: deadline in days, budget."""
    figure, limits = sheet(6.0, 4.6), limits or {}
    axes = figure.add_subplot()
    for i, (offer, rows) in enumerate(points.groupby("offer", sort=False)):
        _offer(axes, str(offer), rows, COLOURS[i % len(COLOURS)], MARKS[i // len(COLOURS) % len(MARKS)])
    front = points[points["is_front"]].sort_values("days")
    axes.plot(front["days"], front["cost"], color=INK, linewidth=1.2, linestyle=(0, (4, 3)),
              label="nothing is faster and cheaper")
    changes = points[points["is_change"]]
    axes.plot(changes["days"], changes["cost"], linestyle="none", marker="o", markersize=13, markerfacecolor="none",
              color=VERMILLION, label="another strategy than with fewer GPUs")
    chosen = points[points["is_chosen"]]
    axes.plot(chosen["days"], chosen["cost"], linestyle="none", marker="*", markersize=15, color=VERMILLION, label="chosen")
    if "deadline" in limits:
        axes.axvline(limits["deadline"], color=INK, linewidth=0.8, linestyle=":")
    if "budget" in limits:
        axes.axhline(limits["budget"], color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="days: median and P10 to P90", ylabel=cost)
    axes.margins(0.1, 0.12)
    plain_numbers(axes)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return figure


def _offer(axes: Axes, offer: str, rows: pd.DataFrame, colour: str, mark: str) -> None:
    rows = rows.sort_values("num_gpus")
    axes.hlines(rows["cost"], rows["days_p10"], rows["days_p90"], color=colour, linewidth=1.0, alpha=0.45)
    axes.plot(rows["days"], rows["cost"], color=colour, linewidth=0.8, marker=mark, markersize=5, label=brief(offer))
    for num, days, cost in rows[["num_gpus", "days", "cost"]].itertuples(index=False):
        axes.annotate(f"{num:,}", (days, cost), (0, 10), textcoords="offset points", ha="center", fontsize=8)
