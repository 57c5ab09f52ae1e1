"""What a replay costs: seconds over how much is replayed, beside what they would be if each action cost as much as the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reports.figures.drawing import drawn, plain_numbers, sheet
from reports.figures.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
MARKERS = "osD^vP"


@drawn
def replay_cost(frame: pd.DataFrame) -> Figure:
    """Return the seconds of replays over their actions, each `what` by itself; dashed: at its median seconds of an action.

    Rows: what, ranks, actions (of all ranks together), seconds.
    """
    figure = sheet(6.0, 4.0)
    axes = figure.add_subplot()
    for i, (what, rows) in enumerate(frame.groupby("what", sort=False)):
        rows = rows.sort_values(["actions", "seconds"])
        each_s = float((rows["seconds"] / rows["actions"]).median())
        axes.plot(rows["actions"], rows["seconds"], linestyle="none", marker=MARKERS[i % len(MARKERS)], markersize=5,
                  color=COLOURS[i % len(COLOURS)], label=f"{what}: {each_s * 1e6:.3g} µs an action")
        ends = np.array([rows["actions"].min(), rows["actions"].max()])
        axes.plot(ends, each_s * ends, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set(xlabel="actions of a step: passes through a stage, all ranks together", ylabel="processor time, s")
    plain_numbers(axes)
    figure.legend(loc="outside upper center", ncols=1, fontsize=8)
    return figure
