"""Where the difference between two steps comes from: terms that add up to it, and that change sign with its direction.

A step is a sum of pieces, each a product of factors: the matmuls of a token are its FLOP, times 1 / peak, times 1 / their
efficiency. What a piece changes by is dealt to its factors in proportion to the logarithm of their ratios, which leaves no
rest and knows no order (LMDI-I: Ang, Energy Policy 2004, doi 10.1016/S0301-4215(03)00076-4); a factor that one side lacks
takes all of it. Seconds are those of one GPU for one token, so that steps of any batch on any number of GPUs compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from profiles.cost import CostModel
from profiles.model import ModelSpec, Part
from simulator.breakdown import breakdown
from simulator.kernel_sums import (
    COMPUTED,
    Sums,
    kernels_of_parts,
    mean_rank,
    model_flop,
    priced_parts,
    ratio,
    recomputed_share,
    work_per_token,
)
from simulator.layout import coordinates, rank_parts
from simulator.strategy import Strategy
from simulator.timeline import Timeline
from simulator.workload import Workload

EFFICIENCY = (*COMPUTED, "pointwise", "routing", "vocabulary", "casts", "copies")
"""Terms of kernels; `copies` are additions of gradients, and what FSDP copies."""
TERMS = ("model_work", "extra_work", "peak", "bandwidth", *EFFICIENCY, "recompute", "imbalance", "launch", "slowed",
         "forward", "backward", "exposed_tp", "exposed_cp", "exposed_ep", "exposed_pp", "exposed_dp", "bubble", "optimizer",
         "stragglers", "waiting", "data", "other")
"""All terms, in the order in which they are shown; forward, backward and waiting are those of measured steps only."""
LACKED = tuple(dict.fromkeys(("stragglers", "bubble", "imbalance", "recompute", *TERMS)))
"""Which term takes a piece that one side lacks, where it lacks several of its factors: losses before what they last for."""

Piece = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """The number of one side that a term is about, in SI; a ratio is a share of the step, or of what the term's kernels do."""

    value: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposed:
    """A step as pieces, GPU-seconds of a token by term or terms, and what each term is about."""

    pieces: dict[str, Piece]
    about: dict[str, Quantity]
    tokens_per_gpu: float

    @property
    def gpu_s_per_token(self) -> float:
        """Return what all pieces come to."""
        return _total(self.pieces)


def waterfall(first: Decomposed, second: Decomposed) -> dict[str, float]:
    """Return by term what leads from one step to the other, GPU-seconds of a token; together they are the difference."""
    changes: dict[str, float] = {}
    for name in {**first.pieces, **second.pieces}:
        for term, change in _dealt(first.pieces.get(name, {}), second.pieces.get(name, {})).items():
            changes[term] = changes.get(term, 0.0) + change
    return {term: changes[term] for term in TERMS if term in changes}


def _dealt(first: Piece, second: Piece) -> dict[str, float]:
    """Return a piece's change by factor: L ln(b/a) of a factor from a to b, L the logarithmic mean of the two products."""
    factors = {**first, **second}
    x, y = _product(first), _product(second)
    lacking = [f for f in factors if min(first.get(f, 0.0), second.get(f, 0.0)) <= 0]
    if lacking:
        return {min(lacking, key=LACKED.index): y - x}
    logs = {f: math.log(second[f] / first[f]) for f in factors}
    # near 1 a ratio's logarithm is exact by what it is above 1, far from it by itself
    growth = (y - x) / x
    mean = (y - x) / (math.log1p(growth) if abs(growth) < 0.5 else math.log(y / x)) if growth else x
    return {f: mean * log for f, log in logs.items()}


def _product(piece: Piece) -> float:
    return math.prod(piece.values()) if piece else 0.0


