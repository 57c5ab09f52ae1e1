"""Pools of unlike accelerators: a pool of twins is the plain cluster, stages cost what they cost on their own kind, layers are
balanced as brute force balances them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.balance import balanced_counts, balanced_splits, loads_of
from planner.bill import bill
from planner.plan import plan_from_prediction, read_plan, write_plan
from planner.predict import predict, predict_replayed
from planner.question import Question, ask
from planner.rules import illegal_reason
from planner.search import search
from planner.space import brief_space, narrowed
from profiles.cost import cost_model
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import Cluster, load_cluster, pool, with_num_gpus
from profiles.model import ModelSpec
from simulator.estimate import estimate
from simulator.layout import covered_parts, stage_parts
from simulator.memory import peak_memory, rank_memory
from simulator.memory_timeline import memory_timeline
from simulator.noise import play_steps
from simulator.pricing import price
from simulator.replay import play, replay
from simulator.schedules import build_schedule
from simulator.software import load_software
from simulator.stages import stage_seconds
from simulator.strategy import Strategy
from simulator.workload import build_workload

LLAMA = load_model("llama-3-8b")
SMALL: ModelSpec = replace(LLAMA, name="small", pattern=LLAMA.pattern[:8])
SLOW, FAST = load_cluster("dgx-a100:2"), load_cluster("dgx-h100:2")
MIXED = load_cluster("dgx-a100:2+dgx-h100:2")
STRATEGIES = [
    Strategy(dp=32, zero=3, seq_len=4096, num_microbatches=2),
    Strategy(dp=4, tp=8, zero=1, seq_len=4096, num_microbatches=4),
    Strategy(dp=2, tp=8, pp=2, zero=1, seq_len=4096, num_microbatches=8, layers="10-22"),
    Strategy(dp=2, tp=4, pp=4, zero=2, seq_len=4096, num_microbatches=8, recompute="full"),
    Strategy(dp=1, tp=4, pp=8, chunks=2, schedule="Interleaved1F1B", seq_len=4096, num_microbatches=16),
    Strategy(dp=2, tp=2, cp=2, pp=4, chunks=2, schedule="ZBV", zero=1, seq_len=4096, num_microbatches=8),
    Strategy(dp=4, tp=2, pp=4, schedule="ZBH1", seq_len=4096, num_microbatches=8, order="cp-tp-dp-pp"),
]


def twins(cluster: Cluster) -> Cluster:
    """Return a cluster twice as large as a pool of two parts that only differ in their names."""
    return pool([cluster, replace(cluster, name="twin")])


def asked(cluster: Cluster, model: ModelSpec = LLAMA, batch: int = 64) -> Question:
    return ask(model, cluster, tokens=1e11, seq_len=4096, global_batch=batch, cluster_text="x")


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.describe()[:40])
def test_a_pool_of_twins_is_the_plain_cluster(strategy: Strategy) -> None:
    whole, parts = load_cluster("dgx-h100:4"), twins(FAST)
    assert len(parts.parts) == 2 and parts.num_gpus == whole.num_gpus
    one, other = (predict(asked(c), strategy).as_dict() for c in (whole, parts))
    assert one == other
    one, other = (predict_replayed(asked(c), strategy)[0].as_dict() for c in (whole, parts))
    assert one == other
    workload, ranks = build_workload(LLAMA, strategy), np.linspace(1, 1.2, 32)[None]
    steps = [play_steps(workload, cost_model(c), ranks, ranks)[0] for c in (whole, parts)]
    assert steps[0] == steps[1]
    peaks = [memory_timeline(play(workload, cost_model(c)), c.accelerator).peaks for c in (whole, parts)]
    assert peaks[0] == peaks[1]
    mine, theirs = (bill(asked(c), strategy, one) for c in (whole, parts))
    assert mine.energy and theirs.energy and mine.usd == theirs.usd
    assert theirs.energy.facility_kwh.p50 == pytest.approx(mine.energy.facility_kwh.p50, rel=1e-12)


def test_neighbours_that_are_alike_are_one_part() -> None:
    assert load_cluster("dgx-h100:3+dgx-h100:5") == load_cluster("dgx-h100:8")
    assert [p.num_nodes for p in load_cluster("dgx-a100:1+dgx-a100:2+dgx-h100:4").parts] == [3, 4]
    assert len(load_cluster("dgx-a100:1+dgx-h100:4+dgx-a100:2").parts) == 3


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 6))
def test_parts_are_covered_as_ranks_counted_one_by_one_say(sizes: list[int], pp: int) -> None:
    kinds = np.repeat(np.arange(len(sizes)), np.array(sizes) * pp)
    assert covered_parts([s * pp for s in sizes], pp) == [tuple(np.unique(row).tolist()) for row in kinds.reshape(pp, -1)]


def walk(cost_of_stage: list[tuple[float, float, float]], m: int, sends: list[float]) -> float:
    """Return when the last rank of 1F1B has updated: each action starts when its rank is free and what it needs is there."""
    p = len(cost_of_stage)
    done: dict[tuple[str, int, int], float] = {}
    rows, free = [list(row) for row in build_schedule("1F1B", p, m)], [0.0] * p
    while any(rows):
        for rank, row in enumerate(rows):
            while row:
                stage, kind, micro = row[0].stage, row[0].pass_, row[0].microbatch
                before = ("F", stage - 1, micro) if kind == "F" else ("B", stage + 1, micro)
                if 0 <= before[1] < p and before not in done:
                    break
                wire = sends[min(stage, before[1])] if 0 <= before[1] < p else 0.0
                start = max(free[rank], done.get(before, 0.0) + wire)
                done[kind, stage, micro] = free[rank] = start + cost_of_stage[stage][kind == "B"]
                row.pop(0)
    return max(end + seconds[2] for end, seconds in zip(free, cost_of_stage, strict=True))


@pytest.mark.parametrize("layers", ["8-8-8-8", "4-5-12-11", "12-12-4-4"])
def test_each_stage_costs_what_it_costs_on_its_own_kind(layers: str) -> None:
    strategy = Strategy(dp=1, tp=8, pp=4, seq_len=4096, num_microbatches=8, layers=layers)
    workload = build_workload(LLAMA, strategy)
    plain = [price(workload, cost_model(load_cluster(f"dgx-{name}:4"))) for name in ("a100", "a100", "h100", "h100")]
    stages = [stage_seconds(prices, strategy, list(parts))
              for prices, parts in zip(plain, stage_parts(LLAMA, 4, 1, layers), strict=True)]
    seconds = [(float(s.forward_s), float(s.backward_s), float(s.update_s)) for s in stages]
    slow, fast = float(plain[0].send_s), float(plain[2].send_s)
    assert slow > fast
    end = walk(seconds, 8, [slow, slow, fast])
    wait = max(float(p.wait) for p in plain)
    step = replay(workload, cost_model(MIXED)).step_time_s
    assert step == pytest.approx(end * (1 + wait) + strategy.software.step_s, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 3), min_size=2, max_size=4), st.floats(0, 3), st.floats(0, 3), st.data())
def test_balanced_counts_are_those_of_brute_force(
    speeds: list[float], embedding: float, head: float, data: st.DataObject
) -> None:
    num = data.draw(st.integers(len(speeds), 9))
    costs = np.array(data.draw(st.lists(st.floats(0.5, 2), min_size=num, max_size=num)))
    layers = costs[None] / np.array(speeds)[:, None]
    fixed = np.zeros(len(speeds))
    fixed[0] += embedding / speeds[0]
    fixed[-1] += head / speeds[-1]

    def most(cuts: tuple[int, ...]) -> float:
        ends = [0, *cuts, num]
        return max(fixed[r] + layers[r, a:b].sum() for r, (a, b) in enumerate(pairwise(ends)))

    counts = balanced_counts(layers, fixed, [1] * len(speeds))
    assert counts is not None and sum(counts) == num and min(counts) >= 1
    least = min(most(cuts) for cuts in combinations(range(1, num), len(speeds) - 1))
    assert most(tuple(np.cumsum(counts)[:-1].tolist())) == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("pp", [2, 4])
def test_the_search_finds_the_split_that_brute_force_finds(pp: int) -> None:
    question = asked(MIXED, SMALL, 32)
    given = ["tp=4", f"pp={pp}", "zero=1", "recompute=none", "micro_batch=1", "schedule=1F1B", "chunks=1", "cp=1"]
    found = search(question, axes=narrowed(brief_space(question), given, question)).best
    assert found is not None
    splits = ("-".join(map(str, np.diff([0, *cuts, 8]))) for cuts in combinations(range(1, 8), pp - 1))
    best = min(predict_replayed(question, replace(found.strategy, layers=split))[0].step_time_s for split in splits)
    assert found.step_time_s == pytest.approx(best, rel=1e-9)
    assert found.step_time_s < 0.9 * predict_replayed(question, replace(found.strategy, layers=""))[0].step_time_s


@pytest.mark.parametrize("pp", [1, 2, 4, 8])
def test_a_pool_lies_between_its_slow_and_its_fast_kind(pp: int) -> None:
    slow, fast = load_cluster("dgx-a100:4"), load_cluster("dgx-h100:4")
    strategy = Strategy(dp=32 // pp // 4, tp=4, pp=pp, zero=1, seq_len=4096, num_microbatches=64 // (32 // pp // 4))
    splits = balanced_splits(pp, "1F1B", 1, loads_of(asked(MIXED), pp)) if pp > 1 else ("",)

    def step(cluster: Cluster, layers: str = "") -> float:
        return predict_replayed(asked(cluster), replace(strategy, layers=layers))[0].step_time_s

    best = min(step(MIXED, layers) for layers in splits)
    assert step(fast) < best
    # without pipeline stages the slowest sets the pace
    assert best == pytest.approx(step(slow), rel=0.01) if pp == 1 else best < 0.8 * step(slow)


def test_without_stages_the_order_of_the_parts_says_nothing() -> None:
    fast_first = load_cluster("dgx-h100:2+dgx-a100:2")
    for strategy in STRATEGIES[:2]:
        one, other = (predict_replayed(asked(c), strategy)[0] for c in (MIXED, fast_first))
        assert one.step_time_s == pytest.approx(other.step_time_s, rel=1e-12)
        assert (one.usable_memory_bytes, one.usd) == pytest.approx((other.usable_memory_bytes, other.usd))


@pytest.mark.parametrize("strategy", STRATEGIES[:6], ids=lambda s: s.describe()[:40])
def test_a_faster_part_makes_no_step_longer(strategy: Strategy) -> None:
    texts = ("dgx-a100:4", "dgx-a100:3+dgx-h100:1", "dgx-a100:2+dgx-h100:2", "dgx-a100:1+dgx-h100:3", "dgx-h100:4")
    steps = [predict_replayed(asked(load_cluster(text)), strategy)[0].step_time_s for text in texts]
    assert steps == sorted(steps, reverse=True)


def test_memory_is_asked_of_each_stage_s_own_accelerator() -> None:
    mixed = load_cluster("a100-40gb-roce1600:2+dgx-h100:2")
    small, large = (part.accelerator for part in mixed.parts)
    assert small.memory_bytes < 0.6 * large.memory_bytes
    tight = 0
    for layers in ("1-1-5-25", "8-8-8-8", "6-6-10-10", "14-14-2-2"):
        for micro_batch in (1, 4, 8):
            strategy = Strategy(dp=2, tp=4, pp=4, zero=1, seq_len=4096, micro_batch=micro_batch,
                                num_microbatches=32 // micro_batch, layers=layers)
            workload = build_workload(LLAMA, strategy)
            memory = peak_memory(workload, mixed.accelerator)
            each = [(sum(float(v) for v in rank_memory(workload, kind, rank).values()), kind.memory_bytes)
                    for rank, kind in enumerate((small, small, large, large))]
            assert bool(memory.fits) == all(peak <= there for peak, there in each)
            worst = max(each, key=lambda pair: pair[0] - pair[1])
            assert (float(memory.peak_bytes), float(memory.usable_bytes)) == pytest.approx(worst, rel=1e-12)
            assert [sum(float(v) for v in rank_memory(workload, mixed.accelerator, rank).values()) for rank in range(4)] == [
                pytest.approx(peak) for peak, _ in each]
            tight += worst[1] == large.memory_bytes
    assert 0 < tight < 12


def test_a_batch_of_strategies_holds_what_each_holds_alone() -> None:
    mixed = load_cluster("a100-40gb-roce1600:2+dgx-h100:2")
    pp = np.array([1, 2, 4, 4])
    batch = Strategy(dp=32 // pp // 4, tp=4, pp=pp, zero=1, seq_len=4096, num_microbatches=8 * pp,
                     layers=np.array(["", "10-22", "5-5-11-11", ""]))
    together, steps = peak_memory(build_workload(LLAMA, batch), mixed.accelerator), predict_batch(batch, mixed)
    for i in range(4):
        alone = predict(asked(mixed), batch.pick(i))
        assert float(together.peak_bytes[i]) == pytest.approx(alone.peak_memory_bytes)
        assert float(together.usable_bytes[i]) == alone.usable_memory_bytes
        assert steps[i] == pytest.approx(alone.step_time_s, rel=1e-9)


def predict_batch(batch: Strategy, cluster: Cluster) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(estimate(build_workload(LLAMA, batch), cost_model(cluster)).step_time_s)


def test_dollars_energy_and_peak_are_sums_over_the_parts() -> None:
    strategy, question = STRATEGIES[2], asked(MIXED)
    prediction = predict(question, strategy)
    slow, fast = (ask(LLAMA, part, tokens=1e11, seq_len=4096, global_batch=64) for part in (SLOW, FAST))
    assert slow.price and fast.price and prediction.usd is not None
    hours = prediction.gpu_hours / 2
    assert prediction.usd == pytest.approx(hours * (slow.price.usd_per_gpu_hour + fast.price.usd_per_gpu_hour))
    as_dict = prediction.as_dict()
    whole = bill(question, strategy, as_dict)
    parts = [bill(q, strategy, as_dict) for q in (slow, fast)]
    assert whole.energy and all(b.energy for b in parts)
    assert whole.energy.facility_kwh.p50 == pytest.approx(sum(b.energy.facility_kwh.p50 for b in parts if b.energy))
    own, one, other = ({term.price.term for term in b.terms} for b in (whole, *parts))
    assert own == one & other
    flop = prediction.mfu * prediction.step_time_s
    alone = predict(asked(load_cluster("dgx-h100:4")), strategy)
    peaks = [part.accelerator.peak_flop_per_s["bf16"] for part in (SLOW, FAST)]
    assert flop * sum(peaks) / 2 == pytest.approx(alone.mfu * alone.step_time_s * peaks[1])


@pytest.mark.parametrize(("text", "message"), [
    ("dgx-a100:2+frontier:2", "frontier declares a network of links that are shared"),
    ("dgx-a100:2+local", "'local' needs --profile FILE"),
    ("dgx-a100:2+", "is neither in the catalogue nor a file"), ("dgx-a100:2+dgx-h100:x", "whole number of nodes"),
])
def test_what_is_no_pool_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        load_cluster(text)
    assert "\n" not in str(caught.value)


def test_a_pool_is_cut_in_proportion() -> None:
    cut = with_num_gpus(load_cluster("dgx-a100:4+dgx-h100:8"), 48)
    assert [part.num_nodes for part in cut.parts] == [2, 4]
    with pytest.raises(BadInput, match="64 do not keep the parts of 4 x DGX A100 80GB \\+ 8 x DGX H100 in proportion"):
        with_num_gpus(load_cluster("dgx-a100:4+dgx-h100:8"), 64)


def test_a_type_that_one_part_lacks_and_a_stage_across_parts_are_refused() -> None:
    with pytest.raises(BadInput, match="'fp8' computes in fp8, which A100-SXM4-80GB \\+ H100-SXM5-80GB lacks"):
        ask(LLAMA, MIXED, tokens=1e11, precision="fp8")
    across = replace(STRATEGIES[2], order="tp-cp-pp-dp")
    assert "lays each stage across all parts of a pool" in str(illegal_reason(across, asked(MIXED, batch=16)))
    assert illegal_reason(replace(across, order=""), asked(MIXED, batch=16)) is None
    away = replace(STRATEGIES[2], offload="optimizer", software=load_software("megatron-lm-2025", ""))
    assert "is a pool, and its hosts are not one" in str(illegal_reason(away, asked(MIXED, batch=16)))


def test_a_pool_of_a_file_has_its_own_wire(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("""
name: two halls
parts:
- {cluster: dgx-a100, num_nodes: 2}
- {cluster: "dgx-h100:2"}
wire:
  name: leased line
  bandwidth: {value: 10 Gb/s, source: contract}
""")
    mine = load_cluster(str(path))
    assert [part.num_nodes for part in mine.parts] == [2, 2] and mine.scale_out.name == "leased line"
    assert mine.scale_out.bytes_per_s == pytest.approx(1.25e9) and MIXED.scale_out.source.startswith("assumed: ")
    strategy = STRATEGIES[2]
    assert predict_replayed(asked(mine), strategy)[0].step_time_s > predict_replayed(asked(MIXED), strategy)[0].step_time_s
    path.write_text(path.read_text().replace("10 Gb/s", "10 Tb/s"))
    assert load_cluster(str(path)).scale_out.bytes_per_s == MIXED.scale_out.bytes_per_s


def test_a_plan_on_a_pool_is_read_back(tmp_path: Path) -> None:
    question = replace(asked(MIXED, batch=16), cluster_text="dgx-a100:2+dgx-h100:2")
    plan = plan_from_prediction(question, predict(question, STRATEGIES[2]), None)
    again = read_plan(write_plan(plan, tmp_path / "plan.yaml"))
    assert again.question.cluster == MIXED and again.strategy == plan.strategy and again.inputs == plan.inputs
