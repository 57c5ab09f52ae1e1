"""How many spare nodes pay: chosen by the closed form of nodes in repair, and simulated around it.

By Palm's theorem the nodes in repair are Poisson, with the rate at which they come times the mean repair time as mean,
whatever the distribution of repair times. A job of N nodes with S spares waits while more than S are away, or, if it is
elastic, does without. Each spare is paid for all along: what counts is (N + S) x elapsed time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from profiles.reliability import Fleet
from simulator.run.monte_carlo import CURVE_LIMIT, CURVE_RUNS, LIMIT, Case, Progress, part_of, simulate_runs
from simulator.run.strikes import LUCK
from simulator.run.training import Reserve, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class SparePoint:
    """A number of spare nodes: mean days, mean accelerator-hours of all nodes that are held, and the share of time waited."""

    num_spares: int
    days: float
    gpu_hours: float
    waiting: float


def nodes_away(training: Training, fleet: Fleet) -> float:
    """Return the mean number of nodes in repair by a fleet's median rates: rate x mean repair time, early mortality's first."""
    steady = fleet.nodes_to_repair_per_s(training.num_gpus, training.num_nodes) * fleet.mean_repair_s
    return steady + fleet.early_failures(training.num_gpus, training.num_nodes, fleet.mean_repair_s)


def held_hours(training: Training, fleet: Fleet, elastic: bool, most: int) -> NDArray[np.float64]:
    """Return accelerator-hours with 0, 1, ... most spares, over those of a run that never lacks a node and holds no spares.

    Mean over the spread of the fleet's rates: a bad fleet needs more.
    """
    mean = (nodes_away(training, fleet) * np.exp(fleet.spread * LUCK))[:, None]
    away = np.arange(most + 1 + math.ceil(float(mean.max()) + 8.0 * math.sqrt(float(mean.max()) + 1.0)))
    logs = np.array([math.lgamma(n + 1.0) for n in away.tolist()])
    chance = np.exp(away * np.log(np.maximum(mean, 1e-300)) - mean - logs)
    spares = np.arange(most + 1)
    lacking = np.maximum(0, away[None, :] - spares[:, None])
    if elastic:
        lost = np.ceil(lacking / training.unit_nodes) / training.num_units
        share = chance @ np.minimum(1.0, lost).T
    else:
        share = chance @ (lacking > 0).T
    slower = np.minimum(LIMIT, 1.0 / np.maximum(1.0 - share, 1e-9)).mean(axis=0)
    result: NDArray[np.float64] = slower * (training.num_nodes + spares) / training.num_nodes
    return result


def best_spares(training: Training, fleet: Fleet, elastic: bool = False) -> int:
    """Return the number of spares that takes the fewest accelerator-hours, spares counted; of equals the fewest spares."""
    worst = nodes_away(training, fleet) * math.exp(fleet.spread * float(LUCK[-1]))
    if worst == 0:
        return 0
    return int(held_hours(training, fleet, elastic, math.ceil(worst + 6.0 * math.sqrt(worst) + 1.0)).argmin())


def spare_curve(case: Case, num_runs: int, on_progress: Progress | None = None) -> tuple[SparePoint, ...]:
    """Return what fewer and more spares than the case's cost and save, all with the same failures."""
    chosen = case.reserve.num_spares
    numbers = sorted({chosen // 4, chosen // 2, chosen, 2 * chosen or 1})
    points = []
    for i, num in enumerate(numbers):
        some = simulate_runs(
            replace(case, reserve=Reserve(num_spares=num, elastic=case.reserve.elastic), limit=CURVE_LIMIT),
            min(num_runs, CURVE_RUNS), part_of(on_progress, i, len(numbers)),
        )
        hours = float(np.mean(some.elapsed_s)) / 3600.0
        gpus = case.training.num_gpus + num * case.training.gpus_per_node
        points.append(SparePoint(num_spares=num, days=hours / 24.0, gpu_hours=hours * gpus, waiting=some.shares["waiting"]))
    return tuple(points)
