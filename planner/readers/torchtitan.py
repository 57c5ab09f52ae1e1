"""torchtitan's TOML -> `Reading`: names as in pytorch/torchtitan torchtitan/config/job_config.py, 2024 to 2025.

Later releases keep configurations in Python functions (config_registry); those are not run here.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

from planner.readers.reading import ADAM, TAKE_OUT, Reading, Stated, flattened
from profiles.families import load_model
from profiles.files import BadInput
from profiles.model import ModelSpec
from simulator.software import load_software

SOFTWARE = "torchtitan-2025"
MODELS = {
    "llama3": {"8B": "llama-3.1-8b", "70B": "llama-3.1-70b", "405B": "llama-3.1-405b"},
    "llama4": {"17bx16e": "llama-4-scout", "17bx128e": "llama-4-maverick"},
    "deepseek_v3": {"671B": "deepseek-v3"},
    "qwen3": {"8B": "qwen3-8b", "32B": "qwen3-32b", "30B-A3B": "qwen3-30b-a3b", "235B-A22B": "qwen3-235b-a22b"},
    "gpt_oss": {"20b": "gpt-oss-20b", "120b": "gpt-oss-120b"},
}
"""torchtitan's model and flavor -> the catalogue's model of the same shapes."""
SCHEDULES = {"1F1B": "1F1B", "GPipe": "GPipe", "Interleaved1F1B": "Interleaved1F1B", "LoopedBFS": "LoopedBFS",
             "InterleavedZeroBubble": "InterleavedZeroBubble", "ZBVZeroBubble": "ZBV", "DualPipeV": "DualPipeV"}
LOOPED_CHUNKS = 2
"""Stages of a rank where a looped schedule states no number (torchtitan/distributed/pipeline_parallel.py)."""

UNPRICED = {
    "activation_offload.*": "activations offloaded to the host are not priced",
    "activation_checkpoint.enable_cpu_offload": "is not priced",
    "optimizer.early_step_in_backward": "an optimizer step inside backward is not priced",
    "parallelism.pipeline_parallel_schedule_csv": "give the table to `headway simulate --schedule`",
    "parallelism.module_fqns_per_model_part": "stages of one's own are not read; give --layers",
    "parallelism.pipeline_parallel_split_points": "stages of one's own are not read; give --layers",
    "fault_tolerance.semi_sync_method": "steps that are not summed each time are not priced",
    "float8.emulate": "is no training",
    "activation_checkpoint.memory_budget": "a memory budget of the compiler is not priced", "lora.*": "give --lora-rank",
}
"""Fields that change memory or time, and why a run with them is refused."""
IGNORED = (
    "job.*", "profiling.*", "metrics.*", "lr_scheduler.*", "checkpoint.*", "comm.*", "memory_estimation.*", "validation.*",
    "experimental.*", "fault_tolerance.*", "debug.*", "optimizer.*", "model.*", "training.max_norm", "training.steps",
    "training.dataset*", "training.gc_*", "training.seed", "training.deterministic", "training.data*",
    "training.tensor_parallel*", "*.filter_fqns", "*precompute_float8_dynamic_scale_for_fsdp",
    "*force_recompute_fp8_weight_in_bwd", "*recipe_name", "*moe_fqns_prototype", "*fqns", "mx.*", "compile.*",
    "parallelism.enable_compiled_autograd", "parallelism.*_degree", "parallelism.pipeline_parallel_*",
    "parallelism.disable_loss_parallel", "activation_checkpoint.*", "float8.enable_float8_linear",
    "parallelism.expert_parallel_*", "quantize.*",
)
"""Globs of fields that change neither memory nor the time of a step, or do so only beside others that are set."""


def read(text: str, origin: str, with_model: bool = True) -> Reading:
    """Return the run that a TOML file states."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise BadInput(f"{origin}: not TOML: {e}") from None
    if not {"training", "parallelism", "model"} & set(data):
        raise BadInput(f"{origin}: no configuration of torchtitan; it has tables [model], [training] and [parallelism]")
    stated = Stated(flattened(data), origin)
    notes: list[str] = []
    stated.refuse(UNPRICED, TAKE_OUT)
    model = _model(stated) if with_model else None
    precision, changes = _precision(stated)
    options, copies = _degrees(stated)
    options |= _stages(stated, options["pp"], model, notes) | _recompute(stated, notes)
    if stated.flag("training.enable_cpu_offload"):
        options["offload"] = "optimizer"
    options |= {"precision": precision, "seq_len": stated.whole("training.seq_len", 2048, 1)}
    changes |= _compiled(stated)
    if stated.flag("parallelism.enable_async_tensor_parallel"):
        changes["tp_overlap"] = True
    batch, num_microbatches = _batch(stated, options["pp"])
    kind = stated.text("optimizer.name", "AdamW")
    if kind not in ("Adam", "AdamW"):
        raise stated.fault("optimizer.name", f"{kind} {ADAM}")
    ignored, unknown = stated.rest(IGNORED)
    return Reading(
        framework="torchtitan", software=SOFTWARE, model=model, options=options | batch, changes=changes,
        num_microbatches=num_microbatches, copies=copies, notes=tuple(notes), ignored=_brief(ignored), unknown=unknown,
    )


