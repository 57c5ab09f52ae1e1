"""Bytes alive at the peak of a step, by what holds them; the same code for one strategy and for a batch.

States stay for a step (`states.py`), activations come and go (`part_bytes.py`). The peak is the largest of a step's
moments: the loss and the backward of a layer wherever the schedule's table holds most (`schedules/moments.py`), the end
of backward, the update. `memory_timeline.py` has every moment of a replayed step.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiles.hardware import Accelerator
from profiles.model import ModelSpec, Part
from profiles.ops import Num
from simulator.layout import devices, stage_parts
from simulator.part_bytes import LOSS_PARTS, PartBytes, Pieces, pieces_of
from simulator.schedules import SCHEDULES, Table, homes, stage_rank
from simulator.schedules.moments import Kinds, Moments, covers, enough, moments_of_ranks, rank_moments, row_moments
from simulator.software import Software
from simulator.states import ROOTS
from simulator.strategy import Pipe, Strategy, by_pipe
from simulator.workload import Workload

Held = dict[str, Num]
"""Bytes by what holds them."""
TAKEN = "all that there is"
"""Where accelerators are unlike, their bytes, less than zero: the rest of a rank's bytes and these is what it lacks."""
BLOCK = 4096
"""Strategies that are priced at once: as many as the caches of a processor hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Peak bytes of the fullest rank, what they are, and what its accelerator offers; fields may be arrays.

    In a pool of unlike accelerators the fullest rank is the one that has least left.
    """

    peak_bytes: Num
    usable_bytes: Num
    parts_bytes: dict[str, Num]

    @property
    def fits(self) -> Num:
        """Return whether the peak fits."""
        return self.peak_bytes <= self.usable_bytes


def peak_memory(workload: Workload, accelerator: Accelerator) -> Memory:
    """Return the peak of the fullest pipeline rank of each strategy."""
    strategy, pieces = workload.strategy, pieces_of(workload)
    blocks, held = _blocks(strategy), Held()
    if len(blocks) == 1:
        held = _fullest_rank(workload.model, strategy.software, pieces, accelerator, blocks[0][0])
    else:
        for pipe, where in blocks:
            some = _fullest_rank(workload.model, strategy.software, pieces.pick(where), accelerator, pipe)
            for name, value in some.items():
                held.setdefault(name, np.zeros(len(strategy)))[where] = value
    usable = -held.pop(TAKEN) if accelerator.parts else accelerator.memory_bytes
    return Memory(peak_bytes=sum(held.values()), usable_bytes=usable, parts_bytes=held)


def lacking_bytes(model: ModelSpec, strategy: Strategy, whole: Pieces, accelerator: Accelerator) -> NDArray[np.float64]:
    """Return what the fullest rank of each strategy holds beyond its memory where all fit, which is then no more than 0; else
    what the first that does not fit lacks, which is no more than the fullest does.

    Ranks that are left are priced only where those before fit. `whole` are the strategies' `pieces_of`, which are the same
    under all pipes that split backward, and under all that do not.
    """
    found = np.full(len(strategy), -np.inf)
    for pipe, left in _blocks(strategy):
        pieces = whole if len(left) == len(strategy) else whole.pick(left)
        for i, own, kind in _distinct_ranks(model, pieces, accelerator, pipe):
            held = _rank_peak(pieces, own, _moments_of_pipe(pipe, i, own, pieces), strategy.software, kind)
            lacks = np.broadcast_to(sum(held.values()) - kind.memory_bytes, left.shape)
            found[left] = np.maximum(found[left], lacks)
            fits = np.flatnonzero(lacks <= 0)
            if not len(fits):
                break
            if len(fits) < len(left):
                left, pieces = left[fits], pieces.pick(fits)
    return found


def _blocks(strategy: Strategy) -> list[tuple[Pipe, NDArray[np.int64]]]:
    return [(pipe, pipe.where[i : i + BLOCK]) for pipe in by_pipe(strategy) for i in range(0, len(pipe.where), BLOCK)]


