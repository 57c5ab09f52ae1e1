"""Reports: what the page says and does not load, and the arithmetic of comparisons."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from html import unescape
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from executor.run import Job, Run
from planner.plan import Plan, plan_from_prediction, plan_from_search, read_plan, write_plan
from planner.predict import predict_replayed
from planner.question import Question, ask
from planner.search import search
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from profiles.model import Experts
from reports.compare import (
    Row,
    compare_plan_run,
    compare_plans,
    comparison_table,
    current_prediction,
    per_cent,
    share,
    shown,
    span,
)
from reports.figures import action_spans
from reports.measured import measured_breakdown
from reports.page import drawn_windows, render_page, write_page
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


@pytest.fixture(scope="module")
def found() -> Plan:
    model, cluster = load_model("llama-3-8b"), load_cluster("dgx-h100:16")
    asked = ask(model, cluster, tokens=15e12, cluster_text="dgx-h100:16")
    return plan_from_search(asked, search(asked))


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


def test_the_page_of_a_plan_answers_in_its_first_lines(found: Plan) -> None:
    text = text_of(render_page(found))
    p = found.prediction
    for fact in (
        "Fits", shown(p["peak_memory_bytes"], "bytes"), "79.6 GiB", "128 GPUs", shown(p["usd"], "usd"),
        f"{p['days']:.0f} days", f"as of {found.question.price.date}", shown(p["tokens_per_s"], "tokens/s"),  # type: ignore[union-attr]
        f"{p['mfu']:.1%}".replace("%", " %"), found.strategy.describe(), shown(p["step_time_s"], "s"),
    ):
        assert fact in text[:1500], fact


def test_the_page_shows_alternatives_reasons_and_sources(found: Plan) -> None:
    text = text_of(render_page(found))
    for other in found.runners_up:
        assert Strategy(**other["strategy"]).describe() in text
    for rule, count in found.rejected.items():
        assert re.search(rf"{re.escape(rule)} +{count:,}", text)
    assert all(example["reason"] in text for example in found.rejected_examples)
    assert all(digest in text for digest in found.inputs.values())
    assert found.question.cluster.scale_out.source in text
    assert "headway simulate plan.yaml" in text and "schema: headway.plan/1" in text


def test_the_page_loads_nothing_and_has_no_script(found: Plan) -> None:
    page = render_page(found)
    assert not re.search(r"<(script|link|img|iframe|object|embed)\b", page)
    assert not re.search(r"""(src|href|action)\s*=\s*["'](?!#)""", page)
    assert not re.search(r"@import|url\((?!#)", page)


def test_ids_are_unique_and_every_reference_finds_its_id(found: Plan) -> None:
    page = render_page(found)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) | set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = plan_of(PIPED)
    run = run_of(plan, 1.1)
    first = write_page(plan, tmp_path / "a" / "plan.html", run=run)
    second = write_page(plan, tmp_path / "plan.html", run=run)
    assert first.read_bytes() == second.read_bytes()


SPARSE = replace(
    load_model("gpt2"), name="sparse",
    kinds=(replace(load_model("gpt2").kinds[0], ffn=Experts(num_experts=4, top_k=2, hidden=3072, activation="gelu")),),
)
CHUNKED = Strategy(dp=1, tp=2, cp=2, pp=2, ep=4, chunks=2, schedule="Interleaved1F1B", micro_batch=2, num_microbatches=4,
                   seq_len=1024, software=replace(FUSED, step_s=0.002, moment_bytes=4.0), context="all_gather")


def sparse_plan() -> Plan:
    asked = ask(SPARSE, load_cluster("dgx-h100"), tokens=1e10, cluster_text="dgx-h100", seq_len=1024, global_batch=8,
                software=CHUNKED.software)
    return plan_from_prediction(asked, predict_replayed(asked, CHUNKED)[0], None)


def test_a_rank_with_chunks_runs_each_pass_of_a_micro_batch_once_a_chunk() -> None:
    plan = sparse_plan()
    timeline = predict_replayed(plan.question, plan.strategy)[1]
    for rank in timeline.rows["rank"].unique():
        actions = action_spans(timeline.rank(rank))
        counts = actions.groupby(["pass", "microbatch"]).size().to_dict()
        assert counts == {(p, m): 2 for p in "FB" for m in range(4)} | {("U", -1): 1}
        # one thing at a time
        begin, end = (actions.sort_values("start_s")[c].to_numpy() for c in ("start_s", "end_s"))
        assert (begin[1:] >= end[:-1] - 1e-12).all()


