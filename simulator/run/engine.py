"""One run from the first step to the last with SimPy: a few events for each interruption, none for a step or a checkpoint.

Processes: the job, the fleet's strikes on it and on idle spares, planned stops, a repair for each node that is away, and a
corruption of the state that nobody has noticed yet. What lies between two interruptions is a `Stretch`, in closed form. The
job takes one of these turns:

    down: detection, then waiting for nodes, then restart (start, another node's start, reading the checkpoint).
          A strike in it begins it anew.
    train: a stretch. A strike ends it; what the last written checkpoint does not hold is done again. A planned stop lets
          the step end and writes a checkpoint first. So does a regrow: an elastic job that lacks replicas takes nodes back
          while it trains where that pays before the next failure is due, otherwise at its next restart.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import simpy

from profiles.reliability import Fleet, PlannedStop
from simulator.run.outcome import PARTS, PRODUCTIVE, Outcome
from simulator.run.stretch import Spent, Stretch
from simulator.run.strikes import Strike
from simulator.run.training import Checkpoints, Reserve, Training

Process = Generator[Any, Any, None]
_Turn = tuple[str, float | None]
"""What is gone through while the job is down: the part of the time, and its seconds (None: until there are nodes)."""


class _TimeIsUp(Exception):
    """The run took longer than it may."""


@dataclass(slots=True)
class _Corruption:
    """A corruption of the training state that goes unnoticed: the newest step from before it that a checkpoint holds, and
    whether the job has since gone back to before it."""

    strike: Strike
    clean_step: int
    erased: bool = False


@dataclass(slots=True)
class _Job:
    """The state of a run: its nodes, its step and what its time was spent on."""

    env: simpy.Environment
    training: Training
    checkpoints: Checkpoints
    fleet: Fleet
    reserve: Reserve
    held: int
    spare: int
    units: int = 0
    step: int = 0
    swapped: bool = False
    steady: bool = False
    finished: bool = False
    parts_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    strikes: list[int] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)
    corruptions: list[_Corruption] = field(default_factory=list)
    process: Any = None
    nodes_back: Any = None


@dataclass(frozen=True, slots=True)
class _Stop:
    """A request to stop after the running step: a planned stop (its index), or a regrow (None); None seconds: time is up."""

    index: int | None
    lasts_s: float | None


def simulate_run(
    training: Training, checkpoints: Checkpoints, fleet: Fleet, reserve: Reserve, strikes: Iterator[Strike], limit_s: float,
    idle: Iterable[Strike] = (),
) -> Outcome:
    """Return what one run comes to under given strikes, those on `idle` spares apart; one that takes longer than `limit_s` is
    cut off there."""
    env = simpy.Environment()
    job = _Job(env=env, training=training, checkpoints=checkpoints, fleet=fleet, reserve=reserve, held=training.num_nodes,
               spare=reserve.num_spares, strikes=[0] * len(fleet.causes), stops=[0] * len(fleet.planned))
    job.nodes_back = env.event()
    job.process = env.process(_run(job))
    env.process(_strike(job, strikes))
    env.process(_strike_spares(job, idle))
    for index, stop in enumerate(fleet.planned):
        env.process(_stop(job, index, stop))
    env.process(_limit(job, limit_s))
    env.run(until=job.process)
    return Outcome(elapsed_s=env.now, parts_s=job.parts_s, strikes=tuple(job.strikes), stops=tuple(job.stops),
                   finished=job.finished)


def _strike(job: _Job, strikes: Iterator[Strike]) -> Process:
    for strike in strikes:
        yield job.env.timeout(strike.time_s - job.env.now)
        cause = job.fleet.causes[strike.cause]
        # what does not train neither stalls nor corrupts anything
        if _hits(job, strike) and (job.steady or not (cause.pause_s or cause.unnoticed_s)):
            job.process.interrupt(strike)


def _strike_spares(job: _Job, strikes: Iterable[Strike]) -> Process:
    for strike in strikes:
        yield job.env.timeout(strike.time_s - job.env.now)
        if strike.replaced and strike.where * job.reserve.num_spares < job.spare:
            lost = min(job.fleet.causes[strike.cause].num_nodes, job.spare)
            job.spare -= lost
            job.env.process(_repair(job, lost, strike.repair_s))


def _notice(job: _Job, corruption: _Corruption) -> Process:
    yield job.env.timeout(job.fleet.causes[corruption.strike.cause].unnoticed_s)
    if not corruption.erased and job.process.is_alive:
        job.process.interrupt(corruption)


def _hits(job: _Job, strike: Strike) -> bool:
    """Return whether a node that is struck is one of those that the job still has."""
    scope = job.fleet.causes[strike.cause].scope
    return scope == "job" or strike.where * job.training.num_nodes < job.held


def _stop(job: _Job, index: int, stop: PlannedStop) -> Process:
    while True:
        yield job.env.timeout(stop.every_s)
        # what falls into a time when the job is down anyway is done then
        if job.steady:
            job.process.interrupt(_Stop(index, stop.lasts_s))


def _limit(job: _Job, limit_s: float) -> Process:
    yield job.env.timeout(limit_s)
    job.process.interrupt(_Stop(None, None))


def _repair(job: _Job, num_nodes: int, repair_s: float) -> Process:
    yield job.env.timeout(repair_s)
    job.spare += num_nodes
    job.nodes_back.succeed()
    job.nodes_back = job.env.event()
    if job.steady and _pays_to_regrow(job):
        job.process.interrupt(_Stop(None, 0.0))


def _pays_to_regrow(job: _Job) -> bool:
    """Return whether the replicas that would come back gain more until the next failure is due than the stop costs."""
    t = job.training
    gained = min(t.num_units, (job.held + job.spare) // t.unit_nodes) - job.units
    rate = job.fleet.failures_per_s(t.num_gpus, t.num_nodes)
    cost_s = job.checkpoints.stall_s + job.checkpoints.write_s + job.fleet.restart_s + job.checkpoints.load_s
    return gained > 0 and gained / t.num_units > cost_s * rate


def _run(job: _Job) -> Process:
    try:
        yield from _down(job, [("restart", job.fleet.restart_s)])
        while not job.finished:
            yield from _train(job)
    except _TimeIsUp:
        return


def _down(job: _Job, turns: list[_Turn]) -> Process:
    """Pass through turns of (part, seconds); None waits for nodes. A strike begins detection, waiting and restart anew."""
    job.steady = False
    while turns:
        part, seconds = turns[0]
        begun = job.env.now
        try:
            if seconds is not None:
                yield job.env.timeout(seconds)
            else:
                while not _take_nodes(job):
                    yield job.nodes_back
                if job.swapped:
                    turns.append(("restart", job.fleet.replacement_s))
                job.swapped = False
            turns = turns[1:]
        except simpy.Interrupt as interrupt:
            turns = _interrupted(job, turns, interrupt.cause, job.env.now - begun)
        finally:
            job.parts_s[part] += job.env.now - begun
    if not job.units:
        _take_nodes(job)


def _interrupted(job: _Job, turns: list[_Turn], by: Any, passed_s: float) -> list[_Turn]:
    """Return the turns that follow an interruption of the first."""
    if isinstance(by, _Corruption):
        _go_back(job, by)
        return _recovery(job, by.strike)
    if isinstance(by, Strike) and not (job.fleet.causes[by.cause].pause_s or job.fleet.causes[by.cause].unnoticed_s):
        return _recovery(job, by)
    if isinstance(by, _Stop) and by.lasts_s is None:
        raise _TimeIsUp
    # a stop or a stall that came at the very moment when the job went down: there is nothing left to stop
    part, seconds = turns[0]
    return [(part, None if seconds is None else max(0.0, seconds - passed_s)), *turns[1:]]


def _recovery(job: _Job, strike: Strike) -> list[_Turn]:
    """Count a strike, send its nodes to repair, and return what has to be gone through until training goes on."""
    cause = job.fleet.causes[strike.cause]
    job.strikes[strike.cause] += 1
    if strike.replaced:
        lost = min(cause.num_nodes, job.held)
        job.held -= lost
        job.swapped = True
        job.env.process(_repair(job, lost, strike.repair_s))
    detection_s = job.fleet.detection_s if cause.detection_s is None else cause.detection_s
    return [("detection", detection_s), ("waiting", None), ("restart", job.fleet.restart_s + job.checkpoints.load_s)]


def _take_nodes(job: _Job) -> bool:
    """Fill up the job's nodes from the spare ones; return whether it can train with what it has."""
    t = job.training
    taken = min(job.spare, t.num_nodes - job.held)
    job.held, job.spare = job.held + taken, job.spare - taken
    units = job.held // t.unit_nodes
    if units < t.num_units and not (job.reserve.elastic and units):
        return False
    job.units = units
    return True


