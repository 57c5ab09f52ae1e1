"""Pipeline schedules as tables: per rank an ordered list of actions in torch's own grammar (`2F0`, `1B3`).

The table that is simulated is the table that the executor runs.
"""

from __future__ import annotations

from collections.abc import Callable

from profiles.files import BadInput
from simulator.schedules.actions import Action, Table, check_table, format_table, parse_action, parse_table
from simulator.schedules.gpipe import gpipe
from simulator.schedules.interleaved import interleaved_one_f_one_b
from simulator.schedules.one_f_one_b import one_f_one_b

__all__ = ["SCHEDULES", "Action", "Table", "build_schedule", "check_table", "format_table", "parse_action",
           "parse_table"]

SCHEDULES: dict[str, Callable[[int, int, int], Table]] = {
    "1F1B": lambda ranks, microbatches, _: one_f_one_b(ranks, microbatches),
    "GPipe": lambda ranks, microbatches, _: gpipe(ranks, microbatches),
    "Interleaved1F1B": interleaved_one_f_one_b,
}
"""Name -> (pipeline ranks, micro-batches, chunks) -> table."""


def build_schedule(name: str, num_ranks: int, num_microbatches: int, chunks: int = 1) -> Table:
    """Return the table of a schedule by name."""
    if name not in SCHEDULES:
        raise BadInput(f"schedule: {name!r} is not known; known are {', '.join(SCHEDULES)}")
    return SCHEDULES[name](num_ranks, num_microbatches, chunks)
