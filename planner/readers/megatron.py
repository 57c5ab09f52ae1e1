"""Megatron-LM's arguments -> `Reading`: a launch script, a list of arguments, or a YAML of them (Megatron-Bridge too).

Names and defaults as in NVIDIA/Megatron-LM megatron/training/arguments.py and core/transformer/transformer_config.py
(2026-08).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planner.readers.megatron_model import MODEL_NAMES, model_of
from planner.readers.reading import TAKE_OUT, Reading, Stated, flattened
from planner.readers.shell import launch_of
from profiles import files
from profiles.files import BadInput
from simulator.software import REPEATED

SOFTWARE = "megatron-lm-2025"
"""The generation of the catalogue whose memory and overlap the arguments then change."""

UNPRICED = {
    "cpu-offloading*": "activations offloaded to the host are not priced",
    "fine-grained-activation-offloading": "activations offloaded to the host are not priced",
    "distribute-saved-activations": "activations spread over tp ranks are not priced",
    "pipeline-model-parallel-layout": "a layout of stages by letters is not read; give --layers",
    "hierarchical-context-parallel-sizes": "context parallelism in two levels is not priced",
    "fp8-dot-product-attention": "attention in fp8 is not priced", "fp8-multi-head-attention": "attention in fp8 is not priced",
    "perform-rl-step": "reinforcement learning is not priced", "kitchen-*": "kitchen's number formats are not priced",
    "use-legacy-models": "models from before Megatron-Core are not priced",
}
"""Arguments that change memory or time, and why a run with them is refused."""

IGNORED = (
    "*lr", "lr-*", "min-lr", "weight-decay*", "start-weight-decay", "end-weight-decay", "adam-*", "clip-grad", "init-method*",
    "seed", "*log*", "tensorboard-*", "wandb-*", "save*", "load*", "*ckpt*", "no-load-*", "no-save-*", "eval-*", "test-*",
    "data-*", "*-data-path", "split", "tokenizer-*", "vocab-file", "merge-file", "vocab-extra-ids", "train-iters",
    "train-samples", "exit-*", "manual-gc*", "distributed-*", "rotary-*", "use-rope-scaling", "rope-*", "no-rope-fusion",
    "yarn-*", "mscale*", "use-mcore-models", "mock-data", "num-workers", "num-dataset-builder-threads", "no-mmap-bin-files",
    "no-create-attention-mask-in-dataloader", "dataloader-*", "eod-mask-loss", "reset-*", "profile*", "use-pytorch-profiler",
    "record-memory-history", "timing-*", "override-opt*", "use-checkpoint-*", "finetune", "async-save",
    "auto-detect-ckpt-format", "apply-layernorm-1p", "norm-epsilon", "layernorm-epsilon", "no-masked-softmax-fusion",
    "no-bias-*-fusion", "attention-softmax-in-fp32", "loss-scale*", "initial-loss-scale", "min-loss-scale", "hysteresis",
    "fp8-amax-*", "fp8-margin", "fp8-interval", "moe-router-*", "moe-aux-loss-coeff", "moe-z-loss-coeff",
    "moe-input-jitter-eps", "moe-grouped-gemm", "moe-per-layer-logging", "moe-permute-fusion", "moe-token-drop-policy",
    "no-check-for-nan*", "check-for-*", "ddp-average-in-collective", "ddp-bucket-size", "ddp-num-buckets", "ddp-pad-*",
    "empty-unused-memory-level", "calculate-per-token-loss", "no-position-embedding", "tiktoken-*", "rampup-batch-size",
    "node-rank", "master-*", "enable-ft-*", "ft-*", "inprocess-*", "nccl-*", "use-tp-pp-dp-mapping", "rerun-*",
    "result-rejected-*", "straggler-*", "train-sync-interval", "mid-level-dataset-surplus", "bf16", "transformer-impl",
    "local-rank", "use-distributed-optimizer", "multiprocessing-*", "mtp-loss-*", "make-vocab-size-divisible-by",
    "window-attn-*", "decoder-seq-length", "te-rng-tracker", "cuda-graph-warmup-steps", "disable-msc", "enable-msc",
    "no-one-logger", "one-logger-*", "pretrained-checkpoint", "init-model-with-meta-device", "use-nccl-ub",
    "fsdp-manual-registration", "optimizer-state-offload-chunk-size-mb", "use-torch-optimizer-for-cpu-offload",
    "pin-cpu-*", "no-pin-cpu-*",
)
"""Globs of arguments that change neither memory nor the time of a step, beyond what Headway can tell."""

ALIASES = {
    "gated-linear-unit": "swiglu", "num-moe-experts": "num-experts", "moe-num-experts": "num-experts",
    "virtual-pipeline-model-parallel-size": "num-virtual-stages-per-pipeline-rank",
}
"""Names of Megatron-Core's configuration classes -> the command line's."""
TURNED = {"add-bias-linear": "disable-bias-linear",
          "share-embeddings-and-output-weights": "untie-embeddings-and-output-weights",
          "overlap-p2p-comm": "no-overlap-p2p-communication", "gradient-accumulation-fusion": "no-gradient-accumulation-fusion"}
"""Switches of those classes that say the opposite of one of the command line."""
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
FP8 = {"tensorwise": "fp8", "delayed": "fp8", "blockwise": "fp8-block", "mxfp8": "mxfp8"}
SHARDED = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}
CONTEXT = {"p2p": "ring", "all_gather": "all_gather", "a2a": "ulysses"}


def read(text: str, origin: str, with_model: bool = True) -> Reading:
    """Return the run that a script, a list of arguments or a YAML file states."""
    notes: list[str] = []
    if origin.endswith((".yaml", ".yml")):
        values, launcher = _from_mapping(files.parse_mapping(text, origin)), {}
    else:
        launch = launch_of(text)
        values, launcher, notes = _arguments(launch.words), _arguments(launch.before), list(launch.notes)
    if not {"tensor-model-parallel-size", "micro-batch-size", "num-layers", "seq-length"} & set(values):
        raise BadInput(f"{origin}: no arguments of Megatron-LM found, like --tensor-model-parallel-size 8 --micro-batch-size 1")
    stated = Stated(values, origin, "--")
    stated.refuse(UNPRICED, TAKE_OUT)
    options = _degrees(stated)
    num_layers = stated.whole("num-layers")
    options |= _stages(stated, options["pp"], num_layers)
    options |= _batch(stated) | _recompute(stated, options, num_layers, notes)
    options["seq_len"] = stated.whole("seq-length") or stated.whole("encoder-seq-length")
    if not options["seq_len"]:
        raise stated.fault("seq-length", "is missing")
    options["precision"] = _precision(stated)
    offload, copies_beside = _offload(stated)
    options |= offload
    changes = _changes(stated, options) | copies_beside
    stated.left |= {"num-layers": num_layers, "seq-length": options["seq_len"]}
    source = f"arguments in {Path(origin).name}"
    model = model_of(stated, Path(origin).stem, options["tp"], source) if with_model else None
    stated.take("num-layers"), stated.take("seq-length"), stated.take("bf16")
    if stated.take("rampup-batch-size") is not None:
        notes.append("--rampup-batch-size: the step is priced at the full global batch")
    gpus = [Stated(launcher, origin, "--").whole(n) for n in ("nproc-per-node", "nnodes")] if launcher else [0]
    copies = stated.whole("num-distributed-optimizer-instances", 1, 1)
    ignored, unknown = stated.rest(IGNORED if with_model else (*IGNORED, *MODEL_NAMES))
    return Reading(
        framework="Megatron-LM", software=SOFTWARE, model=model, options=options, changes=changes, copies=copies,
        num_gpus=gpus[0] * (gpus[1] or 1) if len(gpus) == 2 else 0, notes=tuple(notes),
        ignored=ignored, unknown=unknown,
    )


def _arguments(words: Sequence[str]) -> dict[str, Any]:
    """Return arguments by name, without dashes in front and with dashes inside: the words after each, or True."""
    found: dict[str, Any] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            name = name.replace("_", "-")
            found[name] = value or True
        elif name:
            found[name] = word if found[name] is True else f"{found[name]} {word}"
    return found


def _from_mapping(data: dict[str, Any]) -> dict[str, Any]:
    """Return arguments out of a YAML: under MODEL_ARGS, with dashes, or in the words of the configuration classes."""
    flat = flattened(data.get("MODEL_ARGS", data) or {})
    found: dict[str, Any] = {}
    for path, value in flat.items():
        name = path.rpartition(".")[2].lstrip("-").replace("_", "-")
        name = ALIASES.get(name, name)
        if name in TURNED and isinstance(value, bool):
            name, value = TURNED[name], not value
        if value is not None and value is not False:
            found[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return found


def _degrees(stated: Stated) -> dict[str, Any]:
    tp = stated.whole("tensor-model-parallel-size", 1, 1)
    experts = bool(stated.left.get("num-experts")) or bool(stated.left.get("expert-model-parallel-size"))
    etp = stated.whole("expert-tensor-parallel-size", tp if experts else 1, 1)
    stages = stated.flag("use-tp-pp-dp-mapping")
    sharded = stated.choice("data-parallel-sharding-strategy", SHARDED, "no_shard")
    own_fsdp = [stated.flag(name) for name in ("use-megatron-fsdp", "use-custom-fsdp")]
    distributed = stated.flag("use-distributed-optimizer")
    zero = 3 if stated.flag("use-torch-fsdp2") else SHARDED[sharded] if any(own_fsdp) else int(distributed)
    kind = stated.choice("cp-comm-type", CONTEXT, "p2p")
    options = {
        "tp": tp, "pp": stated.whole("pipeline-model-parallel-size", 1, 1), "cp": stated.whole("context-parallel-size", 1, 1),
        "ep": stated.whole("expert-model-parallel-size", 1, 1), "etp": etp, "zero": zero, "context": CONTEXT[kind],
        "sequence_parallel": stated.flag("sequence-parallel") and tp > 1,
    }
    return options | ({"order": "tp-cp-pp-dp"} if stages else {})


def _stages(stated: Stated, pp: int, num_layers: int) -> dict[str, Any]:
    """Return the chunks of a stage, and layers of its ends where they are others."""
    each = stated.whole("num-layers-per-virtual-pipeline-stage")
    chunks = stated.whole("num-virtual-stages-per-pipeline-rank", 1, 1)
    if each and pp > 1:
        if not num_layers or num_layers % (pp * each):
            raise stated.fault("num-layers-per-virtual-pipeline-stage", f"{each} x pp {pp} does not divide {num_layers} layers")
        chunks = num_layers // (pp * each)
    chunks = chunks if pp > 1 else 1
    found: dict[str, Any] = {"chunks": chunks, "schedule": "Interleaved1F1B" if chunks > 1 else "1F1B"}
    ends = [stated.whole(f"decoder-{end}-pipeline-num-layers") for end in ("first", "last")]
    if pp > 1 and any(ends):
        inner = pp - sum(bool(end) for end in ends)
        left = num_layers - sum(ends)
        if chunks > 1 or left < 0 or (left % inner if inner else left):
            raise stated.fault("decoder-first-pipeline-num-layers", f"{ends[0]} and {ends[1]} layers at the ends do not leave "
                               f"{inner} stages alike of {num_layers} layers; give --layers")
        middle = [str(left // inner)] * inner if inner else []
        found["layers"] = "-".join([*([str(ends[0])] if ends[0] else []), *middle, *([str(ends[1])] if ends[1] else [])])
    return found


def _batch(stated: Stated) -> dict[str, int]:
    found = {}
    for option, name in (("micro_batch", "micro-batch-size"), ("global_batch", "global-batch-size")):
        if name in stated.left:
            found[option] = stated.whole(name, least=1)
    return found


def _recompute(stated: Stated, options: dict[str, Any], num_layers: int, notes: list[str]) -> dict[str, Any]:
    kind = stated.choice("recompute-granularity", ("selective", "full"), "none")
    selective = [stated.flag(name) for name in ("recompute-activations", "checkpoint-activations")]
    method = stated.choice("recompute-method", ("uniform", "block"), "none")
    num = stated.whole("recompute-num-layers")
    if kind == "none":
        return {"recompute": "selective"} if any(selective) else {}
    if kind == "full" and method == "block" and num and num_layers:
        return {"recompute": "full", "recompute_share": min(1.0, num * options["pp"] * options["chunks"] / num_layers)}
    if kind == "full" and method == "uniform" and num > 1:
        notes.append(f"--recompute-num-layers {num}: priced as if each layer kept its input, not each {num}-th")
    return {"recompute": kind}


def _precision(stated: Stated) -> str:
    names = ("fp8-format", "fp8", "fp4-format", "fp4")
    narrow = {name: stated.text(name) for name in names}
    recipe = stated.text("fp8-recipe", "delayed")
    half, brain = stated.flag("fp16"), stated.flag("bf16")
    if narrow["fp4-format"] or narrow["fp4"]:
        return "nvfp4"
    if narrow["fp8-format"] or narrow["fp8"]:
        if recipe not in FP8:
            raise stated.fault("fp8-recipe", f"must be one of {', '.join(FP8)} (is {recipe!r})")
        return FP8[recipe]
    return "fp16" if half else "bf16" if brain else "fp32"


def _changes(stated: Stated, options: dict[str, Any]) -> dict[str, Any]:
    """Return what the arguments say otherwise than the catalogue's software."""
    low = options["precision"] != "fp32"
    wide = stated.flag("accumulate-allreduce-grads-in-fp32")
    narrow = stated.flag("grad-reduce-in-bf16") or (options["precision"] == "fp16" and not wide)
    overlaps = not stated.flag("no-overlap-p2p-communication") and options["chunks"] > 1
    flash = stated.flag("use-flash-attn") or stated.text("transformer-impl", "transformer_engine") != "local"
    backend = stated.text("attention-backend", "auto").removeprefix("AttnBackend.")
    drops = [stated.number(name, 0.1, 0.0) for name in ("attention-dropout", "hidden-dropout")]
    found: dict[str, Any] = {
        "grad_reduce": stated.flag("overlap-grad-reduce"), "param_gather": stated.flag("overlap-param-gather"),
        "tp_overlap": stated.flag("tp-comm-overlap"), "pp_overlap": overlaps, "dropout": any(drops),
        "ep_overlap": stated.flag("overlap-moe-expert-parallel-comm"),
        "sends_once": stated.text("moe-token-dispatcher-type", "alltoall") == "flex" or stated.flag("moe-enable-deepep"),
        "fused_accumulation": not stated.flag("no-gradient-accumulation-fusion"), "graphs": _graphs(stated),
    }
    if narrow and low:
        found |= {"grad_bytes": 2.0, "reduce_bytes": 2.0}
    if not flash or backend in ("unfused", "local"):
        found["attention"] = "unfused"
    if stated.flag("cross-entropy-loss-fusion"):
        # compiled: bf16 logits, their fp32 copy and its exponentials; Transformer Engine's works in place
        within = stated.text("cross-entropy-fusion-impl", "native") == "te"
        found |= {"fp32_logits": False} if within else {"logit_bytes": 10.0}
    if stated.flag("fp8-param-gather") or stated.flag("fp8-param"):
        found["gather_bytes"] = 1.0
    modules = stated.text("recompute-modules").replace(",", " ").split()
    if unknown := set(modules) - set(REPEATED):
        raise stated.fault("recompute-modules", f"{unknown.pop()!r} is not priced; known are {', '.join(REPEATED)}")
    if modules:
        found["repeats"] = ",".join(modules)
    return found | _optimizer(stated)


