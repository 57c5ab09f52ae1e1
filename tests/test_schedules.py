"""Schedule tables against torch's own: its classes, its validation, its runtime, its reader."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
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
    overlap,
    parse_action,
    parse_table,
    rank_stages,
    results,
    stage_rank,
    table_shape,
)

torch = pytest.importorskip("torch")
from torch.distributed.pipelining import _utils, schedules  # noqa: E402

SINGLE = ("1F1B", "GPipe")
SIZES = [(2, 2), (2, 5), (4, 4), (4, 9), (8, 16), (16, 32)]
ROUNDS = [(p, rounds * p, chunks) for p in (2, 4, 8, 16) for rounds in (1, 2, 4) for chunks in (1, 2, 3)]
UNEVEN = [(2, 6, 1), (4, 3, 2), (4, 6, 2), (4, 10, 3), (8, 12, 4), (1, 3, 2)]
V_SIZES = [(p, m, 2) for p in (1, 2, 4, 8, 16) for m in sorted({1, 2 * p - 1, 2 * p, 2 * p + 3, 5 * p})]
CASES = [
    *[(name, *size) for name in ("Interleaved1F1B", "InterleavedZeroBubble") for size in [*ROUNDS, *UNEVEN]],
    *[("LoopedBFS", *size) for size in [*ROUNDS, *UNEVEN, (4, 9, 2)]],
    *[("ZBH1", *size) for size in [*ROUNDS, (4, 6, 1), (4, 3, 1), (1, 3, 1)] if size[2] == 1],
    *[("ZBV", *size) for size in V_SIZES],
    *[("DualPipeV", *size) for size in V_SIZES if size[1] >= 2 * size[0]],
]
OURS_ONLY = [*[(name, p, m, 1) for name in SINGLE for p, m in SIZES], ("ZBH1", 4, 9, 1), ("ZBH1", 16, 33, 1)]


def stages(p: int, v: int) -> list[Any]:
    """Return stand-ins for a rank's stages: torch's schedules ask them for numbers only."""
    return [SimpleNamespace(num_stages=p * v, group_size=p, group_rank=0, submod=torch.nn.Identity(), is_last=False)
            for _ in range(v)]


def runtime(p: int, m: int, v: int) -> Any:
    return schedules._PipelineScheduleRuntime(stages(p, v), m, loss_fn=lambda *_: None)


def theirs(name: str, p: int, m: int, v: int) -> list[list[str]]:
    """Return the table of torch's class, without its idle slots; its constructor also puts in all communication."""
    order = getattr(schedules, SCHEDULES[name].torch_class)(stages(p, v), m).pipeline_order
    return [[str(a) for a in order[rank] if a is not None] for rank in range(p)]


def strings(table: Table) -> list[list[str]]:
    return [[str(a) for a in row] for row in table]


def torch_table(table: Table) -> dict[int, list[Any]]:
    return {rank: [schedules._Action.from_str(str(a)) for a in row] for rank, row in enumerate(table)}


@pytest.mark.parametrize(("name", "p", "m", "v"), CASES)
def test_the_table_equals_torchs(name: str, p: int, m: int, v: int) -> None:
    assert strings(build_schedule(name, p, m, v)) == theirs(name, p, m, v)


@pytest.mark.parametrize(("p", "m"), SIZES)
@pytest.mark.parametrize("name", SINGLE)
def test_the_table_of_one_stage_a_rank_equals_torchs(name: str, p: int, m: int) -> None:
    """Leave out torch's idle slots and its gradient reduction: the passes are the same, in the same order.

    torch 2.13 lists the last rank of 1F1B from micro-batch 1 on, though its class runs it from 0 (and its own
    validation refuses the listing), so there the order is stated: one forward, one backward.
    """
    schedule = object.__new__(getattr(schedules, SCHEDULES[name].torch_class))
    schedule._n_microbatches, schedule._num_stages, schedule.pp_group_size = m, p, p
    order = schedule._get_pipeline_order()
    passes = (schedules.F, schedules.B)
    listed = [[str(a) for a in order[r] if a is not None and a.computation_type in passes] for r in range(p)]
    if name == "1F1B":
        listed[-1] = [f"{p - 1}{pass_}{i}" for i in range(m) for pass_ in "FB"]
    assert strings(build_schedule(name, p, m)) == listed


