"""Timelines of replayed steps: critical path, breakdown, streams, traces."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import CALIBRATED, CLUSTER, COST, FUSED, MODEL, ONE_CHUNK, SPARSE, strategy_of

from profiles.families import load_model
from simulator.breakdown import breakdown
from simulator.estimate import BREAKDOWN, estimate
from simulator.metrics import step_flop
from simulator.pricing import price
from simulator.replay import rank_names, replay
from simulator.strategy import RECOMPUTE, Strategy
from simulator.timeline import COLUMNS, chrome_trace
from simulator.workload import build_workload

names = st.sampled_from(ONE_CHUNK)


@settings(max_examples=40)
@given(st.integers(0, 3), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]), names, st.integers(1, 12),
       st.sampled_from(RECOMPUTE), st.sampled_from([1, 2, 4]))
def test_timeline_critical_path_roofline(
    zero: int, pp: int, tp: int, schedule: str, m: int, recompute: str, chunks: int
) -> None:
    """A timeline is no shorter than one micro-batch's way through all stages and any rank's own work, and that is no
    shorter than the model's FLOP at the peak rate."""
    if pp > 1 and chunks > 1:
        schedule, m = "Interleaved1F1B", -(-m // pp) * pp
    strategy = strategy_of(zero, pp, tp, schedule, m, recompute, chunks=chunks if pp > 1 else 1)
    workload = build_workload(MODEL, strategy)
    prices = price(workload, COST).parts
    through = sum(
        float(prices[p].forward.total_s + prices[p].backward.total_s) * (MODEL.num_layers if p == "layer" else 1)
        for p in prices
    )
    busiest = through / pp * m
    critical = max(through, busiest)
    timeline = replay(workload, COST).step_time_s
    # half of attention is masked and skipped, which model FLOP counts
    flop = step_flop(MODEL, strategy) - 6 * MODEL.num_layers * 4096 * MODEL.hidden * strategy.tokens_per_step
    roofline = flop / (CLUSTER.accelerator.peak_flop_per_s["bf16"] * strategy.world_size)
    assert timeline >= critical * (1 - 1e-12) >= roofline


@pytest.mark.parametrize("zero", range(4))
def test_the_breakdown_adds_up(zero: int) -> None:
    for (pp, m, chunks), cost in product(((1, 2, 1), (4, 8, 1), (4, 8, 2)), (COST, CALIBRATED)):
        schedule = "Interleaved1F1B" if chunks > 1 else "1F1B"
        workload = build_workload(
            SPARSE, strategy_of(zero, pp, 2, schedule, m, "none", chunks=chunks, ep=4, cp=2, context="all_gather")
        )
        timeline = replay(workload, cost)
        parts = breakdown(timeline)
        assert tuple(parts) == BREAKDOWN
        assert sum(parts.values()) == pytest.approx(timeline.step_time_s, rel=1e-12)
        assert min(parts.values()) >= -1e-12
        assert min(parts[f"exposed_{axis}"] for axis in ("tp", "cp", "ep")) > 0
        # 4 nodes wait 1 % of a step for each doubling; a rank that is done before the last waits for that much less
        waited = timeline.step_time_s * (0.02 / 1.02 if cost is CALIBRATED else 0.0)
        assert parts["other"] == pytest.approx(waited) if pp == 1 else waited / 2 <= parts["other"] <= waited
        closed = estimate(workload, cost)
        assert sum(float(v) for v in closed.breakdown_s.values()) == pytest.approx(float(closed.step_time_s), rel=1e-12)
        if pp == 1 and cost is COST:
            # without a bubble the closed form and the replay agree on every part, were it not for the links that are shared
            parts = breakdown(replay(workload, cost, shares=False))
            for name, value in closed.breakdown_s.items():
                assert float(value) == pytest.approx(parts[name], rel=1e-9, abs=1e-9 * timeline.step_time_s)


@pytest.mark.parametrize(("zero", "schedule", "chunks"), [(3, "1F1B", 1), (0, "GPipe", 1), (0, "Interleaved1F1B", 2)])
def test_no_rank_does_two_things_on_one_stream(zero: int, schedule: str, chunks: int) -> None:
    rows = replay(build_workload(MODEL, strategy_of(zero, 4, 2, schedule, 8, "full", chunks=chunks)), CALIBRATED).rows
    assert tuple(rows.columns) == COLUMNS
    for (_, stream), part in rows.groupby(["rank", "stream"]):
        if stream == "pp":
            continue
        part = part.sort_values("start_s")
        assert (part["start_s"].to_numpy()[1:] >= part["end_s"].to_numpy()[:-1] - 1e-9).all()


def test_same_strategy_same_bytes_and_a_trace_that_opens() -> None:
    strategy = strategy_of(1, 4, 2, "1F1B", 8, "none")
    workload = build_workload(MODEL, strategy)
    text = chrome_trace(replay(workload, COST), rank_names(strategy))
    assert text == chrome_trace(replay(workload, COST), rank_names(strategy))
    events = json.loads(text)["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    assert all(e["dur"] >= 0 and e["ts"] >= 0 and {"pid", "tid", "name"} <= set(e) for e in slices)
    starts = {e["id"] for e in events if e["ph"] == "s"}
    assert starts and starts == {e["id"] for e in events if e["ph"] == "f"}
    assert len(starts) == 2 * 3 * 8


def test_a_tied_embedding_on_two_stages_is_summed() -> None:
    tied = load_model("gpt2")
    untied = replace(tied, tied_embeddings=False)
    strategy = Strategy(pp=2, dp=16, num_microbatches=4, seq_len=1024, software=FUSED)
    alone = replace(strategy, pp=1, dp=32)
    price_of = price(build_workload(tied, strategy), COST)
    assert price_of.tie_s > 0 and price(build_workload(untied, strategy), COST).tie_s == 0
    assert price(build_workload(tied, alone), COST).tie_s == 0
    timeline = replay(build_workload(tied, strategy), COST)
    assert timeline.rows["op"].eq("sum the tied embedding").sum() == 2
    parts = breakdown(timeline)
    assert parts["exposed_pp"] == pytest.approx(float(price_of.tie_s))
    assert sum(parts.values()) == pytest.approx(timeline.step_time_s)
    chrome_trace(timeline, rank_names(strategy))


def test_full_recomputation_repeats_all_but_the_last_matmul() -> None:
    """torch's checkpoint stops at the last tensor that backward needs: 3 n - 1 matmuls in a layer's backward."""
    layer = build_workload(MODEL, strategy_of(0, 1, 1, "1F1B", 1, "full")).parts["layer"]
    matmuls = [k for k in layer.recompute_full if getattr(k, "kind", "") == "gemm"]
    assert len(matmuls) == sum(getattr(k, "kind", "") == "gemm" for k in layer.forward) - 1
