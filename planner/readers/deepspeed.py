"""DeepSpeed's JSON -> `Reading`: names and defaults as in deepspeed/runtime/config.py and zero/config.py.

The file says nothing of the model, nor whether its layers recompute: MODEL and --recompute say that.
"""

from __future__ import annotations

from typing import Any

from planner.readers.reading import ADAM, TAKE_OUT, Reading, Stated, flattened
from profiles import files
from profiles.files import BadInput

SOFTWARE = "deepspeed-2022"
AUTO = "auto"
SIZES = {"train_batch_size": "global_batch", "train_micro_batch_size_per_gpu": "micro_batch"}
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
NARROW = "values quantized on the wire are not priced"
UNPRICED = {
    "zero_optimization.zero_quantized_*": NARROW, "zero_optimization.zeropp_*": NARROW,
    "zero_optimization.zero_hpz_partition_size": "a second copy of the weights in a node (hpZ) is not priced",
    "zero_optimization.mics_shard_size": "give --shard-group for MiCS",
    "activation_checkpointing.cpu_checkpointing": "activations offloaded to the host are not priced",
    "activation_checkpointing.partition_activations": "activations spread over tp ranks are not priced",
    "compression_training.*": "compression is not priced", "sparse_attention.*": "sparse attention is not priced",
    "curriculum_learning.*": "a changing sequence length is not priced", "data_efficiency.*": "a changing batch is not priced",
    "progressive_layer_drop.*": "dropped layers are not priced", "quantize_training.*": "is not priced", "aio.*": NARROW,
    "hybrid_engine.*": "reinforcement learning is not priced", "fp16.fp16_master_weights_and_grads": "is not priced",
}
"""Fields that change memory or time, and why a run with them is refused."""
IGNORED = (
    "optimizer.params.*", "optimizer.legacy_fusion", "scheduler.*", "gradient_clipping", "steps_per_print",
    "wall_clock_breakdown", "dump_state", "fp16.*", "bf16.*", "amp.*", "prescale_gradients", "gradient_predivide_factor",
    "zero_allow_*", "tensorboard.*", "csv_monitor.*", "wandb.*", "comet.*", "comms_logger.*", "flops_profiler.*",
    "checkpoint.*", "elasticity.*", "autotuning.*", "zero_optimization.allgather_*", "zero_optimization.reduce_scatter",
    "zero_optimization.contiguous_gradients", "zero_optimization.round_robin_gradients", "zero_optimization.sub_group_size",
    "zero_optimization.stage3_*", "zero_optimization.ignore_unused_parameters", "zero_optimization.load_from_fp32_weights",
    "zero_optimization.legacy_stage1", "zero_optimization.offload_*", "zero_optimization.param_persistence_threshold",
    "zero_optimization.memory_efficient_linear", "zero_optimization.reduce_bucket_size",
    "zero_optimization.elastic_checkpoint", "zero_optimization.cpu_offload*", "activation_checkpointing.*", "data_types.*",
    "communication_data_type", "disable_allgather", "sparse_gradients", "seed", "zero_force_ds_cpu_optimizer",
    "zero_optimization.gather_16bit_weights_on_model_save", "nebula.*", "fp32_allreduce", "compile.*",
    "gradient_accumulation_steps", "timers.*", "memory_breakdown", "data_sampling.*", "graph_harvesting",
    "use_data_before_expert*",
)
"""Globs of fields that change neither memory nor time, or do so only beside others that are set."""


