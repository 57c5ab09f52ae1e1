"""What runs where: the kernels and collectives of each part of a model under a strategy. Never seconds.

A stage is a run of parts: the embedding (first stage), layers, the head (last stage). The strategy's fields may be
arrays; then every size is an array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from profiles.collectives import Collective
from profiles.families import Item, Shape, part_items, part_params
from profiles.model import PARTS, ModelSpec, Part, count
from profiles.ops import ELEMENT_BYTES, AdamW, CrossEntropy, Kernel, Num, Op, Pass, Pointwise
from simulator.strategy import Strategy

Work = tuple[Kernel | Collective, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartWork:
    """One part (embedding, one layer, head) of one micro-batch on one rank.

    `recompute_full` and `recompute_selective` are what backward repeats under that recomputation. `accumulate` adds
    a micro-batch's gradients to those of the ones before. `gather_copy` and `reduce_copy` move what is gathered or
    reduced between parameters and the flat buffers of the collective. `gather` brings
    the part's sharded weights together, `reduce` sums its gradients over dp, `update` is its optimizer step and
    `regather` what follows it (ZeRO-1).
    """

    forward: Work
    backward: Work
    recompute_selective: Work
    recompute_full: Work
    accumulate: Kernel
    gather_copy: Kernel
    reduce_copy: Kernel
    gather: Collective
    reduce: tuple[Collective, ...]
    update: Kernel
    regather: Collective
    params: Num
    saved_none_bytes: Num
    saved_selective_bytes: Num
    saved_full_bytes: Num
    transient_bytes: Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model under a strategy: the work of each part, what passes between stages, and the sum of a tied head."""

    model: ModelSpec
    strategy: Strategy
    parts: dict[Part, PartWork]
    send: Collective
    tie: Collective


def build_workload(model: ModelSpec, strategy: Strategy) -> Workload:
    """Return the workload of a model under a strategy (or a batch of strategies)."""
    shape = Shape(
        micro_batch=strategy.micro_batch, seq_len=strategy.seq_len, tp=strategy.tp, dtype=strategy.precision,
        mode=strategy.kernels,
    )
    boundary = ELEMENT_BYTES[strategy.precision] * shape.local_tokens * model.hidden
    send = Collective(name="activation", kind="send", axis="pp", bytes=boundary, group_size=np.minimum(strategy.pp, 2))
    # embedding and head are one parameter: where they sit on two stages, their gradients are summed
    tied = model.tied_embeddings & (np.asarray(strategy.pp) > 1)
    tie = Collective(
        name="tied embedding", kind="all_reduce", axis="pp", bytes=4.0 * model.vocab * model.hidden / strategy.tp,
        group_size=np.where(tied, 2, 1),
    )
    return Workload(
        model=model, strategy=strategy, parts={p: _part_work(model, strategy, shape, p) for p in PARTS}, send=send,
        tie=tie,
    )


def _part_work(model: ModelSpec, strategy: Strategy, shape: Shape, part: Part) -> PartWork:
    items = part_items(model, part, shape)
    ops: list[Op] = [i for i in items if not isinstance(i, Collective)]
    params = count(part_params(model, part), strategy.tp)
    if part == "head" and model.tied_embeddings:
        # the tied output projection is a second copy only where the head sits on another stage than the embedding
        tied = model.vocab * model.hidden / strategy.tp
        params = params - np.where(np.asarray(strategy.pp) == 1, tied, 0)
    layer_input = ELEMENT_BYTES[strategy.precision] * shape.local_tokens * model.hidden
    repeats = part == "layer"
    saved_none: Num = sum(op.saved_bytes for op in ops)
    kept: Num = sum(op.output_bytes for op in ops if op.kept_by_selective)
    return PartWork(
        forward=_pass(items, "F"), backward=_backward(items),
        recompute_selective=_recompute_selective(items) if repeats else (),
        recompute_full=_recompute_full(items) if repeats else (),
        params=params,
        saved_none_bytes=saved_none,
        saved_selective_bytes=layer_input + kept if repeats else saved_none,
        saved_full_bytes=layer_input if repeats else saved_none,
        transient_bytes=_transient_bytes(ops),
        **_data_parallel(strategy, part, params, model.hidden),
    )


