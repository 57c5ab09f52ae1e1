"""The two choices of a run, the interval of its checkpoints and its spares: the formulas against simulated runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from run_cases import DAY_S, HOUR_S, JOB, NODE, fleet, training

from profiles.files import BadInput
from simulator.run.interval_curve import best_interval, expected_goodput, interval_curve, mttf_s
from simulator.run.intervals import best_s
from simulator.run.monte_carlo import Case, simulate_runs
from simulator.run.spares import best_spares, held_hours, nodes_away, spare_curve
from simulator.run.training import Checkpoints, Reserve, checkpoint_costs

LONG = training(num_steps=20_000, step_time_s=10.0)
OFTEN = fleet(JOB, detection_s=60.0, restart_s=120.0)


def test_the_best_interval_is_the_optimum_in_whole_steps() -> None:
    c = Checkpoints(interval_steps=1, stall_s=30.0)
    assert best_interval(LONG, c, OFTEN) == round(best_s(30.0, HOUR_S) / 10.0)
    assert best_interval(LONG, replace(c, stall_s=0.001), OFTEN) == 1
    assert best_interval(LONG, c, fleet()) == LONG.num_steps


def test_an_asynchronous_write_ends_before_the_next_begins() -> None:
    c = Checkpoints(interval_steps=1, stall_s=0.1, write_s=905.0)
    assert best_interval(LONG, c, OFTEN) == 91


def test_the_simulated_curve_follows_the_closed_form_and_has_its_peak_where_that_has() -> None:
    c = Checkpoints(interval_steps=44, stall_s=30.0, load_s=20.0)
    curve = interval_curve(Case(training=LONG, checkpoints=c, fleet=OFTEN, reserve=Reserve()), 40)
    assert [p.interval_steps for p in curve.points] == [11, 22, 44, 88, 176]
    for p in curve.points:
        assert p.goodput == pytest.approx(p.expected_goodput, abs=0.01)
    best = max(curve.points, key=lambda p: p.goodput)
    assert best.interval_steps == 44 and curve.mttf_s == pytest.approx(HOUR_S)
    assert curve.exact_s == pytest.approx(440.0, rel=0.02)


def test_the_closed_form_without_failures_is_work_over_work_and_stalls() -> None:
    c = Checkpoints(interval_steps=100, stall_s=50.0)
    assert expected_goodput(LONG, c, fleet(), 100) == pytest.approx(1000 / 1050)
    curve = interval_curve(Case(training=LONG, checkpoints=c, fleet=fleet(), reserve=Reserve()), 2)
    assert math.isinf(curve.mttf_s) and curve.points[2].goodput == pytest.approx(1000 / 1050)


def test_the_closed_form_counts_the_load_at_a_restart_and_the_write_that_a_failure_loses() -> None:
    c = Checkpoints(interval_steps=44, stall_s=5.0, write_s=400.0, load_s=500.0)
    runs = simulate_runs(Case(training=LONG, checkpoints=c, fleet=OFTEN, reserve=Reserve(), limit=1e3), 100, processes=1)
    assert runs.goodput == pytest.approx(expected_goodput(LONG, c, OFTEN, 44), rel=0.02)
    without = replace(c, write_s=0.0, load_s=0.0)
    assert expected_goodput(LONG, without, OFTEN, 44) > 1.1 * runs.goodput


def test_early_mortality_is_in_the_mean_time_to_failure() -> None:
    young = replace(JOB, name="young", scope="node", rate_per_s=0.0, early_share=0.5, early_decay_s=1.0)
    assert mttf_s(LONG, fleet(young)) == pytest.approx(LONG.undisturbed_s / 2)


def test_nodes_away_is_what_simulated_runs_have_in_repair() -> None:
    """Without spares the share of time waited is P(X > 0) of a Poisson variable with that mean."""
    f = fleet(replace(NODE, rate_per_s=1 / (40 * HOUR_S)), repair_s=2 * HOUR_S, repair_spread=0.8)
    away = nodes_away(LONG, f)
    assert away == pytest.approx(4 / 40 * 2 * math.exp(0.32))
    waited = simulate_runs(Case(training=LONG, checkpoints=Checkpoints(interval_steps=5, stall_s=0.0), fleet=f,
                                reserve=Reserve()), 200).shares["waiting"]
    assert waited == pytest.approx(1 - math.exp(-away), rel=0.1)


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_the_chosen_spares_are_about_the_best_of_simulated_ones(elastic: bool, spread: float) -> None:
    t = training(num_steps=8000, step_time_s=60.0, num_nodes=64, unit_nodes=4)
    f = fleet(replace(NODE, rate_per_s=8 / (1000 * DAY_S)), repair_s=30 * HOUR_S, repair_spread=1.0, spread=spread,
              restart_s=300.0)
    chosen = best_spares(t, f, elastic)
    hours = {}
    for n in range(chosen + 5):
        runs = simulate_runs(Case(training=t, checkpoints=Checkpoints(interval_steps=10, stall_s=0.0), fleet=f,
                                  reserve=Reserve(num_spares=n, elastic=elastic)), 120, processes=1)
        hours[n] = float(np.mean(runs.elapsed_s)) * (64 + n)
    # what few runs say of rare bad fleets is not exact
    assert hours[chosen] <= (1.03 if spread else 1.01) * min(hours.values())
    assert chosen < 3 or hours[chosen] < hours[0]


def test_no_spare_pays_where_nothing_is_replaced() -> None:
    assert best_spares(LONG, fleet(JOB)) == 0
    # two spares make a job of four nodes half as dear again; repairs of a second do not wait that long
    assert best_spares(LONG, fleet(NODE, repair_s=1.0)) == 0
    assert held_hours(LONG, fleet(NODE, repair_s=1e-9), False, 3) == pytest.approx([1.0, 1.25, 1.5, 1.75])


def test_nodes_that_are_held_are_paid_for_while_the_job_waits() -> None:
    """By hand, with mean a of nodes away: P(X = 0) = exp(-a), P(X <= 1) = exp(-a) (1 + a)."""
    f = fleet(replace(NODE, rate_per_s=1 / (40 * HOUR_S)), repair_s=5 * HOUR_S)
    a = nodes_away(LONG, f)
    assert a == pytest.approx(0.5)
    assert held_hours(LONG, f, False, 1) == pytest.approx([math.exp(a), 1.25 * math.exp(a) / (1 + a)])
    # elastic, by single nodes: a node away is a quarter of the speed; more than four cannot be
    lost = sum(min(1.0, n / 4) * math.exp(-a) * a**n / math.factorial(n) for n in range(20))
    assert held_hours(LONG, f, True, 0)[0] == pytest.approx(1 / (1 - lost), rel=1e-6)


def test_the_curve_of_spares_shows_fewer_and_more() -> None:
    f = fleet(replace(NODE, rate_per_s=1 / (40 * HOUR_S)), repair_s=5 * HOUR_S)
    points = spare_curve(Case(training=LONG, checkpoints=Checkpoints(interval_steps=10, stall_s=0.0), fleet=f,
                              reserve=Reserve(num_spares=2)), 10)
    assert [p.num_spares for p in points] == [0, 1, 2, 4]
    waited = [p.waiting for p in points]
    assert waited == sorted(waited, reverse=True) and waited[0] > 0.2
    assert points[0].gpu_hours == pytest.approx(points[0].days * 24 * 32)
    assert points[3].gpu_hours == pytest.approx(points[3].days * 24 * 64)


def test_costs_of_checkpoints_are_bytes_over_rates() -> None:
    sync = checkpoint_costs("sync", 1e12, 2e11, 1e12, 7)
    assert sync == Checkpoints(interval_steps=7, stall_s=5.0, write_s=0.0, load_s=5.0)
    late = checkpoint_costs("async", 1e12, 2e11, 1e12, 7)
    assert late == Checkpoints(interval_steps=7, stall_s=1.0, write_s=5.0, load_s=5.0)
    with pytest.raises(BadInput, match="storage: must be more than zero"):
        checkpoint_costs("sync", 1e12, 0.0, 1e12, 7)
    with pytest.raises(BadInput, match="checkpoint: 'fast' is not known; known are sync, async"):
        checkpoint_costs("fast", 1e12, 1e11, 1e12, 7)
