"""The replay against closed forms, an independent max-plus recurrence, and the planner's estimate."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.calibration import NONE, Calibration
from profiles.cost import CostModel, cost_model
from profiles.families import load_model
from profiles.hardware import load_cluster
from profiles.model import Experts, ModelSpec
from simulator.breakdown import breakdown
from simulator.estimate import BREAKDOWN, estimate, send_delay_s
from simulator.inside import Unit, lay_out_chain, lay_out_queue
from simulator.metrics import step_flop
from simulator.pricing import PartSeconds, Seconds, price
from simulator.replay import rank_names, replay, replay_table
from simulator.schedules import Action, build_schedule
from simulator.software import Software
from simulator.stages import Run, chain_s, queue_tail_s
from simulator.strategy import RECOMPUTE, Strategy
from simulator.timeline import COLUMNS, chrome_trace
from simulator.workload import build_workload

ONE_CHUNK = ("1F1B", "GPipe")
names = st.sampled_from(ONE_CHUNK)


@given(names, st.integers(1, 8), st.integers(1, 16), st.integers(1, 64), st.integers(1, 64))
def test_uniform_stages_take_the_closed_form(name: str, p: int, m: int, forward: int, backward: int) -> None:
    """(p - 1 + m)(t_f + t_b), exactly (arXiv 2104.04473, section 2.2); eighths are exact in binary."""
    t_f, t_b = forward / 8, backward / 8
    spans = replay_table(build_schedule(name, p, m), lambda a: t_f if a.pass_ == "F" else t_b)
    assert max(s.end_s for s in spans) == (p - 1 + m) * (t_f + t_b)


@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 6), st.sampled_from([1, 2, 3, 4]), st.integers(1, 64),
       st.integers(1, 64), st.integers(0, 4))
def test_chunks_cut_the_bubble(p: int, rounds: int, v: int, forward: int, backward: int, send: int) -> None:
    """(m v + p - 1) passes of a chunk, so the bubble is (p - 1) / (v m) of the work (arXiv 2104.04473, section 2.2.2), and
    a send for each way between two of the p v stages, there and back."""
    m, t_f, t_b, t_s = rounds * p, forward / 8 + 0.5, backward / 8 + 0.5, send / 8
    table = build_schedule("Interleaved1F1B", p, m, v)
    spans = replay_table(table, lambda a: t_f if a.pass_ == "F" else t_b, t_s, p * v)
    work = m * v * (t_f + t_b)
    strategy = Strategy(pp=p, chunks=v, num_microbatches=m, schedule="Interleaved1F1B")
    assert float(send_delay_s(strategy, t_s)) == (2 * (p * v - 1) * t_s if p > 1 else 0.0)
    bubble = max(s.end_s for s in spans) - work - 2 * (p * v - 1) * t_s
    assert bubble == (p - 1) * (t_f + t_b)
    assert bubble / work == pytest.approx((p - 1) / (v * m))


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


def interleaved_end(p: int, m: int, v: int, seconds: dict[tuple[int, str], float], send: float) -> float:
    """Return the end of interleaved 1F1B by recurrence over a rank's k-th forward and backward.

    Micro-batches go round the chunks p at a time; a rank runs (v - 1) p + 2 (p - 1 - rank) forwards, then one forward
    and one backward in turn (arXiv 2104.04473, section 2.2.2; Megatron-LM's get_model_chunk_id).
    """
    total = m * v

    def number(chunk: int, microbatch: int) -> int:
        """Return when in a rank's order a chunk, counted from where the pass begins, sees a micro-batch."""
        return microbatch // p * p * v + chunk * p + microbatch % p

    def which(k: int) -> tuple[int, int]:
        return k % (p * v) // p, k // (p * v) * p + k % p

    def warm_up(rank: int) -> int:
        return min(total, (v - 1) * p + 2 * (p - 1 - rank))

    @cache
    def f(rank: int, k: int) -> float:
        warm, (chunk, microbatch) = warm_up(rank), which(k)
        before = (f(rank, k - 1) if k else 0.0) if k <= warm else b(rank, k - warm - 1)
        stage, arrived = chunk * p + rank, 0.0
        if stage:
            arrived = f((rank - 1) % p, number(chunk - (rank == 0), microbatch)) + send
        return max(before, arrived) + seconds[stage, "F"]

    @cache
    def b(rank: int, k: int) -> float:
        warm, (chunk, microbatch) = warm_up(rank), which(k)
        before = f(rank, warm + k) if warm + k < total else (b(rank, k - 1) if k else f(rank, total - 1))
        stage, arrived = (v - 1 - chunk) * p + rank, 0.0
        if stage < p * v - 1:
            arrived = b((rank + 1) % p, number(chunk - (rank == p - 1), microbatch)) + send
        return max(before, arrived) + seconds[stage, "B"]

    return max(b(rank, total - 1) for rank in range(p))


@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.data())
def test_uneven_chunks_equal_the_max_plus_recurrence(p: int, rounds: int, v: int, send: int, data: st.DataObject) -> None:
    m = rounds * p
    ticks = data.draw(st.lists(st.integers(1, 9), min_size=2 * p * v, max_size=2 * p * v))
    seconds = {(s, pass_): ticks[2 * s + i] / 4 for s in range(p * v) for i, pass_ in enumerate("FB")}
    spans = replay_table(build_schedule("Interleaved1F1B", p, m, v), lambda a: seconds[a.stage, a.pass_], send / 4, p * v)
    assert max(s.end_s for s in spans) == interleaved_end(p, m, v, seconds, send / 4)


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


