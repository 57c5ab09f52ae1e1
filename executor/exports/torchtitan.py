"""torchtitan: a Python module with a function that returns a whole `Trainer.Config`.

That is the configuration form of torchtitan 0.3.0 (PyPI; torchtitan/config/README.md of pytorch/torchtitan@b5bcd76c: TOML is
gone, flags are frozen and to be deleted). Fields read in 0.3.0: torchtitan/config/configs.py, trainer.py,
distributed/{parallel_dims,pipeline_parallel,activation_checkpoint}.py, components/{lora,quantization}.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from executor.exports.export import Export, comments, hosts, laid_out, notes_of, num_steps
from planner.plan import Plan
from planner.rules import num_experts
from profiles.model import Experts, FeedForward, LatentAttention, ModelSpec, SelfAttention
from simulator.layout import stage_parts
from simulator.schedules import SCHEDULES

FILE = "headway_torchtitan.py"
PRECISIONS = {"bf16": "bfloat16", "fp32": "float32", "mxfp8": "bfloat16", "nvfp4": "bfloat16"}
FLAVORS: dict[tuple[object, ...], tuple[str, str]] = {
    ("llama", 2048, 128256, 16, 32, 8, 64, 8192): ("llama3", "1B"),
    ("llama", 3072, 128256, 28, 24, 8, 128, 8192): ("llama3", "3B"),
    ("llama", 4096, 128256, 32, 32, 8, 128, 14336): ("llama3", "8B"),
    ("llama", 8192, 128256, 80, 64, 8, 128, 28672): ("llama3", "70B"),
    ("llama", 16384, 128256, 126, 128, 8, 128, 53248): ("llama3", "405B"),
    ("qwen3", 1024, 151936, 28, 16, 8, 128, 3072): ("qwen3", "0.6B"),
    ("qwen3", 2048, 151936, 28, 16, 8, 128, 6144): ("qwen3", "1.7B"),
    ("qwen3", 2560, 151936, 36, 32, 8, 128, 9728): ("qwen3", "4B"),
    ("qwen3", 4096, 151936, 36, 32, 8, 128, 12288): ("qwen3", "8B"),
    ("qwen3", 5120, 151936, 40, 40, 8, 128, 17408): ("qwen3", "14B"),
    ("qwen3", 5120, 151936, 64, 64, 8, 128, 25600): ("qwen3", "32B"),
    ("qwen3_moe", 2048, 151936, 48, 32, 4, 128, (128, 8, 768)): ("qwen3", "30B-A3B"),
    ("qwen3_moe", 4096, 151936, 94, 64, 4, 128, (128, 8, 1536)): ("qwen3", "235B-A22B"),
    ("deepseek_v3", 7168, 129280, 61, 128, 128, 192, (256, 8, 2048)): ("deepseek_v3", "671B"),
    ("gpt_oss", 2880, 201088, 24, 64, 8, 64, (32, 4, 2880)): ("gpt_oss", "20b"),
    ("gpt_oss", 2880, 201088, 36, 64, 8, 64, (128, 4, 2880)): ("gpt_oss", "120b"),
}
"""Dimensions of a model, as `dimensions` returns them -> where torchtitan has it: family, hidden, vocabulary, layers, heads,
key-value heads, head, feed-forward (of experts: number, how many a token takes, width), the blocks those of the last layer."""
LORA_TARGETS = {"attention": ["wqkv", "wo"], "all": ["wqkv", "wo", "w1", "w2", "w3"]}


def torchtitan(plan: Plan) -> Export:
    """Return torchtitan's configuration of a plan."""
    if refusals := tuple(_refusals(plan)):
        return Export(refusals=refusals)
    notes = tuple(_notes(plan))
    return Export(files={FILE: comments(notes) + "\n" + _module(plan)}, notes=notes)


