"""A plan against traces of it: a replay against itself is no error, and what a profiler saw stands kind by kind."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from trace_files import gpu_step

import headway
from planner.plan import Plan, plan_from_prediction, write_plan
from planner.predict import predict_replayed
from planner.question import ask
from profiles.cost import cost_model
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports.compare import comparison_table
from reports.console import console
from reports.traced import compare_plan_trace, kernel_seconds, trace_files
from simulator.breakdown import breakdown
from simulator.layout import distinct_ranks
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.timeline import Timeline, write_trace
from simulator.workload import build_workload

PIPED = Strategy(dp=2, tp=2, pp=2, micro_batch=2, num_microbatches=4, seq_len=1024, software=Software(kernels="fused"))


def plan_of(strategy: Strategy) -> Plan:
    asked = ask(load_model("gpt2"), load_cluster("dgx-h100"), tokens=1e10, cluster_text="dgx-h100", seq_len=strategy.seq_len,
                global_batch=int(strategy.global_batch))
    return plan_from_prediction(asked, predict_replayed(asked, strategy)[0], None)


def replayed(plan: Plan) -> Timeline:
    return predict_replayed(plan.question, plan.strategy)[1]


@pytest.mark.parametrize("strategy", [PIPED, replace(PIPED, pp=1, dp=4, zero=3), replace(PIPED, schedule="ZBH1")])
def test_a_replay_against_its_own_trace_has_no_error(tmp_path: Path, strategy: Strategy) -> None:
    plan = plan_of(strategy)
    path = write_trace(tmp_path / "t.json.gz", replayed(plan), {})
    comparison = compare_plan_trace(plan, [path])
    for row in (*comparison.rows, *comparison.breakdown):
        assert row.second == pytest.approx(row.first, rel=1e-5, abs=1e-7), row
    sums = {section: [sum(getattr(r, side) or 0.0 for r in comparison.work if r.key.startswith(section))
                      for side in ("first", "second")] for section in ("forward", "backward", "update", "communication")}
    for section, (first, second) in sums.items():
        assert second == pytest.approx(first, rel=1e-5, abs=1e-7), section
    assert sums["forward"][0] > 0 and sums["backward"][0] > sums["forward"][0] and sums["communication"][0] > 0


def test_the_rank_that_was_traced_is_compared_with_its_stage(tmp_path: Path) -> None:
    plan = plan_of(PIPED)
    whole = replayed(plan)
    for stage, rank in enumerate(distinct_ranks(PIPED)):
        one = Timeline(rows=whole.rank(rank), step_time_s=whole.step_time_s)
        comparison = compare_plan_trace(plan, [write_trace(tmp_path / "t.json", one, {})])
        assert comparison.facts == {"rank": rank, "stage": stage}
        assert comparison.row("compute").first == pytest.approx(breakdown(one)["compute"])


@pytest.mark.parametrize(("schedule", "chunks"), [("1F1B", 1), ("ZBV", 2)])
def test_kinds_of_kernels_add_up_to_the_replayed_passes(schedule: str, chunks: int) -> None:
    """Where the host is never late and nothing runs beside, a forward pass is its kernels and nothing else."""
    strategy = replace(PIPED, dp=1, tp=1, schedule=schedule, chunks=chunks)
    workload = build_workload(load_model("gpt2"), strategy)
    cost = cost_model(load_cluster("dgx-h100"))
    rows = replayed(plan_of(strategy)).rows
    rows = rows[(rows["stream"] == "compute") & (rows["pass"] == "F")]
    for stage, rank in enumerate(distinct_ranks(strategy)):
        own = rows[rows["rank"] == rank]
        kinds = kernel_seconds(workload, cost, stage)
        assert sum(s for (pass_, _), s in kinds.items() if pass_ == "forward") == pytest.approx(
            float((own["end_s"] - own["start_s"]).sum()))
        assert {"gemm", "attention", "norm", "pointwise"} <= {kind for _, kind in kinds}
        last = 0 if schedule == "ZBV" else 1
        assert (("forward", "loss") in kinds) == (stage == last) and (("forward", "embedding") in kinds) == (stage == 0)


def test_full_recomputation_is_backward() -> None:
    workload, cost = build_workload(load_model("gpt2"), PIPED), cost_model(load_cluster("dgx-h100"))
    plain = kernel_seconds(workload, cost, 0)
    again = kernel_seconds(build_workload(load_model("gpt2"), replace(PIPED, recompute="full")), cost, 0)
    assert again["forward", "gemm"] == plain["forward", "gemm"]
    assert plain["backward", "gemm"] < again["backward", "gemm"] < plain["backward", "gemm"] + plain["forward", "gemm"] * 1.001


def test_a_profilers_trace_stands_beside_the_prediction(tmp_path: Path) -> None:
    plan = plan_of(PIPED)
    made = gpu_step()
    made.events = [e for e in made.events if e["name"] not in ("ProfilerStep#4", "ProfilerStep#6")]
    path = made.write(tmp_path / "rank0.json")
    (tmp_path / "notes.json").write_text('{"a": 1}')
    assert trace_files([tmp_path]) == [path] and trace_files([tmp_path / "notes.json"]) == []
    assert trace_files([path, tmp_path / "notes.json"]) == [path, tmp_path / "notes.json"], "what is given is read, or refused"
    comparison = compare_plan_trace(plan, [path])
    assert comparison.row("step_time_s").second == pytest.approx(110e-6)
    assert comparison.row("compute").second == pytest.approx(35e-6)
    assert comparison.row("forward_attention").second == pytest.approx(5e-6)
    assert comparison.row("communication_dp").second == pytest.approx(25e-6)
    assert comparison.row("forward_attention").first > 0  # type: ignore[operator]
    data = comparison.as_dict()
    assert data["work_s"]["update_optimizer"] == pytest.approx(30e-6) and data["rank"] == 0
    assert data["predicted_step_time_s"] == pytest.approx(plan.prediction["step_time_s"], rel=1e-6)
    with console.capture() as shown:
        console.print(comparison_table(comparison))
    assert "forward, attention" in shown.get() and "pipeline bubble" in shown.get()


def invoke(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        headway.main([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def test_the_command_line_writes_traces_and_compares_with_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan, trace = tmp_path / "plan.yaml", tmp_path / "t.json.gz"
    write_plan(plan_of(PIPED), plan)
    assert invoke("simulate", plan, "--trace", trace) == 0
    assert gzip.decompress(trace.read_bytes()).startswith(b'{"displayTimeUnit"')
    capfd.readouterr()
    assert invoke("compare", plan, trace, "--json") == 0
    data = json.loads(capfd.readouterr().out)
    assert data["step_time_s"] == pytest.approx(data["predicted_step_time_s"]) and data["error"]["compute"] < 1e-5
    ranks = [gpu_step(rank).write(tmp_path / f"rank{rank}.json") for rank in (0, 4)]
    assert invoke("compare", plan, *ranks, "--json") == 0
    assert json.loads(capfd.readouterr().out)["stage"] in (0, 1)
    ranks[1].write_text(ranks[1].read_text()[:900])
    for wrong, says in ((ranks, "is cut"), ([plan, plan], "give one plan file or run folder")):
        assert invoke("compare", plan, *wrong) == 2
        lines = capfd.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and says in lines[0]


def test_a_trace_of_more_ranks_than_the_plan_is_refused(tmp_path: Path) -> None:
    path = gpu_step(rank=8).write(tmp_path / "t.json")
    with pytest.raises(BadInput, match="is of rank 8; the plan has 8 ranks"):
        compare_plan_trace(plan_of(PIPED), [path])
