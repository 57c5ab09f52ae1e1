"""Figures of the accuracy page: predicted over measured, the errors' distribution, and their spans by group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reports.figures.drawing import bare, drawn, sheet
from reports.figures.palette import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "A100-40GB": SKY, "A100": BLUE, "A800": BLUE, "V100": GREY, "H100": ORANGE, "H200": ORANGE, "H800": ORANGE,
    "B200": GREEN, "B300": GREEN, "GB200": VERMILLION, "GB300": PURPLE,
}
"""Beginning of an accelerator's name -> colour; the first that fits."""
BAND = 0.10
MAX_SHOWN_ERROR = 0.6
"""Errors beyond this are drawn at the edge of the histogram."""
MAX_SPANS = 30


def colour_of(gpu: str) -> str:
    """Return the colour of an accelerator in the figures."""
    return next((colour for begin, colour in COLOURS.items() if gpu.startswith(begin)), GREY)


@drawn
def scatter(frame: pd.DataFrame) -> Figure:
    """Return predicted over measured step time (rows: gpu, measured_s, predicted_s), both logarithmic, with ten per cent."""
    both = frame[["measured_s", "predicted_s"]]
    ends = np.array([0.8 * float(both.min().min()), 1.25 * float(both.max().max())])
    figure = sheet(5.4, 5.4)
    axes = figure.add_subplot()
    axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=INK, alpha=0.12, linewidth=0)
    axes.plot(ends, ends, color=INK, linewidth=0.8)
    for colour, some in frame.groupby(frame["gpu"].map(colour_of), sort=False):
        axes.plot(some["measured_s"], some["predicted_s"], linestyle="none", marker="o", markersize=3, markeredgewidth=0,
                  color=str(colour), alpha=0.75)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured step, s", ylabel="predicted step, s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(color=INK, alpha=0.1, linewidth=0.6)
    axes.set_aspect("equal")
    return figure


@drawn
def histogram(frame: pd.DataFrame) -> Figure:
    """Return how many runs (rows: error, a ratio) have which error."""
    figure = sheet(5.4, 2.6)
    axes = figure.add_subplot()
    axes.axvspan(-100 * BAND, 100 * BAND, color=INK, alpha=0.12, linewidth=0)
    steps = np.arange(-MAX_SHOWN_ERROR, MAX_SHOWN_ERROR + 0.02, 0.04)
    axes.hist(100 * frame["error"].clip(-MAX_SHOWN_ERROR, MAX_SHOWN_ERROR), bins=(100 * steps).tolist(), color=BLUE)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set(xlabel=f"error, % (beyond ±{100 * MAX_SHOWN_ERROR:.0f} % at the edge)", ylabel="runs")
    return figure


@drawn
def spans(frame: pd.DataFrame) -> Figure:
    """Return each group's errors (rows: group, error) as a line from P10 to P90 with the median on it, the largest first."""
    groups: dict[Any, pd.Series[float]] = dict(list(frame.groupby("group", sort=False)["error"])[:MAX_SPANS])
    figure = sheet(10.4, 0.8 + 0.24 * len(groups))
    axes = figure.add_subplot()
    axes.axvspan(-100 * BAND, 100 * BAND, color=INK, alpha=0.12, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for row, errors in enumerate(groups.values()):
        low, middle, high = np.quantile(100 * errors, (0.1, 0.5, 0.9))
        axes.plot((low, high), (row, row), color=BLUE, linewidth=2.4, solid_capstyle="butt")
        axes.plot(middle, row, marker="o", markersize=5, color=VERMILLION)
    axes.set_yticks(range(len(groups)), [f"{key} ({len(of)})" for key, of in groups.items()])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel("error, %: P10 to P90 and median")
    axes.grid(axis="x", color=INK, alpha=0.1, linewidth=0.6)
    bare(axes)
    return figure
