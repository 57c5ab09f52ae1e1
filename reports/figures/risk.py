"""Figures of what may happen: the fan of ends of a run, where its time goes, and what moves it most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from profiles.units import show, significant
from reports.figures.drawing import bare, brief, drawn, scale, sheet
from reports.figures.palette import BLUE, GREEN, GREY, INK, ORANGE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAN = ((0.05, 0.95, 0.18), (0.10, 0.90, 0.28), (0.25, 0.75, 0.45))
"""Ends of each band, and how dark it is."""


@drawn
def fan(frame: pd.DataFrame, tokens: float, undisturbed_days: float) -> Figure:
    """Return tokens trained over days: the median run, bands of half, four fifths and nine tenths of them, and no failure.

    Rows: `days` of each simulated run to its last token (infinite where it does not end). A band leads straight from the
    first token to its ends: runs lose time all along.
    """
    days = np.sort(frame["days"].to_numpy(float))
    length, time = (86400.0, "days") if undisturbed_days >= 1 else scale(86400.0 * undisturbed_days)
    times, undisturbed = days * 86400.0 / length, undisturbed_days * 86400.0 / length

    def at(share: float) -> float:
        return float(np.quantile(times, share, method="higher"))

    unit = show(tokens, "count").split(" ")[-1]
    done = float(show(tokens, "count", 6).split(" ")[0].replace(",", ""))
    figure = sheet(5.6, 3.3)
    axes = figure.add_subplot()
    for low, high, dark in FAN:
        if math.isfinite(at(high)):
            axes.fill([0.0, at(low), at(high)], [0.0, done, done], color=BLUE, alpha=dark, linewidth=0,
                      label=f"P{100 * low:.0f} to P{100 * high:.0f}")
    if math.isfinite(at(0.5)):
        axes.plot([0.0, at(0.5)], [0.0, done], color=BLUE, linewidth=1.8, label="median")
    axes.plot([0.0, undisturbed], [0.0, done], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="no failure")
    ends = [d for d in (at(0.95), undisturbed) if math.isfinite(d)]
    axes.set(xlim=(0, 1.04 * max(ends)), ylim=(0, 1.06 * done), xlabel=f"{time} from the first step",
             ylabel=f"tokens trained, {unit}" if unit.isalpha() else "tokens trained")
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    return figure


@drawn
def goodput_bar(frame: pd.DataFrame) -> Figure:
    """Return where a run's time goes (rows: part, name, share of the elapsed time; new steps first): whole, and lost."""
    figure = sheet(5.6, 1.9 + 0.28 * max(1, len(frame) - 1))
    upper, lower = figure.subplots(2, 1, height_ratios=(1, max(1, len(frame) - 1)))
    productive = float(frame["share"].iloc[0])
    upper.barh(0, 100 * productive, color=GREEN, height=0.7)
    upper.barh(0, 100 * (1 - productive), left=100 * productive, color=VERMILLION, height=0.7)
    upper.text(50 * productive, 0, f"{frame['name'].iloc[0]} {100 * productive:.1f} %", ha="center", va="center", color="white")
    upper.set(yticks=[], xlim=(0, 100), xlabel="share of the run's time, %")
    lost = frame.iloc[1:]
    lower.barh(range(len(lost)), 100 * lost["share"], color=VERMILLION, height=0.7)
    most = 100 * float(lost["share"].max()) if len(lost) else 1.0
    for row, part in enumerate(lost["share"]):
        lower.text(100 * part + 0.012 * most, row, f"{100 * part:.2f} %", ha="left", va="center", fontsize=9)
    lower.set_yticks(range(len(lost)), list(lost["name"]))
    lower.set(xlim=(0, 1.15 * most), ylim=(len(lost) - 0.4, -0.6), xlabel="lost, % of the run's time")
    bare(upper)
    bare(lower)
    return figure


@drawn
def tornado(bars: pd.DataFrame, now: float, title: str, by: str) -> Figure:
    """Return bars from what is now to each end of an input's range, the widest on top.

    Rows: `title`, `low_text` and `high_text` of the ends, and the metric `at_low` and `at_high`.
    """
    figure = sheet(6.6, 0.9 + 0.34 * max(1, len(bars)))
    axes = figure.add_subplot()
    ends = [now, *bars["at_low"], *bars["at_high"]]
    room = 0.28 * (max(ends) - min(ends))
    for row, bar in enumerate(bars.to_dict("records")):
        # where both ends lie on one side, their texts take a line each
        lies = [v - now for v in (bar["at_low"], bar["at_high"]) if not math.isclose(v, now, rel_tol=1e-9)]
        shared = len(lies) == 2 and (lies[0] > 0) == (lies[1] > 0)
        texts = []
        for value, text, colour in ((bar["at_low"], bar["low_text"], SKY), (bar["at_high"], bar["high_text"], ORANGE)):
            if math.isclose(value, now, rel_tol=1e-9):
                continue
            axes.barh(row, value - now, left=now, height=0.7, color=colour)
            texts.append((value, text))
        furthest = max((v for v, _ in texts), key=lambda v: abs(v - now), default=now)
        for value, text in [(furthest, " / ".join(t for _, t in texts))] if shared else texts:
            right = value > now
            axes.annotate(text, (value, row), (4 if right else -4, 0), textcoords="offset points", va="center",
                          ha="left" if right else "right", fontsize=9)
    axes.axvline(now, color=INK, linewidth=1)
    axes.set_yticks(range(len(bars)), list(bars["title"]))
    axes.set_ylim(len(bars) - 0.4, -0.6)
    if len(bars):
        axes.set_xlim(min(ends) - room, max(ends) + room)
    shown = significant(now, 4) if by == "days" else show(now, "usd", 4)
    axes.set_xlabel(f"{title}: {shown} now\nblue: the low end of the input, orange: the high end")
    bare(axes)
    return figure


@drawn
def near(frame: pd.DataFrame) -> Figure:
    """Return predicted over measured step time of published runs (rows: name, ratio, low, high), the nearest on top."""
    figure = sheet(5.8, 0.9 + 0.44 * len(frame))
    axes = figure.add_subplot()
    for row, (ratio, low, high) in enumerate(zip(frame["ratio"], frame["low"], frame["high"], strict=True)):
        axes.plot([low, high], [row, row], color=ORANGE, linewidth=4, alpha=0.6, solid_capstyle="butt")
        axes.plot(ratio, row, "o", color=BLUE, markersize=7)
    axes.axvline(1.0, color=INK, linewidth=1.0)
    axes.set_yticks(range(len(frame)), [brief(name) for name in frame["name"]])
    ends = [0.9, 1.1, *frame["low"], *frame["high"]]
    axes.set(xlim=(min(ends) - 0.03, max(ends) + 0.03), ylim=(len(frame) - 0.4, -0.6),
             xlabel="predicted / measured step time:\nmedian and P10 to P90")
    axes.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.6)
    bare(axes)
    return figure
