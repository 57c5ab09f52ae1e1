"""The search: the whole space priced in closed form, what does not fit removed, the best replayed and ranked again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.predict import Prediction, predict_replayed
from planner.question import Question
from planner.rules import MEMORY_RULE, RULES, legal
from planner.space import enumerate_space
from profiles.cost import cost_model
from profiles.units import show
from simulator.estimate import estimate
from simulator.memory import Memory, peak_memory
from simulator.strategy import Strategy
from simulator.workload import build_workload

NUM_REPLAYED = 24
"""How many of the best closed-form estimates are replayed; closed form and replay differ by a few per cent."""
NUM_RUNNERS_UP = 5
NUM_REJECTED_SHOWN = 20
ENGINE_RULE = "the engine runs it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A strategy that was left out, by which rule and why."""

    strategy: Strategy
    rule: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found; `best` is None where nothing fits."""

    best: Prediction | None
    runners_up: tuple[Prediction, ...]
    strategies_total: int
    strategies_priced: int
    rejected: dict[str, int]
    rejected_examples: tuple[Rejected, ...]
    search_seconds: float


def search(
    question: Question,
    refuse: Callable[[Strategy], str | None] | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Found:
    """Return the fastest strategy that is legal and fits, its runners-up, and why the others lost.

    `refuse` says in one sentence why an engine cannot run a strategy; it is asked of legal ones only.
    """
    started = time.perf_counter()
    tell = on_progress or (lambda share: None)
    space = enumerate_space(question)
    is_legal, broken = legal(space, question)
    pool = space.pick(np.flatnonzero(is_legal))
    refused = _refused(pool, refuse)
    runnable = pool.pick(np.flatnonzero(np.array([r is None for r in refused], dtype=bool)))
    tell(0.1)
    counts = {rule.name: int((broken == i).sum()) for i, rule in enumerate(RULES)}
    counts[ENGINE_RULE] = len(refused) - _size(runnable)
    if _size(runnable) == 0:
        examples = _examples(question, space, broken, pool, refused, runnable, None, np.zeros(0))
        return _found(None, (), space, 0, counts, examples, started)
    cost = cost_model(question.cluster)
    workload = build_workload(question.model, runnable)
    step_s = np.broadcast_to(estimate(workload, cost).step_time_s, (_size(runnable),))
    memory = peak_memory(workload, question.cluster.accelerator)
    fits = np.broadcast_to(memory.fits, step_s.shape)
    counts[MEMORY_RULE] = int((~fits).sum())
    tell(0.5)
    order = np.flatnonzero(fits)[np.argsort(step_s[fits], kind="stable")][:NUM_REPLAYED]
    replayed: list[Prediction] = []
    for i in order:
        replayed.append(predict_replayed(question, runnable.pick(int(i)), cost)[0])
        tell(0.5 + 0.5 * len(replayed) / len(order))
    ranked = sorted(replayed, key=lambda p: (p.step_time_s, p.peak_memory_bytes))
    examples = _examples(question, space, broken, pool, refused, runnable, memory, step_s)
    return _found(ranked[0] if ranked else None, tuple(ranked[1 : 1 + NUM_RUNNERS_UP]), space, _size(runnable), counts,
                  examples, started)


def _size(batch: Strategy) -> int:
    return int(np.size(batch.tp))


def _refused(pool: Strategy, refuse: Callable[[Strategy], str | None] | None) -> list[str | None]:
    if refuse is None:
        return [None] * _size(pool)
    return [refuse(pool.pick(i)) for i in range(_size(pool))]


def _found(
    best: Prediction | None, runners_up: tuple[Prediction, ...], space: Strategy, priced: int, counts: dict[str, int],
    examples: tuple[Rejected, ...], started: float,
) -> Found:
    return Found(
        best=best, runners_up=runners_up, strategies_total=_size(space), strategies_priced=priced,
        rejected={rule: count for rule, count in counts.items() if count}, rejected_examples=examples,
        search_seconds=time.perf_counter() - started,
    )


def _examples(
    question: Question, space: Strategy, broken: NDArray[np.int64], pool: Strategy, refused: list[str | None],
    runnable: Strategy, memory: Memory | None, step_s: NDArray[np.float64],
) -> tuple[Rejected, ...]:
    """Return the first rejected strategies, rule by rule in turn; those that do not fit come fastest first."""
    by_rule: list[list[Rejected]] = []
    if memory is not None:
        short = np.flatnonzero(~np.broadcast_to(memory.fits, step_s.shape))
        short = short[np.argsort(step_s[short], kind="stable")][:NUM_REJECTED_SHOWN]
        peaks = np.broadcast_to(memory.peak_bytes, step_s.shape)
        title = question.cluster.accelerator.title
        by_rule.append([
            Rejected(strategy=runnable.pick(int(i)), rule=MEMORY_RULE, reason=(
                f"needs {show(peaks[i], 'bytes')}, {show(memory.usable_bytes, 'bytes')} usable on {title}"
            )) for i in short
        ])
    engine = [i for i, reason in enumerate(refused) if reason is not None][:NUM_REJECTED_SHOWN]
    by_rule.append([Rejected(strategy=pool.pick(i), rule=ENGINE_RULE, reason=str(refused[i])) for i in engine])
    for number, rule in enumerate(RULES):
        first = np.flatnonzero(broken == number)[:NUM_REJECTED_SHOWN]
        strategies = [space.pick(int(i)) for i in first]
        by_rule.append([Rejected(strategy=s, rule=rule.name, reason=rule.reason(s, question)) for s in strategies])
    turns = max((len(rows) for rows in by_rule), default=0)
    in_turn = [rows[i] for i in range(turns) for rows in by_rule if i < len(rows)]
    return tuple(in_turn[:NUM_REJECTED_SHOWN])