def _offload(stated: Stated) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is offloaded, and whether its copies run beside the update."""
    hosted, share = stated.flag("optimizer-cpu-offload"), stated.number("optimizer-offload-fraction", 1.0, 0.0)
    beside = {"offload_overlap": "parts"} if stated.flag("overlap-cpu-optimizer-d2h-h2d") else {}
    whole, chunked = stated.flag("offload-optimizer-states"), stated.flag("chunked-optimizer-state-offload")
    streamed = stated.number("optimizer-state-offload-fraction", 1.0, 0.0)
    if hosted and share:
        return {"offload": "optimizer", "offload_share": share}, beside
    if whole or (chunked and streamed):
        # chunks travel beside the update of others
        return {"offload": "states", "offload_share": streamed if chunked else 1.0}, (
            {"offload_overlap": "parts"} if chunked and not whole else {})
    return {}, {}


def _graphs(stated: Stated) -> str:
    kind = stated.text("cuda-graph-impl", "local" if stated.flag("enable-cuda-graph") else "none")
    scope = f"{stated.text('cuda-graph-scope')} {stated.text('cuda-graph-modules')}"
    if kind == "none":
        return "none"
    if kind == "full_iteration" or "full_iteration" in scope or not scope.strip():
        return "all"
    return "dense" if re.search(r"\b(attn|mlp|mamba|moe_preprocess)\b", scope) else "router"


def _optimizer(stated: Stated) -> dict[str, Any]:
    kind = stated.text("optimizer", "adam")
    if kind != "adam":
        raise stated.fault("optimizer", f"{kind} is not priced, only adam; take it out to price the run with that")
    types = {name: stated.choice(f"{name}-dtype", BYTES, "fp32") for name in
             ("main-grads", "main-params", "exp-avg", "exp-avg-sq")}
    if not stated.flag("use-precision-aware-optimizer"):
        return {}
    found = {"master_bytes": BYTES[types["main-params"]], "moment_bytes": BYTES[types["exp-avg"]] + BYTES[types["exp-avg-sq"]]}
    return found | ({"grad_bytes": 2.0} if types["main-grads"] != "fp32" else {})