# slower by a part that is exact in binary
slower = st.sampled_from([0.0, 0.25, 0.5])


@given(runs, st.booleans(), slower)
def test_the_chain_of_gathers_is_its_closed_form(
    rows: list[tuple[int, int, int, int]], overlaps: bool, beside: float
) -> None:
    units = [unit(c, g, r) for n, c, g, r in rows for _ in range(n)]
    inside = lay_out_chain(units, "B", True, True, overlaps, beside)
    busy, tail = chain_s([Run(n, c / 4, g / 4, r / 4) for n, c, g, r in rows], overlaps, beside)
    assert (inside.busy_s, inside.tail_s) == (float(busy), float(tail))
    assert inside.busy_s == written_out(rows, overlaps, beside)


def written_out(rows: list[tuple[int, int, int, int]], overlaps: bool, beside: float) -> float:
    """Return a chain's seconds part by part: each beside the reduction of the one before and the gather of the next."""
    parts = [(c / 4, g / 4, r / 4) for n, c, g, r in rows for _ in range(n)]
    if not overlaps:
        return sum(c + g + r for c, g, r in parts)
    total = parts[0][1]
    for i, (compute, _, _) in enumerate(parts):
        wires = (parts[i - 1][2] if i else 0.0) + (parts[i + 1][1] if i + 1 < len(parts) else 0.0)
        total += max(compute + beside * min(compute, wires), wires)
    return total


@given(runs, st.booleans())
def test_the_queue_of_reductions_is_its_closed_form(rows: list[tuple[int, int, int, int]], overlaps: bool) -> None:
    units = [unit(c, 0, r) for n, c, _, r in rows for _ in range(n)]
    inside = lay_out_queue(units, overlaps)
    compute = sum(n * c for n, c, _, _ in rows) / 4
    assert inside.busy_s == compute
    # a queue, one reduction after the other, each no sooner than its part is done
    done, free = 0.0, 0.0 if overlaps else compute
    for n, c, _, r in rows:
        for _ in range(n):
            done += c / 4
            free = max(free, done) + r / 4
    assert inside.tail_s == (max(0.0, free - compute) if any(r for _, _, _, r in rows) else 0.0)
    assert inside.tail_s == float(queue_tail_s([Run(n, c / 4, 0.0, r / 4) for n, c, _, r in rows], overlaps))


MODEL = load_model("llama-3-8b")
CLUSTER = load_cluster("dgx-h100:4")
COST = replace(cost_model(CLUSTER), calibration=NONE)


FUSED = Software(kernels="fused")
CALIBRATED = replace(COST, calibration=Calibration(beside=0.2, wait=0.01))
THE_CATALOGUES = cost_model(CLUSTER)
# on CPU nothing hides behind anything
IN_LINE = replace(COST, cluster=replace(CLUSTER, accelerator=replace(CLUSTER.accelerator, device="cpu")))


