"""One step as a picture of who does what, when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.figures.drawing import bare, drawn, scale, sheet
from reports.figures.palette import PASS_COLOURS, STREAM_COLOURS, ink_on
from simulator.pricing import IN_LINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10.8


@drawn
def gantt(
    rows: pd.DataFrame, step_time_s: float, windows_s: Sequence[tuple[float, float]] = (), names: dict[int, str] | None = None
) -> Figure:
    """Return a step (a timeline's rows) by rank in these windows of time: passes, and communication below them.

    `names` of the ranks, in the order in which they are drawn; without windows the whole step is drawn.
    """
    of_rank: dict[Any, pd.DataFrame] = dict(iter(rows.groupby("rank")))
    names = names or {rank: f"rank {rank}" for rank in of_rank}
    windows_s = windows_s or [(0.0, step_time_s)]
    factor, unit = scale(step_time_s)
    figure = sheet(WIDTH, 1.0 + float(np.clip(5.5 / len(names), 0.14, 0.55)) * len(names))
    grid = figure.subplots(1, len(windows_s), sharey=True, squeeze=False)[0]
    for axes, window in zip(grid, windows_s, strict=True):
        for row, rank in enumerate(names):
            _rank(axes, row, of_rank[rank], window, factor, WIDTH / len(windows_s))
        axes.set(xlim=(window[0] / factor, window[1] / factor), ylim=(len(names) - 0.5, -0.5),
                 xlabel=f"time from the start of the step, {unit}")
        bare(axes)
    labelled = range(0, len(names), math.ceil(len(names) / 24))
    grid[0].set_yticks(labelled, [name for i, name in enumerate(names.values()) if i in labelled])
    return figure


def action_spans(rows: pd.DataFrame) -> pd.DataFrame:
    """Return when each action of a rank begins and ends, its layers together: pass, microbatch, start_s, end_s.

    A rank with chunks runs a pass of a micro-batch several times, with others between.
    """
    busy = rows[rows["stream"].isin(("compute", *IN_LINE))].sort_values("start_s", kind="stable")
    action = busy[["pass", "microbatch"]]
    number = (action != action.shift()).any(axis=1).cumsum()
    return busy.groupby(number).agg(**{
        "pass": ("pass", "first"), "microbatch": ("microbatch", "first"), "start_s": ("start_s", "min"),
        "end_s": ("end_s", "max"),
    })


def joined(spans: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Return spans [n, 2] with those made one that have no more than a gap between them."""
    spans = spans[np.argsort(spans[:, 0])]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.concatenate([[True], spans[1:, 0] > reach[:-1] + gap])
    last = np.concatenate([first[1:], [True]])
    return np.stack([spans[first, 0], reach[last]], axis=1)


def _rank(axes: Axes, row: int, rows: pd.DataFrame, window: tuple[float, float], factor: float, inches: float) -> None:
    """Draw a rank in one window that is so many inches wide."""
    rows = rows[(rows["end_s"] > window[0]) & (rows["start_s"] < window[1])]
    width = window[1] - window[0]
    for stream, part in rows[rows["stream"].isin(STREAM_COLOURS)].groupby("stream"):
        spans = joined(part[["start_s", "end_s"]].to_numpy(float), width / (150 * inches))
        _boxes(axes, np.clip(spans, *window) / factor, (row + 0.20, row + 0.40), STREAM_COLOURS[str(stream)])
    actions = action_spans(rows)
    for pass_, part in actions.groupby("pass"):
        spans = np.clip(part[["start_s", "end_s"]].to_numpy(float), *window)
        # a hairline between neighbours
        spans[:, 1] -= np.minimum(width / (100 * inches), 0.15 * (spans[:, 1] - spans[:, 0]))
        _boxes(axes, spans / factor, (row - 0.42, row + 0.16), PASS_COLOURS[str(pass_)])
    for name, microbatch, start, end in actions.itertuples(index=False):
        text, room = f"{name}{microbatch}", (end - start) / width * inches
        if microbatch >= 0 and room > 0.1 + 0.08 * len(text) and window[0] <= start and end <= window[1]:
            axes.text((start + end) / 2 / factor, row - 0.13, text, ha="center", va="center", fontsize=8,
                      color=ink_on(PASS_COLOURS[name]))


def _boxes(axes: Axes, spans: NDArray[np.float64], edges: tuple[float, float], colour: str) -> None:
    """Draw spans [n, 2] as one outline: a thousand bars are one element of the SVG."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    low, high = edges
    corners = [[(a, low), (b, low), (b, high), (a, high), (a, low)] for a, b in spans.tolist()]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(spans)
    outline = Outline(np.array(corners).reshape(-1, 2), codes)
    axes.add_artist(PathPatch(outline, facecolor=colour, edgecolor="none"))
