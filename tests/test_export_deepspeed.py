"""The export for DeepSpeed, read by DeepSpeed's own `DeepSpeedConfig` where it is installed (0.19.8 builds on a CPU)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_cases import plan_of, with_software

from executor.exports import export_plan, write_export
from planner.plan import Plan

PLANS: dict[str, dict[str, Any]] = {
    "replicated": {"dp": 8, "num_microbatches": 4, "micro_batch": 2},
    "zero 1": {"dp": 16, "zero": 1, "num_microbatches": 2, "software": with_software(grad_bytes=2.0, reduce_bytes=2.0)},
    "zero 2, fp16": {"dp": 16, "zero": 2, "num_microbatches": 2, "precision": "fp16"},
    "zero 3": {"dp": 16, "zero": 3, "num_microbatches": 1, "recompute": "full"},
    "tensor": {"dp": 4, "tp": 4, "zero": 2, "num_microbatches": 1, "sequence_parallel": False},
    "sequence": {"dp": 4, "cp": 4, "context": "ulysses", "zero": 3, "num_microbatches": 1},
    "experts": {"model": "qwen3-30b-a3b", "dp": 16, "ep": 8, "zero": 2, "num_microbatches": 1},
    "fp32": {"dp": 8, "zero": 3, "num_microbatches": 1, "precision": "fp32"},
}


class Ranks:
    """A model-parallel unit, as DeepSpeed asks it: how many ranks share the data."""

    def __init__(self, plan: Plan) -> None:
        self.dp = int(plan.strategy.dp)

    def get_data_parallel_world_size(self) -> int:
        return self.dp


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_deepspeed_reads_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]) -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime import config as runtime

    plan = plan_of(**case)
    s = plan.strategy
    (path,) = write_export(export_plan(plan, "deepspeed"), tmp_path / "deepspeed.json")
    monkeypatch.setattr(runtime.dist, "get_rank", lambda: 0)
    config = runtime.DeepSpeedConfig(str(path), mpu=Ranks(plan))
    assert config.train_batch_size == s.global_batch and config.gradient_accumulation_steps == s.num_microbatches
    assert config.train_micro_batch_size_per_gpu == s.micro_batch
    assert config.zero_optimization_stage == s.zero
    assert config.zero_config.overlap_comm is (s.software.grad_reduce if s.zero else False)
    assert config.bfloat16_config.enabled is (s.precision == "bf16")
    assert config.float16_config.enabled is (s.precision == "fp16")
    assert (config.tensor_parallel_config.autotp_size or 1) == s.tp
    assert config.expert_parallel_config.enabled is (s.ep > 1) and config.expert_parallel_config.autoep_size == s.ep
    assert config.grad_accum_dtype == (None if s.precision == "fp32" else "fp32" if s.software.grad_bytes == 4 else s.precision)


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_the_batch_adds_up(case: dict[str, Any]) -> None:
    """DeepSpeed refuses a batch that is not micro-batch x steps x data-parallel ranks."""
    plan = plan_of(**case)
    config = json.loads(export_plan(plan, "deepspeed").files["deepspeed.json"])
    steps = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == steps * plan.strategy.dp
    if plan.strategy.cp > 1:
        assert config["data_parallel_size"] * config["sequence_parallel_size"] == plan.strategy.world_size


FIELDS = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "bf16", "fp16", "zero_optimization",
    "tensor_parallel", "sequence_parallel_size", "data_parallel_size", "expert_parallel", "data_types",
    "communication_data_type",
}
"""Fields of DeepSpeed's JSON that exports use (0.19.8, runtime/constants.py and deepspeed/__init__.py)."""


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_every_field_is_deepspeeds(case: dict[str, Any]) -> None:
    config = json.loads(export_plan(plan_of(**case), "deepspeed").files["deepspeed.json"])
    assert set(config) <= FIELDS and set(config["zero_optimization"]) <= {"stage", "overlap_comm"}


def test_what_the_script_must_do_is_said() -> None:
    notes = " ".join(export_plan(plan_of(**PLANS["zero 3"]), "deepspeed").notes)
    assert "seq_len=4096" in notes and "recompute=full" in notes