def strategy_of(zero: int, pp: int, tp: int, schedule: str, m: int, recompute: str, **others: Any) -> Strategy:
    common = {"seq_len": 4096, "software": FUSED} | others
    return Strategy(dp=32 // pp // tp // others.get("cp", 1), tp=tp, pp=pp, zero=zero, num_microbatches=m,
                    recompute=recompute, schedule=schedule, **common)


def off(strategy: Strategy, cost: CostModel = COST, model: ModelSpec = MODEL) -> float:
    """Return the closed form over the replay, less one."""
    workload = build_workload(model, strategy)
    return float(estimate(workload, cost).step_time_s) / replay(workload, cost).step_time_s - 1


@pytest.mark.parametrize(("zero", "tp", "m"), list(product(range(4), (1, 4), (1, 2, 7))))
def test_without_a_pipeline_estimate_and_replay_are_one(zero: int, tp: int, m: int) -> None:
    for recompute in RECOMPUTE:
        assert abs(off(strategy_of(zero, 1, tp, "1F1B", m, recompute))) < 1e-12


SPARSE = replace(
    MODEL, name="sparse", kinds=(
        replace(MODEL.kinds[0], name="dense"),
        replace(MODEL.kinds[0], name="sparse", ffn=Experts(num_experts=8, top_k=2, hidden=14336, shared_hidden=2048)),
    ), pattern=(0, 0, 0) + (1,) * 29,
)
"""Llama 3 8B with experts in all but its first three layers."""
SOFTWARE: dict[str, dict[str, Any]] = {
    "plain": {}, "reduces after backward": {"grad_reduce": False}, "gathers beside forward": {"param_gather": True},
    "hides tp in backward": {"tp_backward": True}, "gathers again": {"keeps_gathered": False},
    "gathers again, hidden": {"keeps_gathered": False, "tp_backward": True}, "pieces": {"tp_overlap": True},
    "slow host": {"host_launch_s": 2e-5, "step_s": 0.05}, "unfused": {"attention": "unfused", "dropout": True},
    "narrow": {"grad_bytes": 2, "reduce_bytes": 2, "gather_bytes": 1, "master_bytes": 0, "moment_bytes": 4},
}
AXES: dict[str, dict[str, Any]] = {
    "ring": {"cp": 4}, "all_gather": {"cp": 2, "context": "all_gather"}, "ulysses": {"cp": 2, "context": "ulysses"},
    "experts": {"ep": 8}, "experts cut": {"ep": 4, "etp": 2}, "experts and ring": {"ep": 8, "cp": 2, "imbalance": 1.5},
    "no sp": {"sequence_parallel": False}, "groups": {"shard_group": 4}, "some layers": {"recompute_share": 0.25},
    "fp8": {"precision": "fp8"},
}


@pytest.mark.parametrize(("zero", "tp"), list(product(range(4), (1, 4))))
@pytest.mark.parametrize("name", SOFTWARE)
def test_without_a_pipeline_they_are_one_with_any_software(name: str, zero: int, tp: int) -> None:
    software = Software(kernels="fused", **SOFTWARE[name])
    for cost, m, recompute in product((COST, CALIBRATED, THE_CATALOGUES, IN_LINE), (1, 5), ("none", "full")):
        assert abs(off(strategy_of(zero, 1, tp, "1F1B", m, recompute, software=software), cost)) < 1e-12


@pytest.mark.parametrize(("zero", "tp"), list(product(range(4), (1, 2))))
@pytest.mark.parametrize("name", AXES)
def test_without_a_pipeline_they_are_one_on_any_axis(name: str, zero: int, tp: int) -> None:
    for cost, m in product((COST, CALIBRATED, THE_CATALOGUES, IN_LINE), (1, 5)):
        assert abs(off(strategy_of(zero, 1, tp, "1F1B", m, "full", **AXES[name]), cost, SPARSE)) < 1e-12


@pytest.mark.parametrize(("name", "zero", "pp", "m"), [
    *product(["ring", "experts", "experts and ring"], range(4), (2, 4), (4, 16)),
])
def test_with_a_pipeline_the_estimate_of_other_axes_is_close(name: str, zero: int, pp: int, m: int) -> None:
    assert abs(off(strategy_of(zero, pp, 1, "1F1B", m, "none", **AXES[name]), COST, SPARSE)) < 0.02


