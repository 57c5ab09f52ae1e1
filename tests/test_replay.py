"""The replay against closed forms, an independent max-plus recurrence, and the planner's estimate."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.cost import cost_model
from profiles.families import load_model
from profiles.hardware import load_cluster
from simulator.breakdown import breakdown
from simulator.estimate import BREAKDOWN, estimate, send_delay_s
from simulator.inside import Unit, lay_out_chain, lay_out_queue
from simulator.metrics import step_flop
from simulator.pricing import PartSeconds, Seconds, price
from simulator.replay import rank_names, replay, replay_table
from simulator.schedules import SCHEDULES, Action, build_schedule
from simulator.stages import Run, chain_s, queue_tail_s
from simulator.strategy import RECOMPUTE, Strategy
from simulator.timeline import COLUMNS, chrome_trace
from simulator.workload import build_workload

names = st.sampled_from(sorted(SCHEDULES))


@given(names, st.integers(1, 8), st.integers(1, 16), st.integers(1, 64), st.integers(1, 64))
def test_uniform_stages_take_the_closed_form(name: str, p: int, m: int, forward: int, backward: int) -> None:
    """(p - 1 + m)(t_f + t_b), exactly (arXiv 2104.04473, section 2.2); eighths are exact in binary."""
    t_f, t_b = forward / 8, backward / 8
    spans = replay_table(build_schedule(name, p, m), lambda a: t_f if a.pass_ == "F" else t_b)
    assert max(s.end_s for s in spans) == (p - 1 + m) * (t_f + t_b)


def max_plus_end(name: str, p: int, m: int, seconds: dict[tuple[int, str], float], send: float) -> float:
    """Return the end of a schedule by recurrence over (stage, micro-batch), with no events and no table.

    An action starts when its stage's previous action and its neighbour's output are there. The previous action is
    written down from the definition of each schedule.
    """
    forward, backward = np.full((p, m), np.nan), np.full((p, m), np.nan)

    def f(s: int, i: int) -> float:
        if np.isnan(forward[s, i]):
            if name == "GPipe":
                before = f(s, i - 1) if i else 0.0
            else:
                before = (f(s, i - 1) if i else 0.0) if i < p - s else b(s, i - (p - s))
            arrived = f(s - 1, i) + send if s else 0.0
            forward[s, i] = max(before, arrived) + seconds[s, "F"]
        return float(forward[s, i])

    def b(s: int, i: int) -> float:
        if np.isnan(backward[s, i]):
            last = min(m - 1, i + p - s - 1) if name == "1F1B" else m - 1
            before = max(f(s, last), b(s, i - 1) if i else 0.0)
            arrived = b(s + 1, i) + send if s < p - 1 else 0.0
            backward[s, i] = max(before, arrived) + seconds[s, "B"]
        return float(backward[s, i])

    return max(b(s, m - 1) for s in range(p))


@given(names, st.integers(1, 6), st.integers(1, 10), st.integers(0, 3), st.data())
def test_uneven_stages_equal_the_max_plus_recurrence(name: str, p: int, m: int, send: int, data: st.DataObject) -> None:
    ticks = data.draw(st.lists(st.integers(1, 9), min_size=2 * p, max_size=2 * p))
    seconds = {(s, pass_): ticks[2 * s + i] / 4 for s in range(p) for i, pass_ in enumerate("FB")}
    spans = replay_table(build_schedule(name, p, m), lambda a: seconds[a.stage, a.pass_], send / 4)
    assert max(s.end_s for s in spans) == max_plus_end(name, p, m, seconds, send / 4)


def test_the_recurrence_sees_a_wrong_table() -> None:
    """Negative control: one forward moved before its turn changes the end."""
    table = build_schedule("1F1B", 3, 6)
    seconds = {(s, q): 1.0 + s for s in range(3) for q in "FB"}
    row = table[2]
    row.insert(0, row.pop(row.index(Action(2, "F", 3))))
    end = max(s.end_s for s in replay_table(table, lambda a: seconds[a.stage, a.pass_]))
    assert end != max_plus_end("1F1B", 3, 6, seconds, 0.0)


def unit(compute: int, gather: int, reduce: int) -> Unit:
    work = Seconds(compute_s=compute / 4)
    return Unit("layer", 0, PartSeconds(forward=work, backward=work, gather_s=gather / 4, reduce_s=reduce / 4,
                                        update_s=0.0, regather_s=0.0))


runs = st.lists(st.tuples(st.integers(1, 5), *[st.integers(0, 12)] * 3), min_size=1, max_size=3)


@given(runs, st.booleans())
def test_the_chain_of_gathers_is_its_closed_form(rows: list[tuple[int, int, int, int]], overlaps: bool) -> None:
    units = [unit(c, g, r) for n, c, g, r in rows for _ in range(n)]
    inside = lay_out_chain(units, "B", True, True, overlaps)
    busy, tail = chain_s([Run(n, c / 4, g / 4, r / 4) for n, c, g, r in rows], overlaps)
    assert (inside.busy_s, inside.tail_s) == (float(busy), float(tail))


@given(runs, st.booleans())
def test_the_queue_of_reductions_is_its_closed_form(rows: list[tuple[int, int, int, int]], overlaps: bool) -> None:
    units = [unit(c, 0, r) for n, c, _, r in rows for _ in range(n)]
    inside = lay_out_queue(units, overlaps)
    assert inside.tail_s == float(queue_tail_s([Run(n, c / 4, 0.0, r / 4) for n, c, _, r in rows], overlaps))


MODEL = load_model("llama-3-8b")
CLUSTER = load_cluster("dgx-h100:4")
COST = cost_model(CLUSTER)


def strategy_of(zero: int, pp: int, tp: int, schedule: str, m: int, recompute: str) -> Strategy:
    return Strategy(dp=32 // pp // tp, tp=tp, pp=pp, zero=zero, num_microbatches=m, seq_len=4096, recompute=recompute,
                    schedule=schedule, kernels="fused")


@pytest.mark.parametrize(("zero", "tp", "m"), list(product(range(4), (1, 4), (1, 2, 7))))
def test_without_a_pipeline_estimate_and_replay_are_one(zero: int, tp: int, m: int) -> None:
    for recompute in RECOMPUTE:
        workload = build_workload(MODEL, strategy_of(zero, 1, tp, "1F1B", m, recompute))
        assert float(estimate(workload, COST).step_time_s) == pytest.approx(replay(workload, COST).step_time_s, rel=1e-12)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize(("zero", "pp", "m"), list(product(range(4), (2, 4, 8), (1, 4, 16, 64))))
def test_with_a_pipeline_the_estimate_is_close(schedule: str, zero: int, pp: int, m: int) -> None:
    """The closed form knows stages only by place, so uneven ends cost it a few per cent."""
    workload = build_workload(MODEL, strategy_of(zero, pp, 1, schedule, m, "none"))
    assert float(estimate(workload, COST).step_time_s) == pytest.approx(replay(workload, COST).step_time_s, rel=0.05)


def test_a_batch_is_priced_as_its_members() -> None:
    cases = [strategy_of(*c) for c in product((0, 1, 3), (1, 2, 4), (1, 2), sorted(SCHEDULES), (4,), RECOMPUTE)]
    fields = ("dp", "tp", "pp", "zero", "schedule", "num_microbatches", "recompute")
    batch = Strategy(**{f: np.array([getattr(s, f) for s in cases]) for f in fields}, seq_len=4096, kernels="fused")
    together = estimate(build_workload(MODEL, batch), COST)
    for i, strategy in enumerate(cases):
        alone = estimate(build_workload(MODEL, strategy), COST)
        assert together.step_time_s[i] == pytest.approx(float(alone.step_time_s), rel=1e-12)
        for name in BREAKDOWN:
            assert np.broadcast_to(together.breakdown_s[name], len(cases))[i] == pytest.approx(
                float(alone.breakdown_s[name]), rel=1e-9, abs=1e-12
            )


@settings(max_examples=40)
@given(st.integers(0, 3), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]), names, st.integers(1, 12),
       st.sampled_from(RECOMPUTE))
def test_timeline_critical_path_roofline(zero: int, pp: int, tp: int, schedule: str, m: int, recompute: str) -> None:
    """A timeline is no shorter than one micro-batch's way through all stages and any rank's own work, and that is no
    shorter than the model's FLOP at the peak rate."""
    strategy = strategy_of(zero, pp, tp, schedule, m, recompute)
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
    for pp, m in ((1, 2), (4, 8)):
        workload = build_workload(MODEL, strategy_of(zero, pp, 2, "1F1B", m, "none"))
        timeline = replay(workload, COST)
        parts = breakdown(timeline)
        assert tuple(parts) == BREAKDOWN
        assert sum(parts.values()) == pytest.approx(timeline.step_time_s, rel=1e-12)
        assert min(parts.values()) >= -1e-12
        closed = estimate(workload, COST).breakdown_s
        assert sum(float(v) for v in closed.values()) == pytest.approx(
            float(estimate(workload, COST).step_time_s), rel=1e-12
        )


