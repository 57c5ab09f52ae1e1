"""Layers of pipeline stages on unlike accelerators: the splits under which all ranks take equally long.

A rank's seconds of a micro-batch are those of its layers and of what else it holds (embedding, head), on its own kind of
accelerator. They depend on the strategy a little, so each of some usual ones gives a split, and steps from there towards layers
in proportion to memory others. The search prices them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.question import Question
from planner.rules import first_broken
from profiles.cost import cost_model
from profiles.model import Part
from simulator.layout import covered_parts, devices
from simulator.pricing import price
from simulator.schedules import rank_stages
from simulator.strategy import Strategy
from simulator.workload import build_workload

TOWARDS_MEMORY = (0.5, 1.0)
"""How far a split goes from equal seconds to layers in proportion to memory: a fast rank may have no room for more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What balances one way: the load of each layer on each pipeline rank, [rank, layer], of embedding and head, [rank].

    `places` are the parts of a pool over which each rank lies.
    """

    places: tuple[tuple[int, ...], ...]
    layers: NDArray[np.float64]
    embedding: NDArray[np.float64]
    head: NDArray[np.float64]


def balanced_splits(num_ranks: int, schedule: str, chunks: int, loads: Sequence[Loads]) -> tuple[str, ...]:
    """Return the layers of each stage, as `Strategy.layers` writes them, under which loads are balanced.

    Of splits that give each part of the pool as many layers the first is returned.
    """
    stages = [rank_stages(schedule, rank, num_ranks, chunks) for rank in range(num_ranks)]
    last = num_ranks * chunks - 1
    found: dict[tuple[int, ...], str] = {}
    for load in loads:
        fixed = load.embedding * [0 in own for own in stages] + load.head * [last in own for own in stages]
        # every stage but the ends needs a layer
        least = [max(0, len(own) - (0 in own) - (last in own)) for own in stages]
        counts = balanced_counts(load.layers, fixed, least)
        if counts is None:
            continue
        of_stage = dict(pair for own, num in zip(stages, counts, strict=True) for pair in _over_chunks(own, num, last))
        own = Counter[tuple[int, ...]]()
        for place, num in zip(load.places, counts, strict=True):
            own[place] += num
        found.setdefault(tuple(own.values()), "-".join(str(of_stage[stage]) for stage in range(last + 1)))
    return tuple(found.values())


def _over_chunks(stages: Sequence[int], num: int, last: int) -> list[tuple[int, int]]:
    """Return so many layers dealt evenly to the stages of a rank; those with embedding or head get fewer."""
    order = sorted(stages, key=lambda stage: (stage in (0, last), stage))
    each, more = divmod(num, len(order))
    return [(stage, each + (i < more)) for i, stage in enumerate(order)]


def balanced_counts(
    layers: NDArray[np.float64], fixed: NDArray[np.float64], least: Sequence[int]
) -> tuple[int, ...] | None:
    """Return how many layers each rank takes, in order, so that the largest load is as small as can be; None where a rank
    cannot have its least.

    Exact: best[r, j] = min over i of max(best[r - 1, i], load of layers i to j on rank r). Of equal ones the sum of squares
    decides, so that all ranks are as even as they can be.
    """
    num_ranks, num_layers = layers.shape
    if sum(least) > num_layers:
        return None
    sums = np.concatenate([np.zeros((num_ranks, 1)), np.cumsum(layers, axis=1)], axis=1)
    most = _least_maximum(sums, fixed, least)
    best, choices = np.full(num_layers + 1, np.inf), []
    best[0] = 0.0
    for rank in range(num_ranks):
        loads = _loads(sums[rank], fixed[rank], least[rank])
        squares = best[:, None] + np.where(loads <= most * (1 + 1e-12), loads, np.inf) ** 2
        choices.append(squares.argmin(axis=0))
        best = squares.min(axis=0)
    if not np.isfinite(best[-1]):
        return None
    ends = [num_layers]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return tuple(np.diff(ends[::-1]).tolist())


def _least_maximum(sums: NDArray[np.float64], fixed: NDArray[np.float64], least: Sequence[int]) -> float:
    best = np.full(sums.shape[1], np.inf)
    best[0] = 0.0
    for rank, own in enumerate(sums):
        best = np.maximum(best[:, None], _loads(own, fixed[rank], least[rank])).min(axis=0)
    return float(best[-1])


def _loads(sums: NDArray[np.float64], fixed: float, least: int) -> NDArray[np.float64]:
    """Return a rank's load with the layers from i to j, [i, j]; infinite where these are too few."""
    index = np.arange(len(sums))
    return np.where(index[None] - index[:, None] >= least, sums[None] - sums[:, None] + fixed, np.inf)


def loads_of(question: Question, pp: int) -> tuple[Loads, ...]:
    """Return the loads that pipeline ranks of a pool may balance: seconds under usual strategies, and memory."""
    model, accelerator = question.model, question.cluster.accelerator
    usual = _usual(question, pp)
    prices = price(build_workload(model, usual), cost_model(question.cluster))
    places = tuple(covered_parts([num for _, num in accelerator.parts], pp))
    names = [model.kinds[kind].name for kind in model.pattern]

    def seconds(part: Part) -> NDArray[np.float64]:
        """Return the seconds of a part, [strategy, rank]."""
        passes = ((p.forward.total_s + p.backward.total_s) for p in (prices.at(place).parts[part] for place in places))
        return np.stack([np.broadcast_to(one, (len(usual),)) for one in passes], axis=1)

    known = {part: seconds(part) for part in dict.fromkeys((*names, "embedding", "head", *(["mtp"] * bool(model.mtp_layers))))}
    head = known["head"] + (model.mtp_layers * known["mtp"] if model.mtp_layers else 0.0)
    found = [
        Loads(places=places, layers=np.stack([known[name][i] for name in names], axis=1), embedding=known["embedding"][i],
              head=head[i])
        for i in range(len(usual))
    ]
    room = np.array([min(k.memory_bytes - k.framework_bytes for k in kinds) for kinds in devices(accelerator, pp)])
    typical = found[-1].layers
    speed = 1 / typical.mean(axis=1)
    for share in TOWARDS_MEMORY:
        mixed = (speed / speed.mean()) ** (1 - share) * (room / room.mean()) ** share
        found.append(Loads(places=places, layers=np.broadcast_to(1 / mixed[:, None], typical.shape), embedding=np.zeros(pp),
                           head=np.zeros(pp)))
    return tuple(found)


def _usual(question: Question, pp: int) -> Strategy:
    """Return usual strategies of a number of pipeline ranks as a batch: tp of one and of all that a node and the model can
    have, with and without recomputation."""
    size = question.cluster.num_gpus // pp
    tps = [tp for tp in (1, 4, 8) if size % tp == 0 and question.cluster.gpus_per_node % tp == 0]
    rows = [(tp, recompute) for tp in tps for recompute in ("none", "full")]
    tp = np.array([tp for tp, _ in rows])
    batch = Strategy(
        dp=size // tp, tp=tp, pp=pp, recompute=np.array([recompute for _, recompute in rows]), precision=question.precision,
        seq_len=question.seq_len, software=question.software, lora_rank=question.lora_rank, lora_targets=question.lora_targets,
        num_microbatches=np.maximum(1, question.global_batch // (size // tp)),
    )
    whole = replace(question, global_batch=int(np.lcm.reduce(batch.dp)))
    legal = np.flatnonzero(first_broken(batch, whole) < 0)
    return batch.pick(legal if len(legal) else np.arange(1))