@pytest.mark.parametrize("name", ["plain", "reduces after backward", "gathers beside forward", "slow host"])
@pytest.mark.parametrize(("zero", "pp", "m"), list(product(range(4), (2, 8), (4, 16))))
def test_with_a_pipeline_the_calibrated_estimate_is_close(name: str, zero: int, pp: int, m: int) -> None:
    software = Software(kernels="fused", **SOFTWARE[name])
    for cost in (CALIBRATED, THE_CATALOGUES):
        assert abs(off(strategy_of(zero, pp, 1, "1F1B", m, "none", software=software), cost)) < CALIBRATED_BOUND


@pytest.mark.parametrize(("zero", "pp", "m"), [
    *product(range(4), (2, 8), (4, 16)),
])
def test_with_a_pipeline_where_nothing_hides_the_estimate_is_close(zero: int, pp: int, m: int) -> None:
    assert abs(off(strategy_of(zero, pp, 1, "1F1B", m, "none"), IN_LINE)) < 0.02


CALIBRATED_BOUND = 0.02
CHUNKED_BOUNDS = {0: (0.03, 0.01), 1: (0.03, 0.01), 2: (0.07, 0.01), 3: (0.07, 0.01)}
"""By ZeRO level, of short steps and of 8 p micro-batches: the head makes one chunk of the last rank longer."""


@pytest.mark.parametrize(("zero", "pp", "chunks"), list(product(range(4), (2, 4, 8), (2, 4))))
def test_with_chunks_the_estimate_is_close(zero: int, pp: int, chunks: int) -> None:
    errors = [
        abs(off(strategy_of(zero, pp, 1, "Interleaved1F1B", rounds * pp, "none", chunks=chunks)))
        for rounds in (1, 2, 4, 8)
    ]
    short, long = CHUNKED_BOUNDS[zero]
    assert max(errors) < short and errors[-1] < long


@pytest.mark.parametrize("schedule", ONE_CHUNK)
@pytest.mark.parametrize(("zero", "pp", "m"), list(product(range(4), (2, 4, 8), (1, 4, 16, 64))))
def test_with_a_pipeline_the_estimate_is_close(schedule: str, zero: int, pp: int, m: int) -> None:
    """The closed form knows stages only by place, so uneven ends cost it a few per cent."""
    assert abs(off(strategy_of(zero, pp, 1, schedule, m, "none"))) < 0.02


@pytest.mark.parametrize("model", [MODEL, SPARSE], ids=lambda m: m.name)
def test_a_batch_is_priced_as_its_members(model: ModelSpec) -> None:
    cases = [strategy_of(*c) for c in product((0, 1, 3), (1, 2, 4), (1, 2), ONE_CHUNK, (4,), RECOMPUTE)]
    cases += [
        strategy_of(zero, 2, 2, "Interleaved1F1B", 4, "none", chunks=v, ep=ep, cp=cp, shard_group=group,
                    sequence_parallel=cp == 1)
        for zero, v, (ep, cp, group) in product((0, 1, 2, 3), (2, 4), ((1, 1, 0), (8, 1, 4), (4, 2, 0), (1, 4, 2)))
    ]
    fields = ("dp", "tp", "cp", "pp", "ep", "zero", "shard_group", "sequence_parallel", "schedule", "chunks",
              "num_microbatches", "recompute")
    batch = Strategy(**{f: np.array([getattr(s, f) for s in cases]) for f in fields}, seq_len=4096, software=FUSED)
    together = estimate(build_workload(model, batch), CALIBRATED)
    for i, strategy in enumerate(cases):
        alone = estimate(build_workload(model, strategy), CALIBRATED)
        assert together.step_time_s[i] == pytest.approx(float(alone.step_time_s), rel=1e-12)
        for name in BREAKDOWN:
            assert np.broadcast_to(together.breakdown_s[name], len(cases))[i] == pytest.approx(
                float(alone.breakdown_s[name]), rel=1e-9, abs=1e-12
            )


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
            # without a bubble the closed form and the replay agree on every part
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


