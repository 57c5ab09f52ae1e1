"""Operators and collectives of a model's blocks: torch's FLOP counter, and what parallelism must conserve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import REFUSED, SMALL, TINY, collection, reference

from profiles.attention import Attention, UnfusedAttention
from profiles.collectives import Collective
from profiles.families import Item, Shape, all_params, load_model, model_from_config, num_params, part_items, part_params
from profiles.matmul import Gemm, GroupedGemm
from profiles.model import ModelSpec, count, count_experts
from profiles.ops import Kernel, Pass
from profiles.pointwise import Pointwise
from profiles.scan import Scan

PASSES: tuple[Pass, ...] = ("F", "B", "W")


def kernels(items: tuple[Item, ...], kinds: tuple[type, ...], passes: tuple[Pass, ...] = PASSES) -> list[Kernel]:
    """Return the kernels of the operators of these kinds."""
    return [
        k for i in items if not isinstance(i, Collective) and isinstance(i, kinds) for p in passes for k in i.kernels(p)
    ]


def matmul_flop(spec: ModelSpec, seq_len: int, *, attention: bool) -> float:
    """Return the FLOP of the matmuls of a whole training step on one sequence, by the convention of model FLOP."""
    kinds: tuple[type, ...] = (Gemm, GroupedGemm, Attention) if attention else (Gemm,)
    shape = Shape(micro_batch=1, seq_len=seq_len)
    return sum(
        spec.times(part) * float(k.model_flop)
        for part in spec.parts if part != "mtp" for k in kernels(part_items(spec, part, shape), kinds)
    )


def counted_flop(model_type: str, seq_len: int, *, attention: bool) -> float:
    """Return torch's count of a forward and backward pass, whole or of linear maps only (eager attention is counted)."""
    torch = pytest.importorskip("torch")
    counting = pytest.importorskip("torch.utils.flop_counter")
    module = reference(
        model_type, SMALL[model_type], "cpu", attn_implementation="eager", experts_implementation="batched_mm",
    )
    with counting.FlopCounterMode(display=False) as counter:
        module(input_ids=torch.zeros(1, seq_len, dtype=torch.long), use_cache=False).logits.sum().backward()
    if attention:
        return float(counter.get_total_flops())
    by_op = counter.get_flop_counts()["Global"]
    return float(sum(n for op, n in by_op.items() if "bmm" not in str(op) and "mm" in str(op)))


@pytest.mark.parametrize(
    "model_type",
    ["llama", "mixtral", "qwen3_moe", "qwen2_moe", "gemma2", "gemma3_text", "deepseek_v2", "deepseek_v3", "gpt_neox", "olmo2",
     "opt"],
)
def test_flop_of_matmuls_equal_torch(model_type: str) -> None:
    """Sequences within the windows: the reference computes masked keys too, as model FLOP count them."""
    spec = model_from_config(SMALL[model_type] | {"model_type": model_type}, "small")
    assert matmul_flop(spec, 64, attention=True) == counted_flop(model_type, 64, attention=True)


def weights_per_token(spec: ModelSpec, part: str) -> float:
    """Return the elements of weights that multiply a token once, experts by the share that it is sent to."""
    return sum(
        p.num_elements * p.active for p in part_params(spec, part)
        if len(p.shape) > 1 and p.name.endswith(".weight") and ".conv" not in p.name
        and p.name not in ("embed.weight", "positions.weight")
    )


def test_matmuls_use_each_weight_once_for_each_token(shared: Path) -> None:
    """2 FLOP for each weight and token, in every part of every model: parameters and operators know the same blocks."""
    for row in collection(shared):
        if row["config"]["model_type"] in REFUSED:
            continue
        spec = model_from_config(row["config"], row["model"])
        for part in spec.parts:
            for fused in (False, True):
                items = part_items(spec, part, Shape(micro_batch=1, seq_len=1024, fused_projections=fused))
                flop = sum(float(k.flop) for k in kernels(items, (Gemm, GroupedGemm), ("F",)))
                head = spec.vocab * spec.hidden if part == "mtp" else 0
                assert flop / 2 / 1024 == pytest.approx(weights_per_token(spec, part) + head, rel=1e-9), (row["model"], part)


