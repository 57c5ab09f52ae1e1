"""What to train with on fewer ranks: the plan's question asked again of what is left of the cluster."""

from __future__ import annotations

from dataclasses import replace

from executor.engine import refusal
from planner.question import Question
from planner.search import search
from profiles.files import BadInput
from profiles.hardware import with_num_gpus
from simulator.strategy import Strategy


def smaller_strategy(question: Question, num_ranks: int) -> Strategy | None:
    """Return the fastest strategy that the engine runs on at most so many ranks, with the same batch; None if none fits.

    All that are left are used if some strategy uses them all, else the most that one does.
    """
    for num in range(min(num_ranks, question.cluster.num_gpus), 0, -1):
        try:
            cluster = with_num_gpus(question.cluster, num)
        except BadInput:
            continue  # not whole machines
        device = cluster.accelerator.device
        found = search(replace(question, cluster=cluster), lambda s, device=device: refusal(s, question.model, device))  # type: ignore[misc]
        if found.best is not None and int(found.best.strategy.global_batch) == question.global_batch:
            return found.best.strategy
    return None
