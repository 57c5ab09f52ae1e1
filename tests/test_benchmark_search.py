"""How long searches take, how many strategies a second are priced, in how much memory: `pytest -m benchmark -s`."""

from __future__ import annotations

import resource

import pytest

from planner.question import ask
from planner.search import search
from planner.space import narrowed, whole_space
from profiles.families import load_model
from profiles.hardware import load_cluster

pytestmark = pytest.mark.benchmark


PROCESSES = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def cpu_s() -> float:
    """Return the seconds of processors that this process and those that it started have used."""
    used = [resource.getrusage(who) for who in PROCESSES]
    return sum(u.ru_utime + u.ru_stime for u in used)


@pytest.mark.parametrize(("model", "cluster", "batch", "seq_len", "target_s"), [
    ("gpt3-175b", "dgx-a100:128", 1536, 2048, 20), ("llama-3.1-405b", "dgx-h100:2048", 2048, 8192, 30),
    ("llama-3-8b", "dgx-h100:1", 64, 8192, 5), ("deepseek-v3", "h800-ib:256", 15360, 4096, 60),
])
def test_the_whole_space(model: str, cluster: str, batch: int, seq_len: int, target_s: float) -> None:
    question = ask(load_model(model), load_cluster(cluster), tokens=1e12, global_batch=batch, seq_len=seq_len)
    before = cpu_s()
    found = search(question)
    used = cpu_s() - before
    peak_gib = max(resource.getrusage(who).ru_maxrss for who in PROCESSES) / 2**20
    assert found.best is not None
    print(f"\n{model} on {cluster}: {found.strategies_total:,} strategies, {found.strategies_priced:,} priced in "
          f"{found.search_seconds:.1f} s (target {target_s}; {used:.1f} s of processors): "
          f"{found.strategies_priced / found.search_seconds:,.0f} a second, "
          f"{peak_gib:.1f} GiB at most; {found.best.strategy.describe()}, {found.best.step_time_s:.2f} s")


def test_one_axis_at_a_time() -> None:
    question = ask(load_model("llama-3-8b"), load_cluster("dgx-h100:4"), tokens=1e12, global_batch=128, seq_len=8192)
    for axis in ("order=tp-cp-dp-pp", "schedule=1F1B", "context=ring", "zero=0,1,2,3", "cp=1"):
        found = search(question, axes=narrowed(whole_space(question), [axis], question))
        print(f"\nonly {axis}: {found.strategies_priced:,} priced in {found.search_seconds:.1f} s", end="")