def dimensions(model: ModelSpec) -> tuple[object, ...]:
    """Return what tells a model from others of its family."""
    layer = model.kinds[model.pattern[-1]]
    mixer, ffn = layer.mixer, layer.ffn
    heads = (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim) if isinstance(mixer, (SelfAttention, LatentAttention)) else ()
    width: Any = ffn.hidden if isinstance(ffn, FeedForward) else None
    if isinstance(ffn, Experts):
        width = (ffn.num_experts, ffn.top_k, ffn.hidden)
    return (model.family, model.hidden, model.vocab, model.num_layers, *heads, width)


def _refusals(plan: Plan) -> Iterator[str]:
    s, model = plan.strategy, plan.question.model
    if dimensions(model) not in FLAVORS:
        yield (f"model {model.name}: torchtitan 0.3.0 has no flavor with its dimensions; it has "
               + ", ".join(f"{family} {flavor}" for family, flavor in FLAVORS.values()))
    if s.zero == 1:
        yield ("zero=1: torchtitan shards gradients with the optimizer's states (zero=2) or weights too (zero=3); zero=0 "
               "replicates")
    if s.zero == 0 and s.cp > 1:
        yield f"zero=0 with cp={s.cp}: torchtitan shards weights over the ranks of cp always (zero=2 or 3)"
    if s.zero >= 2 and s.shards % s.cp:
        yield (f"shard_group={s.shard_group} with cp={s.cp}: torchtitan shards over whole context groups, so it must be a "
               "multiple of cp")
    if s.cp > 1 and s.context != "all_gather":
        yield (f"context={s.context} with cp={s.cp}: torchtitan gathers keys and values (context=all_gather) and has no other "
               "way")
    if s.etp > 1:
        yield f"etp={s.etp}: torchtitan does not cut an expert over ranks (etp=1)"
    if s.ep > 1 and s.zero == 0:
        yield f"ep={s.ep} with zero=0: torchtitan lays experts over the ranks of its shards (zero=2 or 3)"
    if s.ep > 1 and s.zero >= 2 and (s.shards * s.tp) % s.ep:
        yield (f"ep={s.ep}: torchtitan lays experts over the {s.shards * s.tp} ranks of shard_group and tp, which ep does not "
               "divide")
    if s.precision not in PRECISIONS:
        more = "; its fp8 scales rows" if s.precision.startswith("fp8") else ""
        yield f"precision={s.precision}: torchtitan 0.3.0 trains in {', '.join(PRECISIONS)}{more}"
    if s.precision == "nvfp4" and num_experts(model):
        yield "precision=nvfp4: torchtitan 0.3.0 converts linear layers to it, not experts"
    if s.offload not in ("none", "optimizer"):
        yield f"offload={s.offload}: FSDP2 offloads weights, gradients and the optimizer's states together (offload=optimizer)"
    if s.offload == "optimizer" and (s.zero < 2 or s.offload_share != 1):
        yield (f"offload={s.offload} with zero={s.zero} and offload_share={s.offload_share}: torchtitan offloads all that FSDP "
               "shards (zero=2 or 3)")
    yield from _layers(plan)
    if not laid_out(s, "tp-cp-dp-pp"):
        yield f"order={s.order}: torchtitan lays ranks out as tp-cp-dp-pp, innermost first, and has no setting for it"


