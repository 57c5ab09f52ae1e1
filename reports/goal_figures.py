"""The figure of a goal: days against dollars of every count and offer, with the front and where the best strategy changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reports import figures
from reports.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
MARKS = ("o", "s", "^", "D", "v", "P")
COLUMNS = ("offer", "num_gpus", "days", "days_p10", "days_p90", "cost", "is_change", "is_front", "is_chosen")


def pareto(points: pd.DataFrame, cost: str, limits: dict[str, float]) -> str:
    """Return cost against days, both logarithmic, from rows with `COLUMNS`; `limits`: deadline in days, budget in the cost."""
    def draw(figure: Figure) -> None:
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
        axes.set(xscale="log", yscale="log", xlabel="days: median and P10 to P90", ylabel=cost)
        _readable(axes)
        figure.legend(loc="outside upper center", ncols=2, fontsize=8)

    return figures._svg("pareto", f"days against {cost}", (7.2, 5.2), draw)


def _offer(axes: Axes, offer: str, rows: pd.DataFrame, colour: str, mark: str) -> None:
    rows = rows.sort_values("num_gpus")
    axes.hlines(rows["cost"], rows["days_p10"], rows["days_p90"], color=colour, linewidth=1.0, alpha=0.45)
    axes.plot(rows["days"], rows["cost"], color=colour, linewidth=0.8, marker=mark, markersize=5, label=offer)
    for num, days, cost in rows[["num_gpus", "days", "cost"]].itertuples(index=False):
        axes.annotate(f"{num:,}", (days, cost), (0, 8), textcoords="offset points", ha="center", fontsize=8)


def _readable(axes: Axes) -> None:
    """Write plain numbers on logarithmic axes, between the powers of ten too where these are few."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        low, high = axis.get_view_interval()
        is_short = np.log10(high / low) < 2.2
        axis.set_minor_formatter(_minor if is_short else lambda value, _: "")
    axes.grid(which="both", color=INK, alpha=0.1, linewidth=0.6)


def _minor(value: float, _: object) -> str:
    """Return numbers that begin with 2, 3 or 5: as many labels as a short axis has room for."""
    return f"{value:,.10g}" if round(value / 10 ** np.floor(np.log10(value))) in (2, 3, 5) else ""
