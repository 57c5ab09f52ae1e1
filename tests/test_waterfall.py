"""Waterfalls between two steps: they add up, run backwards, and name what was changed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from replay_cases import FUSED, MODEL, SPARSE

from planner.question import ask
from planner.rules import illegal_reason
from profiles.cost import CostModel, cost_model
from profiles.families import load_model
from profiles.hardware import Cluster, load_cluster
from profiles.model import ModelSpec
from profiles.ops import Kernel
from simulator.breakdown import breakdown, with_exposed_sends
from simulator.metrics import mfu, step_flop
from simulator.pricing import as_run
from simulator.replay import replay
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.waterfall import TERMS, Decomposed, decompose, waterfall
from simulator.workload import build_workload

GPT2 = load_model("gpt2")
DGX = load_cluster("dgx-h100:1")
TWO = load_cluster("dgx-h100:2")
EXPOSED = ("exposed_tp", "exposed_cp", "exposed_ep", "exposed_pp", "exposed_dp")
EAGER = Software(host_launch_s=2e-5, step_s=0.01, attention="unfused", tp_backward=True)


def step_of(model: ModelSpec, strategy: Strategy, cluster: Cluster = DGX, cost: CostModel | None = None) -> Decomposed:
    cost = cost or cost_model(cluster)
    workload = build_workload(model, strategy)
    timeline = replay(workload, cost)
    return decompose(workload, cost, timeline, with_exposed_sends(breakdown(timeline), workload, cost, timeline))


def seconds(first: Decomposed, second: Decomposed) -> dict[str, float]:
    """Return the waterfall of a step between steps of as many tokens on a GPU."""
    assert first.tokens_per_gpu == second.tokens_per_gpu
    return {term: s * first.tokens_per_gpu for term, s in waterfall(first, second).items()}


def total(step: Decomposed) -> float:
    return step.gpu_s_per_token * step.tokens_per_gpu


pieces = st.fixed_dictionaries({
    name: st.fixed_dictionaries({f: st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.floats(1e-20, 1e-10)) for f in factors})
    for name, factors in (("one", ("matmul",)), ("two", ("peak", "matmul")), ("three", ("bubble", "model_work", "peak")))
})


def made(pieces: Any) -> Decomposed:
    return Decomposed(pieces=pieces, about={}, tokens_per_gpu=1.0)


@given(pieces, pieces)
def test_shares_of_products_add_up_and_change_sign(one: Any, other: Any) -> None:
    a, b = made(one), made(other)
    there, back = waterfall(a, b), waterfall(b, a)
    scale = max(a.gpu_s_per_token, b.gpu_s_per_token)
    assert math.fsum(there.values()) == pytest.approx(b.gpu_s_per_token - a.gpu_s_per_token, abs=1e-9 * scale)
    assert there == pytest.approx({term: -s for term, s in back.items()}, abs=1e-9 * scale)
    assert set(waterfall(a, a).values()) <= {0.0}


@given(*[st.floats(0.1, 10.0)] * 4)
def test_a_factor_takes_what_it_adds_on_the_way(a: float, b: float, c: float, d: float) -> None:
    """Where all factors grow at their own constant rates from one side to the other, each adds x d(ln f) on the way."""
    found = waterfall(made({"x": {"peak": a, "matmul": b}}), made({"x": {"peak": c, "matmul": d}}))
    way = (np.arange(4000) + 0.5) / 4000
    x = a ** (1 - way) * c**way * b ** (1 - way) * d**way
    assert found["peak"] == pytest.approx(float(x.mean()) * math.log(c / a), rel=1e-5, abs=1e-5)
    assert found["matmul"] == pytest.approx(float(x.mean()) * math.log(d / b), rel=1e-5, abs=1e-5)


MODELS = [GPT2, MODEL, SPARSE]
CLUSTERS = [DGX, TWO, load_cluster("dgx-a100:2"), load_cluster("dgx-h100:4")]
SOFTWARE = [FUSED, EAGER, Software(kernels="fused", ep_overlap=True, tp_overlap=True, param_gather=True)]


@st.composite
def jobs(draw: st.DrawFn) -> tuple[int, int, Strategy]:
    """Draw a legal strategy for a model on a cluster, both by their place in the lists."""
    which, where = draw(st.integers(0, len(MODELS) - 1)), draw(st.integers(0, len(CLUSTERS) - 1))
    model, cluster = MODELS[which], CLUSTERS[where]
    tp, cp, pp, ep, chunks, m = (draw(st.sampled_from(v)) for v in ((1, 2, 4), (1, 2), (1, 2, 4), (1, 4), (1, 2), (1, 2, 8)))
    schedule = draw(st.sampled_from(["1F1B", "GPipe", "ZBH1"] if chunks == 1 else ["Interleaved1F1B", "ZBV", "DualPipeV"]))
    num = cluster.num_gpus
    assume(num % (tp * cp * pp) == 0)
    strategy = Strategy(
        dp=num // (tp * cp * pp), tp=tp, cp=cp, pp=pp, ep=ep, chunks=chunks, schedule=schedule, num_microbatches=m,
        zero=draw(st.sampled_from([0, 1, 2, 3])), recompute=draw(st.sampled_from(["none", "selective", "full"])),
        recompute_share=draw(st.sampled_from([1.0, 0.5])), seq_len=draw(st.sampled_from([512, 1024])),
        software=draw(st.sampled_from(SOFTWARE)), imbalance=draw(st.sampled_from([1.0, 1.3])),
        precision=draw(st.sampled_from(["bf16", "fp8"])) if cluster.accelerator.name.startswith("H") else "bf16",
    )
    asked = ask(model, cluster, tokens=1e9, seq_len=strategy.seq_len, global_batch=int(strategy.global_batch),
                precision=strategy.precision, software=strategy.software)
    assume(illegal_reason(strategy, asked) is None)
    return which, where, strategy


Case = tuple[int, int, Strategy]


@settings(max_examples=60, phases=[Phase.generate])
@given(jobs(), jobs())
def test_any_two_legal_steps_differ_by_their_waterfall(one: Case, other: Case) -> None:
    a, b = (step_of(MODELS[which], strategy, CLUSTERS[where]) for which, where, strategy in (one, other))
    for step, (which, where, strategy) in ((a, one), (b, other)):
        step_s = replay(build_workload(MODELS[which], strategy), cost_model(CLUSTERS[where])).step_time_s
        of_token = step_s * float(strategy.world_size) / float(strategy.tokens_per_step)
        assert step.gpu_s_per_token == pytest.approx(of_token, rel=1e-9)
        # nothing is less than nothing but for rounding; the rank that is busiest with its update, too, may compute less
        below = {name: p for name, p in step.pieces.items() if "imbalance" not in p and min(p.values()) < -1e-9 * of_token}
        assert not below, strategy
    there, back = waterfall(a, b), waterfall(b, a)
    difference = b.gpu_s_per_token - a.gpu_s_per_token
    scale = max(a.gpu_s_per_token, b.gpu_s_per_token)
    assert math.fsum(there.values()) == pytest.approx(difference, abs=1e-9 * scale)
    assert there == pytest.approx({term: -s for term, s in back.items()}, abs=1e-9 * scale)
    assert all(s == 0.0 for s in waterfall(a, a).values())
    assert set(there) <= set(TERMS) and set(there) <= set(a.about)


@pytest.mark.parametrize("strategy", [
    Strategy(dp=2, tp=8, zero=3, num_microbatches=2, seq_len=2048, software=FUSED),
    Strategy(dp=8, cp=2, zero=1, num_microbatches=2, seq_len=4096, software=FUSED, context="all_gather"),
    Strategy(dp=16, ep=8, zero=1, num_microbatches=2, seq_len=2048, software=FUSED),
])
def test_a_slower_network_is_exposed_communication_and_nothing_else(strategy: Strategy) -> None:
    slow = replace(TWO, **{n: replace(link, bytes_per_s=link.bytes_per_s / 4)
                           for n, link in (("scale_up", TWO.scale_up), ("scale_out", TWO.scale_out))})
    model = SPARSE if strategy.ep > 1 else MODEL
    found = seconds(step_of(model, strategy, TWO), step_of(model, strategy, slow))
    # what runs beside computation slows it
    allowed = (*EXPOSED, "slowed")
    assert sum(found[t] for t in allowed) == pytest.approx(sum(found.values()), rel=1e-9)
    assert sum(found.values()) > 0
    assert max(abs(s) for t, s in found.items() if t not in allowed) < 1e-9 * sum(found.values())


def test_more_micro_batches_are_less_bubble() -> None:
    few = Strategy(dp=1, tp=2, pp=4, num_microbatches=4, seq_len=4096, software=FUSED)
    change = waterfall(a := step_of(MODEL, few), b := step_of(MODEL, replace(few, num_microbatches=32)))
    difference = b.gpu_s_per_token - a.gpu_s_per_token
    assert difference < 0 and 0.9 < change["bubble"] / difference < 1.1
    assert max(abs(change[t]) for t in change if t != "bubble") < 0.1 * abs(difference)
    # without a pipeline on one side the bubble is all that the other has
    flat = step_of(MODEL, replace(few, pp=1, dp=4))
    parts = breakdown(replay(build_workload(MODEL, few), cost_model(DGX)))
    own = waterfall(flat, a)["bubble"] * a.tokens_per_gpu
    assert own == pytest.approx(parts["bubble"] - total(a) * a.about["exposed_pp"].value, rel=1e-9)


def test_full_recomputation_is_the_time_of_what_is_computed_again() -> None:
    plain = Strategy(dp=8, zero=1, num_microbatches=2, seq_len=4096, software=replace(FUSED, early_stop=False))
    full = replace(plain, recompute="full")
    found = seconds(step_of(MODEL, plain), step_of(MODEL, full))
    cost = as_run(cost_model(DGX), plain.software)
    layer = build_workload(MODEL, full).parts[MODEL.kinds[0].name]
    again = 2 * MODEL.num_layers * sum(float(cost.kernel(k).seconds) for k in layer.forward if isinstance(k, Kernel))
    assert found["recompute"] == pytest.approx(again, rel=1e-9)
    assert found["recompute"] == pytest.approx(sum(found.values()), rel=1e-6)
    half = seconds(step_of(MODEL, plain), step_of(MODEL, replace(full, recompute_share=0.5)))
    assert half["recompute"] == pytest.approx(again / 2, rel=1e-9)


@pytest.mark.parametrize("strategy", [
    Strategy(dp=8, num_microbatches=2, seq_len=4096, software=FUSED),
    Strategy(dp=2, tp=1, pp=4, num_microbatches=16, seq_len=4096, software=FUSED, recompute="full"),
])
def test_twice_the_peak_is_a_matter_of_the_peak(strategy: Strategy) -> None:
    gpu = DGX.accelerator
    fast = replace(gpu, peak_flop_per_s={t: 2 * p for t, p in gpu.peak_flop_per_s.items()})
    cost = cost_model(DGX)
    found = seconds(a := step_of(MODEL, strategy, DGX, cost),
                    b := step_of(MODEL, strategy, DGX, replace(cost, cluster=replace(DGX, accelerator=fast))))
    assert b.about["peak"].value == pytest.approx(2 * a.about["peak"].value)
    assert 0.9 < found["peak"] / sum(found.values()) < 1.2
    assert abs(found["bubble"]) + abs(found["recompute"]) < 0.06 * -found["peak"]
    assert found["bandwidth"] == found["model_work"] == found["extra_work"] == 0


def test_more_memory_bandwidth_is_a_matter_of_bandwidth() -> None:
    strategy = Strategy(dp=8, num_microbatches=2, seq_len=4096, software=FUSED)
    gpu = replace(DGX.accelerator, memory_bytes_per_s=2 * DGX.accelerator.memory_bytes_per_s)
    cost = cost_model(DGX)
    wide = replace(cost, cluster=replace(DGX, accelerator=gpu))
    found = seconds(step_of(MODEL, strategy, DGX, cost), step_of(MODEL, strategy, DGX, wide))
    assert found["bandwidth"] < 0 and found["bandwidth"] < 0.5 * sum(found.values())
    assert found["peak"] == found["recompute"] == 0


def test_fp8_is_a_higher_peak_worse_used_and_casts() -> None:
    strategy = Strategy(dp=8, num_microbatches=2, seq_len=4096, software=FUSED)
    found = seconds(step_of(MODEL, strategy), step_of(MODEL, replace(strategy, precision="fp8")))
    assert found["peak"] < 0 < found["casts"] and found["matmul"] > 0
    assert found["attention"] == found["pointwise"] == found["vocabulary"] == 0


def test_work_is_that_of_the_model_and_its_efficiency_that_of_the_step() -> None:
    strategy = Strategy(dp=8, num_microbatches=2, seq_len=4096, software=FUSED)
    step = step_of(MODEL, strategy)
    asked = float(step_flop(MODEL, strategy) / strategy.tokens_per_step)
    assert step.about["model_work"].value == pytest.approx(asked, rel=1e-12)
    assert step.about["extra_work"].value == pytest.approx(1.0, rel=1e-12)
    # model FLOP at peak over the step is MFU
    ideal = step.about["model_work"].value / step.about["peak"].value / step.gpu_s_per_token
    assert ideal == pytest.approx(float(mfu(MODEL, strategy, total(step), DGX.accelerator)), rel=1e-9)


def test_experts_with_more_tokens_do_more_work() -> None:
    even = Strategy(dp=8, ep=8, num_microbatches=2, seq_len=2048, software=FUSED)
    found = seconds(step_of(SPARSE, even), b := step_of(SPARSE, replace(even, imbalance=1.5)))
    assert b.about["extra_work"].value > 1.05 and found["extra_work"] > 0.5 * sum(found.values()) > 0
    assert found["peak"] == pytest.approx(0.0, abs=1e-12) and found["model_work"] == 0


def test_another_model_is_more_work() -> None:
    strategy = Strategy(dp=8, num_microbatches=2, seq_len=1024, software=FUSED)
    change = waterfall(a := step_of(GPT2, strategy), b := step_of(MODEL, strategy))
    assert change["model_work"] > 0.9 * (b.gpu_s_per_token - a.gpu_s_per_token)


def test_a_late_host_slow_neighbours_and_the_slowest_rank_have_their_terms() -> None:
    strategy = Strategy(dp=8, zero=2, num_microbatches=2, seq_len=512, software=FUSED)
    late = replace(strategy, software=replace(FUSED, host_launch_s=3e-5, step_s=0.02))
    found = seconds(step_of(GPT2, strategy), step_of(GPT2, late))
    assert found["launch"] > 0 and found["other"] == pytest.approx(0.02)
    assert found["pointwise"] == found["matmul"] == found["copies"] == 0
    cost = cost_model(TWO)
    calm = replace(cost, calibration=cost.calibration.model_copy(update={"beside": 0.0, "wait": 0.0}))
    wide = replace(strategy, dp=16)
    found = seconds(quiet := step_of(MODEL, wide, TWO, calm), step_of(MODEL, wide, TWO, cost))
    assert quiet.about["slowed"].value == pytest.approx(0.0, abs=1e-12) and found["slowed"] > 0
    assert quiet.about["stragglers"].value == 0 and found["stragglers"] > 0
    assert found["slowed"] + found["stragglers"] + found["exposed_dp"] == pytest.approx(sum(found.values()), rel=1e-6)


def test_a_heavy_head_is_imbalance() -> None:
    """Layers that make room for the head: the busiest stage computes no more than the others, by as much."""
    uneven = Strategy(dp=2, pp=4, num_microbatches=8, seq_len=2048, software=FUSED, layers="8-8-8-8")
    found = seconds(a := step_of(MODEL, uneven), b := step_of(MODEL, replace(uneven, layers="9-9-8-6")))
    assert a.about["imbalance"].value > b.about["imbalance"].value and found["imbalance"] < 0
    assert found["matmul"] == pytest.approx(0.0, abs=1e-12) and found["model_work"] == 0
