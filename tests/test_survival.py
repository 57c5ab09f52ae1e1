"""Training survives what is done to its processes: no sample is lost or trained twice, and losses are those of a quiet run."""

from __future__ import annotations

import io
import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_executor_run import SPEC, STRATEGY, _processes_of

from executor.goodput import goodput
from executor.journal import note, read_journal, sample_faults, trained_steps
from executor.launch import _hand_on, launch
from executor.manifest import checkpoints, read_manifest
from executor.run import Job, Run, job_as_dict
from executor.supervise import Failure, Survival, Watch, cause, launcher_lock
from executor.train import tell
from executor.vitals import FOLDER, launcher_lives
from profiles.files import BadInput

STEPS, BATCH = 14, 4
TWO = replace(STRATEGY, dp=2, num_microbatches=1, zero=2)
SURVIVAL = Survival(max_restarts=6, hang_timeout_s=12.0, start_timeout_s=300.0, grace_s=20.0, backoff_s=0.1)
TESTS = str(Path(__file__).resolve().parent)


def job_in(folder: Path, **changes: Any) -> Job:
    defaults: dict[str, Any] = {"model": SPEC, "strategy": TWO, "out": str(folder), "num_steps": STEPS, "checkpoint_every": 2}
    return Job(**defaults | changes)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what sets the faults that workers do to themselves: attempt, rank, step, kind."""
    pytest.importorskip("torch")
    monkeypatch.setattr("executor.launch.WORKER", "faulty")
    monkeypatch.setenv("PYTHONPATH", TESTS)

    def set_(*struck: tuple[int, int, int, str]) -> None:
        keys = ("attempt", "rank", "step", "kind")
        monkeypatch.setenv("FAULTS", json.dumps([dict(zip(keys, fault, strict=True)) for fault in struck]))

    return set_


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the undisturbed run."""
    pytest.importorskip("torch")
    return launch(job_in(tmp_path_factory.mktemp("quiet") / "run"))


def samples(folder: str, num_steps: int = STEPS) -> list[Any]:
    """Return which samples each step trained, and the checksums of their tokens."""
    return [trained_steps(read_journal(folder))[step]["samples"] for step in range(num_steps)]


@pytest.mark.distributed
def test_ranks_that_die_stop_hang_and_run_out_of_memory(tmp_path: Path, faults: Any, quiet: Run) -> None:
    """One launch, four faults, one after the other, each noticed in time; the fifth attempt ends as if nothing had been."""
    faults((0, 1, 3, "kill"), (1, 0, 3, "stop"), (2, 1, 3, "hang"), (3, 1, 3, "memory"))
    job, begun_s = job_in(tmp_path / "run"), time.monotonic()
    run = launch(job, survival=SURVIVAL)
    wall_s = time.monotonic() - begun_s
    journal = read_journal(job.out)
    failures = [line for line in journal if line.get("event") == "failure"]
    for failure, says in zip(failures, (
        r"rank . is gone .*: ended by SIGKILL", r"rank 0 is stopped", r"training hangs: no progress for",
        r"rank . is gone .*: RuntimeError: .*can't allocate memory",
    ), strict=True):
        assert re.match(says, failure["reason"])
        assert failure["silent_s"] < (13.0 if "hangs" in failure["reason"] else 10.0)
    ready = [line["step"] for line in journal if line.get("event") == "ready"]
    assert ready == [0, 2, 4, 6, 8] and run.first_step == 8
    assert run.losses == quiet.losses
    assert sample_faults(journal, STEPS, BATCH) == [] and samples(job.out) == samples(quiet.job.out)
    assert [path.name for path in checkpoints(job.out)] == ["step-000000014", "step-000000012"]
    assert _processes_of(job) == []
    spent = goodput(journal)
    assert spent.wall_s == pytest.approx(wall_s, rel=0.01) and min(spent.as_dict().values()) >= 0
    assert spent.wasted_s > 0 and spent.restart_s > spent.training_s


