"""torchtitan's TOML: fields, models of the catalogue, published runs that fitted, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.readers import Reading, completed, read_config, software_of
from profiles.families import load_model, num_params
from profiles.files import BadInput
from reports.published import strategy_of
from reports.published_model import model_of
from reports.rows import Row, chosen, read_rows

DEFAULTS = {"dp": None, "tp": 1, "cp": 1, "pp": 1, "global_batch": None, "sequence_parallel": True, "shard_group": 0}
OLD = """
[job]
description = "Llama 3 8B"
[model]
name = "llama3"
flavor = "8B"
norm_type = "rmsnorm"
[optimizer]
name = "AdamW"
lr = 3e-4
[training]
batch_size = 2
seq_len = 8192
compile = true
[parallelism]
data_parallel_replicate_degree = 1
data_parallel_shard_degree = -1
tensor_parallel_degree = 2
[activation_checkpoint]
mode = "selective"
selective_ac_option = "op"
"""
NEW = OLD.replace("batch_size = 2", "local_batch_size = 2").replace("compile = true", "") + """
[compile]
enable = true
components = ["model", "loss"]
"""


def reading(text: str, tmp_path: Path, with_model: bool = True) -> Reading:
    (tmp_path / "train.toml").write_text(text)
    return read_config(tmp_path / "train.toml", with_model)


def test_old_and_new_names_are_one_run(tmp_path: Path) -> None:
    old, new = reading(OLD, tmp_path), reading(NEW, tmp_path)
    assert old.options == new.options and old.changes == new.changes and old.model == new.model
    expected = {"tp": 2, "pp": 1, "cp": 1, "zero": 3, "micro_batch": 2, "seq_len": 8192, "recompute": "selective",
                "precision": "bf16", "context": "all_gather", "sequence_parallel": True}
    assert expected.items() <= old.options.items() and "dp" not in old.options
    assert old.changes == {"kernels": "fused"} and old.unknown == ()


@pytest.mark.parametrize(("name", "flavor", "catalogued"), [
    ("llama3", "8B", "llama-3-8b"), ("llama3", "70B_flex", "llama-3-70b"), ("llama3", "405B", "llama-3.1-405b"),
    ("qwen3", "30B-A3B", "qwen3-30b-a3b"), ("deepseek_v3", "671B", "deepseek-v3"), ("llama4", "17bx16e", "llama-4-scout"),
])
def test_flavors_are_models_of_the_catalogue(name: str, flavor: str, catalogued: str, tmp_path: Path) -> None:
    model = reading(OLD.replace('"llama3"', f'"{name}"').replace('"8B"', f'"{flavor}"'), tmp_path).model
    assert model is not None and model.mtp_layers == 0
    assert num_params(model) == num_params(load_model(catalogued))


PARALLELISM = "data_parallel_shard_degree = -1"
PIPE = "pipeline_parallel_degree = 4\n"


@pytest.mark.parametrize(("line", "by", "expected"), [
    (PARALLELISM, PIPE, {"pp": 4, "zero": 2, "schedule": "1F1B", "chunks": 1, "micro_batch": 1}),
    (PARALLELISM, PIPE + 'pipeline_parallel_schedule = "Interleaved1F1B"', {"schedule": "Interleaved1F1B", "chunks": 2}),
    (PARALLELISM, PIPE + 'pipeline_parallel_schedule = "LoopedBFS"\npipeline_parallel_layers_per_stage = 3', {"chunks": 3}),
    (PARALLELISM, PIPE + 'fsdp_reshard_after_forward = "always"', {"zero": 3}),
    (PARALLELISM, 'fsdp_reshard_after_forward = "never"', {"zero": 2}),
    (PARALLELISM, 'context_parallel_degree = 2\ncontext_parallel_rotate_method = "alltoall"', {"cp": 2, "context": "ring"}),
    (PARALLELISM, "data_parallel_shard_degree = 1", {"zero": 0, "dp": 1}),
    (PARALLELISM, "expert_parallel_degree = 8\nexpert_tensor_parallel_degree = 2", {"ep": 8, "etp": 2}),
    ('selective_ac_option = "op"', 'selective_ac_option = "2"', {"recompute": "full", "recompute_share": 0.5}),
    ('mode = "selective"', 'mode = "none"', {"recompute": "none"}),
    ('flavor = "8B"', 'flavor = "8B"\nconverters = ["float8"]', {"precision": "fp8"}),
    ('flavor = "8B"', 'flavor = "8B"\nconverters = ["quantize.linear.mx"]', {"precision": "mxfp8"}),
    ("seq_len = 8192", 'seq_len = 8192\nmixed_precision_param = "float32"', {"precision": "fp32"}),
    ("seq_len = 8192", "seq_len = 8192\nglobal_batch_size = 64", {"global_batch": 64}),
])
def test_options(line: str, by: str, expected: dict[str, object], tmp_path: Path) -> None:
    assert line in OLD
    assert expected.items() <= reading(OLD.replace(line, by), tmp_path).options.items()


@pytest.mark.parametrize(("line", "by", "expected"), [
    ("seq_len = 8192", 'seq_len = 8192\ndtype = "bfloat16"', {"master_bytes": 0.0, "grad_bytes": 2.0, "moment_bytes": 4.0}),
    ("seq_len = 8192", 'seq_len = 8192\nmixed_precision_reduce = "bfloat16"', {"reduce_bytes": 2.0}),
    ("compile = true", "compile = false", {"kernels": "eager"}),
    ("compile = true", '[compile]\nenable = true\ncomponents = ["loss"]', {"kernels": "eager", "logit_bytes": 4.0}),
    (PARALLELISM, "enable_async_tensor_parallel = true", {"tp_overlap": True}),
    ('flavor = "8B"', 'flavor = "8B"\nconverters = "float8"\n[float8]\nenable_fsdp_float8_all_gather = true',
     {"gather_bytes": 1.0}),
])
def test_software(line: str, by: str, expected: dict[str, object], tmp_path: Path) -> None:
    found = reading(OLD.replace(line, by), tmp_path)
    assert expected.items() <= found.changes.items()
    assert software_of(found, None, found.options["precision"]).framework == "torchtitan"


def test_what_follows_from_the_number_of_accelerators(tmp_path: Path) -> None:
    values = completed(reading(OLD, tmp_path), {}, DEFAULTS, 64)
    assert (values["global_batch"], values["micro_batch"], values["shard_group"]) == (64, 2, 0)
    hybrid = OLD.replace("replicate_degree = 1", "replicate_degree = 4")
    assert completed(reading(hybrid, tmp_path), {}, DEFAULTS, 64)["shard_group"] == 8
    piped = reading(OLD.replace(PARALLELISM, PIPE).replace("batch_size = 2", "batch_size = 8"), tmp_path)
    assert completed(piped, {}, DEFAULTS, 64)["global_batch"] == 8 * 8
    # what is given on the command line goes before the file, and the rest follows
    assert completed(reading(OLD, tmp_path), {"tp": 8}, DEFAULTS, 64)["global_batch"] == 16
    assert completed(reading(OLD, tmp_path), {}, DEFAULTS, 2)["zero"] == 0


@pytest.mark.parametrize(("text", "parts"), [
    (OLD + "enable_cpu_offload = true", ()),
    (OLD.replace("lr = 3e-4", "early_step_in_backward = true"), ("optimizer.early_step_in_backward", "not priced")),
    (OLD.replace('"AdamW"', '"Muon"'), ("optimizer.name", "Muon", "AdamW")),
    (OLD.replace('"8B"', '"debugmodel"'), ("model", "debugmodel", "name the model")),
    (OLD.replace('"op"', '"some"'), ("selective_ac_option", "'some'")),
    (OLD.replace("seq_len = 8192", 'seq_len = "long"'), ("training.seq_len", "'long'")),
    ("[tool.ruff]\nx = 1", ("no configuration of torchtitan",)), ("a = [", ("not TOML",)),
])
def test_mistakes_are_one_line_that_names_the_field(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(BadInput) as e:
        reading(text, tmp_path)
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


def test_switched_off_is_not_refused_and_the_unknown_is_told(tmp_path: Path) -> None:
    text = OLD.replace("seq_len = 8192", "seq_len = 8192\nenable_cpu_offload = false\nnew_switch = 3")
    assert reading(text, tmp_path).unknown == ("training.new_switch",)


def test_python_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config_registry.py").write_text("x = 1")
    with pytest.raises(BadInput, match="Python is not run"):
        read_config(tmp_path / "config_registry.py")


def toml(row: Row) -> str:
    """Return a published row of torchtitan as its TOML."""
    size = {32: "8B", 80: "70B", 126: "405B"}[row.whole("n_layers") or 0]
    dp, group = row.whole("dp") or 1, strategy_of(row).shard_group
    return f"""
