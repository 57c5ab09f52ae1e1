"""Megatron-LM's arguments of `pretrain_gpt.py`, and the same as a YAML of overrides for Megatron-Bridge.

Fields are those of Megatron-Core's TransformerConfig, DistributedDataParallelConfig and OptimizerConfig (megatron-core 0.16.1);
Megatron-LM's names of them were read in megatron/training/arguments.py of core_v0.16.1 and of NVIDIA/Megatron-LM@d98e8a64,
those of Megatron-Bridge in src/megatron/bridge/training/config.py of 0.3.1 (ConfigContainer).
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from executor.exports.export import Export, comments, hosts, laid_out, notes_of, num_steps, yaml_text
from executor.exports.megatron_model import model_fields, model_refusals, provider_fields
from planner.plan import Plan
from planner.rules import num_experts
from simulator.layout import stage_parts

SCRIPT, BRIDGE = "pretrain_gpt.sh", "megatron_bridge.yaml"
CONTEXT = {"ring": "p2p", "all_gather": "all_gather", "ulysses": "a2a"}
SCHEDULES = ("1F1B", "Interleaved1F1B")
SHARDED = {2: "optim_grads", 3: "optim_grads_params"}
FP8_RECIPES = {"fp8": None, "fp8-block": "blockwise", "mxfp8": "mxfp8"}
"""Precision -> recipe; whole tensors are Megatron's default, with delayed scales."""
BRIDGE_PRECISION = {
    "bf16": "bf16_mixed", "fp16": "fp16_mixed", "fp8": "bf16_with_fp8_delayed_scaling_mixed",
    "fp8-block": "bf16_with_fp8_subchannel_scaling_mixed", "mxfp8": "bf16_with_mxfp8_mixed", "nvfp4": "bf16_with_nvfp4_mixed",
}
"""Precision -> Megatron-Bridge's recipe for it (training/mixed_precision.py)."""
FLAGS = {
    "layernorm_epsilon": "--norm-epsilon", "fp8": "--fp8-format", "fp4": "--fp4-format", "gated_linear_unit": "--swiglu",
    "grad_reduce_in_fp32": "--accumulate-allreduce-grads-in-fp32", "num_moe_experts": "--num-experts",
    "add_bias_linear": "--disable-bias-linear", "share_embeddings_and_output_weights": "--untie-embeddings-and-output-weights",
    "sequence_length": "--seq-length",
}
"""Field -> Megatron-LM's argument, where that is not the field's name with dashes."""
WHEN_FALSE = ("add_bias_linear", "share_embeddings_and_output_weights")
"""Fields whose argument says that they are false."""
NOT_ARGUMENTS = ("virtual_pipeline_model_parallel_size", "seq_length", "activation_func")
"""Fields that Megatron-LM takes from other arguments."""


def megatron(plan: Plan) -> Export:
    """Return Megatron's arguments of a plan, and Megatron-Bridge's overrides."""
    if refusals := tuple(_refusals(plan)):
        return Export(refusals=refusals)
    notes = tuple(_notes(plan))
    config = _config(plan)
    bridge = yaml_text(_for_bridge(config), notes)
    return Export(files={SCRIPT: _script(plan, notes, config), BRIDGE: bridge}, notes=notes)


