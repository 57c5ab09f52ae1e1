"""Memory over time: what each distinct rank of a played step holds, by what holds it, and when it holds most.

Every allocation and free of every action (`memory_changes.py`), added up in the order of time. Gradients that are made late
appear in the first backward of their stage and go with the update.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiles.hardware import Accelerator
from simulator.inside import Span
from simulator.layout import devices
from simulator.memory import kinds_of, slack_bytes, stages_by_rank, waiting_bytes
from simulator.memory_changes import (
    GATHERED,
    LOGITS,
    PIPED,
    REDUCED,
    TRANSIENT,
    Change,
    Slot,
    StageOnRank,
    pass_changes,
    slots_of,
    stages_on_ranks,
    whole,
)
from simulator.part_bytes import Pieces, pieces_of
from simulator.replay import ActionSpan, Played, Step
from simulator.schedules import passes
from simulator.schedules.moments import row_moments
from simulator.states import ROOTS

BUCKETS = "buckets"
CLOSED_FORM = {PIPED: "activations", GATHERED: "gathered", REDUCED: "gathered", BUCKETS: "gathered", LOGITS: TRANSIENT}
"""What `memory.rank_memory` counts some kinds under; activations of a chunk are activations there."""


class Peak(NamedTuple):
    """The most that a rank holds: when, in which action and part of the model, of what, and of which micro-batches each of
    its stages has activations."""

    rank: int
    time_s: float
    action: str
    part: str
    bytes: int
    kinds: dict[str, int]
    microbatches: dict[int, list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTimeline:
    """Bytes of each kind on each rank from each change on (columns rank, time_s, kind, bytes), the peak of each rank, and how
    long the step takes."""

    rows: pd.DataFrame
    peaks: tuple[Peak, ...]
    step_time_s: float


def closed_form(kinds: dict[str, int]) -> dict[str, int]:
    """Return bytes by kind under the names of `memory.rank_memory`."""
    named = dict.fromkeys(("weights", "gradients", "optimizer", "gathered", "activations", TRANSIENT), 0)
    for kind, num in kinds.items():
        name = "activations" if kind.startswith("activations") else CLOSED_FORM.get(kind, kind)
        named[name] = named.get(name, 0) + num
    return named


def memory_timeline(step: Step, accelerator: Accelerator) -> MemoryTimeline:
    """Return what the distinct ranks of a played step hold over time, and their peaks."""
    workload, pieces = step.workload, pieces_of(step.workload)
    own = stages_by_rank(workload.model, step.played[0].home, workload.strategy.split)
    stages = stages_on_ranks(own, pieces, step.prices, workload.strategy.software)
    changes, ranks = _Changes(), list[_Rank]()
    for pipe, numbers in zip(step.played, step.ranks, strict=True):
        by_place: list[list[ActionSpan]] = [[] for _ in numbers]
        for span in pipe.spans:
            by_place[span.rank].append(span)
        for place, number in enumerate(numbers):
            rank = _Rank(number, place, {one.own.stage: one for one in stages[place]}, pipe, by_place[place])
            _add_actions(changes, len(ranks), rank)
            changes.add(len(ranks), [0.0], _state_changes(rank, step, pieces))
            ranks.append(rank)
    waiting = [waiting_bytes(pieces, some, row_moments(row, [one.stage for one in some], kinds_of(some)),
                             workload.strategy.software)
               for some, row in zip(own, step.table, strict=True)]
    kinds_at = [min(kinds, key=lambda kind: kind.memory_bytes) for kinds in devices(accelerator, len(step.table))]
    levels, peaks, constant = changes.levels(), list[Peak](), list[tuple[int, float, str, int]]()
    for rank, (time_s, kinds) in zip(ranks, changes.peaks(levels, len(ranks)), strict=True):
        device = kinds_at[rank.place]
        slack = slack_bytes(pieces, own[rank.place], waiting[rank.place], device, closed_form(kinds))
        # the allocator has its slack since the steps before
        more = {"framework": whole(device.framework_bytes), "slack": whole(slack)}
        constant += [(rank.number, 0.0, kind, num) for kind, num in more.items() if num]
        peaks.append(_peak(rank, step.ready_s[rank.place], time_s, kinds | more))
    rows = changes.rows(levels, [rank.number for rank in ranks])
    rows = pd.concat([pd.DataFrame(constant, columns=list(rows.columns)), rows], ignore_index=True)
    rows = rows.sort_values(["rank", "time_s"], kind="stable", ignore_index=True)
    return MemoryTimeline(rows=rows, peaks=tuple(peaks), step_time_s=step.step_time_s)


class _Rank(NamedTuple):
    """A distinct rank: its number, its place in the pipeline, its stages by index, and what it ran in a played pipeline."""

    number: int
    place: int
    stages: dict[int, StageOnRank]
    pipe: Played
    spans: list[ActionSpan]


def _add_actions(changes: _Changes, index: int, rank: _Rank) -> None:
    """Add what the actions of a rank change: those that do the same at once."""
    same: dict[int, list[ActionSpan]] = defaultdict(list)
    for span in rank.spans:
        same[id(rank.pipe.inside[span.action])].append(span)
    for those in same.values():
        starts_s, ends_s = [span.start_s for span in those], [span.end_s for span in those]
        inside = rank.pipe.inside[those[0].action]
        send_s = max((s for (sender, _), s in rank.pipe.sends_s.items() if sender == rank.place), default=0.0)
        for stage, pass_, _, _ in passes(those[0].action):
            changes.add(index, starts_s, pass_changes(rank.stages[stage], pass_, inside, send_s), ends_s)


def _state_changes(rank: _Rank, step: Step, pieces: Pieces) -> list[Change]:
    """Return what stays for the step, late gradients, the update, and what is kept until the step's end."""
    software, stages = step.workload.strategy.software, list(rank.stages.values())
    begin_s, end_s = _update_s(rank.pipe.updates[rank.place], step.ready_s[rank.place])

    def all_of(field: str) -> int:
        return sum(getattr(part.holds, field) for stage in stages for part in stage.parts)

    update = all_of("in_update")
    found = [
        Change(0.0, "weights", all_of("weights")), Change(0.0, "optimizer", all_of("optimizer")),
        Change(0.0, BUCKETS, whole(pieces.buckets)), Change(begin_s, TRANSIENT, update), Change(end_s, TRANSIENT, -update),
    ]
    if software.pipe_buffers:
        # as many are sent as are received
        each = sum((stage.own.before + stage.own.behind) * stage.send_bytes for stage in stages)
        received = int(step.workload.strategy.num_microbatches) * each
        found += [Change(0.0, PIPED, received), Change(end_s, PIPED, -2 * received)]
    firsts: dict[tuple[int, bool], tuple[ActionSpan, str]] = {}
    for span in rank.spans:
        for one in passes(span.action):
            if one.pass_ != "I":
                firsts.setdefault((one.stage, one.pass_ == "F"), (span, one.pass_))
    for stage in stages:
        roots = sum(part.holds.gathered for part in stage.parts if part.part in ROOTS)
        found += [Change(firsts[stage.own.stage, True][0].start_s, GATHERED, roots),
                  Change(rank.pipe.ends_s[rank.place], GATHERED, -roots)]
        if software.late_gradients:
            span, pass_ = firsts[stage.own.stage, False]
            found += _made(span, slots_of(stage, pass_, rank.pipe.inside[span.action]))
    gradients = all_of("gradients")
    # what copies narrow gradients for the update frees them
    gone = Change(begin_s if update and pieces.copies else end_s, "gradients", -gradients)
    if software.late_gradients:
        return [*found, gone]
    return [*found, Change(0.0, "gradients", gradients), gone, Change(end_s, "gradients", gradients)]


