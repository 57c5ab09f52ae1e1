"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685): y = W x + (alpha / r) B A dropout(x), with W frozen.

A [r, in] and B [out, r] are trained; all else of the model, norms, embedding and head too, is as it was trained before:
no gradient of it is computed, summed or kept. Gradients of inputs are needed down to the first adapter; that the maps
of the first layer need none of theirs is left out (one of all layers).

Tensor parallelism cuts both (NeMo and Megatron-Bridge, peft/utils.py, ParallelLinearAdapter): B by its outputs, A by its
outputs where those of W are cut, by its inputs where those of W are. What passes between them is r wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from profiles.collectives import Collective
from profiles.families import Item, Shape, part_items, part_params
from profiles.families.pieces import fan_in, used
from profiles.matmul import Gemm, GroupedGemm
from profiles.model import ModelSpec, ParamSpec, Part
from profiles.ops import ELEMENT_BYTES, Kernel, Num, Pass
from profiles.pointwise import Traffic
from profiles.vocabulary import Embedding

_ATTENTION = ("attn.w", "ssm.in_proj", "ssm.out_proj", "delta.in_proj", "delta.w")
TARGETS = {"attention": _ATTENTION, "all": (*_ATTENTION, "ffn.w", "ffn.shared.w", "ffn.experts.w", "ffn.latent")}
"""Targets -> what the names of the adapted maps begin with: those along the sequence, or those of all blocks. Routers, gates
and indexers keep what they learned."""
FUSED = {"wqkv": "wq", "w13": "w1", "delta.in_proj": "delta.wq"}
"""Name of a fused projection -> that of one of its parts, which is cut in the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenGemm(Gemm):
    """A linear map whose weight is not trained: two passes; it keeps nothing, and casts no copy for a weight gradient."""

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return y = x w (F) or dx = dy wᵀ (B)."""
        return _without_weight_gradient(Gemm.kernels(self, pass_))

    @property
    def saved_bytes(self) -> Num:
        """Return 0: dx needs the weight only."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenGroupedGemm(GroupedGemm):
    """Matmuls of experts that are not trained."""

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the grouped matmul of a pass for the input."""
        return _without_weight_gradient(GroupedGemm.kernels(self, pass_))

    @property
    def saved_bytes(self) -> Num:
        """Return 0: dx needs the weights only."""
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenEmbedding(Embedding):
    """A table look-up without a gradient."""

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the gather."""
        return Embedding.kernels(self, pass_) if pass_ == "F" else ()

    @property
    def saved_bytes(self) -> Num:
        """Return 0: no gradient asks for the tokens."""
        return 0.0


FROZEN: dict[type, Callable[..., Any]] = {Gemm: FrozenGemm, GroupedGemm: FrozenGroupedGemm, Embedding: FrozenEmbedding}


def _without_weight_gradient(kernels: Iterable[Kernel]) -> tuple[Kernel, ...]:
    """Return the kernels of the other passes; a cast then writes one layout, not the transposed one too."""
    return tuple(
        replace(k, written_bytes=k.written_bytes / 2) if k.kind == "quantise" else k for k in kernels if k.pass_ != "W"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A memory-bound operator over [rows, cols] with its own traffic, at the rate of an add."""

    name: str
    rows: Num
    cols: Num
    dtype: str
    traffic: Traffic
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the kernel of the forward or of the backward pass."""
        t, forward = self.traffic, pass_ == "F"
        if pass_ not in ("F", "B"):
            return ()
        return (Kernel(
            kind="add", pass_=pass_, dtype=self.dtype, size=(self.rows, self.cols),
            read_bytes=self.output_bytes * (t.read_forward if forward else t.read_backward),
            written_bytes=self.output_bytes * (t.written_forward if forward else t.written_backward),
            launches=t.launches_forward if forward else t.launches_backward,
        ),)

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes kept for backward."""
        return self.traffic.saved * self.output_bytes

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of one [rows, cols] tensor."""
        return ELEMENT_BYTES[self.dtype] * self.rows * self.cols

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of the gradient of the input."""
        return self.traffic.written_backward * self.output_bytes


def trained_items(spec: ModelSpec, part: Part, shape: Shape, rank: int, targets: str) -> tuple[Item, ...]:
    """Return the operators and collectives of a part: frozen, with adapters of a rank on its targets; 0: all trained."""
    items = part_items(spec, part, shape)
    if not rank:
        return items
    cuts = _cuts(part_params(spec, part))
    result: list[Item] = []
    for item in items:
        result.append(_frozen(item))
        if isinstance(item, Gemm | GroupedGemm) and item.name.startswith(TARGETS[targets]):
            result += _adapter(item, cuts[_part_of(item.name)], shape, rank)
    return tuple(result)


