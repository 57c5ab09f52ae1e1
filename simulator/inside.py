"""Inside a rank: the layers of one action in a row, gathers one part ahead, reductions behind, as spans.

The same waiting rules as `stages.chain_s` and `stages.queue_tail_s`, laid out part by part; a test holds them equal. What
a part does is a turn of an action's program: laid out once where nobody else is on its wires, else played (`on_wires.py`).
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
    part: Part = "layer"


class Span(NamedTuple):
    """A piece of work on a stream, from the start of its action."""

    stream: str
    start_s: float
    end_s: float
    op: str
    pass_: str
    layer: int
    bytes: float = 0.0


class Piece(NamedTuple):
    """Work of a part on a stream: its computation, or the collective that `what` names."""

    stream: str
    what: str
    seconds: float
    unit: Unit

    def span(self, pass_: str, start_s: float, end_s: float) -> Span:
        """Return the span of the piece in a pass."""
        return Span(self.stream, start_s, end_s, f"{self.unit.name} {self.what}".rstrip(), NAMED_PASS.get(pass_, pass_),
                    self.unit.layer)


class Turn(NamedTuple):
    """A part's turn in an action: what it does in line, what runs beside that and holds up the next turn, and what queues
    behind the turn without holding up any."""

    unit: Unit
    in_line: list[Piece]
    beside: list[Piece]
    behind: list[Piece]


class Program(NamedTuple):
    """What an action does, turn by turn; `beside_factor` is what a second beside computation adds to it."""

    pass_: str
    turns: list[Turn]
    beside_factor: float = 0.0


class Inside(NamedTuple):
    """An action: its spans, how long the rank is busy with it, and what its reductions still need after that.

    `behind` are those reductions, and when each is ready; they queue behind those of other actions, so their spans are known
    when they are played. `program` is what was laid out; that of a pair has no turns.
    """

    spans: list[Span]
    busy_s: float
    tail_s: float
    behind: list[tuple[float, Piece]]
    program: Program


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
                units.append(Unit(NAMES[part], -1, prices.parts[part], part))
            else:
                units.append(Unit(f"layer {layer}", layer, prices.parts[part], part))
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
    # behind a micro-batch that is not the last, the next forward hides what is left
    hidden = [piece.span("B", at, at + piece.seconds) for at, piece in backward.behind]
    actions = {
        "F": forward, FIRST + "F": lay_out_chain(units, "F", gathers, False, overlaps, beside),
        "B": backward._replace(tail_s=0.0, behind=[], spans=[*backward.spans, *hidden]), LAST + "B": last("B", zero == 3),
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
    return Inside(spans, busy, backward.tail_s, [(begin + scale * at, piece) for at, piece in backward.behind],
                  Program("B", []))


def hides(strategy: Strategy, overlaps: bool) -> bool:
    """Return whether updated weights are gathered beside the next step's first passes."""
    return overlaps and strategy.software.param_gather


def lay_out_chain(
    units: list[Unit], pass_: str, gathers: bool, reduces: bool, overlaps: bool, beside_factor: float = 0.0
) -> Inside:
    """Return parts in a row: beside each one, the reduction of the part before and the gather of the next."""
    def over_dp(i: int, what: str) -> Piece:
        return Piece("dp", what, float(getattr(units[i].seconds, f"{what}_s")), units[i])

    turns = [Turn(units[0], [over_dp(0, "gather")], [], [])] if gathers else []
    for i, unit in enumerate(units):
        in_line, beside = _computed(unit, pass_), list[Piece]()
        if reduces and i > 0 and overlaps:
            beside.append(over_dp(i - 1, "reduce"))
        if reduces and not overlaps:
            beside.append(over_dp(i, "reduce"))
        if gathers and i + 1 < len(units):
            beside.append(over_dp(i + 1, "gather"))
        turns.append(Turn(unit, in_line, beside, []) if overlaps else Turn(unit, in_line + beside, [], []))
    if reduces and overlaps:
        turns[-1].behind.append(over_dp(-1, "reduce"))
    return lay_out(Program(pass_, turns, beside_factor))


def lay_out_queue(units: list[Unit], pass_: str, overlaps: bool, beside_factor: float = 0.0) -> Inside:
    """Return a backward whose reductions queue on the dp stream and never hold up the computation, but slow it."""
    turns = [Turn(unit, _computed(unit, pass_), [], []) for unit in units]
    reduces = [Piece("dp", "reduce", float(unit.seconds.reduce_s), unit) for unit in units]
    for turn, piece in zip(turns if overlaps else turns[-1:] * len(units), reduces, strict=True):
        turn.behind.append(piece)
    if overlaps and beside_factor:
        computed = sum(piece.seconds for turn in turns for piece in turn.in_line)
        slowed = beside_factor * min(sum(piece.seconds for piece in reduces), computed)
        turns.append(Turn(units[-1], [slow_piece(units[-1], slowed)], [], []))
    return lay_out(Program(pass_, turns))


def lay_out(program: Program) -> Inside:
    """Return when each piece of an action runs where nobody else is on the wires."""
    spans: list[Span] = []
    behind: list[tuple[float, Piece]] = []

    def run(pieces: list[Piece], now: float) -> float:
        for piece in pieces:
            end = now + piece.seconds
            if end > now:
                spans.append(piece.span(program.pass_, now, end))
            now = end
        return now

    now = 0.0
    for turn in program.turns:
        end, beside = run(turn.in_line, now), run(turn.beside, now)
        now = max(run([slow_piece(turn.unit, slowed_s(program, now, end, beside))], end), beside)
        behind += [(now, piece) for piece in turn.behind if piece.seconds > 0]
    free = 0.0
    for at, piece in behind:
        free = max(free, at) + piece.seconds
    return Inside(spans, now, max(0.0, free - now), behind, program)


def slowed_s(program: Program, start_s: float, end_s: float, beside_end_s: float) -> float:
    """Return what communication beside a turn adds to what it does in line."""
    return program.beside_factor * min(beside_end_s - start_s, end_s - start_s)


def slow_piece(unit: Unit, seconds: float) -> Piece:
    """Return what communication beside a turn adds, as a piece of it."""
    return Piece("compute", "slowed by communication", seconds, unit)


def _computed(unit: Unit, pass_: str) -> list[Piece]:
    """Return a part's computation and the communication in line with it."""
    seconds = unit.seconds.of(pass_)
    return [Piece("compute", "", float(seconds.compute_s), unit),
            *(Piece(axis, axis, float(getattr(seconds, f"{axis}_s")), unit) for axis in IN_LINE)]


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
