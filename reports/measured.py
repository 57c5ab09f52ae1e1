"""What a run measured of its steps, and a prediction in the same terms."""

from __future__ import annotations

from statistics import median

import numpy as np
import pandas as pd

from executor.run import Run
from simulator.breakdown import breakdown
from simulator.estimate import BREAKDOWN
from simulator.layout import coordinates
from simulator.pricing import IN_LINE
from simulator.strategy import Strategy
from simulator.timeline import Timeline

MAX_STEPS_JOINED = 200
"""A run's breakdown is the median over at most this many steps, evenly spread over those after the warm-up."""


def measured_steps(run: Run) -> list[Timeline]:
    """Return the timelines of the measured steps, or of `MAX_STEPS_JOINED` of them; empty if no pass was recorded."""
    is_step = run.timeline["op"] == "step"
    actions = run.timeline[~is_step].copy()
    begins = {rank: np.sort(rows["start_s"].to_numpy(float)) for rank, rows in run.timeline[is_step].groupby("rank")}
    step = pd.Series(-1, index=actions.index)
    for rank, rows in actions.groupby("rank"):
        step[rows.index] = np.searchsorted(begins.get(rank, np.zeros(0)), rows["start_s"], side="right") - 1 + run.first_step
    after = np.arange(run.first_measured, run.first_step + max(map(len, begins.values()), default=0))
    if not len(after):
        return []
    joined = set(after[np.unique(np.linspace(0, len(after) - 1, MAX_STEPS_JOINED).astype(int))].tolist())
    return [Timeline(rows=rows, step_time_s=run.step_times_s[int(index)])
            for index, rows in actions.groupby(step) if int(index) in joined]


def measured_breakdown(run: Run) -> dict[str, float] | None:
    """Return the medians over the measured steps of where a step's time went; None if no pass was recorded."""
    parts = [breakdown(step) for step in measured_steps(run)]
    return {term: median(p[term] for p in parts) for term in BREAKDOWN} if parts else None


def records_dp(run: Run) -> bool:
    """Return whether a run has its dp communication apart from the passes."""
    return bool((run.timeline["stream"] == "dp").any())


def as_recorded(parts: dict[str, float], dp_apart: bool) -> dict[str, float]:
    """Return a breakdown in the terms that a run records: communication inside a pass is a part of that pass."""
    inside = parts["compute"] + parts["exposed_tp"] + parts["exposed_cp"] + parts["exposed_ep"]
    dp = {"exposed_dp": parts["exposed_dp"]} if dp_apart else {}
    waiting = parts["bubble"] + parts["exposed_pp"] + parts["data"] + parts["other"]
    return {
        "passes": inside + (0.0 if dp_apart else parts["exposed_dp"]), **dp, "optimizer": parts["optimizer"],
        "waiting": waiting,
    }


def predicted_seconds(parts: dict[str, float], timeline: Timeline, strategy: Strategy, dp_apart: bool) -> dict[str, float]:
    """Return a replayed step in the terms of `measured_seconds`; `parts` is its breakdown."""
    recorded = as_recorded(parts, dp_apart)
    passes_s, waiting_s = recorded.pop("passes"), recorded.pop("waiting")
    forward = forward_share(timeline.rows)
    stragglers_s = max(0.0, parts["other"] - strategy.software.step_s)
    return {"forward": forward * passes_s, "backward": (1 - forward) * passes_s, **recorded, "stragglers": stragglers_s,
            "waiting": waiting_s - stragglers_s}


def measured_seconds(run: Run, dp_apart: bool) -> dict[str, float] | None:
    """Return where the median step of a run went, with forward and backward apart; None if no pass was recorded.

    Stragglers is what the busiest rank's passes take more than those of the mean rank of its stage, waiting what is left.
    """
    steps = [_step_seconds(step, run.job.strategy, dp_apart) for step in measured_steps(run)]
    if not steps:
        return None
    parts = {term: median(step[term] for step in steps) for term in steps[0]}
    return parts | {"waiting": run.step_time_s - sum(parts.values())}


def _step_seconds(step: Timeline, strategy: Strategy, dp_apart: bool) -> dict[str, float]:
    recorded = as_recorded(breakdown(step), dp_apart)
    passes_s = recorded.pop("passes")
    del recorded["waiting"]
    forward = forward_share(step.rows)
    own = _passes(step.rows).groupby("rank")["seconds"].sum()
    own_s, stage = own.to_numpy(float), coordinates(strategy, own.index.to_numpy())["pp"]
    peers_s = own_s[stage == stage[own_s.argmax()]]
    stragglers_s = passes_s * (1 - float(peers_s.mean() / own_s.max()))
    alike_s = passes_s - stragglers_s
    return {"forward": forward * alike_s, "backward": (1 - forward) * alike_s, **recorded, "stragglers": stragglers_s}


def forward_share(rows: pd.DataFrame) -> float:
    """Return which share of the passes is forward, all ranks together."""
    passes = _passes(rows)
    return float(passes.loc[passes["pass"] == "F", "seconds"].sum() / passes["seconds"].sum())


def _passes(rows: pd.DataFrame) -> pd.DataFrame:
    own = rows[rows["stream"].isin(("compute", *IN_LINE)) & (rows["pass"] != "U")]
    return own.assign(seconds=own["end_s"] - own["start_s"])
