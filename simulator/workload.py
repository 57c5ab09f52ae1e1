"""What runs where: the kernels and collectives of each part of a model under a strategy. Never seconds.

A stage is a run of parts: the embedding (first stage), layers of one kind or several, the head (last stage). The
strategy's fields may be arrays; then every size is an array.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from profiles.collectives import Collective
from profiles.families import Item, Shape, part_items, part_params
from profiles.model import ModelSpec, Part, count, count_experts
from profiles.ops import (
    ELEMENT_BYTES,
    AdamW,
    Attention,
    CrossEntropy,
    Gemm,
    Kernel,
    Num,
    Op,
    Pass,
    Pointwise,
    UnfusedAttention,
)
from simulator.software import Software
from simulator.strategy import Strategy

Work = tuple[Kernel | Collective, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartWork:
    """One part (embedding, one layer, head) of one micro-batch on one rank.

    `hidden_backward` are the collectives of `backward` that can run beside the matmul of a weight gradient.
    `recompute_full` and `recompute_selective` are what backward repeats under that recomputation. `accumulate` adds
    a micro-batch's gradients to those of the ones before. `gather_copy` and `reduce_copy` move what is gathered or
    reduced between parameters and the flat buffers of the collective. `gather` brings the part's sharded weights
    together, `reduce` sums its gradients over their replicas, `update` is its optimizer step and `regather` what
    follows it (ZeRO-1). `params` are the dense parameters of a rank, `expert_params` those of its experts. `saved_*` stay
    for backward, `transient` lives inside backward beside them, `freed` inside forward.
    """

    forward: Work
    backward: Work
    hidden_backward: Work
    recompute_selective: Work
    recompute_full: Work
    accumulate: Kernel
    gather_copy: Kernel
    reduce_copy: Kernel
    gather: tuple[Collective, ...]
    reduce: tuple[Collective, ...]
    update: Kernel
    regather: tuple[Collective, ...]
    params: Num
    expert_params: Num
    saved_none_bytes: Num
    saved_selective_bytes: Num
    saved_full_bytes: Num
    transient_bytes: Num
    freed_bytes: Num


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model under a strategy: the work of each part, what passes between stages, and the sum of a tied head."""

    model: ModelSpec
    strategy: Strategy
    parts: dict[Part, PartWork]
    send: Collective
    tie: Collective


def shape_of(strategy: Strategy) -> Shape:
    """Return a micro-batch of a strategy, as a rank sees it."""
    software = strategy.software
    return Shape(
        micro_batch=strategy.micro_batch, seq_len=strategy.seq_len, tp=strategy.tp, cp=strategy.cp, ep=strategy.ep,
        etp=strategy.etp, dtype=strategy.dtype, matmul=strategy.matmul, mode=software.kernels,
        sequence_parallel=strategy.sequence_parallel, fused_projections=software.fused_projections,
        flash=software.attention != "unfused", flash_version=software.attention, dropout=software.dropout,
        context=strategy.context,
        imbalance=strategy.imbalance, sends_once=software.sends_once, expert_kernels=software.expert_kernels,
        loss_in_place=not software.fp32_logits,
    )


def build_workload(model: ModelSpec, strategy: Strategy) -> Workload:
    """Return the workload of a model under a strategy (or a batch of strategies)."""
    shape = shape_of(strategy)
    # each tp rank sends its share, whether the stream is sharded already (sequence parallelism) or is cut for the
    # send and gathered behind it (arXiv 2104.04473, section 4.1)
    boundary = ELEMENT_BYTES[strategy.dtype] * shape.tokens / strategy.tp * model.hidden
    send = Collective(name="activation", kind="send", axis="pp", bytes=boundary, group_size=np.minimum(strategy.pp, 2))
    # embedding and head are one parameter: where they sit on two stages, their gradients are summed
    tied = model.tied_embeddings & (np.asarray(strategy.pp) > 1)
    tie = Collective(
        name="tied embedding", kind="all_reduce", axis="pp",
        bytes=strategy.software.grad_bytes * model.vocab * model.hidden / strategy.tp,
        group_size=np.where(tied, 2, 1),
    )
    return Workload(
        model=model, strategy=strategy, parts={p: _part_work(model, strategy, shape, p) for p in model.parts},
        send=send, tie=tie,
    )


