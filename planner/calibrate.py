"""Calibration: the few numbers by which training runs differ from kernels timed alone, fitted on measured steps.

Residuals are logarithms of predicted over measured step time, weighted so that a source of many rows counts as the
root of their number; each number has a prior, so that rows which do not see it leave it where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.question import Question
from profiles.calibration import NUMBERS, Calibration
from profiles.cost import CostModel, cost_model
from simulator.estimate import P90_Z, estimate
from simulator.strategy import Strategy
from simulator.workload import Workload, build_workload

Vector = NDArray[np.float64]
PRIOR = {
    "matmul": (1.08, 0.08), "attention": (1.0, 0.3), "memory": (1.0, 0.25), "scale_up": (1.0, 0.3),
    "scale_out": (1.0, 0.4), "beside": (0.3, 0.3), "wait": (0.005, 0.01), "experts": (1.1, 0.3),
    "eager": (1.0, 0.2), "maturing": (0.05, 0.1), "casts": (0.6, 0.3), "pipelined": (0.35, 0.15),
}
"""Mean and standard deviation of each number before any run is seen: wide for what microbenchmarks do not bind."""
LOWER = np.array([0.7, 0.3, 0.6, 0.5, 0.5, 0.0, 0.0, 0.5, 0.6, 0.0, 0.05, 0.0])
UPPER = np.array([1.6, 3.0, 3.0, 3.0, 4.0, 1.0, 0.05, 3.0, 3.0, 0.5, 2.0, 1.0])
NOISE = 0.06
"""Standard deviation of the logarithm of a row that the numbers describe."""
CAUCHY = 2.0
"""Residuals beyond this many standard deviations hardly pull any more (Cauchy's loss; published runs hold misprints and
runs that something else slowed)."""
COVERED = 0.8
"""Share of rows from P10 to P90."""
STEP = 1e-3
ROUNDS = 12
HALVINGS = 4
SIBLING_SHARE = 0.5
"""Width of the prior around a sibling's numbers, over that of microbenchmarks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measured step: what ran, how long it took, who published it, and how far that is trusted (1: fully)."""

    id: str
    question: Question
    strategy: Strategy
    step_s: float
    source: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slopes:
    """Residuals of rows at `values` and their derivatives: one row a line, one number a column."""

    values: Vector
    left: Vector
    jacobian: NDArray[np.float64]


def as_calibration(values: Any, **spreads: float) -> Calibration:
    """Return a calibration of these numbers (arrays where `values` is a matrix: one set a column)."""
    numbers = dict(zip(NUMBERS, values, strict=True))
    return Calibration.model_construct(source="being fitted", **(numbers | spreads))


def prepare(rows: Sequence[Measured]) -> list[tuple[Workload, CostModel]]:
    """Return what does not change while numbers are fitted."""
    return [(build_workload(r.question.model, r.strategy), cost_model(r.question.cluster)) for r in rows]


def slopes(rows: Sequence[Measured], prepared: list[tuple[Workload, CostModel]], values: Vector) -> Slopes:
    """Return residuals and derivatives at `values`, in one pass over the rows: each is priced with all sets at once."""
    steps = np.maximum(STEP, STEP * np.abs(values))
    sets = np.concatenate([values[:, None], values[:, None] + np.diag(steps)], axis=1)
    calibration = as_calibration(sets)
    logs = np.array([
        np.log(np.broadcast_to(estimate(w, replace(c, calibration=calibration)).step_time_s, sets.shape[1:]))
        for w, c in prepared
    ])
    left = logs[:, 0] - np.log([r.step_s for r in rows])
    return Slopes(values=values, left=left, jacobian=(logs[:, 1:] - logs[:, :1]) / steps)


def row_weights(rows: Sequence[Measured]) -> Vector:
    """Return a weight for each row: its own, over the root of what its source's rows weigh together."""
    names = np.array([r.source for r in rows])
    own = np.array([r.weight for r in rows])
    total = {name: own[names == name].sum() for name in set(names.tolist())}
    result: Vector = own / np.sqrt([max(1.0, total[name]) for name in names.tolist()])
    return result