def mean_states(model: ModelSpec, pieces: Pieces, pp: int) -> Num:
    """Return the bytes of weights and optimizer states that pipeline ranks hold on the average: the peak of the fullest is no
    less."""
    counts: Counter[Part] = Counter()
    for part, num in stage_parts(model, 1)[0]:
        counts[part] += num
    return sum(num * (pieces.parts[part].weights + pieces.parts[part].optimizer) for part, num in counts.items()) / pp


def _fullest_rank(model: ModelSpec, software: Software, pieces: Pieces, accelerator: Accelerator, pipe: Pipe) -> Held:
    return reduce(_fuller, (
        _rank_peak(pieces, own, _moments_of_pipe(pipe, i, own, pieces), software, kind)
        | ({TAKEN: -kind.memory_bytes} if accelerator.parts else {})
        for i, own, kind in _distinct_ranks(model, pieces, accelerator, pipe)))


def _distinct_ranks(
    model: ModelSpec, pieces: Pieces, accelerator: Accelerator, pipe: Pipe
) -> Iterator[tuple[int, list[OwnStage], Accelerator]]:
    """Return the ranks of a pipe of which one is the fullest, with their stages, on each kind of accelerator under them."""
    ranks, kinds = _ranks_of_pipe(model, pipe), devices(accelerator, pipe.pp)
    alike = tuple((tuple(kind.name for kind in kinds[i]), *((tuple(stage.parts), *stage[2:]) for stage in own))
                  for i, own in enumerate(ranks))
    sizes = tuple(np.unique(enough(pipe.schedule, pipe.pp, pieces.num_microbatches)).tolist())
    for i in _fullest(pipe.schedule, sizes, alike, tuple(kinds_of(own) for own in ranks)):
        yield from ((i, ranks[i], kind) for kind in kinds[i])


@lru_cache(maxsize=4096)
def _fullest(
    schedule: str, sizes: tuple[int, ...], alike: tuple[tuple[Any, ...], ...], kinds: tuple[Kinds, ...]
) -> tuple[int, ...]:
    """Return the ranks of a pipe that may hold most: of those with `alike` stages, those that no other covers."""
    # the first or the last holds most, but where halves of backwards wait in between
    split = SCHEDULES[schedule].splits_backward
    apart = {i: kinds[i] for i, own in enumerate(alike) if split or own not in alike[:i] or own not in alike[i + 1 :]}
    known = moments_of_ranks(schedule, len(alike), np.array(sizes), apart)
    fullest: list[int] = []
    for i, moments in known.items():
        same = [other for other in fullest if alike[other] == alike[i]]
        if not any(covers(known[other], moments) for other in same):
            fullest = [other for other in fullest if other not in same or not covers(moments, known[other])] + [i]
    return tuple(fullest)


def _fuller(one: Held, other: Held) -> Held:
    more = np.asarray(sum(other.values()) > sum(one.values()))
    if not more.ndim:
        return other if more else one
    return {name: np.where(more, other[name], one[name]) for name in one}


def rank_memory(workload: Workload, accelerator: Accelerator, rank: int, table: Table | None = None) -> Held:
    """Return the bytes of a pipeline rank at its peak, by what holds them; of unlike accelerators on the one with least left.

    All strategies have one pp, chunks and schedule; a `table` takes the place of the schedule.
    """
    pieces, software, pipe = pieces_of(workload), workload.strategy.software, by_pipe(workload.strategy)[0]
    if table:
        own = stages_by_rank(workload.model, homes(table), workload.strategy.split)[rank]
        moments = row_moments(table[rank], [one.stage for one in own], kinds_of(own))
    else:
        own = _ranks_of_pipe(workload.model, pipe)[rank]
        moments = _moments_of_pipe(pipe, rank, own, pieces)
    kinds = devices(accelerator, len(table) if table else pipe.pp)[rank]
    held = reduce(_fuller, (_rank_peak(pieces, own, moments, software, kind) | {TAKEN: -kind.memory_bytes} for kind in kinds))
    return {name: value for name, value in held.items() if name != TAKEN}


class OwnStage(NamedTuple):
    """A stage on its rank: its number, its parts in runs of like ones, and whether the stages before and behind it stand on
    other ranks."""

    stage: int
    parts: list[tuple[Part, int]]
    before: bool
    behind: bool