def _layers(plan: Plan) -> Iterator[str]:
    s, model = plan.strategy, plan.question.model
    if s.recompute == "selective" and (s.software.selective != "alternate" or s.software.repeats):
        what = s.software.repeats or s.software.selective
        yield (f"recompute=selective of software {s.software.name} repeats {what}: torchtitan's repeats every other matmul and "
               "all "
               "that is cheap (a software with selective=alternate, like torchtitan-2025)")
    if s.recompute != "none" and s.recompute_share != 1:
        yield f"recompute_share={s.recompute_share}: torchtitan recomputes all layers or none"
    if s.splits_backward:
        for field, value, bad in (("zero", s.zero, s.zero == 3), ("recompute", s.recompute, s.recompute == "selective"),
                                  ("software.kernels", s.software.kernels, s.software.kernels == "fused")):
            if bad:
                yield (f"{field}={value} with schedule={s.schedule}, which splits backward: torch's pipelines cannot run a "
                       "layer's "
                       "backward in two parts there")
    if s.pp > 1 and model.mtp_layers:
        yield (f"pp={s.pp}: torchtitan's stages name no layers for multi-token prediction, of which {model.name} has "
               f"{model.mtp_layers}")
    if s.pp > 1 and model.tied_embeddings:
        yield f"pp={s.pp}: torchtitan ties no weights across stages, and {model.name} ties embedding and head"
    if s.lora_rank and (num_experts(model) or model.family not in ("llama", "qwen3")):
        yield (f"lora_rank={s.lora_rank}: torchtitan puts adapters beside the linear layers of dense models, and {model.name} "
               "is none")
    if s.software.graphs != "none" and s.pp > 1:
        yield f"software.graphs={s.software.graphs} with pp={s.pp}: torchtitan's CUDA graphs run without a pipeline only"
    if s.software.graphs in ("router", "dense"):
        yield f"software.graphs={s.software.graphs}: torchtitan captures whole passes (all) or nothing (none)"
    if s.software.reduce_bytes != 4:
        yield f"software.reduce_bytes={s.software.reduce_bytes:g}: torchtitan reduces gradients in fp32 (4 bytes) only"
    if s.software.tp_overlap and s.tp > 1 and s.software.kernels != "fused":
        yield (f"software.tp_overlap with software.kernels={s.software.kernels}: torchtitan pipelines these collectives in "
               "compiled layers only")


def _module(plan: Plan) -> str:
    s, model = plan.strategy, plan.question.model
    family, flavor = FLAVORS[dimensions(model)]
    imports = [
        "from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss",
        "from torchtitan.components.optimizer import default_adamw",
        "from torchtitan.config import CompileConfig, ParallelismConfig, TrainingConfig",
        "from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader",
        "from torchtitan.models.common.config_utils import decoder_vocab_size",
        f"from torchtitan.models.{family} import model_registry",
        "from torchtitan.trainer import Trainer",
    ]
    checkpoint = {"none": "None", "full": "FullAC.Config()", "selective": "SelectiveAC.Config()"}[s.recompute]
    if s.recompute != "none":
        imports.append(f"from torchtitan.distributed.activation_checkpoint import {checkpoint.split('.')[0]}")
    converters, from_where = _converters(plan)
    imports += from_where
    arguments = {"converters": f"[{', '.join(converters)}]"} if converters else {}
    if model.mtp_layers:
        arguments["num_mtp_layers"] = repr(model.mtp_layers)
    given = "".join(f", {name}={value}" for name, value in arguments.items())
    return "\n".join([
        *sorted(imports), "", "", "def train() -> Trainer.Config:",
        f"    model_spec = model_registry({flavor!r}{given})",
        "    return Trainer.Config(",
        "        model_spec=model_spec,",
        "        loss=ChunkedLossWrapper.Config(",
        "            loss_fn=CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(model_spec)),",
        "        ),",
        "        optimizer=default_adamw(),",
        "        dataloader=HuggingFaceTextDataLoader.Config(),",
        *_call("training", "TrainingConfig", _training(plan)),
        *_call("parallelism", "ParallelismConfig", _parallelism(plan)),
        f"        activation_checkpoint={checkpoint},",
        *_call("compile", "CompileConfig", {
            "enable": s.software.kernels == "fused",
            "enable_async_tensor_parallel": bool(s.software.tp_overlap and s.tp > 1),
        }),
        "    )", "",
    ])


def _call(field: str, name: str, arguments: dict[str, Any]) -> list[str]:
    return [f"        {field}={name}(", *(f"            {k}={v!r}," for k, v in arguments.items()), "        ),"]


