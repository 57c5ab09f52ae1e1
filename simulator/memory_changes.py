"""What comes and goes while a rank runs an action: allocations and frees of the parts of a stage, slot by slot.

The parts of a pass follow one another in slots, as `inside.py` lays them out. In its slot of F a part's saved bytes appear;
at the end of that of B they go; of that of I they become what W needs. What ZeRO-3 gathers comes one part ahead. All bytes
are whole, so that what is allocated is freed to the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from profiles.model import Part
from profiles.ops import Num
from simulator.inside import Inside, Span, stage_units
from simulator.memory import OwnStage
from simulator.part_bytes import LOSS_PARTS, PartBytes, Pieces
from simulator.pricing import Prices
from simulator.software import Software
from simulator.states import ROOTS

PIPED, GATHERED, REDUCED = "between stages", "gathered weights", "gradients on their way"
TRANSIENT, LOGITS = "transient", "logits"
SLOWED = "slowed by communication"


class Change(NamedTuple):
    """Bytes of a kind that come, or go (below 0), so long after the start of an action, or after its end."""

    after_s: float
    kind: str
    bytes: int
    from_end: bool = False


class Slot(NamedTuple):
    """When in an action a part of the stage runs."""

    part: PartOnRank
    begin_s: float
    end_s: float


class PartOnRank(NamedTuple):
    """One part of a stage: what reports call it, which it is, and what it holds, in whole bytes."""

    name: str
    part: Part
    holds: PartBytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOnRank:
    """A stage on its rank: its parts in the order of the forward pass, what its activations are called, one tensor between
    stages, and which of those that it sends stay: all until the step ends, or forward ones until their backward."""

    own: OwnStage
    parts: list[PartOnRank]
    activations: str
    send_bytes: int
    keeps_all: bool
    keeps_sent: bool


def stages_on_ranks(
    ranks: Sequence[Sequence[OwnStage]], pieces: Pieces, prices: Prices, software: Software
) -> list[list[StageOnRank]]:
    """Return the stages of each pipeline rank with all that is known of their parts."""
    every = [stage.parts for stage in sorted(stage for own in ranks for stage in own)]
    known = {part: _in_whole_bytes(holds) for part, holds in pieces.parts.items()}
    return [[
        StageOnRank(
            own=stage, activations=f"activations of chunk {chunk}" if len(own) > 1 else "activations",
            parts=[PartOnRank(unit.name, part, known[part]) for unit, part in zip(
                stage_units(prices, every, stage.stage), [p for p, num in stage.parts for _ in range(num)], strict=True)],
            send_bytes=whole(pieces.send), keeps_all=software.pipe_buffers, keeps_sent=software.keeps_sent,
        ) for chunk, stage in enumerate(own)
    ] for own in ranks]


def whole(num_bytes: Num) -> int:
    """Return the nearest whole number of bytes."""
    return round(float(num_bytes))


def _in_whole_bytes(holds: PartBytes) -> PartBytes:
    return PartBytes(**{f.name: whole(getattr(holds, f.name)) for f in fields(holds)})


def slots_of(stage: StageOnRank, pass_: str, inside: Inside) -> list[Slot]:
    """Return when each part runs in a pass, which is an action or one of an overlapped pair.

    A slot lasts until the next begins, so that what a part waits for is in the slot before.
    """
    forward = pass_ == "F"
    behind = [s.start_s for s in spans_of("B", inside)]
    end = min(behind, default=inside.busy_s) if forward else inside.busy_s
    begins = iter([s for s in spans_of(pass_, inside) if s.stream == "compute" and not s.op.endswith(SLOWED)])
    parts = stage.parts if forward else stage.parts[::-1]
    found: list[float] = []
    span = next(begins, None)
    for part in parts:
        found.append(span.start_s if span else end)
        if span and span.op == part.name:
            span = next(begins, None)
    return [Slot(*slot) for slot in zip(parts, found, [*found[1:], end], strict=True)]


def spans_of(pass_: str, inside: Inside) -> list[Span]:
    """Return the spans of a pass in an action, which may be an overlapped pair."""
    return [span for span in inside.spans if (span.pass_ == "F") == (pass_ == "F")]


def pass_changes(stage: StageOnRank, pass_: str, inside: Inside, send_s: float) -> Iterator[Change]:
    """Return what a pass of a stage changes; what it sends takes `send_s`."""
    slots = slots_of(stage, pass_, inside)
    yield from _between(stage, pass_, inside.busy_s, send_s)
    if pass_ != "W":
        yield from _gathers(slots, min((s.start_s for s in spans_of(pass_, inside)), default=inside.busy_s))
    if pass_ == "B":
        yield from _reductions(slots, inside.tail_s)
    for slot in slots:
        holds, kind = slot.part.holds, LOGITS if slot.part.part in LOSS_PARTS else TRANSIENT
        inner = int(holds.in_pass(pass_))
        yield Change(slot.begin_s, kind, inner)
        yield Change(slot.end_s, kind, -inner)
        if pass_ == "F":
            yield Change(slot.begin_s, stage.activations, holds.saved)
        else:
            yield Change(slot.end_s, stage.activations, -int(holds.gone_behind(pass_)))


def _between(stage: StageOnRank, pass_: str, busy_s: float, send_s: float) -> Iterator[Change]:
    """Return tensors between stages: one received for the time of the action, one sent for that of the send, or for longer.

    Those that torch's runtime keeps are freed when the step ends, and those that it receives are there before.
    """
    if pass_ == "W":
        return
    before, behind = stage.own.before, stage.own.behind
    receives, sends = (before, behind) if pass_ == "F" else (behind, before)
    if receives and not stage.keeps_all:
        yield Change(0.0, PIPED, stage.send_bytes)
        yield Change(busy_s, PIPED, -stage.send_bytes)
    if sends:
        yield Change(busy_s, PIPED, stage.send_bytes)
        if not stage.keeps_all and not (stage.keeps_sent and pass_ == "F"):
            yield Change(send_s, PIPED, -stage.send_bytes, from_end=True)
    if behind and pass_ != "F" and stage.keeps_sent and not stage.keeps_all:
        yield Change(busy_s, PIPED, -stage.send_bytes)


def _gathers(slots: Sequence[Slot], first_s: float) -> Iterator[Change]:
    """Return the gathered weights of layers, from the slot before, or the pass's start, until the end of their own."""
    ahead = first_s
    for part, begin, end in slots:
        if part.part not in ROOTS:
            yield Change(ahead, GATHERED, part.holds.gathered)
            yield Change(end, GATHERED, -part.holds.gathered)
        ahead = begin


def _reductions(slots: Sequence[Slot], tail_s: float) -> Iterator[Change]:
    """Return the whole gradients of layers on their way to their shards, as computed and as sent, in their own slot; those of
    the embedding and the head together, in the last and for the tail of the action."""
    for part, begin, end in slots:
        if part.part not in ROOTS:
            yield Change(begin, REDUCED, part.holds.reduced)
            yield Change(end, REDUCED, -part.holds.reduced)
    roots = sum(slot.part.holds.reduced for slot in slots if slot.part.part in ROOTS)
    yield Change(slots[-1].begin_s, REDUCED, roots)
    yield Change(tail_s, REDUCED, -roots, from_end=True)
