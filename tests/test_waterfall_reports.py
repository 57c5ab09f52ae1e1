"""Waterfalls as reports: of plans, of runs, of one of each; sentences, table, figure, command line."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from test_reports import PIPED, PLAIN, plan_of, run_of

import headway
from executor.run import Run, write_run
from planner.plan import Plan, plan_from_prediction, write_plan
from planner.predict import predict, predict_replayed
from planner.question import ask
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports import figures
from reports.compare import compare_plan_run
from reports.compare_command import compare_paths, compare_screen, compare_sides
from reports.sides import two_sides
from reports.waterfall import NAMES, STEP, TOKEN, Waterfall, waterfall_between
from reports.waterfall_notes import NOTES
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.timeline import write_trace
from simulator.waterfall import TERMS

FUSED = Software(kernels="fused")
DEEP = Strategy(dp=1, tp=2, pp=8, num_microbatches=8, seq_len=4096, zero=1, software=FUSED)


def plan(strategy: Strategy, model: str = "llama-3-8b", cluster: str = "dgx-h100:2", tokens: float = 1e10) -> Plan:
    asked = ask(load_model(model), load_cluster(cluster), tokens=tokens, cluster_text=cluster, seq_len=strategy.seq_len,
                global_batch=int(strategy.global_batch), precision=strategy.precision)
    return plan_from_prediction(asked, predict_replayed(asked, strategy)[0], None)


def between(first: Plan | Run, second: Plan | Run) -> Waterfall:
    fall = waterfall_between(first, second)
    assert fall is not None
    assert math.fsum(c.seconds for c in fall.changes) == pytest.approx(
        fall.second_s - fall.first_s, abs=1e-9 * max(fall.first_s, fall.second_s))
    return fall


def change(fall: Waterfall, term: str) -> Any:
    return next(c for c in fall.changes if c.term == term)


PAIRS = [
    (DEEP, replace(DEEP, num_microbatches=64)), (DEEP, replace(DEEP, recompute="full", precision="fp8")),
    (replace(DEEP, pp=1, dp=8, zero=3), replace(DEEP, pp=4, chunks=2, schedule="Interleaved1F1B", dp=2)),
    (replace(DEEP, pp=1, dp=4, cp=2), replace(DEEP, pp=1, dp=8, software=Software(host_launch_s=1e-5, step_s=0.01))),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_plans_differ_by_terms_that_add_up_each_with_its_sentence(one: Strategy, other: Strategy) -> None:
    fall, back = between(plan(one), plan(other)), between(plan(other), plan(one))
    data = fall.as_dict()
    assert sum(c["seconds"] for c in data["waterfall"]) == pytest.approx(
        data["waterfall_second"] - data["waterfall_first"], rel=1e-9)
    assert {c["term"]: c["seconds"] for c in data["waterfall"]} == pytest.approx(
        {c.term: -c.seconds for c in back.changes}, abs=1e-9 * fall.first_s)
    json.dumps(data, allow_nan=False)
    for c in fall.shown:
        assert "->" in c.note, c.term
        # the numbers of the note are those of the columns, and no note goes on for two sentences
        assert len(c.note) < 220 and ". " not in c.note
    assert fall.unit == (STEP if one.tokens_per_step / one.world_size == other.tokens_per_step / other.world_size else TOKEN)
    step_s = [predict_replayed(plan(s).question, s)[0].step_time_s for s in (one, other)]
    scale = [1.0 if fall.unit == STEP else float(s.world_size / s.tokens_per_step) for s in (one, other)]
    assert (fall.first_s, fall.second_s) == pytest.approx((step_s[0] * scale[0], step_s[1] * scale[1]), rel=1e-9)


def test_every_term_has_a_name_and_a_sentence() -> None:
    assert set(TERMS) == set(NAMES) == set(NOTES)
    sides = two_sides(plan(DEEP), plan(replace(DEEP, num_microbatches=64)))
    assert sides is not None
    for term in TERMS:
        assert NOTES[term](*sides), term


def test_the_bubble_says_how_many_micro_batches_would_mend_it() -> None:
    note = change(between(plan(replace(DEEP, num_microbatches=64)), plan(DEEP)), "bubble").note
    assert "64 micro-batches on 8 stages -> 8 micro-batches on 8 stages" in note
    found = re.search(r"; (\d+) micro-batches would leave about 5\.0 %", note)
    assert found is not None
    mended = replace(DEEP, num_microbatches=int(found[1]))
    parts = predict_replayed(plan(mended).question, mended)[0]
    assert parts.breakdown_s["bubble"] / parts.step_time_s == pytest.approx(0.05, abs=0.01)


def test_notes_name_the_wire_the_peak_and_the_policy() -> None:
    far = plan(replace(DEEP, tp=16, pp=1))
    note = change(between(plan(DEEP), far), "exposed_tp").note
    assert "tp=2 inside a node, NVLink4 450 GB/s -> tp=16 over 2 nodes, IB NDR 50 GB/s" in note
    other = plan(replace(DEEP, recompute="full", precision="fp8"))
    fall = between(plan(DEEP), other)
    assert "989.4 TFLOP/s -> 1." in change(fall, "peak").note and "in bf16 ->" in change(fall, "peak").note
    assert "recompute none -> full" in change(fall, "recompute").note
    assert change(fall, "peak").seconds < 0 < change(fall, "recompute").seconds


def test_a_plan_whose_file_states_another_step_says_so() -> None:
    strategy = replace(DEEP, layers="1-1-1-1-1-1-1-25")
    asked = plan(strategy).question
    stated = plan_from_prediction(asked, predict(asked, strategy), None)
    off = replace(stated, prediction=stated.prediction | {"step_time_s": 2 * stated.prediction["step_time_s"],
                                                           "days": 2 * stated.prediction["days"]})
    assert not between(plan(DEEP), plan(strategy)).remarks
    (remark,) = between(off, plan(strategy)).remarks
    assert remark.startswith("A: the plan states a step of ")


def test_a_run_a_quarter_slower_is_slower_in_all_that_it_records() -> None:
    own = plan_of(PIPED)
    fall = between(own, run_of(own, 1.25))
    assert fall.sides == ("predicted", "measured") and fall.unit == STEP
    found = {c.term: c for c in fall.changes}
    predicted = {t: c.first.value * fall.first_s for t, c in found.items() if c.first and t not in ("model_work", "recompute")}
    for term in ("forward", "backward", "optimizer"):
        assert found[term].seconds == pytest.approx(0.25 * predicted[term], rel=0.02), term
    assert "model_work" not in {c.term for c in fall.shown} and "recompute" not in {c.term for c in fall.shown}
    assert between(own, run_of(own, 1.0)).second_s == pytest.approx(fall.first_s, rel=1e-9)


def test_a_slow_rank_of_a_run_is_a_straggler() -> None:
    own = plan_of(replace(PIPED, pp=1, dp=4))
    even = run_of(own, 1.0)
    rows = pd.concat([even.timeline.assign(rank=rank) for rank in range(8)], ignore_index=True)
    early = (rows["rank"] != 5) & rows["pass"].isin(("F", "B"))
    others = rows.assign(end_s=rows["end_s"].where(~early, rows["start_s"] + 0.8 * (rows["end_s"] - rows["start_s"])))
    fall = between(replace(even, timeline=rows), replace(even, timeline=others))
    passes = rows[(rows["rank"] == 5) & rows["pass"].isin(("F", "B"))]
    last_step = passes[passes["start_s"] >= rows.loc[rows["op"] == "step", "start_s"].max()]
    # seven of eight ranks take a fifth less
    own_s = (last_step["end_s"] - last_step["start_s"]).sum()
    assert change(fall, "stragglers").seconds == pytest.approx(7 / 8 * 0.2 * own_s, rel=1e-6)
    assert {c.term for c in fall.shown} <= {"stragglers", "waiting", "forward", "backward"}


def test_two_runs_of_other_shapes_are_compared_by_the_token() -> None:
    first, second = (plan_of(s) for s in (PIPED, replace(PLAIN, recompute="full")))
    a, b = run_of(first, 1.0), run_of(second, 1.5)
    fall = between(a, b)
    assert fall.unit == TOKEN and fall.sides == ("A", "B")
    assert fall.first_s == pytest.approx(8 / a.tokens_per_s) and fall.second_s == pytest.approx(8 / b.tokens_per_s)
    assert change(fall, "recompute").seconds > 0 and "none -> full" in change(fall, "recompute").note
    data = compare_sides(a, b).as_dict()
    assert data["a_step_time_s"] == a.step_time_s and data["b_final_loss"] == b.losses[-1]
    assert set(data["a_breakdown_s"]) == {"passes", "optimizer", "waiting"}


def test_a_run_that_recorded_only_steps_has_no_waterfall() -> None:
    own = plan_of(PIPED)
    run = run_of(own, 1.0)
    bare = replace(run, timeline=run.timeline[run.timeline["op"] == "step"])
    assert waterfall_between(own, bare) is None and waterfall_between(run, bare) is None
    assert len(compare_screen(compare_plan_run(own, bare), None)) == 1


def test_the_screen_shows_both_ends_and_every_term_that_counts() -> None:
    first, second = plan(DEEP), plan(replace(DEEP, recompute="full"))
    fall = between(first, second)
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        for table in compare_screen(compare_sides(first, second), fall):
            console.print(table)
    text = captured.get()
    assert "model FLOP/s per GPU" in text and "From A to B, s of a step" in text and "recomputation" in text
    assert "pipeline bubble" in text and "exposed tp communication" not in text


def test_the_figure_has_a_bar_for_each_term_and_the_same_bytes_each_time() -> None:
    fall = between(plan(DEEP), plan(replace(DEEP, recompute="full", num_microbatches=16)))
    ends = (fall.first_s, fall.second_s)
    svg, again = (figures.svg(figures.between(fall.frame, fall.sides, ends, "time of a step"), "x", "x") for _ in range(2))
    assert svg == again
    assert svg.startswith("<svg") and all(f">{name}</text>" in svg for name in fall.frame["name"])
    assert fall.frame["seconds"].sum() == pytest.approx(fall.second_s - fall.first_s, rel=1e-6)
    same = between(plan(DEEP), plan(DEEP))
    assert same.frame.empty and len(figures.between(same.frame, same.sides, (1.0, 1.0), "time of a step").axes[0].patches) == 2


def invoke(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        headway.main([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def test_the_command_line_compares_plans_and_runs_in_any_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = plan_of(PIPED)
    a, b = write_plan(own, tmp_path / "a.yaml"), write_plan(plan_of(PLAIN), tmp_path / "b.yaml")
    run = write_run(run_of(own, 1.25), tmp_path / "run")
    assert invoke("compare", a, b, "--json", "--figure", tmp_path / "ab.svg") == 0
    data = json.loads(capfd.readouterr().out)
    assert sum(c["seconds"] for c in data["waterfall"]) == pytest.approx(
        data["waterfall_second"] - data["waterfall_first"], rel=1e-9)
    assert {"term", "seconds", "first", "second", "unit", "note"} == set(data["waterfall"][0])
    assert (tmp_path / "ab.svg").read_text().startswith("<svg") and data["a_step_time_s"] > 0
    found = []
    for pair in ((a, run), (run, a), (run, run)):
        assert invoke("compare", *pair, "--json") == 0
        found.append(json.loads(capfd.readouterr().out))
    assert found[0] == found[1] and found[0]["waterfall_second"] == pytest.approx(found[2]["waterfall_first"])
    assert all(c["seconds"] == 0 for c in found[2]["waterfall"])
    assert invoke("compare", a, run) == 0 and "From predicted to measured" in capfd.readouterr().out


def test_mistakes_of_compare_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = plan_of(PIPED)
    a, run = write_plan(own, tmp_path / "a.yaml"), write_run(run_of(own, 1.0), tmp_path / "run")
    trace = write_trace(tmp_path / "t.json.gz", predict_replayed(own.question, own.strategy)[1], {})
    for arguments, says in (
        ((a, trace, "--figure", tmp_path / "x.svg"), "there is no waterfall of traces"),
        ((run, trace), "traces are compared with a plan file"), ((a, a, "--figure", a), "give another name"),
        ((a, tmp_path / "none.yaml"), "no such file"),
    ):
        assert invoke("compare", *arguments) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and says in lines[0]
    assert a.read_text().startswith("schema") and not (tmp_path / "x.svg").exists()
    with pytest.raises(BadInput, match="only of traces can there be several"):
        compare_paths(a, [a, a], lambda share: None)
