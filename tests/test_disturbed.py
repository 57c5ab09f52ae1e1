"""`headway simulate` on a machine that is not as it should be, and with a schedule of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Result, mistake

from executor.run import Job
from profiles.files import BadInput
from simulator.schedules import build_schedule, format_table

Run = Callable[..., Result]


@pytest.fixture
def plan(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    found = run("estimate", "llama-3-8b", "dgx-h100:4", "--tp", "4", "--pp", "4", "--zero", "1", "--global-batch", "32",
                "--out", str(path))
    assert found.code == 0, found.err
    return path


def figures(run: Run, plan: Path, *options: str) -> dict[str, Any]:
    found = run("simulate", str(plan), *options, "--json")
    assert found.code == 0, found.err
    result: dict[str, Any] = json.loads(found.out)
    return result


def test_a_slow_gpu_slows_the_job_and_noise_more(run: Run, plan: Path) -> None:
    healthy, slow = figures(run, plan), figures(run, plan, "--slow-gpu", "5=1.5", "--slow-node", "1=2")
    assert slow["step_time_s"] > healthy["step_time_s"]
    assert slow["disturbed"]["healthy_s"] == pytest.approx(healthy["step_time_s"])
    assert slow["disturbed"]["slowdown"] == pytest.approx(slow["step_time_s"] / healthy["step_time_s"])
    noisy = figures(run, plan, "--slow-gpu", "5=1.5", "--slow-node", "1=2", "--speed-spread", "3%", "--jitter", "0.01",
                    "--steps", "50")
    assert noisy["disturbed"]["p10_s"] <= noisy["disturbed"]["p50_s"] <= noisy["disturbed"]["p90_s"]
    assert noisy["disturbed"]["slowdown"] > slow["disturbed"]["slowdown"]
    assert "disturbed" not in healthy
    assert "the job" in run("simulate", str(plan), "--pauses", "5ms/1s").out


def test_a_schedule_of_ones_own_is_replayed(run: Run, plan: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text(format_table(build_schedule("1F1B", 4, 16)))
    same_s = figures(run, plan, "--schedule", str(own))["step_time_s"]
    assert same_s == pytest.approx(figures(run, plan)["step_time_s"], rel=1e-12)
    # one forward before its turn
    rows = build_schedule("1F1B", 4, 16)
    rows[3][1:3] = rows[3][2:0:-1]
    own.write_text(format_table(rows))
    assert figures(run, plan, "--schedule", str(own))["step_time_s"] > figures(run, plan)["step_time_s"]


def test_a_schedule_of_ones_own_is_the_one_that_trains(
    run: Run, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, asked = tmp_path / "own.csv", list[str]()
    own.write_text(format_table(build_schedule("1F1B", 4, 16)))

    def launch(job: Job, *_: object, **__: object) -> Run:
        asked.append(job.table)
        raise BadInput("device: stop here")

    monkeypatch.setattr("reports.verbs.run.launch", launch)
    mistake(run("run", str(plan), "--schedule", "own.csv"), "stop here")
    mistake(run("run", str(plan)), "stop here")
    assert asked == [str(own), ""]
    own.write_text("0F0,0B0\n1F0,1B0\n")
    mistake(run("run", str(plan), "--schedule", "own.csv"), "has 2 pipeline ranks, the plan has 4")


@pytest.mark.parametrize(("options", "parts"), [
    (("--slow-gpu", "32=2"), ("slow rank: 32 is not there; the job has 32",)),
    (("--slow-gpu", "x"), ("--slow-gpu: 'x'", "17=1.2")),
    (("--slow-node", "0=-1"), ("slow node 0: the factor must be above 0",)),
    (("--pauses", "5ms"), ("--pauses: '5ms'", "5ms/1s")),
    (("--jitter", "x"), ("--jitter: 'x'", "2% or 0.02")), (("--steps", "9"), ("--steps: goes with --speed-spread",)),
    (("--jitter", "1%", "--steps", "0"), ("steps: must be at least 1",)),
])
def test_a_mistake_is_one_line(run: Run, plan: Path, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    mistake(run("simulate", str(plan), *options), *parts)


@pytest.mark.parametrize(("text", "parts"), [
    ("0F0,0B0\n1B0,1F0\n", ("deadlock", "1B0 on rank 1 waits for 1F0")),
    ("0F0,0B0\n1F0,1B0\n", ("has 2 pipeline ranks, the plan has 4",)),
    (format_table(build_schedule("ZBH1", 4, 16)), ("splits backward", "ZBH1")),
    ("0F0,x\n", ("line 1, cell 2: 'x' is not an action",)),
])
def test_a_table_that_cannot_be_replayed_is_one_line(
    run: Run, plan: Path, tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    (tmp_path / "own.csv").write_text(text)
    mistake(run("simulate", str(plan), "--schedule", str(tmp_path / "own.csv")), *parts)


def test_an_order_that_is_none_is_one_line(run: Run) -> None:
    mistake(run("estimate", "llama-3-8b", "dgx-h100:4", "--order", "tp-pp"), "order: 'tp-pp'", "tp-cp-dp-pp")