def priced(zero: int = 0, tp: int = 1, m: int = 3, cost: CostModel = COST, **software: Any) -> dict[str, float]:
    """Return what a step without a pipeline is made of: computation, reductions, gathers and updates of all its parts."""
    strategy = strategy_of(zero, 1, tp, "1F1B", m, "none", software=Software(kernels="fused", **software))
    parts = price(build_workload(MODEL, strategy), cost).parts
    times = {"embedding": 1, "layer": 32, "head": 1}
    names = ("gather_s", "reduce_s", "update_s", "regather_s")
    sums = {n: sum(k * float(getattr(parts[p], n)) for p, k in times.items()) for n in names}
    passes = {n: sum(k * float(getattr(parts[p], n).total_s) for p, k in times.items()) for n in ("forward", "backward")}
    timeline = replay(build_workload(MODEL, strategy), cost)
    return sums | passes | {"step": timeline.step_time_s}


def test_reductions_after_backward_add_up() -> None:
    """With nothing hidden a step is its passes, all reductions and the update, one after the other."""
    s = priced(grad_reduce=False)
    assert s["step"] == pytest.approx(3 * (s["forward"] + s["backward"]) + s["reduce_s"] + s["update_s"], rel=1e-12)
    assert priced()["step"] < s["step"]


def test_updated_weights_come_in_beside_the_first_forward() -> None:
    """What is hidden is the shorter of the gather and a forward; beside it computation slows down."""
    for cost, slowed in ((COST, 0.0), (CALIBRATED, 0.2)):
        s, hidden = priced(1, cost=cost), priced(1, cost=cost, param_gather=True)
        wait = 1 + cost.calibration.wait * 2
        saved = min(s["regather_s"], s["forward"]) * (1 - slowed)
        assert s["regather_s"] > 0
        assert s["step"] - hidden["step"] == pytest.approx(saved * wait, rel=1e-9)


def test_communication_beside_backward_slows_it() -> None:
    """DDP's reductions last 0.2 s of computation for each second that both run; ranks of 4 nodes wait 2 x 1 %."""
    plain, slowed = priced(m=1), priced(m=1, cost=CALIBRATED)
    both = min(plain["reduce_s"], plain["backward"])
    # the computation so slowed, or the reductions where they last longer
    least = plain["forward"] + plain["backward"] + 0.2 * both + plain["update_s"]
    assert slowed["step"] == pytest.approx(max(plain["step"], least) * 1.02, rel=1e-12)
    late, alone = priced(m=1, cost=CALIBRATED, grad_reduce=False), priced(m=1, grad_reduce=False)
    assert late["step"] == pytest.approx(alone["step"] * 1.02, rel=1e-12)


def test_what_the_host_adds_to_a_step() -> None:
    assert priced(step_s=0.25)["step"] == pytest.approx(priced()["step"] + 0.25, rel=1e-12)
    # a pass takes no less than its launches: with a millisecond each they are all that counts
    layer = build_workload(MODEL, strategy_of(0, 1, 1, "1F1B", 1, "none")).parts["layer"]
    slow = strategy_of(0, 1, 1, "1F1B", 1, "none", software=Software(kernels="fused", host_launch_s=1.0))
    prices = price(build_workload(MODEL, slow), COST).parts["layer"]
    assert float(prices.forward.total_s) == sum(getattr(w, "launches", 1) for w in layer.forward)


def test_collectives_of_backward_hide_behind_the_weight_gradients() -> None:
    """Column-parallel inputs: two a layer and one in front of the head, each with the gradients' scatter."""
    plain, hidden = priced(tp=4), priced(tp=4, tp_backward=True)
    again, both = priced(tp=4, keeps_gathered=False), priced(tp=4, keeps_gathered=False, tp_backward=True)
    workload = build_workload(MODEL, strategy_of(0, 1, 4, "1F1B", 3, "none"))
    size = 2 * 4096 * MODEL.hidden
    seconds = {
        kind: float(COST.collective(replace(g, kind=kind, bytes=size), 4).seconds)
        for g in workload.parts["layer"].hidden_backward[:1] for kind in ("reduce_scatter", "all_gather")
    }
    assert plain["backward"] - hidden["backward"] == pytest.approx(65 * seconds["reduce_scatter"], rel=1e-9)
    assert again["backward"] - plain["backward"] == pytest.approx(64 * seconds["all_gather"], rel=1e-9)
    # weight gradients are long enough for both
    assert both["backward"] == pytest.approx(hidden["backward"], rel=1e-12)
    assert plain["forward"] == both["forward"]
