"""The search: the whole space priced in closed form, what does not fit removed, the best replayed and ranked again."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.predict import Prediction, predict_replayed
from planner.question import Question
from planner.rules import MEMORY_RULE, OFFLOAD_RULE, RULES, Rule, first_broken, same_as_another
from planner.space import Axes, Block, PipeChoice, blocks, flat, whole_space
from profiles.accelerators import mean_memory
from profiles.cost import CostModel, cost_model
from profiles.units import show
from simulator.estimate import estimate_pipe
from simulator.memory import lacking_bytes, mean_states, peak_memory
from simulator.part_bytes import Pieces, pieces_of
from simulator.pricing import Prices, price
from simulator.replay import play
from simulator.stages import StageSeconds
from simulator.strategy import Strategy, by_pipe
from simulator.workload import Workload, build_workload, pick_workload

NUM_REPLAYED = 24
"""How many of the best closed-form estimates are replayed; closed form and replay differ by a few per cent."""
NUM_OF_EACH = 2
"""How many of each schedule are, at the least: their closed forms are off by different amounts."""
NUM_RUNNERS_UP = 5
NUM_REJECTED_SHOWN = 20
ENGINE_RULE = "the engine runs it"
BATCH = 8192
"""Strategies priced at once: their arrays stay in a core's cache."""
CELL_RULES = tuple(rule for rule in RULES if not rule.of_pipe and not rule.of_offload)
HOST_RULES = tuple(rule for rule in RULES if rule.of_offload)
PIPE_RULES = tuple(rule for rule in RULES if rule.of_pipe)

