"""Model specs as people write them: read from a mapping field by field, and refused where they cannot be a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import partial
from typing import Any

from profiles.families.decoder import blocks
from profiles.families.pieces import ACTIVATION
from profiles.files import BadInput
from profiles.model import (
    OTHER_PARTS,
    Experts,
    FeedForward,
    LatentAttention,
    LayerSpec,
    LinearAttention,
    ModelSpec,
    SelfAttention,
    StateSpace,
)

MIXERS: dict[str, type[Any]] = {
    "attention": SelfAttention, "latent": LatentAttention, "mamba2": StateSpace, "delta": LinearAttention,
}
FFNS: dict[str, type[Any]] = {"dense": FeedForward, "experts": Experts}
CHOICES = {
    "activation": tuple(ACTIVATION), "positions": ("rotary", "alibi", "learned", "none"),
    "qk_norm": ("none", "head", "all", "plain"), "decay": ("head", "channel"), "norm": ("rms_norm", "layer_norm"),
}
"""What the named fields of a spec and of its blocks may say."""
SOME = "must be a list with at least one entry"


def read_spec(data: Any, origin: str) -> ModelSpec:
    """Return the spec that a mapping states, in the fields of `ModelSpec`; what is no field, or is missing, is refused."""
    spec: ModelSpec = _read(ModelSpec, data, origin, kinds=_read_layers, pattern=_read_list, mtp_kind=_read_extra_layer)
    return spec


def _read(cls: type[Any], data: Any, origin: str, **nested: Callable[[Any, str], Any]) -> Any:
    """Return a dataclass of what a mapping states; `nested` read the fields that are no plain values."""
    known = {f.name: f.default for f in fields(cls)}
    for field in _mapping(data, origin):
        if field not in known:
            raise BadInput(f"{origin}.{field}: is not a field; known are {', '.join(known)}")
    for field, default in known.items():
        if default is MISSING and field not in data:
            raise BadInput(f"{origin}.{field}: is missing")
    return cls(**{k: nested[k](v, f"{origin}.{k}") if k in nested else v for k, v in data.items()})


def _mapping(data: Any, origin: str) -> dict[Any, Any]:
    if not isinstance(data, dict):
        raise BadInput(f"{origin}: must be a mapping of fields (is {data!r})")
    return data


def _read_list(data: Any, origin: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise BadInput(f"{origin}: {SOME} (is {data!r})")
    return tuple(data)


def _read_layers(data: Any, origin: str) -> tuple[LayerSpec, ...]:
    return tuple(_read_layer(layer, f"{origin}.{i}") for i, layer in enumerate(_read_list(data, origin)))


def _read_extra_layer(data: Any, origin: str) -> LayerSpec | None:
    return None if data is None else _read_layer(data, origin)


def _read_layer(data: Any, origin: str) -> LayerSpec:
    layer: LayerSpec = _read(
        LayerSpec, data, origin, mixer=partial(_read_block, MIXERS), ffn=partial(_read_block, FFNS),
    )
    return layer


def _read_block(known: dict[str, type[Any]], data: Any, origin: str) -> Any:
    """Return the block of the kind that a mapping names, or None for a missing one."""
    if data is None:
        return None
    kind = _mapping(data, origin).get("kind")
    if not isinstance(kind, str) or kind not in known:
        fault = f"{kind!r} is not known" if "kind" in data else "is missing"
        raise BadInput(f"{origin}.kind: {fault}; known are {', '.join(known)}")
    return _read(known[kind], data, origin)


def check_dimensions(spec: ModelSpec, origin: str) -> None:
    """Refuse sizes, names and blocks that make no model; `origin` is what field names are written behind."""
    _check_fields(spec, origin)
    for field in ("kinds", "pattern"):
        if not getattr(spec, field):
            raise BadInput(f"{origin}{field}: {SOME} (is [])")
    _check_names(spec, origin)
    for i, layer in enumerate(spec.kinds):
        _check_layer(layer, f"{origin}kinds.{i}.")
    if spec.mtp_kind is not None:
        _check_layer(spec.mtp_kind, f"{origin}mtp_kind.")
    last = len(spec.kinds) - 1
    for i, kind in enumerate(spec.pattern):
        if not _is_whole(kind, 0) or kind > last:
            raise BadInput(f"{origin}pattern: must name a kind of layer by its index, from 0 to {last} (entry {i} is {kind!r})")
    if 0 < spec.learned_positions < spec.max_seq_len:
        raise BadInput(f"{origin}learned_positions: {spec.learned_positions} rows are too few for a max_seq_len of "
                       f"{spec.max_seq_len}")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_fields(block: Any, origin: str) -> None:
    """Refuse a value that is not of its field's type; sizes that every block must have are at least 1."""
    for field in fields(block):
        value, at = getattr(block, field.name), f"{origin}{field.name}"
        least = 0 if field.name == "q_lora_rank" or field.default in (0, None) else 1
        if field.type == "int" and not _is_whole(value, least):
            raise BadInput(f"{at}: must be a whole number of at least {least} (is {value!r})")
        if field.type == "bool" and not isinstance(value, bool):
            raise BadInput(f"{at}: must be true or false (is {value!r})")
        if field.type == "str" and not isinstance(value, str):
            raise BadInput(f"{at}: must be text (is {value!r})")
        if field.type == "float" and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf")
        ):
            raise BadInput(f"{at}: must be a number above 0 (is {value!r})")
        if field.name in CHOICES and value not in CHOICES[field.name]:
            raise BadInput(f"{at}: {value!r} is not known; known are {', '.join(CHOICES[field.name])}")


