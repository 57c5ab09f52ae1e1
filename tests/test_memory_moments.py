"""Moments at which ranks hold most: against every backward of whole tables; and batches of strategies as their members."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from replay_cases import CLUSTER, MODEL, SPARSE

from profiles.model import ModelSpec
from simulator.memory import peak_memory, rank_memory
from simulator.schedules import SCHEDULES, Action, Table, build_schedule, parse_table, passes, rank_stages
from simulator.schedules.moments import STATED, Moments, rank_moments, row_moments
from simulator.software import Software
from simulator.strategy import RECOMPUTE, Strategy
from simulator.workload import build_workload

H100 = CLUSTER.accelerator
Weights = NDArray[np.int64]
Most = dict[tuple[int, str, bool], int]


def walked(row: list[Action], stages: list[int], kinds: tuple[int, ...], weights: Weights) -> Most:
    """Return the most that waits at the starts of passes, all of them visited; `weights` [3, kinds] are what a micro-batch
    takes whole and in rest, and gradients, in stages of each kind."""
    found: Most = defaultdict(int)
    there, each = np.zeros((3, len(stages)), dtype=int), weights[:, list(kinds)]
    for action in (a for slot in row for a in passes(slot)):
        stage = stages.index(action.stage)
        key = kinds[stage], action.pass_, bool(action.pass_ in "BW" and not there[2, stage])
        found[key] = max(found[key], int((there * each).sum()))
        there[2, stage] |= action.pass_ in "BW"
        there[0, stage] += {"F": 1, "B": -1, "I": -1, "W": 0}[action.pass_]
        there[1, stage] += {"F": 0, "B": 0, "I": 1, "W": -1}[action.pass_]
    return found


def most(moments: Moments, weights: Weights, index: int) -> Most:
    """Return the most that waits by what a batch's moments say of one of its members."""
    found: Most = defaultdict(int)
    for start, held in zip(moments.passes, moments.held[moments.where[index]], strict=True):
        found[start] = max(found[start], int((held * weights).sum()))
    return found


@settings(max_examples=150)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 8), st.tuples(*[st.integers(1, 80)] * 3), st.integers(1, 4),
       st.data())
def test_moments_hold_as_much_as_any_pass_of_the_whole_table(
    name: str, p: int, sizes: tuple[int, int, int], v: int, data: st.DataObject
) -> None:
    """Though they are taken from a shorter table, or stated, whatever each stage takes; three numbers of micro-batches at
    once. Stated moments leave out forwards, and of a single micro-batch say twice what is there once."""
    v = SCHEDULES[name].chunks or v
    assume(all(SCHEDULES[name].suits(p, m, v) for m in sizes))
    kinds = data.draw(st.sampled_from([tuple(range(v)), (0,) * v, (0, *[1] * (v - 1)), (*[0] * (v - 1), 1)]))
    kinds = kinds if v > 1 else (0,)
    weights = np.array(data.draw(st.lists(st.lists(st.integers(0, 9), min_size=v, max_size=v), min_size=3, max_size=3)))
    weights = weights[:, : 1 + max(kinds)]
    for index, m in enumerate(sizes):
        for rank, row in enumerate(build_schedule(name, p, m, v)):
            every = walked(row, rank_stages(name, rank, p, v), kinds, weights)
            found = most(rank_moments(name, rank, p, np.array(sizes), kinds), weights, index)
            forwards = name not in STATED and v > 1
            assert {key: found[key] for key in every if key[1] != "F" or forwards} == {
                key: num for key, num in every.items() if key[1] != "F" or forwards}
            for key in set(found) - set(every):
                assert found[key] <= (every.get((*key[:2], True), 0) if m == 1 else 0)


