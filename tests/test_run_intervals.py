"""Checkpoint intervals: Young's and Daly's formulas against their papers, their limits, and a search by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.run.intervals import best_s, daly_s, expected_s, young_s

MINUTE_S, HOUR_S = 60.0, 3600.0


@pytest.mark.parametrize(("mttf_s", "printed_min", "digits"), [(24 * HOUR_S, 117, 0), (6 * HOUR_S, 57, 0), (900, 9.1, 1)])
def test_daly_prints_the_optima_of_his_figures(mttf_s: float, printed_min: float, digits: int) -> None:
    """Figures 3 to 5 of Daly 2006: delta of 5 minutes and M of 24 h, 6 h and 15 min."""
    assert round(daly_s(5 * MINUTE_S, mttf_s) / MINUTE_S, digits) == printed_min


def test_young_and_daly_agree_with_the_optimum_in_the_limit_of_short_stalls() -> None:
    mttf = 1e5
    stalls = mttf * 10.0 ** -np.arange(2.0, 10.0)
    exact = np.array([best_s(float(s), mttf) for s in stalls])
    young, daly = np.abs(young_s(stalls, mttf) / exact - 1), np.abs(daly_s(stalls, mttf) / exact - 1)
    # Young is off by the order of sqrt(delta / 2M), Daly by its third power and more
    assert np.all(young < 1.1 * np.sqrt(stalls / (2 * mttf)))
    assert np.all(daly < np.maximum(1e-7, (stalls / (2 * mttf)) ** 1.5))
    assert young[-1] < 3e-5 and daly[-1] < 1e-7


def test_intervals_do_not_pass_the_mean_time_to_failure() -> None:
    assert daly_s(300.0, 100.0) == 100.0
    assert best_s(1e5, 100.0) == pytest.approx(100.0, rel=1e-6)
    assert best_s(0.0, 100.0) == 0.0
    assert daly_s(np.array([1.0, 300.0]), 100.0)[1] == 100.0


@given(st.floats(1e-6, 3.0), st.floats(10.0, 1e7), st.floats(0.0, 1e3))
def test_the_optimum_is_the_lowest_point_of_the_expected_time(ratio: float, mttf: float, restart: float) -> None:
    best = best_s(ratio * mttf, mttf)
    around = best * np.array([0.8, 0.97, 1.0, 1.03, 1.25])
    times = expected_s(1e6, around, ratio * mttf, restart, mttf)
    assert times.argmin() == 2


@given(st.floats(1.0, 1e3), st.floats(0.01, 50.0))
def test_the_expected_time_without_failures_is_work_and_stalls(interval: float, stall: float) -> None:
    work = 1e4
    assert expected_s(work, interval, stall, 7.0, 1e12) == pytest.approx(work * (1 + stall / interval), rel=1e-6)


def test_the_expected_time_is_that_of_tries_until_one_lasts() -> None:
    """E of one interval by its own renewal equation: E = t + P(fail) (mean time lost + restart until it lasts + E)."""
    tau, delta, restart, mttf = 500.0, 40.0, 60.0, 900.0
    span, fails = tau + delta, 1 - math.exp(-(tau + delta) / mttf)
    lost = mttf - span * math.exp(-span / mttf) / fails
    until_restarted = mttf * (math.exp(restart / mttf) - 1)
    by_hand = (math.exp(-span / mttf) * span + fails * (lost + until_restarted)) / (1 - fails)
    assert expected_s(tau, tau, delta, restart, mttf) == pytest.approx(by_hand, rel=1e-12)
