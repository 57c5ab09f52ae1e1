"""Breadth-first looped pipeline: all micro-batches through one chunk, then the next. Lamy-Poirier, arXiv 2211.05953."""

from __future__ import annotations

from simulator.schedules.actions import Action, Table


def looped_bfs(num_ranks: int, num_microbatches: int, chunks: int) -> Table:
    """Return the table; a rank holds all micro-batches of all its chunks at the turn, so the last to go in comes out
    first."""
    table: Table = []
    for rank in range(num_ranks):
        stages = range(rank, num_ranks * chunks, num_ranks)
        row = [Action(s, "F", m) for s in stages for m in range(num_microbatches)]
        table.append(row + [Action(s, "B", m) for s in reversed(stages) for m in reversed(range(num_microbatches))])
    return table
