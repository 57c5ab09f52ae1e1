"""Signs of life of a rank, for who watches it: a small file that a thread rewrites. Needs no torch.

A rank that is stopped or gone beats no more; one that hangs beats on and does not advance. The thread also minds the launcher:
where its lock is gone, or is that of another launch, the rank leaves as if asked to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER, LOCK_FILE = "alive", "launcher.lock"
BEAT_S, ENDING = 0.5, "ending"
LAUNCH, ATTEMPT, GRACE = "HEADWAY_LAUNCH", "HEADWAY_ATTEMPT", "HEADWAY_GRACE_S"
"""Variables of a worker's environment: the launch that minds it, its attempt, and how long it may take to leave."""
_SIZE = 128


@dataclass(frozen=True, slots=True)
class Sign:
    """What a rank wrote last: its process, how often it beat and advanced, and what it was doing."""

    pid: int
    beats: int
    advances: int
    doing: str


class Vitals:
    """This rank's signs of life; `leaves` is whether it was asked to leave."""

    def __init__(self, run: str | Path, rank: int, environment: Mapping[str, str] = os.environ) -> None:
        folder = Path(run) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.leaves = False
        self._lock, self._launch = Path(run) / LOCK_FILE, environment.get(LAUNCH, "")
        self._grace_s = float(environment.get(GRACE, "inf"))
        self._fd = os.open(folder / str(rank), os.O_WRONLY | os.O_CREAT, 0o666)
        self._beats = self._advances = 0
        self._doing = "starting"
        self._beat()
        with contextlib.suppress(ValueError):  # only a main thread can
            signal.signal(signal.SIGTERM, lambda *_: self.leave())
        threading.Thread(target=self._run, name="vitals", daemon=True).start()

    def advance(self, doing: str) -> None:
        """Say that work goes on, and with what."""
        self._doing = doing
        self._advances += 1

    def end(self) -> None:
        """Say, at once, that this rank's process may end."""
        self.advance(ENDING)
        self._beat()

    def leave(self) -> None:
        """Note that this rank was asked to leave."""
        self.leaves = True

    def _run(self) -> None:
        lost_s = 0.0
        while True:
            time.sleep(BEAT_S)
            self._beat()
            if self._launch and not launcher_lives(self._lock, self._launch):
                self.leave()
                lost_s += BEAT_S
                if lost_s > self._grace_s:
                    os._exit(1)

    def _beat(self) -> None:
        self._beats += 1
        os.pwrite(self._fd, f"{os.getpid()} {self._beats} {self._advances} {self._doing}".ljust(_SIZE).encode()[:_SIZE], 0)


def read_sign(run: str | Path, rank: int) -> Sign | None:
    """Return what a rank wrote last; None where it wrote nothing yet."""
    try:
        pid, beats, advances, doing = (Path(run) / FOLDER / str(rank)).read_text().split(" ", 3)
        return Sign(int(pid), int(beats), int(advances), doing.strip())
    except (OSError, ValueError):
        return None


def launcher_lives(lock: Path, launch: str) -> bool:
    """Return whether the launcher of a launch still holds its lock."""
    try:
        fd = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        if os.pread(fd, _SIZE, 0).decode() != launch:
            return False
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
