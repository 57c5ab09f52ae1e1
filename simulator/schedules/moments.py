"""When a rank may hold most: the starts of its passes, and what waits for their backwards, from the row of its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiles.ops import Num
from simulator.schedules import Action, build_schedule, passes, rank_stages
from simulator.schedules.interleaved import rounds

STATED = ("1F1B", "GPipe", "LoopedBFS")
"""Schedules whose moments are known without a table."""
_ROUNDS = 4
"""Rounds of micro-batches after which a schedule repeats itself."""


class Moments(NamedTuple):
    """Starts of passes of a rank: `passes` says of each the kind of its stage, the pass, and whether it is the first B or W of
    a stage, which makes its gradients.

    `held` [size, moment, 3, kind] says of each kind of stage how many micro-batches wait whole for their B or I, of how many
    the rest waits for its W, and how many stages have gradients. `size` numbers the sizes of a step that differ; `where` is
    that of each strategy of a batch.
    """

    passes: list[Start]
    held: NDArray[np.int64]
    where: NDArray[np.int64]


Start = tuple[int, str, bool]
Kinds = tuple[int, ...]
"""The kinds of a rank's stages, in the order of the model: alike are those whose parts and neighbours are."""


def rank_moments(name: str, rank: int, p: int, m: Num, kinds: Kinds) -> Moments:
    """Return the moments of a rank of a schedule, with stages of some `kinds`, of `m` micro-batches, which may be an array.

    Left out are those at which it holds no more than at others, whatever a micro-batch and gradients take.
    """
    sizes, where = np.unique(enough(name, p, m), return_inverse=True)
    if name in STATED:
        starts = [(kind, "B", first) for kind in kinds for first in (True, False)]
        return Moments(starts, _stated(name, rank, p, sizes, len(kinds)) @ _one_of(kinds), where)
    return _side_by_side([_tabled(name, rank, p, size, kinds) for size in sizes.tolist()], where)


def moments_of_ranks(name: str, p: int, m: Num, kinds: Mapping[int, Kinds]) -> dict[int, Moments]:
    """Return the moments of some ranks of a schedule; each of its tables is made once for all of them."""
    if name not in STATED:
        for size in np.unique(enough(name, p, m)).tolist():
            for rank, own in kinds.items():
                _tabled(name, rank, p, size, own)
    return {rank: rank_moments(name, rank, p, m, own) for rank, own in kinds.items()}


def covers(one: Moments, other: Moments) -> bool:
    """Return whether at each moment of another rank with the same stages this one holds as much or more at one of its own."""
    if len(one.held) != len(other.held):
        return False
    alike = np.array([[start == own for own in one.passes] for start in other.passes])
    more = (other.held[:, :, None] <= one.held[:, None]).all(axis=(3, 4))
    return bool((more & alike).any(axis=2).all())


def _one_of(kinds: Kinds) -> NDArray[np.int64]:
    """Return 1 where a stage [row] is of a kind [column]."""
    return np.equal.outer(kinds, np.arange(max(kinds) + 1)).astype(np.int64)


def _stated(name: str, rank: int, p: int, m: NDArray[np.int64], v: int) -> NDArray[np.int64]:
    """Return what is held at the first backward of each stage and at the second, which of one micro-batch is the first."""
    held = np.zeros((len(m), v, 2, 3, v), dtype=np.int64)
    for stage in range(v):
        held[:, stage, :, 0, :stage] = m[:, None, None]
        held[:, stage, :, 0, stage] = m[:, None]
        held[:, stage, 1, 0, stage] -= m > 1
        held[:, stage, 1, 2, stage] = m > 1
        held[:, stage, :, 2, stage + 1 :] = 1
    if name == "1F1B":
        held[:, :, :, 0] = np.minimum(held[:, :, :, 0], p - rank)
    return held.reshape(len(m), 2 * v, 3, v)


