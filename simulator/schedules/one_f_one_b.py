"""1F1B (PipeDream-Flush): one forward, one backward in turn. Narayanan et al., arXiv 2006.09503 and 2104.04473."""

from __future__ import annotations

from simulator.schedules.actions import Action, Table


def one_f_one_b(num_ranks: int, num_microbatches: int, chunks: int = 1) -> Table:
    """Return the table for one chunk; stage s holds at most num_ranks - s micro-batches."""
    table: Table = []
    for stage in range(num_ranks):
        warm_up = min(num_microbatches, num_ranks - stage)
        row = [Action(stage, "F", m) for m in range(warm_up)]
        for m in range(num_microbatches):
            row.append(Action(stage, "B", m))
            if warm_up + m < num_microbatches:
                row.append(Action(stage, "F", warm_up + m))
        table.append(row)
    return table
