"""Where a step's time went, from its timeline: the same table for a replay and for a measured run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiles.cost import CostModel
from simulator.condition import Condition
from simulator.estimate import BREAKDOWN
from simulator.replay import replay
from simulator.schedules import Table
from simulator.timeline import CAUSES, Timeline, union
from simulator.workload import Workload


def breakdown(timeline: Timeline, step_time_s: float | None = None) -> dict[str, float]:
    """Return seconds by cause on the busiest rank; they add up to the step.

    Communication counts only where nothing is computed beside it; what nothing covers is the bubble.
    """
    busiest = max(timeline.rows["rank"].unique(), key=lambda r: _length(_of(timeline.rank(r), "compute")))
    rows = timeline.rank(busiest)
    parts = dict.fromkeys(BREAKDOWN, 0.0)
    update = (rows["pass"] == "U") & (rows["stream"] == "compute")
    parts["optimizer"] = _length(_of(rows[update], "compute"))
    covered = _of(rows, "compute")
    parts["compute"] = _length(covered) - parts["optimizer"]
    # a send holds up its receiver, not its sender; of pp only the sum of a tied embedding is the rank's own
    own = rows[(rows["stream"] != "pp") | (rows["pass"] == "U")]
    for stream in ("tp", "cp", "ep", "dp", "pp", "host"):
        both = union(np.concatenate([covered, _of(own, stream)]))
        parts[CAUSES[stream]] = _length(both) - _length(covered)
        covered = both
    parts["bubble"] = (step_time_s or timeline.step_time_s) - _length(covered)
    return parts


def with_exposed_sends(
    parts: dict[str, float], workload: Workload, cost: CostModel, timeline: Timeline, condition: Condition | None = None,
    table: Table | None = None,
) -> dict[str, float]:
    """Return a breakdown with the sends' share of the bubble: how much shorter the step is if sends take no time."""
    if workload.strategy.pp == 1:
        return parts
    free = replace(workload.send, bytes=0.0, group_size=1)
    gained = timeline.step_time_s - replay(replace(workload, send=free), cost, condition, table).step_time_s
    gained = float(np.clip(gained, 0.0, parts["bubble"]))
    return parts | {"exposed_pp": parts["exposed_pp"] + gained, "bubble": parts["bubble"] - gained}


def _of(rows: pd.DataFrame, stream: str) -> NDArray[np.float64]:
    return union(rows.loc[rows["stream"] == stream, ["start_s", "end_s"]].to_numpy(float))


def _length(spans: NDArray[np.float64]) -> float:
    return float((spans[:, 1] - spans[:, 0]).sum())
