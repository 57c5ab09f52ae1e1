"""What a table holds: micro-batches whose activations are alive."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.schedules.actions import Table, passes


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