def test_no_rank_does_two_things_on_one_stream() -> None:
    rows = replay(build_workload(MODEL, strategy_of(3, 4, 2, "1F1B", 8, "full")), COST).rows
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
    strategy = Strategy(pp=2, dp=16, num_microbatches=4, seq_len=1024, kernels="fused")
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


@given(names, st.integers(2, 8), st.integers(1, 40), st.integers(1, 16), st.integers(1, 16), st.integers(0, 4))
def test_sends_of_uniform_stages_are_their_closed_form(
    name: str, p: int, m: int, forward: int, backward: int, send: int
) -> None:
    """Exact where a send takes no longer than the passes that it hides behind."""
    t_f, t_b, t_s = forward + 4.0, backward + 4.0, float(send)
    spans = replay_table(build_schedule(name, p, m), lambda a: t_f if a.pass_ == "F" else t_b, t_s)
    strategy = Strategy(pp=p, num_microbatches=m, schedule=name)
    assert max(s.end_s for s in spans) == (p - 1 + m) * (t_f + t_b) + float(send_delay_s(strategy, t_s))


def test_sharding_pays_for_its_copies() -> None:
    """Each gather and each reduction of ZeRO-3 moves its parameters once more through memory."""
    parts = {zero: price(build_workload(MODEL, strategy_of(zero, 1, 1, "1F1B", 1, "none")), COST).parts["layer"]
             for zero in (0, 2, 3)}
    layer = build_workload(MODEL, strategy_of(3, 1, 1, "1F1B", 1, "none")).parts["layer"]
    gather, reduce = (float(COST.kernel(k).seconds) for k in (layer.gather_copy, layer.reduce_copy))
    assert parts[3].forward.compute_s - parts[0].forward.compute_s == pytest.approx(gather)
    assert parts[2].forward.compute_s == parts[3].forward.compute_s
    assert parts[2].backward.compute_s - parts[0].backward.compute_s == pytest.approx(reduce)
    assert parts[3].backward.compute_s - parts[0].backward.compute_s == pytest.approx(gather + reduce)
    assert layer.gather_copy.moved_bytes == pytest.approx(2 * 2 * layer.params * (1 + 1 / 32))
