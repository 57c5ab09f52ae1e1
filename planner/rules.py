"""What makes a strategy legal: one named predicate each, with the sentence that says why not.

Every predicate takes a batch of strategies and returns where they are legal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.offloading import can_offload, no_offload
from planner.question import Question
from profiles.model import (
    Experts,
    FeedForward,
    LatentAttention,
    LinearAttention,
    ModelSpec,
    SelfAttention,
    StateSpace,
)
from profiles.ops import Num
from simulator.layout import ORDER, ORDERS, order_of, ranks_per_node
from simulator.schedules import SCHEDULES
from simulator.strategy import CONTEXT, LORA_TARGETS, OFFLOAD, PRECISIONS, RECOMPUTE, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A legality rule: where a batch is legal, and why one strategy is not.

    `of_pipe`: it asks for the schedule, its chunks or the layers of its stages; `of_offload`: for what is offloaded.
    """

    name: str
    holds: Callable[[Strategy, Question], Num]
    reason: Callable[[Strategy, Question], str]
    of_pipe: bool = False
    of_offload: bool = False


def num_experts(model: ModelSpec) -> int:
    """Return the experts of a layer: what ep can divide; 0 for a dense model."""
    return math.gcd(*(k.ffn.num_experts for k in model.kinds if isinstance(k.ffn, Experts)))


def widths(model: ModelSpec) -> tuple[int, int, int]:
    """Return what tp has to divide in every layer: heads, key-value heads, feed-forward channels."""
    heads, kv, ffn = [], [], []
    for kind in model.kinds:
        if isinstance(kind.mixer, (SelfAttention, LatentAttention)):
            heads.append(kind.mixer.num_heads)
            kv.append(kind.mixer.num_kv_heads)
        elif isinstance(kind.mixer, StateSpace):
            heads.append(kind.mixer.num_heads)
        elif isinstance(kind.mixer, LinearAttention):
            heads += [kind.mixer.num_key_heads, kind.mixer.num_value_heads]
        if isinstance(kind.ffn, FeedForward):
            ffn.append(kind.ffn.hidden)
        elif isinstance(kind.ffn, Experts) and kind.ffn.shared_hidden:
            ffn.append(kind.ffn.shared_hidden)
    return math.gcd(*heads), math.gcd(*kv), math.gcd(*ffn)


def expert_width(model: ModelSpec) -> int:
    """Return what etp has to divide: channels of an expert; 0 for a dense model."""
    return math.gcd(*(k.ffn.hidden for k in model.kinds if isinstance(k.ffn, Experts)))


def attention_heads(model: ModelSpec) -> tuple[int, int]:
    """Return heads and key-value heads of attention, which Ulysses cuts over cp."""
    mixers = [k.mixer for k in model.kinds if isinstance(k.mixer, (SelfAttention, LatentAttention))]
    return math.gcd(*(m.num_heads for m in mixers)), math.gcd(*(m.num_kv_heads for m in mixers))


def recurrent_heads(model: ModelSpec) -> tuple[int, int]:
    """Return heads and groups of blocks with a state, which cp cuts as tp does."""
    spaces = [k.mixer for k in model.kinds if isinstance(k.mixer, StateSpace)]
    deltas = [k.mixer for k in model.kinds if isinstance(k.mixer, LinearAttention)]
    heads = [m.num_heads for m in spaces] + [n for m in deltas for n in (m.num_key_heads, m.num_value_heads)]
    return math.gcd(*heads), math.gcd(*(m.groups for m in spaces))


def _cut(heads: int, copied: int, ranks: Num) -> Num:
    """Return whether ranks can share heads; more ranks than those that are `copied` hold copies of them."""
    return (heads % ranks == 0) & ((copied % ranks == 0) | (ranks % max(copied, 1) == 0))


SIZES = ("dp", "tp", "cp", "pp", "ep", "etp", "chunks", "micro_batch", "num_microbatches", "seq_len")
CHOICES = {"recompute": RECOMPUTE, "offload": OFFLOAD, "precision": PRECISIONS, "context": CONTEXT, "schedule": SCHEDULES,
           "lora_targets": LORA_TARGETS}


def _not_whole(s: Strategy) -> dict[str, Num]:
    return {name: (np.asarray(getattr(s, name)) < 1) | (np.mod(getattr(s, name), 1) != 0) for name in SIZES}


def _unknown(s: Strategy) -> dict[str, Num]:
    return {name: ~np.isin(getattr(s, name), tuple(known)) for name, known in CHOICES.items()}


