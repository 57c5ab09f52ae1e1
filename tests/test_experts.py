"""Experts: what their exchange sends, what the host launches for them, what software fuses, graphs and repeats."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from profiles.collectives import Collective, reached
from profiles.cost import CostModel, cost_model
from profiles.families import Shape, load_model, part_items
from profiles.families.decoder import part_params
from profiles.files import BadInput
from profiles.hardware import load_cluster
from profiles.laws import node_wire_bytes
from profiles.matmul import LOOP_SHARE, GroupedGemm
from profiles.model import Experts, count
from profiles.ops import Kernel
from profiles.pointwise import Pointwise
from profiles.scan import Scan
from simulator.estimate import estimate
from simulator.pricing import price
from simulator.software import REPEATED, Software, load_software, software_from
from simulator.strategy import Strategy
from simulator.workload import MODULES, build_workload

QWEN = load_model("qwen3-30b-a3b")
DEEPSEEK = load_model("deepseek-v3")
MEGATRON = Software(kernels="fused", fused_projections=True, expert_kernels="loop", host_launch_s=9e-5)


def strategy_of(software: Software = MEGATRON, **fields: Any) -> Strategy:
    given: dict[str, Any] = {"dp": 8, "ep": 8, "zero": 1, "precision": "mxfp8", "micro_batch": 4, "num_microbatches": 4,
                             "seq_len": 4096}
    return Strategy(software=software, **(given | fields))


def cost_of(cluster: str = "gb200-nvl72:4") -> CostModel:
    return cost_model(load_cluster(cluster))


def step_s(software: Software, cluster: str = "gb200-nvl72:4", model: Any = QWEN, **fields: Any) -> float:
    return float(estimate(build_workload(model, strategy_of(software, **fields)), cost_of(cluster)).step_time_s)


def moe_layer(software: Software, **fields: Any) -> Any:
    return build_workload(QWEN, strategy_of(software, **fields)).parts[QWEN.kinds[-1].name]


def exchanges(work: Any, kind: str = "all_to_all") -> list[Collective]:
    return [w for w in work if isinstance(w, Collective) and w.axis == "ep" and w.kind == kind]


@pytest.mark.parametrize(("members", "copies"), [(1, 8), (8, 1), (8, 8), (64, 22)])
def test_copies_reach_as_many_members_as_drawing_them_does(members: int, copies: int) -> None:
    drawn = np.random.default_rng(0).integers(0, members, (20000, copies))
    mean = np.mean([len(set(row)) for row in drawn.tolist()])
    assert float(reached(members, copies)) == pytest.approx(mean, rel=0.01)


def test_a_token_sent_once_crosses_to_each_rank_and_node_once() -> None:
    whole, once = (exchanges(moe_layer(replace(MEGATRON, sends_once=s)).forward) for s in (False, True))
    tokens, width = 4 * 4096, QWEN.hidden
    assert [w.bytes for w in whole] == [2 * tokens * 8 * width] * 2
    # weights of all 128 experts, in fp32, travel with what is dispatched, not with what comes back
    sent = tokens * float(reached(8, 8))
    assert float(once[1].bytes) == pytest.approx(sent * 2 * width)
    assert float(once[0].bytes) == pytest.approx(sent * (2 * width + 4 * 128))
    size = 1e9 * float(reached(32, 8))
    over_nodes = float(node_wire_bytes("all_to_all", size, 32.0, 4.0, copies=8))
    # 8 ranks a node, each with 1e9 bytes of tokens, which go to three other nodes as far as any copy does
    assert over_nodes == pytest.approx(8 * 1e9 * float(reached(4, 8)) * 3 / 4)
    assert over_nodes < float(node_wire_bytes("all_to_all", 8e9, 32.0, 4.0))


def test_every_rank_learns_which_experts_all_tokens_go_to() -> None:
    gathered = exchanges(moe_layer(replace(MEGATRON, sends_once=True)).forward, "all_gather")
    assert [g.bytes for g in gathered] == [4 * 4096 * 128 * 8]
    assert all(g.group_size == 1 for g in exchanges(moe_layer(replace(MEGATRON, sends_once=True)).backward, "reduce_scatter"))


def test_a_loop_launches_each_expert_and_a_group_once() -> None:
    def launches(looped: bool) -> list[float]:
        op = GroupedGemm(name="x", groups=16, m=64, k=128, n=128, dtype="bf16", matmul="mxfp8", looped=looped)
        return [float(k.launches) for k in (*op.kernels("F"), *op.kernels("B"), *op.kernels("W"))]

    assert launches(False) == [1] * 5
    assert launches(True) == [1 + 16 * LOOP_SHARE] * 5


def test_what_is_fused_moves_less_and_keeps_the_same() -> None:
    loop, fused = (moe_layer(replace(MEGATRON, expert_kernels=k)) for k in ("loop", "fused"))

    def kinds(layer: Any) -> dict[str, int]:
        found = [k.kind for k in (*layer.forward, *layer.backward) if isinstance(k, Kernel)]
        return {kind: found.count(kind) for kind in ("grouped_gemm", "quantise", "swiglu", "permute")}

    # of four casts of the experts two are left, none of the activation; nothing is sorted by expert a second time
    assert kinds(loop) == {"grouped_gemm": 6, "quantise": 7, "swiglu": 2, "permute": 8}
    assert kinds(fused) == {"grouped_gemm": 6, "quantise": 5, "swiglu": 0, "permute": 4}
    assert float(loop.saved_none_bytes) == float(fused.saved_none_bytes)


def test_biases_of_experts_are_added_apart_where_they_are_looped_over() -> None:
    model = load_model("gpt-oss-120b")
    layer = model.kinds[-1].name

    def moved(kernels: str) -> float:
        shape = Shape(micro_batch=1, seq_len=4096, ep=16, dtype="bf16", mode="fused", expert_kernels=kernels)
        items = part_items(model, layer, shape)
        adds = [i for i in items if isinstance(i, Pointwise) and i.name.startswith("ffn.experts.bias")]
        return sum((float(k.moved_bytes) for i in adds for k in (*i.kernels("F"), *i.kernels("B"))), 0.0)

    rows = 4096 * 4
    assert moved("loop") == pytest.approx(72 * rows * model.hidden)
    assert moved("grouped") == moved("fused") == 0


def test_the_host_bounds_a_small_step_and_graphs_free_it() -> None:
    small: dict[str, Any] = {"micro_batch": 1, "seq_len": 512}
    plain, router, dense, whole = (step_s(replace(MEGATRON, graphs=g), **small) for g in ("none", "router", "dense", "all"))
    assert plain > router > 1.2 * dense > 1.2 * whole
    free = step_s(replace(MEGATRON, host_launch_s=0.0), **small)
    assert whole == free


@pytest.mark.parametrize("graphs", ["none", "dense"])
def test_a_slower_host_never_helps(graphs: str) -> None:
    steps = [step_s(replace(MEGATRON, graphs=graphs, host_launch_s=h)) for h in (0.0, 2e-5, 9e-5, 4e-4)]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]


def test_a_stretch_takes_at_least_its_launches() -> None:
    software = replace(MEGATRON, host_launch_s=1.0)
    seconds = price(build_workload(QWEN, strategy_of(software)), cost_of()).parts[QWEN.kinds[-1].name].forward
    work = moe_layer(software).forward
    launches = sum(1 if isinstance(w, Collective) else float(w.launches) for w in work)
    assert float(seconds.total_s) == pytest.approx(launches, rel=1e-6)


def test_overlap_hides_the_exchange_and_slows_what_runs_beside_it() -> None:
    hidden = replace(MEGATRON, host_launch_s=0.0, ep_overlap=True)
    plain = replace(MEGATRON, host_launch_s=0.0)
    assert step_s(hidden) < step_s(plain)
    none_beside = replace(cost_of(), calibration=cost_of().calibration.model_copy(update={"beside": 0.0}))
    work = build_workload(QWEN, strategy_of(hidden))
    assert float(estimate(work, none_beside).step_time_s) < float(estimate(work, cost_of()).step_time_s)


@pytest.mark.parametrize("ep", [8, 16, 32])
def test_sending_once_is_never_slower(ep: int) -> None:
    for cluster in ("dgx-h100:4", "gb200-nvl72:1"):
        fields: dict[str, Any] = {"dp": 32, "ep": ep, "precision": "bf16"}
        plain, once = (replace(MEGATRON, host_launch_s=0.0, sends_once=s) for s in (False, True))
        assert step_s(once, cluster, **fields) <= step_s(plain, cluster, **fields)


def test_modules_are_repeated_and_no_others() -> None:
    def repeated(model: Any, *modules: str) -> set[str]:
        software = replace(MEGATRON, repeats=",".join(modules))
        work = build_workload(model, strategy_of(software, recompute="selective"))
        return {k.kind for k in work.parts[model.kinds[-1].name].recompute_selective if isinstance(k, Kernel)}

    assert repeated(DEEPSEEK, "mla_up_proj") == {"rms_norm", "quantise", "gemm", "rope"}
    assert repeated(DEEPSEEK, "moe_act") == {"swiglu"}
    assert repeated(DEEPSEEK, "layernorm") == {"rms_norm"}
    assert repeated(QWEN, "core_attn") == {"attention"}
    assert repeated(QWEN, "mlp") == set()
    assert "grouped_gemm" in repeated(QWEN, "moe")
    assert repeated(load_model("llama-3-8b"), "moe") == set()


def test_an_unknown_module_is_refused() -> None:
    for wrong in ("experts", "moe,", "moe mlp"):
        with pytest.raises(BadInput, match="repeats"):
            software_from({"kernels": "fused", "attention": "flash3", "repeats": wrong}, "plan")
    assert software_from({"repeats": "moe,mlp"}, "plan").repeats == "moe,mlp"


def test_more_modules_take_longer() -> None:
    steps = [step_s(replace(MEGATRON, host_launch_s=0.0, repeats=m), model=DEEPSEEK, recompute="selective", dp=64, ep=64)
             for m in ("layernorm", "layernorm,mla_up_proj", ",".join(REPEATED))]
    assert set(REPEATED) == set(MODULES)
    assert steps == sorted(set(steps))


def test_a_generation_differs_by_precision() -> None:
    plain, narrow = (load_software("megatron-bridge-2026.08", p) for p in ("", "mxfp8"))
    assert (plain.graphs, plain.ep_overlap, plain.expert_kernels) == ("none", False, "loop")
    assert (narrow.graphs, narrow.ep_overlap, narrow.expert_kernels) == ("all", True, "fused")
    assert load_software("megatron-bridge-2026", "nvfp4").tp_overlap is False


def test_further_tokens_of_a_hybrid_are_attention_and_experts() -> None:
    model = load_model("nemotron-3-super-120b-a12b")
    kind = model.kind("mtp")
    assert (model.mtp_layers, kind.mixer is not None, isinstance(kind.ffn, Experts)) == (2, True, True)
    assert float(count(part_params(model, "mtp"), 1)) > 2 * model.hidden**2
    assert load_model("nemotron-3-nano-30b-a3b").mtp_layers == 0


def test_backward_of_a_scan_repeats_its_forward_and_counts_it_once() -> None:
    scan = Scan(name="x", tokens=8192, heads=64, head_dim=64, state=128, dtype="bf16", chunk=128)
    (forward,), (backward,) = scan.kernels("F"), scan.kernels("B")
    assert (backward.flop, backward.model_flop) == (3 * forward.flop, 2 * forward.flop)
    assert backward.moved_bytes == 3 * forward.moved_bytes
