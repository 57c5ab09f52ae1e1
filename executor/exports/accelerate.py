"""Hugging Face Accelerate: the YAML of `accelerate launch`, with FSDP2 and its ParallelismConfig.

Read in accelerate 1.15.0: commands/config/config_args.py (ClusterConfig), commands/launch.py, parallelism_config.py and
utils/dataclasses.py (FullyShardedDataParallelPlugin, TorchContextParallelConfig, AORecipeKwargs).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from executor.exports.export import Export, hosts, laid_out, notes_of, yaml_text
from planner.plan import Plan

FILE, SCRIPT = "accelerate.yaml", "launch.sh"
MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
ROTATION = {"all_gather": "allgather", "ring": "alltoall"}
"""How keys travel -> Accelerate's name: torch's ring attention passes its shards on by all-to-all
(torch/distributed/tensor/experimental/_context_parallel)."""


def accelerate(plan: Plan) -> Export:
    """Return Accelerate's configuration of a plan, and the line that launches a script with it."""
    if refusals := tuple(_refusals(plan)):
        return Export(refusals=refusals)
    notes = tuple(_notes(plan))
    return Export(files={FILE: yaml_text(_config(plan), notes), SCRIPT: _script(plan)}, notes=notes)


def _sharded(plan: Plan) -> bool:
    return bool(plan.strategy.zero >= 2)


def _refusals(plan: Plan) -> Iterator[str]:
    s = plan.strategy
    if s.pp > 1:
        yield f"pp={s.pp} with schedule={s.schedule} and chunks={s.chunks}: Accelerate's FSDP configuration has no pipeline"
    if s.ep > 1 or s.etp > 1:
        yield f"ep={s.ep} with etp={s.etp}: Accelerate's FSDP configuration has no expert parallelism"
    if s.zero == 1:
        yield "zero=1: FSDP2 shards gradients with the optimizer's states (zero=2) or weights too (zero=3); zero=0 is DDP"
    if s.zero == 0 and (s.tp > 1 or s.cp > 1):
        yield (f"zero=0 with tp={s.tp} and cp={s.cp}: Accelerate joins tensor and context parallelism with FSDP2 only (zero=2 "
               "or 3)")
    if s.context == "ulysses" and s.cp > 1:
        yield f"context=ulysses with cp={s.cp}: Accelerate has it with DeepSpeed only; FSDP2 has ring and all_gather"
    if _sharded(plan) and s.shards % s.cp:
        yield (f"shard_group={s.shard_group} with cp={s.cp}: Accelerate shards over whole context groups, so shard_group must "
               "be "
               "a multiple of cp")
    if _sharded(plan) and s.tp > 1 and s.shards == s.cp and s.dp > 1:
        yield (f"shard_group={s.shard_group} with tp={s.tp}: Accelerate joins tensor parallelism with replicas only where dp "
               "is sharded, too")
    if s.tp > 1 and s.sequence_parallel:
        yield (f"sequence_parallel={s.sequence_parallel} with tp={s.tp}: Accelerate takes the model's own tensor-parallel "
               "plan, and "
               "those of Hugging Face keep whole sequences on each rank (sequence_parallel=false)")
    if s.precision not in MIXED:
        yield (f"precision={s.precision}: Accelerate mixes in {', '.join(p for p in MIXED if p != 'fp32')}, and scales whole "
               "tensors in fp8")
    if s.recompute == "selective":
        yield "recompute=selective: Accelerate checkpoints whole layers (recompute=full) or none"
    if s.recompute == "full" and not _sharded(plan):
        yield f"recompute=full with zero={s.zero}: Accelerate checkpoints layers under FSDP only (zero=2 or 3)"
    if s.recompute != "none" and s.recompute_share != 1:
        yield f"recompute_share={s.recompute_share}: Accelerate checkpoints all layers or none"
    if s.offload not in ("none", "optimizer"):
        yield f"offload={s.offload}: FSDP2 offloads weights, gradients and the optimizer's states together (offload=optimizer)"
    if s.offload == "optimizer" and (not _sharded(plan) or s.offload_share != 1):
        yield (f"offload={s.offload} with zero={s.zero} and offload_share={s.offload_share}: Accelerate offloads all that FSDP "
               "shards (zero=2 or 3)")
    if s.lora_rank:
        yield f"lora_rank={s.lora_rank}: Accelerate's configuration has no adapters; they are put in by code (peft)"
    if not laid_out(s, "tp-cp-dp-pp"):
        yield f"order={s.order}: Accelerate lays ranks out as tp-cp-dp, innermost first, and has no setting for it"


def _config(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    machines, gpus = hosts(plan)
    cpu = plan.question.cluster.accelerator.device == "cpu"
    kind = "FSDP" if _sharded(plan) else "NO" if s.world_size == 1 else "MULTI_CPU" if cpu else "MULTI_GPU"
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "mixed_precision": MIXED[s.precision],
        "num_machines": machines,
        "num_processes": machines * gpus,
        "use_cpu": cpu,
        "rdzv_backend": "static",
        "main_training_function": "main",
    }
    if s.precision == "fp8":
        config["fp8_config"] = {"backend": "AO"}
    if s.software.kernels == "fused":
        config["dynamo_config"] = {"dynamo_backend": "INDUCTOR"}
    if _sharded(plan):
        config["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": s.zero == 3,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_activation_checkpointing": s.recompute == "full",
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        } | ({"fsdp_offload_params": True} if s.offload == "optimizer" else {})
        config["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": int(s.replicas // s.shards),
            "parallelism_config_dp_shard_size": int(s.shards // s.cp),
            "parallelism_config_tp_size": int(s.tp),
            "parallelism_config_cp_size": int(s.cp),
        } | ({"parallelism_config_cp_comm_strategy": ROTATION[s.context]} if s.cp > 1 else {})
    return config


def _script(plan: Plan) -> str:
    s = plan.strategy
    machines, _ = hosts(plan)
    where = "" if machines == 1 else ' --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR" --main_process_port 29500'
    lines = [
        "#!/usr/bin/env bash",
        "# launch.sh SCRIPT [ARGUMENTS]: on every machine" + (" with NODE_RANK and MASTER_ADDR set" if where else ""),
        "set -euo pipefail",
        f'exec accelerate launch --config_file "$(dirname "$0")/{FILE}" '
        f'--gradient_accumulation_steps {s.num_microbatches}{where} "$@"',
    ]
    return "\n".join(lines) + "\n"


def _notes(plan: Plan) -> Iterator[str]:
    s = plan.strategy
    yield (f"your script's, as Accelerate's configuration holds none of it: the model ({plan.question.model.name}), "
           f"micro_batch={s.micro_batch} sequences of seq_len={s.seq_len} a data loader, the optimizer")
    yield f"num_microbatches={s.num_microbatches} stands in {SCRIPT}, as the configuration has no field for it"
    if s.tp > 1:
        yield f"your script's: tp={s.tp}, by from_pretrained(tp_plan='auto', device_mesh=...)"
    if _sharded(plan) and s.precision != "fp32" and s.software.reduce_bytes == 4:
        yield (f"software.reduce_bytes=4: Accelerate's FSDP reduces gradients in {s.dtype}, as it computes; your script can "
               "say otherwise")
    if s.precision == "fp8":
        yield "precision=fp8 is torchao's, with its default of one scale a tensor"
    yield from notes_of(plan, "your script")
