"""Bytes at the peak: published bytes per parameter, monotone in what should shrink them, and batches as members."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from held_laws import HELD
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from profiles.families import load_model, num_params
from profiles.families.gpt2 import gpt2_spec
from profiles.hardware import load_accelerator
from profiles.model import Experts, ModelSpec
from simulator.memory import peak_memory, rank_memory
from simulator.schedules import SCHEDULES, build_schedule
from simulator.schedules.moments import rank_moments
from simulator.software import Software
from simulator.states import state_bytes
from simulator.strategy import RECOMPUTE, Strategy
from simulator.workload import Workload, build_workload

MODEL = load_model("llama-3-8b")
H100 = load_accelerator("h100-80gb")
ONE_CHUNK = ("1F1B", "GPipe")


def total(strategy: Strategy, params: float = 1.0, experts: float = 0.0) -> float:
    return float(sum(state_bytes(strategy, params, experts).values()))


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


@pytest.mark.parametrize(
    ("software", "zero", "bytes_per_param"),
    [
        # all in bf16: 2 weight, 2 gradient, 4 moments, no master
        (Software(master_bytes=0, grad_bytes=2, moment_bytes=4), 0, lambda d: 8.0),
        # DeepSeek-V3 (arXiv 2412.19437, section 3.3.2): fp32 master and gradients, moments in bf16
        (Software(moment_bytes=4), 1, lambda d: 6 + 8 / d),
        # gradients in bf16: Megatron-LM's 6 + 12/d less 2
        (Software(grad_bytes=2), 1, lambda d: 4 + 12 / d),
    ],
)
def test_bytes_per_parameter_of_other_software(software: Software, zero: int, bytes_per_param: object) -> None:
    for dp in (2, 8, 64):
        strategy = Strategy(dp=dp, zero=zero, software=software)
        assert total(strategy) == pytest.approx(bytes_per_param(dp), rel=1e-12)  # type: ignore[operator]


@pytest.mark.parametrize(("zero", "law"), [(1, lambda n: 6 + 12 / n), (3, lambda n: 16 / n)])
def test_state_is_sharded_over_its_own_replicas(zero: int, law: object) -> None:
    """Dense parameters over dp x cp, or a group of them; experts over the ranks that hold the same ones: tp x cp x dp /
    (ep x etp), here 2 x 2 x 16 / (8 x 2) = 4."""
    strategy = Strategy(dp=16, tp=2, cp=2, ep=8, etp=2, zero=zero)
    for grouped, copies in ((0, 32), (8, 8), (1024, 32)):
        split = replace(strategy, shard_group=grouped)
        assert total(split, 1.0, 0.0) == pytest.approx(law(copies), rel=1e-12)  # type: ignore[operator]
        assert total(split, 0.0, 1.0) == pytest.approx(law(4), rel=1e-12)  # type: ignore[operator]


@settings(max_examples=60)
@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from(ONE_CHUNK),
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


@settings(max_examples=200)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(2, 9), st.lists(st.integers(1, 60), min_size=1, max_size=4),
       st.integers(1, 5))
def test_as_many_micro_batches_wait_as_the_laws_of_the_schedules_say(name: str, p: int, sizes: list[int], v: int) -> None:
    """Interleaved 1F1B holds (v - 1) p + 2 (p - rank - 1) + 1 chunks (arXiv 2104.04473, section 2.2.2); the others'
    laws stand beside them. Of a batch of several numbers of micro-batches as of each."""
    v = SCHEDULES[name].chunks or v
    m = np.array([num for num in sizes if SCHEDULES[name].suits(p, num, v)])
    assume(len(m))
    for rank in range(p):
        moments = rank_moments(name, rank, p, m, tuple(range(v)))
        most = moments.held[moments.where, :, :2].sum(axis=(2, 3)).max(axis=1)
        assert most.tolist() == np.broadcast_to(HELD[name](rank, p, m, v), m.shape).tolist()
        if name == "Interleaved1F1B":
            laid = (v - 1) * p + 2 * (p - rank - 1) + 1
            assert (most[(m % p == 0) & (m > 2 * p)] == laid).all()


def test_the_first_rank_holds_what_megatron_says() -> None:
    """sbh L (34 + 5as/h) (1 + (p - 1) / (p v)) / t (arXiv 2205.05198, section 4.2.3), and without chunks as if L layers
    held one micro-batch each."""
    p, m, layers = 4, 32, 16
    model = gpt(num_layers=layers)
    for v, schedule in ((1, "1F1B"), (2, "Interleaved1F1B"), (4, "Interleaved1F1B")):
        strategy = replace(gpt_strategy(8, True), pp=p, chunks=v, schedule=schedule, num_microbatches=m)
        workload = layers_alone(build_workload(model, strategy))
        held = float(rank_memory(workload, H100, 0)["activations"])
        factor = 1 + (p - 1) / (p * v) if v > 1 else 1.0
        # chunks go round the ranks, so the first has neighbours on both sides
        sends = (2 if v == 1 else 4) * workload.send.bytes
        assert held - sends == pytest.approx(SBH / 8 * (34 + SCORES) * layers * factor, rel=1e-12)


def layers_alone(workload: Workload) -> Workload:
    """Return a workload whose embedding keeps nothing."""
    embedding = replace(workload.parts["embedding"], saved_none_bytes=0.0, saved_selective_bytes=0.0, saved_full_bytes=0.0)
    return replace(workload, parts=workload.parts | {"embedding": embedding})


S, B, H, A = 2048, 4, 6144, 64
SBH, SCORES = float(S * B * H), 5.0 * A * S / H
"""The 22B model of arXiv 2205.05198, table 3: bytes of one byte an element, and 5as/h."""


def gpt(num_layers: int = 2) -> ModelSpec:
    return gpt2_spec(name="22B", num_layers=num_layers, hidden=H, num_heads=A, num_kv_heads=A, head_dim=H // A,
                     ffn_hidden=4 * H, vocab=51200, max_seq_len=S)


def gpt_strategy(t: int, sequence_parallel: bool, recompute: str = "none") -> Strategy:
    software = Software(kernels="fused", dropout=True, attention="unfused", keeps_gathered=False, selective="attention",
                        fused_projections=True, pipe_buffers=False, keeps_graph=False, late_gradients=False)
    return Strategy(tp=t, sequence_parallel=sequence_parallel, recompute=recompute, software=software, micro_batch=B,
                    seq_len=S)


@pytest.mark.parametrize("t", [1, 2, 8])
def test_a_layer_of_megatron_keeps_what_korthikanti_says(t: int) -> None:
    """arXiv 2205.05198, table 2, in bytes of a layer: all of it, without the scores, and its input alone."""
    whole, sharded = (build_workload(gpt(), gpt_strategy(t, sp)).parts["layer"] for sp in (False, True))
    assert whole.saved_none_bytes == pytest.approx(SBH * (10 + 24 / t + SCORES / t), rel=1e-12)
    assert whole.saved_selective_bytes == pytest.approx(SBH * (10 + 24 / t), rel=1e-12)
    assert whole.saved_full_bytes == 2 * SBH
    assert sharded.saved_none_bytes == pytest.approx(SBH / t * (34 + SCORES), rel=1e-12)
    assert sharded.saved_selective_bytes == pytest.approx(SBH / t * 34, rel=1e-12)
    assert sharded.saved_full_bytes == pytest.approx(2 * SBH / t, rel=1e-12)


@pytest.mark.parametrize("t", [1, 2, 8])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_embedding_and_head_of_megatron_keep_what_korthikanti_says(t: int, precision: str) -> None:
    """arXiv 2205.05198, section 4.3, over t ranks: sbh for the embedding's dropout, 2sbh for the last norm, 2sbh for the
    output projection, 4sbv for the loss in fp32; beside that the ids of tokens and targets, 8 bytes each."""
    strategy = replace(gpt_strategy(t, True), precision=precision)
    parts = build_workload(gpt(), strategy).parts
    assert parts["embedding"].saved_none_bytes == SBH / t + 8 * S * B
    assert parts["head"].saved_none_bytes == pytest.approx(4 * SBH / t * (1 + 51200 / H) + 8 * S * B, rel=1e-12)
    kept = build_workload(gpt(), replace(strategy, software=replace(strategy.software, keeps_gathered=True))).parts
    more = kept["head"].saved_none_bytes - parts["head"].saved_none_bytes
    assert more == pytest.approx(2 * SBH * (1 - 1 / t), rel=1e-12)


def test_recomputation_of_some_layers_lies_between() -> None:
    """Half of the layers keep their input alone: the mean of both, give or take what the loss holds at its own peak."""
    kept = [
        float(rank_memory(build_workload(gpt(8), replace(gpt_strategy(8, True), recompute="full", recompute_share=share)),
                          H100, 0)["activations"]) for share in (0.0, 0.5, 1.0)
    ]
    assert kept[0] > kept[1] > kept[2]
    head = float(build_workload(gpt(8), gpt_strategy(8, True)).parts["head"].saved_none_bytes)
    assert kept[1] == pytest.approx((kept[0] + kept[2]) / 2, abs=head)
    none = rank_memory(build_workload(gpt(8), gpt_strategy(8, True)), H100, 0)["activations"]
    assert kept[0] == pytest.approx(float(none), rel=1e-12)


SPARSE = replace(
    MODEL, name="sparse", kinds=(
        replace(MODEL.kinds[0], name="dense"),
        replace(MODEL.kinds[0], name="sparse", ffn=Experts(num_experts=8, top_k=2, hidden=14336, shared_hidden=2048)),
    ), pattern=(0, 0, 0) + (1,) * 29,
)
"""Llama 3 8B with experts in all but its first three layers."""


@pytest.mark.parametrize("model", [MODEL, SPARSE], ids=lambda m: m.name)
def test_a_batch_is_its_members(model: ModelSpec) -> None:
    cases = [
        Strategy(dp=64 // pp // tp, tp=tp, pp=pp, zero=z, recompute=r, num_microbatches=4, seq_len=4096, chunks=v,
                 schedule="Interleaved1F1B" if v > 1 else "1F1B", shard_group=8 if z == 2 else 0, sequence_parallel=z != 1,
                 ep=8 if model is SPARSE and r != "full" else 1)
        for (pp, v), tp, z, r in product(((1, 1), (2, 1), (2, 4), (4, 1), (4, 2)), (1, 8), range(4), RECOMPUTE)
    ]
    fields = ("dp", "tp", "pp", "zero", "recompute", "chunks", "schedule", "shard_group", "sequence_parallel", "ep")
    batch = Strategy(**{f: np.array([getattr(s, f) for s in cases]) for f in fields}, num_microbatches=4, seq_len=4096)
    together = peak_memory(build_workload(model, batch), H100)
    for i, strategy in enumerate(cases):
        alone = peak_memory(build_workload(model, strategy), H100)
        assert together.peak_bytes[i] == pytest.approx(float(alone.peak_bytes), rel=1e-12)
        assert sum(v[i] for v in together.parts_bytes.values()) == pytest.approx(together.peak_bytes[i], rel=1e-12)


@settings(max_examples=40)
@given(st.sampled_from([MODEL, SPARSE]), st.sampled_from([(2, 1), (4, 1), (8, 1), (2, 4), (4, 2), (8, 4)]),
       st.sampled_from([1, 2, 5]), st.integers(0, 3), st.sampled_from(RECOMPUTE), st.booleans())
def test_the_peak_is_that_of_the_fullest_rank(
    model: ModelSpec, pipe: tuple[int, int], rounds: int, zero: int, recompute: str, pipe_buffers: bool
) -> None:
    pp, chunks = pipe
    strategy = Strategy(dp=8, pp=pp, chunks=chunks, schedule="Interleaved1F1B" if chunks > 1 else "1F1B", zero=zero,
                        num_microbatches=rounds * pp, recompute=recompute, seq_len=2048,
                        software=Software(pipe_buffers=pipe_buffers, keeps_graph=pipe_buffers))
    workload = build_workload(model, strategy)
    peak = peak_memory(workload, H100)
    each = [sum(float(v) for v in rank_memory(workload, H100, rank).values()) for rank in range(pp)]
    assert float(peak.peak_bytes) == pytest.approx(max(each), rel=1e-12)
    assert sum(float(v) for v in peak.parts_bytes.values()) == pytest.approx(max(each), rel=1e-12)


def test_ranks_together_hold_the_model_once() -> None:
    """bf16 weights and fp32 masters: 6 bytes of each parameter, over all pipeline ranks, chunked or not."""
    for chunks in (1, 2, 4):
        strategy = Strategy(pp=4, chunks=chunks, schedule="Interleaved1F1B" if chunks > 1 else "1F1B", num_microbatches=4)
        for model in (MODEL, SPARSE):
            workload = build_workload(model, strategy)
            held = sum(float(rank_memory(workload, H100, rank)["weights"]) for rank in range(4))
            assert held == pytest.approx(6 * num_params(model), rel=1e-12)


def test_an_8b_model_alone_needs_what_everyone_knows() -> None:
    """18 bytes a parameter: 135 GiB of states for 8.03 billion, so it never fits one 80 GB accelerator."""
    memory = peak_memory(build_workload(MODEL, Strategy(seq_len=512)), H100)
    states = sum(float(memory.parts_bytes[k]) for k in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(18 * num_params(MODEL), rel=1e-9) or memory.parts_bytes["gradients"] == 0
    assert not memory.fits


def test_activations_follow_the_closed_form() -> None:
    """bf16, fused, no tp, per token and layer: 2h (norm inputs) + 2h (norm outputs) + q, k, v, output + log-sum-exp +
    gate, up and their product (arXiv 2205.05198 section 4, for a gated layer with flash attention)."""
    strategy = Strategy(micro_batch=1, seq_len=4096, software=Software(kernels="fused"))
    layer = build_workload(MODEL, strategy).parts["layer"]
    # Llama 3 8B: 32 heads and 8 of keys and values, of 128 channels, feed-forward 14336 (arXiv 2407.21783, table 3)
    h, f, kv = 4096, 14336, 8 * 128
    per_token = 2 * (4 * h + 2 * h + 2 * kv + 3 * f) + 4 * 32
    assert layer.saved_none_bytes == pytest.approx(per_token * 4096, rel=1e-12)
    assert layer.saved_full_bytes == 2 * h * 4096


def test_what_torchs_engines_hold_beside_the_states() -> None:
    """DDP's buckets after accumulation, and the working copy of `replicate`: 4 bytes a parameter each."""
    ddp = Strategy(dp=2, precision="fp32", num_microbatches=1)
    assert total(replace(ddp, num_microbatches=4)) == total(ddp) + 4
    assert total(replace(ddp, tp=2)) == total(ddp) + 4
    assert total(replace(ddp, dp=1, num_microbatches=4)) == total(replace(ddp, dp=1))


