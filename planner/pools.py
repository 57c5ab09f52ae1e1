"""A pool of unlike accelerators explained: what each pipeline rank does and holds on its kind, what each part would do alone,
and what the slow part costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from planner.counts import Spaces, searched
from planner.economics import gpu_hours, run_usd
from planner.predict import Prediction, predict_replayed
from planner.question import Question
from planner.rules import illegal_reason
from planner.search import Refuse
from profiles.cost import cost_model
from profiles.hardware import Cluster, Price
from profiles.prices import default_price
from simulator.layout import devices, rank_parts
from simulator.memory import rank_memory
from simulator.pricing import price
from simulator.replay import schedule_of
from simulator.stages import stage_seconds
from simulator.strategy import Strategy
from simulator.workload import build_workload


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRank:
    """A pipeline rank of a pool: its kinds of accelerator, its layers, seconds of a micro-batch forward and backward, and its
    peak beside what there is."""

    rank: int
    accelerator: str
    layers: int
    forward_s: float
    backward_s: float
    peak_memory_bytes: float
    usable_memory_bytes: float

    @property
    def busy_s(self) -> float:
        """Return the seconds of a micro-batch."""
        return self.forward_s + self.backward_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A cluster by itself, and its best strategy for the same job, or the `reason` why there is none."""

    cluster: Cluster
    price: Price | None
    prediction: Prediction | None
    reason: str = ""

    @property
    def usd(self) -> float | None:
        """Return the dollars of the run, or None where there is none or no price is known."""
        if self.prediction is None:
            return None
        usd = run_usd(gpu_hours(self.prediction.days, self.cluster.num_gpus), self.price)
        return None if usd is None else float(usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllOfKind:
    """The pool's strategy, its layers spread evenly, on as many accelerators of one kind."""

    accelerator: str
    step_time_s: float
    fits: bool


def pool_ranks(question: Question, strategy: Strategy) -> tuple[PoolRank, ...]:
    """Return what each pipeline rank of a strategy does and holds."""
    workload, accelerator = build_workload(question.model, strategy), question.cluster.accelerator
    prices, pp, found = price(workload, cost_model(question.cluster)), int(strategy.pp), []
    own = rank_parts(question.model, pp, int(strategy.chunks), strategy.split, schedule_of(strategy))
    for rank, (place, kinds) in enumerate(zip(prices.places(pp), devices(accelerator, pp), strict=True)):
        seconds = stage_seconds(prices.at(place), strategy, own[rank])
        kind = min(kinds, key=lambda k: k.memory_bytes)
        found.append(PoolRank(
            rank=rank, accelerator=" + ".join(dict.fromkeys(k.title for k in kinds)),
            layers=sum(num for part, num in own[rank] if part not in ("embedding", "head", "mtp")),
            forward_s=float(seconds.forward_s), backward_s=float(seconds.backward_s),
            peak_memory_bytes=sum(float(v) for v in rank_memory(workload, accelerator, rank).values()),
            usable_memory_bytes=kind.memory_bytes,
        ))
    return tuple(found)


def parts_alone(
    question: Question, refuse: Refuse | None, spaces: Spaces, on_progress: Callable[[float], None] | None = None
) -> tuple[Alone, ...]:
    """Return each part of a pool with its best strategy for the same job, searched in spaces of the same kind."""
    tell, parts = on_progress or (lambda share: None), question.cluster.parts
    found = []
    for i, part in enumerate(parts):
        own = question_of_part(question, part)
        sized = searched(own, refuse, spaces, lambda share, i=i: tell((i + share) / len(parts)))  # type: ignore[misc]
        found.append(Alone(cluster=part, price=own.price, prediction=sized.prediction, reason=sized.reason))
    return tuple(found)


def question_of_part(question: Question, part: Cluster) -> Question:
    """Return a pool's question on one of its parts, at that part's price where none was given for all."""
    pool_price = default_price(question.cluster.accelerator)
    own = default_price(part.accelerator) if question.price == pool_price else question.price
    return replace(question, cluster=part, cluster_text=f"{part.name}:{part.num_nodes}", price=own)


def all_of_each_kind(question: Question, strategy: Strategy) -> tuple[AllOfKind, ...]:
    """Return the strategy on as many accelerators of each kind alone, where whole nodes of it make that number."""
    even, found = replace(strategy, layers=""), []
    for part in question.cluster.parts:
        if question.cluster.num_gpus % part.gpus_per_node:
            continue
        whole = replace(question, cluster=replace(part, num_nodes=question.cluster.num_gpus // part.gpus_per_node))
        if illegal_reason(even, whole) is None:
            there = predict_replayed(whole, even)[0]
            found.append(AllOfKind(accelerator=part.accelerator.title, step_time_s=there.step_time_s, fits=there.fits))
    return tuple(found)


def pool_as_dict(question: Question, prediction: Prediction, alone: tuple[Alone, ...] = ()) -> dict[str, Any]:
    """Return what is known of a pool's plan with plain values, for `--json`."""
    rates = [a.prediction.tokens_per_s for a in alone if a.prediction is not None]
    return {
        "stages": [asdict(rank) for rank in pool_ranks(question, prediction.strategy)],
        "all_of_one_kind": [asdict(kind) for kind in all_of_each_kind(question, prediction.strategy)],
        "considered": [_as_row(prediction, Alone(
            cluster=question.cluster, price=question.price, prediction=prediction)), *(_as_row(prediction, a) for a in alone)],
        "share_of_parts_alone": prediction.tokens_per_s / sum(rates) if alone and len(rates) == len(alone) else None,
    }


def _as_row(chosen: Prediction, a: Alone) -> dict[str, Any]:
    p = a.prediction
    return {
        "cluster": a.cluster.machines, "num_gpus": a.cluster.num_gpus, "strategy": p.strategy.describe() if p else None,
        "step_time_s": p.step_time_s if p else None, "tokens_per_s": p.tokens_per_s if p else None, "mfu": p.mfu if p else None,
        "days": p.days if p else None, "usd": a.usd, "reason": a.reason if p is None else why(chosen, p),
    }


def why(pool: Prediction, alone: Prediction) -> str:
    """Return how a part alone does against the pool, in a word with a number; nothing for the pool itself."""
    if alone is pool:
        return ""
    times = alone.days / pool.days
    return f"{times - 1:.1%} slower" if times >= 1 else f"{1 / times - 1:.1%} faster than the pool"