def _refusals(plan: Plan) -> Iterator[str]:
    s, model = plan.strategy, plan.question.model
    yield from model_refusals(model)
    if s.zero >= 2 and s.pp > 1:
        yield (f"zero={s.zero} with pp={s.pp}: Megatron shards gradients and weights (Megatron-FSDP) without a pipeline here; "
               "zero=1 runs with one")
    if s.zero >= 2 and s.shards < s.replicas:
        yield f"shard_group={s.shard_group} with zero={s.zero}: here Megatron shards within groups at zero=1 only"
    if s.pp > 1 and s.schedule not in SCHEDULES:
        yield f"schedule={s.schedule}: Megatron has {' and '.join(SCHEDULES)}"
    if s.recompute == "selective" and not _repeated(plan):
        yield (f"recompute=selective of software {s.software.name} repeats {s.software.selective} work: Megatron repeats "
               "modules that are "
               "named (software.repeats) or the core of attention (software.selective=attention)")
    if s.recompute == "selective" and s.recompute_share != 1:
        yield f"recompute_share={s.recompute_share} with recompute=selective: Megatron repeats modules in all layers or none"
    if s.recompute == "full" and s.recompute_share != 1 and _block(plan) is None:
        yield (f"recompute_share={s.recompute_share}: Megatron recomputes the same whole number of layers on each stage, and "
               "that is no "
               f"such share of stages with {', '.join(map(str, sorted(set(_stage_layers(plan)))))} layers")
    if s.offload == "moments":
        yield "offload=moments: Megatron offloads moments and main weights together (offload=states)"
    if s.offload == "states" and s.offload_share != 1:
        yield f"offload_share={s.offload_share} with offload=states: Megatron-Core 0.16 offloads all of them"
    if s.offload != "none" and s.zero != 1:
        yield f"offload={s.offload} with zero={s.zero}: Megatron offloads what its distributed optimizer holds (zero=1)"
    if s.lora_rank:
        yield (f"lora_rank={s.lora_rank}: Megatron-LM's arguments have no adapters, and Megatron-Bridge takes them in a Python "
               "recipe "
               "(ConfigContainer.peft)")
    if s.tp == 1 and s.etp > 1:
        yield f"etp={s.etp} with tp=1: Megatron cuts experts over ranks of tensor parallelism"
    if not (laid_out(s, "tp-cp-dp-pp") or _swapped(plan)):
        yield f"order={s.order}: Megatron lays ranks out as tp-cp-dp-pp or tp-cp-pp-dp, innermost first"
    if s.software.param_gather and not s.software.grad_reduce and s.zero:
        yield ("software.param_gather without software.grad_reduce: Megatron overlaps the gather of weights only along with "
               "gradients' reduction")
    if s.software.tp_overlap and s.tp > 1 and not s.sequence_parallel:
        yield ("software.tp_overlap with sequence_parallel=False: Megatron pipelines these collectives with sequence "
               "parallelism only")


def _swapped(plan: Plan) -> bool:
    return not laid_out(plan.strategy, "tp-cp-dp-pp") and laid_out(plan.strategy, "tp-cp-pp-dp")


def _repeated(plan: Plan) -> list[str]:
    """Return the modules that selective recomputation repeats, in Megatron's names; none where it has no name for them."""
    software = plan.strategy.software
    if software.repeats:
        return software.repeats.split(",")
    return ["core_attn"] if software.selective == "attention" else []


def _stage_layers(plan: Plan) -> list[int]:
    s = plan.strategy
    stages = stage_parts(plan.question.model, int(s.pp), int(s.chunks), s.split)
    return [sum(num for part, num in parts if part not in ("embedding", "head", "mtp")) for parts in stages]


def _block(plan: Plan) -> int | None:
    """Return the layers of each stage that are recomputed, where they are as many on all."""
    layers = {num * plan.strategy.recompute_share for num in _stage_layers(plan)}
    num = layers.pop()
    return round(num) if not layers and math.isclose(num, round(num), abs_tol=1e-9) else None


