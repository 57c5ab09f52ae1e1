"""Inside a rank: the layers of one action in a row, gathers one part ahead, reductions behind, as spans.

The same waiting rules as `stages.chain_s` and `stages.queue_tail_s`, laid out part by part; a test holds them equal.
"""

from __future__ import annotations

from typing import NamedTuple

from profiles.model import Part
from simulator.pricing import IN_LINE, PartSeconds, Prices
from simulator.strategy import Strategy


class Unit(NamedTuple):
    """One part of a stage: embedding (layer -1), a layer, or the head (layer -1)."""

    name: str
    layer: int
    seconds: PartSeconds


class Span(NamedTuple):
    """A piece of work on a stream, from the start of its action."""

    stream: str
    start_s: float
    end_s: float
    op: str
    pass_: str
    layer: int
    bytes: float = 0.0


class Inside(NamedTuple):
    """An action: its spans, how long the rank is busy with it, and what its reductions still need after that."""

    spans: list[Span]
    busy_s: float
    tail_s: float


class Stage(NamedTuple):
    """All that one stage does: its kinds of action, and the update."""

    actions: dict[str, Inside]
    update: list[Span]


FIRST, LAST = "first ", "last "
"""What stands before the kind of an action that gathers weights for a step, and of one that completes gradients."""


def stage_units(prices: Prices, stages: list[list[tuple[Part, int]]], stage: int) -> list[Unit]:
    """Return the parts of a virtual stage in the order of the forward pass; `stages` as `layout.stage_parts` gives them."""
    layer = sum(num for parts in stages[:stage] for part, num in parts if part not in NAMES)
    units: list[Unit] = []
    for part, num in stages[stage]:
        for _ in range(num):
            if part in NAMES:
                units.append(Unit(NAMES[part], -1, prices.parts[part]))
            else:
                units.append(Unit(f"layer {layer}", layer, prices.parts[part]))
                layer += 1
    return units


NAMED_PASS = {"I": "B"}
"""What a timeline calls the gradient of inputs: a backward without the weights' part, which it calls W."""
NAMES = {"embedding": "embedding", "head": "head and loss", "mtp": "multi-token prediction"}
"""What reports call the parts that are no layers."""


def lay_out_stage(units: list[Unit], strategy: Strategy, prices: Prices) -> Stage:
    """Return what a rank does in each kind of action, under the strategy's sharding level.

    Kinds are the passes F, B, I and W, the first F of a step and its last B or W, which complete the gradients.
    """
    zero, piped, overlaps, beside = int(strategy.zero), int(strategy.pp) > 1, prices.overlaps, float(prices.beside)
    gathers = zero >= 2
    keeps = zero == 2 and piped
    back = units[::-1]

    def last(pass_: str, gathers: bool) -> Inside:
        if zero >= 2:
            return lay_out_chain(back, pass_, gathers, True, overlaps, beside)
        return lay_out_queue(back, pass_, overlaps and strategy.software.grad_reduce, beside)

    forward = lay_out_chain(units, "F", gathers and not keeps, False, overlaps, beside)
    backward = lay_out_chain(back, "B", zero == 3, zero >= 2 and not piped, overlaps, beside)
    actions = {
        "F": forward, FIRST + "F": lay_out_chain(units, "F", gathers, False, overlaps, beside),
        "B": backward._replace(tail_s=0.0), LAST + "B": last("B", zero == 3),
    }
    if strategy.splits_backward:
        actions |= {
            "I": lay_out_chain(back, "I", zero == 3, False, overlaps, beside),
            "W": lay_out_chain(back, "W", False, False, overlaps, beside), LAST + "W": last("W", False),
        }
    hidden_s = forward.busy_s if hides(strategy, overlaps) else 0.0
    return Stage(actions=actions, update=_update_spans(units, float(prices.tie_s), hidden_s, beside))


def lay_out_pair(forward: Inside, backward: Inside, beside_factor: float) -> Inside:
    """Return a forward and a backward as one action: the exchanges between experts of each run beside the computation of
    the other (DualPipe, arXiv 2412.19437, section 3.2.1)."""
    def exchanged(inside: Inside) -> float:
        return sum(s.end_s - s.start_s for s in inside.spans if s.stream == "ep")

    one, other = exchanged(forward), exchanged(backward)
    hidden = min(one, backward.busy_s - other) + min(other, forward.busy_s - one)
    whole = forward.busy_s + backward.busy_s
    busy = max(whole - hidden * (1 - beside_factor), 0.0)
    # both are drawn shorter by what hides, so that the pair's spans end with it
    scale = busy / whole if whole else 1.0
    spans = [s._replace(start_s=scale * s.start_s, end_s=scale * s.end_s) for s in forward.spans]
    begin = scale * forward.busy_s
    spans += [s._replace(start_s=begin + scale * s.start_s, end_s=begin + scale * s.end_s) for s in backward.spans]
    return Inside(spans, busy, backward.tail_s)


