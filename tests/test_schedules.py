"""Schedule tables against torch's own: its classes, its validation, its reader."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.files import BadInput
from simulator.schedules import SCHEDULES, Action, Table, build_schedule, check_table, format_table, parse_table

schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
SIZES = [(2, 2), (2, 5), (4, 4), (4, 9), (8, 16), (16, 32)]


def torch_table(table: Table) -> dict[int, list[object]]:
    return {rank: [schedules._Action.from_str(str(a)) for a in row] for rank, row in enumerate(table)}


@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_torch_accepts_the_table(name: str, p: int, m: int) -> None:
    table = build_schedule(name, p, m)
    check_table(table, p, m)
    assert schedules._validate_schedule(torch_table(table), p, p, m) == {s: s for s in range(p)}


@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize(("name", "cls"), [("1F1B", "Schedule1F1B"), ("GPipe", "ScheduleGPipe")])
def test_the_table_equals_torchs(name: str, cls: str, p: int, m: int) -> None:
    """Leave out torch's idle slots and its gradient reduction: the passes are the same, in the same order.

    torch 2.13 lists the last rank of 1F1B from micro-batch 1 on, though its class runs it from 0 (and its own
    validation refuses the listing), so there the order is stated: one forward, one backward.
    """
    schedule = object.__new__(getattr(schedules, cls))
    schedule._n_microbatches, schedule._num_stages, schedule.pp_group_size = m, p, p
    order = schedule._get_pipeline_order()
    passes = (schedules.F, schedules.B)
    theirs = [[str(a) for a in order[r] if a is not None and a.computation_type in passes] for r in range(p)]
    if name == "1F1B":
        theirs[-1] = [f"{p - 1}{pass_}{i}" for i in range(m) for pass_ in "FB"]
    assert [[str(a) for a in row] for row in build_schedule(name, p, m)] == theirs


def drop(table: Table) -> None:
    table[1].pop()


def repeat(table: Table) -> None:
    table[0].append(table[0][0])


def backward_first(table: Table) -> None:
    row = table[0]
    row.insert(0, row.pop(next(i for i, a in enumerate(row) if a.pass_ == "B")))


def wrong_stage(table: Table) -> None:
    table[0].append(Action(7, "F", 0))


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [(drop, "is missing"), (repeat, "stands twice"), (backward_first, "deadlock"), (wrong_stage, "outside")],
)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_corrupted_table_is_refused(name: str, corrupt: Callable[[Table], None], message: str) -> None:
    table = build_schedule(name, 3, 4)
    corrupt(table)
    with pytest.raises(BadInput, match=message):
        check_table(table, 3, 4)


@pytest.mark.parametrize("corrupt", [drop, backward_first])
def test_torch_refuses_the_same_corruption(corrupt: Callable[[Table], None]) -> None:
    table = build_schedule("1F1B", 3, 4)
    corrupt(table)
    with pytest.raises(AssertionError):
        schedules._validate_schedule(torch_table(table), 3, 3, 4)


def test_a_deadlock_names_both_actions() -> None:
    table = [[Action(0, "F", 0), Action(0, "B", 0)], [Action(1, "B", 0), Action(1, "F", 0)]]
    with pytest.raises(BadInput, match="deadlock: 0B0 waits for 1B0"):
        check_table(table, 2, 1)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 6), st.integers(1, 9))
def test_tables_are_complete_and_read_back(name: str, p: int, m: int) -> None:
    table = build_schedule(name, p, m)
    check_table(table, p, m)
    assert parse_table(format_table(table)) == table


@given(st.integers(1, 6), st.integers(1, 9))
def test_micro_batches_in_flight(p: int, m: int) -> None:
    """1F1B holds at most p - s on stage s; GPipe all m."""
    for name, bound in (("1F1B", lambda s: min(m, p - s)), ("GPipe", lambda s: m)):
        for stage, row in enumerate(build_schedule(name, p, m)):
            held, peak = 0, 0
            for action in row:
                held += 1 if action.pass_ == "F" else -1
                peak = max(peak, held)
            assert peak == bound(stage)


def test_torch_reads_the_csv(tmp_path: Path) -> None:
    table = build_schedule("1F1B", 2, 3)
    for line, row in zip(format_table(table).splitlines(), table, strict=True):
        assert [str(schedules._Action.from_str(cell)) for cell in line.split(",")] == [str(a) for a in row]
    assert all(a != b for row in table for a, b in pairwise(row))


def test_unknown_schedule_lists_the_known() -> None:
    with pytest.raises(BadInput, match="schedule: 'zigzag' is not known; known are 1F1B, GPipe"):
        build_schedule("zigzag", 2, 2)
