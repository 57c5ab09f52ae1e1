"""Calibration: numbers are found again from steps that were made with them; outliers and unseen sources do not decide."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from planner.calibrate import (
    Measured,
    as_calibration,
    calibrate,
    prepare,
    prior_of,
    row_weights,
    slopes,
    spreads,
    without_source,
)
from planner.question import ask
from profiles.calibration import NONE, NUMBERS, catalogue, load_calibration
from profiles.cost import cost_model
from profiles.families import load_model
from profiles.hardware import load_cluster
from simulator.estimate import estimate
from simulator.software import load_software
from simulator.strategy import Strategy
from simulator.workload import build_workload

TRUTH = {"matmul": 1.15, "attention": 1.2, "memory": 1.1, "scale_up": 1.1, "scale_out": 1.2, "beside": 0.2, "wait": 0.01,
         "experts": 1.1, "eager": 1.1, "maturing": 0.0, "casts": 0.6, "pipelined": 0.35}


def strategies() -> list[Strategy]:
    fsdp, megatron = load_software("torchtitan-2024"), load_software("megatron-lm-2024")
    return [
        *(Strategy(dp=64, zero=3, micro_batch=b, seq_len=s, recompute=r, software=fsdp)
          for b, s, r in ((1, 8192, "none"), (4, 2048, "none"), (2, 4096, "full"), (16, 512, "none"))),
        *(Strategy(dp=64 // (t * p), tp=t, pp=p, zero=1, num_microbatches=16, seq_len=4096, software=megatron)
          for t, p in ((1, 1), (2, 1), (4, 2), (8, 1), (8, 4), (2, 8))),
    ]


@cache
def measured() -> tuple[Measured, ...]:
    """Return steps that took exactly what `TRUTH` says."""
    rows: list[Measured] = []
    for model in ("llama-3-8b", "llama-2-13b", "gpt2-xl"):
        for number, s in enumerate(strategies()):
            if s.seq_len > load_model(model).max_seq_len or (model == "gpt2-xl" and s.tp > 1):
                continue
            question = ask(load_model(model), load_cluster("dgx-a100:8"), tokens=1e9, seq_len=s.seq_len,
                           global_batch=int(s.global_batch), software=s.software)
            cost = replace(cost_model(question.cluster), calibration=as_calibration([TRUTH[n] for n in NUMBERS]))
            step_s = float(estimate(build_workload(question.model, s), cost).step_time_s)
            rows.append(Measured(id=f"{model} {number}", question=question, strategy=s, step_s=step_s,
                                 source=f"{s.software.name} {number % 3}"))
    return tuple(rows)


def by_name(values: np.ndarray) -> dict[str, float]:
    return dict(zip(NUMBERS, map(float, values), strict=True))


def test_numbers_are_found_again() -> None:
    at = calibrate(measured(), prior_of())
    assert np.abs(at.left).max() < 0.02
    assert by_name(at.values)["matmul"] == pytest.approx(TRUTH["matmul"], abs=0.03)


def test_a_misprint_does_not_decide() -> None:
    rows = [replace(measured()[0], step_s=3 * measured()[0].step_s), *measured()[1:]]
    assert by_name(calibrate(rows, prior_of()).values)["matmul"] == pytest.approx(TRUTH["matmul"], abs=0.03)


def test_derivatives_are_those_of_finite_differences() -> None:
    rows = measured()[:3]
    prepared, values = prepare(rows), np.array([TRUTH[n] for n in NUMBERS])
    at = slopes(rows, prepared, values)
    for i in (NUMBERS.index("matmul"), NUMBERS.index("beside")):
        moved = values.copy()
        moved[i] += 0.05
        change = slopes(rows, prepared, moved).left - at.left
        assert change == pytest.approx(0.05 * at.jacobian[:, i], rel=0.1, abs=1e-6)


def test_numbers_without_a_source_do_not_know_it() -> None:
    """A source that is slower than all others moves the numbers, and not those that were fitted without it."""
    odd = measured()[0].source
    rows = [replace(m, step_s=1.1 * m.step_s) if m.source == odd else m for m in measured()]
    at = calibrate(rows, prior_of())
    unseen = without_source(rows, at, lambda source: prior_of())[odd]
    truth = calibrate([m for m in measured() if m.source != odd], prior_of())
    assert by_name(unseen)["matmul"] == pytest.approx(by_name(truth.values)["matmul"], abs=0.03)


def test_without_runs_the_prior_stands() -> None:
    prior = prior_of()
    rows = [replace(measured()[0], weight=1e-9)]
    assert calibrate(rows, prior).values == pytest.approx(prior.mean, abs=1e-3)


def test_a_sibling_starts_where_its_elder_ended() -> None:
    elder = np.array([TRUTH[n] for n in NUMBERS])
    prior = prior_of(elder)
    assert prior.mean == pytest.approx(elder)
    assert (prior.width < prior_of().width).all()


def test_a_source_of_many_rows_counts_as_the_root_of_their_number() -> None:
    rows = [replace(measured()[0], source="many")] * 9 + [replace(measured()[1], source="one")]
    weight = row_weights(rows)
    assert weight[:9].sum() == pytest.approx(3.0)
    assert weight[9] == pytest.approx(1.0)


def test_spreads_hold_four_rows_of_five() -> None:
    rows = measured()
    left = np.random.default_rng(0).normal(scale=0.1, size=len(rows))
    widths = spreads(rows, np.array([TRUTH[n] for n in NUMBERS]), left)
    inside = 0
    for row, residual in zip(rows, left, strict=True):
        cost = replace(cost_model(row.question.cluster),
                       calibration=as_calibration([TRUTH[n] for n in NUMBERS], **widths))
        found = estimate(build_workload(row.question.model, row.strategy), cost)
        inside += abs(residual) <= float(np.log(found.p90_s / found.step_time_s))
    assert 0.7 <= inside / len(rows) <= 0.9


def test_the_catalogue_says_what_it_was_fitted_on() -> None:
    for name, calibration in catalogue().items():
        assert calibration.num_rows > 0 and calibration.source, name
        assert 0.7 < float(calibration.matmul) < 1.6
        assert all(load_calibration(a) is calibration for a in calibration.accelerators)
    assert load_calibration("an accelerator of one's own") is NONE
    assert len(NUMBERS) <= 12
