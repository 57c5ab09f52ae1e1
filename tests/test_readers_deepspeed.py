"""DeepSpeed's JSON: batch arithmetic, ZeRO, types, open ends, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.readers import Reading, completed, software_of
from planner.readers.deepspeed import read
from profiles.files import BadInput

DEFAULTS: dict[str, Any] = {"dp": None, "tp": 1, "cp": 1, "pp": 1, "global_batch": None, "sequence_parallel": True,
                            "shard_group": 0}
BASE: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, "bf16": {"enabled": True},
    "zero_optimization": {"stage": 3, "overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 5e8},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}, "gradient_clipping": 1.0, "steps_per_print": 10,
}


def reading(data: dict[str, Any]) -> Reading:
    return read(json.dumps(data), "ds.json", False)


def test_a_plain_file() -> None:
    found = reading(BASE)
    assert found.options == {"micro_batch": 2, "zero": 3, "precision": "bf16"} and found.num_microbatches == 4
    assert found.changes == {"grad_reduce": True, "param_gather": True} and found.unknown == ()
    assert completed(found, {}, DEFAULTS, 16)["global_batch"] == 2 * 4 * 16
    assert "gradient_clipping" in found.ignored
    assert software_of(found, None, "bf16").framework.startswith("DeepSpeed")


@given(micro=st.integers(1, 8), steps=st.integers(1, 8), ranks=st.sampled_from([1, 2, 8, 64]),
       left_out=st.sampled_from(["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", ""]),
       auto=st.booleans())
def test_two_of_the_three_batch_sizes_make_the_third(micro: int, steps: int, ranks: int, left_out: str, auto: bool) -> None:
    """DeepSpeed's own rule: batch = micro-batch x accumulation steps x data-parallel ranks."""
    sizes: dict[str, Any] = {"train_batch_size": micro * steps * ranks, "train_micro_batch_size_per_gpu": micro,
                             "gradient_accumulation_steps": steps}
    if left_out:
        sizes[left_out] = "auto"
        if not auto:
            del sizes[left_out]
    others = {name: value for name, value in BASE.items() if not name.startswith(("train_", "gradient_acc"))}
    values = completed(reading(others | sizes), {}, DEFAULTS, ranks)
    assert (values["micro_batch"], values["global_batch"]) == (micro, micro * steps * ranks)


def test_sizes_that_disagree_are_told() -> None:
    with pytest.raises(BadInput, match=r"2 x 4 micro-batches x dp 8 = 64 sequences.*states 100"):
        completed(reading(BASE | {"train_batch_size": 100}), {}, DEFAULTS, 8)
    assert completed(reading(BASE | {"train_batch_size": 100}), {"global_batch": 64}, DEFAULTS, 8)["global_batch"] == 64


def test_open_ends_need_options() -> None:
    found = reading(BASE | {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"})
    with pytest.raises(BadInput, match="--micro-batch and --global-batch"):
        completed(found, {}, DEFAULTS, 8)
    values = completed(found, {"micro_batch": 1, "global_batch": 32}, DEFAULTS, 8)
    assert (values["micro_batch"], values["global_batch"], values["zero"]) == (1, 32, 3)
    assert any("auto" in note for note in found.notes)


@pytest.mark.parametrize(("change", "options", "changes"), [
    ({"fp16": {"enabled": True}, "bf16": {"enabled": False}}, {"precision": "fp16"}, {}),
    ({"bf16": {"enabled": False}}, {"precision": "fp32"}, {}), ({"bf16": {"enabled": "auto"}}, {"precision": "bf16"}, {}),
    ({"zero_optimization": {"stage": 2, "reduce_bucket_size": 1e8, "overlap_comm": True}}, {"zero": 2}, {"bucket_bytes": 4e8}),
    ({"zero_optimization": {"stage": 1, "reduce_bucket_size": 1e8}}, {"zero": 1}, {"bucket_bytes": 2e8, "grad_reduce": False}),
    ({"zero_optimization": {}}, {"zero": 0}, {"param_gather": False}),
    ({"data_types": {"grad_accum_dtype": "fp32"}}, {}, {"grad_bytes": 4.0}),
    ({"communication_data_type": "fp32"}, {}, {"reduce_bytes": 4.0}),
    ({"tensor_parallel": {"autotp_size": 4}}, {"tp": 4, "sequence_parallel": False}, {}),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}}, {"zero": 3}, {}),
])
def test_fields(change: dict[str, Any], options: dict[str, Any], changes: dict[str, Any]) -> None:
    found = reading(BASE | change)
    assert options.items() <= found.options.items() and changes.items() <= found.changes.items()


@pytest.mark.parametrize(("change", "parts"), [
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, ("offload_param.device", "weights", "take")),
    ({"zero_optimization": {"stage": 3, "cpu_offload_params": True}}, ("cpu_offload_params", "not priced")),
    ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, ("zero_hpz_partition_size", "hpZ")),
    ({"zero_optimization": {"stage": 4}}, ("zero_optimization.stage", "0 to 3", "4")),
    ({"optimizer": {"type": "OneBitAdam"}}, ("optimizer.type", "OneBitAdam")),
    ({"fp16": {"enabled": True}}, ("fp16.enabled", "bf16")),
    ({"train_micro_batch_size_per_gpu": "many"}, ("train_micro_batch_size_per_gpu", "'many'")),
    ({"data_types": {"grad_accum_dtype": "fp64"}}, ("data_types.grad_accum_dtype", "'fp64'")),
    ({"activation_checkpointing": {"cpu_checkpointing": True}}, ("cpu_checkpointing", "offload")),
])
def test_what_cannot_be_priced_is_refused_in_one_line(change: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as e:
        reading(BASE | change)
    assert "\n" not in str(e.value) and str(e.value).startswith("ds.json: ")
    for part in parts:
        assert part in str(e.value)


def test_other_json_is_told_apart() -> None:
    with pytest.raises(BadInput, match="no configuration of DeepSpeed"):
        reading({"model_type": "llama", "hidden_size": 64})
    with pytest.raises(BadInput, match="which model"):
        read(json.dumps(BASE), "ds.json", True)
    with pytest.raises(BadInput, match="not JSON"):
        read("{", "ds.json", False)


def test_a_switch_that_is_off_changes_nothing(tmp_path: Path) -> None:
    assert reading(BASE | {"zero_optimization": {"stage": 3, "zero_quantized_weights": False}, "new": 1}).unknown == ("new",)
