"""Weights of Hugging Face folders: `transformers` and the engine give the same logits, read and written back, on any layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from small_models import SMALL, TINY, reference  # noqa: E402

from executor.model import Stage, materialise  # noqa: E402
from executor.parallel import parallelise  # noqa: E402
from executor.pretrained import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, check_weights, config_of  # noqa: E402
from executor.weights import reader, write_weights  # noqa: E402
from profiles.families import load_model, model_from_config  # noqa: E402
from profiles.files import BadInput  # noqa: E402
from profiles.measure.leave import leave_group  # noqa: E402
from profiles.model import ModelSpec  # noqa: E402
from simulator.strategy import Strategy  # noqa: E402

TYPES = ("gpt2", "llama", "qwen2", "qwen3", "mixtral", "qwen3_moe")
CONFIGS: dict[str, dict[str, Any]] = {
    kind: {"model_type": kind, "torch_dtype": "float32"} | SMALL[kind] for kind in TYPES
} | {"tied": {"model_type": "qwen2", "tie_word_embeddings": True} | TINY}
CONFIGS["qwen3_moe"]["norm_topk_prob"] = True
ONE = Strategy(precision="fp32", seq_len=32)
LAYOUTS = {
    "gpt2": replace(ONE, tp=2, pp=2), "llama": replace(ONE, dp=2, tp=2, zero=3), "qwen2": replace(ONE, dp=4, zero=1),
    "tied": replace(ONE, pp=2, dp=2, num_microbatches=2, schedule="ZBV", chunks=2), "qwen3": replace(ONE, tp=2, cp=2, zero=2),
    "mixtral": replace(ONE, dp=2, tp=2, ep=4), "qwen3_moe": replace(ONE, dp=4, ep=2, zero=3),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders that `transformers` wrote, by model."""
    root = tmp_path_factory.mktemp("weights")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, config in CONFIGS.items():
        model = reference(config["model_type"], config, "cpu")
        for parameter in model.parameters():
            # biases and norms, too, else a swapped one is not seen
            parameter.data.normal_(std=0.1).add_(float(parameter.ndim == 1))
        model.save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def spec_of(folder: Path) -> ModelSpec:
    return load_model(str(folder / CONFIG_FILE))


def tensors_of(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers_read_and_written_back(
    name: str, folders: dict[str, Path], tmp_path: Path, one_process: None,
) -> None:
    spec = spec_of(folders[name])
    check_weights(str(folders[name]), spec)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    parallel = parallelise(spec, ONE, torch.device("cpu"), seed=0, learning_rate=1e-3, read=reader(str(folders[name]), spec))
    write_weights(parallel, str(tmp_path / "back"))
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    ids = torch.randint(spec.vocab, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, ours, again = theirs(ids).logits, parallel.stages[0](ids), back(ids).logits
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(again, expected, atol=0, rtol=0)
    check_weights(str(tmp_path / "back"), spec)


def work(rank: int, root: Path, folders: dict[str, Path]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=4)
    for name, strategy in LAYOUTS.items():
        spec = spec_of(folders[name])
        parallel = parallelise(
            spec, strategy, torch.device("cpu"), seed=0, learning_rate=1e-3, read=reader(str(folders[name]), spec))
        write_weights(parallel, str(root / name))
    leave_group()


@pytest.mark.distributed
def test_every_layout_reads_and_writes_the_same_tensors(folders: dict[str, Path], tmp_path: Path) -> None:
    mp.spawn(work, args=(tmp_path, folders), nprocs=4)
    for name, strategy in LAYOUTS.items():
        before, after = tensors_of(folders[name]), tensors_of(tmp_path / name)
        assert {n.removeprefix("transformer.") for n in before} == {n.removeprefix("transformer.") for n in after}, name
        for key, tensor in before.items():
            assert torch.equal(tensor, after[key]), (name, key)
        assert (tmp_path / name / INDEX_FILE).exists() == (strategy.pp > 1)
        check_weights(str(tmp_path / name), spec_of(folders[name]))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_written_configuration_is_read_as_the_same_model(name: str) -> None:
    spec = model_from_config(CONFIGS[name], "x")
    assert model_from_config(config_of(spec), "x") == spec


def test_a_piece_is_read_alone(folders: dict[str, Path]) -> None:
    spec = spec_of(folders["gpt2"])
    read = reader(str(folders["gpt2"]), spec)
    whole = read("layers.1.attn.wk.weight", (slice(0, 64), slice(0, 64)))
    assert torch.equal(read("layers.1.attn.wk.weight", (slice(16, 32), slice(8, 64))), whole[16:32, 8:])
    assert read("layers.1.attn.wk.weight", (slice(64, 64), slice(0, 64))).shape == (0, 64)


@pytest.mark.parametrize(("name", "change", "says"), [
    ("llama", {"hidden_size": 128}, "hidden: is 128, and the plan's model llama has 64"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0}}, "rope_type: is 'llama3'"),
    ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob: is False, and the engine computes True only"),
    ("gpt2", {"activation_function": "gelu"}, "activation_function: is 'gelu'"),
    ("gpt2", {"n_positions": 64}, "has 64 learned positions, the plan's model 128"),
])
def test_weights_of_another_model_are_refused(
    name: str, change: dict[str, Any], says: str, folders: dict[str, Path], tmp_path: Path,
) -> None:
    spec = spec_of(folders[name])
    config = json.loads((folders[name] / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | change))
    (tmp_path / WEIGHTS_FILE).write_bytes((folders[name] / WEIGHTS_FILE).read_bytes())
    with pytest.raises(BadInput) as caught:
        check_weights(str(tmp_path), replace(spec, name=name))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_missing_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    source, spec = folders["mixtral"], spec_of(folders["mixtral"])
    (tmp_path / CONFIG_FILE).write_text((source / CONFIG_FILE).read_text())
    with pytest.raises(BadInput, match="safetensors only"):
        check_weights(str(tmp_path), spec)
    tensors = tensors_of(source)
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(BadInput, match=r"layers\.1\.block_sparse_moe\.experts\.3\.w2\.weight: is missing"):
        check_weights(str(tmp_path), spec)


def test_a_stage_alone_reads_what_it_holds(folders: dict[str, Path]) -> None:
    spec = spec_of(folders["tied"])
    with torch.device("meta"):
        last = Stage(spec, layers=range(3, 4), is_first=False, seq_len=32)
    materialise(last, "cpu", 0, reader(str(folders["tied"]), spec))
    assert torch.equal(last.head.weight, tensors_of(folders["tied"])["model.embed_tokens.weight"])