SHARDED = ["llama-3-8b", "mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "gpt-oss-20b", "mpt-7b"]


def flop_of(spec: ModelSpec, shape: Shape, kinds: tuple[type, ...]) -> float:
    """Return the FLOP that one rank executes in the layers."""
    return sum(
        spec.times(kind.name) * float(k.flop)
        for kind in spec.kinds for k in kernels(part_items(spec, kind.name, shape), kinds)
    )


@pytest.mark.parametrize("name", SHARDED)
@pytest.mark.parametrize("context", ["ring", "all_gather", "ulysses"])
def test_context_parallel_ranks_share_the_work(name: str, context: str) -> None:
    spec = load_model(name)
    whole = Shape(micro_batch=2, seq_len=8192)
    part = Shape(micro_batch=2, seq_len=8192, cp=4, context=context)
    for kinds in ((Attention,), (Gemm,), (GroupedGemm,)):
        assert flop_of(spec, part, kinds) * 4 == pytest.approx(flop_of(spec, whole, kinds), rel=1e-9)


@pytest.mark.parametrize("name", SHARDED)
def test_tensor_and_expert_parallel_ranks_share_the_work(name: str) -> None:
    spec = load_model(name)
    whole = Shape(micro_batch=2, seq_len=4096)
    part = Shape(micro_batch=2, seq_len=4096, tp=4, ep=4, etp=2)
    assert flop_of(spec, part, (Attention,)) * 4 == pytest.approx(flop_of(spec, whole, (Attention,)), rel=1e-9)
    assert flop_of(spec, part, (GroupedGemm,)) * 4 == pytest.approx(flop_of(spec, whole, (GroupedGemm,)), rel=1e-9)
    busy = Shape(micro_batch=2, seq_len=4096, tp=4, ep=4, etp=2, imbalance=1.5)
    assert flop_of(spec, busy, (GroupedGemm,)) == pytest.approx(1.5 * flop_of(spec, part, (GroupedGemm,)), rel=1e-9)


def test_experts_shard_over_expert_parallelism() -> None:
    spec = load_model("mixtral-8x7b")
    params = all_params(spec)
    experts = sum(p.num_elements for p in params if p.expert)
    assert count_experts(params) == experts == 32 * 8 * 3 * 4096 * 14336
    assert count_experts(params, ep=4, etp=2) == experts / 8
    assert count(params) == num_params(spec) - experts


def wire(spec: ModelSpec, shape: Shape, axis: str) -> tuple[float, float]:
    """Return the bytes that one rank sends over an axis in one layer of the last kind, forward and backward."""
    found = [i for i in part_items(spec, spec.kinds[-1].name, shape) if isinstance(i, Collective) and i.axis == axis]
    return sum(float(c.wire_bytes) for c in found), sum(float(c.backward().wire_bytes) for c in found)


@pytest.mark.parametrize("name", ["llama-3-8b", "gpt2", "mpt-7b"])
def test_sequence_parallelism_sends_as_much_as_all_reduces(name: str) -> None:
    """Reduce-scatter and all-gather are the two halves of an all-reduce (arXiv 2205.05198, section 4.2.2)."""
    spec = load_model(name)
    with_it = wire(spec, Shape(micro_batch=1, seq_len=1024, tp=4), "tp")
    without = wire(spec, Shape(micro_batch=1, seq_len=1024, tp=4, sequence_parallel=False), "tp")
    one = 2 * 3 / 4 * 2 * 1024 * spec.hidden
    assert with_it == pytest.approx((2 * one, 2 * one))
    assert without == pytest.approx((2 * one, 2 * one))


def test_context_parallel_traffic() -> None:
    """Ring and all-gather move the other ranks' keys and values forward; all-to-all moves what changes its rank."""
    spec = load_model("llama-3-8b")
    own = 2 * 1024 * 8 * (128 + 128)
    ring, gathered, heads = (
        wire(spec, Shape(micro_batch=1, seq_len=4096, cp=4, context=c), "cp") for c in ("ring", "all_gather", "ulysses")
    )
    assert ring == (3 * own, 6 * own)
    assert gathered == (3 * own, 6 * own)
    assert heads == pytest.approx((3 / 4 * 2 * 1024 * (32 + 16 + 32) * 128,) * 2)


def test_expert_parallel_traffic() -> None:
    """Each rank sends top_k copies of its tokens there and back, both passes."""
    spec = load_model("mixtral-8x7b")
    copies = 2 * (4096 / 2) * 2 * spec.hidden
    shape = Shape(micro_batch=1, seq_len=4096, tp=2, ep=8)
    assert wire(spec, shape, "ep") == pytest.approx((2 * 7 / 8 * copies,) * 2)
    folded = Shape(micro_batch=1, seq_len=4096, tp=2, ep=4, etp=2)
    assert wire(spec, folded, "etp") == pytest.approx((2 * copies,) * 2)


def test_a_batch_of_shapes_equals_its_members(shared: Path) -> None:
    """Degrees and switches may be arrays; each member of the batch is what it is alone."""
    seen = set()
    for row in collection(shared):
        model_type = row["config"]["model_type"]
        if model_type in REFUSED or model_type in seen:
            continue
        seen.add(model_type)
        spec = model_from_config(row["config"], row["model"])
        fields: dict[str, list[Any]] = {
            "micro_batch": [1, 2, 4], "tp": [1, 2, 4], "cp": [1, 1, 2], "ep": [1, 4, 2], "etp": [1, 2, 1],
            "sequence_parallel": [True, False, True],
        }
        for part in spec.parts:
            arrays: dict[str, Any] = {k: np.array(v) for k, v in fields.items()}
            batch = totals(spec, part, Shape(seq_len=4096, **arrays))
            for i in range(3):
                alone = totals(spec, part, Shape(seq_len=4096, **{k: v[i] for k, v in fields.items()}))
                assert [b[i] for b in batch] == pytest.approx([a[0] for a in alone], rel=1e-9), (row["model"], part)


def totals(spec: ModelSpec, part: str, shape: Shape) -> list[Any]:
    """Return sums over a part's items: FLOP, bytes moved and saved, bytes on the wires of each axis."""
    size = np.size(shape.tp)
    sums = [np.zeros(size) for _ in range(8)]
    for item in part_items(spec, part, shape):
        if isinstance(item, Collective):
            axis = 3 + ("tp", "cp", "ep", "etp").index(item.axis)
            sums[axis] = sums[axis] + item.wire_bytes + 2 * item.backward().wire_bytes
            continue
        for k in (k for p in PASSES for k in item.kernels(p)):
            sums[0], sums[1] = sums[0] + k.flop, sums[1] + k.moved_bytes
        sums[2] = sums[2] + item.saved_bytes
    return sums


def test_windows_and_blocks_bound_attention() -> None:
    spec = load_model("gpt-oss-20b")
    sliding, full = (
        next(i for i in part_items(spec, n, Shape(micro_batch=1, seq_len=8192)) if isinstance(i, Attention))
        for n in ("sliding", "full")
    )
    assert sliding.kernels("F")[0].flop < full.kernels("F")[0].flop / 30
    text = {
        "model_type": "llama4_text", "attention_chunk_size": 1024, "interleave_moe_layer_step": 1, "num_local_experts": 2,
        "intermediate_size_mlp": 64, "num_experts_per_tok": 1,
    }
    spec = model_from_config(TINY | text, "small")
    blocks, full = (
        next(i for i in part_items(spec, n, Shape(micro_batch=1, seq_len=4096)) if isinstance(i, Attention))
        for n in ("block_experts", "full_experts")
    )
    assert blocks.kernels("F")[0].flop == full.kernels("F")[0].flop / 4


@pytest.mark.parametrize("model_type", ["llama", "falcon", "gpt_neox"])
def test_the_module_for_later_tokens_has_a_layer_as_the_model_has(model_type: str) -> None:
    """Blocks side by side too."""
    spec = replace(model_from_config(SMALL[model_type] | {"model_type": model_type}, "small"), mtp_layers=1)
    layer, mtp = (part_items(spec, p, Shape(micro_batch=1, seq_len=128, tp=2)) for p in ("layer", "mtp"))
    begin = [i.name for i in mtp].index(layer[0].name)
    assert mtp[begin : begin + len(layer)] == layer


def test_kernels_of_a_shape() -> None:
    spec = load_model("llama-3-8b")
    fused = part_items(spec, "layer", Shape(micro_batch=1, seq_len=128, fused_projections=True, dropout=True, matmul="fp8"))
    names = [i.name for i in fused]
    assert names.count("attn.wqkv") == names.count("ffn.w13") == 1
    assert not any("fan_in" in n for n in names)
    assert {i.matmul for i in fused if isinstance(i, Gemm)} == {"fp8"}
    assert [i.kind for i in fused if isinstance(i, Pointwise) and i.name.endswith(".add")] == ["dropout", "dropout"]
    slow = part_items(spec, "layer", Shape(micro_batch=1, seq_len=128, flash=False))
    assert [len(i.kernels("F")) for i in slow if isinstance(i, UnfusedAttention)] == [3]
    # neither the head nor the choice of experts is narrowed
    experts = load_model("mixtral-8x7b")
    narrow = Shape(micro_batch=1, seq_len=128, matmul="fp8")
    found = [i for p in ("layer", "head") for i in part_items(experts, p, narrow) if isinstance(i, (Gemm, GroupedGemm))]
    assert {i.name for i in found if not i.matmul} == {"ffn.router", "head"}


def test_state_space_flop_are_those_of_the_scan() -> None:
    spec = model_from_config(SMALL["nemotron_h"] | {"model_type": "nemotron_h"}, "small")
    scan = next(i for i in part_items(spec, "mamba", Shape(micro_batch=2, seq_len=128)) if isinstance(i, Scan))
    # per token and head: 2 c (n + p) in a chunk, 4 n p for the state (arXiv 2405.21060, section 6)
    assert scan.kernels("F")[0].flop == 2 * 128 * 8 * (2 * 32 * (16 + 16) + 4 * 16 * 16)


@pytest.mark.parametrize("model_type", ["nemotron_h"])
def test_flop_of_linear_maps_equal_torch(model_type: str) -> None:
    """The scan is written with elementwise products there, so only the linear maps are compared."""
    spec = model_from_config(SMALL[model_type] | {"model_type": model_type}, "small")
    assert matmul_flop(spec, 64, attention=False) == counted_flop(model_type, 64, attention=False)
