"""`headway simulate --run`: what it prints, its keys, the bytes of a checkpoint, and one clear line for every mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import headway
from planner.plan import Plan, plan_from_prediction, write_plan
from planner.predict import predict
from planner.question import ask
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports.run_command import RunOptions, RunReport, exit_status, quantiles, run_json, run_options, simulate_plan, unit_gpus
from reports.run_tables import run_screen
from simulator.run.states import checkpoint_bytes, state_bytes_per_param, trained_params, writing_ranks
from simulator.strategy import Strategy

LLAMA = Strategy(dp=64, tp=2, zero=1, micro_batch=1, num_microbatches=8, seq_len=8192)
FEW = RunOptions(runs=20)


@pytest.fixture(scope="module")
def plan() -> Plan:
    question = ask(load_model("llama-3-8b"), load_cluster("dgx-h100:16"), tokens=3e11, global_batch=512, seq_len=8192,
                   precision="bf16", cluster_text="dgx-h100:16")
    return plan_from_prediction(question, predict(question, replace(LLAMA, software=question.software)), None)


@pytest.fixture(scope="module")
def report(plan: Plan) -> RunReport:
    return simulate_plan(plan, plan.prediction, FEW)


def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        headway.main(("simulate", *arguments))
    out, err = capfd.readouterr()
    return int(stopped.value.code or 0), out, err


def test_the_keys_that_scripts_rely_on(report: RunReport) -> None:
    data = run_json(report)
    assert {"step_time_s", "breakdown_s", "strategy", "goodput", "interruptions", "days", "gpu_hours", "usd",
            "checkpoint_interval_s"} <= set(data)
    for key in ("days", "gpu_hours", "usd"):
        assert 0 < data[key]["p10"] <= data[key]["p50"] <= data[key]["p90"]
    assert sum(data["time_shares"].values()) == pytest.approx(1.0)
    assert data["goodput"] == data["time_shares"]["productive"] < 1.0
    assert sum(data["interruptions"]["by_cause"].values()) == pytest.approx(data["interruptions"]["unplanned"])
    json.dumps(data, allow_nan=False)


def test_days_hours_and_dollars_are_those_of_the_nodes_that_are_held(plan: Plan) -> None:
    report = simulate_plan(plan, plan.prediction, replace(FEW, spares=2, fleet="none", eval_every=0))
    found = quantiles(report)
    assert found["days"]["p50"] is not None and plan.question.price is not None
    assert found["gpu_hours"]["p50"] == pytest.approx(found["days"]["p50"] * 24 * 18 * 8)
    assert found["usd"]["p50"] == pytest.approx(found["gpu_hours"]["p50"] * plan.question.price.usd_per_gpu_hour)
    # nothing fails: one checkpoint at the end, and the spread of the step alone
    days = np.array([v for v in found["days"].values() if v is not None])
    undisturbed = plan.prediction["days"] + report.case.checkpoints.stall_s / 86400
    assert days.mean() == pytest.approx(undisturbed, rel=0.05) and days[2] > days[0]


def test_one_seed_is_one_result(plan: Plan, report: RunReport) -> None:
    assert run_json(simulate_plan(plan, plan.prediction, FEW)) == run_json(report)
    assert run_json(simulate_plan(plan, plan.prediction, replace(FEW, seed=7)))["days"] != run_json(report)["days"]


def test_what_is_shown_fits_on_one_screen(report: RunReport) -> None:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(run_screen(report))
    text = console.export_text()
    assert len(text.splitlines()) <= 45 and max(map(len, text.splitlines())) <= 120
    for word in ("days", "GPU-hours", "goodput", "Young", "Daly", "spare", "waiting for nodes", "Assumed", "P90"):
        assert word in text, word


def test_an_interval_and_spares_that_are_given_are_kept(plan: Plan) -> None:
    report = simulate_plan(plan, plan.prediction, replace(FEW, checkpoint_interval="30min", spares=1, storage="50GB/s"))
    t, c = report.case.training, report.case.checkpoints
    assert c.interval_steps == round(1800 / t.step_time_s) and report.case.reserve.num_spares == 1
    assert c.stall_s == pytest.approx(report.checkpoint_bytes / 50e9)
    assert t.num_steps == -(-300_000_000_000 // (512 * 8192)) and t.num_nodes == 16


def test_asynchronous_checkpoints_stall_for_the_copy_only(plan: Plan) -> None:
    c = simulate_plan(plan, plan.prediction, replace(FEW, checkpoint="async")).case.checkpoints
    assert c.stall_s == pytest.approx(112.4e9 / 128 / 52e9, rel=0.01) and c.write_s == pytest.approx(112.4 / 12.8, rel=0.01)


def test_dates_are_shown_where_a_first_day_is_given(plan: Plan) -> None:
    dates = run_json(simulate_plan(plan, plan.prediction, replace(FEW, start="2027-01-15", fleet="none")))["end_dates"]
    assert dates["p50"] == "2027-01-19"
    assert run_json(simulate_plan(plan, plan.prediction, replace(FEW, fleet="none")))["end_dates"] is None


def test_a_run_that_does_not_end_has_no_days_and_says_no(plan: Plan, tmp_path: Path) -> None:
    fleet = tmp_path / "hopeless.yaml"
    fleet.write_text(
        "name: hopeless\nreplaced: {value: 0, source: t}\ndetection: {value: 1 h, source: t}\n"
        "restart: {value: 0 s, source: t}\n"
        "replacement: {value: 0 s, source: t}\nrepair: {median: 0 s, spread: 0, source: t}\n"
        "causes:\n- {cause: all, rate: 5 per job-hour, source: t}\n"
    )
    report = simulate_plan(plan, plan.prediction, replace(FEW, runs=3, fleet=str(fleet)))
    data = run_json(report)
    assert data["days"] == {"p10": None, "p50": None, "p90": None} and data["share_finished"] == 0.0
    assert exit_status(report) == 1
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(run_screen(report))
    assert "did not end" in console.export_text()


@pytest.mark.parametrize(("change", "parts"), [
    ({"storage": "0GB/s"}, ("storage", "more than zero")), ({"storage": "200"}, ("storage", "unit")),
    ({"spares": -1}, ("spares", "negative")), ({"fleet": "ours"}, ("fleet", "'ours'", "published")),
    ({"checkpoint_interval": "400d"}, ("checkpoint_interval", "longer than the run")),
    ({"checkpoint_interval": "0s"}, ("checkpoint_interval", "more than zero")),
    ({"checkpoint": "fast"}, ("checkpoint", "async")),
    ({"runs": 0}, ("runs", "at least 1")), ({"seed": -1}, ("seed", "negative")), ({"start": "soon"}, ("start", "2027-01-15")),
    ({"eval_every": -1}, ("eval_every", "negative")), ({"eval_batches": -1}, ("eval_batches", "negative")),
])
def test_mistakes_are_one_line(plan: Plan, change: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as e:
        simulate_plan(plan, plan.prediction, replace(FEW, **change))
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


def test_options_of_a_run_go_with_it_only() -> None:
    assert run_options(False, spares=None, seed=None) is None
    assert run_options(True, spares=3, seed=None) == RunOptions(spares=3)
    with pytest.raises(BadInput, match="--checkpoint-interval: goes with --run only"):
        run_options(False, spares=None, checkpoint_interval="auto")


def test_the_command(plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(write_plan(plan, tmp_path / "plan.yaml"))
    code, out, _ = command(capfd, path, "--run", "--runs", "5", "--json", "--elastic")
    data = json.loads(out)
    assert code == 0 and data["runs"] == 5 and data["elastic"] and data["fleet"] == "published"
    assert command(capfd, path, "--run", "--runs", "5", "--json", "--elastic")[1] == out
    code, out, _ = command(capfd, path, "--run", "--runs", "5", "--fleet", "none")
    assert code == 0 and "goodput" in out
    code, out, err = command(capfd, path, "--spares", "2")
    assert code == 2 and out == "" and err.strip() == "headway: --spares: goes with --run only"
    code, out, err = command(capfd, path, "--run", "--storage", "0GB/s")
    assert code == 2 and out == "" and err.startswith("headway: storage: ") and len(err.strip().splitlines()) == 1


def test_bytes_of_a_checkpoint_by_what_is_kept() -> None:
    model = load_model("llama-3-8b")
    assert [state_bytes_per_param(replace(LLAMA, zero=z)) for z in (0, 1, 2, 3)] == [14.0, 14.0, 12.0, 12.0]
    assert state_bytes_per_param(replace(LLAMA, precision="fp32")) == 12.0
    assert checkpoint_bytes(model, LLAMA) == 14.0 * 8_030_261_248
    # rank 16 beside q, k, v and o of 32 layers: 16 (in + out) each
    lora = replace(LLAMA, lora_rank=16)
    assert trained_params(model, lora) == 32 * 16 * ((4096 + 4096) * 2 + (4096 + 1024) * 2)
    assert trained_params(model, replace(lora, tp=8, pp=4)) == trained_params(model, lora)


def test_one_replica_writes_where_each_has_all() -> None:
    assert writing_ranks(LLAMA) == 128 and writing_ranks(replace(LLAMA, zero=0)) == 2


def test_an_elastic_job_loses_whole_nodes_and_whole_replicas() -> None:
    assert unit_gpus(Strategy(dp=8, tp=8, pp=16), 8) == 128
    assert unit_gpus(Strategy(dp=128, tp=2), 8) == 8
    assert unit_gpus(Strategy(dp=8, tp=2, pp=6), 8) == 24
    # experts over 64 ranks of one pipeline stage: 32 replicas of tp 2 belong together
    assert unit_gpus(Strategy(dp=64, tp=2, pp=2, ep=64), 8) == 128
