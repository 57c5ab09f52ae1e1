"""Does a strategy fit, with how much room, and what would make it fit.

Changes are tried one at a time, in pairs where single ones are too few, and then whole strategies on more and more
accelerators. Memory is priced for all of them in one batch; time for those that fit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.differences import ASKED, differences
from planner.offloading import offload_ways
from planner.predict import Prediction, predict
from planner.question import Question
from planner.rules import first_broken, illegal_reason, num_experts
from planner.space import divisors
from profiles.cost import cost_model
from profiles.hardware import Cluster
from simulator.estimate import estimate
from simulator.memory import peak_memory
from simulator.strategy import RECOMPUTE, Strategy
from simulator.workload import build_workload

NUM_WANTED = 3
"""Changes below which pairs are tried, too."""
NUM_SHOWN = 8
MOST_GPUS = 2**14
"""Accelerators beyond which the search for the fewest stops."""
LONGEST_SEQUENCE = 2**24
MOST_SEQUENCES = 2**20
ONE_FOR_ALL = ("precision", "context", "order", "seq_len", "imbalance", "lora_rank", "lora_targets", "software")
"""Fields of a strategy that a batch has once."""
AXES = ("tp", "pp", "cp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A strategy that fits, what of it is other than asked, and its price; changes of rates are relative to the one asked.

    `tokens_per_s_per_gpu_change` is what changes are ranked by: accelerators' time for a token.
    """

    title: str
    strategy: Strategy
    num_gpus: int
    peak_memory_bytes: float
    step_time_s: float
    tokens_per_s: float
    tokens_per_s_change: float
    tokens_per_s_per_gpu_change: float

    def as_dict(self) -> dict[str, Any]:
        """Return the change with plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What fits: the prediction of what was asked, the largest that fits in its place, and what would make it fit.

    `largest_micro_batch` at as many micro-batches, so of a larger step; `largest_dividing_micro_batch` of the same global
    batch; `largest_seq_len` is a multiple of `seq_len_step`. 0: not even the smallest. `changes` are empty where it fits, as is
    `fewest_gpus`: the fewest accelerators (halves of a node, then nodes doubled) on which any strategy does.
    """

    question: Question
    prediction: Prediction
    room_bytes: float
    largest_micro_batch: int
    largest_dividing_micro_batch: int
    largest_seq_len: int
    seq_len_step: int
    changes: tuple[Change, ...] = ()
    fewest_gpus: Change | None = None


def fit(question: Question, strategy: Strategy) -> Fit:
    """Return whether a legal strategy fits, with how much room, and what would make it fit."""
    prediction = predict(question, strategy)
    step = _sequence_step(strategy)
    found = Fit(
        question=question, prediction=prediction, room_bytes=prediction.usable_memory_bytes - prediction.peak_memory_bytes,
        largest_micro_batch=largest_micro_batch(question, strategy),
        largest_dividing_micro_batch=largest_dividing_micro_batch(question, strategy),
        largest_seq_len=largest_seq_len(question, strategy, step), seq_len_step=step,
    )
    if prediction.fits:
        return found
    moves = _moves(question, strategy)
    single = _made(question, strategy, [(move,) for move in moves])
    changes = _fitting(question, prediction, _stacked(single))
    if len(changes) < NUM_WANTED:
        # a pair of which one alone is enough would only cost more
        alone = {change.strategy for change in changes}
        short = [move for move in moves if not alone.intersection(_made(question, strategy, [(move,)]))]
        pairs = _made(question, strategy, list(itertools.combinations_with_replacement(short, 2)))
        changes += _fitting(question, prediction, _stacked([pair for pair in pairs if pair not in single]))
    ranked = sorted(changes, key=lambda c: (c.num_gpus > question.cluster.num_gpus, -c.tokens_per_s_per_gpu_change))
    return replace(found, changes=tuple(ranked[:NUM_SHOWN]), fewest_gpus=fewest_gpus(question, prediction))


def fits(question: Question, strategy: Strategy) -> NDArray[np.bool_]:
    """Return where a batch of strategies fits into the accelerator's memory."""
    memory = peak_memory(build_workload(question.model, strategy), question.cluster.accelerator)
    return np.broadcast_to(np.asarray(memory.fits), (len(strategy),))


def largest_micro_batch(question: Question, strategy: Strategy) -> int:
    """Return the largest micro-batch that fits at as many micro-batches; 0: none."""
    return _largest(lambda sizes: fits(question, replace(strategy, micro_batch=sizes)), MOST_SEQUENCES, 64)


