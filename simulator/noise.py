"""Stragglers and noise: how much longer steps take on ranks that are not alike, by Monte Carlo.

Every sampled step plays the schedule's table at the paces of all its pipelines at once (`max_plus.py`); the same laws as
the replay of one step under a condition, which a test holds them to, but for what transfers cost that meet on a link.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.cost import CostModel
from profiles.files import BadInput
from profiles.ops import Num
from simulator.condition import Condition, at_pace, healthy, paces
from simulator.layout import stage_parts
from simulator.max_plus import play_table
from simulator.pricing import price
from simulator.replay import replay, schedule_of
from simulator.schedules import Action, Table, build_schedule, homes, passes
from simulator.stages import StageSeconds, stage_seconds
from simulator.strategy import Strategy
from simulator.workload import Workload

LANES = 4096
"""Pipelines that are played at once; more only need more memory."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How ranks differ: `spread` of their speeds for good and `jitter` from step to step (standard deviations of the
    logarithm), and pauses of `pause_s` that each rank makes once in `period_s`, at times of its own."""

    spread: float = 0.0
    jitter: float = 0.0
    pause_s: float = 0.0
    period_s: float = 1.0

    def __post_init__(self) -> None:
        for name, value, low in (("spread", self.spread, 0), ("jitter", self.jitter, 0), ("pause_s", self.pause_s, 0)):
            if not (np.isfinite(value) and value >= low):
                raise BadInput(f"noise: {name} must be 0 or more (is {value:g})")
        if not (np.isfinite(self.period_s) and self.period_s > 0):
            raise BadInput(f"noise: period_s must be above 0 (is {self.period_s:g})")


def sample_steps(
    workload: Workload, cost: CostModel, noise: Noise, *, condition: Condition | None = None, steps: int = 100, seed: int = 0
) -> Array:
    """Return the seconds of so many steps of one job: its ranks' speeds are drawn once, what changes for each step."""
    if steps < 1:
        raise BadInput(f"steps: must be at least 1 (is {steps})")
    strategy, rng = workload.strategy, np.random.default_rng(seed)
    num = int(strategy.world_size)
    base = condition or healthy(num)
    compute = base.compute * np.exp(noise.spread * rng.standard_normal(num))
    step_s = float(play_steps(workload, cost, base.compute[None], base.network[None])[0])
    # what sharing links costs a healthy machine is added to every step: it is not known to these
    plain = np.ones((1, num))
    shared_s = replay(workload, cost).step_time_s - float(play_steps(workload, cost, plain, plain)[0])
    batch, found = max(1, LANES // int(strategy.dp)), []
    for begin in range(0, steps, batch):
        shape = min(batch, steps - begin), num
        each = np.broadcast_to(compute, shape)
        if noise.jitter:
            each = each * np.exp(noise.jitter * rng.standard_normal(shape))
        if noise.pause_s:
            each = _with_pauses(each, strategy, rng, noise, step_s)
        found.append(play_steps(workload, cost, each, np.broadcast_to(base.network, shape)))
    return np.concatenate(found) + shared_s


def _with_pauses(compute: Array, strategy: Strategy, rng: np.random.Generator, noise: Noise, step_s: float) -> Array:
    """Return factors with pauses: the ranks that meet in every layer stop whenever one of them does, so each pause of any
    counts (rate k / period for k ranks that pause at times of their own), but for those in which they wait anyway."""
    together = int(strategy.tp) * int(strategy.cp)
    groups = compute.reshape(len(compute), -1, together)
    pauses = rng.poisson(together * step_s / noise.period_s, groups.shape[:2])
    result: Array = (groups * (1 + noise.pause_s * pauses / step_s)[..., None]).reshape(compute.shape)
    return result


def play_steps(workload: Workload, cost: CostModel, compute: Array, network: Array) -> Array:
    """Return the seconds of a step for each row of factors [steps, ranks] of computation and of the network."""
    strategy = workload.strategy
    both = [paces(strategy, Condition(compute=c, network=n)) for c, n in zip(compute, network, strict=True)]
    pace, wire = (np.stack(each) for each in zip(*both, strict=True))
    if not (pace != pace[:, :1]).any() and not (wire != wire[:, :1]).any():
        pace, wire = pace[:, :1], wire[:, :1]
    table = build_schedule(schedule_of(strategy), int(strategy.pp), int(strategy.num_microbatches), int(strategy.chunks))
    return _play(workload, cost, table, pace, wire)


def _play(workload: Workload, cost: CostModel, table: Table, pace: Array, wire: Array) -> Array:
    """Return the seconds of steps whose pipelines [steps, pipelines, pp] go at these paces."""
    strategy, prices, home = workload.strategy, price(workload, cost), homes(table)
    num_steps, num_pipelines, num_ranks = pace.shape
    stages = stage_parts(workload.model, num_ranks, len(home) // num_ranks, strategy.split)
    reduced = np.repeat(wire.max(axis=1), num_pipelines, axis=0)
    pace, wire = pace.reshape(-1, num_ranks), wire.reshape(-1, num_ranks)
    gpus = cost.cluster.gpus_per_node
    where = prices.places(num_ranks)
    at = [at_pace(prices.at(where[r]), strategy, gpus, pace[:, r], wire[:, r], reduced[:, r]) for r in range(num_ranks)]
    seconds = [stage_seconds(at[home[s]], strategy, list(parts)) for s, parts in enumerate(stages)]
    kinds = _kinds(table)
    ends: list[Num] = [0.0] * num_ranks
    reduced_s: list[Num] = [0.0] * num_ranks
    waits_for_all = int(strategy.zero) <= 1 and not (prices.overlaps and strategy.software.grad_reduce)

    def on_end(rank: int, action: Action, end: Num) -> None:
        ends[rank] = end
        for stage, split in [(seconds[a.stage], a.pass_ == "W") for a in passes(action) if kinds.get(a) == "last"]:
            tail, queued = (stage.weight_tail_s, stage.weight_queued_s) if split else (stage.tail_s, stage.queued_s)
            # reductions queue behind those of the chunks before, or all of them behind the last backward
            queue = reduced_s[rank] + queued
            reduced_s[rank] = queue if waits_for_all else np.maximum(end + tail, queue)

    play_table(table, lambda a: _action_s(a, seconds, kinds, prices.beside),
               lambda r, to: prices.hop_s(where[r], where[to]) * wire[:, r], not strategy.software.pp_overlap, on_end)
    step: Num = 0.0
    for rank in range(num_ranks):
        last: Num = ends[rank] + reduced_s[rank] if waits_for_all else np.maximum(ends[rank], reduced_s[rank])
        ready = np.broadcast_to(last, pace.shape[:1]).reshape(num_steps, num_pipelines).max(axis=1)
        own = [seconds[s] for s, r in home.items() if r == rank]
        after: Num = sum(s.update_s for s in own) + _regather_s(own)
        step = np.maximum(step, ready + np.broadcast_to(after, pace.shape[:1]).reshape(num_steps, num_pipelines).max(axis=1))
    result: Array = np.asarray(step * (1 + prices.wait) + strategy.software.step_s)
    return result


def _regather_s(own: list[StageSeconds]) -> Num:
    return sum(s.regather_s for s in own)


def _kinds(table: Table) -> dict[Action, str]:
    """Return the first forward of each stage and its last gradient of weights; others are not named."""
    first, last = dict[int, Action](), dict[int, Action]()
    for action in (a for row in table for slot in row for a in passes(slot)):
        if action.pass_ == "F":
            first.setdefault(action.stage, action)
        elif action.pass_ in "BW":
            last[action.stage] = action
    return dict.fromkeys(first.values(), "first") | dict.fromkeys(last.values(), "last")


def _action_s(action: Action, seconds: list[StageSeconds], kinds: dict[Action, str], beside: Num) -> Num:
    if action.parts:
        forward, backward = action.parts
        f, b = seconds[forward.stage].forward, seconds[backward.stage].backward
        one, other = (_action_s(a, seconds, kinds, beside) for a in action.parts)
        hidden = np.minimum(f.ep_s, other - b.ep_s) + np.minimum(b.ep_s, one - f.ep_s)
        return one + other - hidden * (1 - beside)
    stage, kind = seconds[action.stage], kinds.get(action)
    if action.pass_ == "F":
        return stage.first_forward_s if kind == "first" else stage.forward_s
    if action.pass_ == "B":
        return stage.last_backward_s if kind == "last" else stage.backward_s
    if action.pass_ == "I":
        return stage.backward_s - stage.weight_s
    return stage.last_weight_s if kind == "last" else stage.weight_s
