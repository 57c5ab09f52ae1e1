"""Model families: readers of configurations by `model_type`, and what the blocks of a model ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from profiles import files
from profiles.families import classic, deepseek, gemma, gpt2, llama, nemotron, qwen, sparse
from profiles.families.decoder import part_items, part_params
from profiles.families.pieces import Item, Shape
from profiles.families.spec import check_dimensions, read_spec
from profiles.files import BadInput
from profiles.model import ModelSpec, ParamSpec

__all__ = ["FAMILIES", "MODEL_TYPES", "Item", "Shape", "all_params", "check_spec", "load_model", "model_from_config",
           "model_from_mapping", "model_from_text", "num_active_params", "num_params", "part_items", "part_params"]

MODEL_TYPES: dict[str, Callable[[dict[str, Any]], ModelSpec]] = {
    "gpt2": gpt2.from_config,
    "llama": llama.from_config, "qwen2": llama.from_config, "mistral": llama.mistral, "mimo": llama.mimo,
    "phi3": llama.phi3,
    "mpt": classic.mpt, "opt": classic.opt, "bloom": classic.bloom, "gpt_neox": classic.gpt_neox,
    "falcon": classic.falcon, "phi": classic.phi, "nemotron": classic.nemotron, "olmo2": classic.olmo2,
    "gemma": gemma.gemma, "gemma2": gemma.gemma2, "gemma3": gemma.gemma3, "gemma3_text": gemma.gemma3,
    "gemma4": gemma.gemma4, "gemma4_text": gemma.gemma4,
    "qwen2_moe": qwen.qwen2_moe, "qwen3": qwen.qwen3, "qwen3_moe": qwen.qwen3_moe, "qwen3_vl": qwen.qwen3_vl,
    "qwen3_vl_moe": qwen.qwen3_vl_moe, "qwen3_5": qwen.qwen3_5, "qwen3_5_text": qwen.qwen3_5,
    "qwen3_5_moe": qwen.qwen3_5_moe, "qwen3_5_moe_text": qwen.qwen3_5_moe,
    "deepseek_v2": deepseek.v2, "deepseek_v3": deepseek.v3, "kimi_k2": deepseek.v3, "kimi_k25": deepseek.kimi_k25,
    "deepseek_v32": deepseek.v32, "glm_moe_dsa": deepseek.glm,
    "mixtral": sparse.mixtral, "gpt_oss": sparse.gpt_oss, "minimax_m2": sparse.minimax_m2, "llama4": sparse.llama4,
    "llama4_text": sparse.llama4, "mimo_v2_flash": sparse.mimo_v2, "kimi_linear": sparse.kimi_linear,
    "kimi_k3": sparse.kimi_linear,
    "nemotron_h": nemotron.hybrid, "nemotron-nas": nemotron.searched,
}
"""Hugging Face `model_type` -> reader of its configuration."""

UNPRICED = {
    **dict.fromkeys(("deepseek_v4", "deepseek_ref"),
                    "hyper-connections (hc_mult) and attention to compressed keys (compress_ratios)"),
    **dict.fromkeys(("minimax_m3", "minimax_m3_vl"), "choices of blocks of keys (sparse_attention_config)"),
    "step3p7": "gates for each head and the heads of sliding layers (attention_other_setting)",
}
"""Hugging Face `model_type` -> blocks of it that have no law here."""

FAMILIES = tuple(dict.fromkeys(("gpt2", "llama", *MODEL_TYPES)))
"""Names that `ModelSpec.family` may have."""


def model_from_config(config: dict[str, Any], name: str, source: str = "") -> ModelSpec:
    """Return the spec of a Hugging Face `config.json`; an unknown `model_type` or a missing field is a `BadInput`."""
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in UNPRICED:
        raise BadInput(f"{name}: {kind}: {UNPRICED[kind]} are not known and cannot be priced")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise BadInput(f"{name}: model_type: {kind!r} is not known; known are {', '.join(MODEL_TYPES)}")
    try:
        spec = MODEL_TYPES[kind](config)
    except BadInput as e:
        raise BadInput(f"{name}: {e}") from None
    note = f"; {spec.source}" if spec.source else ""
    spec = replace(spec, name=name, source=(source or f"config of {name}") + note)
    check_spec(spec)
    return spec


def model_from_mapping(data: Any, origin: str) -> ModelSpec:
    """Return the spec that a plan file states in the fields of `ModelSpec`; `origin` is named in errors."""
    spec = read_spec(data, origin)
    check_spec(spec, origin)
    return spec


def check_spec(spec: ModelSpec, origin: str = "") -> None:
    """Refuse what cannot be a model, by the field that says so; `origin` is where the spec was written, if anywhere."""
    at = f"{origin}." if origin else f"{spec.name}: "
    if spec.family not in FAMILIES:
        raise BadInput(f"{at}family: {spec.family!r} is not known; known are {', '.join(FAMILIES)}")
    check_dimensions(spec, at)


def load_model(name: str) -> ModelSpec:
    """Return a model by catalogue name, or from a file (`model_from_text`)."""
    path = Path(name)
    if path.suffix in (".json", ".yaml", ".yml"):
        return model_from_text(files.read_text(path), path)
    data = files.catalog_mapping("models", name)
    return model_from_config(data["config"], name, source=data["source"])


def model_from_text(text: str, path: Path) -> ModelSpec:
    """Return the model that the text of a file states, which `path` names: a Hugging Face `config.json`, a YAML with its keys,
    or one that spells out its layers in the fields of `ModelSpec`."""
    config = files.parse_mapping(text, str(path))
    if "kinds" in config:
        return model_from_mapping(config, str(path))
    label = str(config.get("_name_or_path") or path.parent.name or path.stem)
    return model_from_config(config, path.stem if path.stem != "config" else label, source=path.name)


def all_params(spec: ModelSpec) -> tuple[ParamSpec, ...]:
    """Return every parameter by its name in the executor's module; a tied head is not counted again.

    Layers for multi-token prediction are left out: `part_params(spec, "mtp")` has those of one.
    """
    layers = [part_params(spec, kind.name) for kind in spec.kinds]
    result = list(part_params(spec, "embedding"))
    for index, kind in enumerate(spec.pattern):
        result += [replace(p, name=f"layers.{index}.{p.name}") for p in layers[kind]]
    return (*result, *_head_params(spec))


def _head_params(spec: ModelSpec) -> tuple[ParamSpec, ...]:
    return tuple(p for p in part_params(spec, "head") if not (spec.tied_embeddings and p.name == "head.weight"))


def _counted(spec: ModelSpec) -> Iterator[tuple[int, ParamSpec]]:
    """Yield every parameter of each kind of part, and in how many parts it stands."""
    for param in (*part_params(spec, "embedding"), *_head_params(spec)):
        yield 1, param
    for index, kind in enumerate(spec.kinds):
        times = spec.pattern.count(index)
        for param in part_params(spec, kind.name):
            yield times, param


def num_params(spec: ModelSpec) -> int:
    """Return the number of trained parameters."""
    return sum(times * p.num_elements for times, p in _counted(spec))


def num_active_params(spec: ModelSpec) -> int:
    """Return how many parameters one token uses: of the experts only those that it is sent to."""
    return round(sum(times * p.num_elements * p.active for times, p in _counted(spec)))