def test_the_page_of_experts_chunks_and_a_split_sequence() -> None:
    plan = sparse_plan()
    page, text = render_page(plan), text_of(render_page(plan))
    for fact in ("cp communication", "ep communication", "2 of 4 experts of 3072", "Interleaved1F1B of 2 chunks",
                 "cp=2", "ep=4"):
        assert fact in text, fact
    # the wait at the end of a step is no communication
    assert "host communication" not in text
    assert "edited after its prediction was made" not in text
    data = compare_plan_run(plan, run_of(plan, 1.25)).as_dict()
    assert data["error"]["step_time_s"] == pytest.approx(-0.2, abs=1e-6)
    assert page == render_page(read_back(plan))


def read_back(plan: Plan) -> Plan:
    with tempfile.TemporaryDirectory() as folder:
        return read_plan(write_plan(plan, Path(folder) / "plan.yaml"))


def test_names_are_escaped() -> None:
    page = render_page(plan_of(PIPED, name="<b>x</b>"), run=run_of(plan_of(PIPED, name="<b>x</b>"), 1.0))
    assert "<b>x</b>" not in page and "&lt;b&gt;x&lt;/b&gt;" in page
    assert "<script>" not in page


def test_the_page_says_when_no_price_is_known_and_when_nothing_fits() -> None:
    strategy = replace(PLAIN, zero=0)
    asked = replace(ask(load_model("llama-3-70b"), load_cluster("dgx-h100"), tokens=1e9, seq_len=1024,
                        global_batch=int(strategy.global_batch)), price=None)
    text = text_of(render_page(plan_from_prediction(asked, predict_replayed(asked, strategy)[0], None)))
    assert "Does not fit" in text and "no price known" in text and "missing" in text


def test_the_page_embeds_a_plan_that_can_be_read_again(tmp_path: Path) -> None:
    plan = plan_of(PIPED)
    page = render_page(plan)
    embedded = page[page.index("schema: headway.plan/1"):].split("</pre>")[0]
    (tmp_path / "plan.yaml").write_text(unescape(embedded))
    again = read_plan(tmp_path / "plan.yaml")
    assert (again.strategy, again.prediction, again.inputs) == (plan.strategy, plan.prediction, plan.inputs)


def test_a_plan_whose_strategy_was_edited_is_predicted_anew_and_said_so(tmp_path: Path) -> None:
    path = write_plan(plan_of(PIPED), tmp_path / "plan.yaml")
    path.write_text(path.read_text().replace("recompute: none", "recompute: full", 1))
    plan = read_plan(path)
    prediction, edited = current_prediction(plan)
    assert edited is not None and prediction.strategy == plan.strategy
    assert prediction.step_time_s > plan.prediction["step_time_s"]
    assert "edited after its prediction was made" in render_page(plan)
    assert "edited after its prediction was made" not in render_page(plan_of(PIPED))


@pytest.mark.parametrize("damage", [{"days": None}, {"breakdown_s": 3}, {"strategy": 1}])
def test_a_damaged_prediction_is_refused_with_the_name_of_the_field(damage: dict[str, Any]) -> None:
    plan = plan_of(PIPED)
    with pytest.raises(BadInput, match=f"prediction.{next(iter(damage))}"):
        render_page(replace(plan, prediction=plan.prediction | damage))


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="a file stands where a folder is needed"):
        write_page(plan_of(PIPED), tmp_path / "file" / "plan.html")
    with pytest.raises(BadInput, match="is a folder"):
        write_page(plan_of(PIPED), tmp_path)


def test_long_steps_are_drawn_in_two_windows() -> None:
    assert drawn_windows(PIPED, 2.0) == [(0.0, 2.0)]
    first, last = drawn_windows(replace(PIPED, num_microbatches=500), 2.0)
    assert first[0] == 0.0 and last[1] == 2.0 and first[1] < last[0]
    page = render_page(plan_of(replace(PIPED, num_microbatches=100)))
    assert "100 micro-batches" in text_of(page) and len(page) < 500_000


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
    assert "Parts of the step" not in render_page(plan, run=bare)


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


def test_the_page_of_a_run_shows_the_error_whatever_it_is() -> None:
    plan = plan_of(PIPED)
    text = text_of(render_page(plan, run=run_of(plan, 4.0)))
    assert "Predicted against measured" in text and "-75.0 %" in text
    assert "0 of 4 measured steps lie between" in text
    assert "Predicted against measured" not in text_of(render_page(plan))


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