def enough(name: str, p: int, m: Num) -> Num:
    """Return as many micro-batches as show all that a schedule does."""
    if name in ("Interleaved1F1B", "InterleavedZeroBubble"):
        return np.minimum(m, _ROUNDS * (m // rounds(p, m)))
    return np.minimum(m, _ROUNDS * p) if name == "1F1B" or name not in STATED else m


class Row(NamedTuple):
    """The actions of a rank in turn: the stage of each, and its pass as a byte."""

    stages: NDArray[np.int32]
    passes: NDArray[np.bytes_]


@lru_cache(maxsize=256)
def _rows(name: str, p: int, m: int, v: int) -> tuple[Row, ...]:
    return tuple(map(_row, build_schedule(name, p, m, v)))


def _row(row: Sequence[Action]) -> Row:
    actions = [a for slot in row for a in passes(slot)]
    return Row(np.array([a.stage for a in actions], dtype=np.int32), np.array([a.pass_ for a in actions], dtype="S1"))


@lru_cache(maxsize=2**15)
def _tabled(name: str, rank: int, p: int, m: int, kinds: Kinds) -> Moments:
    return _moments(_rows(name, p, m, len(kinds))[rank], rank_stages(name, rank, p, len(kinds)), kinds)


def _side_by_side(each: Sequence[Moments], where: NDArray[np.int64]) -> Moments:
    """Return the moments of several sizes as one; of which one has fewer it has some at which nothing is held."""
    if len(each) == 1:
        return each[0]._replace(where=where)
    counts = [Counter(one.passes) for one in each]
    most = {start: max(count[start] for count in counts) for count in counts for start in count}
    begins = dict(zip(most, np.cumsum([0, *most.values()]).tolist(), strict=False))
    held = np.zeros((len(each), sum(most.values()), *each[0].held.shape[2:]), dtype=np.int64)
    for i, (one, count) in enumerate(zip(each, counts, strict=True)):
        # moments of like passes stand together
        held[i, [begins[start] + k for start, num in count.items() for k in range(num)]] = one.held[0]
    return Moments([start for start, num in most.items() for _ in range(num)], held, where)


def row_moments(row: Sequence[Action], stages: Sequence[int], kinds: Kinds) -> Moments:
    """Return the moments in a row of a table, of a rank that holds these stages."""
    return _moments(_row(row), stages, kinds)


def _moments(row: Row, stages: Sequence[int], kinds: Kinds) -> Moments:
    v, one = len(stages), row.stages[:, None] == np.array(stages)
    forward, whole, split, weight = (one & (row.passes == name)[:, None] for name in (b"F", b"B", b"I", b"W"))
    change = np.stack([forward.astype(int) - (whole | split), split.astype(int) - weight, whole | weight], axis=1)
    before = np.cumsum(change, axis=0) - change
    again = before[:, 2] > 0
    before[:, 2] = again
    held, one_of = before @ _one_of(kinds), _one_of(kinds) > 0
    starts: list[Start] = []
    found: list[NDArray[np.int64]] = []
    # a forward holds no more than the backward of the same stage that follows; of several stages they are others
    for name, begins in (*((("F", forward),) if v > 1 else ()), ("B", whole), ("I", split), ("W", weight)):
        for first in (True, False) if name in "BW" else (False,):
            some = begins & (again != first) if name in "BW" else begins
            for kind in range(one_of.shape[1]):
                most = _largest(held[some[:, one_of[:, kind]].any(axis=1)])
                starts += [(kind, name, first)] * len(most)
                found += most
    return Moments(starts, np.array(found)[None], np.array(0))


def _largest(held: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return what is held at the ends of even runs, and of that what no other has as much of in everything."""
    if len(held) > 2:
        turns = (np.diff(held, n=2, axis=0) != 0).any(axis=(1, 2))
        held = held[np.concatenate([[True], turns, [True]])]
    left = held[np.argsort(-held.sum(axis=(1, 2)), kind="stable")]
    found = []
    while len(left):
        found.append(left[0])
        left = left[(left > left[0]).any(axis=(1, 2))]
    return found
