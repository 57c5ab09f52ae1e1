"""Figures of scale: what more accelerators give and cost, and how near the matmuls of a step come to the roofline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from profiles.units import show
from reports.figures.drawing import drawn, plain_numbers, sheet
from reports.figures.palette import BLUE, GREEN, GREY, INK, ORANGE, PASS_COLOURS, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PASSES = {"F": "forward", "B": "input gradient", "W": "weight gradient"}
MARKERS = {"F": "o", "B": "s", "W": "^"}


@drawn
def scaling(frame: pd.DataFrame, cost: str, what: str = "GPUs") -> Figure:
    """Return tokens/s and cost per token over accelerators (called `what`); circles where the strategy changes.

    Rows: num_gpus, tokens_per_s, cost_per_token (in the unit that `cost` names), is_change, is_chosen.
    """
    frame = frame.sort_values("num_gpus")
    figure = sheet(6.0, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True)
    first, num = frame.iloc[0], frame["num_gpus"].to_numpy(float)
    upper.plot(num, first["tokens_per_s"] * num / num[0], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)),
               label=f"as many times more as there are {what}")
    for axes, column, colour in ((upper, "tokens_per_s", BLUE), (lower, "cost_per_token", GREEN)):
        axes.plot(num, frame[column], color=colour, linewidth=1.6, marker="o", markersize=5)
        of_change, of_chosen = frame[frame["is_change"]], frame[frame["is_chosen"]]
        axes.plot(of_change["num_gpus"], of_change[column], linestyle="none", marker="o", markersize=12,
                  markerfacecolor="none", color=VERMILLION, label=f"another strategy than with fewer {what}")
        axes.plot(of_chosen["num_gpus"], of_chosen[column], linestyle="none", marker="*", markersize=14, color=VERMILLION,
                  label="this plan")
        axes.set_xscale("log")
        if column == "tokens_per_s":
            plain_numbers(axes, "y")
        else:
            axes.set_ylim(0, 1.2 * float(frame[column].max()))
            axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    upper.set_ylabel("tokens/s")
    lower.set(xlabel=what, ylabel=cost)
    lower.set_xticks(num, [f"{int(n):,}" for n in num])
    lower.minorticks_off()
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=8)
    return figure


@drawn
def roofline(frame: pd.DataFrame, peaks_flop_per_s: dict[str, float], memory_bytes_per_s: float) -> Figure:
    """Return the rate of each matmul over its intensity, under the roofs of each type; a dot is as large as its share of time.

    Rows: pass, flop_per_byte, flop_per_s, seconds. Williams et al., doi 10.1145/1498765.1498785.
    """
    figure = sheet(6.0, 4.2)
    axes = figure.add_subplot()
    ridge = max(peaks_flop_per_s.values()) / memory_bytes_per_s
    low = min(float(frame["flop_per_byte"].min()), ridge) / 3
    high = max(float(frame["flop_per_byte"].max()), ridge) * 3
    x = np.geomspace(low, high, 400)
    for i, (dtype, peak) in enumerate(peaks_flop_per_s.items()):
        axes.plot(x, np.minimum(peak, x * memory_bytes_per_s) / 1e12, color=(INK, GREY, ORANGE)[i % 3], linewidth=1.4,
                  label=f"roof: {show(peak, 'flop_per_s', 4)} {dtype}, {show(memory_bytes_per_s, 'bytes_per_s')}")
    total = float(frame["seconds"].sum())
    for pass_, rows in frame.groupby("pass", sort=False):
        axes.scatter(rows["flop_per_byte"], rows["flop_per_s"] / 1e12, s=20 + 600 * rows["seconds"] / total,
                     marker=MARKERS[str(pass_)], color=PASS_COLOURS[str(pass_)], edgecolor=INK, linewidth=0.6, alpha=0.8)
        # the legend has a mark of its own size
        axes.plot([], [], linestyle="none", marker=MARKERS[str(pass_)], color=PASS_COLOURS[str(pass_)], markersize=7,
                  markeredgecolor=INK, markeredgewidth=0.6, label=PASSES[str(pass_)])
    lowest = min(float(frame["flop_per_s"].min()) / 1e12, low * memory_bytes_per_s / 1e12)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(lowest / 1.5, 2.0 * max(peaks_flop_per_s.values()) / 1e12),
             xlabel="intensity, FLOP per byte moved", ylabel="rate, TFLOP/s")
    plain_numbers(axes)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    return figure
