"""The export for torchtitan, read by torchtitan's own `ConfigManager` where it is installed (0.3.0 installs on a CPU)."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from export_cases import plan_of, with_software

from executor.exports import export_plan, write_export
from executor.exports.torchtitan import FILE, FLAVORS, stages
from planner.plan import Plan
from profiles.families import load_model
from simulator.schedules import SCHEDULES, rank_stages

PLANS: dict[str, dict[str, Any]] = {
    "sharded": {"dp": 16, "zero": 3, "num_microbatches": 4, "recompute": "selective"},
    "replicated": {"dp": 8, "tp": 2, "zero": 0, "num_microbatches": 2, "sequence_parallel": False},
    "hybrid with context": {"dp": 8, "cp": 2, "context": "all_gather", "zero": 2, "shard_group": 4, "num_microbatches": 1},
    "piped": {"dp": 2, "tp": 2, "pp": 4, "zero": 2, "num_microbatches": 8, "micro_batch": 2, "recompute": "full"},
    "interleaved": {"dp": 2, "pp": 4, "chunks": 3, "schedule": "Interleaved1F1B", "zero": 2, "num_microbatches": 8},
    "v": {"pp": 4, "chunks": 2, "schedule": "ZBV", "num_microbatches": 8},
    "fused": {"dp": 4, "tp": 2, "zero": 3, "num_microbatches": 1, "software": with_software(kernels="fused", tp_overlap=True)},
    "adapters": {"dp": 8, "zero": 3, "num_microbatches": 1, "lora_rank": 8, "lora_targets": "all"},
    "experts": {"model": "qwen3-30b-a3b", "dp": 8, "tp": 2, "ep": 8, "zero": 3, "num_microbatches": 1},
    "latent": {"model": "deepseek-v3", "dp": 16, "ep": 8, "zero": 3, "num_microbatches": 1},
    "fp32": {"dp": 8, "zero": 3, "num_microbatches": 1, "precision": "fp32"},
}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], Any]:
    """Return what reads an exported plan with torchtitan."""
    pytest.importorskip("torchtitan")
    stand_in_for_triton()
    from torchtitan.config import ConfigManager

    def parse(plan: Plan) -> Any:
        sys.modules.pop(FILE.removesuffix(".py"), None)
        write_export(export_plan(plan, "torchtitan"), tmp_path / FILE)
        return ConfigManager().parse_args(["--module", FILE.removesuffix(".py"), "--config", "train"])

    monkeypatch.syspath_prepend(tmp_path)
    return parse


def stand_in_for_triton() -> None:
    """Let torchtitan's kernels be imported where there is no Triton; nothing that reads a configuration calls them."""
    if importlib.util.find_spec("triton") is None and "triton" not in sys.modules:
        importlib.import_module("torch._inductor.compile_fx")  # which must still find that there is none
        sys.modules |= {"triton": MagicMock(), "triton.language": MagicMock()}
        import torchtitan.models.deepseek_v3
        import torchtitan.models.gpt_oss
        import torchtitan.trainer  # noqa: F401

        del sys.modules["triton"], sys.modules["triton.language"]


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_torchtitan_reads_what_the_plan_says(read: Callable[[Plan], Any], case: dict[str, Any]) -> None:
    plan = plan_of(**case)
    s, config = plan.strategy, read(plan)
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC

    dims = ParallelDims.from_config(config.parallelism, int(s.world_size))
    assert (dims.tp, dims.cp, dims.pp, dims.ep) == (s.tp, s.cp, s.pp, s.ep)
    assert dims.dp_replicate * dims.dp_shard == s.dp
    assert dims.dp_shard * dims.cp == (s.shards if s.zero >= 2 else 1)
    assert config.parallelism.enable_sequence_parallel is s.sequence_parallel
    assert config.parallelism.fsdp_reshard_after_forward == ("always" if s.zero == 3 else "never")
    assert config.training.global_batch_size == s.global_batch and config.training.seq_len == s.seq_len
    accumulated = config.training.global_batch_size // (config.training.local_batch_size * s.dp)
    piped = config.training.local_batch_size // config.parallelism.pipeline_parallel_microbatch_size if s.pp > 1 else 1
    assert accumulated * piped == s.num_microbatches
    assert config.training.steps * s.tokens_per_step >= plan.question.tokens
    kind = {"none": type(None), "full": FullAC.Config, "selective": SelectiveAC.Config}[s.recompute]
    assert isinstance(config.activation_checkpoint, kind)
    assert config.compile.enable is (s.kernels == "fused")
    assert config.training.mixed_precision_param == ("float32" if s.precision == "fp32" else "bfloat16")


@pytest.mark.parametrize("name", ["piped", "interleaved", "v"])
def test_torchtitan_builds_the_stages(read: Callable[[Plan], Any], name: str) -> None:
    plan = plan_of(**PLANS[name])
    s, parallelism = plan.strategy, read(plan).parallelism
    from torch.distributed.pipelining.schedules import get_schedule_class
    from torchtitan.distributed.pipeline_parallel import _get_pp_rank_to_stage_indices_mapping

    assert get_schedule_class(parallelism.pipeline_parallel_schedule).__name__ == SCHEDULES[s.schedule].torch_class
    parts = parallelism.module_fqns_per_model_part
    layers = [f"layers.{i}" for i in range(plan.question.model.num_layers)]
    assert [m for part in parts for m in part] == ["tok_embeddings", *layers, "norm", "lm_head"]
    assert len(parts) == s.pp * s.chunks
    for rank in range(s.pp):
        held = _get_pp_rank_to_stage_indices_mapping(rank, s.pp, parallelism.pipeline_parallel_schedule, len(parts))
        assert list(held) == rank_stages(s.schedule, rank, s.pp, s.chunks)


