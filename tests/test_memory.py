"""Bytes at the peak: published bytes per parameter, monotone in what should shrink them, and batches as members."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.families import load_model, num_params
from profiles.hardware import load_accelerator
from simulator.memory import in_flight, peak_memory, state_bytes
from simulator.schedules import SCHEDULES, build_schedule
from simulator.strategy import RECOMPUTE, Strategy
from simulator.workload import build_workload

MODEL = load_model("llama-3-8b")
H100 = load_accelerator("h100-80gb")


def total(strategy: Strategy, params: float = 1.0) -> float:
    return float(sum(state_bytes(strategy, params, 0.0).values()))


@pytest.mark.parametrize(
    ("precision", "zero", "bytes_per_param"),
    [
        # Megatron-LM's table: 18 without, 6 + 12/d with its distributed optimizer (docs/source/api-guide/dist_optimizer.md)
        ("bf16", 0, lambda d: 18.0), ("bf16", 1, lambda d: 6 + 12 / d), ("bf16", 2, lambda d: 2 + 16 / d),
        ("bf16", 3, lambda d: 16 / d), ("fp32", 0, lambda d: 16.0), ("fp32", 1, lambda d: 8 + 8 / d),
        # what `fully_shard` keeps beside the gathered weights
        ("fp32", 2, lambda d: 4 + 16 / d), ("fp32", 3, lambda d: 16 / d),
    ],
)
def test_bytes_per_parameter(precision: str, zero: int, bytes_per_param: object) -> None:
    for dp in (2, 8, 64):
        strategy = Strategy(dp=dp, zero=zero, precision=precision)
        assert total(strategy) == pytest.approx(bytes_per_param(dp), rel=1e-12)  # type: ignore[operator]


@settings(max_examples=60)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from(sorted(SCHEDULES)),
       st.integers(1, 16), st.sampled_from([1, 2]), st.sampled_from(["bf16", "fp32"]))
def test_less_is_kept_by_more_recomputation_and_more_sharding(
    pp: int, tp: int, schedule: str, m: int, micro_batch: int, precision: str
) -> None:
    common = Strategy(dp=8, tp=tp, pp=pp, schedule=schedule, num_microbatches=m, micro_batch=micro_batch,
                      seq_len=4096, precision=precision)
    peaks = {
        (zero, recompute): float(
            peak_memory(build_workload(MODEL, replace(common, zero=zero, recompute=recompute)), H100).peak_bytes
        ) for zero, recompute in product(range(4), RECOMPUTE)
    }
    for zero in range(4):
        assert peaks[zero, "selective"] <= peaks[zero, "none"] * (1 + 1e-12)
        assert peaks[zero, "full"] <= peaks[zero, "selective"] * (1 + 1e-12)
    for recompute in RECOMPUTE:
        assert peaks[1, recompute] < peaks[0, recompute]
        assert peaks[3, recompute] < peaks[0, recompute]


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(2, 8), st.integers(1, 12))
def test_in_flight_is_what_the_schedule_holds(schedule: str, p: int, m: int) -> None:
    strategy = Strategy(pp=p, schedule=schedule, num_microbatches=m)
    held = []
    for row in build_schedule(schedule, p, m):
        alive = np.cumsum([1 if a.pass_ == "F" else -1 for a in row])
        held.append(alive.max())
    assert in_flight(strategy, "first") == held[0]
    assert in_flight(strategy, "last") == held[-1]
    if p > 2:
        assert in_flight(strategy, "middle") == max(held[1:-1])


def test_a_batch_is_its_members() -> None:
    cases = [
        Strategy(dp=64 // pp // tp, tp=tp, pp=pp, zero=z, recompute=r, num_microbatches=4, seq_len=4096)
        for pp, tp, z, r in product((1, 2, 4), (1, 8), range(4), RECOMPUTE)
    ]
    fields = ("dp", "tp", "pp", "zero", "recompute")
    batch = Strategy(**{f: np.array([getattr(s, f) for s in cases]) for f in fields}, num_microbatches=4, seq_len=4096)
    together = peak_memory(build_workload(MODEL, batch), H100)
    for i, strategy in enumerate(cases):
        alone = peak_memory(build_workload(MODEL, strategy), H100)
        assert together.peak_bytes[i] == pytest.approx(float(alone.peak_bytes), rel=1e-12)
        assert sum(v[i] for v in together.parts_bytes.values()) == pytest.approx(together.peak_bytes[i], rel=1e-12)


def test_an_8b_model_alone_needs_what_everyone_knows() -> None:
    """18 bytes a parameter: 135 GiB of states for 8.03 billion, so it never fits one 80 GB accelerator."""
    memory = peak_memory(build_workload(MODEL, Strategy(seq_len=512)), H100)
    states = sum(float(memory.parts_bytes[k]) for k in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(18 * num_params(MODEL), rel=1e-9) or memory.parts_bytes["gradients"] == 0
    assert not memory.fits


def test_activations_follow_the_closed_form() -> None:
    """bf16, fused, no tp, per token and layer: 2h (norm inputs) + 2h (norm outputs) + q, k, v, output + log-sum-exp +
    gate, up and their product (arXiv 2205.05198 section 4, for a gated layer with flash attention)."""
    strategy = Strategy(micro_batch=1, seq_len=4096, kernels="fused")
    layer = build_workload(MODEL, strategy).parts["layer"]
    h, f, kv = MODEL.hidden, MODEL.ffn_hidden, MODEL.num_kv_heads * MODEL.head_dim
    per_token = 2 * (4 * h + 2 * h + 2 * kv + 3 * f) + 4 * MODEL.num_heads
    assert layer.saved_none_bytes == pytest.approx(per_token * 4096, rel=1e-12)
    assert layer.saved_full_bytes == 2 * h * 4096


def test_what_torchs_engines_hold_beside_the_states() -> None:
    """DDP's buckets after accumulation, and the working copy of `replicate`: 4 bytes a parameter each."""
    ddp = Strategy(dp=2, precision="fp32", num_microbatches=1)
    assert total(replace(ddp, num_microbatches=4)) == total(ddp) + 4
    assert total(replace(ddp, tp=2)) == total(ddp) + 4
    assert total(replace(ddp, dp=1, num_microbatches=4)) == total(replace(ddp, dp=1))


def test_a_pipeline_holds_its_buffers() -> None:
    few, many = (
        peak_memory(build_workload(MODEL, Strategy(pp=4, num_microbatches=m, seq_len=4096)), H100) for m in (8, 16)
    )
    send = build_workload(MODEL, Strategy(pp=4, seq_len=4096)).send.bytes
    assert many.parts_bytes["activations"] - few.parts_bytes["activations"] == pytest.approx(2 * 8 * send)