def _ranks_of_pipe(model: ModelSpec, pipe: Pipe) -> list[list[OwnStage]]:
    home = {s: int(stage_rank(pipe.schedule, s, pipe.pp)) for s in range(pipe.pp * _chunks(pipe))}
    return stages_by_rank(model, home, pipe.split)


def _moments_of_pipe(pipe: Pipe, rank: int, own: Sequence[OwnStage], pieces: Pieces) -> Moments:
    return rank_moments(pipe.schedule, rank, pipe.pp, pieces.num_microbatches, kinds_of(own))


def kinds_of(own: Sequence[OwnStage]) -> Kinds:
    """Return the kinds of a rank's stages: which are alike but for their numbers, counted from 0."""
    known: list[tuple[Any, ...]] = []
    for stage in own:
        known += [stage[1:]] * (stage[1:] not in known)
    return tuple(known.index(stage[1:]) for stage in own)


def _one_of_each(own: Sequence[OwnStage]) -> list[OwnStage]:
    return list(dict(zip(kinds_of(own), own, strict=True)).values())


def _chunks(pipe: Pipe) -> int:
    return pipe.chunks if pipe.pp > 1 else 1


def stages_by_rank(model: ModelSpec, home: dict[int, int], split: str) -> list[list[OwnStage]]:
    """Return the stages of each rank, in the order of the model, where stages stand as `home` says."""
    num_ranks = 1 + max(home.values())
    parts = stage_parts(model, num_ranks, len(home) // num_ranks, split)
    found: list[list[OwnStage]] = [[] for _ in range(num_ranks)]
    for s, rank in sorted(home.items()):
        found[rank].append(OwnStage(s, parts[s], home.get(s - 1, rank) != rank, home.get(s + 1, rank) != rank))
    return found


def _rank_peak(
    pieces: Pieces, own: Sequence[OwnStage], moments: Moments, software: Software, accelerator: Accelerator
) -> Held:
    """Return the bytes of a rank at its peak: the largest of its moments, and what is there at all times."""
    every = [(pieces.parts[part], num) for stage in own for part, num in stage.parts]
    waiting, roots = waiting_bytes(pieces, own, moments, software), _times(_roots(pieces, own), "gathered")
    activations = waiting.layers + waiting.losses + waiting.piped
    # what waits and what a pass does beside it add up, so each is at its most alone
    alike: dict[tuple[int, str, bool], list[int]] = defaultdict(list)
    for i, (kind, pass_, first) in enumerate(moments.passes):
        alike[kind, pass_, first and software.late_gradients].append(i)
    peaks, kinds = [], _one_of_each(own)
    for (kind, pass_, makes), some in alike.items():
        which = (activations[some] + waiting.gradients[some]).argmax(axis=0)[None]
        there = {"activations": activations, "gradients": waiting.gradients}
        now = {name: np.take_along_axis(value[some], which, axis=0)[0] for name, value in there.items()}
        parts = kinds[kind].parts
        passes = _forward_bytes(pieces, parts) if pass_ == "F" else _backward_bytes(pieces, parts, pass_, makes)
        inside = reduce(_fuller, passes)
        peaks.append(inside | {name: inside[name] + value for name, value in (now | {"gathered": roots}).items()})
    gradients = _times(every, "gradients")
    # the last gradient is on its way when the update begins
    left = waiting.piped[0] if software.pipe_buffers else any(stage.before for stage in own) * pieces.send
    peaks.append({"activations": left, "transient": 0.0, "gathered": roots, "gradients": gradients})
    update = _times(every, "in_update")
    if np.any(update):
        # what copies narrow gradients for the update frees them
        kept = 0.0 if pieces.copies else gradients
        peaks.append({"activations": left, "transient": update, "gathered": 0.0, "gradients": kept})
    states = {name: _times(every, name) for name in ("weights", "optimizer")}
    peak = states | reduce(_fuller, peaks)
    peak["gathered"] = peak["gathered"] + pieces.buckets
    slack = slack_bytes(pieces, own, waiting, accelerator, peak)
    order = ("weights", "gradients", "optimizer", "gathered", "activations", "transient")
    return {name: peak[name] for name in order} | {"framework": accelerator.framework_bytes, "slack": slack}


def _times(parts: Sequence[tuple[PartBytes, int]], field: str) -> Num:
    return sum((getattr(part, field) * num for part, num in parts), 0.0)


def _roots(pieces: Pieces, own: Sequence[OwnStage]) -> list[tuple[PartBytes, int]]:
    return [(pieces.parts[part], num) for stage in own for part, num in stage.parts if part in ROOTS]


class Waiting(NamedTuple):
    """Bytes that wait at each moment, [moment, strategy]: activations of layers and of losses, what lies between stages,
    gradients."""

    layers: NDArray[np.float64]
    losses: NDArray[np.float64]
    piped: NDArray[np.float64]
    gradients: NDArray[np.float64]


def waiting_bytes(pieces: Pieces, own: Sequence[OwnStage], moments: Moments, software: Software) -> Waiting:
    """Return what waits on a rank at each of its moments."""
    whole, rest, made = moments.held[:, :, 0], moments.held[:, :, 1], moments.held[:, :, 2]
    kinds = _one_of_each(own)
    shape = np.broadcast_shapes(*(np.shape(value) for value in pieces.values()))
    members = [_run_of(np.flatnonzero(moments.where == i)) for i in range(len(moments.held))]

    def of(times: NDArray[np.int64], values: Sequence[Num]) -> NDArray[np.float64]:
        """Return so many times the values of each kind, added up."""
        if not any(np.ndim(value) or value for value in values):
            return np.zeros((times.shape[1], *[1] * len(shape)))
        matrix = np.stack([np.broadcast_to(np.asarray(value, dtype=float), shape) for value in values])
        found = np.empty((times.shape[1], *shape))
        if len(times) == 1:
            return np.tensordot(times[0].astype(float), matrix, axes=1)
        for rows, some in zip(times.astype(float), members, strict=True):
            found[:, some] = rows @ matrix[:, some]
        return found

    def each(field: str, loss: bool) -> list[Num]:
        return [_times([(pieces.parts[part], num) for part, num in stage.parts if (part in LOSS_PARTS) == loss], field)
                for stage in kinds]

    split = bool(rest.any())
    times = np.concatenate([whole, rest], axis=2) if split else whole
    layers, losses = (of(times, each("saved", loss) + (each("deferred", loss) if split else [])) for loss in (False, True))
    gradients = [one + other for one, other in zip(each("gradients", False), each("gradients", True), strict=True)]
    late = made if software.late_gradients else np.ones_like(made) * np.bincount(kinds_of(own))
    return Waiting(layers, losses, of(*_piped_bytes(pieces, own, whole, software)), of(late, gradients))


def _run_of(indices: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Return indices as a slice where they are a run: no copy is made of what it picks."""
    first, last = (int(indices[0]), int(indices[-1])) if len(indices) else (0, -1)
    return slice(first, last + 1) if last - first + 1 == len(indices) else indices


def _piped_bytes(
    pieces: Pieces, own: Sequence[OwnStage], whole: NDArray[np.int64], software: Software
) -> tuple[NDArray[np.int64], list[Num]]:
    """Return how often a pipeline holds which bytes between stages: a received and a sent tensor, forward and backward, for
    each neighbour.

    A stage has one in front and one behind, where these stand on other ranks. torch's runtime keeps the four of every
    micro-batch until the step ends (measured: 2 m). Others have one of each at a time, and where they keep what they
    have sent, that of each micro-batch that waits `whole` for its backward.
    """
    once = np.ones_like(whole[:, :, :1])
    if software.pipe_buffers:
        return once, [2 * sum(stage.before + stage.behind for stage in own) * (pieces.num_microbatches * pieces.send)]
    tensors = 2 * (any(stage.before for stage in own) + any(stage.behind for stage in own)) * once
    if software.keeps_sent:
        tensors = tensors + (whole * [stage.behind for stage in _one_of_each(own)]).sum(axis=2, keepdims=True)
    return tensors, [pieces.send]


def _forward_bytes(pieces: Pieces, parts: Sequence[tuple[Part, int]]) -> Iterator[Held]:
    """Return what a forward of a stage adds to what waits, at each part at which that may be most: the last two of a run."""
    saved: Num = 0.0
    for i, (name, num) in enumerate(parts):
        part = pieces.parts[name]
        for k in range(max(num - 2, 0), num):
            ahead = name if k + 1 < num else parts[i + 1][0] if i + 1 < len(parts) else ""
            yield {"activations": saved + (k + 1) * part.saved, "transient": part.in_pass("F"),
                   "gathered": _gathered(pieces, name, ahead), "gradients": 0.0}
        saved = saved + num * part.saved


def _gathered(pieces: Pieces, name: Part, ahead: Part) -> Num:
    """Return the weights that ZeRO-3 has gathered for a part and, one ahead, for the next; those of roots are there anyway."""
    return sum((pieces.parts[one].gathered for one in (name, ahead) if one and one not in ROOTS), 0.0)


def _backward_bytes(pieces: Pieces, parts: Sequence[tuple[Part, int]], pass_: str, makes: bool) -> Iterator[Held]:
    """Return what a backward of a stage adds to what waits, less what it has freed, at each part at which that may be most.

    That is the first of a run of like parts, and its last two where something grows from part to part. A pass that `makes`
    gradients has those of the parts behind it.
    """
    back = [(name, pieces.parts[name], num) for name, num in reversed(parts)]
    reduced_roots = _times([(part, num) for name, part, num in back if name in ROOTS], "reduced")
    gone: Num = 0.0
    made: Num = 0.0
    for i, (name, part, num) in enumerate(back):
        frees = part.gone_behind(pass_)
        for k in sorted({0, num - 2, num - 1} - {-1}) if makes or pass_ == "I" else [0]:
            ahead = name if k + 1 < num else back[i + 1][0] if i + 1 < len(back) else ""
            # those of embedding and head go together, when all is done
            reduced = part.reduced if name not in ROOTS else reduced_roots * (name == "embedding")
            # the gradient of an embedding is there from the start, to be filled
            gradients = made + part.gradients * (k + (name == "embedding"))
            yield {
                "activations": -(gone + k * frees), "transient": part.in_pass(pass_),
                "gathered": _gathered(pieces, name, ahead) * (pass_ != "W") + reduced * (pass_ == "B"),
                "gradients": makes * gradients,
            }
        gone, made = gone + num * frees, made + num * part.gradients


def slack_bytes(pieces: Pieces, own: Sequence[OwnStage], waiting: Waiting, accelerator: Accelerator, peak: Held) -> Num:
    """Return the bytes that the caching allocator holds and cannot use at the peak.

    A share of what comes and goes, and what has lived before (in a layer's forward, and logits as computed, too) in
    blocks too small for the largest tensors of a step, the logits in fp32 and flat copies for the update: blocks are split,
    never joined, and go back to the device only where an allocation would fail (CUDACachingAllocator.cpp).
    """
    dynamic = peak["activations"] + peak["transient"]
    if not accelerator.allocator_slack:
        return 0.0 * dynamic
    # gradients of a single micro-batch take the place of activations
    small = (waiting.layers + waiting.piped + np.where(pieces.single, 0.0, waiting.gradients)).max(axis=0)
    large: Num = waiting.losses.max(axis=0)
    parts = {part: pieces.parts[part] for stage in own for part, _ in stage.parts}
    forward = reduce(np.maximum, (one.in_forward for part, one in parts.items() if part not in LOSS_PARTS), 0.0)
    losses = [one for part, one in parts.items() if part in LOSS_PARTS]
    for field in ("in_backward", "in_forward"):
        large = large + reduce(np.maximum, (getattr(one, field) for one in losses), 0.0)
    update = _times([(pieces.parts[part], num) for stage in own for part, num in stage.parts], "in_update")
    share = accelerator.allocator_slack * dynamic
    room = accelerator.memory_bytes - accelerator.framework_bytes - sum(peak.values()) - share
    apart = small + forward + np.maximum(large, update)
    return share + np.clip(apart - dynamic - peak["gradients"], 0.0, np.maximum(room, 0.0))
