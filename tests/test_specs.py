"""Specs as people write them, by hand or in a plan file: what is no model is refused in one line, the rest is priced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SMALL, TINY

from planner.plan import plan_from_prediction, read_plan, write_plan
from planner.predict import predict
from planner.question import ask
from profiles import files
from profiles.families import check_spec, load_model, model_from_config, model_from_mapping, num_params
from profiles.files import BadInput
from profiles.hardware import load_cluster
from profiles.model import ModelSpec
from simulator.layout import stage_parts
from simulator.strategy import Strategy
from simulator.workload import build_workload

DENSE, SPARSE, LATENT, MAMBA = "llama-3-8b", "mixtral-8x7b", "deepseek-v3", "nemotron-3-super-120b-a12b"
INDEXED = {k: v for k, v in SMALL["deepseek_v3"].items() if k != "topk_method"} | {
    "model_type": "deepseek_v32", "index_n_heads": 4, "index_head_dim": 16, "index_topk": 32,
}
DELTA = TINY | {"model_type": "qwen3_5_text", "linear_num_key_heads": 4, "linear_num_value_heads": 8}
ORIGIN = "a.yaml: question.model"
Place = tuple[str | int, ...]


def model(name: str) -> ModelSpec:
    """Return a model of the catalogue, or a small one with blocks that no model there has."""
    small = {"indexed": INDEXED, "delta": DELTA}
    return model_from_config(small[name], name) if name in small else load_model(name)


@cache
def written(name: str) -> dict[str, Any]:
    """Return a model as a plan file states it."""
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(asdict(model(name))))
    return result


def edited(stated: dict[str, Any], place: Place, value: object) -> dict[str, Any]:
    """Return what a file states once a person has changed one field of it, or taken it out (`...`)."""
    data = deepcopy(stated)
    inner: Any = data
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return data


def priced(spec: ModelSpec) -> None:
    """Count and price every part of a model."""
    assert num_params(spec) > 0
    work = build_workload(spec, Strategy(seq_len=16))
    assert set(work.parts) == {part for stage in stage_parts(spec, 1) for part, _ in stage} | {k.name for k in spec.kinds}
    assert all(float(p.params) + float(p.expert_params) >= 0 for p in work.parts.values())


@pytest.mark.parametrize("name", [*files.catalog_names("models"), "indexed", "delta"])
def test_what_a_plan_file_states_is_read_back_whole(name: str) -> None:
    assert model_from_mapping(written(name), ORIGIN) == model(name)


LAYER: Place = ("kinds", 0)
MIXER: Place = (*LAYER, "mixer")
FFN: Place = (*LAYER, "ffn")


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        (DENSE, ("family",), "x", "family: 'x' is not known; known are gpt2, llama"),
        (DENSE, ("family",), ["llama"], "family: ['llama'] is not known"),
        (DENSE, ("colour",), 1, "colour: is not a field; known are name, family"),
        (DENSE, (*LAYER, "colour"), 1, "kinds.0.colour: is not a field; known are name, mixer, ffn"),
        (DENSE, (*MIXER, "nheads"), 3, "kinds.0.mixer.nheads: is not a field; known are kind, num_heads"),
        (DENSE, (*MIXER, 3), 3, "kinds.0.mixer.3: is not a field; known are kind, num_heads"),
        (SPARSE, (*FFN, "num_expert"), 3, "kinds.0.ffn.num_expert: is not a field; known are kind, num_experts"),
        (DENSE, ("vocab",), ..., "vocab: is missing"),
        (DENSE, (*LAYER, "mixer"), ..., "kinds.0.mixer: is missing"),
        (LATENT, (*MIXER, "kv_lora_rank"), ..., "kinds.0.mixer.kv_lora_rank: is missing"),
        (DENSE, (*MIXER, "kind"), ..., "kinds.0.mixer.kind: is missing; known are attention, latent, mamba2, delta"),
        (DENSE, (*MIXER, "kind"), "dense", "kinds.0.mixer.kind: 'dense' is not known; known are attention, latent, mamba2"),
        (DENSE, (*FFN, "kind"), ["dense"], "kinds.0.ffn.kind: ['dense'] is not known; known are dense, experts"),
        (DENSE, MIXER, 3, "kinds.0.mixer: must be a mapping of fields (is 3)"),
        (DENSE, LAYER, "layer", "kinds.0: must be a mapping of fields (is 'layer')"),
        (DENSE, ("kinds",), {}, "kinds: must be a list with at least one entry (is {})"),
        (DENSE, ("kinds",), [], "kinds: must be a list with at least one entry (is [])"),
        (DENSE, ("pattern",), 0, "pattern: must be a list with at least one entry (is 0)"),
        (DENSE, ("pattern",), [], "pattern: must be a list with at least one entry (is [])"),
        (DENSE, ("pattern", 2), 1, "pattern: must name a kind of layer by its index, from 0 to 0 (entry 2 is 1)"),
        (LATENT, ("pattern", 2), -1, "pattern: must name a kind of layer by its index, from 0 to 1 (entry 2 is -1)"),
        (LATENT, ("pattern", 2), "dense", "pattern: must name a kind of layer by its index, from 0 to 1 (entry 2 is 'dense')"),
        (LATENT, ("pattern", 2), True, "pattern: must name a kind of layer by its index, from 0 to 1 (entry 2 is True)"),
        (DENSE, (*LAYER, "name"), "embedding", "kinds.0.name: 'embedding' is what another part of every model is called"),
        (DENSE, (*LAYER, "name"), "head", "kinds.0.name: 'head' is what another part of every model is called"),
        (DENSE, (*LAYER, "name"), "mtp", "kinds.0.name: 'mtp' is what another part of every model is called"),
        (DENSE, (*LAYER, "name"), "", "kinds.0.name: is empty"),
        (LATENT, ("kinds", 1, "name"), "dense", "kinds.1.name: 'dense' is the name of kinds.0 too"),
        (MAMBA, ("kinds", 0, "mixer"), None, "kinds.0.mixer: is null, and so is ffn; a layer needs one of them"),
        (MAMBA, ("mtp_kind",), {"mixer": None, "ffn": None}, "mtp_kind.mixer: is null, and so is ffn"),
        (MAMBA, ("mtp_kind", "ffn", "hidden"), 0, "mtp_kind.ffn.hidden: must be a whole number of at least 1 (is 0)"),
        (DENSE, ("hidden",), 0, "hidden: must be a whole number of at least 1 (is 0)"),
        (DENSE, ("vocab",), True, "vocab: must be a whole number of at least 1 (is True)"),
        (DENSE, ("vocab",), "many", "vocab: must be a whole number of at least 1 (is 'many')"),
        (DENSE, (*MIXER, "num_heads"), -32, "kinds.0.mixer.num_heads: must be a whole number of at least 1 (is -32)"),
        (DENSE, (*MIXER, "head_dim"), 128.5, "kinds.0.mixer.head_dim: must be a whole number of at least 1 (is 128.5)"),
        (DENSE, (*MIXER, "window"), -1, "kinds.0.mixer.window: must be a whole number of at least 0 (is -1)"),
        (DENSE, (*FFN, "hidden"), None, "kinds.0.ffn.hidden: must be a whole number of at least 1 (is None)"),
        (DENSE, (*FFN, "activation"), "tanh", "kinds.0.ffn.activation: 'tanh' is not known; known are swiglu"),
        (DENSE, (*FFN, "bias"), "no", "kinds.0.ffn.bias: must be true or false (is 'no')"),
        (DENSE, ("norm_eps",), 0, "norm_eps: must be a number above 0 (is 0)"),
        (DENSE, ("rope_theta",), float("inf"), "rope_theta: must be a number above 0 (is inf)"),
        (DENSE, ("name",), 3, "name: must be text (is 3)"),
        (DENSE, (*MIXER, "num_kv_heads"), 5, "kinds.0.mixer.num_kv_heads: 5 key-value heads do not divide 32 heads"),
        (DENSE, (*MIXER, "head_dim"), 65, "kinds.0.mixer.head_dim: rotary positions need an even number (is 65)"),
        (DENSE, (*MIXER, "rope_dim"), 65, "kinds.0.mixer.rope_dim: rotary positions need an even number (is 65)"),
        (DENSE, (*MIXER, "rope_dim"), 256, "kinds.0.mixer.rope_dim: 256 channels cannot turn in a head of 128"),
        ("indexed", (*MIXER, "index_topk"), 0, "kinds.0.mixer.index_topk: must be at least 1 where indexer_heads is (is 0)"),
        ("delta", (*MIXER, "num_key_heads"), 3, "kinds.0.mixer.num_key_heads: 3 key heads do not divide 8 value heads"),
        (MAMBA, (*MIXER, "groups"), 3, "kinds.0.mixer.groups: 3 groups do not divide 128 heads"),
        (MAMBA, (*MIXER, "chunk"), 0, "kinds.0.mixer.chunk: must be a whole number of at least 1 (is 0)"),
        (SPARSE, (*FFN, "top_k"), 9, "kinds.0.ffn.top_k: 9 of 8 experts cannot be taken"),
        (SPARSE, (*FFN, "top_k"), 0, "kinds.0.ffn.top_k: must be a whole number of at least 1 (is 0)"),
        (SPARSE, (*FFN, "shared_gate"), True, "kinds.0.ffn.shared_gate: needs a shared block, and shared_hidden is 0"),
        (SPARSE, (*FFN, "branch_norms"), True, "kinds.0.ffn.branch_norms: needs a shared block, and shared_hidden is 0"),
        (SPARSE, (*LAYER, "parallel"), True, "kinds.0.parallel: only plain attention and a dense block run side by side"),
        ("gpt2", ("max_seq_len",), 4096, "learned_positions: 1024 rows are too few for a max_seq_len of 4096"),
    ],
)
def test_a_spec_that_is_no_model(name: str, place: Place, value: object, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        model_from_mapping(edited(written(name), place, value), ORIGIN)
    assert str(caught.value).startswith(f"{ORIGIN}.{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, 3, "llama-3-8b", []])
def test_a_model_that_is_no_mapping(data: object) -> None:
    with pytest.raises(BadInput, match=r"a.yaml: question.model: must be a mapping of fields \(is"):
        model_from_mapping(data, ORIGIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"family": "x"}, "family: 'x' is not known"),
        (lambda s: {"norm": "batch_norm"}, "norm: 'batch_norm' is not known; known are rms_norm, layer_norm"),
        (lambda s: {"mtp_layers": -1}, "mtp_layers: must be a whole number of at least 0"),
        (lambda s: {"kinds": ()}, "kinds: must be a list with at least one entry"),
        (lambda s: {"pattern": (0, 1)}, "pattern: must name a kind of layer by its index, from 0 to 0"),
        (lambda s: {"kinds": s.kinds * 2}, "kinds.1.name: 'layer' is the name of kinds.0 too"),
        (lambda s: {"kinds": (replace(s.kinds[0], mixer=None, ffn=None),)}, "kinds.0.mixer: is null, and so is ffn"),
    ],
)
def test_a_spec_made_by_hand_that_is_no_model(change: Callable[[ModelSpec], dict[str, Any]], message: str) -> None:
    spec = load_model(DENSE)
    with pytest.raises(BadInput, match=f"llama-3-8b: {message}"):
        check_spec(replace(spec, **change(spec)))


def test_a_plan_file_is_read_with_the_same_care(tmp_path: Path) -> None:
    question = ask(load_model(DENSE), load_cluster("dgx-h100:1"), tokens=1e12, seq_len=4096, global_batch=8,
                   cluster_text="dgx-h100:1")
    plan = plan_from_prediction(question, predict(question, Strategy(dp=8, zero=3, seq_len=4096)), None)
    path = write_plan(plan, tmp_path / "a.yaml")
    assert read_plan(path).question.model == question.model
    data = yaml.safe_load(path.read_text())
    data["question"]["model"]["kinds"][0]["mixer"]["nheads"] = 3
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(BadInput, match=r"a.yaml: question.model.kinds.0.mixer.nheads: is not a field; known are kind"):
        read_plan(path)


JUNK = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 3, 64, 0.5, -0.5, float("nan"), "", "x", "experts", [], {}, [0], ["x"],
                     {"kind": "dense"}, ...]),
    st.integers(-4, 4096),
)
"""What may stand where something else should; `...`: nothing does."""


def places(data: Any, at: Place = ()) -> Iterator[Place]:
    """Return where something stands in a mapping, at any depth."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield (*at, key)
        if isinstance(value, dict | list) and key != "pattern":
            yield from places(value, (*at, key))


