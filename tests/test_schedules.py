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
ONE_CHUNK = ("1F1B", "GPipe")
SIZES = [(2, 2), (2, 5), (4, 4), (4, 9), (8, 16), (16, 32)]
CHUNKED = [(p, rounds * p, chunks) for p in (2, 4, 8) for rounds in (1, 2, 5) for chunks in (2, 4)]


def torch_table(table: Table) -> dict[int, list[object]]:
    return {rank: [schedules._Action.from_str(str(a)) for a in row] for rank, row in enumerate(table)}


@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_torch_accepts_the_table(name: str, p: int, m: int) -> None:
    if name == "Interleaved1F1B" and m % p:
        m = p
    table = build_schedule(name, p, m)
    check_table(table, p, m)
    assert schedules._validate_schedule(torch_table(table), p, p, m) == {s: s for s in range(p)}


@pytest.mark.parametrize(("p", "m", "chunks"), CHUNKED)
def test_torch_accepts_the_table_of_chunks(p: int, m: int, chunks: int) -> None:
    table = build_schedule("Interleaved1F1B", p, m, chunks)
    check_table(table, p * chunks, m)
    assert schedules._validate_schedule(torch_table(table), p, p * chunks, m) == {s: s % p for s in range(p * chunks)}


def theirs_interleaved(p: int, m: int, chunks: int) -> list[list[str]]:
    """Return the passes of torch's ScheduleInterleaved1F1B, without its idle slots."""
    schedule = object.__new__(schedules.ScheduleInterleaved1F1B)
    rounds = max(1, m // p)
    schedule.pp_group_size, schedule.n_local_stages, schedule._n_microbatches = p, chunks, m
    schedule.number_of_rounds, schedule.microbatches_per_round = rounds, m // rounds
    return [[str(a) for a in schedule._calculate_single_rank_operations(rank) if a is not None] for rank in range(p)]


@pytest.mark.parametrize(("p", "m", "chunks"), [*CHUNKED, (2, 6, 1), (4, 3, 2), (4, 6, 2), (4, 10, 3), (8, 12, 4)])
def test_the_table_of_chunks_equals_torchs(p: int, m: int, chunks: int) -> None:
    """Also where micro-batches come in rounds of more or less than p, as torch allows."""
    ours = [[str(a) for a in row] for row in build_schedule("Interleaved1F1B", p, m, chunks)]
    assert ours == theirs_interleaved(p, m, chunks)


@pytest.mark.parametrize(("p", "m", "rounds"), [(4, 9, 2), (2, 5, 2), (8, 25, 3)])
def test_rounds_of_two_sizes_are_refused(p: int, m: int, rounds: int) -> None:
    """torch refuses the same: a multiple of the number of rounds is wanted."""
    with pytest.raises(BadInput, match=f"{m} do not divide into {rounds} rounds"):
        build_schedule("Interleaved1F1B", p, m, 2)


@pytest.mark.parametrize(("p", "m", "chunks"), CHUNKED)
def test_chunks_cut_the_bubble_of_uniform_stages(p: int, m: int, chunks: int) -> None:
    """The bubble over the work is (p - 1) / (v m) (arXiv 2104.04473, section 2.2.2), by torch's idle slots and by ours.

    Passes of one length in lock step: a pass runs in the first slot after those that it needs.
    """
    table = build_schedule("Interleaved1F1B", p, m, chunks)
    done: dict[Action, int] = {}
    rows = [list(row) for row in table]
    slot = 0
    while any(rows):
        ready = [row[0] for row in rows if row and all(done.get(a, slot) < slot for a in before(row[0], p * chunks))]
        for action in ready:
            rows[action.stage % p].pop(0)
            done[action] = slot
        slot += 1
    work = 2 * m * chunks
    assert (slot - work) / work == pytest.approx((p - 1) / (chunks * m))


def before(action: Action, num_stages: int) -> list[Action]:
    stage, pass_, microbatch = action
    if pass_ == "F":
        return [Action(stage - 1, "F", microbatch)] if stage else []
    return [Action(stage + 1, "B", microbatch) if stage + 1 < num_stages else Action(stage, "F", microbatch)]


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
@pytest.mark.parametrize(("name", "m", "chunks"), [("1F1B", 4, 1), ("GPipe", 4, 1), ("Interleaved1F1B", 6, 2)])
def test_a_corrupted_table_is_refused(
    name: str, m: int, chunks: int, corrupt: Callable[[Table], None], message: str
) -> None:
    table = build_schedule(name, 3, m, chunks)
    corrupt(table)
    with pytest.raises(BadInput, match=message):
        check_table(table, 3 * chunks, m)


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


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 6), st.integers(1, 9), st.integers(1, 4))
def test_tables_are_complete_and_read_back(name: str, p: int, m: int, chunks: int) -> None:
    if name in ONE_CHUNK:
        chunks = 1
    else:
        m *= p
    table = build_schedule(name, p, m, chunks)
    check_table(table, p * chunks, m)
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