def _check_names(spec: ModelSpec, origin: str) -> None:
    names = [layer.name for layer in spec.kinds]
    for i, name in enumerate(names):
        at = f"{origin}kinds.{i}.name"
        if not name:
            raise BadInput(f"{at}: is empty; each kind of layer needs a name of its own")
        if name in OTHER_PARTS:
            raise BadInput(f"{at}: {name!r} is what another part of every model is called; give this kind of layer another")
        if name in names[:i]:
            raise BadInput(f"{at}: {name!r} is the name of kinds.{names.index(name)} too; each needs a name of its own")


def _check_layer(layer: LayerSpec, origin: str) -> None:
    _check_fields(layer, origin)
    if not blocks(layer):
        raise BadInput(f"{origin}mixer: is null, and so is ffn; a layer needs one of them")
    mixer, ffn = layer.mixer, layer.ffn
    if mixer is not None:
        _check_fields(mixer, f"{origin}mixer.")
    if ffn is not None:
        _check_fields(ffn, f"{origin}ffn.")
    if layer.parallel and not (isinstance(mixer, SelfAttention) and isinstance(ffn, FeedForward)):
        raise BadInput(f"{origin}parallel: only plain attention and a dense block run side by side")
    _check_heads(mixer, f"{origin}mixer.")
    if isinstance(ffn, Experts):
        _check_experts(ffn, f"{origin}ffn.")


def _check_heads(mixer: object, origin: str) -> None:
    if isinstance(mixer, (SelfAttention, LatentAttention)):
        _check_rotary(mixer, origin)
    if isinstance(mixer, SelfAttention) and mixer.num_heads % mixer.num_kv_heads:
        raise BadInput(f"{origin}num_kv_heads: {mixer.num_kv_heads} key-value heads do not divide {mixer.num_heads} heads")
    if isinstance(mixer, LatentAttention):
        for field in ("indexer_dim", "index_topk"):
            if mixer.indexer_heads and not getattr(mixer, field):
                raise BadInput(f"{origin}{field}: must be at least 1 where indexer_heads is (is 0)")
    if isinstance(mixer, StateSpace) and mixer.num_heads % mixer.groups:
        raise BadInput(f"{origin}groups: {mixer.groups} groups do not divide {mixer.num_heads} heads")
    if isinstance(mixer, LinearAttention) and mixer.num_value_heads % mixer.num_key_heads:
        raise BadInput(f"{origin}num_key_heads: {mixer.num_key_heads} key heads do not divide {mixer.num_value_heads} "
                       "value heads")


def _check_rotary(mixer: SelfAttention | LatentAttention, origin: str) -> None:
    field = "rope_dim" if mixer.rope_dim else "head_dim"
    turned = getattr(mixer, field)
    if mixer.positions == "rotary" and turned % 2:
        raise BadInput(f"{origin}{field}: rotary positions need an even number (is {turned})")
    if turned > mixer.head_dim:
        raise BadInput(f"{origin}{field}: {turned} channels cannot turn in a head of {mixer.head_dim}")


def _check_experts(ffn: Experts, origin: str) -> None:
    if ffn.top_k > ffn.num_experts:
        raise BadInput(f"{origin}top_k: {ffn.top_k} of {ffn.num_experts} experts cannot be taken")
    for field in ("shared_gate", "branch_norms"):
        if getattr(ffn, field) and not ffn.shared_hidden:
            raise BadInput(f"{origin}{field}: needs a shared block, and shared_hidden is 0")
