"""Pipeline schedules as tables: per rank an ordered list of actions in torch's own grammar (`2F0`, `1B3`).

The table that is simulated is the table that the executor runs.
"""

from __future__ import annotations

from profiles.files import BadInput
from profiles.ops import Num
from simulator.schedules.actions import (
    Action,
    Table,
    format_table,
    overlap,
    parse_action,
    parse_table,
    passes,
)
from simulator.schedules.checks import check_table, homes, needs, results, sent_to
from simulator.schedules.dual_pipe_v import dual_pipe_v
from simulator.schedules.gpipe import gpipe
from simulator.schedules.interleaved import interleaved_one_f_one_b, whole_rounds, whole_rounds_reason
from simulator.schedules.looped_bfs import looped_bfs
from simulator.schedules.one_f_one_b import one_f_one_b
from simulator.schedules.own import Shape, load_table, table_shape
from simulator.schedules.placement import v_shape
from simulator.schedules.schedule import Schedule
from simulator.schedules.zbv import zbv
from simulator.schedules.zero_bubble import interleaved_zero_bubble

__all__ = ["SCHEDULES", "Action", "Schedule", "Shape", "Table", "build_schedule", "check_table", "format_table",
           "homes", "load_table", "needs", "overlap", "parse_action", "parse_table", "passes", "rank_stages",
           "results", "sent_to", "stage_rank", "table_shape"]

SCHEDULES: dict[str, Schedule] = {
    s.name: s
    for s in (
        Schedule(name="1F1B", build=one_f_one_b, torch_class="Schedule1F1B"),
        Schedule(name="GPipe", build=gpipe, torch_class="ScheduleGPipe"),
        Schedule(name="Interleaved1F1B", build=interleaved_one_f_one_b,
                 torch_class="ScheduleInterleaved1F1B", chunks=0, microbatches=whole_rounds,
                 microbatches_reason=whole_rounds_reason),
        Schedule(name="LoopedBFS", build=looped_bfs, torch_class="ScheduleLoopedBFS", chunks=0),
        Schedule(name="ZBH1", build=interleaved_zero_bubble, torch_class="ScheduleInterleavedZeroBubble",
                 splits_backward=True),
        Schedule(name="InterleavedZeroBubble", build=interleaved_zero_bubble, splits_backward=True,
                 chunks=0, torch_class="ScheduleInterleavedZeroBubble", microbatches=whole_rounds,
                 microbatches_reason=whole_rounds_reason),
        Schedule(name="ZBV", build=zbv, torch_class="ScheduleZBVZeroBubble", placement=v_shape,
                 splits_backward=True, chunks=2),
        Schedule(name="DualPipeV", build=dual_pipe_v, torch_class="ScheduleDualPipeV", placement=v_shape,
                 splits_backward=True, chunks=2, microbatches=lambda p, m: m >= 2 * p,
                 microbatches_reason=lambda p, m: f"needs at least two micro-batches a rank: {2 * p} on {p} pipeline ranks "
                 f"(is {m})"),
    )
}
"""Name -> schedule."""


def build_schedule(name: str, num_ranks: int, num_microbatches: int, chunks: int = 1) -> Table:
    """Return the table of a schedule by name; numbers for which it has none are refused, with those for which it has."""
    schedule = _named(name)
    if why := schedule.reason(num_ranks, num_microbatches, chunks):
        raise BadInput(f"schedule: {why}")
    return schedule.build(num_ranks, num_microbatches, chunks)


def stage_rank(name: str, stage: Num, num_ranks: Num) -> Num:
    """Return the pipeline rank that holds a stage; numbers or arrays."""
    return _named(name).placement(stage, num_ranks)


def rank_stages(name: str, rank: int, num_ranks: int, chunks: int = 1) -> list[int]:
    """Return the stages that a pipeline rank holds, in the order of the model."""
    return [stage for stage in range(num_ranks * chunks) if stage_rank(name, stage, num_ranks) == rank]


def _named(name: str) -> Schedule:
    if name not in SCHEDULES:
        raise BadInput(f"schedule: {name!r} is not known; known are {', '.join(SCHEDULES)}")
    return SCHEDULES[name]
