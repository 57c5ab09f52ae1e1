"""A process that computes for the server: one job at a time, which can be stopped and cannot take it down.

A job is a function of a module, called with `tell(share)`; where its question is out of date, `tell` ends it. A job that goes
on for longer than it may is killed with its process, and all that the process has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

from profiles.files import BadInput

Job = Callable[..., Any]
MAX_BYTES = 16 * 2**30
"""Address space of a worker: what asks for more is refused, and the machine stays usable."""
LEAVES_S = 2.0
"""A stopped job that has not ended after so long is killed."""
TELLS_S = 0.2


class Stopped(Exception):
    """A job was stopped, or took too long."""


class Busy(Exception):
    """Too many questions wait already."""


class Worker:
    """A process with its queue; it is started by the first job and again after it was killed."""

    def __init__(self, name: str, most_waiting: int, limit_s: float) -> None:
        self.name, self.most_waiting, self.limit_s = name, most_waiting, limit_s
        self._turn, self._waiting = asyncio.Lock(), 0
        self._process: multiprocessing.process.BaseProcess | None = None
        self._wire: Connection | None = None
        self._stop: Event | None = None

    def start(self) -> None:
        """Start the process, if none runs."""
        if self._process is not None and self._process.is_alive():
            return
        made = multiprocessing.get_context("spawn")
        self._wire, theirs = made.Pipe()
        self._stop = made.Event()
        self._process = made.Process(target=_serve_jobs, args=(theirs, self._stop), name=f"headway serve: {self.name}")
        self._process.start()
        theirs.close()

    def kill(self) -> None:
        """End the process and all that it has started."""
        process, self._process = self._process, None
        if process is None or process.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # it leads a group of its own from its first line on; before that it has started nothing
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
        if self._wire is not None:
            self._wire.close()

    async def run(self, job: Job, *values: Any, tell: Callable[[float], None] = lambda share: None) -> Any:
        """Return what a job returns; its `BadInput` is raised here, as `Stopped` is where it takes too long.

        Cancelled, the job is stopped: at its next `tell`, or with its process.
        """
        if self._waiting >= self.most_waiting:
            raise Busy
        self._waiting += 1
        try:
            async with self._turn:
                return await self._run(job, values, tell)
        finally:
            self._waiting -= 1

    async def _run(self, job: Job, values: tuple[Any, ...], tell: Callable[[float], None]) -> Any:
        self.start()
        assert self._wire is not None and self._stop is not None
        wire, ends = self._wire, time.monotonic() + self.limit_s
        self._stop.clear()
        wire.send((job, values))
        reading = asyncio.ensure_future(_answer(wire, tell))
        try:
            done, _ = await asyncio.wait([reading], timeout=ends - time.monotonic())
        except asyncio.CancelledError:
            await asyncio.shield(self._leave(reading))
            raise
        if not done:
            await self._leave(reading)
            raise Stopped(f"took longer than {self.limit_s:g} s and was stopped")
        kind, value = reading.result()
        if kind == "bad":
            raise BadInput(value)
        if kind == "failed":
            self.kill()
            raise RuntimeError(value)
        return value

    async def _leave(self, reading: asyncio.Future[Any]) -> None:
        """Stop the job that runs, kindly at first."""
        assert self._stop is not None
        self._stop.set()
        done, _ = await asyncio.wait([reading], timeout=LEAVES_S)
        if not done:
            self.kill()
            await asyncio.wait([reading])


async def _answer(wire: Connection, tell: Callable[[float], None]) -> tuple[str, Any]:
    """Return what comes back last, after any progress."""
    while True:
        try:
            kind, value = await asyncio.to_thread(wire.recv)
        except (EOFError, OSError):
            return "failed", "the process that computes has ended"
        if kind != "share":
            return kind, value
        tell(value)


def _serve_jobs(wire: Connection, stop: Event) -> None:
    """Do one job after the other until nobody asks."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    last = 0.0

    def tell(share: float) -> None:
        nonlocal last
        if stop.is_set():
            raise Stopped
        if time.monotonic() > last + TELLS_S:
            last = time.monotonic()
            wire.send(("share", share))

    while True:
        try:
            job, values = wire.recv()
        except (EOFError, OSError):
            return
        wire.send(_outcome(job, values, tell))


def _outcome(job: Job, values: tuple[Any, ...], tell: Callable[[float], None]) -> tuple[str, Any]:
    try:
        return "done", job(*values, tell=tell)
    except BadInput as e:
        return "bad", str(e)
    except Stopped:
        return "stopped", None
    except (MemoryError, RecursionError) as e:
        return "bad", f"question: is too large to be computed here ({type(e).__name__})"
    except Exception as e:  # a fault of ours must not end the process in silence
        return "failed", f"{type(e).__name__}: {e}"