def _train(job: _Job) -> Process:
    """Train until the run ends or something comes in between; then be down until training can go on."""
    t = job.training
    stretch = Stretch(t, job.checkpoints, job.step, t.num_units / job.units)
    until_s, spent, after = stretch.end_s, None, None
    elapsed_s, pause_s = 0.0, 0.0
    job.steady = True
    while elapsed_s < until_s:
        begun = job.env.now
        strike: Strike | _Stop | _Corruption | None = None
        try:
            yield job.env.timeout(pause_s + until_s - elapsed_s)
        except simpy.Interrupt as interrupt:
            strike = interrupt.cause
        passed = job.env.now - begun
        paused = min(passed, pause_s)
        job.parts_s["stall"] += paused
        pause_s -= paused
        if strike is None:
            break
        elapsed_s += passed - paused
        if isinstance(strike, Strike) and job.fleet.causes[strike.cause].pause_s:
            job.strikes[strike.cause] += 1
            pause_s += job.fleet.causes[strike.cause].pause_s
        elif isinstance(strike, Strike) and job.fleet.causes[strike.cause].unnoticed_s:
            job.corruptions.append(_Corruption(strike, stretch.clean(elapsed_s)))
            job.env.process(_notice(job, job.corruptions[-1]))
        elif isinstance(strike, Strike | _Corruption) or strike.lasts_s is None:
            _book(job, stretch.failed(elapsed_s), elapsed_s)
            _erase(job)
            if isinstance(strike, _Stop):
                raise _TimeIsUp
            if isinstance(strike, _Corruption):
                _go_back(job, strike)
            yield from _down(job, _recovery(job, strike.strike if isinstance(strike, _Corruption) else strike))
            return
        elif after is None:
            after, spent = strike, stretch.stopped(elapsed_s)
            until_s = spent.elapsed_s
    spent = spent or stretch.at_end()
    _book(job, spent, spent.elapsed_s)
    job.finished = job.step == t.num_steps
    if after is not None and not job.finished:
        yield from _down(job, _planned(job, after))


