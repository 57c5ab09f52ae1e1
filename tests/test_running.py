"""`headway run`: its options, what it tells, dry runs, and jobs for several machines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import headway
from executor.goodput import Goodput, goodput
from executor.run import Job, job_from_dict
from planner.plan import plan_from_search, write_plan
from planner.question import ask
from planner.search import search
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports.running import data_place, default_restarts, event_text, expected_of, goodput_text, on_nodes


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cluster = load_cluster("dgx-h100:2")
    asked = ask(load_model("gpt2"), cluster, tokens=1e9, cluster_text="dgx-h100:2", global_batch=64)
    return write_plan(plan_from_search(asked, search(asked)), tmp_path_factory.mktemp("plan") / "plan.yaml")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        headway.main(["run", *arguments])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_nodes_writes_the_job_that_was_asked_for(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--steps", "500", "--checkpoint-every", "50", "--log-every", "10", "--seed", "7", "--out", str(tmp_path / "n"))
    status, out, _ = run(capsys, str(plan_file), *options, "--nodes", "slurm")
    assert status == 0 and "headway.sbatch" in out and "for you to edit" not in out
    written = job_from_dict(json.loads((tmp_path / "n" / "job.json").read_text()), "job.json")
    assert (written.num_steps, written.checkpoint_every, written.seed, written.out) == (500, 50, 7, "run")
    assert written.expected.step_time_s == pytest.approx(sum(written.expected.seconds.values()))
    assert "--nodes=2" in (tmp_path / "n" / "headway.sbatch").read_text()
    # submitted in the folder of its files
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text("#!/bin/sh\nls $1 && echo Submitted batch job 7\n")
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    status, out, _ = run(capsys, str(plan_file), *options, "--nodes", "slurm", "--submit", "--json")
    assert status == 0 and json.loads(out)["done"][-1] == "headway.sbatch\nSubmitted batch job 7"
    (programs / "sbatch").write_text("#!/bin/sh\necho no such account >&2\nexit 3\n")
    status, _, err = run(capsys, str(plan_file), *options, "--nodes", "slurm", "--submit")
    assert status == 2 and "ended with status 3: no such account" in err
    status, out, _ = run(capsys, str(plan_file), *options, "--nodes", "kubernetes")
    assert '"checkpoint_every": 50' in (tmp_path / "n" / "jobset.yaml").read_text()
    for options_, says in ((("--nodes", "pbs"), "known are slurm, kubernetes, torchrun"),
                           (("--nodes", "torchrun", "--submit"), "nothing to submit to")):
        status, _, err = run(capsys, str(plan_file), "--out", str(tmp_path / "x"), *options_)
        assert status == 2 and says in err


@pytest.mark.parametrize(("options", "says"), [
    (("--first-sample", "many"), "first_sample: 'many' is no number of samples"), (("--keep", "0"), "keep: must be at least 1"),
    (("--checkpoint-every", "-1"), "checkpoint_every: must be at least 0"), (("--grace", "soon"), "grace"),
    (("--max-restarts", "-1"), "max_restarts: must not be negative"), (("--log-every", "-2"), "log_every"),
])
def test_options_that_make_no_sense(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    status, _, err = run(capsys, str(plan_file), "--out", str(tmp_path), *options)
    assert status == 2 and says in err and err.count("\n") == 1


def test_what_is_given_and_told() -> None:
    assert data_place("96") == (96, "") and data_place("96:0f3a") == (96, "0f3a")
    with pytest.raises(BadInput):
        data_place("96:xyz")
    assert [default_restarts(None, 0), default_restarts(None, 10), default_restarts(1, 0)] == [0, 3, 1]
    events: list[tuple[dict[str, Any], str | None]] = [
        ({"event": "ready", "step": 0}, None),
        ({"event": "ready", "step": 4, "checkpoint": "run/checkpoints/step-4"}, "goes on after step 4, from run/check"),
        ({"event": "failure", "attempt": 1, "reason": "rank 1 is gone"}, "attempt 1 failed: rank 1 is gone"),
        ({"event": "drift", "cause": "data", "says": "slow"}, "drift, likely cause data: slow"),
        ({"event": "refit", "ranks": 1, "strategy": "dp=1"}, "1 ranks are left; goes on with dp=1"),
        ({"event": "damaged", "reason": "cut"}, "not used: cut"), ({"event": "launch"}, None),
        ({"event": "checkpoint_failed", "step": 3, "reason": "full"}, "checkpoint after step 3 failed, training goes on: full"),
    ]
    for line, says in events:
        text = event_text(line, 10)
        assert text is None if says is None else str(text).startswith(says)
    spent = Goodput(training_s=45.0, data_s=0.0, checkpoint_s=2.5, wasted_s=0.5, restart_s=1.0, start_s=1.0)
    assert goodput_text(spent) == ("goodput 90.0% of 50 s: training 45 s, checkpoints 2.5 s, restarts 1 s, "
                                   "wasted steps 500 ms, start and end 1 s")
    assert goodput([]).ratio == 0.0


def test_a_smaller_world_keeps_the_batch() -> None:
    from executor.elastic import smaller_strategy

    cluster = load_cluster("dgx-h100:2")
    asked = ask(load_model("gpt2"), cluster, tokens=1e9, cluster_text="dgx-h100:2", global_batch=48)
    for ranks, uses in ((16, 16), (15, 8), (8, 8), (7, 7), (0, None)):
        strategy = smaller_strategy(asked, ranks)
        assert (strategy and int(strategy.world_size)) == uses
        assert strategy is None or int(strategy.global_batch) == 48


def test_on_nodes_refuses_what_the_engine_cannot_run(plan_file: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from planner.plan import read_plan

    plan = read_plan(plan_file)
    plan = replace(plan, strategy=replace(plan.strategy, lora_rank=8))
    job = Job(model=plan.question.model, strategy=plan.strategy, out=str(tmp_path), expected=expected_of(read_plan(plan_file)))
    with pytest.raises(BadInput, match="adapters"):
        on_nodes(plan, job, "slurm", submit=False)
