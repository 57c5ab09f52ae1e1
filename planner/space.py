"""The space of strategies, as one batch of arrays: every combination, legal or not."""

from __future__ import annotations

import itertools

import numpy as np

from planner.question import Question
from planner.rules import num_experts
from simulator.strategy import RECOMPUTE, Strategy


def divisors(n: int) -> list[int]:
    """Return the divisors of n in rising order."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def enumerate_space(question: Question) -> Strategy:
    """Return every dp x tp x pp that gives the accelerators, with every expert-parallel degree of a mixture of
    experts, every ZeRO level, recomputation, schedule and micro-batch that divides the global batch."""
    num = question.cluster.num_gpus
    degrees = [
        (tp, pp, schedule)
        for tp, pp in itertools.product(divisors(num), repeat=2) if num % (tp * pp) == 0
        for schedule in (PLANNED_SCHEDULES if pp > 1 else PLANNED_SCHEDULES[:1])
    ]
    experts = num_experts(question.model)
    rows = list(itertools.product(
        degrees, divisors(experts) if experts else [1], range(4), RECOMPUTE, divisors(question.global_batch)
    ))
    tp, pp, ep = (np.array(column) for column in ([r[0][0] for r in rows], [r[0][1] for r in rows], [r[1] for r in rows]))
    dp = num // (tp * pp)
    micro_batch = np.array([r[4] for r in rows])
    return Strategy(
        dp=dp, tp=tp, pp=pp, ep=ep, zero=np.array([r[2] for r in rows]), recompute=np.array([r[3] for r in rows]),
        schedule=np.array([r[0][2] for r in rows]), micro_batch=micro_batch,
        num_microbatches=np.maximum(1, question.global_batch // (dp * micro_batch)), seq_len=question.seq_len,
        precision=question.precision, lora_rank=question.lora_rank, lora_targets=question.lora_targets,
        software=question.software,
    )


PLANNED_SCHEDULES = ("1F1B", "GPipe")
"""Schedules that are searched; others are priced where they are given."""
