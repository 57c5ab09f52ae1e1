"""Strikes: when a fleet's causes hit a job, drawn as gaps of the whole job (superposition), never node by node.

The draws depend on the seed, the number of the run and the size of the job only: other checkpoints, spares or a slower
step meet the same failures at the same times, so differences between them are not noise.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from operator import attrgetter
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiles.reliability import Cause, Fleet, members

BLOCK = 64
"""Gaps drawn at once: fewer cost calls, more cost numbers that a short run never needs."""
LUCK = np.array([NormalDist().inv_cdf((i + 0.5) / 200) for i in range(200)])
"""Equally likely draws of a normal distribution, over which expectations are means."""


class Strike(NamedTuple):
    """A failure: when, which cause, which node (as a share of the job's), whether it goes to repair and for how long."""

    time_s: float
    cause: int
    where: float
    replaced: bool
    repair_s: float


class Luck(NamedTuple):
    """What is drawn once for a run: factors on the step's time, and on the rates of each cause."""

    step: float
    rates: tuple[float, ...]


def draw_luck(fleet: Fleet, step_spread: float, seed: int, run: int) -> Luck:
    """Return a run's lognormal factors with median 1: one for the step, one for all rates, one for each cause's own spread."""
    normal = _generator(seed, run, 0).standard_normal(2 + len(fleet.causes))
    rates = tuple(
        math.exp(fleet.spread * normal[1] if c.spread is None else c.spread * normal[2 + i])
        for i, c in enumerate(fleet.causes)
    )
    return Luck(step=math.exp(step_spread * normal[0]), rates=rates)


def strikes(fleet: Fleet, luck: Luck, num_gpus: int, num_nodes: int, seed: int, run: int) -> Iterator[Strike]:
    """Return the strikes of a run in the order of time, without end where a cause has a rate."""
    streams = []
    for index, cause in enumerate(fleet.causes):
        draw = _generator(seed, run, index + 1)
        size = members(cause, num_gpus, num_nodes)
        if cause.early_share:
            num = draw.poisson(cause.early_share * size * luck.rates[index])
            times = np.sort(draw.exponential(cause.early_decay_s, num))
            streams.append(_with_marks(fleet, cause, index, times, draw))
        elif cause.rate_per_s > 0:
            streams.append(_renewals(fleet, cause, index, cause.rate_per_s * size * luck.rates[index], draw))
    return heapq.merge(*streams, key=attrgetter("time_s"))


def idle_strikes(fleet: Fleet, luck: Luck, gpus_per_node: int, num_spares: int, seed: int, run: int) -> Iterator[Strike]:
    """Return what takes spare nodes to repair while they stand idle, in the order of time: as often as nodes that train."""
    streams = []
    for index, cause in enumerate(fleet.causes):
        rate = 0.0 if cause.scope == "job" else cause.rate_per_s * members(cause, num_spares * gpus_per_node, num_spares)
        if rate * cause.replaced > 0 and not cause.pause_s:
            draw = _generator(seed, run, 1 + len(fleet.causes) + index)
            streams.append(_renewals(fleet, cause, index, rate * luck.rates[index], draw))
    return heapq.merge(*streams, key=attrgetter("time_s"))


def _generator(seed: int, run: int, stream: int) -> np.random.Generator:
    return np.random.default_rng((seed, run, stream))


def _renewals(fleet: Fleet, cause: Cause, index: int, rate: float, draw: np.random.Generator) -> Iterator[Strike]:
    """Return strikes at Weibull gaps of mean 1 / rate; exponential where the shape is 1."""
    scale = 1.0 / (rate * math.gamma(1.0 + 1.0 / cause.shape))
    now = 0.0
    while True:
        times = now + np.cumsum(scale * draw.weibull(cause.shape, BLOCK))
        now = float(times[-1])
        yield from _with_marks(fleet, cause, index, times, draw)


def _with_marks(
    fleet: Fleet, cause: Cause, index: int, times: NDArray[np.float64], draw: np.random.Generator
) -> Iterator[Strike]:
    num = len(times)
    where, replaced = draw.random(num), draw.random(num) < cause.replaced
    repair_s = fleet.repair_s * np.exp(fleet.repair_spread * draw.standard_normal(num))
    yield from map(Strike, times.tolist(), [index] * num, where.tolist(), replaced.tolist(), repair_s.tolist())
