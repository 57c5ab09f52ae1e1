"""Sizing: the closed optimum against a search, its interval against sampling, published fits and runs, and `headway size`."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import headway
from planner.sizing import (
    BatchLimit,
    batch_limits,
    batch_tokens,
    batch_warnings,
    choice,
    flop_for,
    flop_per_token,
    loss,
    loss_error,
    more_steps,
    more_tokens,
    noise_batch,
    optimal_params,
    optimal_tokens,
    optimum,
    params_best_for,
    run_tokens,
    tokens_best_for,
)
from profiles.families import load_model, num_active_params
from profiles.files import BadInput
from profiles.scaling import batch_laws, loss_law, loss_laws
from reports.size_command import SizeOptions, size
from reports.size_tables import size_json, size_screen

LAW = loss_law()
LAWS = {law.name: law for law in batch_laws()}
flops = st.floats(18, 28).map(lambda x: 10.0**x)
sizes = st.floats(7, 13).map(lambda x: 10.0**x)


@pytest.mark.parametrize("law", loss_laws(), ids=lambda law: law.name)
@given(flop=flops)
def test_the_closed_optimum_is_the_least_loss_of_a_search(law: Any, flop: float) -> None:
    params = float(optimal_params(law, flop)) * np.exp(np.linspace(-0.5, 0.5, 2001))
    nats = loss(law, params, flop / 6.0 / params)
    assert int(np.argmin(nats)) == pytest.approx(1000, abs=25)
    assert loss(law, optimal_params(law, flop), optimal_tokens(law, flop)) <= nats.min() + 1e-12


@given(flop=flops)
def test_the_optimum_read_from_any_side_is_one(flop: float) -> None:
    params, tokens = optimal_params(LAW, flop), optimal_tokens(LAW, flop)
    assert 6 * params * tokens == pytest.approx(flop)
    assert tokens_best_for(LAW, params) == pytest.approx(tokens)
    assert params_best_for(LAW, tokens) == pytest.approx(params)
    assert flop_for(LAW, loss(LAW, params, tokens)) == pytest.approx(flop, rel=1e-6)
    assert choice(LAW, params, tokens).excess == pytest.approx(0.0, abs=1e-6)


@given(params=sizes, tokens=sizes)
def test_no_choice_is_better_than_the_best(params: float, tokens: float) -> None:
    assert choice(LAW, params, tokens).excess > -1e-6


def test_arrays_are_numbers_side_by_side() -> None:
    flop = np.array([1e21, 1e24, 1e26])
    together = optimum(LAW, flop, 0.2)
    for i, c in enumerate(flop):
        alone = optimum(LAW, float(c), 0.2)
        assert together.params.p90[i] == pytest.approx(alone.params.p90)
        assert together.loss.p10[i] == pytest.approx(alone.loss.p10)


@pytest.mark.parametrize("flop", [1e21, 5.76e23, 1e26])
def test_the_interval_against_sampling(flop: float) -> None:
    assert LAW.covariance is not None
    middle = [math.log(LAW.A), math.log(LAW.B), math.log(LAW.E), LAW.alpha, LAW.beta]
    a, b, e, alpha, beta = np.random.default_rng(0).multivariate_normal(middle, LAW.covariance, 200_000).T
    params = np.exp((np.log(alpha / beta) + a - b + beta * math.log(flop / 6.0)) / (alpha + beta))
    best = optimum(LAW, flop)
    tokens = flop / 6.0 / params
    for band, sampled in ((best.params, params), (best.tokens, tokens), (best.tokens_per_param, tokens / params)):
        assert [band.p10, band.p50, band.p90] == pytest.approx(np.percentile(sampled, (10, 50, 90)).tolist(), rel=0.05)
    fixed = np.exp(e) + np.exp(a) / best.params.p50**alpha + np.exp(b) / best.tokens.p50**beta
    # near the fit's own models the errors nearly cancel, and what the first order leaves out is felt
    assert loss_error(LAW, best.params.p50, best.tokens.p50) == pytest.approx(float(np.std(fixed)), rel=0.15)


def test_uncertain_compute_widens_size_and_tokens_and_leaves_their_ratio() -> None:
    sure, unsure = optimum(LAW, 1e24), optimum(LAW, 1e24, 0.5)
    assert unsure.params.p90 > sure.params.p90 and unsure.tokens.p10 < sure.tokens.p10
    assert unsure.tokens_per_param.p90 == pytest.approx(sure.tokens_per_param.p90, rel=0.01)
    assert unsure.flop.p90 == pytest.approx(1e24 * math.exp(0.5 * 1.28155), rel=1e-4)


def test_the_covariance_gives_the_published_standard_errors() -> None:
    """Of the exponents, and of a = beta / (alpha + beta): 0.513 with 0.02 (arXiv 2404.10102)."""
    assert LAW.covariance is not None
    rows = np.array(LAW.covariance)
    assert np.linalg.eigvalsh(rows).min() > 0 and rows == pytest.approx(rows.T)
    assert math.sqrt(rows[3, 3]) == pytest.approx(LAW.standard_errors["alpha"], abs=0.005)
    assert math.sqrt(rows[4, 4]) == pytest.approx(LAW.standard_errors["beta"], abs=0.005)
    assert LAW.E * math.sqrt(rows[2, 2]) == pytest.approx(LAW.standard_errors["E"], abs=0.005)
    assert LAW.A * math.sqrt(rows[0, 0]) == pytest.approx(LAW.standard_errors["A"], rel=0.01)
    total = LAW.alpha + LAW.beta
    gradient = np.array([0, 0, 0, -LAW.beta, LAW.alpha]) / total**2
    assert LAW.beta / total == pytest.approx(0.513, abs=0.001)
    assert math.sqrt(gradient @ rows @ gradient) == pytest.approx(0.02, abs=0.001)


def test_chinchilla_itself_is_on_the_frontier_of_the_replication_and_off_that_of_the_first_fit() -> None:
    """70e9 parameters on 1.4e12 tokens, 5.76e23 FLOP (arXiv 2203.15556); the first fit asks for more tokens (2404.10102)."""
    best = optimum(LAW, 5.76e23)
    assert best.params.p10 < 70e9 < best.params.p90 and best.tokens.p10 < 1.4e12 < best.tokens.p90
    assert choice(LAW, 70e9, 1.4e12).excess < 0.01
    first = loss_law("hoffmann-2022")
    assert optimum(first, 5.76e23).tokens_per_param.p50 > 50
    assert optimum(first, 5.76e23).params.p10 == optimum(first, 5.76e23).params.p90


def test_an_overtrained_model_costs_compute() -> None:
    llama = choice(LAW, 8.03e9, 15e12)
    assert llama.tokens_per_param > 1800 and 4.0 < llama.excess < 5.0
    assert llama.loss.p50 > optimum(LAW, llama.flop).loss.p50


def test_flop_of_a_token_counts_attention() -> None:
    model = load_model("llama-3-8b")
    six, params = 6.0 * num_active_params(model), num_active_params(model)
    assert flop_per_token(model, 128) == pytest.approx(six, rel=0.08)
    # 12 x layers x hidden FLOP for each token and position of the sequence
    assert flop_per_token(model, 8192) - flop_per_token(model, 4096) == pytest.approx(12 * 32 * 4096 * 4096)
    assert params == pytest.approx(8.03e9, rel=1e-3)


# batches

def test_critical_batches_of_zhang_against_its_five_models() -> None:
    """Tokens seen and critical batch in sequences of 512: hlzhang109/critical-batch-size@c5b509d plots/chinchilla.ipynb."""
    tokens = np.array([13282, 23438, 46875, 93750, 187500]) * 256 * 512.0
    measured = np.array([745.3, 955.2, 1393.7, 1888.5, 2533.4]) * 512
    assert batch_tokens(LAWS["zhang-2024"], tokens).p50 == pytest.approx(measured, rel=0.06)
    slope, start = np.polyfit(np.log(tokens / 1e6), np.log(measured), 1)
    assert (math.exp(start), slope) == pytest.approx((11729.92, 0.47), rel=0.01)


def test_noise_batches_of_zhang_are_those_of_its_fits() -> None:
    """Steps a + b / B were fitted with b / a sequences; at 1.2e9 parameters 43,381,130 / 3,897.3 (same notebook)."""
    limit = BatchLimit(law=LAWS["zhang-2024"], tokens=batch_tokens(LAWS["zhang-2024"], 187500 * 256 * 512.0))
    assert noise_batch(limit) == pytest.approx(43_381_130 / 3_897.3 * 512, rel=0.08)
    small = BatchLimit(law=LAWS["zhang-2024"], tokens=batch_tokens(LAWS["zhang-2024"], 1e7))
    assert math.isnan(noise_batch(small))
    best = BatchLimit(law=LAWS["deepseek-2024"], tokens=batch_tokens(LAWS["deepseek-2024"], 1e21))
    assert math.isnan(noise_batch(best))


@pytest.mark.parametrize(("flop", "tokens"), [(8.4e22, 9.2e6), (8.0e23, 19.7e6)])
def test_best_batches_of_deepseek_against_its_two_models(flop: float, tokens: float) -> None:
    """7B and 67B on 2e12 tokens were to take 9.2 M and 19.7 M tokens a step (arXiv 2401.02954, figure 3)."""
    assert batch_tokens(LAWS["deepseek-2024"], flop).p50 == pytest.approx(tokens, rel=0.05)


@given(st.floats(1e3, 1e9), st.floats(1e3, 1e9))
def test_tokens_and_steps_trade_by_mccandlish(batch: float, critical: float) -> None:
    assert (more_tokens(batch, critical) - 1.0) * (more_steps(batch, critical) - 1.0) == pytest.approx(1.0)
    assert more_tokens(critical, critical) == more_steps(critical, critical) == 2.0


def test_intervals_of_batches_are_only_where_errors_are_known() -> None:
    for limit in batch_limits(1e12, 1e24, 2.0):
        assert (limit.tokens.p10 < limit.tokens.p50) == (limit.law.error is not None)
        assert limit.law.source and limit.law.fitted_on


def test_a_batch_above_a_critical_one_is_warned_of() -> None:
    limits = batch_limits(1e11, 1e22, 2.5)
    zhang = next(x for x in limits if x.law.name == "zhang-2024")
    assert not any("zhang" in w for w in batch_warnings(limits, 0.99 * zhang.tokens.p50))
    assert any("zhang" in w for w in batch_warnings(limits, 1.01 * zhang.tokens.p50))


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 10**5))
def test_tokens_of_steps(steps: int, batch: int, seq_len: int) -> None:
    assert run_tokens(steps, batch, seq_len) / steps / batch == seq_len


# the command

def test_a_budget_buys_compute() -> None:
    report = size(SizeOptions(cluster="dgx-h100:16", budget="2M", price="2 USD/h", mfu=0.4, goodput=1.0))
    assert report.flop == pytest.approx(1e6 * 3600 * 989.4e12 * 0.4)
    assert report.machine is not None and report.machine.usd is not None
    assert report.machine.days.p50 == pytest.approx(1e6 / 24 / 128) and report.machine.usd.p50 == pytest.approx(2e6)
    assert report.flop == pytest.approx(size(SizeOptions(
        cluster="dgx-h100:16", budget="2 MUSD", price="2 USD/h", mfu=0.4, goodput=1.0)).flop)


def test_the_shorter_of_budget_and_days_counts() -> None:
    days = size(SizeOptions(cluster="dgx-h100:16", days=30.0))
    assert size(SizeOptions(cluster="dgx-h100:16", days=30.0, budget="1000M")).flop == days.flop
    assert size(SizeOptions(cluster="dgx-h100:16", days=30.0, budget="1k")).flop < days.flop
    assert days.best.flop.p10 < days.flop < days.best.flop.p90
    assert any("MFU 0.4" in line for line in days.assumptions) and any("goodput" in line for line in days.assumptions)


def test_steps_and_batch_are_tokens_and_a_model_takes_hours() -> None:
    report = size(SizeOptions(model="llama-3-8b", steps=1000, global_batch=512, seq_len=8192, cluster="dgx-h100:16"))
    assert report.asked is not None and report.tokens == 1000 * 512 * 8192
    assert report.flop == pytest.approx(report.tokens * flop_per_token(load_model("llama-3-8b"), 8192))
    assert report.machine is not None and report.machine.gpu_hours.p10 < report.machine.gpu_hours.p50
    assert report.best.flop.p10 == report.best.flop.p90


def test_a_model_alone_gets_its_best_tokens_and_tokens_alone_their_best_model() -> None:
    alone = size(SizeOptions(model="llama-3-8b"))
    assert alone.asked is not None and alone.asked.choice.excess == pytest.approx(0.0, abs=1e-6)
    tokens = size(SizeOptions(tokens="1T"))
    assert tokens.asked is not None and tokens.best.tokens.p50 == pytest.approx(1e12)


def test_a_model_on_a_compute_gets_the_tokens_that_it_buys() -> None:
    report = size(SizeOptions(model="llama-3-70b", flop=1e24, seq_len=4096))
    assert report.tokens == pytest.approx(1e24 / flop_per_token(load_model("llama-3-70b"), 4096))
    over = size(SizeOptions(model="llama-3-70b", flop=1e24, tokens="15T"))
    assert any("takes" in w for w in over.warnings)


def test_models_nearest_the_optimum_are_shown() -> None:
    report = size(SizeOptions(flop=1e24))
    assert "llama-3-70b" in [m.name for m in report.models] and "gpt2" not in [m.name for m in report.models]
    data = size_json(report)
    json.dumps(data, allow_nan=False)
    assert {"flop", "optimum", "models", "batch_limits", "assumptions", "law"} <= set(data)


def test_a_mixture_counts_the_parameters_that_a_token_uses() -> None:
    report = size(SizeOptions(model="mixtral-8x7b", tokens="1T"))
    assert report.asked is not None and 12e9 < report.asked.choice.params < 14e9


@pytest.mark.parametrize("options", [
    SizeOptions(flop=1e24), SizeOptions(flop=1e24, law="hoffmann-2022"), SizeOptions(model="gpt2", steps=10, global_batch=9999),
    SizeOptions(cluster="dgx-h100:2", days=3.0),
], ids=["flop", "hoffmann", "tiny", "days"])
def test_the_screen_shows_optimum_models_and_batches(options: SizeOptions) -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(size_screen(size(options)))
    text = console.export_text()
    assert "tokens per parameter" in text and "zhang-2024" in text and "Assumed" in text and " nan " not in text


@pytest.mark.parametrize(("options", "words"), [
    (SizeOptions(), "size: nothing to go by"), (SizeOptions(budget="2M"), "budget: needs --cluster"),
    (SizeOptions(flop=-1.0), "flop: must be more than zero"), (SizeOptions(flop=math.nan), "flop: must be more than zero"),
    (SizeOptions(flop=1e24, cluster="dgx-h100:1", days=3.0), "flop: goes without"),
    (SizeOptions(cluster="dgx-h100:1"), "size: nothing to go by"), (SizeOptions(steps=3), "steps: needs --global-batch"),
    (SizeOptions(tokens="1T", steps=3, global_batch=2), "tokens: goes without --steps"),
    (SizeOptions(tokens="0"), "tokens: must be more than zero"), (SizeOptions(flop=1e24, law="moore"), "law: 'moore' is not"),
    (SizeOptions(cluster="dgx-h100:1", days=3.0, mfu=40.0), "mfu: is a ratio"),
    (SizeOptions(cluster="dgx-h100:1", budget="2 EUR"), "budget: '2 EUR' is unknown unit"),
    (SizeOptions(cluster="frontier:1", budget="2M"), "budget: no price known"),
    (SizeOptions(model="gpt2", seq_len=10**6), "seq_len: must be from 1 to"),
    (SizeOptions(cluster="dgx-h100:1", days=3.0, precision="int3"), "precision: 'int3' is not known"),
])
def test_mistakes_are_one_line(options: SizeOptions, words: str) -> None:
    with pytest.raises(BadInput, match=words) as raised:
        size(options)
    assert "\n" not in str(raised.value)


def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        headway.main(("size", *arguments))
    out, err = capfd.readouterr()
    return int(stopped.value.code or 0), out, err


def test_the_verb_prints_json_and_tables(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capfd, "--cluster", "dgx-h100:16", "--budget", "2M", "--json")
    data = json.loads(out)
    assert code == 0 and data["usd"]["p50"] == pytest.approx(2e6)
    assert data["optimum"]["params"]["p10"] < data["optimum"]["params"]["p50"] < data["optimum"]["params"]["p90"]
    code, out, _ = command(capfd, "--model", "llama-3-8b", "--tokens", "15T", "--global-batch", "8192")
    assert code == 0 and "Warning: a step of 67.1 M tokens exceeds the critical batch" in out


def test_the_verb_says_mistakes_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capfd, "--flop", "many")
    assert code == 2 and "--flop" in err and "'many'" in err and err.count("\n") == 1
    assert command(capfd)[0] == 2
