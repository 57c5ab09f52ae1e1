"""Parameters and FLOP against independent oracles: `transformers` on the meta device, closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from profiles import files
from profiles.attention import Attention
from profiles.families import all_params, load_model, model_from_config, num_params
from profiles.files import BadInput
from profiles.model import SelfAttention, count
from simulator.metrics import step_flop
from simulator.strategy import Strategy


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "llama-3-8b", "llama-3-70b", "qwen2-7b"])
def test_parameter_counts_equal_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = files.catalog_mapping("models", name)["config"]
    model_type = config["model_type"]
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(model_type, **{k: v for k, v in config.items() if k != "model_type"})
        )
    spec = load_model(name)
    parameters = dict(reference.named_parameters())
    assert num_params(spec) == sum(p.numel() for p in parameters.values())
    if spec.family == "llama":
        assert sorted(p.shape for p in all_params(spec)) == sorted(tuple(p.shape) for p in parameters.values())


def test_a_sharded_rank_holds_its_share() -> None:
    spec = load_model("llama-3-8b")
    whole, eighth = count(all_params(spec)), count(all_params(spec), tp=8)
    norms = (2 * spec.num_layers + 1) * spec.hidden
    assert eighth == pytest.approx((whole - norms) / 8 + norms, rel=1e-12)


def test_step_flop_is_six_n_plus_attention() -> None:
    """6 N + 12 L d s per token, N without the embedding table (arXiv 2204.02311 appendix B)."""
    spec = load_model("llama-3-8b")
    strategy = Strategy(seq_len=8192, micro_batch=2)
    n = num_params(spec) - spec.vocab * spec.hidden
    norms = (2 * spec.num_layers + 1) * spec.hidden
    mixer = spec.kinds[0].mixer
    assert isinstance(mixer, SelfAttention)
    per_token = 6 * (n - norms) + 12 * spec.num_layers * mixer.num_heads * mixer.head_dim * 8192
    assert step_flop(spec, strategy) == pytest.approx(per_token * 2 * 8192, rel=1e-12)


def test_config_json_of_a_person(tmp_path: Path) -> None:
    config = files.catalog_mapping("models", "llama-3-8b")["config"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config))
    assert num_params(load_model(str(path))) == num_params(load_model("llama-3-8b"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type: 'mamba' is not known"),
        ({"hidden_size": None}, "mine: hidden_size: is missing"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: must be a whole number of at least 1"),
        ({"num_key_value_heads": 5}, "num_kv_heads: 5 key-value heads do not divide 32 heads"),
        ({"attention_bias": True}, "attention_bias: True is not known"),
        ({"vocab_size": "many"}, r"vocab_size: must be a whole number of at least 1 \(is 'many'\)"),
        ({"num_attention_heads": 0}, "num_attention_heads: must be a whole number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: must be a number above 0"),
        ({"model_type": ["llama"]}, "model_type: .* is not known"), ({"head_dim": 65}, "head_dim: rotary positions"),
    ],
)
def test_a_config_that_is_no_model_is_refused(change: dict[str, object], message: str) -> None:
    config = files.catalog_mapping("models", "llama-3-8b")["config"] | change
    with pytest.raises(BadInput, match=message):
        model_from_config({k: v for k, v in config.items() if v is not None}, "mine")


def test_every_catalogue_model_loads_and_names_its_source() -> None:
    for name in files.catalog_names("models"):
        spec = load_model(name)
        assert spec.source
        assert num_params(spec) > 0


def test_all_llama_like_configs_of_the_collection(shared: Path) -> None:
    """Every llama config of the collection is read; its count is that of its name."""
    rows = [json.loads(line) for line in (shared / "models" / "hf_configs.jsonl").read_text().splitlines()]
    sizes = {"405B": 405.85e9, "70B": 70.55e9, "8B": 8.03e9}
    seen = 0
    for row in rows:
        if row["config"]["model_type"] == "llama" and "Meta-Llama-3.1" in row["model"]:
            expected = next(v for k, v in sizes.items() if row["model"].endswith(k))
            assert num_params(model_from_config(row["config"], row["model"])) == pytest.approx(expected, rel=1e-3)
            seen += 1
    assert seen == 3


def test_attention_executes_what_flash_attention_does() -> None:
    """2 matmuls forward, 5 backward (torch's own count of its flash kernels), half of each masked away."""
    counter = pytest.importorskip("torch.utils.flop_counter")
    op = Attention(name="x", batch=2, heads=4, kv_heads=4, seq_len=128, head_dim=64, dtype="bf16")
    shape = (2, 4, 128, 64)
    assert op.kernels("F")[0].flop == counter.sdpa_flop_count(shape, shape, shape) / 2
    assert op.kernels("B")[0].flop == counter.sdpa_backward_flop_count(shape, shape, shape, shape) / 2
