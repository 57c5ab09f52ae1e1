"""How sure it is that a step fits, from how far peaks of published runs lie about their predictions."""

from __future__ import annotations

import math
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.predict import PEAK_SPREAD, fit_odds


def test_odds_are_those_of_a_normal_logarithm() -> None:
    law = statistics.NormalDist(0.0, PEAK_SPREAD)
    for room in (-0.2, -0.046, 0.0, 0.01, 0.046, 0.3):
        memory = {"weights": 30e9 * math.exp(-room), "activations": 50e9 * math.exp(-room), "slack": 9e9}
        assert fit_odds(memory, 80e9) == pytest.approx(law.cdf(room), abs=1e-12)
    assert fit_odds({"weights": 1.0}, 1.0) == 0.5


@given(st.floats(1e9, 1e12), st.floats(1.0, 2.0), st.floats(1.0, 2.0))
def test_more_room_never_makes_it_less_sure(peak: float, less: float, more: float) -> None:
    odds = fit_odds({"weights": peak}, peak * less)
    assert odds <= fit_odds({"weights": peak}, peak * less * more)
    assert odds + fit_odds({"weights": peak * less}, peak) == pytest.approx(1.0)


def test_a_tight_fit_says_its_odds_and_a_roomy_one_does_not(run) -> None:  # type: ignore[no-untyped-def]
    tight = run("estimate", "llama-3-8b", "dgx-h100:1", "--zero", "2", "--tp", "2", "--micro-batch", "2")
    shown = re.search(r"peak memory.*odds (\d+)%", tight.out)
    assert shown and 0 < int(shown[1]) < 100
    assert "odds" not in run("estimate", "gpt2", "dgx-h100:1").out