def piped(rank: int, **changes: object) -> float:
    """Return the tensors of one send that a rank holds between stages: what is there less what is there without sends."""
    workload = build_workload(MODEL, Strategy(seq_len=4096, **changes))  # type: ignore[arg-type]
    nothing = replace(workload, send=replace(workload.send, bytes=0.0))
    held, without = (float(rank_memory(w, H100, rank)["activations"]) for w in (workload, nothing))
    return (held - without) / float(workload.send.bytes)


SHAPES = ((2, 1), (3, 1), (8, 1), (2, 2), (4, 2), (3, 4), (8, 4))
"""Pipeline ranks and chunks."""


@pytest.mark.parametrize(("p", "v"), SHAPES)
def test_torchs_pipeline_keeps_all_buffers_of_every_stage(p: int, v: int) -> None:
    """Until the step ends each stage holds, for each micro-batch, a received and a sent tensor for each of its neighbours,
    forward and backward."""
    m = 2 * p
    schedule = "Interleaved1F1B" if v > 1 else "1F1B"
    stages = [set() for _ in range(p)]  # type: list[set[int]]
    for rank, row in enumerate(build_schedule(schedule, p, m, v)):
        stages[rank] |= {action.stage for action in row}
    for rank in range(p):
        neighbours = sum(abs(one - other) == 1 for one in stages[rank] for other in range(p * v))
        assert piped(rank, pp=p, chunks=v, schedule=schedule, num_microbatches=m) == pytest.approx(2 * neighbours * m)


@pytest.mark.parametrize(("p", "v"), SHAPES)
def test_other_pipelines_hold_one_tensor_for_each_neighbour_at_a_time(p: int, v: int) -> None:
    schedule = "Interleaved1F1B" if v > 1 else "1F1B"
    for rank, (m, keeps) in product(range(p), ((2 * p, False), (4 * p, False), (4 * p, True))):
        strategy = {"pp": p, "chunks": v, "schedule": schedule, "num_microbatches": m}
        software = Software(pipe_buffers=False, keeps_graph=False, keeps_sent=keeps)
        at_once = 4 if v > 1 or 0 < rank < p - 1 else 2
        # of what is alive everything was sent on, but the micro-batch whose loss is computed
        sent = HELD[schedule](rank, p, m, v) - (rank == p - 1) if keeps else 0
        assert piped(rank, software=software, **strategy) == pytest.approx(at_once + sent)


def test_without_a_pipeline_nothing_is_sent() -> None:
    assert piped(0, num_microbatches=8) == 0
