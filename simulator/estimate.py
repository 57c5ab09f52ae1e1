"""The step in closed form, over arrays: the planner's fast price of a whole batch of strategies.

Uniform stages: (m + p - 1)(f + b), plus what sends add (`send_delay_s`). Uneven stages: the sum over stages once,
and the slowest stage for each further micro-batch. The replay is exact; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from profiles.cost import CostModel
from profiles.ops import Num
from simulator.layout import stage_layers_by_place
from simulator.pricing import Prices, Seconds, price
from simulator.stages import StageSeconds, stage_seconds
from simulator.strategy import Strategy
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The stages that differ: first, middle, last, and the only one where there is no pipeline."""

    first: StageSeconds
    middle: StageSeconds
    last: StageSeconds
    only: StageSeconds


def price_places(workload: Workload, prices: Prices) -> Places:
    """Return the seconds of the stages that differ, for each strategy of the batch."""
    strategy, layers = workload.strategy, workload.model.num_layers
    first, middle, last = stage_layers_by_place(layers, np.asarray(strategy.pp))
    some = np.maximum(middle, 1)
    return Places(
        first=stage_seconds(prices, strategy, [("embedding", 1), ("layer", first)]),
        middle=stage_seconds(prices, strategy, [("layer", some)]),
        last=stage_seconds(prices, strategy, [("layer", last), ("head", 1)]),
        only=stage_seconds(prices, strategy, [("embedding", 1), ("layer", layers), ("head", 1)]),
    )


def send_delay_s(strategy: Strategy, send_s: Num) -> Num:
    """Return what sends add to a pipeline's step.

    One way through and back, 2(p - 1) sends. Under 1F1B the first stage waits for that round trip again each time its
    p micro-batches in flight are used up, and a round that is cut short costs two sends for each micro-batch after
    its second: with q, r = divmod(m - 1, p), 2(p - 1)(q + 1) + 2 max(0, r - 1). Exact for uniform stages and sends
    shorter than the passes (the replay is the oracle).
    """
    p, m = np.asarray(strategy.pp), np.asarray(strategy.num_microbatches)
    rounds, rest = np.divmod(m - 1, p)
    steady = 2 * (p - 1) * rounds + 2 * np.maximum(0, rest - 1)
    return (2 * (p - 1) + np.where(np.asarray(strategy.schedule) == "1F1B", steady, 0)) * np.where(p > 1, send_s, 0.0)


def estimate(workload: Workload, cost: CostModel) -> Estimate:
    """Return the step of each strategy in closed form."""
    prices = price(workload, cost)
    places = price_places(workload, prices)
    strategy = workload.strategy
    p, m = np.asarray(strategy.pp), np.asarray(strategy.num_microbatches)
    layers = workload.model.num_layers
    base, extra = layers // p, layers % p

    def passes(s: StageSeconds) -> Num:
        return s.forward_s + s.backward_s

    # middle stages hold `base` or one more layer; the sum over stages needs how many of each
    layer_f_b = passes(places.middle) / np.maximum(stage_layers_by_place(layers, p)[1], 1)
    middle_layers = layers - 2 * base - ((extra == p - 1) & (p > 1))
    through = passes(places.first) + passes(places.last) + layer_f_b * np.where(p > 2, middle_layers, 0)
    slowest = np.maximum(passes(places.first), passes(places.last))
    slowest = np.where(p > 2, np.maximum(slowest, passes(places.middle)), slowest)
    through, slowest = np.where(p == 1, passes(places.only), through), np.where(p == 1, passes(places.only), slowest)

    busiest = _busiest(places, p, slowest)
    end = _choose(places, p, "first")
    sends = send_delay_s(strategy, prices.send_s)
    closing = end.last_backward_s - end.backward_s + end.first_forward_s - end.forward_s
    optimizer = end.update_s
    dp_tail = end.tail_s + end.regather_s + np.maximum(0.0, closing)
    step = through + (m - 1) * slowest + sends + dp_tail + optimizer

    compute = m * (busiest.forward.compute_s + busiest.backward.compute_s)
    tp = m * (busiest.forward.tp_s + busiest.backward.tp_s)
    dp = dp_tail + m * (passes(busiest) - busiest.forward.total_s - busiest.backward.total_s)
    parts = dict.fromkeys(BREAKDOWN, np.zeros(np.shape(step)))
    parts |= {"compute": compute, "exposed_tp": tp, "exposed_dp": dp, "exposed_pp": sends, "optimizer": optimizer}
    parts["bubble"] = step - sum(parts.values())
    # the bubble grows with what fills it, so the spread of the filled part is that of the step
    variance = ((busiest.forward + busiest.backward) * m).variance_s2 + ((dp + sends) * prices.comm_spread) ** 2
    spread = np.sqrt(variance) / np.maximum(compute + tp + dp + sends, 1e-30)
    return Estimate(step_time_s=step, p10_s=step * np.exp(-P90_Z * spread), p90_s=step * np.exp(P90_Z * spread),
                    breakdown_s=parts)


def _choose(places: Places, p: Num, place: str) -> StageSeconds:
    return _select(p == 1, places.only, getattr(places, place))


def _busiest(places: Places, p: Num, slowest: Num) -> StageSeconds:
    last = _select(places.last.forward_s + places.last.backward_s >= slowest, places.last, places.first)
    middle = _select(
        (p > 2) & (places.middle.forward_s + places.middle.backward_s >= slowest), places.middle, last
    )
    return _select(p == 1, places.only, middle)


def _select(where: Num, yes: StageSeconds, no: StageSeconds) -> StageSeconds:
    """Return stage seconds chosen element by element."""
    def mix(a: Any, b: Any) -> Any:
        if isinstance(a, Seconds):
            return Seconds(**{f.name: np.where(where, getattr(a, f.name), getattr(b, f.name)) for f in fields(a)})
        return np.where(where, a, b)

    return StageSeconds(**{f.name: mix(getattr(yes, f.name), getattr(no, f.name)) for f in fields(yes)})
