"""Start a job under torchrun, follow it, restart it from its newest checkpoint when ranks fail, and return its run.

Needs torch only in the processes that it starts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from executor.data import STDLIB, open_data, write_stdlib
from executor.engine import refusal
from executor.journal import JOURNAL_FILE, Line, note, read_journal, trained_steps
from executor.manifest import check_same_training, checkpoints, read_manifest
from executor.monitor import check_monitor
from executor.pretrained import check_weights
from executor.run import JOB_FILE, LOG_FILE, RUN_FILE, Job, Run, check_job, job_as_dict, read_run
from executor.supervise import LOST_AFTER, Failure, Survival, Watch, cause, forget_ranks, launcher_lock, signal_ranks
from executor.vitals import ATTEMPT, GRACE, LAUNCH
from profiles.files import BadInput, make_folder, write_text
from profiles.measure import CPU_ENVIRONMENT
from simulator.schedules import load_table
from simulator.strategy import Strategy

NUM_LOG_LINES = 20
PATIENCE_S, LOOK_S = 5.0, 0.2
MAX_BACKOFF_S = 60.0
WORKER = "executor.train"
OnLine = Callable[[Line], None]
Smaller = Callable[[int], Strategy | None]
"""Returns the best strategy for at most so many ranks, with the same global batch; None where there is none."""


class Left(Exception):
    """Training was asked to leave and did, after `step` steps."""

    def __init__(self, step: int) -> None:
        super().__init__(f"left after {step} steps, as asked to")
        self.step = step


def launch(
    job: Job, on_progress: OnLine | None = None, survival: Survival = Survival(), *,  # noqa: B008
    on_event: OnLine | None = None, smaller: Smaller | None = None, ranks_left: Callable[[], int] | None = None,
) -> Run:
    """Run a job in its own processes and return what was measured; the job's folder keeps run, journal and log.

    A failed attempt is followed by another, from the newest good checkpoint; where `ranks_left` then counts fewer ranks than
    the strategy has, `smaller` gives another. Asked to leave by SIGTERM, ranks write a checkpoint and leave: `Left`.
    """
    at_s = time.time()
    check_launch(job)
    folder = make_folder(job.out)
    say = on_event or (lambda line: None)
    start_id = uuid.uuid4().hex
    job_file = (folder / JOB_FILE).resolve()
    with launcher_lock(folder, start_id), _asked_to_leave() as asked:
        signal_ranks(folder, signal.SIGKILL, str(job_file))  # of a launch that was lost
        (folder / RUN_FILE).unlink(missing_ok=True)  # a run that fails must not leave the one before it
        (folder / LOG_FILE).unlink(missing_ok=True)
        if not checkpoints(folder):
            (folder / JOURNAL_FILE).unlink(missing_ok=True)
        if job.data == STDLIB:
            write_stdlib(folder)
        stuck = 0
        for attempt in count():
            write_text(job_file, json.dumps(job_as_dict(job), indent=2) + "\n")
            begun_at = num_trained(folder)
            say(note(folder, event="launch", attempt=attempt, strategy=job.strategy.describe(), at_s=at_s))
            failure, log = _attempt(job, job_file, attempt, start_id, survival, asked, on_progress, say)
            if failure is None:
                break
            say(note(folder, event="failure", attempt=attempt, reason=failure.reason, silent_s=failure.silent_s))
            if attempt >= survival.max_restarts or "BadInput" in failure.reason:
                end = f"training stopped: {failure.reason}" + (f"; after {attempt} restarts" if attempt else "")
                raise RuntimeError(f"{end}; the whole log is {folder / LOG_FILE}\n{tail(log)}")
            stuck = 0 if num_trained(folder) > begun_at else stuck + 1
            time.sleep(min(MAX_BACKOFF_S, survival.backoff_s * 2**stuck))
            left = ranks_left() if ranks_left else _ranks_left(job)
            if survival.node_ranks and stuck >= LOST_AFTER:
                left, stuck = min(left, int(job.strategy.world_size) - survival.node_ranks), 0
            job = _refit(job, left, smaller, say)
            at_s = time.time()
        say(note(folder, event="end", attempt=attempt))
    if not (folder / RUN_FILE).exists():
        raise Left(next((read_manifest(held).step for held in checkpoints(folder)), 0))
    return read_run(folder)


def _refit(job: Job, left: int, smaller: Smaller | None, say: OnLine) -> Job:
    """Return the job for the ranks that are left: the same one where they are enough."""
    if left >= job.strategy.world_size:
        return job
    strategy = smaller(left) if smaller and left > 0 else None
    if strategy is None:
        raise RuntimeError(f"{left} of {job.strategy.world_size} ranks are left, and there is no strategy for them")
    say(note(job.out, event="refit", ranks=left, strategy=strategy.describe()))
    return replace(job, strategy=strategy, table="")


def num_trained(folder: Path) -> int:
    """Return how many steps of a run count so far."""
    return max(trained_steps(read_journal(folder)), default=-1) + 1


def check_launch(job: Job) -> None:
    """Refuse a job that cannot start on this machine; CPU ranks may outnumber cores, GPU ranks not GPUs."""
    check_job(job)
    check_monitor(job)
    if importlib.util.find_spec("torch") is None:
        raise BadInput("torch: is not installed, and running a plan needs it; pip install headway[torch]")
    table = load_table(job.table)[0] if job.table else None
    reason = refusal(job.strategy, job.model, job.device, table)
    if reason:
        raise BadInput(f"strategy: {reason}")
    if job.weights:
        check_weights(job.weights, job.model)
    if job.save_weights:
        make_folder(job.save_weights)
    if job.data != STDLIB:
        open_data(job.data, job.out, seq_len=job.strategy.seq_len, vocab=job.model.vocab, fingerprint=job.fingerprint)
    _check_resume(job)
    if job.device == "cuda":
        present = _gpus_left()
        if present < job.strategy.world_size:
            raise BadInput(f"strategy: needs {job.strategy.world_size} GPUs, this machine has {present}")
        if job.strategy.matmul == "fp8":
            _check_fp8()


def _check_resume(job: Job) -> None:
    """Refuse to resume from nothing, from another training, or to start anew where checkpoints lie."""
    if not job.resume:
        if held := checkpoints(job.out):
            raise BadInput(f"out: {job.out} holds checkpoints of an earlier run (up to {held[0].name}); go on from them with "
                           "--resume, or give another folder")
        return
    for folder in (*checkpoints(job.out), *checkpoints(job.resume)):
        try:
            manifest = read_manifest(folder)
        except BadInput:
            continue  # its ranks will say so
        else:
            # what data the text of a run is, its ranks find out
            check_same_training(folder, manifest, job, manifest.data)
            if manifest.step == job.num_steps:
                raise BadInput(f"num_steps: {job.num_steps} are trained already in {folder}; give more")
            return
    raise BadInput(f"resume: {job.resume} holds no good checkpoint of this training")


def _ranks_left(job: Job) -> int:
    return _gpus_left() if job.device == "cuda" else int(job.strategy.world_size)


def _gpus_left() -> int:
    """Return the GPUs of this machine."""
    return int(_ask_torch("torch.cuda.device_count()"))


def _check_fp8() -> None:
    """Refuse GPUs without FP8, which came with compute capability 8.9 (CUDA C Programming Guide, table of features)."""
    major, minor = map(int, _ask_torch("*torch.cuda.get_device_capability()").split())
    if (major, minor) < (8, 9):
        raise BadInput(f"precision: 'fp8' needs GPUs of compute capability 8.9 or more, those here have {major}.{minor}")


def _ask_torch(what: str) -> str:
    """Return what torch says, asked in a process of its own: a driver's view does not change within one."""
    words = [sys.executable, "-c", f"import torch; print({what})"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def child_environment(job: Job) -> dict[str, str]:
    """Return the environment of the workers: where to find this package, and settings that measurements need."""
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(CPU_ENVIRONMENT if job.device == "cpu" else {})}


