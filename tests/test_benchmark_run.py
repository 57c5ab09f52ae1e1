"""How fast whole runs are simulated; prints the figures. `pytest -m benchmark -s tests/test_benchmark_run.py`."""

from __future__ import annotations

import resource
import time
from dataclasses import replace

import pytest

from profiles.reliability import load_fleet
from simulator.run.monte_carlo import Case, one_run, simulate_runs
from simulator.run.spares import best_spares
from simulator.run.training import Checkpoints, Reserve, Training

pytestmark = pytest.mark.benchmark
FLEET = load_fleet("llama-3-405b")


def case(num_gpus: int = 16384, days: float = 54.0, elastic: bool = False) -> Case:
    training = Training(num_steps=round(days * 86400 / 6.5), step_time_s=6.5, num_nodes=num_gpus // 8, gpus_per_node=8,
                        unit_nodes=16, eval_every=1000, eval_s=2.0)
    return Case(training=training, checkpoints=Checkpoints(interval_steps=39, stall_s=2.8, load_s=2.8), fleet=FLEET,
                reserve=Reserve(num_spares=5, elastic=elastic))


def timed(some: Case, run: int = 0) -> float:
    begun = time.perf_counter()
    one_run(some, run)
    return time.perf_counter() - begun


def test_one_run_of_54_days_on_16384_gpus() -> None:
    seconds = sorted(timed(case(), run) for run in range(20))
    print(f"\none run of 54 days of 16,384 GPUs: median {seconds[10] * 1e3:.1f} ms, slowest {seconds[-1] * 1e3:.1f} ms")


def test_a_thousand_runs() -> None:
    for elastic in (False, True):
        begun = time.perf_counter()
        runs = simulate_runs(case(elastic=elastic), 1000)
        spent = time.perf_counter() - begun
        memory = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
        print(f"\n1,000 runs{' (elastic)' if elastic else ''}: {spent:.1f} s, goodput {runs.goodput:.4f}, "
              f"{runs.strikes.sum(axis=1).mean():.0f} failures a run, at most {memory:.2f} GiB of a process and a child")


def test_time_grows_with_interruptions_not_with_steps() -> None:
    print()
    for num_gpus, days in ((1024, 864.0), (16384, 54.0), (131072, 27.0)):
        some = case(num_gpus, days)
        some = replace(some, reserve=Reserve(num_spares=best_spares(some.training, FLEET)))
        seconds = min(timed(some, run) for run in range(5))
        strikes = sum(one_run(some, 0).strikes)
        print(f"{num_gpus:,} GPUs, {some.training.num_steps:,} steps, {strikes:,} failures: {seconds * 1e3:.1f} ms, "
              f"{seconds / strikes * 1e6:.0f} us a failure")
