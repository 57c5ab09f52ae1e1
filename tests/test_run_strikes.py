"""Draws of failures and many runs: rates, shapes, early mortality, one seed one result, and Daly's exact mean."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise, takewhile

import numpy as np
import pytest
from run_cases import DAY_S, HOUR_S, JOB, NODE, fleet, training

from profiles.files import BadInput
from profiles.reliability import Fleet
from simulator.run import monte_carlo
from simulator.run.intervals import expected_s
from simulator.run.monte_carlo import Case, simulate_runs
from simulator.run.strikes import LUCK, Strike, draw_luck, strikes
from simulator.run.training import Checkpoints, Reserve


def drawn(f: Fleet, num: int, num_gpus: int = 32, num_nodes: int = 4, run: int = 0) -> list[Strike]:
    return list(islice(strikes(f, draw_luck(f, 0.0, 1, run), num_gpus, num_nodes, 1, run), num))


def test_failures_come_at_the_sum_of_the_rates_and_each_grows_with_its_own() -> None:
    f = fleet(JOB, replace(NODE, num_nodes=2, scope="domain"), replace(NODE, name="n"), replace(JOB, name="g", scope="gpu"))
    found = drawn(f, 40_000)
    # 1 of the job, 2 domains of two nodes, 4 nodes, 32 accelerators, all once an hour
    assert len(found) / found[-1].time_s * HOUR_S == pytest.approx(39.0, rel=0.02)
    counts = np.bincount([s.cause for s in found]) / len(found) * 39
    assert counts == pytest.approx([1, 2, 4, 32], rel=0.06)
    assert f.failures_per_s(32, 4) * HOUR_S == pytest.approx(39.0)
    assert all(a.time_s <= b.time_s for a, b in pairwise(found))


@pytest.mark.parametrize(("shape", "variation"), [(1.0, 1.0), (0.7, 1.4624), (2.0, 0.5227)])
def test_gaps_are_weibull_with_the_stated_mean(shape: float, variation: float) -> None:
    """Coefficient of variation of a Weibull: sqrt(G(1 + 2/k) / G(1 + 1/k)^2 - 1), here from tables."""
    gaps = np.diff([s.time_s for s in drawn(fleet(replace(JOB, shape=shape)), 40_000)])
    assert gaps.mean() == pytest.approx(HOUR_S, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03)


def test_early_mortality_is_a_share_that_dies_out() -> None:
    f = fleet(replace(JOB, name="young", scope="gpu", rate_per_s=0.0, early_share=0.1, early_decay_s=30 * DAY_S))
    times = np.array([s.time_s for s in drawn(f, 10**6, num_gpus=100_000)])
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert (times < 30 * DAY_S).mean() == pytest.approx(1 - np.exp(-1), abs=0.02)
    assert (times < 60 * DAY_S).mean() == pytest.approx(1 - np.exp(-2), abs=0.02)
    assert f.early_failures(100_000, 12_500, 30 * DAY_S) == pytest.approx((times < 30 * DAY_S).sum(), rel=0.05)


def test_repairs_are_lognormal_and_nodes_are_hit_evenly() -> None:
    f = fleet(replace(NODE, replaced=0.25), repair_s=HOUR_S, repair_spread=1.2)
    found = drawn(f, 40_000)
    repairs = np.array([s.repair_s for s in found])
    assert np.median(repairs) == pytest.approx(HOUR_S, rel=0.04) and np.log(repairs).std() == pytest.approx(1.2, rel=0.02)
    assert repairs.mean() == pytest.approx(f.mean_repair_s, rel=0.06)
    assert np.mean([s.replaced for s in found]) == pytest.approx(0.25, abs=0.01)
    assert np.histogram([s.where for s in found], bins=4, range=(0, 1))[0] / 40_000 == pytest.approx([0.25] * 4, abs=0.01)


def test_luck_is_lognormal_and_a_cause_may_have_its_own() -> None:
    f = fleet(JOB, NODE, replace(JOB, name="own", spread=1.5), spread=0.8)
    lucks = [draw_luck(f, 0.1, 3, run) for run in range(4000)]
    logs = np.log([(luck.step, *luck.rates) for luck in lucks])
    assert logs.std(axis=0) == pytest.approx([0.1, 0.8, 0.8, 1.5], rel=0.05)
    assert np.all(logs[:, 1] == logs[:, 2]) and abs(np.corrcoef(logs[:, 1], logs[:, 3])[0, 1]) < 0.05
    assert LUCK.std() == pytest.approx(1.0, abs=0.01)


def test_the_same_failures_meet_other_checkpoints_and_spares() -> None:
    f = fleet(JOB)
    luck = draw_luck(f, 0.0, 5, 2)
    def at(stream: float) -> list[float]:
        return [s.time_s for s in takewhile(lambda s: s.time_s < stream, strikes(f, luck, 8, 1, 5, 2))]
    long, short = at(50 * HOUR_S), at(20 * HOUR_S)
    assert long[: len(short)] == short
    assert drawn(f, 5, run=2) != drawn(f, 5, run=3)


def case(mttf_s: float = HOUR_S, interval: int = 6, **more: object) -> Case:
    given: dict[str, object] = {
        "training": training(num_steps=300, step_time_s=60.0),
        "checkpoints": Checkpoints(interval_steps=interval, stall_s=40.0), "fleet": fleet(replace(JOB, rate_per_s=1 / mttf_s)),
        "reserve": Reserve(), "limit": 1e9,
    }
    return Case(**(given | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(("mttf_s", "interval", "restart_s"), [(HOUR_S, 6, 300.0), (4 * HOUR_S, 20, 60.0), (1200.0, 5, 600.0)])
def test_exponential_failures_take_the_time_of_dalys_exact_formula(mttf_s: float, interval: int, restart_s: float) -> None:
    f = fleet(replace(JOB, rate_per_s=1 / mttf_s), restart_s=restart_s)
    runs = simulate_runs(case(mttf_s, interval, fleet=f), 1500, processes=1)
    exact = expected_s(300 * 60.0, interval * 60.0, 40.0, restart_s, mttf_s)
    # the first start, too, is tried until it lasts
    exact += mttf_s * np.expm1(restart_s / mttf_s)
    error = runs.elapsed_s.std() / np.sqrt(len(runs.elapsed_s))
    assert abs(runs.elapsed_s.mean() - exact) < 3.3 * error
    assert error < 0.015 * exact


def test_goodput_falls_with_the_rate_of_failures() -> None:
    goodputs = [simulate_runs(case(HOUR_S * m), 60, processes=1).goodput for m in (0.1, 0.4, 1, 3, 10, 100)]
    assert goodputs == sorted(goodputs) and goodputs[0] < 0.5 and goodputs[-1] > 0.85


def test_goodput_is_one_less_the_shares_of_lost_time() -> None:
    runs = simulate_runs(case(), 20, processes=1)
    shares = runs.shares
    assert sum(shares.values()) == pytest.approx(1.0)
    assert runs.goodput == pytest.approx(shares["productive"]) == pytest.approx(runs.goodputs.mean())


def test_one_seed_is_one_result_whatever_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = simulate_runs(case(), 40, processes=1)
    monkeypatch.setattr(monte_carlo, "WORTH_S", 0.0)
    shared = simulate_runs(case(), 40, processes=2)
    assert alone.elapsed_s.tobytes() == shared.elapsed_s.tobytes() and alone.parts_s.tobytes() == shared.parts_s.tobytes()
    assert alone.strikes.tobytes() == shared.strikes.tobytes()
    other = simulate_runs(case(seed=1), 40, processes=1)
    assert other.elapsed_s.tobytes() != alone.elapsed_s.tobytes()


def test_progress_goes_from_nothing_to_all() -> None:
    told: list[float] = []
    simulate_runs(case(), 30, on_progress=told.append, processes=1)
    assert told == sorted(told) and told[-1] == 1.0 and len(told) > 2


def test_the_error_of_the_predicted_step_is_one_draw_a_run() -> None:
    t = training(num_steps=1000, step_time_s=1.0, step_spread=0.2)
    runs = simulate_runs(case(training=t, fleet=fleet(), checkpoints=Checkpoints(interval_steps=1000, stall_s=0.0)), 2000)
    assert np.log(runs.elapsed_s).std() == pytest.approx(0.2, rel=0.05)
    assert np.median(runs.elapsed_s) == pytest.approx(1000.0, rel=0.02)


@pytest.mark.parametrize(("change", "parts"), [
    ({"checkpoints": Checkpoints(interval_steps=0, stall_s=1.0)}, ("checkpoint_interval", "at least one step")),
    ({"checkpoints": Checkpoints(interval_steps=301, stall_s=1.0)}, ("checkpoint_interval", "301", "300")),
    ({"reserve": Reserve(num_spares=-1)}, ("spares", "negative", "-1")),
    ({"seed": -4}, ("seed", "-4")),
])
def test_what_no_run_can_be_made_of_is_refused(change: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as e:
        simulate_runs(case(**change), 3)
    assert all(p in str(e.value) for p in parts)
    with pytest.raises(BadInput, match="runs: must be at least 1"):
        simulate_runs(case(), 0)