def _made(span: ActionSpan, slots: Sequence[Slot]) -> list[Change]:
    """Return the gradients of a stage as they are made; that of an embedding is there from the start, to be filled."""
    return [Change(span.start_s + (slot.begin_s if slot.part.part == "embedding" else slot.end_s), "gradients",
                   slot.part.holds.gradients) for slot in slots]


def _update_s(spans: Sequence[Span], ready_s: float) -> tuple[float, float]:
    """Return when the update begins to compute, and when it is done."""
    begins = [span.start_s for span in spans if span.stream == "compute"]
    return ready_s + min(begins, default=0.0), ready_s + max((span.end_s for span in spans), default=0.0)


def _peak(rank: _Rank, ready_s: float, time_s: float, kinds: dict[str, int]) -> Peak:
    """Return a peak at that time, with what the rank was at: an action or the update, or behind an action where it waits."""
    held: dict[int, list[int]] = {stage: [] for stage in rank.stages}
    last = int(np.searchsorted([span.start_s for span in rank.spans], time_s, side="right")) - 1
    running, part = rank.spans[last], ""
    for span in rank.spans[: last + 1]:
        over = span is not running or span.end_s <= time_s
        for stage, pass_, microbatch, _ in passes(span.action):
            if pass_ == "F":
                held[stage].append(microbatch)
            elif over and pass_ in "BW":
                held[stage].remove(microbatch)
            if not over:
                slots = slots_of(rank.stages[stage], pass_, rank.pipe.inside[span.action])
                part = next((s.part.name for s in slots if span.start_s + s.begin_s <= time_s < span.start_s + s.end_s), part)
    updates = time_s >= _update_s(rank.pipe.updates[rank.place], ready_s)[0]
    return Peak(rank=rank.number, time_s=time_s, action="update" if updates else str(running.action), part=part,
                bytes=sum(kinds.values()), kinds=kinds, microbatches=held)