def largest_dividing_micro_batch(question: Question, strategy: Strategy) -> int:
    """Return the largest micro-batch that fits of those that divide a rank's share of the global batch; 0: none."""
    share = question.global_batch // int(strategy.dp)
    sizes = np.array(divisors(share))
    batch = replace(strategy, micro_batch=sizes, num_microbatches=share // sizes)
    return int(max(sizes[fits(question, batch) & (first_broken(batch, question) < 0)], default=0))


def largest_seq_len(question: Question, strategy: Strategy, step: int) -> int:
    """Return the longest sequence that fits, a multiple of `step`; positions that are learned bound it. 0: none."""
    longest = question.model.max_seq_len if question.model.learned_positions else LONGEST_SEQUENCE

    def of(multiples: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.array([bool(fits(question, replace(strategy, seq_len=int(k) * step))[0]) for k in multiples])

    return step * _largest(of, longest // step, 4)


def _largest(holds: Callable[[NDArray[np.int64]], NDArray[np.bool_]], most: int, width: int) -> int:
    """Return the largest number from 1 to `most` that holds, where all below it do; each call tries `width` of them."""
    low, high = 0, most + 1
    while high - low > 1:
        tried = np.unique(np.geomspace(low + 1, high - 1, width).astype(np.int64))
        held = int(np.argmin([*holds(tried), False]))
        low, high = (int(tried[held - 1]) if held else low), (int(tried[held]) if held < len(tried) else high)
    return low


def _sequence_step(strategy: Strategy) -> int:
    """Return what a sequence length has to be a multiple of: its pieces on cp and tp ranks, and 128 tokens."""
    return math.lcm(128, 2 * int(strategy.cp), int(strategy.tp) * int(strategy.cp))


Move = Callable[[Strategy], Strategy | None]
"""One change of a strategy; None where there is none to make. Degrees may then ask for more accelerators."""


def _moves(question: Question, strategy: Strategy) -> list[Move]:
    """Return the single changes: an axis doubled out of another one or on twice the nodes, more sharding, recomputation,
    smaller micro-batches, another schedule."""
    moves: list[Move] = [_doubled(axis, source) for axis in AXES for source in ("dp", *AXES) if axis != source]
    if question.cluster.table is None and not question.cluster.parts:
        moves += [_doubled(axis, "") for axis in ("dp", *AXES)]
    moves += [_set(zero=level) for level in range(int(strategy.zero) + 1, 4)]
    moves += [_set(recompute=kind, recompute_share=1.0) for kind in RECOMPUTE[1:]]
    moves += [_set(offload=way, offload_share=1.0) for way in offload_ways(question) if way != strategy.offload]
    sizes = {int(strategy.micro_batch) // 2, 1} - {0, int(strategy.micro_batch)}
    moves += [_set(micro_batch=size) for size in sorted(sizes, reverse=True)]
    moves += [_set(sequence_parallel=True), _set(chunks=1, schedule="1F1B", layers="")]
    if num_experts(question.model) > 1:
        moves.append(lambda s: replace(s, ep=s.ep * 2))
    return moves


def _doubled(axis: str, source: str) -> Move:
    def move(s: Strategy) -> Strategy | None:
        if source and getattr(s, source) % 2:
            return None
        halved: dict[str, Any] = {source: getattr(s, source) // 2} if source else {}
        own: dict[str, Any] = {"layers": ""} if "pp" in (axis, source) else {}
        # one stage is no pipeline: neither chunks nor an order of passes
        own |= {"chunks": 1, "schedule": "1F1B"} if halved.get("pp") == 1 else {}
        return replace(s, **({axis: getattr(s, axis) * 2} | halved | own))

    return move


def _set(**values: Any) -> Move:
    return lambda s: replace(s, **values)


def _made(question: Question, strategy: Strategy, turns: Sequence[Sequence[Move]]) -> list[Strategy]:
    """Return the legal strategies that moves make, each once, at the same global batch."""
    known, found = {strategy}, list[Strategy]()
    for moves in turns:
        made: Strategy | None = strategy
        for move in moves:
            made = move(made) if made else None
        if made is None:
            continue
        made = replace(made, num_microbatches=max(1, question.global_batch // int(made.dp * made.micro_batch)))
        if made not in known and illegal_reason(made, _on(question, int(made.world_size))) is None:
            known.add(made)
            found.append(made)
    return found


def _on(question: Question, num_gpus: int) -> Question:
    """Return the question on so many accelerators: nodes like those of its cluster, or a part of one."""
    return question if num_gpus == question.cluster.num_gpus else replace(question, cluster=_sized(question.cluster, num_gpus))


def _sized(cluster: Cluster, num_gpus: int) -> Cluster:
    if num_gpus < cluster.gpus_per_node:
        return replace(cluster, gpus_per_node=num_gpus, num_nodes=1)
    return replace(cluster, num_nodes=-(-num_gpus // cluster.gpus_per_node))


def _stacked(strategies: Sequence[Strategy]) -> Strategy | None:
    """Return strategies as one batch, if there are any; what a batch has once is the same in all."""
    if not strategies:
        return None
    varied = [f.name for f in fields(Strategy) if f.name not in ONE_FOR_ALL]
    values: dict[str, Any] = {name: np.array([getattr(s, name) for s in strategies]) for name in varied}
    return replace(strategies[0], **values)


def _fitting(question: Question, asked: Prediction, batch: Strategy | None) -> list[Change]:
    """Return those of a batch of legal strategies that fit, priced; memory in one pass, time in one for each cluster."""
    if batch is None:
        return []
    memory, num = peak_memory(build_workload(question.model, batch), question.cluster.accelerator), np.size(batch.tp)
    peaks, fitting = np.broadcast_to(memory.peak_bytes, num), np.flatnonzero(np.broadcast_to(memory.fits, num))
    sizes = np.broadcast_to(batch.world_size, num)
    found = []
    for num_gpus in np.unique(sizes[fitting]):
        here = fitting[sizes[fitting] == num_gpus]
        priced = estimate(build_workload(question.model, batch.pick(here)), cost_model(_on(question, int(num_gpus)).cluster))
        steps = np.broadcast_to(priced.step_time_s, len(here))
        found += [_change(asked, batch.pick(int(i)), float(peaks[i]), float(step)) for i, step in zip(here, steps, strict=True)]
    return found


def _change(asked: Prediction, strategy: Strategy, peak_bytes: float, step_s: float) -> Change:
    rate, num = float(strategy.tokens_per_step) / step_s, int(strategy.world_size)
    size = "" if num == asked.strategy.world_size else f"{asked.strategy.world_size} -> {num} accelerators"
    return Change(
        title=", ".join(filter(None, [size, differences(asked.strategy, strategy, hidden=ASKED)])),
        strategy=strategy, num_gpus=num, peak_memory_bytes=peak_bytes,
        step_time_s=step_s, tokens_per_s=rate, tokens_per_s_change=rate / asked.tokens_per_s - 1,
        tokens_per_s_per_gpu_change=rate / num / asked.tokens_per_s_per_gpu - 1,
    )


def fewest_gpus(question: Question, asked: Prediction) -> Change | None:
    """Return the fastest strategy on the fewest accelerators on which any fits: parts of a node halved, nodes doubled.

    None where none fits, and of a pool, whose parts are what they are.
    """
    if question.cluster.parts:
        return None
    node = question.cluster.gpus_per_node
    sizes = [d for d in divisors(node) if d & (d - 1) == 0 or d == node]
    while sizes[-1] < MOST_GPUS:
        sizes.append(2 * sizes[-1])
    if question.cluster.table is not None:
        sizes = [size for size in sizes if size <= question.cluster.num_gpus]
    for num_gpus in sizes:
        on = _on(question, num_gpus)
        found = _fitting(question, asked, _frugal(on, asked.strategy))
        if found:
            return max(found, key=lambda c: c.tokens_per_s)
    return None


def _frugal(question: Question, asked: Strategy) -> Strategy | None:
    """Return legal strategies that hold little: micro-batches of one, full recomputation, every split, ZeRO level and way to
    offload."""
    num, experts = question.cluster.num_gpus, num_experts(question.model)
    sizes, ways = divisors(num), ("none", *offload_ways(question))
    rows = np.array([
        (num // (tp * pp * cp), tp, pp, cp, ep, zero, way)
        for tp, pp, cp in itertools.product(sizes, repeat=3) if num % (tp * pp * cp) == 0
        for ep in (divisors(experts) if experts else [1]) for zero in range(4)
        for way in range(len(ways))
    ])
    dp, tp, pp, cp, ep, zero, way = rows.T
    batch = replace(
        asked, dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, etp=np.ones_like(ep), zero=zero, shard_group=0, sequence_parallel=True,
        recompute=np.full(len(dp), "full"), recompute_share=1.0, schedule="1F1B", chunks=1, layers="", micro_batch=1,
        offload=np.array(ways)[way], offload_share=1.0, num_microbatches=np.maximum(1, question.global_batch // dp),
    )
    is_legal = first_broken(batch, question) < 0
    return batch.pick(is_legal) if is_legal.any() else None
