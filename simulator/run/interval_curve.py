"""The interval of a run's checkpoints: chosen by the exact closed form, and simulated around it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from profiles.reliability import Fleet
from simulator.run.intervals import best_s, daly_s, expected_s, young_s
from simulator.run.monte_carlo import CURVE_LIMIT, CURVE_RUNS, Case, Progress, part_of, simulate_runs
from simulator.run.strikes import LUCK
from simulator.run.training import Checkpoints, Training

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Intervals that are simulated, over the chosen one."""

@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalPoint:
    """A checkpoint interval: the goodput of the closed form (exponential failures) and of simulated runs."""

    interval_steps: int
    interval_s: float
    expected_goodput: float
    goodput: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalCurve:
    """Simulated intervals around the chosen one, and what the formulas say."""

    points: tuple[IntervalPoint, ...]
    young_s: float
    daly_s: float
    exact_s: float
    mttf_s: float


def mttf_s(training: Training, fleet: Fleet) -> float:
    """Return the mean time to an unplanned interruption over an undisturbed run, early mortality spread over it."""
    t = training
    early = fleet.early_failures(t.num_gpus, t.num_nodes, t.undisturbed_s)
    rate = fleet.failures_per_s(t.num_gpus, t.num_nodes) + early / t.undisturbed_s
    return 1.0 / rate if rate else math.inf


def best_interval(training: Training, checkpoints: Checkpoints, fleet: Fleet) -> int:
    """Return the steps between checkpoints that lose least under exponential failures, at least one and at most the run.

    An asynchronous write must be over before the next: its interval is no shorter than the write.
    """
    mean = mttf_s(training, fleet)
    if math.isinf(mean):
        return training.num_steps
    least = math.ceil(checkpoints.write_s / training.step_time_s)
    return min(training.num_steps, max(1, least, round(best_s(checkpoints.stall_s, mean) / training.step_time_s)))


def interval_curve(case: Case, num_runs: int, on_progress: Progress | None = None) -> IntervalCurve:
    """Return the goodput of intervals around the case's, each simulated with the same failures."""
    t, c = case.training, case.checkpoints
    mean = mttf_s(t, case.fleet)
    steps = sorted({min(t.num_steps, max(1, round(f * c.interval_steps))) for f in FACTORS})
    points = []
    for i, n in enumerate(steps):
        some = simulate_runs(replace(case, checkpoints=replace(c, interval_steps=n), limit=CURVE_LIMIT),
                             min(num_runs, CURVE_RUNS), part_of(on_progress, i, len(steps)))
        points.append(IntervalPoint(
            interval_steps=n, interval_s=n * t.step_time_s, expected_goodput=expected_goodput(t, c, case.fleet, n),
            goodput=some.goodput,
        ))
    finite = not math.isinf(mean)
    return IntervalCurve(
        points=tuple(points), mttf_s=mean, young_s=float(young_s(c.stall_s, mean)) if finite else mean,
        daly_s=float(daly_s(c.stall_s, mean)) if finite else mean, exact_s=best_s(c.stall_s, mean) if finite else mean,
    )


def expected_goodput(training: Training, checkpoints: Checkpoints, fleet: Fleet, interval_steps: int) -> float:
    """Return work over the mean elapsed time by Daly's closed form, which knows neither spares nor planned stops.

    A failure also loses the checkpoint whose write runs beside training: `write_s` of work. Mean over the spread of the
    fleet's rates.
    """
    t, c, mean = training, checkpoints, mttf_s(training, fleet)
    work = t.num_steps * t.step_time_s
    if math.isinf(mean):
        return work / (t.undisturbed_s + t.num_steps / interval_steps * c.stall_s)
    # evaluations lengthen every interval alike
    interval = max(interval_steps * t.undisturbed_s / t.num_steps, c.write_s)
    # what was trained in vain since an unnoticed corruption is lost, too
    restart = fleet.detection_s + fleet.restart_s + c.load_s + c.write_s + fleet.unnoticed_s(t.num_gpus, t.num_nodes)
    expected = expected_s(t.undisturbed_s, interval, c.stall_s, restart, mean / np.exp(fleet.spread * LUCK))
    return float((work / expected).mean())
