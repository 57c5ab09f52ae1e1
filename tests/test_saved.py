"""What modules that backward repeats do not keep: live storages of torch, and closed forms of Megatron's modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_storages import live_storages

from profiles.families import load_model
from profiles.families.llama import llama_spec
from profiles.model import Experts, LatentAttention, ModelSpec
from simulator.software import REPEATED, Software
from simulator.strategy import Strategy
from simulator.workload import PartWork, build_workload

DEEPSEEK, QWEN, LLAMA = (load_model(n) for n in ("deepseek-v3", "qwen3-30b-a3b", "llama-3-8b"))
TINY = llama_spec(name="tiny", num_layers=1, hidden=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_hidden=160,
                  vocab=256, max_seq_len=64)
MEGATRON = Software(kernels="fused", fused_projections=True, keeps_gathered=False)
TOKENS, BF16 = 4096, 2


def layer(model: ModelSpec, repeats: str, software: Software = MEGATRON, **changes: Any) -> PartWork:
    strategy = Strategy(**({"ep": 8, "dp": 8, "seq_len": TOKENS, "recompute": "selective"} | changes),
                        software=replace(software, repeats=repeats))
    return build_workload(model, strategy).parts[model.kinds[-1].name]


def dropped(model: ModelSpec, repeats: str, software: Software = MEGATRON, **changes: Any) -> float:
    part = layer(model, repeats, software, **changes)
    return float(part.saved_none_bytes - part.saved_selective_bytes)


def left_alive(run: Callable[[], Any]) -> int:
    """Return the bytes of storages made inside that are alive while the result is."""
    with live_storages() as live:
        held = run()
    assert held is not None
    return live.bytes


@pytest.mark.parametrize("module", ["mlp", "core_attn"])
def test_torchs_checkpoint_of_a_module_drops_as_much(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live storages behind a layer's forward, with and without torch's own checkpoint around the module."""
    torch = pytest.importorskip("torch")
    from torch.utils.checkpoint import checkpoint

    from executor.model import Stage

    stage = Stage(TINY, seq_len=32)
    block = stage.layers["0"]
    x = torch.randn(2, 32, TINY.hidden, requires_grad=True)
    plain = left_alive(lambda: block(x, *stage.rotary))

    def repeated(inner: Any) -> Any:
        return lambda *args: checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False)

    if module == "mlp":
        monkeypatch.setattr(block.ffn, "forward", repeated(block.ffn.forward))
    else:
        monkeypatch.setattr(block.attn, "attend", repeated(block.attn.attend))
    measured = plain - left_alive(lambda: block(x, *stage.rotary))
    ours = dropped(TINY, module, Software(), ep=1, dp=1, precision="fp32", micro_batch=2, seq_len=32)
    assert measured > 0
    assert ours == measured


@pytest.mark.parametrize("t", [1, 2, 4])
def test_megatrons_modules_of_deepseek_drop_what_they_make(t: int) -> None:
    """Bytes of a layer of DeepSeek-V3 on one of t tensor-parallel ranks, 8 of them for experts (arXiv 2412.19437, 4.2)."""
    kind = DEEPSEEK.kinds[-1]
    mixer, ffn, h = kind.mixer, kind.ffn, DEEPSEEK.hidden
    assert isinstance(mixer, LatentAttention) and isinstance(ffn, Experts)
    local, heads = TOKENS / t, mixer.num_heads / t
    stream, routed, shared = BF16 * local * h, BF16 * local * ffn.top_k, BF16 * TOKENS * ffn.shared_hidden / t
    qkv = BF16 * TOKENS * heads * (2 * mixer.head_dim + mixer.value_dim)
    expected = {
        # the inputs of the projections down and of the router
        "layernorm": 2 * stream,
        # normed latents, and what attention reads
        "mla_up_proj": BF16 * local * (mixer.q_lora_rank + mixer.kv_lora_rank) + qkv,
        # the input of the experts' projection down
        "moe_act": routed * ffn.hidden,
        # gate and up, and their product; the router keeps the input
        "shared_experts": 3 * shared,
        # scores of the router in fp32, what the experts read, gate and up, and their product
        "moe": 4 * local * ffn.num_experts + routed * (h + 3 * ffn.hidden) + 3 * shared,
        # the log-sum-exp
        "core_attn": 4 * TOKENS * heads,
        "mlp": 0.0,
    }
    assert set(expected) == set(REPEATED)
    for module, size in expected.items():
        assert dropped(DEEPSEEK, module, tp=t) == pytest.approx(size, rel=1e-12), module
    # what makes up others' inputs adds up, and the input of the experts' block goes with the norm's output
    for modules in combinations(("layernorm", "mla_up_proj", "moe", "core_attn"), 3):
        assert dropped(DEEPSEEK, ",".join(modules), tp=t) == pytest.approx(sum(expected[m] for m in modules), rel=1e-12)
    assert dropped(DEEPSEEK, "moe,moe_act,shared_experts", tp=t) == pytest.approx(expected["moe"], rel=1e-12)


def test_the_indexer_changes_nothing_that_is_repeated() -> None:
    """It stands between the projections up and attention, and reads and keeps tensors of its own."""
    kind = DEEPSEEK.kinds[-1]
    mixer = replace(kind.mixer, indexer_heads=64, indexer_dim=128, index_topk=2048)
    indexed = replace(DEEPSEEK, kinds=(*DEEPSEEK.kinds[:-1], replace(kind, mixer=mixer)))
    for module in REPEATED:
        assert dropped(indexed, module, tp=2) == pytest.approx(dropped(DEEPSEEK, module, tp=2), rel=1e-12)


