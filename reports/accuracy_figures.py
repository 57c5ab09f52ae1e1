"""Figures of the accuracy page: predicted over measured, the errors' distribution, and their spans by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reports import figures
from reports.accuracy import Outcome
from reports.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION

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


def legend(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Return colour and accelerators of that colour, in the order of the palette."""
    names: dict[str, list[str]] = {}
    for gpu in sorted({o.gpu for o in outcomes}):
        names.setdefault(colour_of(gpu), []).append(gpu)
    return [(colour, ", ".join(of)) for colour, of in names.items()]


def scatter(outcomes: Sequence[Outcome]) -> str:
    """Return predicted over measured step time, both logarithmic, with the band of ten per cent."""
    measured = np.array([o.measured_s for o in outcomes], dtype=float)
    predicted = np.array([o.predicted_s for o in outcomes])
    gpus = np.array([o.gpu for o in outcomes])
    ends = np.array([0.8 * min(measured.min(), predicted.min()), 1.25 * max(measured.max(), predicted.max())])

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=INK, alpha=0.12, linewidth=0)
        axes.plot(ends, ends, color=INK, linewidth=0.8)
        colours = np.array([colour_of(g) for g in gpus])
        for colour in dict.fromkeys(colours.tolist()):
            some = colours == colour
            axes.plot(measured[some], predicted[some], linestyle="none", marker="o", markersize=3, markeredgewidth=0,
                      color=colour, alpha=0.75)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured step, s", ylabel="predicted step, s")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(color=INK, alpha=0.1, linewidth=0.6)
        axes.set_aspect("equal")

    return figures._svg("scatter", "predicted over measured step time", (5.4, 5.4), draw)


def histogram(outcomes: Sequence[Outcome]) -> str:
    """Return how many runs have which error."""
    errors = np.clip([o.error or 0.0 for o in outcomes], -MAX_SHOWN_ERROR, MAX_SHOWN_ERROR)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvspan(-100 * BAND, 100 * BAND, color=INK, alpha=0.12, linewidth=0)
        steps = np.arange(-MAX_SHOWN_ERROR, MAX_SHOWN_ERROR + 0.02, 0.04)
        axes.hist(100 * errors, bins=(100 * steps).tolist(), color=BLUE)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set(xlabel=f"error, % (beyond ±{100 * MAX_SHOWN_ERROR:.0f} % at the edge)", ylabel="runs")

    return figures._svg("errors", "distribution of errors", (5.4, 2.6), draw)


def spans(name: str, groups: Mapping[str, Sequence[Outcome]]) -> str:
    """Return each group's errors as a line from P10 to P90 with the median on it."""
    shown = dict(list(groups.items())[:MAX_SPANS])

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvspan(-100 * BAND, 100 * BAND, color=INK, alpha=0.12, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.8)
        for row, outcomes in enumerate(shown.values()):
            low, middle, high = np.quantile([100 * (o.error or 0.0) for o in outcomes], (0.1, 0.5, 0.9))
            axes.plot((low, high), (row, row), color=BLUE, linewidth=2.4, solid_capstyle="butt")
            axes.plot(middle, row, marker="o", markersize=5, color=VERMILLION)
        axes.set_yticks(range(len(shown)), [f"{key} ({len(of)})" for key, of in shown.items()])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("error, %: P10 to P90 and median")
        axes.grid(axis="x", color=INK, alpha=0.1, linewidth=0.6)
        figures._bare(axes)

    return figures._svg(f"spans-{name}", f"errors by {name}", (10.4, 0.8 + 0.24 * len(shown)), draw)