def _first(s: Strategy, faults: dict[str, Num]) -> tuple[str, object]:
    name = next(name for name, fault in faults.items() if np.any(fault))
    return name, getattr(s, name)


def _experts(s: Strategy, q: Question) -> Num:
    experts = num_experts(q.model)
    ranks = s.tp * s.cp * s.dp
    return ((s.ep == 1) & (s.etp == 1)) | ((experts % s.ep == 0) & (ranks % (s.ep * s.etp) == 0) & (experts > 0))


def _pieces(s: Strategy) -> int:
    """Return the pieces of the sequence that a cp rank holds."""
    return 1 if s.context == "ulysses" else 2


def _has_table(s: Strategy, q: Question) -> Num:
    suits: Num = np.asarray(s.pp) == 1
    for name in np.unique(s.schedule):
        if name in SCHEDULES:
            suits = suits | ((s.schedule == name) & SCHEDULES[str(name)].suits(s.pp, s.num_microbatches, s.chunks))
    return suits


def _no_table(s: Strategy, q: Question) -> str:
    shape = s.pp, s.num_microbatches, s.chunks
    others = ", ".join(name for name, schedule in SCHEDULES.items() if schedule.suits(*shape))
    return SCHEDULES[s.schedule].reason(*shape) + (f"; for this shape there are {others}" if others else "")


def _holds_layers(s: Strategy, q: Question) -> Num:
    suits: Num = np.asarray(s.layers) == ""
    for text in np.unique(s.layers):
        if text:
            counts = [int(num) for num in str(text).split("-")]
            whole = sum(counts) == q.model.num_layers and 0 not in counts[1:-1]
            suits = suits | ((s.layers == text) & (np.asarray(s.pp) * s.chunks == len(counts)) & whole)
    return suits


def _no_layers(s: Strategy, q: Question) -> str:
    counts = [int(num) for num in s.layers.split("-")]
    return (f"layers {s.layers} are {sum(counts)} on {len(counts)} stages; {q.model.name} has {q.model.num_layers}, and "
            f"pp {s.pp} x {s.chunks} chunks make {s.pp * s.chunks} stages, each but the ends with a layer")


def _other_wires(s: Strategy, q: Question, orders: Sequence[str]) -> Num:
    """Return where no order before this one puts as many members of each group in a node.

    Where groups share links, two orders differ by their place on the network, too.
    """
    if not q.cluster.network.is_non_blocking:
        return True
    if np.ndim(s.order):
        other: Num = True
        for order in np.unique(s.order):
            other = np.where(s.order == order, _other_wires(replace(s, order=str(order)), q, orders), other)
        return other
    node = q.cluster.gpus_per_node

    def wires(order: str) -> list[Num]:
        laid = replace(s, order=order)
        return [ranks_per_node(laid, axis, node) for axis in (*ORDER, "shard", "shard groups")]

    own, other = wires(s.order), np.True_
    for earlier in orders[: orders.index(s.order)]:
        other = other & ~np.logical_and.reduce(np.broadcast_arrays(
            *(a == b for a, b in zip(own, wires(earlier), strict=True)), _whole_groups(replace(s, order=earlier), q)))
    return other


def _cuts_pool(s: Strategy) -> Num:
    """Return where pp is the outermost axis, so that a stage lies on neighbouring ranks."""
    outer = [order for order in (*ORDERS, "") if (order or "-".join(ORDER)).endswith("pp")]
    return (np.asarray(s.pp) == 1) | np.isin(s.order, outer)


def _whole_groups(s: Strategy, q: Question) -> Num:
    if np.ndim(s.order):
        whole: Num = True
        for name in np.unique(s.order):
            whole = np.where(s.order == name, _whole_groups(replace(s, order=str(name)), q), whole)
        return whole
    order = order_of(s)
    plain = (np.asarray(s.ep) == 1) & (np.asarray(s.etp) == 1)
    first, last = sorted((order.index("cp"), order.index("dp")))
    beside: Num = np.asarray("pp" not in order[first:last])
    if "tp" in order[first:last]:
        beside = beside & ((np.asarray(s.tp) == 1) | (np.asarray(s.dp) == 1))
    return (plain & ((np.asarray(s.cp) == 1) | beside)) | (order == ORDER)