def read(text: str, origin: str, with_model: bool = True) -> Reading:
    """Return the run that a JSON file states."""
    data = files.parse_mapping(text, origin)
    if "model_type" in data or not {"zero_optimization", *SIZES, "gradient_accumulation_steps", "bf16", "fp16"} & set(data):
        raise BadInput(f"{origin}: no configuration of DeepSpeed; it has zero_optimization and {', '.join(SIZES)}")
    if with_model:
        raise BadInput(f"{origin}: DeepSpeed's file does not say which model; name it in front of the cluster")
    flat = flattened(data)
    open_ends = tuple(name for name, value in flat.items() if value == AUTO)
    stated = Stated({name: value for name, value in flat.items() if value != AUTO}, origin)
    stated.refuse(UNPRICED, TAKE_OUT)
    options: dict[str, Any] = {option: stated.whole(name, least=1) for name, option in SIZES.items() if name in stated.left}
    steps = stated.whole("gradient_accumulation_steps", 0 if len(options) == 2 else 1, 0)
    if "gradient_accumulation_steps" in open_ends:
        steps = 0
    zero = stated.whole("zero_optimization.stage")
    if zero > 3:
        raise stated.fault("zero_optimization.stage", f"must be 0 to 3 (is {zero})")
    options |= {"zero": zero, "precision": _precision(stated, open_ends)} | _offload(stated, zero)
    tp = stated.whole("tensor_parallel.autotp_size", 1, 0)
    if tp > 1:
        options |= {"tp": tp, "sequence_parallel": False}
    overlaps = stated.flag("zero_optimization.overlap_comm", zero == 3)
    notes = ["whether layers recompute is for the model's code to say, not for this file: give --recompute",
             "attention and dropout are those of DeepSpeed of 2022 with a plain model; --software says otherwise"]
    kind = stated.text("optimizer.type", "AdamW")
    if kind.lower() not in ("adam", "adamw", "fusedadam"):
        raise stated.fault("optimizer.type", f"{kind} {ADAM}")
    changes = {"grad_reduce": overlaps, "param_gather": zero == 3} | _types(stated) | _buckets(stated, zero, overlaps)
    ignored, unknown = stated.rest(IGNORED)
    if open_ends:
        notes.append(f"left open as 'auto': {', '.join(n for n in open_ends)}")
    return Reading(framework="DeepSpeed", software=SOFTWARE, options=options, changes=changes, num_microbatches=steps,
                   notes=tuple(notes), ignored=ignored, unknown=unknown)


def _offload(stated: Stated, zero: int) -> dict[str, Any]:
    """Return the optimizer's offload; DeepSpeed shares it between host and device at stage 3 only (ZeRO-Offload++)."""
    devices = {name: stated.text(f"zero_optimization.{name}.device", "none").lower()
               for name in ("offload_optimizer", "offload_param")}
    if devices["offload_param"] != "none":
        raise stated.fault("zero_optimization.offload_param.device",
                           "weights offloaded to the host are not priced; take offload_param out to price the run without")
    if devices["offload_optimizer"] not in ("none", "cpu"):
        raise stated.fault("zero_optimization.offload_optimizer.device", f"offload to {devices['offload_optimizer']} is not "
                           "priced; take offload_optimizer out to price the run without")
    for name in ("cpu_offload_params", "cpu_offload_param"):
        if stated.flag(f"zero_optimization.{name}"):
            raise stated.fault(f"zero_optimization.{name}", f"weights offloaded to the host are not priced; {TAKE_OUT}")
    share = stated.number("zero_optimization.offload_optimizer.ratio", 1.0, 0.0)
    if not stated.flag("zero_optimization.cpu_offload", devices["offload_optimizer"] == "cpu") or share == 0:
        return {}
    return {"offload": "optimizer"} | ({"offload_share": share} if zero == 3 else {})


def _precision(stated: Stated, open_ends: tuple[str, ...]) -> str:
    brain = stated.flag("bf16.enabled", "bf16.enabled" in open_ends) or stated.flag("bfloat16.enabled")
    half = stated.flag("fp16.enabled")
    if brain and half:
        raise stated.fault("fp16.enabled", "bf16 is enabled too; one of them is")
    return "fp16" if half else "bf16" if brain else "fp32"


def _types(stated: Stated) -> dict[str, Any]:
    found = {}
    for field, name in (("grad_bytes", "data_types.grad_accum_dtype"), ("reduce_bytes", "communication_data_type")):
        kind = stated.take(name)
        if kind is not None and kind not in BYTES:
            raise stated.fault(name, f"must be one of {', '.join(BYTES)} (is {kind!r})")
        if kind:
            found[field] = BYTES[kind]
    return found


def _buckets(stated: Stated, zero: int, overlaps: bool) -> dict[str, Any]:
    """Return the flat buffers in which ZeRO-1 and 2 gather gradients, two where sums run beside backward
    (deepspeed/runtime/zero/stage_1_and_2.py)."""
    name = "zero_optimization.reduce_bucket_size"
    if zero not in (1, 2) or name not in stated.left:
        return {}
    return {"bucket_bytes": 2.0 * stated.number(name, least=0.0) * (2 if overlaps else 1)}
