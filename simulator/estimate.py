"""The step in closed form, over arrays: the planner's fast price of a whole batch of strategies.

Uniform stages: (m + p - 1)(f + b), plus what sends add (`send_delay_s`); less where backward is split
(`bubble_share`). Uneven stages: the sum over stages once, and the slowest stage for each further micro-batch. The
replay is exact; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np

from profiles.cost import CostModel
from profiles.ops import Num
from simulator.layout import stage_parts
from simulator.pricing import Prices, Seconds, price
from simulator.schedules import rank_stages, stage_rank
from simulator.stages import StageSeconds, stage_seconds
from simulator.strategy import Pipe, Strategy, by_pipe
from simulator.workload import Workload

BREAKDOWN = ("compute", "bubble", "exposed_tp", "exposed_pp", "exposed_dp", "exposed_cp", "exposed_ep", "optimizer",
             "data", "other")
"""What a step's seconds are made of, on its busiest stage; they add up to the step."""
P90_Z = 1.2816
"""Standard normal quantile of 90 per cent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A step's seconds (with the 10th and 90th percentile) and what they are made of; fields may be arrays."""

    step_time_s: Num
    p10_s: Num
    p90_s: Num
    breakdown_s: dict[str, Num]


def send_delay_s(strategy: Strategy, send_s: Num) -> Num:
    """Return what sends add to a pipeline's step.

    One way through and back, 2(p v - 1) sends. Under 1F1B the first stage waits for that round trip again each time its
    p micro-batches in flight are used up, and a round that is cut short costs two sends for each micro-batch after
    its second: with q, r = divmod(m - 1, p), 2(p - 1)(q + 1) + 2 max(0, r - 1). Where a rank waits for what it sends
    (without `pp_overlap`), its passes are longer by it: 2(m v + p - 1) - 3, or m(2 v - 1) + 1 over two ranks, whose ends
    have one neighbour (GPipe: 2(m + p - 2)). Exact for uniform stages and sends shorter than the passes, but some sends
    too many for waiting ranks with chunks (the replay is the oracle).
    """
    p, m = np.asarray(strategy.pp), np.asarray(strategy.num_microbatches)
    rounds, rest = np.divmod(m - 1, p)
    steady = 2 * (p - 1) * rounds + 2 * np.maximum(0, rest - 1)
    v = np.asarray(strategy.chunks)
    sends = 2 * (p * v - 1) + np.where(np.asarray(strategy.schedule) == "1F1B", steady, 0)
    if not strategy.software.pp_overlap:
        sends = np.where(p > 2, 2 * (m * v + p - 1) - 3, m * (2 * v - 1) + 1)
        sends = np.where(np.asarray(strategy.schedule) == "GPipe", 2 * (m + p - 2), sends)
    return sends * np.where(p > 1, send_s, 0.0)


def bubble_share(schedule: str, forward_s: Num, backward_s: Num, weight_s: Num) -> Num:
    """Return what a rank stands still for each other rank of the pipe, over f + b, its passes of a micro-batch.

    f + b where backward is whole; f + i - w, and no less than i, where the gradients of inputs, i = b - w, go first
    (arXiv 2401.10241, section 2.2); the longer of f and i under ZBV (arXiv 2405.15362); f + 2 i - w under DualPipeV
    (arXiv 2412.19437, table 2). Exact for uniform stages (the replay is the oracle) but for DualPipeV, where it is so
    for f = i = w.
    """
    f, w = forward_s, weight_s
    i = backward_s - w
    still = {"ZBH1": np.maximum(f + i - w, i), "ZBV": np.maximum(f, i), "DualPipeV": f + 2 * i - w}
    still["InterleavedZeroBubble"] = still["ZBH1"]
    return still[schedule] / np.maximum(f + backward_s, 1e-30) if schedule in still else 1.0


def estimate(workload: Workload, cost: CostModel) -> Estimate:
    """Return the step of each strategy in closed form."""
    strategy, prices = workload.strategy, price(workload, cost)
    pipes = by_pipe(strategy)
    if len(pipes) == 1:
        return estimate_pipe(workload, prices, pipes[0], cost)
    results: dict[str, Num] = {}
    for pipe in pipes:
        some = replace(workload, strategy=strategy.pick(pipe.where))
        part = estimate_pipe(some, prices.pick(pipe.where), pipe, cost)
        for name, value in (("step_time_s", part.step_time_s), ("p10_s", part.p10_s), ("p90_s", part.p90_s),
                            *part.breakdown_s.items()):
            results.setdefault(name, np.zeros(len(strategy)))[pipe.where] = value
    return Estimate(
        step_time_s=results["step_time_s"], p10_s=results["p10_s"], p90_s=results["p90_s"],
        breakdown_s={name: results[name] for name in BREAKDOWN},
    )