def _brief(ignored: tuple[str, ...]) -> tuple[str, ...]:
    """Return ignored fields by table where it holds more than three of them."""
    tables = [name.partition(".")[0] for name in ignored]
    shown = [f"[{t}]" if tables.count(t) > 3 else name for t, name in zip(tables, ignored, strict=True)]
    return tuple(dict.fromkeys(shown))


def _model(stated: Stated) -> ModelSpec:
    name, flavor = stated.text("model.name", "llama3"), stated.text("model.flavor", "debugmodel")
    known = MODELS.get(name, {})
    # flavors that differ in the attention kernel only: 8B_flex, 8B_varlen
    catalogued = known.get(flavor) or known.get(flavor.rpartition("_")[0])
    if catalogued is None:
        every = "; ".join(f"{n} {', '.join(f)}" for n, f in MODELS.items())
        raise stated.fault("model", f"{name} {flavor} is not in the catalogue ({every}); name the model "
                           "in front of the cluster")
    # torchtitan trains no layers for further tokens
    return replace(load_model(catalogued), mtp_layers=0)


def _precision(stated: Stated) -> tuple[str, dict[str, Any]]:
    known = {"bfloat16": 2.0, "float32": 4.0}
    whole = stated.choice("training.dtype", known, "float32")
    param = stated.choice("training.mixed_precision_param", known, "bfloat16")
    reduce = stated.choice("training.mixed_precision_reduce", known, "float32")
    changes: dict[str, Any] = {} if reduce == "float32" else {"reduce_bytes": 2.0}
    if whole == "bfloat16":
        # weights, gradients and both moments are as wide as the model was made
        changes |= {"master_bytes": 0.0, "grad_bytes": 2.0, "moment_bytes": 4.0}
    converters = stated.take("model.converters", [])
    names = converters.split(",") if isinstance(converters, str) else list(converters)
    gathers = [stated.flag(name) for name in list(stated.left) if name.endswith("enable_fsdp_float8_all_gather")]
    narrow = "mxfp8" if any("mx" in n for n in names) else "fp8" if any("float8" in n for n in names) else ""
    if narrow == "fp8" and any(gathers):
        changes["gather_bytes"] = 1.0
    return narrow or ("bf16" if param == "bfloat16" or whole == "bfloat16" else "fp32"), changes


