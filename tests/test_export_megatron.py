"""The export for Megatron, read by Megatron-Core's own configuration classes where they are installed (0.16.1, on a CPU)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml
from export_cases import plan_of, run_with_stubs, with_software

from executor.exports import export_plan, write_export
from executor.exports.megatron import BRIDGE, SCRIPT, layout_text
from planner.plan import Plan
from simulator.layout import stage_parts

PLANS: dict[str, dict[str, Any]] = {
    "plain": {"dp": 4, "tp": 4, "zero": 1, "num_microbatches": 2},
    "piped": {"dp": 2, "tp": 2, "pp": 4, "zero": 1, "num_microbatches": 8, "recompute": "full"},
    "interleaved": {"dp": 2, "pp": 4, "chunks": 2, "schedule": "Interleaved1F1B", "num_microbatches": 8, "recompute": "full",
                    "recompute_share": 0.5},
    "uneven": {"dp": 2, "pp": 4, "num_microbatches": 8, "layers": "7-9-9-7", "recompute": "selective",
               "software": with_software(selective="attention", reduce_bytes=2.0, param_gather=True), "zero": 1},
    "context": {"dp": 2, "tp": 2, "cp": 4, "context": "ulysses", "zero": 1, "num_microbatches": 2, "shard_group": 4},
    "weights sharded": {"dp": 8, "tp": 2, "zero": 3, "num_microbatches": 2, "order": "tp-cp-dp-pp"},
    "pipeline inside": {"dp": 4, "tp": 2, "pp": 2, "num_microbatches": 4, "order": "tp-cp-pp-dp"},
    "experts": {"model": "qwen3-30b-a3b", "dp": 8, "tp": 2, "ep": 4, "etp": 2, "zero": 1, "num_microbatches": 2,
                "software": with_software(ep_overlap=False, tp_overlap=True)},
    "latent": {"model": "deepseek-v3", "dp": 8, "tp": 2, "pp": 4, "ep": 8, "zero": 1, "num_microbatches": 8},
    "gpt": {"model": "gpt2-xl", "dp": 8, "num_microbatches": 2, "seq_len": 1024, "precision": "fp16",
            "software": with_software(dropout=True)},
    "squared": {"model": "nemotron4-15b", "dp": 2, "tp": 8, "zero": 1, "num_microbatches": 2},
    "fp8": {"dp": 8, "tp": 2, "zero": 1, "num_microbatches": 2, "precision": "fp8"},
    "fp8-block": {"dp": 8, "tp": 2, "zero": 1, "num_microbatches": 2, "precision": "fp8-block"},
    "nvfp4": {"cluster": "dgx-b200", "dp": 8, "tp": 2, "zero": 1, "num_microbatches": 2, "precision": "nvfp4"},
    "fp32": {"dp": 8, "tp": 2, "zero": 1, "num_microbatches": 2, "precision": "fp32"},
}
OF_THE_PROVIDER = {"seq_length", "max_position_embeddings", "position_embedding_type", "vocab_size",
                   "share_embeddings_and_output_weights", "rotary_base", "rotary_percent"}
"""Fields of Megatron-Bridge's GPTModelProvider beside those of Megatron-Core (0.3.1, models/gpt_provider.py)."""


def parser() -> argparse.ArgumentParser:
    """Return Megatron-LM's arguments that exports use (core_v0.16.1, megatron/training/arguments.py), by kind of value."""
    result = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("num-layers", "hidden-size", "num-attention-heads", "ffn-hidden-size", "num-query-groups", "kv-channels",
                 "tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size", "recompute-num-layers",
                 "expert-model-parallel-size", "expert-tensor-parallel-size", "max-position-embeddings", "vocab-size",
                 "rotary-base", "micro-batch-size", "global-batch-size", "train-iters", "seq-length", "num-experts",
                 "moe-router-topk", "moe-ffn-hidden-size", "moe-shared-expert-intermediate-size", "q-lora-rank",
                 "kv-lora-rank", "qk-head-dim", "qk-pos-emb-head-dim", "v-head-dim", "mtp-num-layers",
                 "num-distributed-optimizer-instances"):
        result.add_argument("--" + name, type=int)
    for name in ("norm-epsilon", "attention-dropout", "hidden-dropout", "rotary-percent"):
        result.add_argument("--" + name, type=float)
    for name, choices in (
        ("normalization", ("LayerNorm", "RMSNorm")), ("recompute-granularity", ("full", "selective")),
        ("recompute-method", ("uniform", "block")), ("position-embedding-type", ("learned_absolute", "rope", "none")),
        ("fp8-format", ("e4m3", "hybrid")), ("fp8-recipe", ("tensorwise", "delayed", "mxfp8", "blockwise")),
        ("fp4-format", ("e2m1",)), ("moe-token-dispatcher-type", ("allgather", "alltoall", "flex")),
        ("moe-router-score-function", ("softmax", "sigmoid")), ("ckpt-format", ("torch_dist", "fsdp_dtensor")),
        ("data-parallel-sharding-strategy", ("no_shard", "optim", "optim_grads", "optim_grads_params")),
    ):
        result.add_argument("--" + name, choices=choices)
    for name in ("pipeline-model-parallel-layout", "moe-layer-freq"):
        result.add_argument("--" + name)
    for name in ("cp-comm-type", "recompute-modules"):
        result.add_argument("--" + name, nargs="+")
    for name in ("swiglu", "squared-relu", "disable-bias-linear", "add-qkv-bias", "qk-layernorm", "group-query-attention",
                 "sequence-parallel", "tp-comm-overlap", "bf16", "fp16", "untie-embeddings-and-output-weights",
                 "use-distributed-optimizer", "overlap-grad-reduce", "overlap-param-gather", "grad-reduce-in-bf16",
                 "accumulate-allreduce-grads-in-fp32", "use-tp-pp-dp-mapping", "use-megatron-fsdp", "moe-grouped-gemm",
                 "multi-latent-attention", "moe-router-enable-expert-bias", "moe-shared-expert-gate",
                 "overlap-moe-expert-parallel-comm"):
        result.add_argument("--" + name, action="store_true")
    return result


