"""Reading single fields of a Hugging Face configuration, and joining layers into kinds and a pattern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from profiles.files import BadInput
from profiles.model import LayerSpec

Config = dict[str, Any]


def whole_number(config: Config, field: str, default: int | None = None, *, least: int = 1) -> int:
    """Return a field that must be a whole number of at least `least`; null counts as missing."""
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise BadInput(f"{field}: is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{field}: must be a whole number of at least {least} (is {value!r})")
    return value


def head_width(hidden: int, heads: int, field: str = "num_attention_heads") -> int:
    """Return the width of a head where heads share the hidden size evenly; `field` states their number."""
    if hidden % heads:
        raise BadInput(f"{field}: {heads} heads do not divide a hidden size of {hidden}")
    return hidden // heads


def number(config: Config, field: str, default: float) -> float:
    """Return a field that must be a number above 0; a missing or null one is the default."""
    value = config.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise BadInput(f"{field}: must be a number above 0 (is {value!r})")
    return float(value)


def flag(config: Config, field: str, default: bool = False) -> bool:
    """Return a field that must be true or false; a missing or null one is the default."""
    value = config.get(field)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise BadInput(f"{field}: must be true or false (is {value!r})")
    return value


def section(config: Config, field: str) -> Config:
    """Return a field that is a mapping itself; a missing one is empty."""
    value = config.get(field)
    if value is not None and not isinstance(value, dict):
        raise BadInput(f"{field}: must be a mapping (is {value!r})")
    return value or {}


def per_layer(config: Config, field: str, num_layers: int) -> list[Any]:
    """Return a field that must be a list with an entry for each layer."""
    value = config.get(field)
    if not isinstance(value, list) or len(value) < num_layers:
        raise BadInput(f"{field}: must be a list of {num_layers} entries, one for each layer")
    return value[:num_layers]


def whole_numbers(config: Config, field: str) -> list[int]:
    """Return a field that must be a list of whole numbers; a missing or null one is empty."""
    value = config.get(field)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise BadInput(f"{field}: must be a list of whole numbers (is {value!r})")
    return value


def each_known(field: str, entries: list[Any], known: Iterable[str]) -> list[str]:
    """Return the entries of a field, each of which must be known."""
    if strange := [e for e in entries if not isinstance(e, str) or e not in known]:
        unknown(f"{field}: {sorted({str(e) for e in strange})} are")
    return entries


def choice(config: Config, field: str, known: dict[str, str], default: str | None = None) -> str:
    """Return what a field's value stands for; one that is not in `known` is refused."""
    value = config.get(field, default)
    if not isinstance(value, str) or value not in known:
        raise BadInput(f"{field}: {value!r} is not known; known are {', '.join(known)}")
    return known[value]


def refuse(config: Config, fields: Iterable[str]) -> None:
    """Refuse a configuration that switches on one of these fields."""
    for field in fields:
        if config.get(field):
            raise BadInput(f"{field}: {config[field]!r} is not known for this family and cannot be priced")


def unknown(what: str) -> NoReturn:
    """Refuse a block that no law here prices."""
    raise BadInput(f"{what} not known and cannot be priced")


def rope_theta(config: Config, default: float = 10000.0) -> float:
    """Return the base of the rotary positions, wherever the configuration states it."""
    inner = section(config, "rope_parameters")
    return number(config | {k: v for k, v in inner.items() if k == "rope_theta"}, "rope_theta", default)


def rope_dim(config: Config, head_dim: int, default: float = 1.0) -> int:
    """Return how many channels of a head turn: `partial_rotary_factor` of them; 0 stands for all."""
    inner = section(config, "rope_parameters")
    share = number(config | inner, "partial_rotary_factor", default)
    return 0 if share >= 1 else 2 * int(head_dim * share / 2)


def kinds_of(layers: Sequence[LayerSpec]) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
    """Return the different kinds of layers in order of appearance, and which kind each layer is.

    A kind that is alone is named `layer`; kinds of the same name that differ are numbered.
    """
    found = list(dict.fromkeys(layers))
    pattern = tuple(found.index(layer) for layer in layers)
    names = [layer.name for layer in found]
    if len(found) == 1:
        return (replace(found[0], name="layer"),), pattern
    kinds = tuple(
        replace(kind, name=f"{kind.name}_{names[:i].count(kind.name) + 1}") if names.count(kind.name) > 1 else kind
        for i, kind in enumerate(found)
    )
    return kinds, pattern


TEXT_ONLY = "text tower only, what reads images or sound is left out"


def text_tower(config: Config) -> Config:
    """Return the configuration of the language model inside a multimodal one; of a plain one, the same."""
    inner = section(config, "text_config")
    outer = {k: v for k, v in config.items() if k == "tie_word_embeddings"}
    return outer | {k: v for k, v in inner.items() if v is not None} if inner else config


def kind_of_attention(config: Config, num_layers: int, default: list[str], known: Iterable[str]) -> list[str]:
    """Return which of the known kinds of attention each layer has; `default` where nothing is stated."""
    stated = default if config.get("layer_types") is None else per_layer(config, "layer_types", num_layers)
    return each_known("layer_types", stated, known)
