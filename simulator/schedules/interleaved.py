"""Interleaved 1F1B: each rank holds several chunks of layers. Narayanan et al., arXiv 2104.04473, section 2.2.2."""

from __future__ import annotations

from profiles.ops import Num
from simulator.schedules.actions import Action, Table


def rounds(num_ranks: Num, num_microbatches: Num) -> Num:
    """Return in how many rounds micro-batches go through the chunks: as many as there are p micro-batches, at least one."""
    whole = num_microbatches // num_ranks
    return whole + (whole < 1)


def whole_rounds(num_ranks: Num, num_microbatches: Num) -> Num:
    """Return whether all rounds are of one size."""
    return num_microbatches % rounds(num_ranks, num_microbatches) == 0


def whole_rounds_reason(num_ranks: int, num_microbatches: int) -> str:
    """Return why these micro-batches are not whole rounds, and which are."""
    return (f"needs micro-batches in rounds of one size: {num_microbatches} do not divide into "
            f"{rounds(num_ranks, num_microbatches)} rounds; use a multiple of the {num_ranks} pipeline ranks")


def in_rounds(num_ranks: int, num_microbatches: int, chunks: int) -> list[tuple[int, int]]:
    """Return chunk and micro-batch of a rank's forwards in order: each round goes through one chunk after the other."""
    group = num_microbatches // rounds(num_ranks, num_microbatches)
    return [
        (chunk, m)
        for start in range(0, num_microbatches, group)
        for chunk in range(chunks)
        for m in range(start, min(start + group, num_microbatches))
    ]


def warm_up(rank: int, num_ranks: int, num_microbatches: int, chunks: int, per_hop: int) -> int:
    """Return the forwards of a rank before its first backward: a round in all chunks but one, and `per_hop` for each rank
    behind it."""
    group = num_microbatches // rounds(num_ranks, num_microbatches)
    return int(min(num_microbatches * chunks, (chunks - 1) * group + per_hop * (num_ranks - 1 - rank)))


def interleaved_one_f_one_b(num_ranks: int, num_microbatches: int, chunks: int) -> Table:
    """Return the table; rank r holds stages r, r + p, ...; micro-batches go round the chunks in groups of about p."""
    order = in_rounds(num_ranks, num_microbatches, chunks)
    table: Table = []
    for rank in range(num_ranks):
        forwards = [Action(chunk * num_ranks + rank, "F", m) for chunk, m in order]
        backwards = [Action((chunks - 1 - chunk) * num_ranks + rank, "B", m) for chunk, m in order]
        ahead = warm_up(rank, num_ranks, num_microbatches, chunks, per_hop=2)
        row = forwards[:ahead]
        for step, backward in enumerate(backwards):
            row += [*forwards[ahead + step : ahead + step + 1], backward]
        table.append(row)
    return table