def _config(plan: Plan) -> dict[str, Any]:
    """Return the configuration by Megatron-Bridge's sections."""
    s = plan.strategy
    config: dict[str, Any] = {
        "model": (model_fields(plan.question.model, s) | _parallel(plan) | _recompute(plan) | _precision(plan)
                  | provider_fields(plan)),
        "train": {"micro_batch_size": int(s.micro_batch), "global_batch_size": int(s.global_batch),
                  "train_iters": num_steps(plan)},
        "ddp": _ddp(plan),
        "optimizer": {"bf16": s.dtype == "bf16", "fp16": s.dtype == "fp16", "use_distributed_optimizer": s.zero > 0
                      } | _offload(plan),
        "dataset": {"sequence_length": s.seq_len},
        "dist": {"use_tp_pp_dp_mapping": _swapped(plan), "use_megatron_fsdp": s.zero >= 2},
    }
    if s.zero >= 2:
        config["checkpoint"] = {"ckpt_format": "fsdp_dtensor"}
    if s.precision != "fp32":
        config["mixed_precision"] = BRIDGE_PRECISION[s.precision]
    return config


def _offload(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    if s.offload == "states":
        return {"offload_optimizer_states": True}
    return {} if s.offload == "none" else {
        "optimizer_cpu_offload": True, "optimizer_offload_fraction": float(s.offload_share),
        "use_precision_aware_optimizer": True, "overlap_cpu_optimizer_d2h_h2d": s.software.offload_overlap == "parts",
    }


def _for_bridge(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with functions named in the way of Megatron-Bridge's YAML."""
    functions = {"silu": "torch.nn.functional.silu", "gelu": "torch.nn.functional.gelu",
                 "squared_relu": "megatron.core.activations.squared_relu"}
    function = {"_target_": functions[config["model"]["activation_func"]], "_call_": False}
    return {**config, "model": config["model"] | {"activation_func": function}}


def _parallel(plan: Plan) -> dict[str, Any]:
    s, model = plan.strategy, plan.question.model
    fields: dict[str, Any] = {
        "tensor_model_parallel_size": int(s.tp), "pipeline_model_parallel_size": int(s.pp), "context_parallel_size": int(s.cp),
        "sequence_parallel": bool(s.sequence_parallel and s.tp > 1),
        "tp_comm_overlap": bool(s.software.tp_overlap and s.tp > 1),
    }
    if s.cp > 1:
        fields["cp_comm_type"] = CONTEXT[s.context]
    if num_experts(model):
        fields |= {
            "expert_model_parallel_size": int(s.ep), "expert_tensor_parallel_size": int(s.etp),
            "moe_grouped_gemm": s.software.expert_kernels != "loop",
            "moe_token_dispatcher_type": "flex" if s.software.sends_once else "alltoall",
            "overlap_moe_expert_parallel_comm": bool(s.software.ep_overlap and s.ep > 1),
        }
    if s.pp > 1:
        fields["pipeline_model_parallel_layout"] = layout_text(plan)
        fields["virtual_pipeline_model_parallel_size"] = int(s.chunks) if s.chunks > 1 else None
    return fields


def layout_text(plan: Plan) -> str:
    """Return the layers of the stages as Megatron writes them: E embedding, t layer, m multi-token prediction, L loss."""
    s = plan.strategy
    stages = stage_parts(plan.question.model, int(s.pp), int(s.chunks), s.split)
    letters = {"embedding": "E", "head": "L", "mtp": "m"}
    texts = ("".join(letters.get(part, "t") * num for part, num in parts) for parts in stages)
    return "|".join("".join(sorted(text, key="EtmL".index)) for text in texts)


def _recompute(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    if s.recompute == "none":
        return {}
    if s.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": _repeated(plan)}
    if s.recompute_share == 1:
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": _block(plan)}


def _precision(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    fields: dict[str, Any] = {"bf16": s.dtype == "bf16", "fp16": s.dtype == "fp16"}
    if s.precision in FP8_RECIPES:
        fields["fp8"] = "hybrid"
        if recipe := FP8_RECIPES[s.precision]:
            fields["fp8_recipe"] = recipe
    if s.precision == "nvfp4":
        fields["fp4"] = "e2m1"
    return fields


def _ddp(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    fields: dict[str, Any] = {
        "use_distributed_optimizer": s.zero > 0,
        "overlap_grad_reduce": s.software.grad_reduce,
        "overlap_param_gather": bool(s.software.param_gather and s.zero),
        "grad_reduce_in_fp32": s.software.reduce_bytes == 4,
    }
    if s.zero and s.shards < s.replicas:
        fields["num_distributed_optimizer_instances"] = int(s.replicas // s.shards)
    if s.zero >= 2:
        fields |= {"use_megatron_fsdp": True, "data_parallel_sharding_strategy": SHARDED[int(s.zero)]}
    return fields


def arguments(config: Mapping[str, Any]) -> list[list[str]]:
    """Return Megatron-LM's arguments, each with its values: of the fields of all sections, once each."""
    fields: dict[str, Any] = {}
    for section in config.values():
        fields |= section if isinstance(section, dict) else {}
    if fields["bf16"] and not fields["grad_reduce_in_fp32"]:
        fields["grad_reduce_in_bf16"] = True
    if fields.get("num_query_groups", fields["num_attention_heads"]) != fields["num_attention_heads"]:
        fields["group_query_attention"] = True
    if fields["activation_func"] == "squared_relu":
        fields["squared_relu"] = True
    return [words for name, value in fields.items() if name not in NOT_ARGUMENTS for words in _words(name, value)]


def _words(name: str, value: Any) -> list[list[str]]:
    flag = FLAGS.get(name, "--" + name.replace("_", "-"))
    if isinstance(value, bool):
        return [[flag]] if value is (name not in WHEN_FALSE) else []
    if name == "moe_layer_freq":
        return [[flag, str(value).replace(" ", "")]]
    if isinstance(value, list):
        return [[flag, *map(str, value)]]
    return [] if value is None else [[flag, str(value)]]


def _script(plan: Plan, notes: tuple[str, ...], config: Mapping[str, Any]) -> str:
    machines, gpus = hosts(plan)
    where = f'  --nnodes {machines} --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port 29500\n'
    lines = "".join(f"  {shlex.join(words)}\n" for words in arguments(config))
    return (
        "#!/usr/bin/env bash\n" + comments(notes)
        + "# in Megatron-LM's folder: pretrain_gpt.sh --data-path ... --tokenizer-type ... --lr ...\n"
        + "set -euo pipefail\n" + _connections(plan)
        + f"launch=(\n  --nproc-per-node {gpus}\n{where if machines > 1 else ''})\n"
        + f"arguments=(\n{lines})\n" + 'exec torchrun "${launch[@]}" pretrain_gpt.py "${arguments[@]}" "$@"\n'
    )


def _connections(plan: Plan) -> str:
    """Return the variable that keeps kernels in the order of their launches, which Megatron asks for up to Hopper."""
    s = plan.strategy
    return 'export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"\n' if s.tp * s.cp > 1 and s.zero < 2 else ""


def _notes(plan: Plan) -> Iterator[str]:
    s, model = plan.strategy, plan.question.model
    if s.precision == "fp8":
        yield "precision=fp8: Megatron's default recipe, delayed scales of whole tensors"
    if s.precision in BRIDGE_PRECISION and (s.software.reduce_bytes == 4) != (s.precision != "fp16"):
        yield (f"software.reduce_bytes={s.software.reduce_bytes:g}: Megatron-Bridge's {BRIDGE_PRECISION[s.precision]} says "
               "otherwise; set "
               "grad_reduce_in_fp32 on its object")
    if num_experts(model):
        yield ("the router's score, groups and loss are not in the plan: Megatron's defaults stand, but for what expert biases "
               "need")
    if s.software.graphs != "none":
        yield (f"software.graphs={s.software.graphs} is not exported: what Megatron captures is named by version "
               "(--cuda-graph-impl)")
    yield f"Megatron pads the vocabulary of {model.vocab} to a multiple of --make-vocab-size-divisible-by times tp={s.tp}"
    yield from notes_of(plan, "Megatron")