@contextlib.contextmanager
def _asked_to_leave() -> Iterator[threading.Event]:
    """Yield what SIGTERM sets; outside a main thread, which alone hears signals, nothing does."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _attempt(
    job: Job, job_file: Path, attempt: int, start_id: str, survival: Survival, asked: threading.Event,
    on_progress: OnLine | None, say: OnLine,
) -> tuple[Failure | None, str]:
    """Run torchrun to its end, or until a rank fails or does not leave in time; return why it failed, and its log."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(job.strategy.world_size), "-m", WORKER, str(job_file),
    ]
    env = child_environment(job) | {LAUNCH: start_id, ATTEMPT: str(attempt), GRACE: str(survival.grace_s)}
    log_file = Path(job.out) / LOG_FILE
    with log_file.open("a") as log:
        begin = log.tell()
        forget_ranks(job.out)
        watch = Watch(job.out, int(job.strategy.world_size), survival)
        process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        failure, leave_s = None, 0.0
        try:
            while failure is None and process.poll() is None:
                _hand_on(lines, log, on_progress, say)
                failure = watch.failure()
                if asked.is_set():
                    if not leave_s:
                        signal_ranks(job.out, signal.SIGTERM, str(job_file))
                    leave_s += LOOK_S
                    if leave_s > survival.grace_s:
                        break
        finally:
            signal_ranks(job.out, signal.SIGKILL, str(job_file))
            stop(process)
            reader.join(PATIENCE_S)
        _hand_on(lines, log, on_progress, say, wait=False)
        log.flush()
    text = log_file.read_bytes()[begin:].decode(errors="replace")
    if asked.is_set() or (failure is None and process.returncode == 0):
        return None, text
    if failure is None:
        failure = Failure(f"torchrun ended with status {process.returncode}")
    elif not failure.is_end:
        return failure, text  # ranks were ended here, and what the log says is of that
    known = cause(text)
    return replace(failure, reason=f"{failure.reason}: {known}") if known else failure, text


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)


def _hand_on(lines: queue.Queue[str], log: Any, on_progress: OnLine | None, say: OnLine, wait: bool = True) -> None:
    """Give lines to whom they are for, for a moment: steps, events, and the log."""
    until_s = time.monotonic() + (LOOK_S if wait else 0.0)
    while True:
        try:
            line = lines.get(timeout=max(0.0, until_s - time.monotonic())) if wait else lines.get_nowait()
        except queue.Empty:
            return
        if (told := _told(line)) is None:
            log.write(line)
        elif "event" in told:
            say(told)
        elif on_progress is not None:
            on_progress(told)
        if wait and time.monotonic() >= until_s:
            return


def _told(line: str) -> dict[str, Any] | None:
    """Return what a worker tells in a line; None if it is anybody else's print."""
    try:
        told = json.loads(line)
    except json.JSONDecodeError:
        return None
    return told if isinstance(told, dict) and ("event" in told or "step" in told) else None


def stop(process: subprocess.Popen[str]) -> None:
    """End torchrun, whose workers are ended already: asked first, forced after a while."""
    try:
        process.wait(PATIENCE_S if process.poll() is None else 0)
        return
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(log: str) -> str:
    """Return the last lines of a log before torchrun's own account of the failure, which is long and says little."""
    lines = log.splitlines()
    account = next((i for i, line in enumerate(lines) if "distributed/elastic/multiprocessing" in line), None)
    return "\n".join(lines[: account or None][-NUM_LOG_LINES:])