RULES: tuple[Rule, ...] = (
    Rule(
        name="sizes are whole",
        holds=lambda s, q: ~np.any(np.broadcast_arrays(*_not_whole(s).values()), axis=0),
        reason=lambda s, q: "{} is {}, and must be a whole number of at least 1".format(*_first(s, _not_whole(s))),
    ),
    Rule(
        name="choices are known",
        holds=lambda s, q: ~np.any(np.broadcast_arrays(*_unknown(s).values()), axis=0),
        reason=lambda s, q: "{} {!r} is not known; known are {}".format(
            *_first(s, _unknown(s)), ", ".join(CHOICES[_first(s, _unknown(s))[0]])),
    ),
    Rule(
        name="degrees give the accelerators",
        holds=lambda s, q: s.world_size == q.cluster.num_gpus,
        reason=lambda s, q: f"dp {s.dp} x tp {s.tp} x cp {s.cp} x pp {s.pp} = {s.world_size}, "
        f"the cluster has {q.cluster.num_gpus} accelerators",
    ),
    Rule(
        name="tp divides heads",
        holds=lambda s, q: _cut(*widths(q.model)[:2], s.tp),
        reason=lambda s, q: "tp {} does not divide {} heads and {} key-value heads".format(s.tp, *widths(q.model)),
    ),
    Rule(
        name="tp divides ffn",
        holds=lambda s, q: widths(q.model)[2] % s.tp == 0,
        reason=lambda s, q: f"tp {s.tp} does not divide the feed-forward width {widths(q.model)[2]}",
    ),
    Rule(
        name="tp divides sequence",
        holds=lambda s, q: (s.tp == 1) | ~np.asarray(s.sequence_parallel, dtype=bool) | (s.seq_len % (s.tp * s.cp) == 0),
        reason=lambda s, q: f"tp {s.tp} does not divide the sequence of {s.seq_len} over cp {s.cp} (sequence parallelism)",
    ),
    Rule(
        name="pp has layers",
        holds=lambda s, q: (s.pp == 1) | (s.pp * s.chunks <= q.model.num_layers + 2 * (s.chunks > 1)),
        reason=lambda s, q: f"pp {s.pp} x {s.chunks} chunks is more than {q.model.num_layers} layers",
        of_pipe=True,
    ),
    Rule(
        name="pp cuts a pool",
        holds=lambda s, q: _cuts_pool(s) if q.cluster.parts else True,
        reason=lambda s, q: f"order {s.order} lays each stage across all parts of a pool; there pp has to be outermost",
    ),
    Rule(
        name="batch divides",
        holds=lambda s, q: q.global_batch % (s.dp * s.micro_batch) == 0,
        reason=lambda s, q: f"dp {s.dp} x micro-batch {s.micro_batch} = {s.dp * s.micro_batch} does not divide "
        f"the global batch of {q.global_batch}",
    ),
    Rule(
        name="ZeRO has four levels",
        holds=lambda s, q: np.isin(s.zero, (0, 1, 2, 3)),
        reason=lambda s, q: f"ZeRO-{s.zero} is no level: they are 0 to 3",
    ),
    Rule(
        name="ZeRO needs dp",
        holds=lambda s, q: (s.zero == 0) | (s.replicas > 1),
        reason=lambda s, q: f"ZeRO-{s.zero} has nothing to shard over: dp x cp is 1",
    ),
    Rule(
        name="shard groups divide",
        holds=lambda s, q: (s.shard_group == 0) | ((np.asarray(s.shard_group) > 0)
                                                   & (s.replicas % np.maximum(s.shard_group, 1) == 0)),
        reason=lambda s, q: f"shard_group {s.shard_group} does not divide dp x cp = {s.replicas} ranks",
    ),
    Rule(
        name="cp divides sequence",
        holds=lambda s, q: (s.cp == 1) | (s.seq_len % (_pieces(s) * s.cp) == 0),
        reason=lambda s, q: f"cp {s.cp}: the sequence of {s.seq_len} does not divide into {_pieces(s) * s.cp} pieces"
        + (" (two a rank, so that causal work is even)" if _pieces(s) == 2 else ""),
    ),
    Rule(
        name="the order keeps groups whole",
        holds=_whole_groups,
        reason=lambda s, q: f"order {s.order}: experts (ep {s.ep} x etp {s.etp}) need {'-'.join(ORDER)}, and cp {s.cp} stands "
        "beside dp, as weights are sharded over both",
    ),
    Rule(
        name="ulysses divides heads",
        holds=lambda s, q: (s.context != "ulysses") | (s.cp == 1) | _cut(*attention_heads(q.model), s.tp * s.cp),
        reason=lambda s, q: "ulysses: tp {} x cp {} = {} does not divide {} heads and {} key-value heads".format(
            s.tp, s.cp, s.tp * s.cp, *attention_heads(q.model)),
    ),
    Rule(
        name="ranks divide recurrent heads",
        holds=lambda s, q: _cut(*recurrent_heads(q.model), s.tp * s.cp),
        reason=lambda s, q: "tp {} x cp {} = {} does not divide {} heads with a state and {} groups of them".format(
            s.tp, s.cp, s.tp * s.cp, *recurrent_heads(q.model)),
    ),
    Rule(
        name="experts divide",
        holds=_experts,
        reason=lambda s, q: f"ep {s.ep} x etp {s.etp} does not divide {num_experts(q.model)} experts and "
        f"tp x cp x dp = {s.tp * s.cp * s.dp} ranks",
    ),
    Rule(
        name="etp divides experts",
        holds=lambda s, q: expert_width(q.model) % s.etp == 0,
        reason=lambda s, q: f"etp {s.etp} does not divide the experts' width of {expert_width(q.model)}",
    ),
    Rule(
        name="experts over tp need sequence parallelism",
        holds=lambda s, q: (s.tp == 1) | (s.ep * s.etp == 1) | np.asarray(s.sequence_parallel, dtype=bool),
        reason=lambda s, q: f"ep {s.ep} x etp {s.etp} lays experts over the {s.tp} ranks of tp, which all hold the same tokens "
        "without sequence_parallel",
    ),
    Rule(
        name="imbalance is from the mean",
        holds=lambda s, q: np.isfinite(s.imbalance) & (np.asarray(s.imbalance) >= 1),
        reason=lambda s, q: f"imbalance {s.imbalance} must be a number of at least 1: tokens of the busiest rank over the mean",
    ),
    Rule(
        name="recompute_share is a share",
        holds=lambda s, q: (np.asarray(s.recompute_share) >= 0) & (np.asarray(s.recompute_share) <= 1),
        reason=lambda s, q: f"recompute_share {s.recompute_share} is no share of the layers: it is from 0 to 1",
    ),
    Rule(
        name="tp divides adapters",
        holds=lambda s, q: s.lora_rank % s.tp == 0,
        reason=lambda s, q: f"tp {s.tp} does not divide the adapters' rank of {s.lora_rank}",
    ),
    Rule(
        name="chunks need a pipe",
        holds=lambda s, q: (np.asarray(s.chunks) == 1) | (np.asarray(s.pp) > 1),
        reason=lambda s, q: f"{s.chunks} chunks a stage need pp of 2 or more (is {s.pp})",
        of_pipe=True,
    ),
    Rule(
        name="stages hold the layers",
        holds=_holds_layers,
        reason=_no_layers,
        of_pipe=True,
    ),
    Rule(
        name="the schedule has a table",
        holds=_has_table,
        reason=_no_table,
        of_pipe=True,
    ),
    Rule(
        name="the host can hold what is offloaded",
        holds=can_offload,
        reason=no_offload,
        of_offload=True,
    ),
)
MEMORY_RULE = "fits in memory"
OFFLOAD_RULE = "offload is for what does not fit"
"""What a search leaves out because the same strategy fits without offload, which makes none faster."""


