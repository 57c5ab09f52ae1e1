"""How long replays take, and that their cost grows with ranks times actions: `pytest -m benchmark -s`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from profiles.cost import cost_model
from profiles.families import load_model
from profiles.hardware import load_cluster
from simulator.condition import healthy, with_slow
from simulator.layout import rank_of
from simulator.max_plus import play_table
from simulator.replay import replay, replay_table
from simulator.schedules import build_schedule
from simulator.strategy import Strategy
from simulator.workload import build_workload

pytestmark = pytest.mark.benchmark


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


def test_cost_grows_with_actions() -> None:
    times = {}
    for m in (64, 128, 256, 512):
        table = build_schedule("Interleaved1F1B", 16, m, 8)
        times[m] = seconds(f"16 ranks, 8 chunks, {m} micro-batches", 3, lambda t=table: replay_table(t, lambda a: 1.0, 0.01))  # type: ignore[misc]
    print("\nover actions:", {m: f"{t / m / times[64] * 64:.2f}" for m, t in times.items()})
    table, lanes = build_schedule("Interleaved1F1B", 16, 64, 8), np.ones(1000)
    at_once = seconds("1,000 steps of 64 micro-batches at once", 1000 * times[64], lambda: play_table(table, lambda a: lanes))
    print(f"\nat once over one by one: {at_once / times[64] / 1000:.4f}")
