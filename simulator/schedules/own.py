"""A user's own schedule: a table in a CSV file, in torch's grammar."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profiles.files import BadInput, read_text
from simulator.schedules.actions import Table, parse_table, passes
from simulator.schedules.checks import check_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a table says of itself; stage s stands on rank `stage_ranks[s]`, and each rank holds `chunks` stages."""

    num_ranks: int
    num_stages: int
    num_microbatches: int
    stage_ranks: tuple[int, ...]
    splits_backward: bool

    @property
    def chunks(self) -> int:
        """Return the stages that each rank holds."""
        return self.num_stages // self.num_ranks


def load_table(path: str | Path) -> tuple[Table, Shape]:
    """Return the table in a CSV file, one rank a line, and its shape; a table that cannot run is refused in one line."""
    table = parse_table(read_text(path), str(path))
    return table, table_shape(table, str(path))


def table_shape(table: Table, origin: str = "schedule") -> Shape:
    """Return the shape of a table, which is checked."""
    every = [(rank, a) for rank, row in enumerate(table) for slot in row for a in passes(slot)]
    if not every:
        raise BadInput(f"{origin}: holds no actions; write one rank a line, like '0F0,0B0'")
    num_stages = 1 + max(a.stage for _, a in every)
    num_microbatches = 1 + max(a.microbatch for _, a in every)
    check_table(table, num_stages, num_microbatches, origin)
    home = {a.stage: rank for rank, a in every}
    held = [sum(r == rank for r in home.values()) for rank in range(len(table))]
    for rank, num in enumerate(held):
        if num != held[0]:
            raise BadInput(f"{origin}: stages on rank 0: {held[0]}, on rank {rank}: {num}; each rank needs the same number")
    return Shape(
        num_ranks=len(table), num_stages=num_stages, num_microbatches=num_microbatches,
        stage_ranks=tuple(home[stage] for stage in range(num_stages)),
        splits_backward=any(a.pass_ == "I" for _, a in every),
    )
