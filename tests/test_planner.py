"""The planner: its winner against brute force, its rules, its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.economics import energy_kwh, gpu_hours, run_days
from planner.plan import plan_from_search, read_plan, write_plan
from planner.predict import predict
from planner.question import Question, ask
from planner.rules import MEMORY_RULE, RULES, illegal_reason, legal
from planner.search import NUM_REPLAYED, Found, search
from planner.space import divisors, enumerate_space
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import Cluster, load_cluster, with_num_gpus
from simulator.memory import peak_memory
from simulator.strategy import Strategy
from simulator.workload import build_workload

MODEL = load_model("llama-3-8b")


def question(cluster: Cluster, batch: int = 64, seq_len: int = 4096) -> Question:
    return ask(MODEL, cluster, tokens=1e12, seq_len=seq_len, global_batch=batch)


def found(cluster: Cluster, batch: int = 64) -> Found:
    return search(question(cluster, batch))


def more_memory(cluster: Cluster, times: float) -> Cluster:
    accelerator = replace(cluster.accelerator, memory_bytes=cluster.accelerator.memory_bytes * times)
    return replace(cluster, accelerator=accelerator)


@pytest.mark.parametrize(("name", "gpus", "batch"), [("dgx-h100:1", 8, 32), ("dgx-a100:1", 8, 16), ("dgx-b200:1", 4, 8)])
def test_the_winner_is_the_best_of_a_brute_force_replay(name: str, gpus: int, batch: int) -> None:
    q = question(with_num_gpus(load_cluster(name), gpus), batch)
    best = search(q).best
    assert best is not None
    space = enumerate_space(q)
    pool = space.pick(np.flatnonzero(legal(space, q)[0]))
    memory = peak_memory(build_workload(MODEL, pool), q.cluster.accelerator)
    fitting = np.flatnonzero(np.broadcast_to(memory.fits, (len(pool),)))
    assert len(fitting) > NUM_REPLAYED
    brute = min(predict(q, pool.pick(int(i)))[0].step_time_s for i in fitting)
    assert best.step_time_s == pytest.approx(brute, rel=1e-12)


def test_the_chosen_plan_beats_every_plan_it_lists() -> None:
    result = found(load_cluster("dgx-h100:4"), 256)
    assert result.best is not None and len(result.runners_up) == 5
    times = [result.best.step_time_s, *(p.step_time_s for p in result.runners_up)]
    assert times == sorted(times)
    assert all(p.fits for p in (result.best, *result.runners_up))


def test_every_strategy_is_accounted_for() -> None:
    result = found(load_cluster("dgx-h100:2"))
    illegal = sum(n for rule, n in result.rejected.items() if rule != MEMORY_RULE)
    assert result.strategies_total == result.strategies_priced + illegal
    assert 0 < len(result.rejected_examples) <= 20
    for example in result.rejected_examples:
        assert example.reason and any(c.isdigit() for c in example.reason)
        if example.rule != MEMORY_RULE:
            assert illegal_reason(example.strategy, question(load_cluster("dgx-h100:2"))) == example.reason


@settings(max_examples=8)
@given(st.floats(1.0, 8.0), st.sampled_from(["dgx-h100:1", "dgx-a100:2"]))
def test_more_memory_never_rejects_more(times: float, name: str) -> None:
    cluster = load_cluster(name)
    small, large = found(cluster, 16), found(more_memory(cluster, times), 16)
    assert large.rejected.get(MEMORY_RULE, 0) <= small.rejected.get(MEMORY_RULE, 0)
    if small.best and large.best:
        assert large.best.step_time_s <= small.best.step_time_s * (1 + 1e-12)


@settings(max_examples=8)
@given(st.floats(1.0, 8.0))
def test_more_bandwidth_never_makes_the_best_plan_slower(times: float) -> None:
    cluster = load_cluster("dgx-h100:2")
    faster = replace(cluster, scale_out=replace(cluster.scale_out, bytes_per_s=cluster.scale_out.bytes_per_s * times))
    slow, quick = found(cluster, 32).best, found(faster, 32).best
    assert slow is not None and quick is not None
    assert quick.step_time_s <= slow.step_time_s * (1 + 1e-12)


def test_nothing_fits_where_memory_is_tiny() -> None:
    result = found(more_memory(load_cluster("dgx-h100:1"), 0.05))
    assert result.best is None
    assert result.rejected[MEMORY_RULE] == result.strategies_priced
    assert "usable on H100-SXM5-80GB" in result.rejected_examples[0].reason


def test_an_engine_that_refuses_is_heard() -> None:
    q = question(load_cluster("dgx-h100:1"))
    result = search(q, refuse=lambda s: "no tensors across ranks" if s.tp > 1 else None)
    assert result.best is not None and result.best.strategy.tp == 1
    assert result.rejected["the engine runs it"] > 0


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (Strategy(dp=3), "= 3, the cluster has 8 accelerators"),
        (Strategy(dp=1, tp=8, micro_batch=3), "dp 1 x micro-batch 3 = 3 does not divide the global batch of 64"),
        (Strategy(dp=1, pp=8, zero=2), "ZeRO-2 has nothing to shard over: dp is 1"),
        (Strategy(dp=4, cp=2), "cp 2, ep 1"),
    ],
)
def test_an_illegal_strategy_says_why(strategy: Strategy, sentence: str) -> None:
    reason = illegal_reason(replace(strategy, seq_len=4096), question(load_cluster("dgx-h100:1")))
    assert reason is not None and sentence in reason


def test_rules_agree_on_batches_and_members() -> None:
    q = question(load_cluster("dgx-h100:1"))
    space = enumerate_space(q)
    is_legal, broken = legal(space, q)
    for i in range(0, len(space), 7):
        reason = illegal_reason(space.pick(i), q)
        assert (reason is None) == bool(is_legal[i])
        if reason is not None:
            assert reason == RULES[int(broken[i])].reason(space.pick(i), q)


@given(st.integers(1, 5000))
def test_divisors(n: int) -> None:
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


def test_days_hours_and_energy() -> None:
    """1e12 tokens at 1e6 tokens a step and 1 s a step are 1e6 s: 11.57 days."""
    days = run_days(1e12, 1e6, 1.0)
    assert days == pytest.approx(1e6 / 86400)
    assert gpu_hours(days, 128) == pytest.approx(days * 24 * 128)
    assert energy_kwh(1.0, load_cluster("dgx-h100:2")) == pytest.approx(24 * 2 * 10.2)


def test_a_cluster_without_price_plans_and_says_so() -> None:
    cluster = load_cluster("dgx-h100:1")
    unknown = replace(cluster, accelerator=replace(cluster.accelerator, name="mine"))
    best = search(question(unknown)).best
    assert best is not None and best.usd is None and best.gpu_hours > 0


def test_a_plan_file_reads_back_and_repeats_byte_for_byte(tmp_path: Path) -> None:
    q = question(load_cluster("dgx-h100:1"))
    first = write_plan(plan_from_search(replace(q, cluster_text="dgx-h100:1"), search(q)), tmp_path / "a.yaml")
    again = write_plan(plan_from_search(replace(q, cluster_text="dgx-h100:1"), search(q)), tmp_path / "b.yaml")
    assert first.read_bytes() == again.read_bytes()
    plan = read_plan(first)
    assert write_plan(plan, tmp_path / "c.yaml").read_bytes() == first.read_bytes()
    assert predict(plan.question, plan.strategy)[0].step_time_s == pytest.approx(plan.prediction["step_time_s"], rel=1e-6)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("strategy", "dp"), 3, "strategy: dp 3 x tp"),
        (("strategy", "zero"), 7, "strategy.zero: Input should be less than or equal to 3"),
        (("strategy", "recompute"), "some", "strategy.recompute: must be one of none, selective, full"),
        (("strategy", "speed"), 1, "strategy.speed: Extra inputs are not permitted"),
        (("question", "tokens"), -1, "question.tokens: Input should be greater than 0"),
        (("question", "model", "hidden"), 0, "hidden: must be a whole number of at least 1"),
        (("question", "model", "family"), "x", "family: 'x' is not known"),
        (("question", "cluster"), "dgx-x", "cluster: 'dgx-x' is neither in the catalogue"),
        (("schema",), "headway.plan/9", "schema: is 'headway.plan/9'"),
    ],
)
def test_a_plan_that_a_person_broke(tmp_path: Path, path: tuple[str, ...], value: object, message: str) -> None:
    q = question(load_cluster("dgx-h100:1"))
    file = write_plan(plan_from_search(replace(q, cluster_text="dgx-h100:1"), search(q)), tmp_path / "a.yaml")
    data = yaml.safe_load(file.read_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(BadInput) as caught:
        read_plan(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"tokens": 0.0}, "tokens: must be more than zero"), ({"seq_len": 9999}, "seq_len: must be from 1 to"),
        ({"seq_len": 0}, "seq_len: must be from 1 to"), ({"global_batch": 0}, "global_batch: must be at least 1"),
    ],
)
def test_a_question_that_is_none(given_: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ask(MODEL, load_cluster("dgx-h100:1"), **({"tokens": 1e12} | given_))  # type: ignore[arg-type]
