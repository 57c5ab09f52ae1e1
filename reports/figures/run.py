"""Figures of a run that was made: its loss and the time of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from reports.figures.drawing import drawn, scale, sheet
from reports.figures.palette import BLUE, GREY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@drawn
def loss_curve(frame: pd.DataFrame) -> Figure:
    """Return the loss (rows: step, loss in nats per token) of each step."""
    figure = sheet(5.4, 2.6)
    axes = figure.add_subplot()
    axes.plot(frame["step"], frame["loss"], color=BLUE, linewidth=1.6, marker="o" if len(frame) < 3 else "")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    return figure


@drawn
def step_times(frame: pd.DataFrame, predicted_s: tuple[float, float, float]) -> Figure:
    """Return the measured time of each step (rows: step, step_time_s, is_warm_up) over the predicted P10, median and P90."""
    low, middle, high = predicted_s
    warm, cold = frame[~frame["is_warm_up"]], frame[frame["is_warm_up"]]
    factor, unit = scale(max(middle, float(frame["step_time_s"].median())))
    figure = sheet(5.4, 2.9)
    axes = figure.add_subplot()
    axes.axhspan(low / factor, high / factor, color=ORANGE, alpha=0.3, linewidth=0, label="predicted P10 to P90")
    axes.axhline(middle / factor, color=ORANGE, linewidth=1.6, label="predicted")
    marks: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4}
    axes.plot(warm["step"], warm["step_time_s"] / factor, color=BLUE, label="measured", **marks)
    # an axis from zero, whose end leaves warm-up steps outside where they would press the others flat
    top = 1.15 * max(float(warm["step_time_s"].max()), high) / factor
    if len(cold):
        beyond = ", beyond the axis" if float(cold["step_time_s"].min()) / factor > top else ""
        axes.plot(cold["step"], cold["step_time_s"] / factor, color=GREY, label=f"warm-up{beyond}", **marks)
    axes.set_ylim(0, top)
    axes.set(xlabel="step", ylabel=f"step time, {unit}")
    axes.locator_params(axis="x", integer=True)
    figure.legend(loc="outside upper center", ncols=2)
    return figure
