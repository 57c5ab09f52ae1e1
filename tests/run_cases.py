"""Runs and fleets with round numbers, for the tests of whole runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from profiles.reliability import Cause, Fleet, PlannedStop
from simulator.run.engine import simulate_run
from simulator.run.outcome import Outcome
from simulator.run.strikes import Strike
from simulator.run.training import Checkpoints, Reserve, Training

DAY_S, HOUR_S = 86400.0, 3600.0
JOB = Cause(name="anything", scope="job", rate_per_s=1 / HOUR_S, replaced=0.0, source="test")
NODE = replace(JOB, name="node", scope="node", replaced=1.0)
FOREVER_S = 1e12


def fleet(*causes: Cause, planned: tuple[PlannedStop, ...] = (), **times: Any) -> Fleet:
    """Return a fleet whose recovery takes no time, but for what is given."""
    plain: dict[str, Any] = {"detection_s": 0.0, "restart_s": 0.0, "replacement_s": 0.0, "repair_s": HOUR_S,
                             "repair_spread": 0.0, "spread": 0.0}
    return Fleet(name="test", title="test", causes=causes, planned=planned, sources={}, **(plain | times))


def training(num_steps: int = 100, step_time_s: float = 10.0, num_nodes: int = 4, **more: Any) -> Training:
    """Return a run of a hundred steps of ten seconds on four nodes of eight, but for what is given."""
    return Training(num_steps=num_steps, step_time_s=step_time_s, num_nodes=num_nodes, gpus_per_node=8, **more)


def strike(time_s: float, cause: int = 0, where: float = 0.0, replaced: bool = False, repair_s: float = 0.0) -> Strike:
    """Return a strike at a time."""
    return Strike(time_s, cause, where, replaced, repair_s)


def run(
    t: Training, c: Checkpoints, f: Fleet, strikes: Iterable[Strike] = (), reserve: Reserve = Reserve(),  # noqa: B008
    limit_s: float = FOREVER_S,
) -> Outcome:
    """Return one run under given strikes."""
    return simulate_run(t, c, f, reserve, iter(strikes), limit_s)