@pytest.mark.distributed
def test_a_lost_launcher_sigterm_a_truncated_checkpoint_and_a_full_disk(
    tmp_path: Path, faults: Any, in_a_process: Any, quiet: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three launches in one folder: the first is killed, the second asked to leave, the third ends the run."""
    monkeypatch.setenv("SLOW_S", "0.4")
    job = job_in(tmp_path / "run", checkpoint_every=100, async_checkpoint=True)
    launcher = in_a_process(job)
    wait_for(job, lambda steps: len(steps) >= 2)
    launcher.kill()
    launcher.wait()
    wait_for(job, lambda _: not _processes_of(job))
    first = last_event(job, "left")["step"]
    assert 2 <= first < STEPS and read_manifest(checkpoints(job.out)[0]).step == first

    with pytest.raises(BadInput, match="go on from them with --resume"):
        launch(job)
    job = replace(job, resume=job.out)
    launcher = in_a_process(job)
    wait_for(job, lambda steps: len(steps) >= first + 2)
    with pytest.raises(BadInput, match="in use by another run"):
        launch(job)
    launcher.send_signal(signal.SIGTERM)
    out, _ = launcher.communicate(timeout=300)
    second = last_event(job, "left")["step"]
    assert out == f"left after {second} steps, as asked to\n" and first + 2 <= second < STEPS
    assert _processes_of(job) == []

    newest = checkpoints(job.out)[0]
    cut = next(newest.glob("__1_*"))
    cut.write_bytes(cut.read_bytes()[:1000])
    monkeypatch.setenv("SLOW_S", "0")
    faults((0, 0, 1, "disk"), (0, 0, 4, "disk again"))
    job = replace(job, checkpoint_every=3)
    run = launch(job)
    events = [line for line in read_journal(job.out) if "event" in line]
    assert "has 1,000 bytes" in next(line["reason"] for line in events if line["event"] == "damaged")
    assert [line["step"] for line in events if line["event"] == "ready"] == [0, first, first]
    failed = next(line for line in events if line["event"] == "checkpoint_failed")
    assert "File too large" in failed["reason"]
    assert events[-2]["event"] == "checkpoint" and events[-2]["step"] == STEPS
    assert [path.name for path in newest.parent.glob(".*")] == [f".{newest.name}.damaged"]
    assert run.losses == quiet.losses and sample_faults(read_journal(job.out), STEPS, BATCH) == []


@pytest.mark.distributed
def test_a_node_fewer(tmp_path: Path, faults: Any, quiet: Run) -> None:
    """Training goes on under the strategy for the ranks that are left, with the same samples; one failure more is too many."""
    faults((0, 1, 3, "kill"), (1, 0, 6, "error"))
    job = job_in(tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"ValueError: a fault of the software; after 1 restarts"):
        launch(job, survival=replace(SURVIVAL, max_restarts=1), smaller=lambda ranks: STRATEGY, ranks_left=lambda: 1)
    journal = read_journal(job.out)
    assert [line["event"] for line in journal if line.get("event") not in ("checkpoint", None)] == [
        "launch", "ready", "failure", "refit", "launch", "ready", "failure"]
    losses = [line["loss"] for _, line in sorted(trained_steps(journal).items())]
    assert losses == pytest.approx(quiet.losses[: len(losses)], rel=1e-5) and len(losses) >= 8
    assert sample_faults(journal, len(losses), BATCH) == []
    merged = [[first, sum(num for _, num, _ in step)] for step in samples(job.out, len(losses)) for first, _, _ in step[:1]]
    assert merged == [[BATCH * step, BATCH] for step in range(len(losses))]


@pytest.mark.distributed
def test_another_run_goes_on_from_a_checkpoint(tmp_path: Path, quiet: Run) -> None:
    """In a folder of its own and on one rank; what was trained before is taken over, the seconds of it are not."""
    job = job_in(tmp_path / "run", strategy=STRATEGY, num_steps=STEPS + 4, checkpoint_every=0, resume=quiet.job.out)
    run = launch(job)
    assert run.losses[:STEPS] == quiet.losses and run.first_step == STEPS and len(run.losses) == STEPS + 4
    assert sample_faults(read_journal(job.out), STEPS + 4, BATCH) == []
    assert len(run.measured_step_times_s) == 4 - job.num_warmup_steps
    spent = goodput(read_journal(job.out))
    assert spent.training_s == pytest.approx(sum(run.step_times_s[STEPS:]), rel=0.5) and spent.wasted_s == 0
    with pytest.raises(BadInput, match="num_steps: 14 are trained already"):
        launch(replace(job, num_steps=STEPS, out=str(tmp_path / "again")))


@pytest.fixture
def in_a_process() -> Iterator[Any]:
    """Return what launches a job from a process of its own, for signals; none is left, as ranks leave when it is gone."""
    started: list[subprocess.Popen[str]] = []

    def start(job: Job) -> subprocess.Popen[str]:
        started.append(launcher_of(job))
        return started[-1]

    yield start
    for launcher in started:
        launcher.kill()
        launcher.wait()


def launcher_of(job: Job) -> subprocess.Popen[str]:
    code = ("import sys; from executor import launch as l; from executor.run import job_from_dict; import json\n"
            "l.WORKER = 'faulty'\n"
            "try: l.launch(job_from_dict(json.loads(sys.argv[1]), 'job'))\n"
            "except l.Left as e: print(e)\n")
    root = str(Path(TESTS).parent)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([root, TESTS])}
    words = [sys.executable, "-c", code, json.dumps(job_as_dict(job))]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)


def wait_for(job: Job, is_so: Any, seconds: float = 300.0) -> None:
    """Wait until something is so; how long that takes is the machine's, so the end is far."""
    end_s = time.monotonic() + seconds
    while not is_so(trained_steps(read_journal(job.out))):
        assert time.monotonic() < end_s
        time.sleep(0.1)


def last_event(job: Job, event: str) -> dict[str, Any]:
    return [line for line in read_journal(job.out) if line.get("event") == event][-1]


def sign(run: Path, rank: int, beats: int, advances: int, doing: str = "step 3", pid: int = 0) -> None:
    (run / FOLDER).mkdir(exist_ok=True)
    (run / FOLDER / str(rank)).write_text(f"{pid or os.getpid()} {beats} {advances} {doing}   ")


def test_what_a_watch_sees(tmp_path: Path) -> None:
    now = [0.0]
    watch = Watch(tmp_path, 2, Survival(hang_timeout_s=20, start_timeout_s=50), lambda: now[0])

    def seen(at_s: float, *signs: tuple[int, int, int]) -> str | None:
        """Look every two seconds until then, with the signs there at once."""
        for rank, beats, advances in signs:
            sign(tmp_path, rank, beats, advances)
        failure: Failure | None = None
        while now[0] < at_s and failure is None:
            now[0] += 2.0
            failure = watch.failure()
        return failure and failure.reason

    assert seen(48) is None
    assert seen(52) == "rank 0 did not start within 52 s"
    assert seen(54, (0, 1, 2), (1, 1, 2)) is None
    assert seen(60, (0, 9, 2), (1, 9, 2)) is None
    assert seen(70, (0, 10, 2)) == "rank 1 is stopped (step 3): no beat for 10 s"
    for beat in range(11, 17):
        reason = seen(now[0] + 2, (0, beat, 2), (1, beat, 2))
    assert reason == "training hangs: no progress for 24 s (rank 0: step 3, rank 1: step 3)"
    # the first step may take longer, and a pause of the watcher is nobody's fault
    fresh = Watch(tmp_path, 2, Survival(hang_timeout_s=20, start_timeout_s=50), lambda: now[0])
    sign(tmp_path, 0, 1, 1)
    sign(tmp_path, 1, 1, 1)
    assert fresh.failure() is None
    now[0] += 100.0
    assert fresh.failure() is None
    gone = subprocess.Popen(["true"])
    gone.wait()
    sign(tmp_path, 1, 3, 3, pid=gone.pid)
    assert str(fresh.failure()) == "Failure(reason='rank 1 is gone (step 3)', silent_s=0.0, is_end=True)"
    sign(tmp_path, 1, 3, 4, doing="ending", pid=gone.pid)
    assert fresh.failure() is None


@pytest.mark.parametrize(("log", "says"), [
    ("[rank0]: RuntimeError: [../pair.cc:537] Connection closed by peer\n  exitcode  : -9 (pid: 3)", "ended by SIGKILL"),
    ("x\n[rank1]: ValueError: bad\n[rank0]: RuntimeError: Connection reset by peer", "ValueError: bad"),
    ("profiles.files.BadInput: data: gone", "profiles.files.BadInput: data: gone"), ("nothing", None),
    ("RuntimeError: Connection closed by peer", "RuntimeError: Connection closed by peer"),
])
def test_the_cause_in_a_log(log: str, says: str | None) -> None:
    found = cause(log)
    assert found is None if says is None else str(found).startswith(says)


def test_one_launch_holds_a_folder(tmp_path: Path) -> None:
    lock = tmp_path / "launcher.lock"
    assert not launcher_lives(lock, "a")
    with launcher_lock(tmp_path, "a"):
        assert launcher_lives(lock, "a") and not launcher_lives(lock, "b")
        with pytest.raises(BadInput, match="in use by another run"), launcher_lock(tmp_path, "b"):
            pass
    assert not launcher_lives(lock, "a")


def test_journals(tmp_path: Path) -> None:
    def step(index: int, first: int, num: int = 4) -> None:
        note(tmp_path, step=index, samples=[[first, num, 0]])

    for index in range(3):
        step(index, 4 * index)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"step": 3, "sam')
    note(tmp_path, event="ready", step=2)
    assert sorted(trained_steps(read_journal(tmp_path))) == [0, 1]
    step(2, 8)
    assert sample_faults(read_journal(tmp_path), 3, 4) == []
    faults = sample_faults(read_journal(tmp_path), 4, 4)
    assert faults == ["step 3 is missing", "training ended before sample 12, not before 16"]
    step(3, 16)
    assert sample_faults(read_journal(tmp_path), 4, 4)[0] == "step 3 has samples from 16 on, and 12 was next"
    step(3, 11)
    assert sample_faults(read_journal(tmp_path), 4, 4)[0] == "step 3 has samples from 11 on, and 12 was next"


def test_threads_that_tell_at_the_same_time_each_print_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that writes checkpoints tells of them while the training thread tells of steps."""
    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(0.001)  # the other thread's turn
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", pipe := Pipe())
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda step: tell({"step": step}), range(40)))
    assert sorted(json.loads(line)["step"] for line in pipe.getvalue().splitlines()) == list(range(40))


def test_what_anybody_else_prints_goes_to_the_log() -> None:
    """A model's own print may look like JSON, and must not end the run."""
    prints = ["{'a': 1}\n", '{"a": 1}\n', "{\n", "[1]\n", '{"step": 1, "loss": 2.0}\n', '{"event": "left"}\n']
    lines: queue.Queue[str] = queue.Queue()
    for line in prints:
        lines.put(line)
    log, steps, events = io.StringIO(), [], []
    _hand_on(lines, log, steps.append, events.append, wait=False)
    assert (log.getvalue(), steps, events) == ("".join(prints[:4]), [{"step": 1, "loss": 2.0}], [{"event": "left"}])
