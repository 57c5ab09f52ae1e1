"""Jobs, runs, refusals, data order, and launching: what comes back, what is refused, what a failure leaves."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor import data
from executor.engine import refusal
from executor.launch import check_launch, child_environment, launch, tail
from executor.run import LOG_FILE, RUN_FILE, TIMELINE_FILE, Job, Run, job_as_dict, job_from_dict, read_run, write_run
from profiles.families.llama import llama_spec
from profiles.files import BadInput
from profiles.model import Experts
from simulator.schedules import SCHEDULES, build_schedule, format_table, parse_table
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.timeline import COLUMNS

SPEC = llama_spec(
    name="tiny", num_layers=2, hidden=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_hidden=128,
    vocab=256, max_seq_len=64,
)
EXPERTS = replace(SPEC, family="mixtral", kinds=(replace(SPEC.kinds[0], ffn=Experts(num_experts=4, top_k=2, hidden=32)),))
FUSED = Software(kernels="fused")
ZBV: dict[str, Any] = {"pp": 2, "schedule": "ZBV", "chunks": 2}
STRATEGY = Strategy(precision="fp32", seq_len=32, micro_batch=2, num_microbatches=2)


def job(tmp_path: Path, **changes: Any) -> Job:
    defaults: dict[str, Any] = {"model": SPEC, "strategy": STRATEGY, "out": str(tmp_path / "run"), "num_steps": 5}
    return Job(**defaults | changes)


def some_run(tmp_path: Path) -> Run:
    rows = [(0, "compute", 0.0, 1.0, "forward", "F", -1, 0, 0, "measured"),
            (0, "compute", 0.0, 2.5, "step", "", -1, -1, 0, "measured")]
    return Run(
        job=job(tmp_path), environment={"torch": "2.13.0"}, step_times_s=(9.0, 9.0, 9.0, 2.0, 4.0),
        losses=(5.0, 4.0, 3.0, 2.0, 1.0), idle_memory_bytes=(1,), peak_memory_bytes=(2,), reserved_memory_bytes=(3,),
        timeline=pd.DataFrame(rows, columns=list(COLUMNS)),
    )


def test_medians_leave_the_warm_up_out(tmp_path: Path) -> None:
    run = some_run(tmp_path)
    assert run.step_time_s == 3.0
    assert (run.p10_s, run.p90_s) == pytest.approx((2.2, 3.8))
    assert run.tokens_per_s == pytest.approx(2 * 2 * 32 / 3.0)


def test_run_folder_round_trip(tmp_path: Path) -> None:
    run = some_run(tmp_path)
    again = read_run(write_run(run, tmp_path / "folder"))
    pd.testing.assert_frame_equal(again.timeline, run.timeline)
    for field in ("job", "environment", "step_times_s", "losses", "idle_memory_bytes", "peak_memory_bytes"):
        assert getattr(again, field) == getattr(run, field)


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[: path.stat().st_size // 2])


def _drop(field: str) -> Any:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[field]
        path.write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(("name", "damage", "says"), [
    (RUN_FILE, Path.unlink, "no such file"), (RUN_FILE, _cut, "not JSON"), (RUN_FILE, _drop("losses"), "losses"),
    (RUN_FILE, _drop("job"), "job"), (RUN_FILE, lambda p: p.write_text("[]"), "mapping"),
    (RUN_FILE, lambda p: p.write_bytes(b"\xff\xfe"), "UTF-8"),
    (RUN_FILE, lambda p: p.write_text(p.read_text().replace('"num_heads": 4', '"num_heads": "four"')), "num_heads"),
    (RUN_FILE, lambda p: p.write_text(p.read_text().replace('"num_steps": 5', '"num_steps": 7')), "7 steps"),
    (TIMELINE_FILE, Path.unlink, "no such file"), (TIMELINE_FILE, lambda p: p.write_text(""), "not CSV"),
    (TIMELINE_FILE, lambda p: p.write_text("a,b\n1,2\n"), "columns"),
    (TIMELINE_FILE, lambda p: p.write_text("".join(p.read_text().splitlines(True)[:-1])), "rows"),
    (TIMELINE_FILE, lambda p: p.write_text(p.read_text().replace("2.5", "soon")), "not numbers"),
])
def test_damaged_run_is_bad_input(tmp_path: Path, name: str, damage: Any, says: str) -> None:
    folder = write_run(some_run(tmp_path), tmp_path / "folder")
    damage(folder / name)
    with pytest.raises(BadInput, match=says) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"model": EXPERTS}, {"strategy": replace(STRATEGY, software=FUSED, dp=2)}])
def test_job_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    mine = job(tmp_path, **changes)
    assert job_from_dict(json.loads(json.dumps(job_as_dict(mine))), "job.json") == mine


def test_job_faults(tmp_path: Path) -> None:
    mine = job(tmp_path)
    with pytest.raises(BadInput, match=r"job.json: model.hidden"):
        job_from_dict(job_as_dict(mine) | {"model": job_as_dict(mine)["model"] | {"hidden": "wide"}}, "job.json")


def test_what_can_run_is_not_refused() -> None:
    for change in ({}, {"dp": 2, "zero": 3}, {"tp": 2}, {"pp": 2, "schedule": "GPipe"}, {"dp": 2, "zero": 1},
                   {"precision": "bf16", "dp": 2, "pp": 2, "tp": 2, "zero": 2}, {"software": FUSED},
                   {"dp": 4, "zero": 3, "shard_group": 2}, {"recompute_share": 0.5}, {"cp": 2}, {"cp": 4, "zero": 1, "dp": 2},
                   {"zero": 1, "dp": 2, "tp": 2, "pp": 2, "precision": "bf16"}, {"tp": 2, "context": "ulysses"}, *(
                       {"pp": 2, "schedule": name, "chunks": schedule.chunks or 2, "num_microbatches": 4, "dp": 2, "zero": 2,
                        "recompute": "full"} for name, schedule in SCHEDULES.items()),
                   {"dp": 2, "zero": 3, "pp": 2, "schedule": "Interleaved1F1B", "chunks": 2}, {"schedule": "ZBV"},
                   {"zero": 3, "pp": 2, "schedule": "ZBH1"}, {"pp": 4, "num_microbatches": 4}):
        assert refusal(replace(STRATEGY, **change), SPEC, "cpu") is None


@pytest.mark.parametrize(("change", "says"), [
    ({"cp": 3}, "cp=3 in 6 pieces does not divide the 32 sequence positions"), ({"ep": 2}, "ep=2: tiny has no experts"),
    ({"cp": 4, "context": "ulysses"}, "(ulysses) does not divide the 2 key-value heads"),
    ({"cp": 2, "context": "spiral"}, "context 'spiral' is not known"),
    ({"cp": 2, "software": FUSED}, "no exchange of keys"), ({"etp": 2}, "expert tensor parallelism"),
    ({"chunks": 2}, "chunks=2: without a pipeline (pp=1) a rank has one stage"),
    ({"schedule": "Chimera"}, "schedule 'Chimera' is not known to the engine, which runs 1F1B, GPipe, Interleaved1F1B"),
    ({"pp": 2, "chunks": 2}, "1F1B needs 1 chunk a rank (is 2)"), ({"pp": 2, "schedule": "ZBV"}, "ZBV needs 2 chunks"),
    ({"pp": 2, "schedule": "DualPipeV", "chunks": 2}, "DualPipeV needs at least two micro-batches a rank"),
    ({"pp": 2, "schedule": "LoopedBFS", "chunks": 3}, "pp=2 x 3 chunks = 6 stages: stage 3 gets none of the 2 layers of tiny"),
    (ZBV | {"dp": 2, "zero": 3}, "zero=3: schedule ZBV splits backward, and torch loses gradients without an error"),
    (ZBV | {"recompute": "selective"}, "recompute='selective': schedule ZBV splits backward"),
    (ZBV | {"software": FUSED}, "kernels='fused': schedule ZBV splits backward"),
    (ZBV | {"schedule": "DualPipeV", "num_microbatches": 4, "dp": 2, "zero": 3}, "zero=3: schedule DualPipeV splits backward"),
    ({"precision": "fp8"}, "precision 'fp8': no CPU"), ({"precision": "mxfp8"}, "precision 'mxfp8' is not known"),
    ({"dp": 4, "zero": 3, "shard_group": 3}, "shard_group=3 does not divide"),
    ({"tp": 2, "sequence_parallel": False}, "sequence parallelism only"),
    ({"recompute": "full", "recompute_share": 0.5}, "recompute_share=0.5"),
    ({"pp": 5}, "pp=5 x 1 chunks = 5 stages: stage 3 gets none"), ({"tp": 4}, "2 key-value heads"),
    ({"seq_len": 128}, "longer than the 64 positions"),
    ({"software": FUSED, "recompute": "selective"}, "eager kernels"), ({"dp": 0}, "less than 1"),
    ({"dp": np.array([1, 2])}, "batch of 2"),
])
def test_refusals_say_why(change: dict[str, Any], says: str) -> None:
    reason = refusal(replace(STRATEGY, **change), SPEC, "cpu")
    assert reason is not None and says in reason


@pytest.mark.parametrize(("text", "change", "says"), [
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1", {}, None),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1", {"pp": 3}, "pp=3, and the schedule table is for 2"),
    ("0F0,1F0,1B0,0B0", {"pp": 1, "chunks": 2, "num_microbatches": 1}, "the schedule table has one rank"),
    ("0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1", {"num_microbatches": 4}, "num_microbatches=4, and the schedule table is for 2"),
    ("0F0,1F0,1B0,0B0\n2F0,3F0,3B0,2B0", {"num_microbatches": 1}, "chunks=1, and the schedule table is for 2"),
    ("0F0,0F1,0B1,0B0\n1F1,1F0,1I1,1I0,1W0,1W1", {}, r"through the last stage in the order [1, 0]; torch takes their losses"),
    ("0F0,0F1,0B0,0B1\n1F0,1I0,1F1,1W0,1B1", {"dp": 2, "zero": 3}, "zero=3: the schedule table splits backward"),
])
def test_an_own_table_is_refused_where_torch_would_run_it_wrongly(text: str, change: dict[str, Any], says: str | None) -> None:
    reason = refusal(replace(STRATEGY, **{"pp": 2} | change), SPEC, "cpu", parse_table(text))
    assert reason is None if says is None else says in str(reason)


def test_an_own_table_is_read_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(format_table(build_schedule("ZBH1", 2, 2))[:-5])
    with pytest.raises(BadInput, match=r"table.csv: 1W1 .*is missing"):
        check_launch(job(tmp_path, strategy=replace(STRATEGY, pp=2), table=str(path)))


def test_refusals_of_model_and_device() -> None:
    assert "vocabulary" in str(refusal(STRATEGY, replace(SPEC, vocab=100), "cpu"))
    assert "family" in str(refusal(STRATEGY, replace(SPEC, family="mamba"), "cpu"))
    assert refusal(STRATEGY, EXPERTS, "cpu") is None
    assert "no constant" in str(refusal(replace(STRATEGY, software=FUSED), EXPERTS, "cpu"))
    assert "by themselves" in str(refusal(replace(STRATEGY, tp=2, recompute="selective"), EXPERTS, "cpu"))
    assert "does not divide the 4 experts" in str(refusal(replace(STRATEGY, dp=3, ep=3), EXPERTS, "cpu"))
    assert "2 ranks of dp x cp x tp" in str(refusal(replace(STRATEGY, dp=2, ep=4), EXPERTS, "cpu"))
    shared = Experts(num_experts=4, top_k=2, hidden=32, shared_hidden=8)
    assert "shared_hidden=8" in str(refusal(
        STRATEGY, replace(EXPERTS, kinds=(replace(EXPERTS.kinds[0], ffn=shared),)), "cpu"))
    assert "unlike attention" in str(refusal(STRATEGY, replace(SPEC, kinds=(SPEC.kinds[0], replace(
        SPEC.kinds[0], name="other", mixer=replace(SPEC.kinds[0].mixer, num_kv_heads=4))), pattern=(0, 1)), "cpu"))
    assert "in fp32" in str(refusal(replace(STRATEGY, cp=2), SPEC, "cuda"))
    fp8 = replace(STRATEGY, precision="fp8")
    assert refusal(fp8, SPEC, "cuda") is None
    assert "cut over tp=2" in str(refusal(replace(fp8, tp=2), SPEC, "cuda"))
    assert "experts are bf16 only" in str(refusal(fp8, EXPERTS, "cuda"))
    assert "has 24" in str(refusal(replace(fp8, seq_len=12), SPEC, "cuda"))
    assert refusal(replace(STRATEGY, cp=2, context="ulysses"), SPEC, "cuda") is None
    assert "device" in str(refusal(STRATEGY, SPEC, "tpu"))


@given(st.sampled_from([(1, 1, 8), (1, 8, 1), (2, 2, 2), (4, 1, 2), (8, 1, 1)]), st.integers(0, 5))
def test_samples_do_not_depend_on_how_a_batch_is_split(split: tuple[int, int, int], step: int) -> None:
    corpus = data.open_corpus(__file__, "", 32)
    dp, micro_batch, num = split
    strategy = replace(STRATEGY, dp=dp, micro_batch=micro_batch, num_microbatches=num)
    parts = [data.batch(corpus, strategy, seed=1, step=step, dp_rank=rank) for rank in range(dp)]
    inputs, targets = (np.concatenate([part[i] for part in parts]) for i in range(2))
    expected = np.stack([data.sample(corpus, 32, seed=1, position=8 * step + i) for i in range(8)])
    assert np.array_equal(inputs, expected[:, :-1]) and np.array_equal(targets, expected[:, 1:])


def test_corpora(tmp_path: Path) -> None:
    assert data.write_stdlib(tmp_path).stat().st_size > 1_000_000
    assert data.open_corpus("stdlib", tmp_path, 32).read(0, 5).dtype == np.uint8
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(34)))
    assert data.sample(data.open_corpus(str(text), "", 32), 32, seed=0, position=0).shape == (33,)
    with pytest.raises(BadInput, match="34 bytes"):
        data.open_corpus(str(text), "", 64)
    with pytest.raises(BadInput, match="cannot be read"):
        data.open_corpus(str(tmp_path / "none.txt"), "", 32)


def test_jobs_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, says in (
        ({"num_steps": 3}, "num_steps"), ({"learning_rate": 0.0}, "learning_rate"), ({"data": "none.txt"}, "none.txt"),
        ({"strategy": replace(STRATEGY, cp=3)}, "strategy: cp=3"),
    ):
        with pytest.raises(BadInput, match=says):
            check_launch(job(tmp_path, **change))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"headway\[torch\]"):
        check_launch(job(tmp_path))


def test_workers_find_the_package_from_anywhere(tmp_path: Path) -> None:
    env = child_environment(job(tmp_path))
    assert (Path(env["PYTHONPATH"].split(":")[0]) / "executor" / "train.py").exists()
    assert env["OMP_NUM_THREADS"] == "1" and env["MALLOC_TRIM_THRESHOLD_"] == "65536"


def test_tail_leaves_out_what_torchrun_says_of_the_failure() -> None:
    log = "Traceback\nBadInput: data\nE1 torch/distributed/elastic/multiprocessing/api.py:1] failed\nmore\n"
    assert tail(log) == "Traceback\nBadInput: data"
    assert "exitcode: -9" in tail("E1 torch/distributed/elastic/multiprocessing/api.py:1] failed (exitcode: -9)\n")


@pytest.mark.distributed
def test_launch_returns_what_it_wrote(tmp_path: Path) -> None:
    """With the loss on the rank that also has the first stage, and the table read from a file."""
    pytest.importorskip("torch")
    lines: list[dict[str, Any]] = []
    table = build_schedule("ZBV", 2, 2, 2)
    (tmp_path / "table.csv").write_text(format_table(table))
    weights = tmp_path / "weights"
    mine = job(tmp_path, strategy=replace(STRATEGY, pp=2, chunks=2), table=str(tmp_path / "table.csv"),
               save_weights=str(weights))
    run = launch(mine, lines.append)
    assert [line["step"] for line in lines] == list(range(5))
    assert [line["loss"] for line in lines] == pytest.approx(run.losses)
    assert run.losses[-1] < run.losses[0] and run.job == mine
    assert len(run.peak_memory_bytes) == 2 and min(run.peak_memory_bytes) > 0
    rows = run.timeline[["rank", "op", "pass"]].value_counts()
    for rank, own in enumerate(table):
        assert [rows[rank, op, pass_] for op, pass_ in (("step", ""), ("optimizer", "U"))] == [5, 5]
        for stage in {action.stage for action in own}:
            assert [rows[rank, f"stage {stage}", pass_] for pass_ in "FBW"] == [10, 10, 10]
    assert (run.timeline["end_s"] >= run.timeline["start_s"]).all()
    again = read_run(mine.out)
    assert again.step_times_s == run.step_times_s and again.environment["backend"] == "gloo"
    # what was saved goes on where training ended
    more = launch(job(tmp_path, out=str(tmp_path / "more"), weights=str(weights)))
    assert max(more.losses) < run.losses[0]


@pytest.mark.distributed
def test_a_failed_launch_raises_and_keeps_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("executor.launch.check_launch", lambda job: None)
    mine = job(tmp_path, data="none.txt")
    with pytest.raises(RuntimeError, match=r"none\.txt.*cannot be read"):
        launch(mine)
    assert "none.txt" in (Path(mine.out) / LOG_FILE).read_text()
    assert not (Path(mine.out) / RUN_FILE).exists()


@pytest.mark.distributed
def test_an_interrupted_launch_leaves_no_process(tmp_path: Path) -> None:
    pytest.importorskip("torch")

    def interrupt(_line: dict[str, Any]) -> None:
        assert _processes_of(mine)
        raise KeyboardInterrupt

    mine = job(tmp_path, num_steps=100_000)
    with pytest.raises(KeyboardInterrupt):
        launch(mine, interrupt)
    assert _processes_of(mine) == []


def _processes_of(mine: Job) -> list[str]:
    """Return the ids of living processes whose command names this job's folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mine.out in entry.read_text() and "State:\tZ" not in (entry.parent / "status").read_text():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found
