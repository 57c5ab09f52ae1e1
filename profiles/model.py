"""Models: dimensions and parameters. Never a strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from profiles.ops import Num

Part = Literal["embedding", "layer", "head"]
PARTS: tuple[Part, ...] = ("embedding", "layer", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer, by its dimensions."""

    name: str
    family: str
    num_layers: int
    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_hidden: int
    vocab: int
    max_seq_len: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamSpec:
    """One parameter: its name in the executor's module, its shape, and the dim that may shard on tp (or none)."""

    name: str
    shape: tuple[int, ...]
    tp_dim: int | None = None

    @property
    def num_elements(self) -> int:
        """Return the number of elements."""
        return int(np.prod(self.shape))


def count(params: tuple[ParamSpec, ...], tp: Num = 1) -> Num:
    """Return how many elements of these parameters one tensor-parallel rank holds."""
    whole = sum(p.num_elements for p in params if p.tp_dim is None)
    sharded = sum(p.num_elements for p in params if p.tp_dim is not None)
    return whole + sharded / tp if np.ndim(tp) or tp != 1 else whole + sharded