def _degrees(stated: Stated) -> tuple[dict[str, Any], int]:
    """Return the degrees, and how many copies of the sharded states there are."""
    def degree(name: str, default: int = 1) -> int:
        return stated.whole(f"parallelism.{name}_degree", default, -1)

    copies, shard = degree("data_parallel_replicate"), degree("data_parallel_shard", -1)
    # in [training] until 2025
    copies = max(1, stated.whole("training.data_parallel_replicate_degree", copies, -1))
    shard = stated.whole("training.data_parallel_shard_degree", shard, -1)
    tp = stated.whole("training.tensor_parallel_degree", degree("tensor_parallel"), 1)
    pp, cp = degree("pipeline_parallel"), degree("context_parallel")
    reshards = stated.choice("parallelism.fsdp_reshard_after_forward", ("default", "always", "never"), "default")
    # by default weights stay gathered between micro-batches of a pipeline
    kept = reshards == "never" or (reshards == "default" and pp > 1)
    rotates = stated.choice("parallelism.context_parallel_rotate_method", ("allgather", "alltoall"), "allgather")
    options: dict[str, Any] = {
        "tp": tp, "pp": pp, "cp": cp, "ep": degree("expert_parallel"), "etp": degree("expert_tensor_parallel"),
        "zero": 2 if kept else 3, "context": "all_gather" if rotates == "allgather" else "ring", "sequence_parallel": tp > 1,
    }
    if shard > 0:
        options["dp"] = copies * shard
    if shard == 1 and cp == 1:
        options["zero"] = 0
        return options, 1
    return options, copies


def _stages(stated: Stated, pp: int, model: ModelSpec | None, notes: list[str]) -> dict[str, Any]:
    name = stated.choice("parallelism.pipeline_parallel_schedule", SCHEDULES, "1F1B")
    each = stated.whole("parallelism.pipeline_parallel_layers_per_stage")
    if pp == 1:
        return {}
    looped = name not in ("1F1B", "GPipe")
    chunks = LOOPED_CHUNKS if looped else 1
    if each and model:
        # embedding and head count as a layer each
        stages = -(-(model.num_layers + 2) // each)
        if stages % pp:
            raise stated.fault("parallelism.pipeline_parallel_layers_per_stage",
                               f"{each} layers a stage are {stages} stages, which pp {pp} does not divide")
        chunks = stages // pp
    elif looped:
        notes.append(f"{LOOPED_CHUNKS} stages a rank: what torchtitan takes for {name} where no number is stated")
    return {"schedule": SCHEDULES[name], "chunks": chunks}


def _recompute(stated: Stated, notes: list[str]) -> dict[str, Any]:
    name = "activation_checkpoint.mode"
    if name not in stated.left:
        notes.append(f"{name} is not stated: selective, each second layer, as torchtitan's default")
    mode = stated.choice(name, ("none", "selective", "full"), "selective")
    option = stated.text("activation_checkpoint.selective_ac_option", "2")
    if mode != "selective" or option == "op":
        return {"recompute": mode}
    if not option.isdigit() or int(option) < 1:
        raise stated.fault("activation_checkpoint.selective_ac_option", f"must be 'op' or a number of layers (is {option!r})")
    return {"recompute": "full", "recompute_share": 1 / int(option)}


def _compiled(stated: Stated) -> dict[str, Any]:
    """Return kernels, and the bytes of a logit: model and loss are compiled apart."""
    parts = stated.take("compile.components", ["model", "loss"])
    on = stated.flag("training.compile") or stated.flag("compile.enable")
    if not on or "model" not in parts:
        least = load_software(SOFTWARE).compiled_logit_bytes
        return {"kernels": "eager"} | ({"logit_bytes": least, "parallel_logit_bytes": least} if on and "loss" in parts else {})
    return {"kernels": "fused"} | ({} if "loss" in parts else {"compiled_logit_bytes": 0.0})


def _batch(stated: Stated, pp: int) -> tuple[dict[str, int], int]:
    """Return micro-batch and global batch, and the micro-batches of a rank: a pipeline cuts a rank's batch into them."""
    local = stated.whole("training.local_batch_size", stated.whole("training.batch_size", 8, 1), 1)
    size = stated.whole("parallelism.pipeline_parallel_microbatch_size", 1, 1)
    whole = stated.whole("training.global_batch_size", -1, -1)
    micro = size if pp > 1 else local
    if local % micro:
        raise stated.fault("training.local_batch_size", f"{local} sequences do not divide into micro-batches of {micro}")
    if whole > 0:
        return {"micro_batch": micro, "global_batch": whole}, 0
    return {"micro_batch": micro}, local // micro
