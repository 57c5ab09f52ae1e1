"""A table that cannot run is refused, in one line that names the fault: tables of our own, corrupted, and a user's."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from profiles.files import BadInput
from simulator.schedules import (
    SCHEDULES,
    Action,
    Table,
    build_schedule,
    check_table,
    format_table,
    load_table,
    parse_table,
    passes,
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, int, int, Table]:
    """Draw a schedule: its name, stages, micro-batches and table."""
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    p, m = draw(st.integers(1, 5)), draw(st.integers(1, 10))
    v = SCHEDULES[name].chunks or draw(st.integers(1, 3))
    if not SCHEDULES[name].suits(p, m, v):
        m = 2 * p * draw(st.integers(1, 2))
    return name, p * v, m, build_schedule(name, p, m, v)


def spots(table: Table) -> list[tuple[int, int]]:
    return [(rank, i) for rank, row in enumerate(table) for i in range(len(row))]


def find(row: list[Action], action: Action) -> int:
    return next(i for i, slot in enumerate(row) if action in passes(slot))


@given(tables())
def test_every_table_is_whole_and_runs(drawn: tuple[str, int, int, Table]) -> None:
    """F of a micro-batch comes before its B or I in a stage, I before W, and nothing else is there."""
    name, num_stages, m, table = drawn
    check_table(table, num_stages, m)
    found: dict[tuple[int, int], str] = {}
    for row in table:
        for action in (a for slot in row for a in passes(slot)):
            found[action.stage, action.microbatch] = found.get((action.stage, action.microbatch), "") + action.pass_
    assert set(found) == {(s, i) for s in range(num_stages) for i in range(m)}
    whole = {"FB"} if not SCHEDULES[name].splits_backward else {"FIW"}
    assert set(found.values()) <= (whole if name != "DualPipeV" else {"FB", "FIW"})
    assert parse_table(format_table(table)) == table


@given(tables(), st.randoms())
def test_one_action_less_is_refused(drawn: tuple[str, int, int, Table], rng: random.Random) -> None:
    _, num_stages, m, table = drawn
    rank, i = rng.choice(spots(table))
    gone = passes(table[rank].pop(i))
    with pytest.raises(BadInput, match="is missing of") as refused:
        check_table(table, num_stages, m)
    assert any(str(a) in str(refused.value) or f"{a.stage}B{a.microbatch} (or its halves" in str(refused.value) for a in gone)


@given(tables(), st.randoms())
def test_one_action_twice_is_refused(drawn: tuple[str, int, int, Table], rng: random.Random) -> None:
    _, num_stages, m, table = drawn
    (rank, i), (other, j) = rng.choice(spots(table)), rng.choice(spots(table))
    table[other].insert(j, table[rank][i])
    twice = r"\d+[FBIW]\d+ stands twice, on rank \d+ and on rank \d+"
    with pytest.raises(BadInput, match=twice if rank == other else f"{twice}|a stage has one rank"):
        check_table(table, num_stages, m)


@given(tables(), st.randoms())
def test_a_backward_before_its_forward_deadlocks(drawn: tuple[str, int, int, Table], rng: random.Random) -> None:
    """Also a weight gradient before its input gradient."""
    _, num_stages, m, table = drawn
    every = [(row, a) for row in table for slot in row for a in passes(slot) if a.pass_ != "F"]
    row, late = rng.choice(every)
    early = late._replace(pass_="I" if late.pass_ == "W" else "F")
    i, j = find(row, early), find(row, late)
    row[i], row[j] = row[j], row[i]
    with pytest.raises(BadInput, match=r"deadlock: \S+ on rank \d+ waits for \d+[FBIW]\d+"):
        check_table(table, num_stages, m)


@settings(max_examples=300)
@given(tables(), st.randoms(), st.integers(1, 3))
def test_shuffled_tables_are_refused_where_torch_refuses(
    drawn: tuple[str, int, int, Table], rng: random.Random, swaps: int
) -> None:
    """torch's validation, and its putting in of communication, which stops where no rank can go on."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    _, num_stages, m, table = drawn
    for _ in range(swaps):
        row = rng.choice(table)
        i = rng.randrange(len(row))
        j = min(len(row) - 1, i + rng.randrange(1, 6))
        row[i], row[j] = row[j], row[i]
    order: dict[int, list[Any]] = {r: [schedules._Action.from_str(str(a)) for a in row] for r, row in enumerate(table)}
    try:
        home = schedules._validate_schedule(order, len(table), num_stages, m)
        schedules._add_send_recv(order, lambda s: home[s], num_stages)
    except (AssertionError, IndexError):  # printing its message fails where ranks have fewer actions than there are ranks
        with pytest.raises(BadInput, match="deadlock"):
            check_table(table, num_stages, m)
    else:
        check_table(table, num_stages, m)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0F0,0B0\n1B0,1F0\n", "deadlock: 1B0 on rank 1 waits for 1F0, which does not stand before it"),
        ("0F0,0F1,0B1,0B0\n1F0,1B0,1F1,1B1\n", None),
        ("0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n", "deadlock: 0B0 on rank 0 waits for 1B0 and 1F1 on rank 1 waits for 0F1"),
        ("0F0,3F0,3B0,0B0\n4F0,1F0,4B0,1B0\n2F0,5F0,5B0,2B0\n",
         "3F0 on rank 0 waits for 2F0 and 2F0 on rank 2 waits for 1F0, and so on round 3 ranks"),
        ("0F0,0I0,0W0\n1F0,1I0,1W0\n", None),
        ("0F0,0B0\n1F0,1I0,1W0\n", None),
        ("0F0,0W0,0I0\n1F0,1B0\n", "deadlock: 0W0 on rank 0 waits for 0I0, which does not stand before it"),
        ("0F0,0I0\n1F0,1B0\n", "0W0 is missing of 2 stages and 1 micro-batches"),
        ("0F0,0W0\n1F0,1B0\n", "0I0 is missing"),
        ("0F0,0B0,0W0\n1F0,1B0\n", r"0B0 and 0W0 both stand in the table; a backward is whole \(B\) or split \(I and W\)"),
        ("0F0,0B0\n2F0,2B0\n", "1F0 is missing of 3 stages"),
        ("0F0,0B0\n1F0\n", r"1B0 \(or its halves I and W\) is missing"),
        ("0F0,0B0,1B0\n1F0\n", r"stage 1 stands on rank 0 \(1B0\) and on rank 1 \(1F0\); a stage has one rank"),
        ("0F0,0B0,2F0,2B0\n1F0,1B0\n", "deadlock: 0B0 on rank 0 waits for 1B0"),
        ("0F0,2F0,2B0,0B0\n1F0,1B0\n", "stages on rank 0: 2, on rank 1: 1; each rank needs the same number"),
        ("0F0,0B0\n\n1F0,1B0\n", "stages on rank 0: 1, on rank 1: 0"),
        ("0F0,0B0\n1F0,1X0\n", "line 2, cell 2: '1X0' is not an action; write stage, pass"),
        ("0F0,0F\n", "line 1, cell 2: '0F' is not an action"),
        ("(0F0;0F1)OVERLAP_F_B\n", "overlaps other passes than a forward and a backward, like"),
        ("(0F0;0B0)OVERLAP_F_B\n", "waits for 0F0, which does not stand before it"),
        ("0F0,(0F1;0B0)OVERLAP_F_B,0B1\n", None),
        ("0F0,(0F1;0B0;0B1)OVERLAP_F_B\n", "is not an action"),
        ("\n,,\n", "holds no actions; write one rank a line"),
        ("", "holds no actions"),
    ],
)
def test_a_users_table_is_read_or_refused_in_one_line(tmp_path: Path, text: str, message: str | None) -> None:
    file = tmp_path / "own.csv"
    file.write_text(text)
    if message is None:
        assert parse_table(text) == load_table(file)[0]
        return
    with pytest.raises(BadInput, match=message) as refused:
        load_table(file)
    assert str(refused.value).startswith(f"{file}: ") and "\n" not in str(refused.value)


def test_a_table_in_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load_table(tmp_path / "none.csv")


def test_idle_slots_and_communication_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("0UNSHARD,0F0,0SEND_F0,,0RECV_B0, 0I0 ,0W0,0REDUCE_GRAD,0RESHARD\n,1RECV_F0,1F0,1B0,1SEND_B0,\n")
    table, shape = load_table(file)
    assert format_table(table) == "0F0,0I0,0W0\n1F0,1B0\n"
    assert (shape.num_ranks, shape.num_stages, shape.num_microbatches, shape.chunks) == (2, 2, 1, 1)
    assert shape.stage_ranks == (0, 1) and shape.splits_backward


@given(tables())
def test_passes_outside_are_refused(drawn: tuple[str, int, int, Table]) -> None:
    _, num_stages, m, table = drawn
    assume(m > 1)
    with pytest.raises(BadInput, match="is outside"):
        check_table(table, num_stages, m - 1)
    table[0].append(Action(num_stages, "F", 0))
    with pytest.raises(BadInput, match=f"{num_stages}F0 is outside {num_stages} stages"):
        check_table(table, num_stages, m)
