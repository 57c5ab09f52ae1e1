"""Inside a rank: the layers of one action in a row, gathers one part ahead, reductions behind, as spans.

The same waiting rules as `stages.chain_s` and `stages.queue_tail_s`, laid out part by part; a test holds them equal.
"""

from __future__ import annotations

from typing import NamedTuple

from profiles.model import Part
from simulator.pricing import PartSeconds, Prices
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
    """All that one rank does: its four kinds of action, and the update."""

    first_forward: Inside
    forward: Inside
    backward: Inside
    last_backward: Inside
    update: list[Span]

    def of(self, pass_: str, microbatch: int, num_microbatches: int) -> Inside:
        """Return what an action does."""
        if pass_ == "F":
            return self.first_forward if microbatch == 0 else self.forward
        return self.last_backward if microbatch == num_microbatches - 1 else self.backward


def stage_units(prices: Prices, layers: list[int], stage: int) -> list[Unit]:
    """Return the parts of a stage in the order of the forward pass."""
    begin = sum(layers[:stage])

    def unit(part: Part, name: str, layer: int) -> Unit:
        return Unit(name, layer, prices.parts[part])

    units = [unit("layer", f"layer {i}", i) for i in range(begin, begin + layers[stage])]
    if stage == 0:
        units.insert(0, unit("embedding", "embedding", -1))
    if stage == len(layers) - 1:
        units.append(unit("head", "head and loss", -1))
    return units


def lay_out_stage(units: list[Unit], strategy: Strategy, prices: Prices) -> Stage:
    """Return what a rank does in each kind of action, under the strategy's sharding level."""
    zero, piped, overlaps = int(strategy.zero), int(strategy.pp) > 1, prices.overlaps
    gathers = zero >= 2
    keeps = zero == 2 and piped
    back = units[::-1]
    backward = lay_out_chain(back, "B", zero == 3, zero >= 2 and not piped, overlaps)
    last = lay_out_chain(back, "B", zero == 3, True, overlaps) if zero >= 2 else lay_out_queue(back, overlaps)
    return Stage(
        first_forward=lay_out_chain(units, "F", gathers, False, overlaps),
        forward=lay_out_chain(units, "F", gathers and not keeps, False, overlaps),
        backward=backward._replace(tail_s=0.0), last_backward=last,
        update=_update_spans(units, float(prices.tie_s)),
    )


def lay_out_chain(units: list[Unit], pass_: str, gathers: bool, reduces: bool, overlaps: bool) -> Inside:
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
        now = max(end, beside)
    tail = float(units[-1].seconds.reduce_s) if reduces and overlaps else 0.0
    if tail:
        _add(spans, units[-1], "dp", "reduce", pass_, now, tail)
    return Inside(spans, now, tail)


def lay_out_queue(units: list[Unit], overlaps: bool) -> Inside:
    """Return a backward whose reductions queue on the dp stream and never hold up the computation."""
    spans: list[Span] = []
    now, ready = 0.0, []
    for unit in units:
        now = _compute(spans, unit, "B", now)
        ready.append(now)
    free = 0.0 if overlaps else now
    for unit, at in zip(units, ready, strict=True):
        free = _add(spans, unit, "dp", "reduce", "B", max(free, at), unit.seconds.reduce_s)
    any_reduce = any(u.seconds.reduce_s > 0 for u in units)
    return Inside(spans, now, max(0.0, free - now) if any_reduce else 0.0)


def _compute(spans: list[Span], unit: Unit, pass_: str, start: float) -> float:
    seconds = unit.seconds.forward if pass_ == "F" else unit.seconds.backward
    middle = _add(spans, unit, "compute", "", pass_, start, seconds.compute_s)
    return _add(spans, unit, "tp", "tp", pass_, middle, seconds.tp_s)


def _add(spans: list[Span], unit: Unit, stream: str, what: str, pass_: str, start: float, seconds: float) -> float:
    end = start + float(seconds)
    if end > start:
        spans.append(Span(stream, start, end, f"{unit.name} {what}".rstrip(), pass_, unit.layer))
    return end


def _update_spans(units: list[Unit], tie_s: float) -> list[Span]:
    update, regather = sum(float(u.seconds.update_s) for u in units), sum(float(u.seconds.regather_s) for u in units)
    tied = tie_s if any(u.layer < 0 for u in units) else 0.0
    spans = [Span("compute", tied, tied + update, "optimizer", "U", -1)]
    if tied > 0:
        spans.insert(0, Span("pp", 0.0, tied, "sum the tied embedding", "U", -1))
    if regather > 0:
        spans.append(Span("dp", tied + update, tied + update + regather, "gather updated weights", "U", -1))
    return spans
