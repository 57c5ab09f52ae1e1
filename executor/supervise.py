"""Watching the ranks of one attempt: who is gone, who was stopped, who hangs; and ending them. Needs no torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from executor.vitals import ENDING, FOLDER, LOCK_FILE, Sign, read_sign
from profiles.files import BadInput

SILENT_S = 8.0
"""Beats come twice a second; a rank without any for so long is stopped."""
LOST_AFTER = 2
_LOST_PEER = re.compile(r"[Cc]onnection (?:closed|reset|refused)|Broken pipe|ChildFailedError|SignalException|DistNetworkError")
"""What the ranks say that outlive another."""
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """How training is kept alive: restarts in all, and how long a step, a start and a farewell may take.

    A rank hangs when it does not advance for `hang_timeout_s`; until its second step, which may have to compile, for
    `start_timeout_s`. Asked to leave, it has `grace_s`. Restarts wait `backoff_s`, twice that after each without progress.
    After `LOST_AFTER` failures without progress `node_ranks` ranks (0: none) count as lost.
    """

    max_restarts: int = 0
    hang_timeout_s: float = 600.0
    start_timeout_s: float = 900.0
    grace_s: float = 30.0
    backoff_s: float = 1.0
    node_ranks: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed: in words, and for how long nothing had been heard of the rank before that was seen.

    `is_end` is whether processes had ended by themselves.
    """

    reason: str
    silent_s: float = 0.0
    is_end: bool = True


@dataclass(slots=True)
class _Heard:
    sign: Sign
    beat_s: float
    advance_s: float


class Watch:
    """Looks at the signs of all ranks of a run; a pause of the watcher itself is not held against them."""

    def __init__(self, run: str | Path, world_size: int, survival: Survival, clock: Clock = time.monotonic) -> None:
        self._run, self._world, self._survival, self._clock = Path(run), world_size, survival, clock
        self._heard: dict[int, _Heard] = {}
        self._begun_s = self._looked_s = clock()

    def failure(self) -> Failure | None:
        """Return what has happened to a rank, if anything."""
        now_s = self._clock()
        if (pause_s := now_s - self._looked_s) > SILENT_S / 2:
            self._begun_s += pause_s
            for heard in self._heard.values():
                heard.beat_s += pause_s
                heard.advance_s += pause_s
        self._looked_s = now_s
        faults = [fault for rank in range(self._world) if (fault := self._fault(rank, now_s))]
        # a rank that is gone takes others with it, and hangs are seen last
        return min(faults, key=lambda fault: fault[0])[1] if faults else None

    def _fault(self, rank: int, now_s: float) -> tuple[int, Failure] | None:
        sign, s = read_sign(self._run, rank), self._survival
        if sign is None:
            silent_s = now_s - self._begun_s
            return (2, Failure(f"rank {rank} did not start within {silent_s:.0f} s", silent_s, False)) if (
                silent_s > s.start_timeout_s) else None
        heard = self._heard.setdefault(rank, _Heard(sign, now_s, now_s))
        if sign.beats != heard.sign.beats:
            heard.beat_s = now_s
        if sign.advances != heard.sign.advances:
            heard.advance_s = now_s
        heard.sign = sign
        if sign.doing == ENDING:
            return None
        if not is_running(sign.pid):
            return 0, Failure(f"rank {rank} is gone ({sign.doing})", now_s - heard.beat_s)
        if now_s - heard.beat_s > SILENT_S:
            return 1, Failure(f"rank {rank} is stopped ({sign.doing}): no beat for {now_s - heard.beat_s:.0f} s",
                              now_s - heard.beat_s, False)
        waited_s = now_s - heard.advance_s
        if waited_s > (s.hang_timeout_s if sign.advances > 1 else s.start_timeout_s):
            doing = ", ".join(f"rank {r}: {h.sign.doing}" for r, h in sorted(self._heard.items()))
            return 3, Failure(f"training hangs: no progress for {waited_s:.0f} s ({doing})", waited_s, False)
        return None


def is_running(pid: int) -> bool:
    """Return whether a process lives; one that waits to be buried does not (state Z, proc_pid_stat(5))."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True


def signal_ranks(run: str | Path, number: int, words: str) -> None:
    """Send a signal to the living ranks that gave a sign in a run's folder, known by `words` of their command."""
    for path in (Path(run) / FOLDER).glob("*"):
        sign = read_sign(run, int(path.name)) if path.name.isdigit() else None
        with contextlib.suppress(OSError):
            if sign and words in Path(f"/proc/{sign.pid}/cmdline").read_text():
                os.kill(sign.pid, number)


def forget_ranks(run: str | Path) -> None:
    """Delete the signs of an attempt that is over."""
    shutil.rmtree(Path(run) / FOLDER, ignore_errors=True)


@contextlib.contextmanager
def launcher_lock(run: str | Path, launch: str) -> Iterator[None]:
    """Hold a run's folder for one launch; the lock goes with the process, whatever ends it (flock(2))."""
    fd = os.open(Path(run) / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, launch.encode(), 0)
        yield
    except BlockingIOError:
        raise BadInput(f"out: {run} is in use by another run that is under way; give another folder, or end that run") from None
    finally:
        os.close(fd)


def cause(log: str) -> str | None:
    """Return what a log of workers and torchrun says of their end: the first error, or the signal that ended one."""
    errors = re.findall(r"^(?:\[rank\d+\]: ?)?((?:[\w.]*(?:Error|Exception|BadInput))\b.*)$", log, re.MULTILINE)
    own = next((e for e in errors if not _LOST_PEER.search(e)), None)
    ended = re.search(r"exitcode\s*:\s*-(\d+)", log)
    if own or not ended:
        return own or next(iter(errors), None)
    name = signal.Signals(int(ended[1])).name
    return f"ended by {name}" + (" (memory used up, or by hand)" if name == "SIGKILL" else "")
