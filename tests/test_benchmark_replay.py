"""How long replays take, and that their cost grows with ranks times actions: `pytest -m benchmark -s`; figures in out/."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiles import files
from profiles.cost import cost_model
from profiles.families import load_model
from profiles.hardware import load_cluster
from reports.figures import replay_cost, svg
from simulator.condition import healthy, with_slow
from simulator.layout import rank_of
from simulator.max_plus import play_table
from simulator.replay import replay, replay_table
from simulator.schedules import build_schedule
from simulator.strategy import Strategy
from simulator.workload import build_workload

pytestmark = pytest.mark.benchmark
OUT = Path("out")


def seconds(what: str, target_s: float, work: Callable[[], object]) -> float:
    work()
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    print(f"\n{what}: {took:.3f} s (target {target_s:g} s)", end="")
    return took


def test_llama_3_405b_on_16384() -> None:
    strategy = Strategy(dp=128, tp=8, pp=16, chunks=7, schedule="Interleaved1F1B", num_microbatches=16, seq_len=8192, zero=1)
    workload, cost = build_workload(load_model("llama-3.1-405b"), strategy), cost_model(load_cluster("dgx-h100:2048"))
    plain = seconds("405B, 16,384 GPUs", 0.3, lambda: replay(workload, cost))
    slow = with_slow(healthy(16384), {rank_of(strategy, dp=i, pp=i % 16): 1.05 + i / 1000 for i in range(128)}, {}, 8)
    many = seconds("the same with 128 stragglers", 20, lambda: replay(workload, cost, slow))
    print(f"\n128 pipelines over one: {many / plain:.0f} times")


def test_530b_of_35_stages() -> None:
    gpt = load_model("gpt3-175b")
    model = replace(gpt, name="530b", hidden=20480, pattern=(0,) * 105)
    strategy = Strategy(dp=8, tp=8, pp=35, chunks=3, schedule="Interleaved1F1B", num_microbatches=280, seq_len=2048, zero=1)
    workload, cost = build_workload(model, strategy), cost_model(load_cluster("selene:280"))
    seconds("530B, 35 stages, 3 chunks, 280 micro-batches", 1, lambda: replay(workload, cost))


def processor_s(work: Callable[[], object]) -> float:
    """Return the processor's time for some work, which others on the machine hardly lengthen; the best of three."""
    work()
    took = []
    for _ in range(3):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def test_cost_grows_with_ranks_times_actions() -> None:
    """Of tables alone, and of whole steps with prices, wires that are shared and the timeline: written to out/."""
    model, cost = load_model("llama-3.1-405b"), cost_model(load_cluster("dgx-h100:2048"))
    found = []
    for ranks, m in product((4, 8, 16, 32), (32, 64, 128, 256)):
        table = build_schedule("Interleaved1F1B", ranks, m, 4)
        num = sum(map(len, table))
        found.append(("a schedule table", ranks, num, processor_s(lambda t=table: replay_table(t, lambda a: 1.0, 0.01))))  # type: ignore[misc]
        strategy = Strategy(dp=16384 // 8 // ranks, tp=8, pp=ranks, chunks=3, schedule="Interleaved1F1B", num_microbatches=m,
                            seq_len=8192, zero=1)
        workload = build_workload(model, strategy)
        found.append(("a step of Llama 3.1 405B on 16,384 GPUs, to its timeline", ranks, ranks * 2 * 3 * m,
                      processor_s(lambda w=workload: replay(w, cost))))  # type: ignore[misc]
    frame = pd.DataFrame(found, columns=["what", "ranks", "actions", "seconds"])
    files.make_folder(OUT)
    frame.to_csv(OUT / "replay_cost.csv", index=False)
    drawn = svg(replay_cost(frame), "replay", "time of a replay over its actions", "sans-serif")
    files.write_text(OUT / "replay_cost.svg", drawn)
    for what, rows in frame.groupby("what", sort=False):
        slope = np.polyfit(np.log(rows["actions"]), np.log(rows["seconds"]), 1)[0]
        print(f"\n{what}: seconds grow as actions to the power {slope:.2f}", end="")


def test_many_steps_at_once() -> None:
    table, lanes = build_schedule("Interleaved1F1B", 16, 64, 8), np.ones(1000)
    one = seconds("16 ranks, 8 chunks, 64 micro-batches", 3, lambda: replay_table(table, lambda a: 1.0, 0.01))
    at_once = seconds("1,000 steps of them at once", 1000 * one, lambda: play_table(table, lambda a: lanes))
    print(f"\nat once over one by one: {at_once / one / 1000:.4f}")
