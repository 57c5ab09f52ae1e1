"""ZB-V: two chunks a rank in the shape of a V, zero bubble with the memory of 1F1B. Qi et al., arXiv 2401.10241, section 6,
and arXiv 2405.15362 (V-ZB)."""

from __future__ import annotations

from itertools import count

from simulator.schedules.actions import Action, Table


def zbv(num_ranks: int, num_microbatches: int, chunks: int = 2) -> Table:
    """Return the table; without idle time inside where F, I and W take equally long.

    It is laid out for at least the 2 p - 1 micro-batches that fill the pipeline; of fewer, the others are left out.
    """
    return [
        [a for a in _row(rank, num_ranks, max(num_microbatches, 2 * num_ranks - 1)) if a.microbatch < num_microbatches]
        for rank in range(num_ranks)
    ]


def _row(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    stages = {"0": rank, "1": 2 * num_ranks - 1 - rank}
    counts = {pass_ + chunk: count() for pass_ in "FIW" for chunk in "01"}
    row: list[Action] = []

    def add(times: int, *what: str) -> None:
        for _ in range(times):
            row.extend(Action(stages[w[1]], w[0], next(counts[w])) for w in what)

    behind = num_ranks - rank
    # fill the way down, the way up, and start the backwards of the chunk at the end of the V
    add(2 * behind - 1, "F0")
    add(rank, "F1", "F0")
    add(behind, "F1", "I1", "W1")
    # the first chunk is behind - 1 forwards ahead, and runs out of them first
    add(num_microbatches - num_ranks - (behind - 1), "F0", "I0", "W0", "F1", "I1", "W1")
    add(behind - 1, "I0", "W0", "F1", "I1", "W1")
    # drain: input gradients first, others wait for them; weight gradients fill up
    add(rank, "I0", "I1")
    add(behind, "I0", "W0")
    add(rank, "W1")
    add(rank, "W0")
    return row
