"""The step in the report: its table, its zoom, its pictures, experts and chunks in them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_page import text_of
from test_reports import FUSED, PIPED, plan_of, run_of

from planner.plan import Plan, plan_from_prediction, read_plan, write_plan
from planner.predict import predict_replayed
from planner.question import ask
from profiles.families import load_model
from profiles.hardware import load_cluster
from profiles.model import Experts
from reports.compare import compare_plan_run
from reports.figures import action_spans
from reports.page import render_page
from reports.page.step import MOST_SPANS, TICKS, drawn_windows, zoom_json
from simulator.strategy import Strategy
from simulator.timeline import Timeline

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
    text = text_of(render_page(read_back(plan)))
    for fact in ("cp communication", "ep communication", "2 of 4 experts of 3072", "Interleaved1F1B of 2 chunks",
                 "cp=2", "ep=4"):
        assert fact in text, fact
    # the wait at the end of a step is no communication
    assert "host communication" not in text
    assert "edited after its prediction was made" not in text
    data = compare_plan_run(plan, run_of(plan, 1.25)).as_dict()
    assert data["error"]["step_time_s"] == pytest.approx(-0.2, abs=1e-6)


def read_back(plan: Plan) -> Plan:
    with tempfile.TemporaryDirectory() as folder:
        return read_plan(write_plan(plan, Path(folder) / "plan.yaml"))


def zoomed(plan: Plan) -> tuple[Timeline, dict[str, Any]]:
    timeline = predict_replayed(plan.question, plan.strategy)[1]
    rows = dict(iter(timeline.rows.groupby("rank")))
    return timeline, json.loads(zoom_json(rows, {int(r): f"rank {r}" for r in rows}, timeline.step_time_s))


def test_the_zoom_holds_every_pass_of_every_rank() -> None:
    timeline, data = zoomed(plan_of(PIPED))
    kinds = [kind[0] for kind in data["kinds"]]
    assert [row["name"] for row in data["rows"]] == [f"rank {r}" for r in timeline.rows["rank"].unique()]
    assert data["ticks"] == TICKS
    for row, rank in zip(data["rows"], timeline.rows["rank"].unique(), strict=True):
        spans = np.array(row["spans"]).reshape(-1, 4)
        passes = [(kinds[k], m) for k, _, _, m in spans.tolist() if kinds[k] in "FBWU"]
        assert sorted(passes) == sorted([(p, m) for p in "FB" for m in range(4)] + [("U", -1)])
        actions = action_spans(timeline.rank(rank))
        busy = spans[[kinds[k] in "FBWU" for k in spans[:, 0]]][:, 2].sum() / TICKS * timeline.step_time_s
        assert busy == pytest.approx(float((actions["end_s"] - actions["start_s"]).sum()), rel=1e-4)
        assert (spans[:, 1] + spans[:, 2]).max() <= TICKS


def test_a_long_step_has_fewer_spans_that_cover_the_same_time() -> None:
    data = zoomed(plan_of(replace(PIPED, num_microbatches=9000)))[1]
    assert sum(len(row["spans"]) // 4 for row in data["rows"]) <= 2 * MOST_SPANS + 100
    spans = np.array(data["rows"][0]["spans"]).reshape(-1, 4)
    covered = np.zeros(TICKS // 100)
    for _, start, length, _ in spans[spans[:, 0] < 4].tolist():
        covered[start // 100 : (start + length) // 100 + 1] = 1
    assert covered.mean() > 0.95


def test_long_steps_are_drawn_in_two_windows() -> None:
    assert drawn_windows(PIPED, 2.0) == [(0.0, 2.0)]
    first, last = drawn_windows(replace(PIPED, num_microbatches=500), 2.0)
    assert first[0] == 0.0 and last[1] == 2.0 and first[1] < last[0]
