"""What runs where: the kernels and collectives of each part of a model under a strategy. Never seconds.

A stage is a run of parts: the embedding (first stage), layers of one kind or several, the head (last stage). The
strategy's fields may be arrays; then every size is an array.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from profiles.attention import Attention, UnfusedAttention
from profiles.collectives import Collective
from profiles.families import Item, Shape, part_params
from profiles.families.pieces import ACTIVATION
from profiles.matmul import Gemm
from profiles.model import ModelSpec, Part, count, count_experts
from profiles.ops import ELEMENT_BYTES, Kernel, Num, Op
from profiles.pointwise import Pointwise
from profiles.vocabulary import CrossEntropy
from simulator.adapters import trained_elements, trained_items
from simulator.replicas import over_replicas
from simulator.saved import dropped_bytes, regathered_bytes
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
    follows it (ZeRO-1); so many like parts as `bucket` says share one message of `reduce` and `regather`. `params` are the
    dense parameters that a rank holds, `expert_params` those of its experts; `trained_*` of them have a gradient. `saved_*`
    stay for backward, `transient` lives inside backward beside them, `freed` inside forward.
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
    bucket: Num
    params: Num
    expert_params: Num
    trained_params: Num
    trained_expert_params: Num
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
    tied = (model.tied_embeddings and not strategy.lora_rank) & (np.asarray(strategy.pp) > 1)
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
    frozen = bool(strategy.lora_rank)
    items = trained_items(model, part, shape, strategy.lora_rank, strategy.lora_targets)
    ops: list[Op] = [i for i in items if not isinstance(i, Collective)]
    params, expert_params = held_params(model, strategy, part)
    trained, trained_experts = params, expert_params
    if frozen:
        trained, trained_experts = trained_elements(items)
        params, expert_params = params + trained, expert_params + trained_experts
    layer_input = ELEMENT_BYTES[strategy.dtype] * shape.local_tokens * model.hidden
    repeats = part not in ("embedding", "head")
    saved_none: Num = sum(op.saved_bytes for op in ops) + _copied_bytes(ops, strategy)
    kept: Num = sum(op.output_bytes for op in _kept(ops, strategy.software.selective))
    again: Work = ()
    # what a frozen map reads is needed no more
    if not strategy.software.keeps_gathered and not frozen:
        saved_none = saved_none - regathered_bytes(items, strategy.tp)
        again = tuple(g for g in _in_front(items) if g.kind == "all_gather")
    selective: Num = layer_input + kept
    if strategy.software.repeats:
        selective = saved_none - _dropped_bytes(items, strategy)
    elif strategy.software.selective == "attention":
        selective = saved_none - sum(op.score_bytes for op in ops if isinstance(op, UnfusedAttention))
    # below a frozen embedding nothing asks for a gradient
    first = frozen and part == "embedding"
    saved_none = 0.0 * saved_none if first else saved_none
    return PartWork(
        forward=_pass(items, "F"), backward=() if first else _summed(_backward(items), strategy) + again,
        hidden_backward=() if frozen else _hidden_backward(items) + again,
        recompute_selective=_recompute_selective(items, strategy.software) if repeats else (),
        recompute_full=_recompute_full(items, strategy.software.early_stop) if repeats else (),
        params=params, expert_params=expert_params, trained_params=trained, trained_expert_params=trained_experts,
        saved_none_bytes=saved_none,
        saved_selective_bytes=selective if repeats else saved_none,
        saved_full_bytes=layer_input if repeats else saved_none,
        transient_bytes=_transient_bytes(ops, strategy, layer_input),
        freed_bytes=_freed_bytes(ops, ELEMENT_BYTES[strategy.dtype] * shape.tokens * model.hidden),
        **over_replicas(model, strategy, part, (params, expert_params), (trained, trained_experts)),
    )


def held_params(model: ModelSpec, strategy: Strategy, part: Part) -> tuple[Num, Num]:
    """Return the parameters of a part that a rank holds, without adapters: dense ones, and those of its experts."""
    specs = part_params(model, part)
    params = count(specs, strategy.tp)
    if part == "head" and model.tied_embeddings:
        # the tied output projection is a second copy only where the head sits on another stage than the embedding
        tied = model.vocab * model.hidden / strategy.tp
        params = params - np.where(np.asarray(strategy.pp) == 1, tied, 0)
    return params, count_experts(specs, strategy.ep, strategy.etp)


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
    "core_attn": ("attn.sdpa",), "layernorm": ("attn_norm", "ffn_norm", "ssm_norm", "delta_norm"),
    "mla_up_proj": ("attn.q_norm", "attn.wq_up", "attn.kv_norm", "attn.wkv_up", "attn.rope"),
    "moe_act": tuple(f"ffn.experts.{a}" for a in ACTIVATION), "shared_experts": ("ffn.shared",),
    # all but the residual add
    "moe": tuple(f"ffn.{n}" for n in ("fan_in", "rout", "latent", "permute", "dispatch", "sort", "experts", "combine",
                                      "unpermute", "shared")),
    "mlp": ("ffn.w", *(f"ffn.{a}" for a in ACTIVATION)),
}
"""Module of `REPEATED` -> what the names of its operators begin with."""
MARKS = {"moe": "ffn.router", "mla_up_proj": "attn.wkv_up"}
"""Module -> the operator that only it has."""
DISCARDED = ("layernorm", "mla_up_proj", "moe_act")
"""Modules whose output goes too and is made again in front of the backward that reads it (Megatron-Core
core/tensor_parallel/random.py: CheckpointWithoutOutput); others keep it (checkpoint)."""


def _begins(items: tuple[Item, ...], modules: Iterable[str]) -> tuple[str, ...]:
    """Return what the names of the operators of some modules begin with; a module that is not there has none."""
    names = {i.name for i in items}
    return tuple(b for m in modules if m not in MARKS or MARKS[m] in names for b in MODULES[m])


def _recompute_modules(items: tuple[Item, ...], modules: Iterable[str]) -> Work:
    """Return the forward of some modules."""
    begins = _begins(items, modules)
    work: list[Kernel | Collective] = []
    for item in items:
        if item.name.startswith(begins):
            work += [item] if isinstance(item, Collective) else item.kernels("F")
    return tuple(work)


def _dropped_bytes(items: tuple[Item, ...], strategy: Strategy) -> Num:
    """Return what is not kept where selective recomputation repeats the modules that the software names."""
    modules = strategy.software.repeats.split(",")
    discarded = _begins(items, set(DISCARDED).intersection(modules))
    return dropped_bytes(items, _begins(items, modules), discarded, strategy.tp, strategy.software.keeps_gathered)


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

    Less where inputs of activations are kept narrow. A norm written out in fp32 keeps its input in fp32 and the normed rows
    instead of its input alone.
    """
    software = strategy.software
    copies = sum(software.attention_copies * op.output_bytes for op in ops if isinstance(op, Attention | UnfusedAttention))
    if software.narrow_activations and strategy.matmul:
        less = 1 - ELEMENT_BYTES[strategy.matmul] / ELEMENT_BYTES[strategy.dtype]
        kinds = set(ACTIVATION.values())
        copies = copies - less * sum(op.saved_bytes for op in ops if isinstance(op, Pointwise) and op.kind in kinds)
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
