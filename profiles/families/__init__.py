"""Model families: one file each with its configuration, parameters and operators; a dict finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from profiles import files
from profiles.families import gpt2, llama
from profiles.families.decoder import Item, Shape
from profiles.files import BadInput
from profiles.model import PARTS, ModelSpec, ParamSpec, Part

__all__ = ["FAMILIES", "Family", "Item", "Shape", "all_params", "load_model", "model_from_config", "num_params",
           "part_items", "part_params"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family states: configuration -> spec, spec -> parameters of a part, spec and shape -> its operators."""

    from_config: Callable[[dict[str, Any]], ModelSpec]
    params: Callable[[ModelSpec, Part], tuple[ParamSpec, ...]]
    items: Callable[[ModelSpec, Part, Shape], tuple[Item, ...]]


FAMILIES: dict[str, Family] = {
    "gpt2": Family(from_config=gpt2.from_config, params=gpt2.params, items=gpt2.items),
    "llama": Family(from_config=llama.from_config, params=llama.params, items=llama.items),
}
MODEL_TYPES = {"gpt2": "gpt2", "llama": "llama", "qwen2": "llama"}
"""Hugging Face `model_type` -> family."""


def model_from_config(config: dict[str, Any], name: str, source: str = "") -> ModelSpec:
    """Return the spec of a Hugging Face `config.json`; an unknown `model_type` or a missing field is a `BadInput`."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise BadInput(f"{name}: model_type: {kind!r} is not known; known are {', '.join(MODEL_TYPES)}")
    try:
        spec = FAMILIES[MODEL_TYPES[kind]].from_config(config)
    except BadInput as e:
        raise BadInput(f"{name}: {e}") from None
    spec = replace(spec, name=name, source=source or f"config of {name}")
    check_spec(spec)
    return spec


def check_spec(spec: ModelSpec) -> None:
    """Refuse dimensions that cannot be a model."""
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name.startswith(("num_", "hidden", "head_dim", "ffn", "vocab", "max_seq")) and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise BadInput(f"{spec.name}: {field.name}: must be a whole number of at least 1 (is {value!r})")
    if spec.family == "llama" and spec.head_dim % 2:
        raise BadInput(f"{spec.name}: head_dim: rotary positions need an even number (is {spec.head_dim})")
    if spec.num_heads % spec.num_kv_heads:
        raise BadInput(
            f"{spec.name}: num_kv_heads: {spec.num_kv_heads} key-value heads do not divide {spec.num_heads} heads"
        )


def load_model(name: str) -> ModelSpec:
    """Return a model by catalogue name, or from a Hugging Face `config.json` or a YAML with the same keys."""
    path = Path(name)
    if path.suffix in (".json", ".yaml", ".yml"):
        config = files.read_mapping(path)
        label = str(config.get("_name_or_path") or path.parent.name or path.stem)
        return model_from_config(config, path.stem if path.stem != "config" else label, source=path.name)
    data = files.catalog_mapping("models", name)
    return model_from_config(data["config"], name, source=data["source"])


def part_params(spec: ModelSpec, part: Part) -> tuple[ParamSpec, ...]:
    """Return the parameters of the embedding, of one layer (named without its index) or of the head."""
    return FAMILIES[spec.family].params(spec, part)


def part_items(spec: ModelSpec, part: Part, shape: Shape) -> tuple[Item, ...]:
    """Return the operators and tensor-parallel collectives of a part, in the order of the forward pass."""
    return FAMILIES[spec.family].items(spec, part, shape)


def all_params(spec: ModelSpec) -> tuple[ParamSpec, ...]:
    """Return every trained parameter by its name in the executor's module; a tied head is not counted again."""
    result: list[ParamSpec] = []
    for part in PARTS:
        for index in range(spec.num_layers if part == "layer" else 1):
            prefix = f"layers.{index}." if part == "layer" else ""
            result += [ParamSpec(name=prefix + p.name, shape=p.shape, tp_dim=p.tp_dim) for p in part_params(spec, part)]
    if spec.tied_embeddings:
        result = [p for p in result if p.name != "head.weight"]
    return tuple(result)


def num_params(spec: ModelSpec) -> int:
    """Return the number of trained parameters."""
    return sum(p.num_elements for p in all_params(spec))