def solve(at: Slopes, weight: Vector, prior: Prior) -> Vector:
    """Return the numbers that fit best to first order around `at`, with priors and bounds."""
    values = at.values
    for _ in range(8):
        left = at.left + at.jacobian @ (values - at.values)
        robust = weight / (1 + (left / (CAUCHY * NOISE)) ** 2) / NOISE**2
        normal = at.jacobian.T @ (robust[:, None] * at.jacobian) + np.diag(1 / prior.width**2)
        gradient = at.jacobian.T @ (robust * left) + (values - prior.mean) / prior.width**2
        free = ~(((values <= LOWER) & (gradient > 0)) | ((values >= UPPER) & (gradient < 0)))
        step = np.zeros_like(values)
        step[free] = -np.linalg.solve(normal[np.ix_(free, free)], gradient[free])
        values = np.clip(values + step, LOWER, UPPER)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What the numbers are before any run is seen: mean and standard deviation of each."""

    mean: Vector
    width: Vector


def prior_of(sibling: Vector | None = None) -> Prior:
    """Return the prior of microbenchmarks, or the narrower one of a sibling's fitted numbers."""
    mean, width = (np.array([PRIOR[n][i] for n in NUMBERS]) for i in (0, 1))
    return Prior(mean=mean, width=width) if sibling is None else Prior(mean=sibling, width=SIBLING_SHARE * width)


def calibrate(rows: Sequence[Measured], prior: Prior) -> Slopes:
    """Return residuals and derivatives at the best numbers for these rows: Gauss-Newton, steps halved while they lose."""
    prepared, weight = prepare(rows), row_weights(rows)
    at = slopes(rows, prepared, prior.mean)
    for _ in range(ROUNDS):
        step = solve(at, weight, prior) - at.values
        better = None
        for _ in range(HALVINGS):
            tried = slopes(rows, prepared, at.values + step)
            if loss(tried, weight, prior) < loss(at, weight, prior):
                better = tried
                break
            step = step / 2
        if better is None:
            break
        moved = float(np.max(np.abs(better.values - at.values)))
        at = better
        if moved < 2e-3:
            break
    return at


def loss(at: Slopes, weight: Vector, prior: Prior) -> float:
    """Return what is minimised: Cauchy's loss of the rows, and the squared distance to the priors."""
    rows = CAUCHY**2 * np.log1p((at.left / (CAUCHY * NOISE)) ** 2)
    return float(weight @ rows + np.sum(((at.values - prior.mean) / prior.width) ** 2))


def without_source(rows: Sequence[Measured], at: Slopes, priors: Callable[[str], Prior]) -> dict[str, Vector]:
    """Return, for each source, the numbers fitted on all others (to first order around the fit on all).

    `priors` gives the prior that has not seen a source either.
    """
    names, weight = np.array([r.source for r in rows]), row_weights(rows)
    result: dict[str, Vector] = {}
    for name in dict.fromkeys(names.tolist()):
        mine = names == name
        rest = Slopes(values=at.values, left=at.left[~mine], jacobian=at.jacobian[~mine])
        result[name] = solve(rest, weight[~mine], priors(name))
    return result


def spreads(rows: Sequence[Measured], values: Vector, left: Vector) -> dict[str, float]:
    """Return the spreads that make residuals `left` most likely: of every step, of experts and of communication.

    A step's variance is the sum of theirs, each with its share of the step. Residuals are taken as Laplacian, so that
    single rows do not decide; searched on a grid, with bounds that keep any part from being called certain.
    """
    weight = np.array([r.weight for r in rows])
    prepared = prepare(rows)

    def shares(**unit: float) -> Vector:
        calibration = as_calibration(values, **unit)
        steps = [estimate(w, replace(c, calibration=calibration)) for w, c in prepared]
        return np.array([float(np.log(s.p90_s / s.step_time_s)) / P90_Z for s in steps])

    expert, comm = shares(expert_spread=1.0), shares(comm_spread=1.0)

    def width(parts: Sequence[float]) -> Vector:
        result: Vector = np.sqrt(parts[0] ** 2 + (parts[1] * expert) ** 2 + (parts[2] * comm) ** 2)
        return result

    grid = itertools.product(np.linspace(0.02, 0.2, 37), np.linspace(0.1, 0.6, 11), np.linspace(0.1, 0.4, 7))
    found = min(grid, key=lambda g: float(weight @ (np.log(width(g)) + np.sqrt(2) * np.abs(left) / width(g))))
    # a Laplacian has more rows near its middle than a normal of its width: what is shown is where 80 per cent lie
    order = np.argsort(np.abs(left) / width(found))
    inside = np.cumsum(weight[order]) / weight.sum()
    scale = float((np.abs(left) / width(found))[order][np.searchsorted(inside, COVERED)]) / P90_Z
    names = ("spread", "expert_spread", "comm_spread")
    return {name: round(scale * float(part), 4) for name, part in zip(names, found, strict=True)}