def _pass(items: tuple[Item, ...], pass_: Literal["F", "B", "W"]) -> Work:
    work: list[Kernel | Collective] = []
    for item in items:
        if isinstance(item, Collective):
            work += [item] if pass_ == "F" else []
        else:
            work += item.kernels(pass_)
    return tuple(work)


def _backward(items: tuple[Item, ...]) -> Work:
    work: list[Kernel | Collective] = []
    for item in reversed(items):
        if isinstance(item, Collective):
            work.append(item.backward())
        else:
            work += [*item.kernels("B"), *item.kernels("W")]
    return tuple(work)


def _recompute_full(items: tuple[Item, ...]) -> Work:
    """Return what full recomputation repeats: the forward up to the last tensor that backward needs.

    torch's checkpoint stops there (`early_stop`), so the last matmul of a layer is not repeated.
    """
    needed = max(i for i, item in enumerate(items) if not isinstance(item, Collective) and np.any(item.saved_bytes))
    return _pass(items[:needed], "F")


def _recompute_selective(items: tuple[Item, ...]) -> Work:
    """Return what selective recomputation repeats: all but matmuls, attention and the sums that follow them."""
    work: list[Kernel | Collective] = []
    for item in items:
        if isinstance(item, Collective):
            work.append(item)
        elif not item.kept_by_selective:
            work += item.kernels("F")
    return tuple(work)


def _transient_bytes(ops: list[Op]) -> Num:
    """Return the bytes that live only inside a pass beside the saved ones: gradients of the widest tensors."""
    loss = [op for op in ops if isinstance(op, CrossEntropy)]
    if loss:
        return loss[0].transient_bytes
    widest: Num = 0.0
    for op in ops:
        widest = np.maximum(widest, op.output_bytes)
    return 3 * widest


def _data_parallel(strategy: Strategy, part: Part, params: Num, hidden: int) -> dict[str, Any]:
    """Return the collectives over dp, the accumulation and the update of a part.

    Gradients are summed in fp32. ZeRO-0 all-reduces; ZeRO-1 sums as its engine does (an all-reduce in fp32, a
    reduce-scatter under mixed precision) and gathers the updated weights; ZeRO-2 and 3 reduce-scatter
    (arXiv 1910.02054, sections 5 and 7). A collective that a level does not use has a group of one.
    """
    zero, dp = np.asarray(strategy.zero), strategy.dp
    compute_bytes = ELEMENT_BYTES[strategy.precision] * params
    mixed = strategy.precision != "fp32"
    scatters = (zero >= 2) | ((zero == 1) & mixed)

    def over_dp(kind: str, size: Num, used: Num) -> Collective:
        return Collective(name=f"{part}.{kind}", kind=kind, axis="dp", bytes=size, group_size=np.where(used, dp, 1))

    # sharded gradients are added after they are scattered, whole ones (and those of a pipeline) before
    added = params / np.where((zero >= 2) & (np.asarray(strategy.pp) == 1), dp, 1)

    def moved(name: str, elements: Num, dtype: str, pass_: Pass) -> Kernel:
        """Return an add of that many elements: two tensors read and one written."""
        return Pointwise(
            name=f"{part}.{name}", kind="add", rows=elements / hidden, cols=hidden, dtype=dtype
        ).kernels(pass_)[0]

    # FSDP copies its shard into a flat buffer and the gathered buffer out of it, each read and written once; gradients
    # likewise on their way to be scattered
    copied = 2 / 3 * params * (1 + 1 / np.asarray(dp, dtype=float))
    return {
        "accumulate": moved("accumulate", added, "fp32", "B"),
        "gather_copy": moved("gather_copy", copied, strategy.precision, "F"),
        "reduce_copy": moved("reduce_copy", copied, "fp32", "F"),
        "gather": over_dp("all_gather", compute_bytes, zero >= 2),
        "reduce": (over_dp("all_reduce", 4.0 * params, ~scatters), over_dp("reduce_scatter", 4.0 * params, scatters)),
        "update": AdamW(
            name=f"{part}.update", params=params / np.where(zero >= 1, dp, 1), writes_bf16_copy=mixed
        ).kernels("U")[0],
        "regather": over_dp("all_gather", compute_bytes, zero == 1),
    }
