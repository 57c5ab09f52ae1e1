"""What tables hold: micro-batches whose activations are alive, counted in a table and by each schedule's law."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from profiles.ops import Num
from simulator.schedules import Table, passes
from simulator.schedules.interleaved import rounds


def most_held(table: Table, whole: Sequence[float] | None = None, rest: Sequence[float] | None = None) -> list[float]:
    """Return per rank the most that is alive at once of the activations of micro-batches in its stages.

    A micro-batch in stage s holds `whole[s]` from its F to its B or I; where backward is split, `rest[s]` of it stays from
    I to W (what the weight gradients need). Both are 1 by default: then it is a count of (stage, micro-batch). Of an
    overlapped pair the forward's are there before the backward's are gone.
    """
    num_stages = 1 + max((a.stage for row in table for slot in row for a in passes(slot)), default=-1)
    whole = [1] * num_stages if whole is None else whole
    rest = whole if rest is None else rest
    peaks: list[float] = []
    for row in table:
        held = peak = 0.0
        for stage, pass_, _, _ in (a for slot in row for a in passes(slot)):
            held += {"F": whole[stage], "B": -whole[stage], "I": rest[stage] - whole[stage], "W": -rest[stage]}[pass_]
            peak = max(peak, held)
        peaks.append(peak)
    return peaks


def turned(rank: Num, p: Num, m: Num, v: Num) -> Num:
    """Return what 1F1B holds: p - rank (arXiv 2104.04473, section 2.2.1)."""
    return np.minimum(m, p - rank) + 0 * v


def chunked(rank: Num, p: Num, m: Num, v: Num) -> Num:
    """Return what interleaved 1F1B holds: (v - 1) g + 2 (p - rank - 1) + 1 (arXiv 2104.04473, section 2.2.2), where
    micro-batches go round the chunks in groups of g: p, or more where p does not divide them."""
    return np.minimum(m * v, (v - 1) * (m / rounds(p, m)) + 2 * (p - rank - 1) + 1)


def all_forward(rank: Num, p: Num, m: Num, v: Num) -> Num:
    """Return what schedules hold that send all micro-batches forward first."""
    return m * v + 0 * (rank + p)


def bubbleless(rank: Num, p: Num, m: Num, v: Num) -> Num:
    """Return what zero-bubble schedules hold until the gradients of weights: (v - 1) g + p (arXiv 2401.10241, section 2)."""
    return np.minimum(m * v, (v - 1) * (m / rounds(p, m)) + p) + 0 * rank


def v_held(rank: Num, p: Num, m: Num, v: Num) -> Num:
    """Return what ZBV holds: 2 p chunks, p micro-batches of a rank's layers (arXiv 2405.15362)."""
    return np.minimum(np.minimum(2 * m, m + 1 + rank), 2 * p) + 0 * v


def dual_held(rank: Num, p: Num, m: Num, v: Num) -> Num:
    """Return what DualPipeV holds: 2 p + 1 chunks (arXiv 2412.19437, table 2, folded)."""
    return 2 * p + 1 + 0 * (rank + m + v)


HELD: dict[str, Callable[[Num, Num, Num, Num], Num]] = {
    "1F1B": turned, "GPipe": all_forward, "Interleaved1F1B": chunked, "LoopedBFS": all_forward, "ZBH1": bubbleless,
    "InterleavedZeroBubble": bubbleless, "ZBV": v_held, "DualPipeV": dual_held,
}
"""Schedule -> the most (stage, micro-batch) activations that a rank holds, of (rank, ranks, micro-batches, chunks)."""