@settings(max_examples=400)
@given(data=st.data())
def test_any_edit_of_a_spec_is_a_model_or_one_line(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([DENSE, SPARSE, LATENT, MAMBA, "indexed", "delta", "gpt2", "gpt-neox-20b"]))
    place, value = data.draw(st.sampled_from([*places(written(name)), ("pattern", 0)])), data.draw(JUNK)
    try:
        spec = model_from_mapping(edited(written(name), place, value), ORIGIN)
    except BadInput as e:
        assert str(e).startswith(ORIGIN)
        assert "\n" not in str(e)
    else:
        priced(spec)


CONFIGS: list[dict[str, Any]] = [
    *(config | {"model_type": model_type} for model_type, config in SMALL.items()), INDEXED,
    DELTA | {"layer_types": ["linear_attention", "full_attention"] * 2, "rope_parameters": {"partial_rotary_factor": 0.25}},
    SMALL["gpt_oss"] | {"model_type": "gpt_oss", "layer_types": ["sliding_attention", "full_attention"] * 2},
    {"model_type": "gemma4", "text_config": TINY | {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 128, "head_dim": 16,
        "rope_parameters": {"full_attention": {"partial_rotary_factor": 0.5}},
    }},
    TINY | {
        "model_type": "nemotron-nas", "num_hidden_layers": 2, "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
        ],
    },
]