class _Levels(NamedTuple):
    """Bytes from a time on, by index of rank and of kind, in the order of rank, kind and time; arrays."""

    rank: NDArray[np.int64]
    kind: NDArray[np.int64]
    time_s: NDArray[np.float64]
    bytes: NDArray[np.int64]


class _Changes:
    """Gathers changes as arrays; a step has hundreds of thousands, of a few hundred kinds."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._blocks: list[tuple[NDArray[Any], ...]] = []

    def add(
        self, rank: int, starts_s: Sequence[float], changes: Iterable[Change], ends_s: Sequence[float] | None = None
    ) -> None:
        """Add the same changes on a rank once for each start, or end."""
        some = [change for change in changes if change.bytes]
        if not some:
            return
        starts = np.asarray(starts_s, dtype=float)[:, None]
        bases = np.where([change.from_end for change in some], np.asarray(ends_s or starts_s, dtype=float)[:, None], starts)
        time_s = (bases + [change.after_s for change in some]).ravel()
        kinds = [self._kinds.setdefault(change.kind, len(self._kinds)) for change in some]
        self._blocks.append((np.full(time_s.shape, rank), time_s, np.tile(kinds, starts.size),
                             np.tile(np.array([change.bytes for change in some], dtype=np.int64), starts.size)))

    def levels(self, by_kind: bool = True) -> _Levels:
        """Return what each rank holds (of each kind) from each time on at which something changes."""
        rank, time_s, kind, change = (np.concatenate(column) for column in zip(*self._blocks, strict=True))
        kind = kind * by_kind
        order = np.lexsort((time_s, kind, rank))
        rank, kind, time_s, change = rank[order], kind[order], time_s[order], change[order]
        other = (np.diff(rank) != 0) | (np.diff(kind) != 0)
        last = np.flatnonzero(np.concatenate([other | (np.diff(time_s) != 0), [True]]))
        level, firsts = np.cumsum(change), np.flatnonzero(np.concatenate([[True], other]))
        before = np.repeat(np.concatenate([[0], level])[firsts], np.diff([*firsts, len(level)]))
        return _Levels(rank[last], kind[last], time_s[last], (level - before)[last])

    def peaks(self, levels: _Levels, num_ranks: int) -> list[tuple[float, dict[str, int]]]:
        """Return when each rank first holds most, and what it holds then."""
        total = self.levels(by_kind=False)
        bounds = np.searchsorted(total.rank, np.arange(num_ranks + 1))
        peak_s = np.array([total.time_s[a + total.bytes[a:b].argmax()] for a, b in pairwise(bounds)])
        there = levels.time_s <= peak_s[levels.rank]
        other = np.concatenate([(np.diff(levels.rank) != 0) | (np.diff(levels.kind) != 0), [True]])
        names, found = list(self._kinds), [(float(s), dict[str, int]()) for s in peak_s]
        for i in np.flatnonzero(there & (other | ~np.concatenate([there[1:], [False]]))).tolist():
            found[levels.rank[i]][1][names[levels.kind[i]]] = int(levels.bytes[i])
        return found

    def rows(self, levels: _Levels, numbers: Sequence[int]) -> pd.DataFrame:
        """Return levels as rows of ranks by their numbers, without those at which nothing is other than before."""
        rank, kind, time_s, level = levels
        same = (np.diff(rank) == 0) & (np.diff(kind) == 0) & (np.diff(level) == 0)
        kept = np.concatenate([[True], ~same])
        return pd.DataFrame({
            "rank": np.asarray(numbers)[rank[kept]], "time_s": time_s[kept],
            "kind": np.array(list(self._kinds), dtype=object)[kind[kept]], "bytes": level[kept],
        })