def hides(strategy: Strategy, overlaps: bool) -> bool:
    """Return whether updated weights are gathered beside the next step's first passes."""
    return overlaps and strategy.software.param_gather


def lay_out_chain(
    units: list[Unit], pass_: str, gathers: bool, reduces: bool, overlaps: bool, beside_factor: float = 0.0
) -> Inside:
    """Return parts in a row: beside each one, the reduction of the part before and the gather of the next."""
    spans: list[Span] = []
    now = 0.0
    if gathers:
        now = _add(spans, units[0], "dp", "gather", pass_, now, units[0].seconds.gather_s)
    for i, unit in enumerate(units):
        end = _compute(spans, unit, pass_, now)
        beside = now if overlaps else end
        if reduces and i > 0 and overlaps:
            beside = _add(spans, units[i - 1], "dp", "reduce", pass_, beside, units[i - 1].seconds.reduce_s)
        if reduces and not overlaps:
            beside = _add(spans, unit, "dp", "reduce", pass_, beside, unit.seconds.reduce_s)
        if gathers and i + 1 < len(units):
            beside = _add(spans, units[i + 1], "dp", "gather", pass_, beside, units[i + 1].seconds.gather_s)
        comm = beside - now if overlaps else 0.0
        slowed = _slow(spans, unit, pass_, end, beside_factor * min(comm, end - now))
        now = max(slowed, beside)
    tail = float(units[-1].seconds.reduce_s) if reduces and overlaps else 0.0
    if tail:
        _add(spans, units[-1], "dp", "reduce", pass_, now, tail)
    return Inside(spans, now, tail)


def lay_out_queue(units: list[Unit], pass_: str, overlaps: bool, beside_factor: float = 0.0) -> Inside:
    """Return a backward whose reductions queue on the dp stream and never hold up the computation, but slow it."""
    spans: list[Span] = []
    now, ready = 0.0, []
    for unit in units:
        now = _compute(spans, unit, pass_, now)
        ready.append(now)
    free = 0.0 if overlaps else now
    for unit, at in zip(units, ready, strict=True):
        free = _add(spans, unit, "dp", "reduce", pass_, max(free, at), unit.seconds.reduce_s)
    reduced = sum(float(u.seconds.reduce_s) for u in units)
    slowed = _slow(spans, units[-1], pass_, now, beside_factor * min(reduced, now) if overlaps else 0.0)
    return Inside(spans, slowed, max(0.0, free - slowed) if reduced > 0 else 0.0)


def _slow(spans: list[Span], unit: Unit, pass_: str, start: float, seconds: float) -> float:
    """Return the end of what communication beside a part adds to its computation."""
    return _add(spans, unit, "compute", "slowed by communication", pass_, start, seconds)


def _compute(spans: list[Span], unit: Unit, pass_: str, start: float) -> float:
    seconds = unit.seconds.of(pass_)
    now = _add(spans, unit, "compute", "", pass_, start, seconds.compute_s)
    for axis in IN_LINE:
        now = _add(spans, unit, axis, axis, pass_, now, getattr(seconds, f"{axis}_s"))
    return now


def _add(spans: list[Span], unit: Unit, stream: str, what: str, pass_: str, start: float, seconds: float) -> float:
    end = start + float(seconds)
    if end > start:
        spans.append(Span(stream, start, end, f"{unit.name} {what}".rstrip(), NAMED_PASS.get(pass_, pass_), unit.layer))
    return end


def _update_spans(units: list[Unit], tie_s: float, hidden_s: float, beside: float) -> list[Span]:
    update, regather = sum(float(u.seconds.update_s) for u in units), sum(float(u.seconds.regather_s) for u in units)
    regather = max(0.0, regather - hidden_s) + beside * min(regather, hidden_s)
    tied = tie_s * sum(u.name in (NAMES["embedding"], NAMES["head"]) for u in units)
    spans = [Span("compute", tied, tied + update, "optimizer", "U", -1)]
    if tied > 0:
        spans.insert(0, Span("pp", 0.0, tied, "sum the tied embedding", "U", -1))
    if regather > 0:
        spans.append(Span("dp", tied + update, tied + update + regather, "gather updated weights", "U", -1))
    return spans
