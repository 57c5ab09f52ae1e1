"""Seconds of a stage: its parts in a row, with the collectives over dp that run beside them.

Two streams per rank: computation, and communication over dp. In front of each part its weights may have to be
gathered (ZeRO-2, 3: one part ahead of the computation, as FSDP prefetches); behind each part's backward its
gradients are reduced. Computation slows down while communication runs beside it. Where communication cannot hide
(CPU), the two streams are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from profiles.model import Part
from profiles.ops import Num
from simulator.pricing import Prices, Seconds
from simulator.strategy import Strategy


class Run(NamedTuple):
    """`num` like parts in a row: seconds of computation (with tp), of the gather before, of the reduction after."""

    num: Num
    compute_s: Num
    gather_s: Num
    reduce_s: Num


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """One stage: its passes of one micro-batch, the tail of reductions after its last backward, its update.

    `last_backward_s` is the backward of the last micro-batch, where ZeRO-0 and 1 reduce gradients, and `tail_s` what their
    reductions need after it; `last_weight_s` and `weight_tail_s` the same where backward is split. Of these, `queued_s` and
    `weight_queued_s` are the seconds of reductions that hold up no computation. `first_forward_s`
    gathers weights that later micro-batches of a pipeline find gathered (ZeRO-2). `weight_s` is of a backward what makes the
    gradients of weights.
    """

    forward: Seconds
    backward: Seconds
    forward_s: Num
    first_forward_s: Num
    backward_s: Num
    weight_s: Num
    last_backward_s: Num
    tail_s: Num
    last_weight_s: Num
    weight_tail_s: Num
    queued_s: Num
    weight_queued_s: Num
    update_s: Num
    regather_s: Num


def stage_seconds(prices: Prices, strategy: Strategy, parts: list[tuple[Part, Num]]) -> StageSeconds:
    """Return the seconds of a stage made of these parts: a list of (part, how many in a row), each at least one."""
    zero, software = np.asarray(strategy.zero), strategy.software
    piped = np.asarray(strategy.pp) > 1
    each_time = (zero >= 2) & ~piped
    overlaps, beside = prices.overlaps, prices.beside

    def runs(pass_: str, gathers: Num, reduces: Num) -> list[Run]:
        order = parts if pass_ == "forward" else parts[::-1]
        priced = [(num, prices.parts[name]) for name, num in order]
        return [
            Run(num, getattr(p, pass_).total_s, p.gather_s * gathers, p.reduce_s * reduces) for num, p in priced
        ]

    forward = sum((prices.parts[p].forward * n for p, n in parts), Seconds())
    backward = sum((prices.parts[p].backward * n for p, n in parts), Seconds())
    # with a pipeline, FSDP keeps gathered weights (ZeRO-2) and whole gradients until the last micro-batch
    keeps = (zero == 2) & piped
    gather_forward, gather_backward = zero >= 2, zero == 3
    plain, _ = chain_s(runs("backward", gather_backward, each_time), overlaps, beside)
    blocked, blocked_tail = chain_s(runs("backward", gather_backward, zero >= 2), overlaps, beside)
    queued = runs("backward", 0.0, zero <= 1)
    queues = overlaps and software.grad_reduce
    queue_tail, reduced = queue_tail_s(queued, queues), sum(r.num * r.reduce_s for r in queued)
    slowed = beside * np.minimum(reduced, backward.total_s) * queues
    weight_s = sum(prices.parts[p].weight.total_s * n for p, n in parts)
    # where backward is split, reductions run beside the gradients of weights, when these are all that is left
    late, late_tail = chain_s(runs("weight", 0.0, zero >= 2), overlaps, beside)
    late_slowed = beside * np.minimum(reduced, weight_s) * queues
    late_queue = np.maximum(0.0, queue_tail_s(runs("weight", 0.0, zero <= 1), queues) - late_slowed)
    forward_s = chain_s(runs("forward", gather_forward & ~keeps, 0.0), overlaps, beside)[0]
    regather: Num = sum(prices.parts[p].regather_s * n for p, n in parts)
    if overlaps and software.param_gather:
        # the updated weights come in beside the next step's first passes
        regather = np.maximum(0.0, regather - forward_s) + beside * np.minimum(regather, forward_s)
    return StageSeconds(
        forward=forward, backward=backward, forward_s=forward_s,
        first_forward_s=chain_s(runs("forward", gather_forward, 0.0), overlaps, beside)[0],
        # the tail of an earlier micro-batch hides behind the next forward
        backward_s=plain, weight_s=weight_s, last_weight_s=np.where(zero >= 2, late, weight_s + late_slowed),
        weight_tail_s=np.where(zero >= 2, late_tail, late_queue),
        last_backward_s=np.where(zero >= 2, blocked, backward.total_s + slowed),
        tail_s=np.where(zero >= 2, blocked_tail, np.maximum(0.0, queue_tail - slowed)),
        queued_s=np.where(zero >= 2, blocked_tail, reduced), weight_queued_s=np.where(zero >= 2, late_tail, reduced),
        update_s=sum(prices.parts[p].update_s * n for p, n in parts),
        regather_s=regather + sum(prices.tie_s for p, _ in parts if p in ("embedding", "head")),
    )


def beside_s(compute_s: Num, comm_s: Num, beside: Num) -> Num:
    """Return seconds of computation and communication side by side: the longer, the computation slowed by the overlap."""
    return np.maximum(compute_s + beside * np.minimum(compute_s, comm_s), comm_s)


def chain_s(runs: list[Run], overlaps: bool, beside: Num = 0.0) -> tuple[Num, Num]:
    """Return seconds of parts whose gathers run one part ahead and whose reductions hold up the next but one.

    busy = g_1 + sum over parts of (compute beside gather of the next + reduction of the one before); the last
    reduction is the tail. The waiting rules are those of torch's `fully_shard`. Without overlap all adds up.
    """
    if not overlaps:
        busy = sum(r.num * (r.compute_s + r.gather_s) for r in runs)
        return busy + sum(r.num * r.reduce_s for r in runs), 0.0
    busy = runs[0].gather_s
    for i, (num, compute, gather, reduce) in enumerate(runs):
        before = runs[i - 1].reduce_s if i else 0.0
        after = runs[i + 1].gather_s if i + 1 < len(runs) else 0.0
        alone = beside_s(compute, after + before, beside)
        ends = beside_s(compute, gather + before, beside) + beside_s(compute, after + reduce, beside)
        inner = np.maximum(0, np.asarray(num) - 2) * beside_s(compute, gather + reduce, beside)
        busy = busy + np.where(np.asarray(num) == 1, alone, ends + inner)
    return busy, runs[-1].reduce_s


def queue_tail_s(runs: list[Run], overlaps: bool) -> Num:
    """Return seconds by which reductions, queued as parts finish their backward, outlast the computation.

    The end of a first-in-first-out queue: max over parts i of (ready_i + reductions from i on); inside a run of
    like parts this is linear in i, so its first and last part decide.
    """
    total_reduce = sum(r.num * r.reduce_s for r in runs)
    if not overlaps:
        return total_reduce
    total_compute = sum(r.num * r.compute_s for r in runs)
    ready: Num = 0.0
    reduced: Num = 0.0
    end: Num = 0.0
    for num, compute, _, reduce in runs:
        first = ready + compute + total_reduce - reduced
        last = ready + num * compute + total_reduce - reduced - (num - 1) * reduce
        end = np.maximum(end, np.maximum(first, last))
        ready, reduced = ready + num * compute, reduced + num * reduce
    return np.where(total_reduce > 0, np.maximum(0.0, end - total_compute), 0.0)