def _training(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    return {
        "local_batch_size": int(s.micro_batch * (s.num_microbatches if s.pp > 1 else 1)),
        "global_batch_size": int(s.global_batch),
        "seq_len": s.seq_len,
        "steps": num_steps(plan),
        "mixed_precision_param": PRECISIONS[s.precision],
        "disable_cuda_graphs": s.software.graphs == "none",
    } | ({"enable_cpu_offload": True} if s.offload == "optimizer" else {})


def _parallelism(plan: Plan) -> dict[str, Any]:
    s = plan.strategy
    shard = int(s.shards // s.cp) if s.zero >= 2 else 1
    degrees: dict[str, Any] = {
        "data_parallel_replicate_degree": int(s.dp // shard),
        "data_parallel_shard_degree": shard,
        "fsdp_reshard_after_forward": "always" if s.zero == 3 else "never",
        "tensor_parallel_degree": int(s.tp),
        "enable_sequence_parallel": bool(s.sequence_parallel),
        "context_parallel_degree": int(s.cp),
        "expert_parallel_degree": int(s.ep),
        "pipeline_parallel_degree": int(s.pp),
    }
    if s.pp > 1:
        degrees |= {
            "pipeline_parallel_schedule": SCHEDULES[s.schedule].torch_class.removeprefix("Schedule"),
            "pipeline_parallel_microbatch_size": int(s.micro_batch),
            "module_fqns_per_model_part": stages(plan),
        }
    return degrees


def stages(plan: Plan) -> list[list[str]]:
    """Return torchtitan's names of the modules of each stage, in the order of the model."""
    s, model = plan.strategy, plan.question.model
    result, begin = [], 0
    for parts in stage_parts(model, int(s.pp), int(s.chunks), s.split):
        num = sum(times for part, times in parts if part not in ("embedding", "head"))
        names = [f"layers.{i}" for i in range(begin, begin + num)]
        if ("embedding", 1) in parts:
            names.insert(0, "tok_embeddings")
        if ("head", 1) in parts:
            names += ["norm", "lm_head"]
        result.append(names)
        begin += num
    return result


def _converters(plan: Plan) -> tuple[list[str], list[str]]:
    """Return the converters of the model's layers, and where they are imported from."""
    s = plan.strategy
    compiled = f"model_compile_enabled={s.software.kernels == 'fused'}"
    calls = []
    if s.precision in ("mxfp8", "nvfp4"):
        calls.append(f"{s.precision.upper()}LinearConverter.Config(fqns=['layers'], {compiled})")
        if num_experts(plan.question.model):
            calls.append(f"{s.precision.upper()}GroupedExpertsConverter.Config({compiled})")
    names = ", ".join(call.split(".")[0] for call in calls)
    imports = [f"from torchtitan.components.quantization import {names}"] if names else []
    if s.lora_rank:
        calls.append(f"LoRAConverter.Config(rank={s.lora_rank}, target_modules={LORA_TARGETS[s.lora_targets]!r})")
        imports.append("from torchtitan.components.lora import LoRAConverter")
    return calls, imports


def _notes(plan: Plan) -> Iterator[str]:
    s = plan.strategy
    machines, gpus = hosts(plan)
    where = f"--nnodes {machines} --node-rank $NODE_RANK --master-addr $MASTER_ADDR " if machines > 1 else ""
    yield (f"torchtitan 0.3.0; start it where this file lies: torchrun {where}--nproc-per-node {gpus} -m torchtitan.train "
           f"--module {FILE.removesuffix('.py')} --config train")
    family, flavor = FLAVORS[dimensions(plan.question.model)]
    yield (f"the model is torchtitan's {family} {flavor}, of {plan.question.model.name}'s dimensions; how it scales rotary "
           "positions and routes tokens is its own")
    if s.lora_rank:
        yield (f"lora_rank={s.lora_rank}: the adapters' scale (alpha) is not in the plan, torchtitan's default stands; q, k "
               "and v share one")
    if s.software.graphs == "none" and s.pp == 1:
        yield "software.graphs=none: CUDA graphs, which torchtitan has on by default, are switched off"
    yield from notes_of(plan, "torchtitan")