@pytest.mark.parametrize(("name", "p", "m", "v"), [c for c in CASES if c[1] < 16] + OURS_ONLY)
def test_torch_reads_and_runs_the_table(name: str, p: int, m: int, v: int, tmp_path: Path) -> None:
    """torch's reader validates the CSV and puts in all communication; what it dumps, we read back as the same table."""
    table = build_schedule(name, p, m, v)
    check_table(table, p * v, m)
    ours, dumped = tmp_path / "ours.csv", tmp_path / "torch.csv"
    ours.write_text(format_table(table))
    loaded = runtime(p, m, v)
    loaded._load_csv(ours)
    assert loaded.pipeline_order == torch_table(table)
    assert schedules._validate_schedule(torch_table(table), p, p * v, m) == {s: stage_rank(name, s, p) for s in range(p * v)}
    if not any(a.parts for row in table for a in row):  # these torch's dry run does not know, nor gathers
        order = {r: [a for a in row if a.microbatch_index is not None] for r, row in loaded.pipeline_order_with_comms.items()}
        schedules._simulate_comms_compute(order, lambda s: loaded.stage_index_to_group_rank[s], p * v)
    loaded._dump_csv(dumped, format="compute_comms")
    read, shape = load_table(dumped)
    assert read == table and shape == table_shape(table)
    assert "SEND_F" in dumped.read_text() or p == 1


@settings(max_examples=300)
@given(st.sampled_from([n for n in SCHEDULES if n not in (*SINGLE, "ZBH1")]), st.integers(1, 5), st.integers(1, 14),
       st.integers(1, 3))
def test_what_torch_refuses_is_refused(name: str, p: int, m: int, v: int) -> None:
    try:
        theirs(name, p, m, v)
    except ValueError:
        assert not SCHEDULES[name].suits(p, m, v)
        with pytest.raises(BadInput, match=rf"^schedule: {name} needs "):
            build_schedule(name, p, m, v)
    else:
        assert SCHEDULES[name].suits(p, m, v)
        assert SCHEDULES[name].reason(p, m, v) == ""
        build_schedule(name, p, m, v)