def decompose(workload: Workload, cost: CostModel, timeline: Timeline, parts: Mapping[str, float]) -> Decomposed:
    """Return a replayed step as pieces; `parts` is its breakdown, on the busiest rank, sends apart.

    Computation is that of the mean rank, kind by kind; how much more the busiest computes is the imbalance of the stages.
    The bubble is a share of what stands in passes, and waiting for the slowest a share of all.
    """
    strategy, accelerator = workload.strategy, cost.cluster.accelerator
    token = float(strategy.world_size) / float(strategy.tokens_per_step)
    ranks = rank_parts(workload.model, int(strategy.pp), int(strategy.chunks), strategy.split, str(strategy.schedule))
    plain, again = (mean_rank(workload, ranks, kernels) for kernels in kernels_of_parts(workload, cost))
    model = work_per_token(workload.model, strategy)
    seconds = _losses(workload, cost, ranks, _busiest_stage(timeline, strategy), parts)
    kernels_s = sum(float(s[0]) for s in (*plain.values(), *again.values()))
    seconds["copies"] = seconds.pop("computed") - kernels_s
    pieces = _pieces(seconds, _kernel_pieces(model, plain, again, token, accelerator.memory_bytes_per_s), model, token,
                     accelerator.memory_bytes_per_s)
    step_s = sum(parts.values())
    shares = {kind: float(sums[0]) for kind, sums in plain.items()} | seconds
    shares["recompute"] = sum(float(sums[0]) for sums in again.values())
    terms = {term for piece in pieces.values() for term in piece}
    about = {term: Quantity(value=shares.get(term, 0.0) / step_s, unit="ratio") for term in TERMS if term in terms}
    about |= _about_work(model_flop(model), plain, accelerator.memory_bytes_per_s, token)
    return Decomposed(pieces=pieces, about=about, tokens_per_gpu=1 / token)


def _losses(
    workload: Workload, cost: CostModel, ranks: list[list[tuple[Part, int]]], busiest: int, parts: Mapping[str, float]
) -> dict[str, float]:
    """Return the seconds of a step beside its kernels, by term, and what the mean rank computes (`computed`)."""
    launched_s, alone_s = priced_parts(workload, cost)
    times = int(workload.strategy.num_microbatches)
    alone, launched = (
        [times * sum(num * seconds[name] for name, num in rank) for rank in ranks] for seconds in (alone_s, launched_s)
    )
    computed = sum(alone) / len(ranks)
    slowed = parts["compute"] - alone[busiest] - launched[busiest]
    fixed_s = min(workload.strategy.software.step_s, parts["other"])
    return dict(parts) | {
        "computed": computed, "imbalance": alone[busiest] - computed, "launch": launched[busiest],
        "slowed": max(0.0, slowed), "stragglers": parts["other"] - fixed_s, "other": fixed_s,
        # pairs of passes are drawn shorter by the exchanges between experts that they hide
        "exposed_ep": parts["exposed_ep"] + min(0.0, slowed),
    }


def _pieces(
    seconds: Mapping[str, float], kernels: dict[str, Piece], model: Mapping[str, float], token: float, bandwidth: float
) -> dict[str, Piece]:
    """Return a step's pieces; what is lost beside kernels is lost for each FLOP of the model, as a larger one loses more."""
    flop = model_flop(model)

    def lost(*terms: str) -> dict[str, Piece]:
        return {term: {term: token * seconds[term] / flop, "model_work": flop} for term in terms}

    inside = ("launch", "slowed", "exposed_tp", "exposed_cp", "exposed_ep")
    outside = ("exposed_pp", "exposed_dp", "optimizer")
    pieces = kernels | lost("copies")
    computed_s = _total(pieces)
    pieces |= _stretched(pieces, "imbalance", token * seconds["imbalance"] / computed_s)
    pieces |= lost(*inside)
    pieces |= _stretched(pieces, "bubble", token * seconds["bubble"] / _total(pieces))
    pieces |= lost(*outside) | {"data": {"data": token * seconds["data"]}}
    update = pieces["optimizer"]
    pieces["optimizer"] = {**update, "optimizer": update["optimizer"] * bandwidth, "bandwidth": 1 / bandwidth}
    pieces |= _stretched(pieces, "stragglers", token * seconds["stragglers"] / _total(pieces))
    return pieces | {"other": {"other": token * seconds["other"]}}