@settings(max_examples=400)
@given(data=st.data())
def test_any_edit_of_a_configuration_is_a_model_or_one_line(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from(CONFIGS))
    place, value = data.draw(st.sampled_from([*places(config)])), data.draw(JUNK)
    try:
        spec = model_from_config(edited(config, place, value), "small")
    except BadInput as e:
        assert str(e).startswith("small: ")
        assert "\n" not in str(e)
    else:
        priced(spec)


@pytest.mark.parametrize(
    ("model_type", "change", "message"),
    [
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3}, "num_attention_heads: 3 heads do not divide a hidden"),
        ("gpt2", {"n_head": 5}, "n_head: 5 heads do not divide a hidden size of 64"),
        ("mpt", {"n_heads": 5}, "n_heads: 5 heads do not divide"), ("bloom", {"n_head": 5}, "n_head: 5 heads do not divide"),
        ("llama", {"num_key_value_heads": 3}, "num_kv_heads: 3 key-value heads do not divide 4 heads"),
        ("mixtral", {"num_experts_per_tok": 5}, "top_k: 5 of 4 experts cannot be taken"),
    ],
)
def test_a_configuration_whose_heads_or_experts_do_not_divide(model_type: str, change: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=f"small: .*{message}"):
        model_from_config(SMALL[model_type] | {"model_type": model_type} | change, "small")
