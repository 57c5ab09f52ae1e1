"""Slow ranks and networks: what is folded gives the times of every rank walked by itself; Monte Carlo gives the replay's."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import CALIBRATED, COST, IN_LINE, MODEL, strategy_of

from profiles.cost import CostModel
from profiles.files import BadInput
from profiles.hardware import load_cluster
from simulator.condition import Condition, at_pace, healthy, meeting_replicas, pipelines, with_slow
from simulator.inside import lay_out_stage, stage_units
from simulator.layout import coordinates, rank_of, stage_parts
from simulator.max_plus import play_table
from simulator.noise import Noise, play_steps, sample_steps
from simulator.pricing import price
from simulator.replay import _insides, rank_names, replay, replay_table
from simulator.schedules import SCHEDULES, build_schedule, homes, needs, results
from simulator.strategy import Strategy
from simulator.workload import Workload, build_workload

CHUNKS = {name: s.chunks or 2 for name, s in SCHEDULES.items()}


def some_condition(num: int, seed: int) -> Condition:
    rng = np.random.default_rng(seed)
    compute = 1 + 0.25 * rng.integers(1, 4, num) * (rng.random(num) < 0.1)
    return Condition(compute=compute, network=1 + 0.5 * (rng.random(num) < 0.05))


@given(st.sampled_from(sorted(SCHEDULES)), st.sampled_from([2, 3, 4]), st.integers(2, 5), st.booleans(), st.data())
def test_the_table_played_at_once_is_the_table_replayed(
    name: str, p: int, rounds: int, waits: bool, data: st.DataObject
) -> None:
    m, v = rounds * p, CHUNKS[name]
    table = build_schedule(name, p, m, v)
    ticks = np.array(data.draw(st.lists(st.integers(0, 9), min_size=3 * p * v, max_size=3 * p * v))) / 4
    both = np.stack([ticks, ticks[::-1]])

    def of(values: np.ndarray, action: object) -> np.ndarray:  # type: ignore[type-arg]
        parts = action.parts or (action,)  # type: ignore[attr-defined]
        return sum(values[..., 3 * a.stage + {"F": 0, "B": 1, "I": 1, "W": 2}[a.pass_]] for a in parts)  # type: ignore[no-any-return]

    ends = play_table(table, lambda a: of(both, a), lambda r, _: 0.25 * r, waits)
    for i, values in enumerate(both):
        spans = replay_table(table, lambda a, v=values: float(of(v, a)), lambda r, _: 0.25 * r, waits)  # type: ignore[misc]
        assert [max(s.end_s for s in spans if s.rank == r) for r in range(p)] == [e[i] for e in ends]


def every_rank(workload: Workload, cost: CostModel, condition: Condition) -> float:
    """Return the step of a job whose every rank is walked by itself: those that meet in every layer start an action together
    and go on together; those of a stage update together."""
    strategy, prices = workload.strategy, price(workload, cost)
    name = str(strategy.schedule) if strategy.pp > 1 else "1F1B"
    table = build_schedule(name, int(strategy.pp), int(strategy.num_microbatches), int(strategy.chunks))
    home, gpus = homes(table), cost.cluster.gpus_per_node
    stages = stage_parts(workload.model, len(table), int(strategy.chunks), strategy.software.layer_split)
    num, block = int(strategy.world_size), meeting_replicas(strategy)
    at = [{a: int(c) for a, c in coordinates(strategy, r).items()} for r in range(num)]
    meets = [[q for q in range(num) if at[q]["pp"] == at[r]["pp"] and at[q]["dp"] // block == at[r]["dp"] // block]
             for r in range(num)]
    stage_mates = [[q for q in range(num) if at[q]["pp"] == at[r]["pp"]] for r in range(num)]

    @cache
    def laid(r: int, stage: int) -> object:
        pace = (max(condition.compute[q] for q in meets[r]), max(condition.network[q] for q in meets[r]),
                max(condition.network[q] for q in stage_mates[r]))
        own = at_pace(prices, strategy, gpus, *(float(p) for p in pace))
        return lay_out_stage(stage_units(own, stages, stage), strategy, own)

    @cache
    def inside(r: int) -> dict:  # type: ignore[type-arg]
        # the stages of other places are laid out at this rank's pace, and not used
        return _insides(table, [laid(r, s) for s in range(len(stages))], float(prices.beside))  # type: ignore[misc]

    @cache
    def end(r: int, k: int) -> float:
        action, place = table[at[r]["pp"]][k], at[r]["pp"]
        start = end(r, k - 1) if k else 0.0
        for need in needs(action, len(home)):
            giver = home[need.stage]
            row = table[giver]
            when = next(i for i, a in enumerate(row) if need in results(a))
            away = float(prices.send_s) * max(condition.network[q] for q in meets[peer(r, giver)]) if giver != place else 0.0
            start = max(start, end(peer(r, giver), when) + away)
        return start + inside(r)[action].busy_s

    def peer(r: int, place: int) -> int:
        return rank_of(strategy, **(at[r] | {"pp": place}))

    def reduced(r: int) -> float:
        done = free = 0.0
        for k, action in enumerate(table[at[r]["pp"]]):
            done, own = end(r, k), inside(r)[action]
            for ready, piece in own.behind:
                free = max(free, done - own.busy_s + ready) + piece.seconds
        return max(done, free)

    def updated(r: int) -> float:
        ready = max(reduced(q) for q in stage_mates[r])
        own = [s for s, place in home.items() if place == at[r]["pp"]]
        pace = (max(condition.compute[q] for q in meets[r]), max(condition.network[q] for q in meets[r]),
                max(condition.network[q] for q in stage_mates[r]))
        mine = at_pace(prices, strategy, gpus, *(float(p) for p in pace))
        units = [u for s in sorted(own) for u in stage_units(mine, stages, s)]
        return ready + max((s.end_s for s in lay_out_stage(units, strategy, mine).update), default=0.0)

    return max(updated(r) for r in range(num)) * (1 + float(prices.wait))


@pytest.mark.parametrize(("dp", "tp", "cp", "pp", "ep", "zero", "schedule"), [
    (32, 2, 1, 4, 1, 0, "1F1B"), (8, 2, 1, 2, 1, 1, "GPipe"), (16, 1, 1, 4, 1, 0, "Interleaved1F1B"),
    (4, 8, 2, 4, 1, 1, "1F1B"), (4, 2, 1, 2, 1, 0, "ZBV"), (8, 2, 1, 1, 1, 3, "1F1B"),
    (16, 2, 1, 2, 8, 1, "1F1B"), (4, 4, 1, 4, 1, 0, "ZBH1"),
])
@pytest.mark.parametrize("seed", [0, 1])
def test_folded_is_every_rank_walked_by_itself(
    dp: int, tp: int, cp: int, pp: int, ep: int, zero: int, schedule: str, seed: int
) -> None:
    """Up to 256 ranks: each slow rank makes its own pipeline another, and no other one."""
    from replay_cases import SPARSE

    num = dp * tp * cp * pp
    strategy = Strategy(dp=dp, tp=tp, cp=cp, pp=pp, ep=ep, zero=zero, schedule=schedule, chunks=CHUNKS[schedule],
                        num_microbatches=2 * pp, seq_len=2048)
    cost = replace(COST, cluster=load_cluster(f"dgx-h100:{-(-num // 8)}"))
    workload = build_workload(SPARSE if ep > 1 else MODEL, strategy)
    condition = some_condition(num, seed)
    folded = replay(workload, cost, condition, shares=False)
    assert folded.step_time_s == pytest.approx(every_rank(workload, cost, condition), rel=1e-12)
    assert len(folded.rows["rank"].unique()) == len(rank_names(strategy, condition)) <= num
    assert folded.step_time_s > replay(workload, cost, shares=False).step_time_s


def test_a_healthy_job_is_one_pipeline_and_a_slow_rank_makes_two() -> None:
    strategy = Strategy(dp=16, tp=8, pp=4)
    assert pipelines(strategy).count.tolist() == [16]
    slow = with_slow(healthy(512), {rank_of(strategy, pp=2, dp=5, tp=3): 1.5}, {}, 8)
    job = pipelines(strategy, slow)
    assert job.count.tolist() == [15, 1] and job.replica.tolist() == [0, 5]
    assert job.compute[1].tolist() == [1, 1, 1.5, 1]
    # sharded weights are gathered layer by layer: all replicas go at the pace of the slowest
    assert pipelines(replace(strategy, zero=3), slow).count.tolist() == [16]
    whole = with_slow(healthy(512), {}, {3: 2.0}, 8)
    assert pipelines(strategy, whole).reduced.tolist() == [2, 1, 1, 1]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zero", [0, 1, 3])
def test_steps_played_at_once_are_the_replay(name: str, zero: int) -> None:
    # where backward is split, ZeRO-3 gathers beside less computation than the closed form of a stage sees
    near = 1e-3 if zero == 3 and SCHEDULES[name].splits_backward else 1e-12
    for cost, pp in product((COST, CALIBRATED, IN_LINE), (1, 4)):
        schedule, chunks = (name, CHUNKS[name]) if pp > 1 else ("1F1B", 1)
        workload = build_workload(MODEL, strategy_of(zero, pp, 2, schedule, 8, "none", chunks=chunks))
        conditions = [some_condition(32, seed) for seed in range(3)]
        found = play_steps(workload, cost, np.stack([c.compute for c in conditions]), np.stack([c.network for c in conditions]))
        for step_s, condition in zip(found, conditions, strict=True):
            assert step_s == pytest.approx(replay(workload, cost, condition, shares=False).step_time_s, rel=near)


WORKLOAD = build_workload(MODEL, strategy_of(1, 4, 2, "1F1B", 8, "none"))


def test_no_noise_is_the_plain_step() -> None:
    steps = sample_steps(WORKLOAD, COST, Noise(), steps=3)
    assert steps == pytest.approx(np.full(3, replay(WORKLOAD, COST).step_time_s), rel=1e-12)


def test_all_ranks_slower_alike_make_compute_longer() -> None:
    strategy = strategy_of(0, 1, 1, "1F1B", 4, "none")
    workload = build_workload(MODEL, strategy)
    alone = replace(COST, cluster=replace(COST.cluster, num_nodes=4))
    base, slower = (float(play_steps(workload, alone, np.full((1, 32), f), np.ones((1, 32)))[0]) for f in (1.0, 1.5))
    exposed = replay(workload, alone).rows.query("stream == 'dp'")
    assert base < slower < 1.5 * base + 1e-12 and len(exposed)


@settings(max_examples=20)
@given(st.floats(0, 0.1), st.floats(0, 0.05), st.integers(0, 5))
def test_noise_only_costs_and_a_seed_gives_the_same_bytes(spread: float, jitter: float, seed: int) -> None:
    noise = Noise(spread=spread, jitter=jitter)
    one, same, other = (sample_steps(WORKLOAD, COST, noise, steps=8, seed=s) for s in (seed, seed, seed + 1))
    assert one.tobytes() == same.tobytes()
    assert (spread == jitter == 0) == (one.tobytes() == other.tobytes()) or max(spread, jitter) < 1e-12
    if max(spread, jitter) > 0.01:
        # the slowest of many ranks sets the pace
        assert one.mean() > replay(WORKLOAD, COST).step_time_s


def test_pauses_take_their_share_of_every_rank_that_meets() -> None:
    """Rare pauses of ranks that meet in every layer add up, k d / P, and pipelines wait for the unluckiest."""
    base = replay(WORKLOAD, COST).step_time_s
    noise = Noise(pause_s=1e-4 * base, period_s=0.02 * base)
    share = sample_steps(WORKLOAD, COST, noise, steps=200).mean() / base - 1
    tp, rate = 2, noise.pause_s / noise.period_s
    assert 0.5 * tp * rate < share < 4 * tp * rate


@pytest.mark.parametrize(("ranks", "nodes", "message"), [
    ({32: 2.0}, {}, "slow rank: 32 is not there; the job has 32"), ({}, {4: 2.0}, "slow node: 4 is not there; the job has 4"),
    ({1: 0.0}, {}, "slow rank 1: the factor must be above 0"),
    ({1: float("nan")}, {}, "slow rank 1: the factor must be above 0"),
])
def test_what_is_not_there_cannot_be_slow(ranks: dict[int, float], nodes: dict[int, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        with_slow(healthy(32), ranks, nodes, 8)


@pytest.mark.parametrize("fields", [{"spread": -0.1}, {"jitter": float("inf")}, {"pause_s": -1.0}, {"period_s": 0.0}])
def test_noise_is_not_negative(fields: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=f"noise: {next(iter(fields))}"):
        Noise(**fields)