def estimate_pipe(
    workload: Workload, prices: Prices, pipe: Pipe, cost: CostModel, known: dict[object, StageSeconds] | None = None
) -> Estimate:
    """Return the step of strategies that cut the model into the same stages, under one schedule.

    `known` keeps the seconds of stages by their parts, for other pipes of the same strategies and prices.
    """
    strategy, pp, chunks = workload.strategy, pipe.pp, pipe.chunks
    m = np.asarray(strategy.num_microbatches)
    where = prices.places(pp)
    stages = [(tuple(parts), where[stage_rank(pipe.schedule, s, pp)])
              for s, parts in enumerate(stage_parts(workload.model, pp, chunks, pipe.split))]
    each = {} if known is None else known
    for stage in dict.fromkeys(stages):
        if stage not in each:
            each[stage] = stage_seconds(prices.at(stage[1]), strategy, list(stage[0]))
    places = [tuple(stages[s] for s in rank_stages(pipe.schedule, rank, pp, chunks)) for rank in range(pp)]
    priced = {place: _rank_seconds([each[s] for s in place]) for place in dict.fromkeys(places)}
    first, distinct = priced[places[0]], list(priced.values())
    counts = [places.count(place) for place in priced]

    def passes(s: StageSeconds) -> Num:
        return s.forward_s + s.backward_s

    through = sum(n * passes(s) for n, s in zip(counts, distinct, strict=True))
    busiest = distinct[0]
    for s in distinct[1:]:
        busiest = _select(passes(s) > passes(busiest), s, busiest)
    slowest = passes(busiest)
    pace = slowest
    if pipe.schedule in ("LoopedBFS", "Interleaved1F1B", "InterleavedZeroBubble") and chunks > 1:
        # ranks go through one chunk after the other together, at the pace of its slowest stage; where micro-batches take
        # turns, what the first stage embeds hides behind the head of the last
        skip = pipe.schedule != "LoopedBFS"
        chunk = [[passes(each[s]) for s in stages[max(at, skip) : at + pp]] for at in range(0, len(stages), pp)]
        pace = np.maximum(slowest, sum(np.max(np.broadcast_arrays(*c), axis=0) for c in chunk))
    hops = [prices.hop_s(one, other) for one, other in pairwise(where)] or [prices.send_s]
    sends = send_delay_s(strategy, hops[0] + sum(hop - hops[0] for hop in hops[1:]) / len(hops))
    # the first and the last micro-batch go through the first chunk of every rank, and through the others of one
    split = bool(np.any(strategy.splits_backward))
    closing = sum(_closing(each[s], split) for s in (*stages[:pp], *places[-1][1:]))
    last = each[stages[0]] if prices.overlaps and strategy.software.grad_reduce else first
    tail = last.weight_tail_s if split else last.tail_s
    dp_tail = tail + first.regather_s + np.maximum(0.0, closing)
    # with v chunks a rank waits only for a chunk's turn: (p - 1) / v passes (arXiv 2104.04473, section 2.2.2)
    fixed = strategy.software.step_s
    share = bubble_share(pipe.schedule, busiest.forward_s, busiest.backward_s, busiest.weight_s)
    overlapped = _overlapped_s(pipe, m, busiest, prices.beside)
    # a pipe fills with forwards of its first chunk, and empties with backwards of it
    first_chunk = sum(passes(each[s]) for s in stages[:pp]) - slowest / chunks
    filling = np.maximum((through - slowest) / chunks, first_chunk) * share
    running = m * pace - overlapped + filling + sends + dp_tail + first.update_s
    step = running * (1 + prices.wait) + fixed

    inside = busiest.forward + busiest.backward
    parts: dict[str, Num] = dict.fromkeys(BREAKDOWN, np.zeros(np.shape(step)))
    dp = dp_tail + m * (slowest - inside.total_s)
    parts |= {
        "compute": m * inside.compute_s, "exposed_tp": m * inside.tp_s, "exposed_cp": m * inside.cp_s,
        "exposed_ep": m * inside.ep_s - overlapped, "exposed_dp": dp, "exposed_pp": sends, "optimizer": first.update_s,
        "other": running * prices.wait + fixed,
    }
    parts["bubble"] = step - sum(parts.values())
    # the bubble grows with what fills it, so the spread of the filled part is that of the step
    variance = (inside * m).variance_s2 + ((dp + sends) * prices.comm_spread) ** 2
    filled = m * inside.total_s + dp + sends
    spread = np.sqrt(variance / np.maximum(filled, 1e-30) ** 2 + cost.calibration.spread**2)
    return Estimate(step_time_s=step, p10_s=step * np.exp(-P90_Z * spread), p90_s=step * np.exp(P90_Z * spread),
                    breakdown_s=parts)


def _overlapped_s(pipe: Pipe, m: Num, rank: StageSeconds, beside: Num) -> Num:
    """Return what exchanges between experts take less in the 2 m - 2 p - 1 pairs of DualPipeV, each of half a rank's layers."""
    if pipe.schedule != "DualPipeV":
        return 0.0
    f, b = rank.forward, rank.backward
    hidden = np.minimum(f.ep_s, b.total_s - b.ep_s) + np.minimum(b.ep_s, f.total_s - f.ep_s)
    return np.maximum(0, 2 * m - 2 * pipe.pp - 1) * hidden / 2 * (1 - beside)


def _rank_seconds(chunks: list[StageSeconds]) -> StageSeconds:
    """Return the seconds of a rank's chunks, one after the other."""
    return StageSeconds(**{
        f.name: sum((getattr(c, f.name) for c in chunks[1:]), getattr(chunks[0], f.name)) for f in fields(chunks[0])
    })


def _closing(stage: StageSeconds, split: bool) -> Num:
    """Return what the last backward and the first forward of a step take beyond the others."""
    last = stage.last_weight_s - stage.weight_s if split else stage.last_backward_s - stage.backward_s
    return last + stage.first_forward_s - stage.forward_s


def _select(where: Num, yes: StageSeconds, no: StageSeconds) -> StageSeconds:
    """Return stage seconds chosen element by element."""
    def mix(a: Any, b: Any) -> Any:
        if isinstance(a, Seconds):
            return Seconds(**{f.name: np.where(where, getattr(a, f.name), getattr(b, f.name)) for f in fields(a)})
        return np.where(where, a, b)

    return StageSeconds(**{f.name: mix(getattr(yes, f.name), getattr(no, f.name)) for f in fields(yes)})