def _planned(job: _Job, stop: _Stop) -> list[_Turn]:
    if stop.index is not None:
        job.stops[stop.index] += 1
    return [("maintenance", stop.lasts_s or 0.0), ("waiting", None), ("restart", job.fleet.restart_s + job.checkpoints.load_s)]


def _go_back(job: _Job, corruption: _Corruption) -> None:
    """Go back to the newest checkpoint from before a corruption, or where none of those that are kept is, to the beginning."""
    c, t = job.checkpoints, job.training
    oldest = job.step - (c.kept - 1) * c.interval_steps if c.kept else 0
    good = corruption.clean_step if corruption.clean_step >= oldest else 0
    lost_s = max(0, job.step - good) * t.step_time_s
    job.step = min(job.step, good)
    job.parts_s[PRODUCTIVE] -= lost_s
    job.parts_s["redone"] += lost_s
    _erase(job)


def _erase(job: _Job) -> None:
    """Forget corruptions from after the checkpoint that the job has gone back to."""
    for corruption in job.corruptions:
        corruption.erased |= job.step <= corruption.clean_step
    job.corruptions = [c for c in job.corruptions if not c.erased]


def _book(job: _Job, spent: Spent, elapsed_s: float) -> None:
    """Enter a stretch: what was kept by what it was, what came after it as done in vain."""
    job.step = spent.step
    parts = job.parts_s
    parts[PRODUCTIVE] += spent.productive_s
    parts["reduced"] += spent.reduced_s
    parts["evaluation"] += spent.evaluation_s
    parts["checkpoint"] += spent.checkpoint_s
    parts["redone"] += elapsed_s - spent.elapsed_s
