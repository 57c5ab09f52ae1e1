"""What makes a strategy legal: one named predicate each, with the sentence that says why not.

Every predicate takes a batch of strategies and returns where they are legal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from planner.question import Question
from profiles.ops import Num
from simulator.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A legality rule: where a batch is legal, and why one strategy is not."""

    name: str
    holds: Callable[[Strategy, Question], Num]
    reason: Callable[[Strategy, Question], str]


def _heads(s: Strategy, q: Question) -> Num:
    return (q.model.num_heads % s.tp == 0) & (q.model.num_kv_heads % s.tp == 0)


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
        reason=lambda s, q: f"tp {s.tp} does not divide {q.model.num_heads} heads "
        f"and {q.model.num_kv_heads} key-value heads",
    ),
    Rule(
        name="tp divides ffn",
        holds=lambda s, q: q.model.ffn_hidden % s.tp == 0,
        reason=lambda s, q: f"tp {s.tp} does not divide the feed-forward width {q.model.ffn_hidden}",
    ),
    Rule(
        name="tp divides sequence",
        holds=lambda s, q: s.seq_len % s.tp == 0,
        reason=lambda s, q: f"tp {s.tp} does not divide the sequence of {s.seq_len} (sequence parallelism)",
    ),
    Rule(
        name="pp has layers",
        holds=lambda s, q: s.pp <= q.model.num_layers,
        reason=lambda s, q: f"pp {s.pp} is more than {q.model.num_layers} layers",
    ),
    Rule(
        name="batch divides",
        holds=lambda s, q: q.global_batch % (s.dp * s.micro_batch) == 0,
        reason=lambda s, q: f"dp {s.dp} x micro-batch {s.micro_batch} = {s.dp * s.micro_batch} does not divide "
        f"the global batch of {q.global_batch}",
    ),
    Rule(
        name="ZeRO needs dp",
        holds=lambda s, q: (s.zero == 0) | (s.dp > 1),
        reason=lambda s, q: f"ZeRO-{s.zero} has nothing to shard over: dp is 1",
    ),
    Rule(
        name="cp and ep are one",
        holds=lambda s, q: (s.cp == 1) & (s.ep == 1),
        reason=lambda s, q: f"cp {s.cp}, ep {s.ep}: context and expert parallelism are not priced yet",
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
