"""Where a step's time went, from its timeline: the same table for a replay and for a measured run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiles.cost import CostModel
from simulator.estimate import BREAKDOWN
from simulator.replay import replay
from simulator.timeline import CAUSES, Timeline
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
        both = _union(np.concatenate([covered, _of(own, stream)]))
        parts[CAUSES[stream]] = _length(both) - _length(covered)
        covered = both
    parts["bubble"] = (step_time_s or timeline.step_time_s) - _length(covered)
    return parts


def with_exposed_sends(
    parts: dict[str, float], workload: Workload, cost: CostModel, timeline: Timeline
) -> dict[str, float]:
    """Return a breakdown with the sends' share of the bubble: how much shorter the step is if sends take no time."""
    if workload.strategy.pp == 1:
        return parts
    free = replace(workload.send, bytes=0.0, group_size=1)
    gained = timeline.step_time_s - replay(replace(workload, send=free), cost).step_time_s
    gained = float(np.clip(gained, 0.0, parts["bubble"]))
    return parts | {"exposed_pp": parts["exposed_pp"] + gained, "bubble": parts["bubble"] - gained}


def _of(rows: pd.DataFrame, stream: str) -> NDArray[np.float64]:
    return _union(rows.loc[rows["stream"] == stream, ["start_s", "end_s"]].to_numpy(float))


def _union(spans: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return spans [n, 2] sorted and merged where they touch."""
    if len(spans) == 0:
        return spans.reshape(0, 2)
    spans = spans[np.argsort(spans[:, 0])]
    reach = np.maximum.accumulate(spans[:, 1])
    fresh = np.concatenate([[True], spans[1:, 0] > reach[:-1]])
    ends = reach[np.concatenate([np.flatnonzero(fresh)[1:] - 1, [len(spans) - 1]])]
    return np.stack([spans[fresh, 0], ends], axis=1)


def _length(spans: NDArray[np.float64]) -> float:
    return float((spans[:, 1] - spans[:, 0]).sum())
