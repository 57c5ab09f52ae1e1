"""The export for Accelerate, read by `accelerate launch`'s own parser where it is installed (1.15.0 installs on a CPU)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from export_cases import plan_of, run_with_stubs, with_software

from executor.exports import export_plan, write_export
from executor.exports.accelerate import FILE, SCRIPT

PLANS: dict[str, dict[str, Any]] = {
    "sharded": {"dp": 16, "zero": 3, "num_microbatches": 4, "recompute": "full"},
    "gradients sharded": {"dp": 16, "zero": 2, "num_microbatches": 2, "shard_group": 8},
    "ring": {"dp": 8, "cp": 2, "context": "ring", "zero": 3, "num_microbatches": 1, "shard_group": 4},
    "gathered": {"dp": 4, "cp": 4, "context": "all_gather", "zero": 3, "num_microbatches": 1},
    "tensor": {"dp": 4, "tp": 4, "zero": 3, "num_microbatches": 1, "sequence_parallel": False},
    "replicated": {"dp": 8, "num_microbatches": 2, "precision": "fp16"},
    "alone": {"num_microbatches": 2},
    "fused": {"dp": 8, "zero": 3, "num_microbatches": 1, "software": with_software(kernels="fused")},
    "fp8": {"dp": 8, "zero": 3, "num_microbatches": 1, "precision": "fp8"},
}


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_accelerate_launch_reads_what_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: dict[str, Any]
) -> None:
    pytest.importorskip("accelerate")
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    plan = plan_of(**case)
    s = plan.strategy
    write_export(export_plan(plan, "accelerate"), tmp_path)
    (words,) = run_with_stubs(tmp_path / SCRIPT, tmp_path, {"accelerate": 'record "$@"'}, NODE_RANK="0", MASTER_ADDR="first")
    assert words[0] == "launch"
    monkeypatch.setattr("accelerate.utils.launch.is_fp8_available", lambda: True)
    args, *_ = _validate_launch_command(launch_command_parser().parse_args([*words[1:], "train.py"]))
    assert args.num_processes == s.world_size and args.num_machines == max(1, s.world_size // 8)
    assert args.gradient_accumulation_steps == s.num_microbatches
    assert args.mixed_precision == {"fp32": "no"}.get(s.precision, s.precision)
    assert args.use_fsdp is (s.zero >= 2) and args.multi_gpu is (s.zero == 0 and s.world_size > 1)
    assert args.dynamo_backend.lower() == ("inductor" if s.kernels == "fused" else "no")
    if s.zero < 2:
        return
    monkeypatch.setattr(os, "environ", prepare_multi_gpu_env(args) | {"ACCELERATE_USE_FSDP": "true"})
    fsdp, degrees = FullyShardedDataParallelPlugin(), ParallelismConfig()
    assert fsdp.fsdp_version == 2 and fsdp.reshard_after_forward is (s.zero == 3)
    assert fsdp.activation_checkpointing is (s.recompute == "full")
    assert degrees.total_size == s.world_size
    assert (degrees.tp_size, degrees.cp_size, degrees.dp_replicate_size * degrees.dp_shard_size) == (s.tp, s.cp, s.dp)
    assert degrees.dp_shard_size * degrees.cp_size == s.shards
    if s.cp > 1:
        assert degrees.cp_handler.cp_comm_strategy == {"ring": "alltoall", "all_gather": "allgather"}[s.context]


FIELDS = {
    "compute_environment", "distributed_type", "mixed_precision", "num_machines", "num_processes", "use_cpu", "rdzv_backend",
    "main_training_function", "fp8_config", "dynamo_config", "fsdp_config", "parallelism_config",
}
"""Fields of Accelerate's ClusterConfig that exports use (1.15.0, commands/config/config_args.py)."""


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_every_field_is_accelerates(case: dict[str, Any]) -> None:
    config = yaml.safe_load(export_plan(plan_of(**case), "accelerate").files[FILE])
    assert set(config) <= FIELDS
    assert config["distributed_type"] in ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP")


def test_degrees_multiply_to_the_processes() -> None:
    for case in PLANS.values():
        config = yaml.safe_load(export_plan(plan_of(**case), "accelerate").files[FILE])
        if degrees := config.get("parallelism_config"):
            sizes = [size for name, size in degrees.items() if name.endswith("_size")]
            product = 1
            for size in sizes:
                product *= size
            assert product == config["num_processes"]
