"""What makes a strategy legal: one named predicate each, with the sentence that says why not.

Every predicate takes a batch of strategies and returns where they are legal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

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
from simulator.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A legality rule: where a batch is legal, and why one strategy is not."""

    name: str
    holds: Callable[[Strategy, Question], Num]
    reason: Callable[[Strategy, Question], str]


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


def _heads(s: Strategy, q: Question) -> Num:
    heads, kv, _ = widths(q.model)
    # more ranks than key-value heads hold copies of them
    return (heads % s.tp == 0) & ((kv % s.tp == 0) | (s.tp % max(kv, 1) == 0))


def _experts(s: Strategy, q: Question) -> Num:
    experts = num_experts(q.model)
    ranks = s.tp * s.cp * s.dp
    return ((s.ep == 1) & (s.etp == 1)) | ((experts % s.ep == 0) & (ranks % (s.ep * s.etp) == 0) & (experts > 0))


def _rounds(s: Strategy, q: Question) -> Num:
    m, p = np.asarray(s.num_microbatches), np.asarray(s.pp)
    return (np.asarray(s.schedule) != "Interleaved1F1B") | ((m % np.maximum(1, m // p)) == 0)


RULES: tuple[Rule, ...] = (
    Rule(
        name="degrees give the accelerators",
        holds=lambda s, q: s.world_size == q.cluster.num_gpus,
        reason=lambda s, q: f"dp {s.dp} x tp {s.tp} x cp {s.cp} x pp {s.pp} = {s.world_size}, "
        f"the cluster has {q.cluster.num_gpus} accelerators",
    ),
    Rule(
        name="tp divides heads",
        holds=_heads,
        reason=lambda s, q: "tp {} does not divide {} heads and {} key-value heads".format(s.tp, *widths(q.model)),
    ),
    Rule(
        name="tp divides ffn",
        holds=lambda s, q: widths(q.model)[2] % s.tp == 0,
        reason=lambda s, q: f"tp {s.tp} does not divide the feed-forward width {widths(q.model)[2]}",
    ),
    Rule(
        name="tp divides sequence",
        holds=lambda s, q: ~np.asarray(s.sequence_parallel, dtype=bool) | (s.seq_len % s.tp == 0),
        reason=lambda s, q: f"tp {s.tp} does not divide the sequence of {s.seq_len} (sequence parallelism)",
    ),
    Rule(
        name="pp has layers",
        holds=lambda s, q: (s.pp == 1) | (s.pp * s.chunks <= q.model.num_layers + 2 * (s.chunks > 1)),
        reason=lambda s, q: f"pp {s.pp} x {s.chunks} chunks is more than {q.model.num_layers} layers",
    ),
    Rule(
        name="batch divides",
        holds=lambda s, q: q.global_batch % (s.dp * s.micro_batch) == 0,
        reason=lambda s, q: f"dp {s.dp} x micro-batch {s.micro_batch} = {s.dp * s.micro_batch} does not divide "
        f"the global batch of {q.global_batch}",
    ),
    Rule(
        name="ZeRO needs dp",
        holds=lambda s, q: (s.zero == 0) | (s.replicas > 1),
        reason=lambda s, q: f"ZeRO-{s.zero} has nothing to shard over: dp x cp is 1",
    ),
    Rule(
        name="cp divides sequence",
        holds=lambda s, q: (s.cp == 1) | (s.seq_len % (2 * s.cp) == 0),
        reason=lambda s, q: f"cp {s.cp}: the sequence of {s.seq_len} does not divide into {2 * s.cp} pieces "
        "(two a rank, so that causal work is even)",
    ),
    Rule(
        name="experts divide",
        holds=_experts,
        reason=lambda s, q: f"ep {s.ep} x etp {s.etp} does not divide {num_experts(q.model)} experts and "
        f"tp x cp x dp = {s.tp * s.cp * s.dp} ranks",
    ),
    Rule(
        name="chunks are interleaved",
        holds=lambda s, q: (np.asarray(s.chunks) == 1)
        | ((np.asarray(s.schedule) == "Interleaved1F1B") & (np.asarray(s.pp) > 1)),
        reason=lambda s, q: f"{s.chunks} chunks a stage need pp of 2 or more (is {s.pp}) and the schedule "
        f"Interleaved1F1B (is {s.schedule})",
    ),
    Rule(
        name="micro-batches in rounds",
        holds=_rounds,
        reason=lambda s, q: f"interleaved 1F1B needs a multiple of pp {s.pp} micro-batches (is {s.num_microbatches})",
    ),
)
MEMORY_RULE = "fits in memory"


def legal(strategy: Strategy, question: Question) -> tuple[Num, Num]:
    """Return where strategies are legal, and the index of the first rule that each breaks (-1 for none)."""
    broken = np.full(len(strategy), -1)
    for i, rule in reversed(list(enumerate(RULES))):
        broken = np.where(np.broadcast_to(rule.holds(strategy, question), broken.shape), broken, i)
    return broken < 0, broken


def illegal_reason(strategy: Strategy, question: Question) -> str | None:
    """Return the sentence of the first rule that one strategy breaks, or None."""
    for rule in RULES:
        if not bool(rule.holds(strategy, question)):
            return rule.reason(strategy, question)
    return None