@pytest.mark.parametrize(
    ("name", "p", "m", "v", "message"),
    [
        ("Interleaved1F1B", 4, 9, 2, "rounds of one size: 9 do not divide into 2 rounds; use a multiple of the 4 pipeline"),
        ("InterleavedZeroBubble", 8, 25, 2, "25 do not divide into 3 rounds; use a multiple of the 8 pipeline ranks"),
        ("DualPipeV", 4, 7, 2, "at least two micro-batches a rank: 8 on 4 pipeline ranks \\(is 7\\)"),
        ("ZBV", 4, 8, 1, "ZBV needs 2 chunks a rank \\(is 1\\)"),
        ("1F1B", 4, 8, 2, "1F1B needs 1 chunk a rank \\(is 2\\)"),
        ("LoopedBFS", 4, 8, 0, "at least 1 of chunks a rank \\(is 0\\)"),
        ("GPipe", 4, 0, 1, "at least 1 of micro-batches \\(is 0\\)"),
        ("ZBH1", 0, 4, 1, "at least 1 of pipeline ranks \\(is 0\\)"),
        ("zigzag", 2, 2, 1, "'zigzag' is not known; known are 1F1B, GPipe, Interleaved1F1B, LoopedBFS, ZBH1"),
    ],
)
def test_a_refusal_says_which_numbers_would_do(name: str, p: int, m: int, v: int, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        build_schedule(name, p, m, v)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", SCHEDULES)
def test_whether_numbers_suit_is_known_of_arrays(name: str) -> None:
    p, m, v = np.meshgrid(np.arange(5), np.arange(12), np.arange(4))
    suits = SCHEDULES[name].suits(p, m, v)
    one_by_one = [bool(SCHEDULES[name].suits(*shape)) for shape in zip(p.flat, m.flat, v.flat, strict=True)]
    assert suits.ravel().tolist() == one_by_one
    assert suits.any() and not suits.all()


@pytest.mark.parametrize("p", [1, 2, 3, 8])
@pytest.mark.parametrize("name", SCHEDULES)
def test_stages_stand_where_torch_puts_them(name: str, p: int) -> None:
    v = SCHEDULES[name].chunks or 3
    style = "v" if name in ("ZBV", "DualPipeV") else "loop"
    to_rank = _utils.generate_stage_to_rank_mapping(p, p * v, style)
    assert {s: stage_rank(name, s, p) for s in range(p * v)} == to_rank
    assert stage_rank(name, np.arange(p * v), p).tolist() == list(to_rank.values())
    to_stages = _utils.generate_rank_to_stage_mapping(p, p * v, style)
    assert {r: rank_stages(name, r, p, v) for r in range(p)} == to_stages
    table = build_schedule(name, p, 2 * p, v)
    shape = table_shape(table)
    assert (shape.num_ranks, shape.chunks, shape.num_microbatches) == (p, v, 2 * p)
    assert shape.stage_ranks == tuple(to_rank.values())
    assert shape.splits_backward == SCHEDULES[name].splits_backward


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_class_is_one_of_torchs(name: str) -> None:
    cls = getattr(schedules, SCHEDULES[name].torch_class)
    assert schedules.get_schedule_class(SCHEDULES[name].torch_class.removeprefix("Schedule")) is cls


ACTIONS = st.tuples(st.integers(0, 99), st.sampled_from("FBIW"), st.integers(0, 999)).map(lambda t: Action(*t))
PAIRS = st.builds(lambda a, b: overlap(a._replace(pass_="F"), b._replace(pass_="B")), ACTIONS, ACTIONS)


@given(st.lists(st.one_of(ACTIONS, PAIRS), min_size=1))
def test_actions_are_written_and_read_as_by_torch(row: list[Action]) -> None:
    theirs = [schedules._Action.from_str(str(a)) for a in row]
    assert [str(a) for a in theirs] == [str(a) for a in row]
    assert [parse_action(str(a)) for a in theirs] == row
    for ours, their in zip(row, theirs, strict=True):
        assert len(ours.parts) == len(their.sub_actions or ())
        assert (ours.stage, ours.pass_) == (their.stage_index, their.computation_type.value)
    assert parse_table(format_table([row])) == [row]


def test_an_overlapped_pair_is_written_as_torch_writes_it() -> None:
    pair = overlap(Action(0, "F", 5), Action(7, "B", 1))
    assert str(pair) == "(0F5;7B1)OVERLAP_F_B"
    assert parse_action(" (0F5; 7B1)OVERLAP_F_B ") == pair
    assert results(pair) == [Action(0, "F", 5), Action(7, "I", 1)]


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 6), st.integers(1, 20), st.integers(1, 4))
def test_a_stage_takes_micro_batches_one_by_one(name: str, p: int, m: int, v: int) -> None:
    """Each pass of a stage takes the micro-batches in order (breadth-first takes them back in the reverse order): torch's
    runtime counts losses by the order of forwards."""
    v = SCHEDULES[name].chunks or v
    if not SCHEDULES[name].suits(p, m, v):
        m *= 2 * p
    for row in build_schedule(name, p, m, v):
        order: dict[tuple[int, str], list[int]] = {}
        for action in (a for slot in row for a in slot.parts or (slot,)):
            order.setdefault((action.stage, "F" if action.pass_ == "F" else action.pass_), []).append(action.microbatch)
        for (_, pass_), found in order.items():
            step = -1 if (name, pass_) == ("LoopedBFS", "B") else 1
            assert all((b - a) * step > 0 for a, b in pairwise(found))