def trained_elements(items: Iterable[Item]) -> tuple[Num, Num]:
    """Return the elements of a rank's adapters: of maps that all tokens take, and of experts'."""
    items = tuple(items)
    dense = sum((i.k * i.n for i in items if type(i) is Gemm), 0.0)
    return dense, sum((i.groups * i.k * i.n for i in items if type(i) is GroupedGemm), 0.0)


def largest_rank(spec: ModelSpec, targets: str) -> int:
    """Return the narrowest side of the maps that targets name: a higher rank would be no low-rank update."""
    sides = [
        min(p.shape[-2:]) for part in spec.parts for p in part_params(spec, part)
        if p.name.startswith(TARGETS[targets]) and p.name.endswith(".weight")
    ]
    return min(sides, default=0)


def _cuts(params: Iterable[ParamSpec]) -> dict[str, int | None]:
    """Return which dim of a map's weight [out, in] tensor parallelism cuts; experts count in front of theirs."""
    return {p.name.removesuffix(".weight"): None if p.tp_dim is None else p.tp_dim - p.expert for p in params}


def _part_of(name: str) -> str:
    for fused, one in FUSED.items():
        name = name.replace(fused, one)
    return name


def _frozen(item: Item) -> Item:
    kind = FROZEN.get(type(item))
    if kind is None:
        return item
    frozen: Item = kind(**{f.name: getattr(item, f.name) for f in fields(item)})  # type: ignore[arg-type]
    return frozen


def _adapter(op: Gemm | GroupedGemm, cut: int | None, shape: Shape, rank: int) -> tuple[Item, ...]:
    """Return dropout, A, B and the sum of a map's adapter, with what tensor parallelism passes between them."""
    grouped = isinstance(op, GroupedGemm)
    axis, degree = ("etp", shape.etp) if grouped else ("tp", shape.tp)
    rows = op.m * op.groups if isinstance(op, GroupedGemm) else op.m
    e, name = ELEMENT_BYTES[op.dtype], f"{op.name}.lora"
    down = replace(op, name=f"{name}_a", n=rank / degree if cut == 0 else rank, matmul="", saves_input=True)
    up = replace(down, name=f"{name}_b", k=rank, n=op.n / degree if cut == 1 else op.n)
    split = np.asarray(grouped or shape.sequence_parallel, dtype=bool)
    between, behind = _passed(name, cut, axis, degree, split, e * rows * rank, e * rows * up.n) \
        if used(degree) and cut is not None else ((), ())
    # a mask of one byte is kept, and the masked input is what A needs
    mask = Traffic(read_forward=1, written_forward=1 + 1 / e, read_backward=1 + 1 / e, written_backward=1, saved=1 / e)
    summed = rows / np.where(split, degree, 1) if cut == 1 else rows
    return (
        *fan_in(f"{name}.fan_in", rows, op.k, shape, 2),
        Stream(name=f"{name}.dropout", rows=rows, cols=op.k, dtype=op.dtype, traffic=mask),
        down, *between, up, *behind,
        Stream(name=f"{name}.add", rows=summed, cols=op.n, dtype=op.dtype, traffic=SCALED_SUM[shape.mode]),
    )


SCALED_SUM = {
    "fused": Traffic(read_forward=2, written_forward=1, read_backward=1, written_backward=1, saved=0),
    "eager": Traffic(read_forward=3, written_forward=2, read_backward=1, written_backward=1, saved=0, launches_forward=2),
}
"""Traffic of y + (alpha / r) z, in tensors; the gradient of y is that of the sum, without a kernel."""


def _passed(
    name: str, cut: int, axis: str, degree: Num, split: Num, thin: Num, wide: Num
) -> tuple[tuple[Collective, ...], tuple[Collective, ...]]:
    """Return the collectives between A and B and behind B; bytes of all rows, r wide and as wide as B's outputs here.

    Cut by outputs, A's are gathered; cut by inputs, its partial sums are added; backward B's partial gradients are.
    The outputs of the map that is cut by inputs then are those of its own: whole for a share of the tokens, or for all.
    """
    if cut == 0:
        return (Collective(name=f"{name}.gather", kind="all_gather", axis=axis, bytes=thin, group_size=degree,
                           backward_kind="all_reduce"),), ()
    return (
        (Collective(name=f"{name}.sum", kind="all_reduce", axis=axis, bytes=thin, group_size=degree),),
        (Collective(name=f"{name}.to_tokens", kind="all_to_all", axis=axis, bytes=wide, group_size=np.where(split, degree, 1)),
         Collective(name=f"{name}.whole", kind="all_gather", axis=axis, bytes=wide * degree,
                    group_size=np.where(split, 1, degree), backward_group=1)),
    )
