"""Why steps take longer than planned: the terms of `compare`'s waterfall, and what the ranks' own seconds say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from executor.told import Told
from profiles.model import ModelSpec
from profiles.units import show
from simulator.layout import coordinates
from simulator.strategy import Strategy
from simulator.waterfall import decompose_recorded, waterfall

TOLERANCE = 0.2
"""How much longer than planned a step may take before it is called drift; a prediction is good to about half of that."""
SLOW = 1.25
"""How many times the forward of its peers a slow rank takes, and by how much backward outgrows forward where it waits."""
Rank = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How many times longer than planned steps take, the likely cause (slow rank, data, communication, kernel), and why."""

    ratio: float
    cause: str
    says: str


def by_rank(steps: Sequence[Sequence[Told]]) -> list[dict[str, float]]:
    """Return each rank's median seconds over some steps; sums of gradients after the last backward count as backward."""
    return [{
        "forward": median(t.forward_s for t in told), "backward": median(t.backward_s + t.dp_s for t in told),
        "optimizer": median(t.optimizer_s for t in told), "data": median(t.data_s for t in told),
        "step": median(t.step_time_s for t in told),
    } for told in zip(*steps, strict=True)]


def measured_terms(ranks: Sequence[Rank], strategy: Strategy) -> dict[str, float]:
    """Return where the median step went in the waterfall's terms, on the rank whose passes take longest."""
    busiest = max(range(len(ranks)), key=lambda r: ranks[r]["forward"] + ranks[r]["backward"])
    mine = ranks[busiest]
    passes_s = mine["forward"] + mine["backward"]
    alike_s = fmean(ranks[r]["forward"] + ranks[r]["backward"] for r in _peers(strategy, busiest))
    step_s = max(rank["step"] for rank in ranks)
    data_s = max(rank["data"] for rank in ranks)
    terms = {"forward": mine["forward"] * alike_s / passes_s, "backward": mine["backward"] * alike_s / passes_s,
             "optimizer": mine["optimizer"], "stragglers": passes_s - alike_s, "data": data_s}
    return terms | {"waiting": max(0.0, step_s - sum(terms.values()))}


def drift(
    model: ModelSpec, strategy: Strategy, steps: Sequence[Sequence[Told]], predicted: Mapping[str, float]
) -> Drift | None:
    """Return by how much and likely why some steps took longer than `predicted`, or None where they did not."""
    ranks = by_rank(steps)
    predicted_s, step_s = sum(predicted.values()), max(rank["step"] for rank in ranks)
    if step_s <= (1 + TOLERANCE) * predicted_s:
        return None
    sides = (decompose_recorded(model, strategy, terms) for terms in (predicted, measured_terms(ranks, strategy)))
    terms = waterfall(*sides)
    cause, says = _cause(max(terms, key=lambda term: terms[term]), ranks, strategy, predicted)
    ratio = step_s / predicted_s
    return Drift(ratio=ratio, cause=cause,
                 says=f"a step takes {show(step_s, 's')}, {ratio:.2f} times the plan's {show(predicted_s, 's')}: {says}")


def _cause(term: str, ranks: Sequence[Rank], strategy: Strategy, predicted: Mapping[str, float]) -> tuple[str, str]:
    if term == "data":
        return "data", f"it waits {show(max(r['data'] for r in ranks), 's')} for its data"
    # peers of a slow rank wait for it inside their backward, where gradients are summed: forward tells who it is
    slowest = max(range(len(ranks)), key=lambda r: ranks[r]["forward"] / _others(ranks, strategy, r))
    times = ranks[slowest]["forward"] / _others(ranks, strategy, slowest)
    if times > SLOW:
        return "slow rank", f"rank {slowest} takes {times:.2f} times as long as its peers for a forward"
    if term in ("waiting", "stragglers", "exposed_dp"):
        return "communication", f"ranks wait ({term} grew most)"
    forward, backward = (_growth(ranks, predicted, part) for part in ("forward", "backward"))
    if term == "backward" and backward > SLOW * forward and strategy.world_size > 1:
        return "communication", (f"backward, with what is sent in it, takes {backward:.2f} times the plan's, "
                                 f"forward {forward:.2f} times")
    return "kernel", f"{term} grew most, on all ranks alike (forward {forward:.2f}, backward {backward:.2f} times the plan's)"


def _growth(ranks: Sequence[Rank], predicted: Mapping[str, float], part: str) -> float:
    return median(rank[part] for rank in ranks) / predicted[part]


def _others(ranks: Sequence[Rank], strategy: Strategy, rank: int) -> float:
    """Return the median forward of a rank's peers, itself apart; its own where it has none."""
    others = [ranks[r]["forward"] for r in _peers(strategy, rank) if r != rank]
    return median(others) if others else ranks[rank]["forward"]


def _peers(strategy: Strategy, rank: int) -> list[int]:
    """Return the ranks of a rank's pipeline stage, itself included."""
    stage = coordinates(strategy, rank)["pp"]
    return [r for r in range(int(strategy.world_size)) if coordinates(strategy, r)["pp"] == stage]
