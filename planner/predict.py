"""The prediction of one strategy: what `estimate`, `plan` and `simulate` report, by one path."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from planner.economics import gpu_hours, run_days, run_usd
from planner.question import Question
from profiles.cost import CostModel, cost_model
from simulator.breakdown import breakdown, with_exposed_sends
from simulator.condition import Condition
from simulator.estimate import Estimate, estimate
from simulator.memory import peak_memory
from simulator.metrics import hfu, mfu, tokens_per_s
from simulator.replay import Step, play, timeline_of
from simulator.schedules import Table
from simulator.strategy import Strategy
from simulator.timeline import Timeline
from simulator.workload import Workload, build_workload

PEAK_SPREAD = 0.039
"""Standard deviation of the logarithm of measured over predicted peak memory: sqrt(pi / 2) times the mean error of 3.1 % of
allocated memory (`headway validate`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A step, its memory, and the run that is made of it; p10 and p90 are percentiles of the step's time."""

    strategy: Strategy
    step_time_s: float
    p10_s: float
    p90_s: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    mfu: float
    hfu: float
    peak_memory_bytes: float
    usable_memory_bytes: float
    memory_bytes: dict[str, float]
    fits: bool
    breakdown_s: dict[str, float]
    days: float
    days_p10: float
    days_p90: float
    gpu_hours: float
    usd: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction with plain values, for JSON and plan files."""
        return asdict(self)


def predict(question: Question, strategy: Strategy, cost: CostModel | None = None) -> Prediction:
    """Return the prediction of one strategy in closed form: what `estimate` and `validate` report."""
    cost = cost or cost_model(question.cluster)
    workload = build_workload(question.model, strategy)
    closed = estimate(workload, cost)
    parts = {k: float(v) for k, v in closed.breakdown_s.items()}
    return _prediction(question, workload, closed, float(closed.step_time_s), parts)


def predict_replayed(
    question: Question, strategy: Strategy, cost: CostModel | None = None, *, condition: Condition | None = None,
    table: Table | None = None,
) -> tuple[Prediction, Timeline]:
    """Return the prediction of one strategy from its replay, and the replay's timeline.

    `condition` says which ranks are slow; a schedule `table` takes the place of the strategy's own.
    """
    return predict_played(question, strategy, cost, condition=condition, table=table)[:2]


def predict_played(
    question: Question, strategy: Strategy, cost: CostModel | None = None, *, condition: Condition | None = None,
    table: Table | None = None,
) -> tuple[Prediction, Timeline, Step]:
    """Return as `predict_replayed` does, and the step as it was played, of which `memory_timeline` tells."""
    cost = cost or cost_model(question.cluster)
    workload = build_workload(question.model, strategy)
    step = play(workload, cost, condition, table)
    timeline = timeline_of(step)
    parts = with_exposed_sends(breakdown(timeline), workload, cost, timeline, condition, table)
    return _prediction(question, workload, estimate(workload, cost), timeline.step_time_s, parts), timeline, step


def fit_odds(memory_bytes: Mapping[str, float], usable_bytes: float) -> float:
    """Return the probability that a step whose peak is predicted, part by part, runs in the memory that is usable.

    The allocator's slack is not asked for: it goes back to the device where an allocation would fail. The logarithm of
    measured over predicted bytes of the others is taken as normal: Phi(ln(usable / asked) / `PEAK_SPREAD`).
    """
    asked = sum(memory_bytes.values()) - memory_bytes.get("slack", 0.0)
    return 0.5 * math.erfc(-math.log(usable_bytes / asked) / (PEAK_SPREAD * math.sqrt(2)))


def _prediction(
    question: Question, workload: Workload, closed: Estimate, step: float, parts: dict[str, float]
) -> Prediction:
    strategy, accelerator = workload.strategy, question.cluster.accelerator
    memory = peak_memory(workload, accelerator)
    low, high = (float(p / closed.step_time_s) for p in (closed.p10_s, closed.p90_s))
    rate = float(tokens_per_s(strategy, step))
    return Prediction(
        strategy=strategy, step_time_s=step, p10_s=step * low, p90_s=step * high, tokens_per_s=rate,
        tokens_per_s_per_gpu=rate / float(strategy.world_size),
        mfu=float(mfu(question.model, strategy, step, accelerator)),
        hfu=float(hfu(question.model, strategy, step, accelerator)),
        peak_memory_bytes=float(memory.peak_bytes), usable_memory_bytes=float(memory.usable_bytes),
        memory_bytes={k: float(v) for k, v in memory.parts_bytes.items()}, fits=bool(memory.fits), breakdown_s=parts,
        **_run_of(question, strategy, step, low, high),
    )


def _run_of(question: Question, strategy: Strategy, step: float, low: float, high: float) -> dict[str, Any]:
    """Return days and dollars of a step's run; P10 and P90 are so many times its median."""
    days = float(run_days(question.tokens, strategy.tokens_per_step, step))
    hours = float(gpu_hours(days, question.cluster.num_gpus))
    usd = run_usd(hours, question.price)
    return {"days": days, "days_p10": days * low, "days_p90": days * high, "gpu_hours": hours,
            "usd": None if usd is None else float(usd)}


def with_run_of(prediction: Prediction, question: Question) -> Prediction:
    """Return a predicted step with the run of a question that has other tokens or another price: the step is the same."""
    p = prediction
    return replace(p, **_run_of(question, p.strategy, p.step_time_s, p.p10_s / p.step_time_s, p.p90_s / p.step_time_s))
