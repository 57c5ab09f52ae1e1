"""Scenarios: everything that a prediction is made of, so that a what-if can change any of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from planner.question import Question, ask
from planner.rules import illegal_reason
from profiles.calibration import Calibration
from profiles.cost import CostModel, cost_model
from profiles.files import BadInput
from profiles.hardware import Cluster, scaled_pool, with_num_gpus
from profiles.reliability import Fleet
from simulator.condition import healthy, with_slow
from simulator.noise import Noise, play_steps, sample_steps
from simulator.run.training import MODES
from simulator.strategy import Strategy
from simulator.workload import build_workload

JITTER_STEPS = 50
"""Steps that are sampled where ranks jitter; always the same draws, so that two amounts of jitter can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """What the whole run meets; None: as `simulate --run` takes where nothing is given. `best_interval_s` is that of the plan.

    `failure_rate`: times as many failures as the fleet's file says.
    """

    fleet: Fleet
    failure_rate: float = 1.0
    storage_bytes_per_s: float | None = None
    checkpoint: str = MODES[0]
    interval_s: float | None = None
    best_interval_s: float = 0.0

    @property
    def failing(self) -> Fleet:
        """Return the fleet with its failures as frequent as they are here; planned stops stay as they are."""
        return self.fleet.failing(self.failure_rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A question, a strategy, and all else that moves a prediction.

    `slow_rank` computes, and `slow_node` reaches others, so many times slower than the rest; `speed_spread` and `jitter` are
    those of `Noise`; `step` is a factor on the step's seconds for reasons that no law knows.
    """

    question: Question
    strategy: Strategy
    calibration: Calibration
    run: RunInputs | None = None
    slow_rank: float = 1.0
    slow_node: float = 1.0
    speed_spread: float = 0.0
    jitter: float = 0.0
    step: float = 1.0

    @property
    def cost(self) -> CostModel:
        """Return the cost model with the scenario's calibration."""
        return replace(cost_model(self.question.cluster), calibration=self.calibration)


def scenario_of(question: Question, strategy: Strategy, run: RunInputs | None = None) -> Scenario:
    """Return a plan's own scenario."""
    return Scenario(question=question, strategy=strategy, calibration=cost_model(question.cluster).calibration, run=run)


def slowdown(scenario: Scenario) -> float:
    """Return how many times longer a step takes for slow ranks, noise and what no law knows; 1 where there is none."""
    s = scenario
    if (s.slow_rank, s.slow_node, s.speed_spread, s.jitter) == (1.0, 1.0, 0.0, 0.0):
        return s.step
    workload, num = build_workload(s.question.model, s.strategy), int(s.strategy.world_size)
    condition = with_slow(healthy(num), {0: s.slow_rank}, {0: s.slow_node}, s.question.cluster.gpus_per_node)
    usual = play_steps(workload, s.cost, np.ones((1, num)), np.ones((1, num)))[0]
    noise = Noise(spread=s.speed_spread, jitter=s.jitter)
    steps = sample_steps(workload, s.cost, noise, condition=condition, steps=JITTER_STEPS if s.jitter else 1)
    return s.step * float(steps.mean() / usual)


def refusal(scenario: Scenario) -> str | None:
    """Return why a scenario cannot be, in one sentence, or None where it can."""
    q = scenario.question
    try:
        ask(q.model, q.cluster, tokens=q.tokens, seq_len=q.seq_len, global_batch=q.global_batch, precision=q.precision,
            software=q.software, price=q.price, lora_rank=q.lora_rank, lora_targets=q.lora_targets)
    except BadInput as e:
        return str(e)
    return illegal_reason(scenario.strategy, q)


def on_cluster(scenario: Scenario, cluster: Cluster) -> Scenario:
    """Return the scenario on another cluster, with the replicas that it has room for."""
    return settled(replace(scenario, question=replace(scenario.question, cluster=cluster)))


def settled(scenario: Scenario) -> Scenario:
    """Return a scenario whose dp is what the other degrees leave, with as many micro-batches as the batch has."""
    s, q = scenario.strategy, scenario.question
    dp = max(1, q.cluster.num_gpus // int(s.tp * s.cp * s.pp))
    num_microbatches = max(1, q.global_batch // int(dp * s.micro_batch))
    return replace(scenario, strategy=replace(s, dp=dp, num_microbatches=num_microbatches))


def sized(cluster: Cluster, num_gpus: int) -> Cluster:
    """Return the cluster with fewer or more accelerators, in nodes like its own; of a pool in proportion."""
    if cluster.table is not None:
        return with_num_gpus(cluster, num_gpus)
    if cluster.parts:
        return scaled_pool(cluster, num_gpus)
    grown = max(cluster.num_nodes, math.ceil(num_gpus / cluster.gpus_per_node))
    wired = cluster.network
    if wired.num_nodes:
        wired = replace(wired, num_nodes=max(wired.num_nodes, grown))
    return with_num_gpus(replace(cluster, num_nodes=grown, network=wired), num_gpus)