def _part_work(model: ModelSpec, strategy: Strategy, shape: Shape, part: Part) -> PartWork:
    items = part_items(model, part, shape)
    ops: list[Op] = [i for i in items if not isinstance(i, Collective)]
    specs = part_params(model, part)
    params, expert_params = count(specs, strategy.tp), count_experts(specs, strategy.ep, strategy.etp)
    if part == "head" and model.tied_embeddings:
        # the tied output projection is a second copy only where the head sits on another stage than the embedding
        tied = model.vocab * model.hidden / strategy.tp
        params = params - np.where(np.asarray(strategy.pp) == 1, tied, 0)
    layer_input = ELEMENT_BYTES[strategy.dtype] * shape.local_tokens * model.hidden
    repeats = part not in ("embedding", "head")
    selective_kind = strategy.software.selective
    scores = selective_kind == "attention"
    saved_none: Num = sum(op.saved_bytes for op in ops) + _copied_bytes(ops, strategy)
    kept: Num = sum(op.output_bytes for op in _kept(ops, strategy.software.selective))
    again: Work = ()
    if not strategy.software.keeps_gathered and repeats:
        saved_none = saved_none - _regathered_bytes(items, strategy)
        again = tuple(g for g in _in_front(items) if g.kind == "all_gather")
    unsaved: Num = sum(_score_bytes(op) for op in ops)
    selective = saved_none - unsaved if scores else layer_input + kept
    return PartWork(
        forward=_pass(items, "F"), backward=_summed(_backward(items), strategy) + again,
        hidden_backward=_hidden_backward(items) + again,
        recompute_selective=_recompute_selective(items, strategy.software) if repeats else (),
        recompute_full=_recompute_full(items, strategy.software.early_stop) if repeats else (),
        params=params, expert_params=expert_params,
        saved_none_bytes=saved_none,
        saved_selective_bytes=selective if repeats else saved_none,
        saved_full_bytes=layer_input if repeats else saved_none,
        transient_bytes=_transient_bytes(ops, strategy, layer_input),
        freed_bytes=_freed_bytes(ops, ELEMENT_BYTES[strategy.dtype] * shape.tokens * model.hidden),
        **_data_parallel(strategy, part, params, expert_params, model.hidden),
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


def _summed(work: Work, strategy: Strategy) -> Work:
    """Return a backward whose weight-gradient matmuls read and write the sums of micro-batches, where they do that."""
    if not strategy.software.fused_accumulation:
        return work
    wide, narrow = strategy.software.grad_bytes, ELEMENT_BYTES[strategy.dtype]
    return tuple(
        replace(
            k, read_bytes=k.read_bytes + wide / narrow * k.written_bytes, written_bytes=wide / narrow * k.written_bytes
        ) if isinstance(k, Kernel) and k.pass_ == "W" and k.kind in ("gemm", "grouped_gemm") else k for k in work
    )


def _hidden_backward(items: tuple[Item, ...]) -> Work:
    """Return the collectives in front of column-parallel maps: in backward they wait for no weight gradient.

    The input's gradient is scattered (or all-reduced) while the weight's is computed, and where the input was
    gathered again for that, while the input's is (Megatron-LM's column-parallel linear map).
    """
    return tuple(g.backward() for g in _in_front(items))


def _in_front(items: tuple[Item, ...]) -> list[Collective]:
    """Return the collectives in front of column-parallel maps: gathers, or what sums only in backward."""
    return [
        i for i in items
        if isinstance(i, Collective) and i.axis == "tp" and (i.kind == "all_gather" or i.backward_group is not None)
    ]


def _regathered_bytes(items: tuple[Item, ...], strategy: Strategy) -> Num:
    """Return the bytes of gathered inputs beyond a rank's own shard, which the software may drop and gather again."""
    narrow = ELEMENT_BYTES[strategy.matmul or strategy.dtype] / ELEMENT_BYTES[strategy.dtype]
    n = np.asarray(strategy.tp, dtype=float)
    return sum((narrow * g.bytes * np.where(np.asarray(g.group_size) > 1, 1 - 1 / n, 0.0)
                for g in _in_front(items) if g.kind == "all_gather"), 0.0)


def _score_bytes(op: Op) -> Num:
    """Return the bytes that attention keeps beyond its inputs and output: its scores, where they are stored."""
    return op.score_bytes if isinstance(op, UnfusedAttention) else 0.0


def _recompute_full(items: tuple[Item, ...], early_stop: bool) -> Work:
    """Return what full recomputation repeats: the forward, or no more than up to the last tensor backward needs.

    torch's checkpoint stops there (`early_stop`), so the last matmul of a layer is not repeated.
    """
    if not early_stop:
        return _pass(items, "F")
    needed = max(i for i, item in enumerate(items) if not isinstance(item, Collective) and np.any(item.saved_bytes))
    return _pass(items[:needed], "F")


def _kept(ops: list[Op], selective: str) -> list[Op]:
    """Return the operators whose outputs selective recomputation keeps: matmuls and attention, or every other matmul."""
    kept = [op for op in ops if op.kept_by_selective]
    if selective != "alternate":
        return kept
    matmuls = [op for op in kept if isinstance(op, Gemm)]
    return [op for op in kept if op not in matmuls[1::2]]


MODULES: dict[str, tuple[str, ...]] = {
    "core_attn": ("attn.sdpa",), "layernorm": ("attn_norm", "ffn_norm", "ssm_norm"),
    "mla_up_proj": ("attn.q_norm", "attn.wq_up", "attn.kv_norm", "attn.wkv_up", "attn.rope"),
    "moe_act": tuple(f"ffn.experts.{a}" for a in ("swiglu", "geglu", "gelu", "relu", "silu", "relu2")),
    "shared_experts": ("ffn.shared",), "moe": ("ffn.",), "mlp": ("ffn.w", "ffn.swiglu", "ffn.gelu", "ffn.relu2"),
}
"""Module of `REPEATED` -> what the names of its operators begin with."""


def _recompute_modules(items: tuple[Item, ...], modules: list[str]) -> Work:
    """Return the forward of some modules; one that is not there repeats nothing."""
    experts = any(i.name == "ffn.router" for i in items)
    begins = tuple(b for m in modules for b in MODULES[m] if not (m == "moe" and not experts))
    work: list[Kernel | Collective] = []
    for item in items:
        if item.name.startswith(begins):
            work += [item] if isinstance(item, Collective) else item.kernels("F")
    return tuple(work)


def _recompute_selective(items: tuple[Item, ...], software: Software) -> Work:
    """Return what selective recomputation repeats.

    attention: its scores (Korthikanti et al., arXiv 2205.05198, section 5; nothing where attention is fused);
    pointwise: all but matmuls and attention, with the collectives between; alternate: every other matmul, too
    (torchtitan's per-op policy). Where the software names modules, those.
    """
    selective = software.selective
    if software.repeats:
        return _recompute_modules(items, software.repeats.split(","))
    if selective == "attention":
        return tuple(k for i in items if isinstance(i, UnfusedAttention) for k in i.kernels("F"))
    kept = _kept([i for i in items if not isinstance(i, Collective)], selective)
    work: list[Kernel | Collective] = []
    for item in items:
        if isinstance(item, Collective):
            work.append(item)
        elif item not in kept:
            work += item.kernels("F")
    return tuple(work)


def _copied_bytes(ops: list[Op], strategy: Strategy) -> Num:
    """Return what a software keeps beside what the operators need: other layouts of attention's tensors, norms in fp32.

    A norm written out in fp32 keeps its input in fp32 and the normed rows instead of its input alone.
    """
    software = strategy.software
    copies = sum(software.attention_copies * op.output_bytes for op in ops if isinstance(op, Attention | UnfusedAttention))
    if not software.fp32_norms or software.kernels == "fused" or strategy.dtype == "fp32":
        return copies
    norms = [op for op in ops if isinstance(op, Pointwise) and op.kind in ("rms_norm", "layer_norm")]
    return copies + sum(4 / ELEMENT_BYTES[strategy.dtype] * op.output_bytes for op in norms)


def _transient_bytes(ops: list[Op], strategy: Strategy, stream: Num) -> Num:
    """Return the bytes that live only inside backward beside the saved ones.

    A layer's are the gradient of the residual stream and the largest gradients that one operator makes: each is freed
    where the next stands, as the saved tensors are. Around the loss they are logits, their copies and gradients, so many
    bytes for each.
    """
    loss = [op for op in ops if isinstance(op, CrossEntropy)]
    if loss:
        logits = loss[0].tokens * loss[0].vocab
        return np.maximum(strategy.software.bytes_per_logit(strategy.dtype, strategy.tp) * logits - loss[0].saved_bytes, 0.0)
    largest: Num = 0.0
    for op in ops:
        largest = np.maximum(largest, op.gradient_bytes)
    return stream + largest


def _freed_bytes(ops: list[Op], block_input: Num) -> Num:
    """Return the bytes that forward holds for a while only, where it keeps no more than a layer's input.

    Inputs and output of the operator that has most, and the input of its block, which its caller holds; of a loss the
    logits as computed, which are gone when the gradient of their fp32 copy is made.
    """
    loss = [op for op in ops if isinstance(op, CrossEntropy)]
    if loss:
        apart = not loss[0].in_place and loss[0].dtype != "fp32"
        return ELEMENT_BYTES[loss[0].dtype] * loss[0].tokens * loss[0].vocab * apart
    largest: Num = 0.0
    for op in ops:
        largest = np.maximum(largest, op.saved_bytes + op.output_bytes)
    return block_input + largest


def _data_parallel(
    strategy: Strategy, part: Part, params: Num, expert_params: Num, hidden: int
) -> dict[str, Any]:
    """Return the collectives over the replicas, the accumulation and the update of a part.

    ZeRO-0 all-reduces; ZeRO-1 sums as its engine does (an all-reduce in fp32, a reduce-scatter under mixed
    precision) and gathers the updated weights; ZeRO-2 and 3 reduce-scatter (arXiv 1910.02054, sections 5 and 7).
    Where only a group of ranks shares a copy, what is scattered there is all-reduced over the groups (HSDP, arXiv
    2304.11277, section 3.2.2). A collective that a level does not use has a group of one.
    """
    zero, software, n, shards = np.asarray(strategy.zero), strategy.software, strategy.replicas, strategy.shards
    mixed = strategy.dtype != "fp32"
    gathered = software.gather_bytes or ELEMENT_BYTES[strategy.dtype]
    reduced = software.reduce_bytes
    scatters = (zero >= 2) | ((zero == 1) & mixed)

    def over(axis: str, kind: str, size: Num, used: Num, group: Num) -> Collective:
        return Collective(name=f"{part}.{kind}", kind=kind, axis=axis, bytes=size, group_size=np.where(used, group, 1))

    def sums(axis: str, elements: Num, group: Num, inside: Num) -> tuple[Collective, ...]:
        return (
            over(axis, "all_reduce", reduced * elements, ~scatters, group),
            over(axis, "reduce_scatter", reduced * elements, scatters, inside),
            over(f"{axis} groups", "all_reduce", reduced * elements / inside, scatters, group / inside),
        )

    def gathers(used: Num) -> tuple[Collective, ...]:
        dense = over("shard", "all_gather", gathered * params, used, shards)
        return (dense, over("edp", "all_gather", gathered * expert_params, used, experts)) if has_experts else (dense,)

    has_experts, experts = bool(np.any(expert_params)), strategy.expert_replicas
    reduce = sums("shard", params, n, shards)
    reduce += sums("edp", expert_params, experts, experts)[:2] if has_experts else ()
    # sharded gradients are added after they are scattered, whole ones (and those of a pipeline) before
    apart = (zero >= 2) & (np.asarray(strategy.pp) == 1)
    added = params / np.where(apart, shards, 1) + expert_params / np.where(apart, experts, 1)

    def moved(name: str, elements: Num, dtype: str, pass_: Pass) -> Kernel:
        """Return an add of that many elements: two tensors read and one written."""
        return Pointwise(
            name=f"{part}.{name}", kind="add", rows=elements / hidden, cols=hidden, dtype=dtype
        ).kernels(pass_)[0]

    # FSDP copies its shard into a flat buffer and the gathered buffer out of it, each read and written once; gradients
    # likewise on their way to be scattered
    copied = 2 / 3 * (params * (1 + 1 / np.asarray(shards, dtype=float))
                      + expert_params * (1 + 1 / np.asarray(experts, dtype=float)))
    grad_dtype = "fp32" if software.grad_bytes == 4 else strategy.dtype
    if software.fused_accumulation:
        added = 0.0 * added
    updated = params / np.where(zero >= 1, shards, 1) + expert_params / np.where(zero >= 1, experts, 1)
    return {
        "accumulate": moved("accumulate", added, grad_dtype, "B"),
        "gather_copy": moved("gather_copy", copied, strategy.dtype, "F"),
        "reduce_copy": moved("reduce_copy", copied, "fp32" if reduced == 4 else strategy.dtype, "F"),
        "gather": gathers(zero >= 2),
        "reduce": reduce,
        "update": AdamW(
            name=f"{part}.update", params=updated, writes_bf16_copy=mixed,
            state_bytes=software.master_bytes + software.moment_bytes, grad_bytes=software.grad_bytes,
        ).kernels("U")[0],
        "regather": gathers(zero == 1),
    }


def pick_workload(workload: Workload, index: Any) -> Workload:
    """Return the workload of some strategies of a batch (a mask or an array of indices)."""
    result: Workload = _pick(workload, index)
    return result


def _pick(value: Any, index: Any) -> Any:
    if isinstance(value, dict):
        return {k: _pick(v, index) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_pick(v, index) for v in value)
    if isinstance(value, Strategy):
        return value.pick(index)
    if isinstance(value, (Workload, PartWork, Kernel, Collective)):
        return replace(value, **{f.name: _pick(getattr(value, f.name), index) for f in fields(value)})
    return value[index] if isinstance(value, np.ndarray) and value.ndim else value
