"""Interleaved 1F1B: each rank holds several chunks of layers. Narayanan et al., arXiv 2104.04473, section 2.2.2."""

from __future__ import annotations

from profiles.files import BadInput
from simulator.schedules.actions import Action, Table


def interleaved_one_f_one_b(num_ranks: int, num_microbatches: int, chunks: int) -> Table:
    """Return the table; rank r holds stages r, r + p, ...; micro-batches go round the chunks in groups of about p."""
    rounds = max(1, num_microbatches // num_ranks)
    if num_microbatches % rounds:
        raise BadInput(
            f"schedule: interleaved 1F1B needs micro-batches in rounds of one size: {num_microbatches} do not divide "
            f"into {rounds} rounds; use a multiple of the {num_ranks} pipeline ranks"
        )
    group, total = num_microbatches // rounds, num_microbatches * chunks

    def place(step: int) -> tuple[int, int]:
        """Return chunk and micro-batch of a rank's step-th pass."""
        turn, within = divmod(step, group)
        return turn % chunks, turn // chunks * group + within

    table: Table = []
    for rank in range(num_ranks):
        warm_up = min(total, (chunks - 1) * group + 2 * (num_ranks - 1 - rank))

        def forward(step: int, rank: int = rank) -> Action:
            chunk, microbatch = place(step)
            return Action(chunk * num_ranks + rank, "F", microbatch)

        def backward(step: int, rank: int = rank) -> Action:
            chunk, microbatch = place(step)
            return Action((chunks - 1 - chunk) * num_ranks + rank, "B", microbatch)

        row = [forward(step) for step in range(warm_up)]
        for step in range(total):
            if warm_up + step < total:
                row.append(forward(warm_up + step))
            row.append(backward(step))
        table.append(row)
    return table