def same_as_another(orders: Sequence[str]) -> tuple[Rule, ...]:
    """Return rules for what a search leaves out because another strategy of its space is the same."""
    return (
        Rule(
            name="hybrid groups are smaller than dp x cp",
            holds=lambda s, q: (np.asarray(s.shard_group) == 0) | (np.asarray(s.shard_group) < s.replicas),
            reason=lambda s, q: f"shard_group {s.shard_group} is all of dp x cp = {s.replicas}, the same as 0",
        ),
        Rule(
            name="another order has other wires",
            holds=lambda s, q: _other_wires(s, q, orders),
            reason=lambda s, q: f"order {s.order} has as many members of each group in a node as an order before it",
        ),
    )


def first_broken(
    strategy: Strategy, question: Question, rules: Sequence[Rule] = RULES, shape: tuple[int, ...] | None = None
) -> NDArray[np.int8]:
    """Return the index of the first rule that each strategy breaks, -1 for none.

    The fields of a batch are arrays of one length, or those of a grid, which broadcast to its `shape`.
    """
    broken = np.full((len(strategy),) if shape is None else shape, -1, dtype=np.int8)
    for i, rule in reversed(list(enumerate(rules))):
        holds = np.asarray(rule.holds(strategy, question), dtype=bool)
        if not holds.all():
            broken = np.where(holds, broken, np.int8(i))
    return broken


def illegal_reason(strategy: Strategy, question: Question) -> str | None:
    """Return the sentence of the first rule that one strategy breaks, or None."""
    for rule in RULES:
        if not bool(rule.holds(strategy, question)):
            return rule.reason(strategy, question)
    return None
