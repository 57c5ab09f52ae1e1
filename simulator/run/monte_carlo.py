"""Many runs of the same question, each with its own failures and its own error of the predicted step: on all cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat

from profiles.files import BadInput
from profiles.reliability import Fleet
from simulator.run.engine import simulate_run
from simulator.run.outcome import Outcome, Outcomes, collect
from simulator.run.strikes import draw_luck, idle_strikes, strikes
from simulator.run.training import Checkpoints, Reserve, Training

CHUNK = 8
"""Runs that one process takes at a time."""
WORTH_S = 4.0
"""Seconds of work from which further processes pay for their start."""
LIMIT = 10.0
"""A run that takes so many times its undisturbed time is given up."""
CURVE_RUNS = 40
"""Runs of each point of a curve; all points meet the same failures, so their differences need fewer runs than their means."""
CURVE_LIMIT = 2.0
"""A run of a curve that takes so many times its undisturbed time is followed no further: it is out of the question."""
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated: a run, its checkpoints, the fleet that it runs on and what stands ready."""

    training: Training
    checkpoints: Checkpoints
    fleet: Fleet
    reserve: Reserve
    seed: int = 0
    limit: float = LIMIT


def one_run(case: Case, run: int) -> Outcome:
    """Return one run of a case by its number."""
    t = case.training
    luck = draw_luck(case.fleet, t.step_spread, case.seed, run)
    slow = replace(t, step_time_s=t.step_time_s * luck.step, eval_s=t.eval_s * luck.step)
    hits = strikes(case.fleet, luck, t.num_gpus, t.num_nodes, case.seed, run)
    idle = idle_strikes(case.fleet, luck, t.gpus_per_node, case.reserve.num_spares, case.seed, run)
    return simulate_run(slow, case.checkpoints, case.fleet, case.reserve, hits, case.limit * slow.undisturbed_s, idle)


def simulate_runs(
    case: Case, num_runs: int, on_progress: Progress | None = None, processes: int | None = None
) -> Outcomes:
    """Return runs 0, 1, ... of a case; the same whatever the number of processes. `on_progress` is given the share done."""
    check_case(case)
    if num_runs < 1:
        raise BadInput(f"runs: must be at least 1 (is {num_runs})")
    tell = on_progress or (lambda share: None)
    done: list[Outcome] = []
    for chunk in _chunks(case, num_runs, processes or os.cpu_count() or 1):
        done += chunk
        tell(len(done) / num_runs)
    return collect(done)


def _chunks(case: Case, num_runs: int, processes: int) -> Iterator[list[Outcome]]:
    begun = time.perf_counter()
    first = min(CHUNK, num_runs)
    yield _some(case, range(first))
    rest = [range(i, min(i + CHUNK, num_runs)) for i in range(first, num_runs, CHUNK)]
    left_s = (time.perf_counter() - begun) / first * (num_runs - first)
    if processes < 2 or left_s < WORTH_S:
        yield from (_some(case, runs) for runs in rest)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(_some, repeat(case), rest)


def _some(case: Case, runs: range) -> list[Outcome]:
    return [one_run(case, run) for run in runs]


def check_case(case: Case) -> None:
    """Refuse what no run can be made of, by the field that says so."""
    t, c, r = case.training, case.checkpoints, case.reserve
    if c.interval_steps < 1:
        raise BadInput(f"checkpoint_interval: must be at least one step (is {c.interval_steps})")
    if c.interval_steps > t.num_steps:
        raise BadInput(
            f"checkpoint_interval: {c.interval_steps:,} steps are more than the run's {t.num_steps:,}; "
            f"give at most {t.num_steps * t.step_time_s:.4g}s"
        )
    if r.num_spares < 0:
        raise BadInput(f"spares: must not be negative (is {r.num_spares})")
    if case.seed < 0:
        raise BadInput(f"seed: must not be negative (is {case.seed})")


def part_of(on_progress: Progress | None, index: int, count: int) -> Progress | None:
    """Return the progress of one of several parts, told as that of the whole."""
    return None if on_progress is None else lambda share: on_progress((index + share) / count)
