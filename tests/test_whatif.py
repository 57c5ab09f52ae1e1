"""What if: no change changes nothing, more of what is good never harms, break-evens are where the answer turns."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, mistake
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import tiny_profile

from planner.break_even import PRECISION, break_evens, crossings
from planner.inputs import INPUTS, RUN, put
from planner.predict import Prediction, predict, predict_replayed
from planner.question import Question, ask
from planner.scenario import RunInputs, Scenario, scenario_of
from planner.settings import changed, settings_of
from planner.tornado import tornado
from planner.whatif import Method, evaluate, replayed, sweep
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster, with_links
from profiles.reliability import load_fleet
from simulator.strategy import Strategy

Run = Callable[..., Result]
CLOSED = Method()
ASKED = ("estimate", "llama-3-8b", "dgx-h100:4", "--global-batch", "128", "--tokens", "15T")


def scenario(
    model: str = "llama-3-8b", cluster: str = "dgx-h100:4", batch: int = 128, length: int = 4096, **fields: Any
) -> Scenario:
    """Return the scenario of a strategy on all of a cluster."""
    question = ask(load_model(model), load_cluster(cluster), tokens=15e12, global_batch=batch, seq_len=length)
    s = Strategy(software=question.software, seq_len=length, **fields)
    dp = question.cluster.num_gpus // (s.tp * s.cp * s.pp)
    s = replace(s, dp=dp, num_microbatches=batch // (dp * s.micro_batch))
    return scenario_of(question, s, RunInputs(fleet=load_fleet("published"), best_interval_s=3600.0))


def step_at(question: Question, strategy: Strategy, network: float) -> Prediction:
    """Return the prediction on another network, by hand."""
    return predict(replace(question, cluster=with_links(question.cluster, scale_out_bytes_per_s=network)), strategy)


ZERO3 = scenario(zero=3)
PIPED = scenario(tp=2, pp=2, zero=1)


@pytest.mark.parametrize("name", INPUTS)
def test_what_stays_as_it_is_changes_nothing(name: str) -> None:
    for base in (ZERO3, PIPED):
        assert put(base, name, INPUTS[name].read(base)) is base
        value = INPUTS[name].read(base)
        if not isinstance(value, (str, bool)) and value:
            assert changed(base, settings_of([f"{name}=x1"]), (1.0,)) is base


def test_the_plan_as_it_is_has_its_own_prediction() -> None:
    for base in (ZERO3, PIPED):
        point = evaluate(base, CLOSED)
        assert point.prediction == predict(base.question, base.strategy)
        assert evaluate(base, Method(predict=replayed)).prediction == predict_replayed(base.question, base.strategy)[0]


@pytest.mark.parametrize("name", [n for n, i in INPUTS.items() if i.dimension not in ("word",)])
def test_an_input_has_the_value_that_was_put(name: str) -> None:
    mixed = scenario("mixtral-8x7b", tp=2, pp=2, ep=2, zero=1)
    given = INPUTS[name]
    old = given.read(mixed)
    more = 2 * old + 0.5 if given.dimension == "ratio" else 2 * (old or 1.0)
    value = {"flag": not old, "whole": 4}.get(given.dimension, more)
    assert given.read(put(mixed, name, value)) == pytest.approx(value)


GOOD = dict.fromkeys(("network", "scale_up", "peak", "memory_bandwidth"), -1) | dict.fromkeys((
    "latency", "slow_rank", "slow_node", "step", "matmul_time", "attention_time", "memory_time", "scale_up_time",
    "scale_out_time", "wait", "beside"), 1)
"""Input -> whether more of it makes steps longer."""


@settings(max_examples=50)
@given(name=st.sampled_from(list(GOOD)), less=st.floats(0.05, 1.0), more=st.floats(1.0, 20.0),
       zero=st.sampled_from([0, 1, 2, 3]), tp=st.sampled_from([1, 2, 8]), pp=st.sampled_from([1, 2]))
def test_more_of_what_is_good_is_never_slower(name: str, less: float, more: float, zero: int, tp: int, pp: int) -> None:
    base = scenario(tp=tp, pp=pp, zero=zero)
    now = INPUTS[name].read(base)
    ends = [max(INPUTS[name].above, now * factor) for factor in (less, more)]
    low, high = (evaluate(put(base, name, value), CLOSED).prediction for value in ends)
    assert low is not None and high is not None
    assert GOOD[name] * (high.step_time_s - low.step_time_s) >= -1e-9 * low.step_time_s


def test_inputs_change_what_they_name() -> None:
    q, s = ZERO3.question, ZERO3.strategy
    now = evaluate(ZERO3, CLOSED).prediction
    assert now == predict(q, s)

    def after(text: str) -> Prediction:
        found = sweep(ZERO3, settings_of([text]), CLOSED).points[0]
        assert found.prediction is not None, found.refused
        return found.prediction

    assert after("network=100Gb/s").step_time_s == step_at(q, s, 100e9 / 8).step_time_s
    assert after("network=x0.5").step_time_s == step_at(q, s, q.cluster.scale_out.bytes_per_s / 2).step_time_s
    assert after("tokens=30T").days == pytest.approx(2 * now.days)
    assert now.usd is not None and after("price=x3").usd == pytest.approx(3 * now.usd)
    larger = scenario(cluster="dgx-h100:8", zero=3)
    assert after("num_gpus=64") == after("nodes=8") == predict(larger.question, larger.strategy)
    assert after("dp=64").step_time_s == predict(larger.question, larger.strategy).step_time_s
    tp2 = scenario(tp=2, zero=3)
    assert after("tp=2") == predict(tp2.question, tp2.strategy)
    twice = scenario(zero=3, micro_batch=2)
    assert after("micro_batch=2") == predict(twice.question, twice.strategy)
    eager = replace(q.software, kernels="eager")
    assert after("kernels=eager") == predict(replace(q, software=eager), replace(s, software=eager))
    assert after("step=x1.1").step_time_s == pytest.approx(1.1 * now.step_time_s)
    assert after("step=1.1").mfu == pytest.approx(now.mfu / 1.1)
    for text in ("step=1.3", "slow_rank=1.2", "jitter=2%", "network=50Gb/s"):
        p = after(text)
        assert sum(p.breakdown_s.values()) == pytest.approx(p.step_time_s)
        assert p.tokens_per_s * p.step_time_s == pytest.approx(now.tokens_per_s * now.step_time_s)


def test_a_slow_rank_is_that_of_the_replay() -> None:
    from simulator.condition import healthy, with_slow

    condition = with_slow(healthy(32), {0: 1.3}, {}, 8)
    for base in (ZERO3, PIPED):
        slow, usual = (predict_replayed(base.question, base.strategy, condition=c)[0].step_time_s for c in (condition, None))
        found = evaluate(put(base, "slow_rank", 1.3), Method(predict=replayed)).prediction
        assert found is not None and found.step_time_s == pytest.approx(slow, rel=1e-9)
        assert slow > usual


@pytest.mark.parametrize("base", [ZERO3, PIPED, scenario(zero=1), scenario(tp=8, zero=3)])
def test_above_its_break_even_communication_hides_and_below_it_does_not(base: Scenario) -> None:
    q, s = base.question, base.strategy
    swept = sweep(base, settings_of(["network=50..800Gb/s:3"]), CLOSED)
    found = [b for b in break_evens(swept, CLOSED) if b.kind == "hides"]
    fastest = step_at(q, s, 8 * 100e9)
    for b in found:
        assert (b.below, b.above) == ("exposed", "hidden") and b.high / b.low - 1 < 2 * PRECISION

        def left(value: float, term: str = b.term) -> float:
            p = step_at(q, s, value)
            return (p.breakdown_s[term] - fastest.breakdown_s[term]) / p.step_time_s

        assert left(b.value * (1 - 3 * PRECISION)) > 0.01 > left(b.value * (1 + 3 * PRECISION))
    if base is ZERO3:
        assert [b.term for b in found] == ["exposed_dp"]
        assert "ZeRO-3 gathers" in found[0].sentence and "Gb/s" in found[0].sentence


@settings(max_examples=4)
@given(zero=st.sampled_from([0, 1, 3]), tp=st.sampled_from([1, 2, 4]), micro_batch=st.sampled_from([1, 2, 4]))
def test_memory_fits_above_its_break_even_and_not_below(zero: int, tp: int, micro_batch: int) -> None:
    base = scenario(tp=tp, zero=zero, micro_batch=micro_batch)
    (found,) = break_evens(sweep(base, settings_of(["memory=40GiB,80GiB"]), CLOSED), CLOSED)

    def fits(memory: float) -> bool:
        q = base.question
        device = replace(q.cluster.accelerator, memory_bytes=memory)
        return predict(replace(q, cluster=replace(q.cluster, accelerator=device)), base.strategy).fits

    assert fits(found.value * (1 + PRECISION)) and not fits(found.value * (1 - PRECISION))
    assert "fits above" in found.sentence


def test_whole_values_fit_up_to_a_neighbour() -> None:
    swept = sweep(ZERO3, settings_of(["micro_batch=1,2,3,4"]), CLOSED)
    assert [p.fits for p in swept.points] == [True, True, False, False] or not swept.points[2].prediction
    found = break_evens(swept, CLOSED)
    assert [(b.kind, b.below, b.above) for b in found] == [("fits", "fits", "does not fit")]
    assert "does not divide" in swept.points[2].refused


def test_two_plans_cross_where_their_days_are_equal() -> None:
    other = scenario(tp=2, zero=1)
    (setting,) = settings_of(["network=50..800Gb/s:3"])
    found = crossings((ZERO3, other), ("a", "b"), setting, (CLOSED, CLOSED), "days")

    def more_days(value: float) -> float:
        return step_at(ZERO3.question, ZERO3.strategy, value).days - step_at(other.question, other.strategy, value).days

    # ZeRO-3 hides behind a good network; behind a very good one it no longer gains
    assert [(b.below, b.above) for b in found] == [("b", "a"), ("a", "b")]
    for b, sign in zip(found, (1, -1), strict=True):
        assert sign * more_days(b.value * (1 - PRECISION)) > 0 > sign * more_days(b.value * (1 + PRECISION))


def test_searching_again_is_never_slower_and_turns_where_two_strategies_are_equal() -> None:
    base = scenario("gpt2", "dgx-h100:1", batch=8, length=1024, zero=3)
    (setting,) = settings_of(["scale_up=50..150GB/s:2"])
    kept, again = (sweep(base, (setting,), Method(predict=replayed, replan=replan)) for replan in (False, True))
    for old, new in zip(kept.points, again.points, strict=True):
        assert old.prediction is not None and new.prediction is not None and new.fits
        assert new.prediction.step_time_s <= old.prediction.step_time_s
    found = break_evens(again, Method(predict=replayed, replan=True))
    assert found and all(b.kind == "strategy" for b in found)
    # one after the other, from the first point's best strategy to the last point's
    ends = [again.points[i].prediction.strategy.describe() for i in (0, -1)]  # type: ignore[union-attr]
    assert [found[0].below, found[-1].above] == ends
    assert all(a.above == b.below and a.high <= b.low for a, b in itertools.pairwise(found))
    for value, best in ((found[0].low * 0.999, found[0].below), (found[0].high * 1.001, found[0].above)):
        point = evaluate(put(base, "scale_up", value), Method(predict=replayed, replan=True))
        assert point.prediction is not None and point.prediction.strategy.describe() == best


def test_the_tornado_has_what_moves_most_first() -> None:
    found = tornado(ZERO3, CLOSED, "days")
    swings = [b.swing for b in found.bars]
    assert swings == sorted(swings, reverse=True) and len(swings) == 10
    for bar in found.bars:
        assert bar.source
        at = [evaluate(put(ZERO3, bar.name, value), CLOSED).metric("days") for value in (bar.low, bar.high)]
        assert at == [bar.at_low.metric("days"), bar.at_high.metric("days")]
        assert bar.swing == max(*at, found.base.metric("days")) - min(*at, found.base.metric("days"))
    with pytest.raises(BadInput, match="plan: does not fit"):
        tornado(put(ZERO3, "memory", 1e9), CLOSED, "days")
    assert "price" not in [b.name for b in found.bars]
    assert "price" in [b.name for b in tornado(ZERO3, CLOSED, "usd").bars]
    (stated,) = settings_of(["network=100Gb/s,200Gb/s"])
    (network,) = [b for b in tornado(ZERO3, CLOSED, "days", (stated,)).bars if b.name == "network"]
    assert (network.source, network.at_low.metric("days")) == ("--set", step_at(
        ZERO3.question, ZERO3.strategy, 100e9 / 8).days)


@pytest.mark.parametrize(("text", "values"), [
    ("network=400Gb/s, 800Gb/s", (50e9, 100e9)), ("tp=4,8", (4, 8)), ("jitter=2%", (0.02,)),
    ("pp_overlap=off,on", (False, True)),
    ("memory-bandwidth=3TB/s", (3e12,)), ("micro_batch=1..8:4", (1, 2, 4, 8)), ("recompute=full,none", ("full", "none")),
    ("network=100..800Gb/s:4", (12.5e9, 25e9, 50e9, 100e9)), ("peak=x0.5..x2:3", (0.5, 1.0, 2.0)), ("tokens=15T", (15e12,)),
    ("jitter=0..2%:3", (0.0, 0.01, 0.02)), ("latency=5us", (5e-6,)), ("checkpoint_interval=30min", (1800.0,)),
])
def test_values_as_people_write_them(text: str, values: tuple[Any, ...]) -> None:
    (found,) = settings_of([text])
    assert found.values == pytest.approx(values)
    assert found.are_factors == text.startswith("peak")


@settings(max_examples=30)
@given(low=st.floats(1.0, 1e3), ratio=st.floats(1.01, 1e3), num=st.integers(2, 40))
def test_a_range_keeps_its_ends_and_is_even_in_logarithms(low: float, ratio: float, num: int) -> None:
    (found,) = settings_of([f"network={low!r}..{low * ratio!r}Gb/s:{num}"])
    assert len(found.values) == num and found.values[0] == low * 1e9 / 8 and found.values[-1] == low * ratio * 1e9 / 8
    steps = [math.log(b / a) for a, b in itertools.pairwise(found.values)]
    assert steps == pytest.approx([math.log(ratio) / (num - 1)] * (num - 1), rel=1e-6)


@pytest.mark.parametrize(("text", "parts"), [
    ("netwrk=1", ("'netwrk' is no input", "did you mean network?", "scale_up")),
    ("network", ("names no values", "400Gb/s,800Gb/s")),
    ("network=400", ("--set network: '400'", "unit is needed")), ("network=x0", ("'x0' must be a number above 0",)),
    ("network=800..400Gb/s", ("is no range", "from the lower")), ("network=1..2Gb/s:1", ("is no range",)),
    ("network=x2,400Gb/s", ("do not go together",)), ("tp=2.5", ("no whole number",)), ("tp=0", ("too little",)),
    ("recompute=some", ("'some' is not known", "none, selective, full")), ("slow_rank=0.5", ("at least 1",)),
    ("pp_overlap=2", ("neither on nor off",)), ("network=1..2Gb/s:99999", ("combinations are too many",)),
])
def test_a_mistake_names_field_value_and_mend(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as stopped:
        settings_of([text])
    assert all(part in str(stopped.value) for part in parts), stopped.value


@pytest.fixture
def plan(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    found = run(*ASKED, "--zero", "3", "--out", str(path))
    assert found.code == 0, found.err
    return path


def figures(run: Run, *arguments: str) -> dict[str, Any]:
    found = run("whatif", *arguments, "--json")
    assert found.code == 0, found.err
    data: dict[str, Any] = json.loads(found.out)
    return data


def test_the_command_states_the_plans_own_figures(run: Run, plan: Path) -> None:
    own = json.loads(run(*ASKED, "--zero", "3", "--json").out)
    data = figures(run, str(plan), "--set", "network=x1,x2", "--set", "failure_rate=x1,x4")
    base, rows = data["sweeps"][0]["base"], data["sweeps"][0]["rows"]
    assert len(rows) == 4 and rows[0] | {"values": {}} == base
    for key in ("step_time_s", "days", "usd", "mfu", "peak_memory_bytes"):
        assert base[key] == pytest.approx(own[key], rel=1e-6), key
    assert rows[0]["goodput"] > rows[1]["goodput"] and rows[1]["days_with_failures"] > rows[1]["days"]
    replay = figures(run, str(plan), "--set", "tokens=x1", "--replay")["sweeps"][0]["base"]
    simulated = json.loads(run("simulate", str(plan), "--json").out)
    assert replay["step_time_s"] == pytest.approx(simulated["step_time_s"], rel=1e-6)


def test_goodput_is_the_closed_form_of_the_simulated_run(run: Run, plan: Path) -> None:
    simulated = json.loads(run("simulate", str(plan), "--run", "--runs", "2", "--storage", "20GB/s", "--json").out)
    curve = {p["interval_steps"]: p["expected_goodput"] for p in simulated["checkpoint_curve"]["points"]}
    data = figures(run, str(plan), "--set", "storage=20GB/s", "--replay")
    assert data["sweeps"][0]["rows"][0]["goodput"] == pytest.approx(curve[simulated["checkpoint_interval_steps"]], rel=1e-9)


def test_every_input_of_the_run_moves_the_goodput(run: Run, plan: Path) -> None:
    for text in ("failure_rate=x3", "restart=x5", "storage=x0.1", "checkpoint_interval=x9", "checkpoint=async"):
        sweep_ = figures(run, str(plan), "--set", text)["sweeps"][0]
        assert sweep_["rows"][0]["goodput"] != sweep_["base"]["goodput"], text
        assert sweep_["rows"][0]["step_time_s"] == sweep_["base"]["step_time_s"]
        assert text.split("=")[0] in RUN


def test_the_same_command_gives_the_same_bytes(run: Run, plan: Path, tmp_path: Path) -> None:
    for ending, asked in {"html": ("--set", "network=x2"), "csv": ("--set", "jitter=1%"), "svg": ("--tornado",)}.items():
        first, second = (tmp_path / f"{name}.{ending}" for name in "ab")
        out = [run("whatif", str(plan), *asked, "--out", str(path), "--json").out for path in (first, second)]
        assert out[0] == out[1]
        assert first.read_bytes() == second.read_bytes() and len(first.read_bytes()) > 100


def test_the_screen_shows_rows_break_evens_and_what_matters(run: Run, plan: Path, tmp_path: Path) -> None:
    shown = run("whatif", str(plan), "--set", "network=100Gb/s,400Gb/s").out
    assert "100 Gb/s" in shown and "exposed dp" in shown and "the ZeRO-3 gathers and gradient sums hide" in shown
    assert "What moves the days" in run("whatif", str(plan)).out
    assert "cost with failures most" in run("whatif", str(plan), "--by", "usd").out
    cut = run("whatif", str(plan), "--set", "micro_batch=1,3")
    assert "cannot be: dp 32 x micro-batch 3" in " ".join(cut.out.replace("│", " ").split()) and cut.code == 0
    nothing = run("whatif", str(plan), "--set", "memory=1GiB")
    assert nothing.code == 1
    other = tmp_path / "other.yaml"
    assert run(*ASKED, "--tp", "2", "--zero", "1", "--out", str(other)).code == 0
    both = run("whatif", str(plan), str(other), "--set", "network=50..800Gb/s:3", "--by", "usd")
    assert both.code == 0 and "plan.yaml has the fewer cost" in both.out


@pytest.mark.parametrize(("options", "parts"), [
    (("--set", "network=1Gb/s", "--by", "x"), ("by: 'x'", "days, usd")), (("--replan",), ("--replan: needs a --set",)),
    (("--set", "slow_rank=2", "--replan"), ("--replan: a search does not know slow_rank",)),
    (("--set", "kernels=warp"), ("kernels", "'eager' or 'fused'")), (("--out", "x.png"), ("out: x.png", ".svg")),
    (("--set", "host_launch_s=x2"), ("host_launch_s: is 0.0 here",)), (("--out", "plan.yaml"), ("out",)),
    (("--set", "network=1Gb/s", "--set", "network=2Gb/s"), ("stands there twice",)), (("--fleet", "none such"), ("fleet",)),
])
def test_a_mistake_is_one_line(run: Run, plan: Path, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    mistake(run("whatif", str(plan), *options), *parts)


def test_measured_costs_know_no_bandwidth(run: Run, tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path / "profile.csv")
    made = run("estimate", "bytes-5m", "local:2", "--profile", str(profile), "--seq-len", "256", "--global-batch", "8",
               "--out", "l.yaml")
    assert made.code == 0, made.err
    mistake(run("whatif", "l.yaml", "--set", "network=x2"), "network: costs of this cluster were measured")
    assert run("whatif", "l.yaml").code == 0
