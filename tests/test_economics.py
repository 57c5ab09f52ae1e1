"""Money, days, energy and carbon: closed forms, percentiles against sampling, and published bills beside predicted ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.bill import Bill, bill, goodput_at, known_prices
from planner.economics import (
    DAYS_PER_MONTH,
    Band,
    accelerator_kwh,
    carbon_t,
    days_of,
    facility_kwh,
    gpu_hours,
    hours_for,
    hours_of_flop,
    lognormal,
    run_usd,
    spread_between,
    storage_usd,
    training_flop,
)
from planner.plan import Plan, plan_from_prediction
from planner.predict import predict
from planner.question import ask
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import Price, load_cluster
from profiles.power import carbon_kg_per_kwh, load_factor, node_maximum_w, pue, regions
from profiles.prices import offers
from profiles.storage_prices import storage_price
from reports.bill_tables import bill_table, terms_table
from reports.run_command import RunOptions, run_case
from simulator.run.interval_curve import expected_goodput
from simulator.run.monte_carlo import Case, simulate_runs
from simulator.strategy import Strategy

positive = st.floats(1e-3, 1e9)
ratio = st.floats(0.05, 1.0)
PRICE = Price(usd_per_gpu_hour=2.0, term="given", provider="test", date="now", source="test")


@pytest.fixture(scope="module")
def plan() -> Plan:
    question = ask(load_model("llama-3-8b"), load_cluster("dgx-h100:16"), tokens=1e12, global_batch=512, seq_len=8192,
                   precision="bf16", cluster_text="dgx-h100:16")
    strategy = Strategy(dp=64, tp=2, zero=1, num_microbatches=8, seq_len=8192, software=question.software)
    return plan_from_prediction(question, predict(question, strategy), None)


@pytest.fixture(scope="module")
def case(plan: Plan) -> Case:
    return run_case(plan, plan.prediction, RunOptions(spares=2))[0]


def billed(plan: Plan, **given: object) -> Bill:
    return bill(plan.question, plan.strategy, plan.prediction, **given)  # type: ignore[arg-type]


@given(positive, st.integers(1, 100_000))
def test_days_and_hours_turn_into_each_other(days: float, num_gpus: int) -> None:
    assert days_of(gpu_hours(days, num_gpus), num_gpus) == pytest.approx(days)


@given(positive, ratio, ratio)
def test_hours_and_flop_turn_into_each_other(hours: float, mfu: float, goodput: float) -> None:
    assert hours_of_flop(training_flop(hours, 989e12, mfu, goodput), 989e12, mfu, goodput) == pytest.approx(hours)


@given(positive)
def test_dollars_buy_the_hours_that_they_pay_for(usd: float) -> None:
    paid = run_usd(hours_for(usd, PRICE), PRICE)
    assert paid == pytest.approx(usd) and run_usd(usd, None) is None


@given(st.lists(positive, min_size=1, max_size=4), positive)
def test_arrays_are_numbers_side_by_side(days: list[float], watts: float) -> None:
    together = facility_kwh(np.array(days), 3, watts, 1.2)
    assert together == pytest.approx([facility_kwh(d, 3, watts, 1.2) for d in days])
    band = lognormal(np.array(days), 0.3)
    assert band.p90 == pytest.approx([lognormal(d, 0.3).p90 for d in days])


def test_energy_of_a_node_for_a_day() -> None:
    assert facility_kwh(1.0, 1, 1000.0) == pytest.approx(24.0)
    assert facility_kwh(2.0, 3, 1000.0, 1.5) == pytest.approx(216.0)
    assert facility_kwh(1.0, 2, 10200.0) == pytest.approx(2 * 24 * 10.2)
    assert storage_usd(1e9, DAYS_PER_MONTH, 0.1) == pytest.approx(0.1)
    assert carbon_t(1000.0, 1.0) == 1.0


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.0), (0.3, 0.4), (0.05, 0.11)])
def test_percentiles_of_a_product_against_sampling(first: float, second: float) -> None:
    rng = np.random.default_rng(0)
    sampled = 7.0 * np.exp(first * rng.standard_normal(400_000)) * 3.0 * np.exp(second * rng.standard_normal(400_000))
    band = lognormal(7.0, first).times(3.0, second)
    assert [band.p10, band.p50, band.p90] == pytest.approx(np.percentile(sampled, (10, 50, 90)).tolist(), rel=0.01)


@given(positive, st.floats(1.01, 10.0))
def test_the_spread_between_percentiles_gives_them_back(middle: float, factor: float) -> None:
    band = lognormal(middle, spread_between(middle / factor, middle * factor))
    assert (band.p10, band.p90) == pytest.approx((middle / factor, middle * factor))


def test_runs_that_do_not_end_keep_the_percentiles_that_do() -> None:
    band = Band(p10=1.0, p50=math.inf, p90=math.inf).times(2.0)
    assert band.p10 == 2.0 and band.p50 == math.inf


# what model cards and papers report

CARDS = [("Llama 3.1 405B", 30.84e6, 8930.0), ("Llama 3.1 70B", 7.0e6, 2040.0), ("Llama 3.1 8B", 1.46e6, 420.0),
         ("Llama 3.2 1B", 0.37e6, 107.0), ("Llama 4 Scout", 5.0e6, 1354.0)]
"""Hours of H100 at 700 W, and location-based tonnes of CO2 equivalent: model cards of Meta."""


@pytest.mark.parametrize(("name", "hours", "tonnes"), CARDS, ids=lambda x: x if isinstance(x, str) else "")
def test_carbon_against_model_cards(name: str, hours: float, tonnes: float) -> None:
    predicted = carbon_t(accelerator_kwh(hours, 700.0) * pue("meta").value, carbon_kg_per_kwh("united-states").value)
    assert predicted == pytest.approx(tonnes, rel=0.05)


def test_energy_and_carbon_of_bloom() -> None:
    """Luccioni et al. 2022, arXiv 2211.02001: 1,082,990 A100-hours, 433,196 kWh, 24.7 t; idle nodes 256,646 kWh more."""
    kwh = accelerator_kwh(1_082_990, 400.0)
    assert kwh == pytest.approx(433_196, rel=1e-3)
    assert carbon_t(kwh, carbon_kg_per_kwh("jean-zay").value) == pytest.approx(24.7, rel=0.005)
    cluster = load_cluster("jean-zay-a100:48")
    node = node_maximum_w(cluster)
    assert node is not None
    whole = facility_kwh(days_of(1_082_990, cluster.num_gpus), cluster.num_nodes, node.value * load_factor().value)
    assert whole == pytest.approx(433_196 + 256_646, rel=0.2)


def test_dollars_of_deepseek_v3() -> None:
    """2.788 M H800-hours at 2 USD are 5.576 MUSD (arXiv 2412.19437, table 1)."""
    assert run_usd(2.788e6, PRICE) == pytest.approx(5.576e6)


def test_hours_of_llama_3_405b() -> None:
    """3.8e25 FLOP (arXiv 2407.21783, section 3.2.1) took 30.84 M H100-hours; its MFU is 0.38 to 0.43, its goodput above 0.9."""
    assert hours_of_flop(3.8e25, 989.4e12, 0.40, 0.90) == pytest.approx(30.84e6, rel=0.08)


def test_power_of_a_node_against_measurement() -> None:
    """An 8 x H100 node never drew more than 8.4 kW in training (arXiv 2412.08602)."""
    node = node_maximum_w(load_cluster("dgx-h100:1"))
    assert node is not None
    band = lognormal(node.value * load_factor().value, load_factor().spread)
    assert band.p50 < 8400.0 < band.p90


def test_a_node_without_a_data_sheet_draws_like_those_that_have_one() -> None:
    known = load_cluster("dgx-h100:1")
    derived = node_maximum_w(replace(known, node_power_w=None))
    assert derived is not None and derived.value == pytest.approx(10_200, rel=0.05)
    assert node_maximum_w(replace(known, node_power_w=None, accelerator=replace(known.accelerator, power_w=None))) is None


# catalogue

def test_every_region_is_a_grid_and_every_default_exists() -> None:
    assert all(0.01 < carbon_kg_per_kwh(name).value < 1.0 and carbon_kg_per_kwh(name).source for name in regions())
    assert carbon_kg_per_kwh("france").value < carbon_kg_per_kwh().value < carbon_kg_per_kwh("india").value
    low, high = lognormal(pue().value, pue().spread).p10, lognormal(pue().value, pue().spread).p90
    assert (low, high) == pytest.approx((pue("meta").value, pue("industry").value), rel=0.01)
    assert storage_price("s3-standard").usd_per_gb_month < storage_price().usd_per_gb_month


@pytest.mark.parametrize(("call", "words"), [
    (lambda: carbon_kg_per_kwh("atlantis"), "region: 'atlantis' is neither"), (lambda: carbon_kg_per_kwh(-3), "region: grams"),
    (lambda: carbon_kg_per_kwh(math.nan), "region: grams"), (lambda: pue(0.9), "pue: must be at least 1"),
    (lambda: pue("hot"), "pue: 'hot' is neither a number nor one of"), (lambda: pue("nan"), "pue: must be at least 1"),
    (lambda: storage_price("tape"), "storage price: 'tape' is not known"),
])
def test_mistakes_are_one_line(call: object, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        call()  # type: ignore[operator]


# the bill

def test_an_undisturbed_bill_is_the_prediction(plan: Plan) -> None:
    found = billed(plan)
    p = plan.prediction
    assert (found.days.p10, found.days.p50, found.days.p90) == (p["days_p10"], p["days"], p["days_p90"])
    assert found.gpu_hours.p50 == pytest.approx(p["gpu_hours"]) and found.goodput is None
    assert found.usd is not None and found.usd.p50 == pytest.approx(p["usd"])
    assert any("undisturbed" in line for line in found.assumptions)


def test_failures_lengthen_the_bill_and_a_fleet_without_any_does_not(plan: Plan, case: Case) -> None:
    bare, with_failures = billed(plan), billed(plan, case=case)
    assert with_failures.goodput is not None and with_failures.goodput.p10 < with_failures.goodput.p90 < 1.0
    assert with_failures.days.p50 > bare.days.p50
    assert with_failures.num_gpus == 18 * 8
    assert with_failures.days.p90 / with_failures.days.p50 > bare.days.p90 / bare.days.p50 * 0.999
    none = run_case(plan, plan.prediction, RunOptions(spares=0, fleet="none", eval_every=0))[0]
    assert billed(plan, case=none).days.p50 == pytest.approx(bare.days.p50, rel=0.001)


def test_goodput_by_luck_has_the_expected_mean(case: Case) -> None:
    from simulator.run.strikes import LUCK

    mean = np.mean([goodput_at(case, float(z)) for z in LUCK])
    assert mean == pytest.approx(expected_goodput(case.training, case.checkpoints, case.fleet, case.checkpoints.interval_steps))


def test_closed_form_days_against_simulated_runs(plan: Plan, case: Case) -> None:
    outcomes = simulate_runs(case, 60, processes=1)
    closed, simulated = billed(plan, case=case), billed(plan, case=case, outcomes=outcomes)
    assert closed.days.p50 == pytest.approx(simulated.days.p50, rel=0.05)
    assert simulated.goodput is not None and closed.goodput is not None
    assert closed.goodput.p50 == pytest.approx(simulated.goodput.p50, abs=0.03)


def test_runs_that_do_not_end_have_no_percentile(plan: Plan, case: Case) -> None:
    outcomes = simulate_runs(case, 8, processes=1)
    outcomes = replace(outcomes, finished=np.arange(8) < 6)
    data = billed(plan, case=case, outcomes=outcomes).as_dict()
    assert data["days"]["p90"] is None and data["days"]["p50"] is not None
    json.dumps(data, allow_nan=False)


def test_energy_and_carbon_scale_with_what_they_are_made_of(plan: Plan) -> None:
    clean, dirty = billed(plan, region="france", pue_given=1.1).energy, billed(plan, region="india", pue_given=2.2).energy
    assert clean is not None and dirty is not None
    assert dirty.facility_kwh.p50 == pytest.approx(2 * clean.facility_kwh.p50)
    assert dirty.carbon_t.p50 / clean.carbon_t.p50 == pytest.approx(2 * 713.4 / 56.04, rel=1e-3)
    assert clean.facility_kwh.p10 < clean.facility_kwh.p50 < clean.facility_kwh.p90
    days = billed(plan).days.p50
    assert clean.facility_kwh.p50 == pytest.approx(days * 24 * 16 * 10.2 * 0.76 * 1.1)


def test_storage_grows_with_what_is_kept(plan: Plan) -> None:
    none, ten = billed(plan, kept=0).storage, billed(plan, kept=10).storage
    assert none.data_bytes == 4e12 and ten.usd.p50 > none.usd.p50 > 0
    assert ten.usd.p50 - none.usd.p50 == pytest.approx(
        storage_usd(10 * ten.checkpoint_bytes, billed(plan).days.p50, ten.price.usd_per_gb_month))
    with pytest.raises(BadInput, match="kept: must not be negative"):
        billed(plan, kept=-1)


def test_every_term_has_provider_date_and_source(plan: Plan) -> None:
    found = billed(plan)
    assert {"on-demand", "spot", "reserved-3y"} <= {t.price.term for t in found.terms}
    assert all(t.price.provider and t.price.date and t.price.source for t in found.terms)
    assert len(found.terms) == len(offers(plan.question.cluster.accelerator))
    for term in found.terms:
        assert term.usd.p90 == pytest.approx(found.gpu_hours.p90 * term.price.usd_per_gpu_hour)
    assert known_prices(replace(plan.question, price=PRICE))[0] == PRICE


def test_without_price_or_power_hours_remain(plan: Plan) -> None:
    bare = replace(plan.question.cluster, node_power_w=None,
                   accelerator=replace(plan.question.cluster.accelerator, name="unheard-of", power_w=None))
    question = replace(plan.question, cluster=bare, price=None)
    found = bill(question, plan.strategy, plan.prediction)
    assert found.usd is None and found.terms == () and found.energy is None and found.gpu_hours.p50 > 0
    assert any("no price known" in line for line in found.assumptions)
    assert bill_table(found).row_count > 3 and terms_table(found).row_count == 0


def test_tables_name_the_terms(plan: Plan) -> None:
    found = billed(plan)
    assert terms_table(found).row_count >= 4 and bill_table(found).row_count == 7
