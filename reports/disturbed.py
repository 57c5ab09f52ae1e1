"""What `headway simulate` says of a machine that is not as it should be: slow ranks, slow networks, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from planner.plan import Plan
from profiles.cost import cost_model
from profiles.files import BadInput
from profiles.units import parse, show
from simulator.condition import Condition, healthy, with_slow
from simulator.noise import Noise, sample_steps
from simulator.replay import replay
from simulator.schedules import Table as ScheduleTable
from simulator.schedules import load_table
from simulator.workload import build_workload

DEFAULT_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbed:
    """A step on a healthy machine, on one with its slow ranks and nodes, and, with noise, the percentiles of many."""

    healthy_s: float
    slow_s: float
    steps: int
    mean_s: float
    p10_s: float
    p50_s: float
    p90_s: float

    @property
    def slowdown(self) -> float:
        """Return how many times longer the job takes: the mean step over the healthy one."""
        return self.mean_s / self.healthy_s

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON has them."""
        return asdict(self) | {"slowdown": self.slowdown}


def condition_of(plan: Plan, slow_gpus: Sequence[str], slow_nodes: Sequence[str]) -> Condition | None:
    """Return the condition that options like '17=1.2' state, or None where there are none."""
    if not slow_gpus and not slow_nodes:
        return None
    ranks, nodes = _factors("--slow-gpu", slow_gpus), _factors("--slow-node", slow_nodes)
    return with_slow(healthy(int(plan.strategy.world_size)), ranks, nodes, plan.question.cluster.gpus_per_node)


def own_table(path: Path, plan: Plan) -> ScheduleTable:
    """Return the schedule table in a file, which must be of the plan's ranks, chunks and micro-batches."""
    table, shape = load_table(path)
    s = plan.strategy
    for name, has, wants in (("pipeline ranks", shape.num_ranks, s.pp), ("chunks a rank", shape.chunks, s.chunks),
                             ("micro-batches", shape.num_microbatches, s.num_microbatches)):
        if has != int(wants):
            raise BadInput(f"{path}: has {has} {name}, the plan has {wants}")
    if shape.splits_backward and not s.splits_backward:
        raise BadInput(f"{path}: splits backward into I and W, which {s.schedule} of the plan does not; give the plan a "
                       "schedule that does, like ZBH1")
    return table


def noise_of(spread: str | None, jitter: str | None, pauses: str | None) -> Noise | None:
    """Return the noise that options like '2%', '1%' and '5ms/1s' state, or None where there are none."""
    if spread is jitter is pauses is None:
        return None
    pause_s, period_s = 0.0, 1.0
    if pauses is not None:
        pause, slash, period = pauses.partition("/")
        if not slash:
            raise BadInput(f"--pauses: {pauses!r} must be a time and how often, like 5ms/1s")
        pause_s, period_s = (parse(text.strip(), "s", "--pauses") for text in (pause, period))
    return Noise(spread=_share("--speed-spread", spread), jitter=_share("--jitter", jitter), pause_s=pause_s, period_s=period_s)


def disturb(plan: Plan, condition: Condition | None, noise: Noise | None, steps: int | None, seed: int) -> Disturbed | None:
    """Return how much longer steps take under a condition and noise, or None where neither is given."""
    if condition is None and noise is None:
        if steps is not None:
            raise BadInput("--steps: goes with --speed-spread, --jitter or --pauses")
        return None
    workload, cost = build_workload(plan.question.model, plan.strategy), cost_model(plan.question.cluster)
    healthy_s = replay(workload, cost).step_time_s
    slow_s = replay(workload, cost, condition).step_time_s
    num = DEFAULT_STEPS if steps is None else steps
    sampled = np.array([slow_s]) if noise is None else \
        sample_steps(workload, cost, noise, condition=condition, steps=num, seed=seed)
    p10, p50, p90 = np.quantile(sampled, [0.1, 0.5, 0.9]).tolist()
    return Disturbed(healthy_s=healthy_s, slow_s=slow_s, steps=len(sampled), mean_s=float(sampled.mean()), p10_s=p10, p50_s=p50,
                     p90_s=p90)


def disturbed_table(found: Disturbed, days: float) -> Table:
    """Return the table; `days` is how long the job takes on a healthy machine."""
    table = Table(title="Slow ranks, slow networks, noise", title_justify="left")
    for name in ("", "step", "over the healthy one"):
        table.add_column(name, justify="left" if not name else "right")

    def row(name: str, seconds: float) -> None:
        table.add_row(name, show(seconds, "s"), f"{seconds / found.healthy_s:.3f}")

    row("healthy", found.healthy_s)
    if found.slow_s != found.healthy_s:
        row("with the slow ranks and nodes", found.slow_s)
    if found.steps > 1:
        for name, seconds in (("P10", found.p10_s), ("P50", found.p50_s), ("P90", found.p90_s), ("mean", found.mean_s)):
            row(f"with noise, {name} of {found.steps} steps", seconds)
    table.add_row("the job", f"{days * found.slowdown:.2f} days", f"{found.slowdown:.3f}")
    return table


def _factors(option: str, texts: Sequence[str]) -> dict[int, float]:
    factors = {}
    for text in texts:
        index, _, factor = text.partition("=")
        try:
            factors[int(index)] = float(factor)
        except ValueError:
            raise BadInput(f"{option}: {text!r} must be a number and how many times slower it is, like 17=1.2") from None
    return factors


def _share(option: str, text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise BadInput(f"{option}: {text!r} must be a share, like 2% or 0.02") from None
