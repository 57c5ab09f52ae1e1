"""GPipe: all forwards, then all backwards. Huang et al., arXiv 1811.06965."""

from __future__ import annotations

from simulator.schedules.actions import Action, Table


def gpipe(num_ranks: int, num_microbatches: int, chunks: int = 1) -> Table:
    """Return the table for one chunk; every stage holds all micro-batches at the turn."""
    return [
        [Action(s, "F", m) for m in range(num_microbatches)] + [Action(s, "B", m) for m in range(num_microbatches)]
        for s in range(num_ranks)
    ]
