"""Reports: what the page says and does not load, and the arithmetic of comparisons."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from executor.run import Job, Run
from planner.plan import Plan, plan_from_prediction
from planner.predict import predict_replayed
from planner.question import Question, ask
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports.compare import (
    Row,
    compare_plan_run,
    compare_plans,
    comparison_table,
    per_cent,
    share,
    shown,
    span,
)
from reports.figures import action_spans
from reports.measured import measured_breakdown
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.timeline import COLUMNS

FUSED = Software(kernels="fused")
PIPED = Strategy(dp=2, tp=2, pp=2, zero=0, micro_batch=2, num_microbatches=4, seq_len=1024, software=FUSED)
PLAIN = Strategy(dp=8, zero=2, micro_batch=2, num_microbatches=2, seq_len=1024, software=FUSED)
NUM_STEPS, NUM_WARMUP_STEPS = 6, 2


def question(strategy: Strategy, name: str = "gpt2") -> Question:
    model = replace(load_model("gpt2"), name=name)
    return ask(model, load_cluster("dgx-h100"), tokens=1e10, cluster_text="dgx-h100", seq_len=strategy.seq_len,
               global_batch=int(strategy.global_batch))


def plan_of(strategy: Strategy, name: str = "gpt2") -> Plan:
    asked = question(strategy, name)
    return plan_from_prediction(asked, predict_replayed(asked, strategy)[0], None)


def run_of(plan: Plan, slower: float, device: str = "cuda") -> Run:
    """Return a run whose every action took `slower` times what the replay says; in the warm-up three times that."""
    _, timeline = predict_replayed(plan.question, plan.strategy)
    rows: list[dict[str, Any]] = []
    times, begin = [], 0.0
    for step in range(NUM_STEPS):
        factor = slower * (3.0 if step < NUM_WARMUP_STEPS else 1.0)
        for rank in timeline.rows["rank"].unique():
            for action in action_spans(timeline.rank(rank)).to_dict("records"):
                rows.append({"pass": action["pass"], "microbatch": action["microbatch"], "op": action["pass"],
                             "rank": rank, "start_s": begin + factor * action["start_s"],
                             "end_s": begin + factor * action["end_s"]})
            rows.append({"pass": "", "microbatch": -1, "op": "step", "rank": rank, "start_s": begin,
                         "end_s": begin + factor * timeline.step_time_s})
        times.append(factor * timeline.step_time_s)
        begin += times[-1] + 0.01
    frame = pd.DataFrame(rows).assign(stream="compute", layer=-1, bytes=0, source="measured")[list(COLUMNS)]
    world = int(plan.strategy.world_size)
    return Run(
        job=Job(model=plan.question.model, strategy=plan.strategy, out="run", num_steps=NUM_STEPS,
                num_warmup_steps=NUM_WARMUP_STEPS, device=device),
        environment={"torch": "<script>"}, step_times_s=tuple(times),
        losses=tuple(10.0 - step for step in range(NUM_STEPS)), idle_memory_bytes=(0,) * world,
        peak_memory_bytes=tuple(10**9 + rank for rank in range(world)), reserved_memory_bytes=(2 * 10**9,) * world,
        timeline=frame,
    )


def test_the_error_is_signed_and_relative_to_what_was_measured() -> None:
    row = Row(key="k", quantity="q", unit="s", first=1.1, second=1.0)
    assert row.error == pytest.approx(0.1) and per_cent(row.error) == "+10.0 %"
    assert replace(row, first=0.5).error == -0.5
    assert replace(row, second=None).error is None and replace(row, second=0.0).error is None


@pytest.mark.parametrize("strategy", [PIPED, PLAIN], ids=["pipeline", "sharded"])
def test_a_run_that_is_a_quarter_slower_is_predicted_a_fifth_too_low(strategy: Strategy) -> None:
    plan = plan_of(strategy)
    run = run_of(plan, 1.25)
    data = compare_plan_run(plan, run).as_dict()
    assert data["step_time_s"] == run.step_time_s
    assert data["predicted_step_time_s"] == plan.prediction["step_time_s"]
    assert data["error"]["step_time_s"] == pytest.approx(-0.2, abs=1e-6)
    assert data["error"]["tokens_per_s"] == pytest.approx(0.25, abs=1e-6)
    assert data["peak_memory_bytes"] == max(run.peak_memory_bytes)
    assert data["final_loss"] == run.losses[-1]
    for side, total in (("predicted_", data["predicted_step_time_s"]), ("", data["step_time_s"])):
        assert sum(data[f"{side}breakdown_s"].values()) == pytest.approx(total, rel=1e-6)
    assert data["error"]["optimizer"] == pytest.approx(-0.2, abs=1e-6)


def test_allocated_memory_on_cuda_is_compared_without_framework_and_slack() -> None:
    plan = plan_of(PIPED)
    parts = plan.prediction["memory_bytes"]
    on_cuda, on_cpu = (compare_plan_run(plan, run_of(plan, 1.0, d)).row("peak_memory_bytes") for d in ("cuda", "cpu"))
    assert on_cpu.first == plan.prediction["peak_memory_bytes"]
    assert on_cuda.first == pytest.approx(plan.prediction["peak_memory_bytes"] - parts["framework"] - parts["slack"])


def test_the_warm_up_is_left_out_of_a_measured_breakdown() -> None:
    plan = plan_of(PIPED)
    run = run_of(plan, 1.0)
    parts = measured_breakdown(run)
    assert parts is not None
    assert sum(parts.values()) == pytest.approx(median(run.step_times_s[NUM_WARMUP_STEPS:]))


def test_a_run_that_recorded_only_steps_is_compared_without_parts() -> None:
    plan = plan_of(PIPED)
    run = run_of(plan, 1.0)
    bare = replace(run, timeline=run.timeline[run.timeline["op"] == "step"])
    assert compare_plan_run(plan, bare).breakdown == ()
    assert compare_plan_run(plan, run).breakdown


def test_a_run_of_another_strategy_is_refused() -> None:
    with pytest.raises(BadInput, match="run: trained"):
        compare_plan_run(plan_of(PLAIN), run_of(plan_of(PIPED), 1.0))


def test_two_plans_differ_by_the_sum_of_their_parts() -> None:
    comparison = compare_plans(plan_of(PIPED), plan_of(PLAIN))
    difference = comparison.row("step_time_s").difference
    assert sum(row.difference or 0.0 for row in comparison.breakdown) == pytest.approx(difference, rel=1e-4)
    data = comparison.as_dict()
    assert data["a_usd"] == plan_of(PIPED).prediction["usd"] and data["b_days"] == plan_of(PLAIN).prediction["days"]
    same = compare_plans(plan_of(PIPED), plan_of(PIPED))
    assert {row.error for row in same.rows} == {0.0}
    assert comparison.row("tokens_per_step").first == PIPED.tokens_per_step


def test_the_terminal_shows_both_sides_and_the_error() -> None:
    plan = plan_of(PIPED, name="x[bold]y")
    console = Console(width=160, force_terminal=False)
    with console.capture() as captured:
        console.print(comparison_table(compare_plan_run(plan, run_of(plan, 1.25))))
    assert "-20.0 %" in captured.get() and "(predicted - measured) / measured" in captured.get()
    assert "x[bold]y" in captured.get()


@pytest.mark.parametrize(("value", "unit", "text"), [
    (0.0, "s", "0 s"), (113.0, "s", "113 s"), (0.0307, "s", "30.7 ms"), (None, "s", "-"), (0.63, "ratio", "63.0 %"),
    (1.5e6, "tokens/s", "1.5 M tokens/s"), (10770.4, "tokens/s", "10,770 tokens/s"), (2**30, "bytes", "1 GiB"),
    (1.14e6, "usd", "1.14 MUSD"), (125.93, "days", "126 days"),
])
def test_quantities_are_shown_with_their_unit(value: float | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_shares_and_ranges_keep_their_digits() -> None:
    assert [share(r) for r in (1.0, 0.012, 0.000246, 0.0)] == ["100.0 %", "1.2 %", "0.02 %", "0.0 %"]
    assert span(2.71, 3.42, "s") == "2.71 to 3.42 s" and span(0.9, 1.2, "s") == "900 ms to 1.2 s"
