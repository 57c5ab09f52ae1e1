"""Who else used the processor while something was measured here."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

T = TypeVar("T")

PROC = Path("/proc")
MANY_CORES = 0.2
"""More cores than this in the hands of others disturb a measurement by about as much as it should be accurate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A moment: processor seconds used until then by all (None where the system does not tell) and by this process.

    `own_s` counts children that have ended, too. `load_average` is the machine's over the minute before.
    """

    at_s: float
    busy_s: float | None
    own_s: float
    load_average: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load average when something began, and the cores that other processes used meanwhile (None: not known)."""

    average: float
    cores_of_others: float | None

    @property
    def disturbed(self) -> bool:
        """Return whether others used so much that times are doubtful."""
        return self.cores_of_others is not None and self.cores_of_others > MANY_CORES


def quieter(samples: Sequence[T], cores_of_others: Sequence[float]) -> list[T]:
    """Return the samples that others did not disturb; where those are few, the half that they disturbed least."""
    limit = max(MANY_CORES, median(cores_of_others))
    return [s for s, cores in zip(samples, cores_of_others, strict=True) if cores <= limit]


def usage(children: Sequence[int] = ()) -> Usage:
    """Return the processor seconds used until now; own are those of living `children`, too."""
    own_s = sum(os.times()[:4]) + sum(map(_seconds_of, children))
    return Usage(at_s=time.perf_counter(), busy_s=_busy_s(), own_s=own_s, load_average=os.getloadavg()[0])


def descendants() -> tuple[int, ...]:
    """Return the ids of the processes that this one has started, and of those that they have; none without /proc."""
    parents = {pid: stat[1] for pid in _all_pids() if (stat := _stat_of(pid))}
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if int(parent) in found} - found:
        found |= more
    return tuple(sorted(found - {os.getpid()}))


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in PROC.glob("[0-9]*")]


def _stat_of(pid: int) -> list[str]:
    """Return the fields of a process behind its name: state, parent, ... (proc_pid_stat(5)); nothing if it has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def _seconds_of(pid: int) -> float:
    return sum(map(int, _stat_of(pid)[11:15])) / os.sysconf("SC_CLK_TCK")


def load_between(start: Usage, end: Usage) -> Load:
    """Return who used the processor between two moments."""
    others = cores_between(start, end, end.own_s - start.own_s)
    return Load(average=round(start.load_average, 2), cores_of_others=None if others is None else round(others, 2))


def cores_between(start: Usage, end: Usage, own_s: float) -> float | None:
    """Return the cores used between two moments beside those `own_s` processor seconds, or None where that is not known."""
    if start.busy_s is None or end.busy_s is None or end.at_s <= start.at_s:
        return None
    return max(0.0, (end.busy_s - start.busy_s - own_s) / (end.at_s - start.at_s))


def _busy_s() -> float | None:
    """Return processor seconds that were not idle since the machine started, over all its cores (proc_stat(5))."""
    stat = PROC / "stat"
    if not stat.exists():
        return None
    first = stat.read_text(encoding="utf-8").split("\n", 1)[0]
    user, nice, system, _, _, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