def test_adapters_stand_where_the_plan_says(read: Callable[[Plan], Any]) -> None:
    """Each layer has a fused projection of queries, keys and values, one out, and three of its feed-forward block."""
    for targets, num in (("attention", 2), ("all", 5)):
        config = read(plan_of(**PLANS["adapters"] | {"lora_targets": targets}))
        from torchtitan.models.common.linear import Linear

        adapted = [c for _, c, _, _ in config.model_spec.model.traverse(Linear.Config) if getattr(c, "rank", None) == 8]
        assert len(adapted) == 32 * num


def test_flavors_have_the_dimensions_that_pick_them(read: Callable[[Plan], Any]) -> None:
    for dimensions, (family, flavor) in FLAVORS.items():
        _, hidden, vocab, layers, heads, kv_heads, head, ffn = dimensions
        model = importlib.import_module(f"torchtitan.models.{family}").model_registry(flavor).model
        last = model.layers[-1]
        attention = last.attention
        assert (model.dim, model.vocab_size, len(model.layers), attention.n_heads) == (hidden, vocab, layers, heads), flavor
        if family == "deepseek_v3":
            assert attention.qk_nope_head_dim + attention.qk_rope_head_dim == head
        else:
            assert attention.n_kv_heads == kv_heads and (attention.head_dim or hidden // heads) == head
        if isinstance(ffn, tuple):
            experts = last.moe.routed_experts
            assert (last.moe.num_experts, experts.token_dispatcher.top_k, experts.inner_experts.hidden_dim) == ffn, flavor
        else:
            assert last.feed_forward.w1.out_features == ffn, flavor


@pytest.mark.parametrize("precision", ["mxfp8", "nvfp4"])
def test_narrow_types_name_converters_that_torchtitan_has(
    read: Callable[[Plan], Any], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Only a Blackwell GPU converts; what can be read elsewhere are the converters' fields."""
    read(plan_of(**PLANS["sharded"]))
    llama3, given = importlib.import_module("torchtitan.models.llama3"), []
    original = llama3.model_registry
    monkeypatch.setattr(llama3, "model_registry", lambda flavor, converters: given.extend(converters) or original(flavor))
    read(plan_of(cluster="dgx-b200", dp=8, zero=3, num_microbatches=1, precision=precision))
    assert [(type(c).__qualname__, c.fqns) for c in given] == [(f"{precision.upper()}LinearConverter.Config", ["layers"])]


def test_the_file_is_python_and_names_every_stage() -> None:
    plan = plan_of(**PLANS["interleaved"])
    text = export_plan(plan, "torchtitan").files[FILE]
    compile(text, FILE, "exec")
    assert f"module_fqns_per_model_part={stages(plan)!r}" in text and "pipeline_parallel_schedule='Interleaved1F1B'" in text


FIELDS = {
    "Config": {"model_spec", "loss", "optimizer", "dataloader", "training", "parallelism", "activation_checkpoint", "compile",
               "loss_fn", "global_vocab_size", "rank", "target_modules", "fqns", "model_compile_enabled"},
    "TrainingConfig": {"local_batch_size", "global_batch_size", "seq_len", "steps", "mixed_precision_param",
                       "disable_cuda_graphs"},
    "ParallelismConfig": {"data_parallel_replicate_degree", "data_parallel_shard_degree", "fsdp_reshard_after_forward",
                          "tensor_parallel_degree", "enable_sequence_parallel", "context_parallel_degree",
                          "expert_parallel_degree", "pipeline_parallel_degree", "pipeline_parallel_schedule",
                          "pipeline_parallel_microbatch_size", "module_fqns_per_model_part"},
    "CompileConfig": {"enable", "enable_async_tensor_parallel"}, "model_registry": {"converters", "num_mtp_layers"},
}
"""Call -> fields that it has in torchtitan 0.3.0 (torchtitan/config/configs.py, trainer.py, components/)."""


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_every_field_that_is_set_is_torchtitans(case: dict[str, Any]) -> None:
    calls = [n for n in ast.walk(ast.parse(export_plan(plan_of(**case), "torchtitan").files[FILE])) if isinstance(n, ast.Call)]
    assert len(calls) >= 8
    for call in calls:
        name = ast.unparse(call.func).rpartition(".")[2]
        assert {str(k.arg) for k in call.keywords} <= FIELDS.get(name, set()), name


def test_models_of_the_catalogue_that_torchtitan_has() -> None:
    for model in ("llama-3-8b", "llama-3-70b", "llama-3.1-405b", "qwen3-8b", "qwen3-235b-a22b", "deepseek-v3", "gpt-oss-20b"):
        assert not export_plan(plan_of(model=model, dp=8, zero=3, num_microbatches=1), "torchtitan").refusals
    refused = export_plan(plan_of(model="llama-2-7b", dp=8, zero=3, num_microbatches=1), "torchtitan").refusals
    assert load_model("llama-2-7b").name in refused[0] and "llama3 8B" in refused[0]