[model]
name = "llama3"
flavor = "{size}"
converters = [{'"float8"' if row.text("precision").startswith("fp8") else ""}]
[training]
local_batch_size = {row.whole("micro_batch")}
seq_len = {row.whole("seq_len")}
compile = {"true" if "compile" in row.text("other_notes") else "false"}
[parallelism]
data_parallel_replicate_degree = {dp // group if group else 1}
tensor_parallel_degree = {row.whole("tp")}
context_parallel_degree = {row.whole("cp")}
[activation_checkpoint]
mode = "{row.text("recompute")}"
selective_ac_option = "op"
"""


def test_published_runs_are_read_as_they_are_validated(shared: Path, tmp_path: Path) -> None:
    checked = 0
    for row in chosen(read_rows(shared / "published" / "runs.csv"), ["source=torchtitan*", "pp=1", "vocab=128256"]):
        if row.text("full_strategy") != "1" or row.text("recompute_detail"):
            continue
        expected, found = strategy_of(row), reading(toml(row), tmp_path)
        values = completed(found, {}, DEFAULTS, row.whole("n_gpus") or 1)
        for name in ("tp", "cp", "zero", "micro_batch", "seq_len", "precision", "recompute", "context"):
            assert values[name] == getattr(expected, name), (row.id, name)
        assert values["global_batch"] == row.whole("global_batch"), row.id
        assert found.changes["kernels"] == expected.software.kernels, row.id
        # a row's vocabulary is padded where it is cut
        assert found.model is not None
        assert num_params(found.model) == pytest.approx(num_params(model_of(row)), rel=1e-3), row.id
        checked += 1
    assert checked >= 5
