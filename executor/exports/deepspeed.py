"""DeepSpeed: the JSON that `deepspeed.initialize(config=...)` reads.

Read in deepspeed 0.19.8: deepspeed/runtime/config.py, runtime/zero/config.py, runtime/tensor_parallel/config.py,
module_inject/auto_ep_config.py and the mesh of deepspeed/__init__.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from executor.exports.export import Export, laid_out, notes_of
from planner.plan import Plan
from planner.rules import num_experts

FILE = "deepspeed.json"


def deepspeed(plan: Plan) -> Export:
    """Return DeepSpeed's configuration of a plan."""
    if refusals := tuple(_refusals(plan)):
        return Export(refusals=refusals)
    return Export(files={FILE: json.dumps(_config(plan), indent=2) + "\n"}, notes=tuple(_notes(plan)))


def _refusals(plan: Plan) -> Iterator[str]:
    s = plan.strategy
    if s.pp > 1:
        yield (f"pp={s.pp} with schedule={s.schedule} and chunks={s.chunks}: DeepSpeed's JSON makes no pipeline; it is built "
               "in "
               "code, as a PipelineModule")
    if s.zero and s.shards < s.replicas:
        yield (f"shard_group={s.shard_group}: DeepSpeed shards over all dp={s.dp} ranks; groups (MiCS) were taken out, and hpZ "
               "groups weights alone")
    if s.precision not in ("fp32", "bf16", "fp16"):
        yield f"precision={s.precision}: DeepSpeed's JSON has fp32, bf16 and fp16; its kernels compute in no narrower type"
    if s.cp > 1 and s.context != "ulysses":
        yield f"context={s.context}: DeepSpeed cuts sequences over cp={s.cp} ranks by context=ulysses only"
    if s.cp > 1 and s.tp > 1:
        yield f"tp={s.tp} with cp={s.cp}: DeepSpeed's JSON makes one mesh, of data and either tensor or sequence parallelism"
    if s.tp > 1 and s.sequence_parallel:
        yield (f"sequence_parallel={s.sequence_parallel} with tp={s.tp}: DeepSpeed's automatic tensor parallelism keeps whole "
               "sequences on each rank (sequence_parallel=false)")
    if s.recompute == "selective":
        yield "recompute=selective: DeepSpeed checkpoints whole layers (recompute=full) or none"
    if s.recompute != "none" and s.recompute_share != 1:
        yield (f"recompute_share={s.recompute_share}: DeepSpeed checkpoints the layers that the model's code names, all or "
               "none here")
    if s.offload not in ("none", "optimizer"):
        yield f"offload={s.offload}: DeepSpeed offloads the optimizer with its states (offload=optimizer)"
    if s.offload == "optimizer" and not s.zero and s.replicas > 1:
        yield f"offload={s.offload} with zero={s.zero}: DeepSpeed offloads what ZeRO shards (zero=1, 2 or 3)"
    if s.offload == "optimizer" and s.offload_share != 1 and s.zero != 3:
        yield f"offload_share={s.offload_share} with zero={s.zero}: DeepSpeed offloads a part of the optimizer at zero=3 only"
    if s.lora_rank:
        yield f"lora_rank={s.lora_rank}: DeepSpeed's JSON has no adapters; they are put in by code (peft)"
    if not laid_out(s, "tp-cp-dp-pp"):
        yield f"order={s.order}: DeepSpeed lays ranks out as tp-cp-dp, innermost first, and has no setting for it"


def _config(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    config: dict[str, Any] = {
        "train_batch_size": int(s.global_batch),
        "train_micro_batch_size_per_gpu": int(s.micro_batch),
        "gradient_accumulation_steps": int(s.num_microbatches),
        "bf16": {"enabled": s.precision == "bf16"},
        "fp16": {"enabled": s.precision == "fp16"},
        "zero_optimization": _zero(plan),
    }
    if s.tp > 1:
        config["tensor_parallel"] = {"autotp_size": int(s.tp)}
    if s.cp > 1:
        config |= {"sequence_parallel_size": int(s.cp), "data_parallel_size": int(s.dp)}
    if num_experts(plan.question.model):
        config["expert_parallel"] = {
            "enabled": bool(s.ep > 1), "autoep_size": int(s.ep), "expert_tensor_parallel_size": int(s.etp),
            "use_grouped_mm": s.software.expert_kernels != "loop",
        }
    if s.precision != "fp32":
        config["data_types"] = {"grad_accum_dtype": "fp32" if s.software.grad_bytes == 4 else s.precision}
        config["communication_data_type"] = "fp32" if s.software.reduce_bytes == 4 else s.precision
    return config


def _zero(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    zero: dict[str, Any] = {"stage": int(s.zero)}
    if s.zero:
        zero["overlap_comm"] = s.software.grad_reduce
    if s.offload == "optimizer":
        # one replica has nothing to shard, and offloads gradients as ZeRO-2 does
        zero["stage"] = int(s.zero) if s.replicas > 1 else 2
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True} | (
            {"ratio": float(s.offload_share)} if s.offload_share != 1 else {})
    return zero


def _notes(plan: Plan) -> Iterator[str]:
    s = plan.strategy
    yield (f"your script's, as DeepSpeed's JSON holds none of it: the model ({plan.question.model.name}), seq_len={s.seq_len}, "
           f"the optimizer, and {s.world_size} processes")
    if s.recompute == "full":
        yield ("your script's: recompute=full, by gradient_checkpointing_enable() of Hugging Face models or "
               "deepspeed.checkpointing.checkpoint() around each layer")
    if s.software.kernels == "fused":
        yield "your script's: fused kernels, by engine.compile()"
    if s.cp > 1:
        yield "your script's: context=ulysses, by deepspeed.sequence.layer.DistributedAttention in the model"
    yield from notes_of(plan, "DeepSpeed")
