"""The figure of a waterfall: from one step to another, a bar for each term that lies between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reports import figures
from reports.compare import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def waterfall_figure(frame: pd.DataFrame, sides: tuple[str, str], ends_s: tuple[float, float], what: str) -> str:
    """Return the SVG of a waterfall: `frame` has columns name and seconds, which lead from the first end to the second.

    Green bars save time, red ones cost it.
    """
    factor, short = figures._scale(max(ends_s))
    changes = frame["seconds"].to_numpy(float) / factor
    begins = ends_s[0] / factor + np.concatenate([[0.0], np.cumsum(changes)[:-1]]) if len(changes) else changes
    ends = [e / factor for e in ends_s]
    levels = [0.0, *ends, *begins.tolist(), *(begins + changes).tolist()]
    # where all changes are small beside the steps, the axis begins near them
    low = min(levels[1:])
    start = 0.0 if max(levels) - low > 0.25 * max(levels) else low - 0.25 * (max(levels) - low or low)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        last, pad = len(changes) + 1, 0.01 * (max(levels) - start)
        for row, end, seconds in ((0, ends[0], ends_s[0]), (last, ends[1], ends_s[1])):
            axes.barh(row, end - start, left=start, height=0.7, color=figures.GREY)
            axes.text(end + pad, row, shown(seconds, "s", 4), ha="left", va="center")
        for row, (begin, change) in enumerate(zip(begins.tolist(), changes.tolist(), strict=True), start=1):
            axes.barh(row, change, left=begin, height=0.7, color=figures.VERMILLION if change > 0 else figures.GREEN)
            axes.plot([begin, begin], [row - 1.35, row - 0.35], color=figures.INK, linewidth=0.6)
            sign = "+" if change > 0 else "-"
            axes.text(max(begin, begin + change) + pad, row, sign + shown(abs(change) * factor, "s"), ha="left", va="center")
        axes.plot([ends[1], ends[1]], [last - 1.35, last - 0.35], color=figures.INK, linewidth=0.6)
        axes.set_yticks(range(last + 1), [sides[0], *frame["name"], sides[1]])
        axes.set_xlim(start, max(levels) + 0.16 * (max(levels) - start))
        axes.set_ylim(last + 0.6, -0.6)
        axes.set_xlabel(f"{what}, {short}" + (f" (from {shown(start * factor, 's')})" if start else ""))
        figures._bare(axes)

    title = f"from {sides[0]} to {sides[1]}, term by term"
    return figures._svg("between", title, (7.6, 0.8 + 0.32 * (len(changes) + 2)), draw)