Refuse = Callable[[Strategy], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A strategy that was left out, by which rule and why."""

    strategy: Strategy
    rule: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        """Return it in words, for plan files and JSON."""
        return {"strategy": self.strategy.describe(), "rule": self.rule, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found; `best` is None where nothing fits. `question` is the one that `best` answers."""

    question: Question
    axes: Axes
    best: Prediction | None
    runners_up: tuple[Prediction, ...]
    strategies_total: int
    strategies_priced: int
    rejected: dict[str, int]
    rejected_examples: tuple[Rejected, ...]
    search_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A strategy that fits, with its closed-form seconds per sequence and its bytes."""

    seconds: float
    peak_bytes: float
    question: Question
    strategy: Strategy


def search(
    question: Question, refuse: Refuse | None = None, on_progress: Callable[[float], None] | None = None,
    axes: Axes | None = None, num_replayed: int = NUM_REPLAYED,
) -> Found:
    """Return the fastest strategy that is legal and fits, its runners-up, and why the others lost.

    `refuse` says in one sentence why an engine cannot run a strategy; it is asked of legal ones only. `axes` is what is
    searched (`whole_space` where it is not given). The closed form ranks; of its best so many are replayed.
    """
    started = time.perf_counter()
    tell = on_progress or (lambda share: None)
    axes = axes or whole_space(question)
    tally = _Tally(axes["order"], refuse, cost_model(question.cluster))
    parts = list(blocks(question, axes))
    total, done = sum(block.size for block in parts), 0
    for block, found in zip(parts, _on_cores(tally.of, parts, total), strict=True):
        tally.merge(found)
        done += block.size
        tell(0.9 * done / total)
    chosen = tally.chosen()[:num_replayed] if num_replayed < NUM_REPLAYED else tally.chosen()
    steps = list[float]()
    for step_s in _on_cores(lambda c: _played_s(c, tally.cost), chosen, total):
        steps.append(step_s)
        tell(0.9 + 0.08 * len(steps) / len(chosen))
    # what a step is made of is asked of those that are shown
    order = sorted(range(len(chosen)), key=lambda i: (steps[i] / float(chosen[i].strategy.global_batch), chosen[i].peak_bytes))
    shown = [chosen[i] for i in order[: 1 + NUM_RUNNERS_UP]]
    predictions = tuple(_on_cores(lambda c: predict_replayed(c.question, c.strategy, tally.cost)[0], shown, total))
    return Found(
        question=shown[0].question if shown else question, axes=axes, best=predictions[0] if shown else None,
        runners_up=predictions[1:], strategies_total=total,
        strategies_priced=tally.priced, rejected={rule: num for rule, num in tally.counts.items() if num},
        rejected_examples=tally.examples(question), search_seconds=time.perf_counter() - started,
    )


Given = TypeVar("Given")
Gives = TypeVar("Gives")


def _on_cores(function: Callable[[Given], Gives], values: Sequence[Given], size: int) -> Iterator[Gives]:
    """Return the results of a function in the order of its values; those of a large space are found on all cores."""
    global _function
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if size < WORTH_PROCESSES or cores == 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(function, values)
        return
    # the processes are forked with the function, so that nothing is sent but values and results
    _function = function
    with ProcessPoolExecutor(cores, multiprocessing.get_context("fork")) as pool:
        # the longest first, so that none is left alone at the end
        longest = sorted(range(len(values)), key=lambda i: -getattr(values[i], "size", 0))
        found = {i: pool.submit(_call, values[i]) for i in longest}
        yield from (found[i].result() for i in range(len(values)))


def _played_s(candidate: Candidate, cost: CostModel) -> float:
    return play(build_workload(candidate.question.model, candidate.strategy), cost).step_time_s


def _call(value: Any) -> Any:
    return _function(value)


_function: Callable[[Any], Any] = str
WORTH_PROCESSES = 3_000_000
"""Strategies of a space, legal or not, from which on more than one process prices them."""


class _Tally:
    """Prices blocks, keeps the best and counts why others are out."""

    def __init__(self, orders: Sequence[str], refuse: Refuse | None, cost: CostModel) -> None:
        self.orders, self.refuse, self.cost = orders, refuse, cost
        self.counts: Counter[str] = Counter()
        self.priced = 0
        self.best: dict[str, list[Candidate]] = {}
        self.short: list[Candidate] = []
        self.rejected: dict[str, list[Rejected]] = {}

    def of(self, block: Block) -> _Tally:
        """Return the tally of one block."""
        found = _Tally(self.orders, self.refuse, self.cost)
        found.add(block)
        # what comes back from another process must not hold functions
        found.refuse = None
        return found

    def merge(self, other: _Tally) -> None:
        """Add what another one found."""
        self.priced += other.priced
        self.counts.update(other.counts)
        for rule, some in other.rejected.items():
            self.rejected[rule] = [*self.rejected.get(rule, []), *some][:NUM_REJECTED_SHOWN]
        for schedule, some_best in other.best.items():
            self.best[schedule] = _first([*self.best.get(schedule, []), *some_best], NUM_REPLAYED)
        self.short = sorted([*self.short, *other.short], key=lambda c: c.peak_bytes)[:NUM_REJECTED_SHOWN]

    def add(self, block: Block) -> None:
        """Price what is legal in a block."""
        question = block.question
        rules = (*CELL_RULES, *same_as_another(self.orders))
        broken = first_broken(block.grid, question, rules, block.shape)
        for i, rule in enumerate(rules):
            breaks = np.argwhere(broken == i)
            self.counts[rule.name] += len(breaks) * len(block.pipes) * len(block.offloads)
            if len(breaks):
                one = flat(block.grid, block.shape, tuple(breaks[:1].T)).pick(0)
                self._reject(rule.name, _with(one, block.pipes[0]), rule.reason(_with(one, block.pipes[0]), question))
        where = np.nonzero(broken < 0)
        cells = flat(block.grid, block.shape, where)
        # strategies with as many micro-batches stand together, as memory asks for that
        cells = cells.pick(np.argsort(np.broadcast_to(cells.num_microbatches, where[0].shape), kind="stable"))
        for begin in range(0, len(where[0]), BATCH):
            self._add_cells(block, cells.pick(np.arange(begin, min(begin + BATCH, len(where[0])))))

    def _add_cells(self, block: Block, cells: Strategy) -> None:
        """Price cells with each pipe; what fits as it is, with nothing offloaded only, which is never slower."""
        left = np.ones((len(block.pipes), len(cells)), dtype=bool)
        for way, share in block.offloads:
            offloaded = replace(cells, offload=way, offload_share=share)
            if not left.all():
                self.counts[OFFLOAD_RULE] += int((~left).sum())
                i, j = (int(found[0]) for found in np.nonzero(~left))
                one = _with(offloaded.pick(j), block.pipes[i])
                self._reject(OFFLOAD_RULE, one, f"it fits with offload_share 0: offload {way} would make it no faster")
            fits = self._add_legal(block.question, offloaded, block.pipes, left)
            if way == "none":
                left = ~fits

    def _add_legal(
        self, question: Question, cells: Strategy, pipes: tuple[PipeChoice, ...], asked: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Price those cells with those pipes that are `asked` and legal; return which fit, [pipe, cell]."""
        found = np.zeros(asked.shape, dtype=bool)
        legal = self._legal(question, cells, pipes, asked)
        wanted = legal.any(axis=0)
        if not wanted.any():
            return found
        at = np.flatnonzero(wanted)
        cells, legal = cells.pick(at), legal[:, at]
        self.priced += int(legal.sum())
        workload = build_workload(question.model, cells)
        usable = question.cluster.accelerator.memory_bytes
        self.counts[MEMORY_RULE] += int(legal.sum())
        # what the fullest rank holds is no less than what all hold on the average
        held = pieces_of(workload)
        # of schedules that split backward and of those that do not
        pieces = {bool(np.any(cells.splits_backward)): held}
        mean = np.broadcast_to(mean_states(question.model, held, int(cells.pp)), (len(cells),))
        light = mean <= mean_memory(question.cluster.accelerator)
        if not light.any():
            # one is kept to say why
            light = np.arange(len(cells)) == mean.argmin()
        if not light.all():
            some = np.flatnonzero(light)
            at, cells, legal, workload = at[some], cells.pick(some), legal[:, some], pick_workload(workload, some)
            pieces = {split: one.pick(some) for split, one in pieces.items()}
        peaks = self._peaks(workload, pieces, pipes, legal)
        fits = legal & (peaks <= usable)
        found[:, at] = fits
        self.counts[MEMORY_RULE] -= int(fits.sum())
        self._keep_short(question, cells, pipes, np.where(fits, np.inf, peaks))
        where = np.flatnonzero(fits.any(axis=0))
        if not len(where):
            return found
        if len(where) < len(cells):
            workload, fits, peaks = pick_workload(workload, where), fits[:, where], peaks[:, where]
        for choice, seconds in _estimates(workload, self.cost, pipes, fits):
            self._keep(question, workload.strategy, pipes[choice], seconds, peaks[choice])
        return found

    def _legal(
        self, question: Question, cells: Strategy, pipes: tuple[PipeChoice, ...], asked: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Return which of those cells with those pipes that are `asked` are legal, [pipe, cell]."""
        legal = np.zeros((len(pipes), len(cells)), dtype=bool)
        hosted = np.broadcast_to(first_broken(cells, question, HOST_RULES), (len(cells),))
        for row, pipe, here in zip(legal, pipes, asked, strict=True):
            piped = _with(cells, pipe)
            broken = first_broken(piped, question, PIPE_RULES)
            broken = np.where((broken < 0) & (hosted >= 0), hosted + len(PIPE_RULES), broken)
            for i, rule in enumerate((*PIPE_RULES, *HOST_RULES)):
                self._count(rule, question, piped, np.flatnonzero(here & (broken == i)))
            row[:] = here & (broken < 0)
            if self.refuse is None:
                continue
            for i in np.flatnonzero(row).tolist():
                one = piped.pick(i)
                if reason := self.refuse(one):
                    row[i] = False
                    self.counts[ENGINE_RULE] += 1
                    self._reject(ENGINE_RULE, one, reason)
        return legal

    def _peaks(
        self, workload: Workload, pieces: dict[bool, Pieces], pipes: tuple[PipeChoice, ...], legal: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the peak bytes of cells with each pipe, infinite where they are not legal: of those that do not fit what their
        first rank that does not holds; of a pool as if all ranks had its smallest memory, and what they lack or have left."""
        accelerator = self.cost.cluster.accelerator
        peaks = np.full(legal.shape, np.inf)
        for row, pipe, where in zip(peaks, pipes, legal, strict=True):
            if not where.any():
                continue
            piped = _with(workload.strategy, pipe)
            split = bool(np.any(piped.splits_backward))
            if split not in pieces:
                pieces[split] = pieces_of(replace(workload, strategy=piped))
            held = pieces[split]
            if not where.all():
                piped, held = piped.pick(some := np.flatnonzero(where)), held.pick(some)
            row[where] = accelerator.memory_bytes + lacking_bytes(workload.model, piped, held, accelerator)
        return peaks

    def _count(self, rule: Rule, question: Question, batch: Strategy, where: NDArray[np.int64]) -> None:
        self.counts[rule.name] += len(where)
        if len(where):
            one = batch.pick(int(where[0]))
            self._reject(rule.name, one, rule.reason(one, question))

    def _reject(self, rule: str, strategy: Strategy, reason: str) -> None:
        known = self.rejected.setdefault(rule, [])
        if len(known) < NUM_REJECTED_SHOWN:
            known.append(Rejected(strategy=strategy, rule=rule, reason=reason))

    def _keep(
        self, question: Question, cells: Strategy, pipe: PipeChoice, seconds: NDArray[np.float64], peaks: NDArray[np.float64]
    ) -> None:
        known = self.best.setdefault(pipe.schedule, [])
        batch = question.global_batch
        worst = known[-1].seconds if len(known) == NUM_REPLAYED else np.inf
        order = np.argsort(seconds, kind="stable")[:NUM_REPLAYED]
        new = [
            Candidate(seconds=float(seconds[i] / batch), peak_bytes=float(peaks[i]), question=question,
                      strategy=_with(cells.pick(int(i)), pipe)) for i in order if seconds[i] / batch < worst
        ]
        if new:
            self.best[pipe.schedule] = _first([*known, *new], NUM_REPLAYED)

    def _keep_short(
        self, question: Question, cells: Strategy, pipes: tuple[PipeChoice, ...], peaks: NDArray[np.float64]
    ) -> None:
        """Keep what comes nearest to fitting, by the first rank that does not."""
        worst = self.short[-1].peak_bytes if len(self.short) == NUM_REJECTED_SHOWN else np.inf
        order = np.argsort(peaks, axis=None, kind="stable")[:NUM_REJECTED_SHOWN]
        new = [
            Candidate(seconds=np.nan, peak_bytes=float(peaks[i, j]), question=question,
                      strategy=_with(cells.pick(int(j)), pipes[i]))
            for i, j in zip(*np.unravel_index(order, peaks.shape), strict=True) if peaks[i, j] < worst
        ]
        self.short = sorted([*self.short, *new], key=lambda c: c.peak_bytes)[:NUM_REJECTED_SHOWN]

    def chosen(self) -> list[Candidate]:
        """Return what is replayed: the best of all, and some of each schedule."""
        first = _first([c for some in self.best.values() for c in some], NUM_REPLAYED)
        return first + [c for some in self.best.values() for c in some[:NUM_OF_EACH] if not any(c is other for other in first)]

    def examples(self, question: Question) -> tuple[Rejected, ...]:
        """Return rejected strategies, rule by rule in turn; of those that do not fit the ones that need least."""
        lacks = sorted(((*_lacks(c), c.strategy) for c in self.short), key=lambda lack: lack[0])
        short = [Rejected(strategy=strategy, rule=MEMORY_RULE, reason=reason) for _, reason, strategy in lacks]
        by_rule = [short, *self.rejected.values()]
        turns = max((len(rows) for rows in by_rule), default=0)
        return tuple([rows[i] for i in range(turns) for rows in by_rule if i < len(rows)][:NUM_REJECTED_SHOWN])


def _lacks(candidate: Candidate) -> tuple[float, str]:
    """Return how much a strategy lacks; in words what it needs and what there is, in a pool where least is left."""
    accelerator = candidate.question.cluster.accelerator
    memory = peak_memory(build_workload(candidate.question.model, candidate.strategy), accelerator)
    peak, usable, title = float(memory.peak_bytes), float(memory.usable_bytes), accelerator.title
    if accelerator.parts:
        title = " + ".join(dict.fromkeys(kind.title for kind in accelerator.kinds if kind.memory_bytes == usable))
    return peak - usable, f"needs {show(peak, 'bytes')}, {show(usable, 'bytes')} usable on {title}"


def _first(candidates: list[Candidate], num: int) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (c.seconds, c.peak_bytes))[:num]


def _with(cells: Strategy, pipe: PipeChoice) -> Strategy:
    return replace(cells, schedule=pipe.schedule, chunks=pipe.chunks, layers=pipe.layers)


def _estimates(
    workload: Workload, cost: CostModel, pipes: tuple[PipeChoice, ...], fits: NDArray[np.bool_]
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Return the step's seconds of cells with each pipe, infinite where they do not fit; kinds of stages are priced once."""
    prices: dict[bool, Prices] = {}
    stages: dict[bool, dict[object, StageSeconds]] = {False: {}, True: {}}
    for i, pipe in enumerate(pipes):
        if not fits[i].any():
            continue
        piped = replace(workload, strategy=_with(workload.strategy, pipe))
        split = bool(np.any(piped.strategy.splits_backward))
        if split not in prices:
            prices[split] = price(piped, cost)
        step = estimate_pipe(piped, prices[split], by_pipe(piped.strategy)[0], cost, stages[split]).step_time_s
        yield i, np.where(fits[i], step, np.inf)
