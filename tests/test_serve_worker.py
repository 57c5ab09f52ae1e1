"""The process that computes for the page: whatever a job does, the next one is answered."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from profiles.files import BadInput
from reports.serve import worker
from reports.serve.worker import Busy, Stopped, Worker

Tell = Callable[[float], None]
FOREVER = 10_000


def double(value: int, *, tell: Tell) -> int:
    tell(0.5)
    return 2 * value


def telling(value: int, *, tell: Tell) -> None:
    for _ in range(FOREVER):
        tell(0.1)
        time.sleep(0.01)


def silent(value: int, *, tell: Tell) -> None:
    time.sleep(FOREVER)


def with_children(path: str, *, tell: Tell) -> None:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({FOREVER})"])
    with open(path, "w") as file:
        file.write(str(child.pid))
    child.wait()


def wrong(value: int, *, tell: Tell) -> None:
    raise BadInput(f"value: is {value}")


def faulty(value: int, *, tell: Tell) -> float:
    return value / 0


def dying(value: int, *, tell: Tell) -> None:
    os._exit(1)


def greedy(value: int, *, tell: Tell) -> int:
    return len(bytearray(2**45))


def deep(value: int, *, tell: Tell) -> Any:
    return deep(value, tell=tell)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Return a worker whose jobs may take long enough for the start of a process, and not longer."""
    monkeypatch.setattr(worker, "LEAVES_S", 0.5)
    found = Worker("test", most_waiting=3, limit_s=60.0)
    yield found
    found.kill()


@pytest.mark.parametrize(("job", "error", "line"), [
    (wrong, BadInput, "value: is 3"), (faulty, RuntimeError, "ZeroDivisionError"), (dying, RuntimeError, "has ended"),
    (greedy, BadInput, "too large"), (deep, BadInput, "too large"),
])
def test_a_job_that_fails_leaves_the_next_alone(made: Worker, job: Any, error: type[Exception], line: str) -> None:
    async def both() -> int:
        with pytest.raises(error, match=line):
            await made.run(job, 3)
        return int(await made.run(double, 3))

    assert asyncio.run(both()) == 6


@pytest.mark.parametrize("job", [telling, silent])
def test_a_job_that_takes_too_long_is_stopped(made: Worker, job: Any) -> None:
    async def both() -> int:
        assert await made.run(double, 1) == 2
        made.limit_s = 0.3
        with pytest.raises(Stopped, match="took longer than"):
            await made.run(job, 3)
        made.limit_s = 60.0
        return int(await made.run(double, 3))

    assert asyncio.run(both()) == 6


@pytest.mark.parametrize("job", [telling, silent])
def test_a_job_out_of_date_gives_way(made: Worker, job: Any) -> None:
    """Those that wait are answered, in their order; too many are refused."""
    async def all_of_them() -> list[Any]:
        stale = asyncio.ensure_future(made.run(job, 3))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(made.run(double, i)) for i in (1, 2)]
        await asyncio.sleep(0.1)
        with pytest.raises(Busy):
            await made.run(double, 4)
        stale.cancel()
        return [await w for w in waiting]

    assert asyncio.run(all_of_them()) == [2, 4]


def test_what_a_job_has_started_ends_with_it(made: Worker, tmp_path: Any) -> None:
    path = tmp_path / "pid"

    async def stopped() -> None:
        job = asyncio.ensure_future(made.run(with_children, str(path)))
        while not (path.exists() and path.read_text()):
            await asyncio.sleep(0.05)
        job.cancel()
        await asyncio.wait([job])

    asyncio.run(stopped())
    for _ in range(100):
        try:
            # a process that has ended may still be listed until it is fetched
            with open(f"/proc/{path.read_text()}/stat") as file:
                if file.read().split()[2] == "Z":
                    break
        except FileNotFoundError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child lives on")


def test_how_far_a_job_is(made: Worker) -> None:
    said: list[float] = []
    assert asyncio.run(made.run(double, 2, tell=said.append)) == 4
    assert said == [0.5]