def arguments(plan: Plan, folder: Path) -> argparse.Namespace:
    """Return what pretrain_gpt.py is started with, by running the script with a stand-in for torchrun."""
    export = export_plan(plan, "megatron")
    assert not export.refusals, export.refusals
    write_export(export, folder)
    (words,) = run_with_stubs(folder / SCRIPT, folder, {"torchrun": 'record "$@"'}, NODE_RANK="0", MASTER_ADDR="first")
    return parser().parse_args(words[words.index("pretrain_gpt.py") + 1 :])


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_megatron_lm_is_started_with_what_the_plan_says(tmp_path: Path, case: dict[str, Any]) -> None:
    plan = plan_of(**case)
    s, model, a = plan.strategy, plan.question.model, arguments(plan, tmp_path)
    assert (a.tensor_model_parallel_size, a.pipeline_model_parallel_size, a.context_parallel_size) == (s.tp, s.pp, s.cp)
    assert (a.micro_batch_size, a.global_batch_size, a.seq_length) == (s.micro_batch, s.global_batch, s.seq_len)
    assert a.train_iters * s.tokens_per_step >= plan.question.tokens > (a.train_iters - 1) * s.tokens_per_step
    assert (a.num_layers, a.hidden_size, a.vocab_size) == (model.num_layers, model.hidden, model.vocab)
    assert a.untie_embeddings_and_output_weights is not model.tied_embeddings
    assert a.use_distributed_optimizer is (s.zero > 0) and a.bf16 is (s.dtype == "bf16") and a.fp16 is (s.dtype == "fp16")
    assert a.grad_reduce_in_bf16 is (s.software.reduce_bytes == 2 and s.dtype == "bf16")
    assert a.recompute_granularity == (None if s.recompute == "none" else s.recompute)
    assert a.attention_dropout == (None if s.software.dropout else 0.0)
    assert a.use_tp_pp_dp_mapping is (s.order == "tp-cp-pp-dp")
    assert (a.expert_model_parallel_size or 1, a.expert_tensor_parallel_size or 1) == (s.ep, s.etp)


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_megatron_core_takes_the_fields(case: dict[str, Any]) -> None:
    """The classes check in their own `__post_init__` what goes together."""
    pytest.importorskip("megatron.core")
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import MLATransformerConfig, TransformerConfig

    plan = plan_of(**case)
    s, config = plan.strategy, yaml.safe_load(export_plan(plan, "megatron").files[BRIDGE])
    model = {name: value for name, value in config["model"].items() if name not in OF_THE_PROVIDER}
    latent = model.pop("multi_latent_attention", False)
    model["activation_func"] = function(model["activation_func"]["_target_"])
    if s.pp > 1:
        model["pipeline_dtype"] = function("torch.bfloat16")
    read = (MLATransformerConfig if latent else TransformerConfig)(**model)
    assert read.num_moe_experts is None or read.moe_router_topk == 8
    assert (read.tensor_model_parallel_size, read.expert_model_parallel_size) == (s.tp, s.ep)
    if s.pp > 1:
        counts = [sum(n for part, n in parts if part not in ("embedding", "head", "mtp"))
                  for parts in stage_parts(plan.question.model, s.pp, s.chunks, s.split)]
        stages = read.pipeline_model_parallel_layout.layout
        held = [[str(kind) for kind in stages[stage % s.pp][stage // s.pp]] for stage in range(s.pp * s.chunks)]
        assert [sum(kind.endswith("decoder") for kind in kinds) for kinds in held] == counts
    ddp = DistributedDataParallelConfig(**config["ddp"])
    assert ddp.num_distributed_optimizer_instances == s.replicas // s.shards
    assert OptimizerConfig(**config["optimizer"]).use_distributed_optimizer is (s.zero > 0)


def function(name: str) -> Any:
    module, _, last = name.rpartition(".")
    return getattr(__import__(module, fromlist=[last]), last)


def test_layouts_are_written_in_megatrons_letters() -> None:
    assert layout_text(plan_of(model="gpt2", pp=2, num_microbatches=4, seq_len=512)) == "Etttttt|ttttttL"
    assert layout_text(plan_of(**PLANS["latent"])).count("t") == 61
    assert layout_text(plan_of(**PLANS["latent"])).endswith("tmL")


def test_a_share_of_layers_that_is_not_whole_is_refused() -> None:
    """32 layers on 3 stages are 11, 11 and 10: no share of them is one number but all and none."""
    case = {"dp": 1, "pp": 3, "num_microbatches": 6, "recompute": "full", "cluster": "dgx-h100"}
    (refusal,) = export_plan(plan_of(**case, recompute_share=0.5), "megatron").refusals
    assert refusal.startswith("recompute_share=0.5") and "10, 11" in refusal


@pytest.mark.parametrize("model", ["gpt-oss-20b", "nemotron-h-56b", "gemma-2-27b", "mpt-7b", "bloom-176b"])
def test_models_that_gpt_arguments_do_not_describe_are_refused(model: str) -> None:
    plan = plan_of(model=model, dp=8, num_microbatches=1, seq_len=1024)
    refusals = export_plan(plan, "megatron").refusals
    assert refusals and all(model in r for r in refusals)