@pytest.mark.parametrize("t", [1, 2, 8])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_modules_of_a_dense_layer(t: int, precision: str) -> None:
    """The dense block keeps its input; a repeated norm what the projection up reads of it, as narrow as it is kept."""
    e = {"bf16": 2, "fp8": 1}[precision]
    same = {"ep": 1, "tp": t, "precision": precision}
    block = TOKENS / t * 14336 * (2 * BF16 + e)
    norms = 2 * e * TOKENS / t * 4096
    assert dropped(LLAMA, "mlp", **same) == pytest.approx(block, rel=1e-12)
    assert dropped(LLAMA, "layernorm", **same) == pytest.approx(norms, rel=1e-12)
    assert dropped(LLAMA, "layernorm,mlp", **same) == pytest.approx(norms + block, rel=1e-12)
    # where a gathered copy is kept, the norm's own output is not kept beside it
    kept = replace(MEGATRON, keeps_gathered=True)
    assert dropped(LLAMA, "layernorm", kept, **same) == (pytest.approx(norms, rel=1e-12) if t == 1 else 0)


def test_eager_chains_drop_what_lies_between_their_kernels() -> None:
    """SwiGLU out of two kernels keeps silu(gate) too."""
    eager, fused = (dropped(QWEN, "moe_act", replace(MEGATRON, kernels=k)) for k in ("eager", "fused"))
    routed = BF16 * TOKENS * 8 * 768
    assert (eager, fused) == (2 * routed, routed)


def test_scores_go_where_attention_is_repeated() -> None:
    """Two bytes for each probability and each after dropout, one for the mask (arXiv 2205.05198, section 4.1)."""
    software = replace(MEGATRON, attention="unfused", dropout=True)
    assert dropped(LLAMA, "core_attn", software, ep=1) == 5 * 32 * TOKENS**2


@pytest.mark.parametrize("module", ["mla_up_proj", "moe", "moe_act", "shared_experts"])
def test_a_module_that_a_layer_lacks_neither_repeats_nor_drops(module: str) -> None:
    part = layer(LLAMA, module, ep=1)
    assert part.recompute_selective == ()
    assert part.saved_selective_bytes == part.saved_none_bytes


@settings(max_examples=60)
@given(st.sampled_from([DEEPSEEK, QWEN, LLAMA]), st.sets(st.sampled_from(REPEATED), min_size=1), st.sampled_from(REPEATED),
       st.sampled_from([1, 2, 4]), st.booleans(), st.booleans(), st.sampled_from(["bf16", "mxfp8"]))
def test_repeating_more_keeps_less_but_the_layers_input(
    model: ModelSpec, modules: set[str], more: str, t: int, sequence_parallel: bool, keeps: bool, precision: str
) -> None:
    software = replace(MEGATRON, keeps_gathered=keeps)
    same = {"tp": t, "sequence_parallel": sequence_parallel, "precision": precision, "ep": 1 if model is LLAMA else 8}
    less, least = (layer(model, ",".join(sorted(m)), software, **same) for m in (modules, modules | {more}))
    slack = 1 + 1e-12
    assert least.saved_selective_bytes <= less.saved_selective_bytes * slack
    assert less.saved_selective_bytes <= less.saved_none_bytes * slack
    assert least.saved_full_bytes <= least.saved_selective_bytes * slack


def test_a_batch_is_its_members() -> None:
    software = replace(MEGATRON, repeats=",".join(REPEATED))
    tp = np.array([1, 2, 4])
    together = build_workload(DEEPSEEK, Strategy(dp=8, ep=8, tp=tp, seq_len=TOKENS, software=software)).parts
    for i, t in enumerate(tp.tolist()):
        alone = build_workload(DEEPSEEK, Strategy(dp=8, ep=8, tp=t, seq_len=TOKENS, software=software)).parts
        for name, part in together.items():
            for held in ("saved_none_bytes", "saved_selective_bytes"):
                both = np.broadcast_to(getattr(part, held), tp.shape)[i], getattr(alone[name], held)
                assert both[0] == pytest.approx(float(both[1]), rel=1e-12)


@pytest.mark.parametrize("model", [DEEPSEEK, QWEN, LLAMA], ids=lambda m: m.name)
def test_gathering_again_drops_others_shares_of_what_matmuls_keep(model: ModelSpec) -> None:
    """A gathered input that no matmul keeps is not dropped: that of shared experts, which the router keeps."""
    t, kind = 4, model.kinds[-1]
    same = {"tp": t, "ep": 1 if model is LLAMA else 8}
    again, kept = (float(layer(model, "", replace(MEGATRON, keeps_gathered=k), **same).saved_none_bytes) for k in (False, True))
    mixer = kind.mixer
    attention = mixer.q_lora_rank + mixer.kv_lora_rank if isinstance(mixer, LatentAttention) else model.hidden
    dense = 0 if isinstance(kind.ffn, Experts) else model.hidden
    assert kept - again == pytest.approx(BF16 * TOKENS * (attention + dense) * (1 - 1 / t), rel=1e-12)