def test_moments_of_a_users_own_row() -> None:
    """Forwards first, then a whole backward in each stage, then split ones: whole, rest and gradients of both stages."""
    table: Table = parse_table("0F0,0F1,1F0,1F1,1B0,0B0,1I1,0I1,1W1,0W1\n")
    found = row_moments(table[0], [0, 1], (0, 1))
    assert dict(zip(found.passes, found.held[0].tolist(), strict=True)) == {
        (0, "F", False): [[1, 0], [0, 0], [0, 0]], (1, "F", False): [[2, 1], [0, 0], [0, 0]],
        (1, "B", True): [[2, 2], [0, 0], [0, 0]], (0, "B", True): [[2, 1], [0, 0], [0, 1]],
        (1, "I", False): [[1, 1], [0, 0], [1, 1]], (0, "I", False): [[1, 0], [0, 1], [1, 1]],
        (1, "W", False): [[0, 0], [1, 1], [1, 1]], (0, "W", False): [[0, 0], [1, 0], [1, 1]],
    }
    alike = row_moments(table[0], [0, 1], (0, 0))
    assert list(zip(alike.passes, alike.held[0].tolist(), strict=True)) == [
        ((0, "F", False), [[3], [0], [0]]), ((0, "B", True), [[4], [0], [0]]), ((0, "B", True), [[3], [0], [1]]),
        ((0, "I", False), [[2], [0], [2]]), ((0, "I", False), [[1], [1], [2]]), ((0, "W", False), [[0], [2], [2]]),
    ]


def test_few_moments_are_enough() -> None:
    """However many micro-batches: a rank that holds 8 chunks on 16 ranks has less than 80 moments of 16,000 passes, and fewer
    yet where its stages are alike."""
    for name, schedule in SCHEDULES.items():
        v = schedule.chunks or 8
        assert len(rank_moments(name, 3, 16, 1024, tuple(range(v))).passes) < 120
        assert len(rank_moments(name, 3, 16, 1024, (0,) * v).passes) < 20


@st.composite
def shapes(draw: st.DrawFn) -> tuple[str, int, int, int]:
    """Return schedule, ranks, chunks and micro-batches that suit each other."""
    name, p = draw(st.sampled_from(sorted(SCHEDULES))), draw(st.sampled_from([1, 2, 3, 4]))
    v = SCHEDULES[name].chunks or draw(st.sampled_from([1, 2, 3]))
    m = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 9, 12, 24]))
    assume(SCHEDULES[name].suits(p, m, v))
    return (name, p, v, m) if p > 1 else ("1F1B", 1, 1, m)


@settings(max_examples=30)
@given(st.lists(shapes(), min_size=2, max_size=8), st.sampled_from([MODEL, SPARSE]), st.booleans(), st.data())
def test_a_batch_of_all_schedules_is_its_members(
    each: list[tuple[str, int, int, int]], model: ModelSpec, plain: bool, data: st.DataObject
) -> None:
    software = Software(pipe_buffers=False, keeps_graph=False, keeps_sent=True, late_gradients=False) if plain else Software()
    common = Strategy(dp=8, seq_len=1024, software=software)
    members = [replace(common, schedule=name, pp=p, chunks=v, num_microbatches=m, zero=data.draw(st.integers(0, 3)),
                       recompute=data.draw(st.sampled_from(RECOMPUTE))) for name, p, v, m in each]
    fields = ("schedule", "pp", "chunks", "num_microbatches", "zero", "recompute")
    batch = replace(common, **{f: np.array([getattr(s, f) for s in members]) for f in fields})
    together = peak_memory(build_workload(model, batch), H100)
    for i, strategy in enumerate(members):
        workload = build_workload(model, strategy)
        alone = [{k: float(x) for k, x in rank_memory(workload, H100, rank).items()} for rank in range(int(strategy.pp))]
        fullest = max(alone, key=lambda held: sum(held.values()))
        assert float(together.peak_bytes[i]) == pytest.approx(sum(fullest.values()), rel=1e-12)
        assert float(peak_memory(workload, H100).peak_bytes) == pytest.approx(sum(fullest.values()), rel=1e-12)
        assert sum(float(np.broadcast_to(x, len(members))[i]) for x in together.parts_bytes.values()) == pytest.approx(
            float(together.peak_bytes[i]), rel=1e-12)