def _total(pieces: Mapping[str, Piece]) -> float:
    return sum(map(_product, pieces.values()))


def _stretched(pieces: Mapping[str, Piece], term: str, factor: float) -> dict[str, Piece]:
    """Return what a loss that lasts a share of some pieces adds to each of them."""
    return {f"{name}, {term}": {term: factor, **piece} for name, piece in pieces.items()}


def _kernel_pieces(
    model: Mapping[str, float], plain: Sums, again: Sums, token: float, bandwidth: float
) -> dict[str, Piece]:
    """Return the kernels of the mean rank as pieces, by kind; what is computed again is a share of what is computed."""
    pieces: dict[str, Piece] = {}
    for kind in EFFICIENCY[:-1]:
        seconds, flop, ideal_s = (token * float(v) for v in plain.get(kind, (0.0, 0.0, 0.0)))
        work = model.get(kind, 0.0)
        if kind in COMPUTED:
            factors = {"model_work": work, "extra_work": ratio(flop, work), "peak": ratio(ideal_s, flop),
                       kind: ratio(seconds, ideal_s)}
        else:
            # no model asks for casts: they go with its FLOP
            asked = work or model_flop(model)
            factors = {kind: seconds * bandwidth / asked, "model_work": asked, "bandwidth": 1 / bandwidth}
        pieces[kind] = factors
        repeated = token * float(again[kind][0]) if kind in again else 0.0
        pieces[f"{kind}, again"] = {"recompute": ratio(repeated, seconds), **factors}
    return pieces


def _about_work(model: float, plain: Sums, bandwidth: float, token: float) -> dict[str, Quantity]:
    """Return what is not a share of the step: FLOP, peak, bandwidth, and the efficiency of each kind that has FLOP."""
    flop, ideal_s = (sum(float(plain[k][i]) for k in COMPUTED if k in plain) for i in (1, 2))
    return {
        "model_work": Quantity(value=model, unit="FLOP/token"),
        "extra_work": Quantity(value=ratio(token * flop, model), unit="ratio"),
        "peak": Quantity(value=ratio(flop, ideal_s), unit="FLOP/s"),
        "bandwidth": Quantity(value=bandwidth, unit="bytes/s"),
    } | {
        k: Quantity(value=ratio(float(plain[k][2]), float(plain[k][0])) if k in plain else 0.0, unit="ratio")
        for k in COMPUTED
    }


def decompose_recorded(model: ModelSpec, strategy: Strategy, seconds: Mapping[str, float]) -> Decomposed:
    """Return a step by the terms that a run records: forward and backward, with what communicates inside, and the rest.

    How many FLOP a token takes, and how many of backward are those of recomputation, follow from its strategy.
    """
    token = float(strategy.world_size) / float(strategy.tokens_per_step)
    flop, step_s = model_flop(work_per_token(model, strategy)), sum(seconds.values())
    repeats = 1 + recomputed_share(model, strategy)
    pieces: dict[str, Piece] = {term: {term: token * s} for term, s in seconds.items()}
    pieces["forward"] = {"forward": token * seconds["forward"] / flop, "model_work": flop}
    pieces["backward"] = {"backward": token * seconds["backward"] / flop / repeats, "model_work": flop, "recompute": repeats}
    about = {term: Quantity(value=s / step_s, unit="ratio") for term, s in seconds.items()} | {
        "model_work": Quantity(value=flop, unit="FLOP/token"),
        "recompute": Quantity(value=repeats - 1, unit="ratio"),
    }
    return Decomposed(pieces=pieces, about=about, tokens_per_gpu=1 / token)


def _busiest_stage(timeline: Timeline, strategy: Strategy) -> int:
    """Return the pipeline rank of the rank that computes most, as `breakdown` chooses it."""
    def computing_s(rank: int) -> float:
        parts = breakdown(Timeline(rows=timeline.rank(rank), step_time_s=timeline.step_time_s))
        return parts["compute"] + parts["optimizer"]

    return int(coordinates(strategy, int(max(timeline.rows["rank"].unique(), key=computing_s)))["pp"])
