"""Zero bubble with the memory of 1F1B (ZB-H1) and its interleaved form. Qi et al., arXiv 2401.10241, section 2."""

from __future__ import annotations

from simulator.schedules.actions import Action, Table
from simulator.schedules.interleaved import in_rounds, warm_up


def interleaved_zero_bubble(num_ranks: int, num_microbatches: int, chunks: int) -> Table:
    """Return the table; with one chunk it is ZB-H1.

    The input gradient goes back at once. Rank r puts a weight gradient off by r input gradients, so that all ranks hold
    as many activations as the first and the weight gradients that are left fill the time behind the last input gradient.
    """
    order = in_rounds(num_ranks, num_microbatches, chunks)
    table: Table = []
    for rank in range(num_ranks):
        forwards = [Action(chunk * num_ranks + rank, "F", m) for chunk, m in order]
        stages = [((chunks - 1 - chunk) * num_ranks + rank, m) for chunk, m in order]
        weights = [Action(stage, "W", m) for stage, m in stages]
        ahead = warm_up(rank, num_ranks, num_microbatches, chunks, per_hop=1)
        row = forwards[:ahead]
        for step, (stage, m) in enumerate(stages):
            row += [*forwards[ahead + step : ahead + step + 1], Action(stage, "I", m)]
            if step >= rank:
                row.append(weights[step - rank])
        table.append(row + weights[max(len(weights) - rank, 0):])
    return table
