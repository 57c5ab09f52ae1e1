"""What one rank's PyTorch profiler (Kineto) recorded: the parts of its file that say who did what, when, and why."""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiles.files import BadInput
from simulator.traces.events import Event, number, read_events

CATEGORIES = {
    "kernel": "device", "gpu_memcpy": "device", "gpu_memset": "device", "memcpy": "device", "memset": "device",
    "cuda_runtime": "launch", "cuda_driver": "launch", "runtime": "launch", "cpu_op": "op", "operator": "op",
    "user_annotation": "annotation",
}
"""Categories of events that are kept, old spellings included, and what they are here."""
COLLECTIVE_ARGS = ("Collective name", "Process Group Description", "Process Group Ranks", "In msg nelems", "Out msg nelems",
                   "dtype", "Input Dims", "Input type")
STEP = re.compile(r"^ProfilerStep#(\d+)$")


class Span(NamedTuple):
    """A named stretch of time of a thread (annotations) or of the device (kernels and copies), in ns."""

    name: str
    tid: int
    start_ns: int
    end_ns: int
    args: dict[str, Any]
    correlation: int = -1


@dataclass(frozen=True, slots=True)
class Table:
    """Many stretches: names as indices into `names`, threads, starts and ends in ns; launches have their correlation."""

    names: dict[str, int] = field(default_factory=dict)
    name: array[int] = field(default_factory=lambda: array("q"))
    tid: array[int] = field(default_factory=lambda: array("q"))
    start_ns: array[int] = field(default_factory=lambda: array("q"))
    end_ns: array[int] = field(default_factory=lambda: array("q"))

    def add(self, name: str, tid: int, start_ns: int, end_ns: int) -> None:
        self.name.append(self.names.setdefault(name, len(self.names)))
        self.tid.append(tid)
        self.start_ns.append(start_ns)
        self.end_ns.append(end_ns)

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return name, thread, start and end as arrays."""
        return tuple(np.array(c, np.int64) for c in (self.name, self.tid, self.start_ns, self.end_ns))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A file's contents; times in ns since the epoch of `base_ns`."""

    path: str
    rank: int
    world_size: int | None
    has_devices: bool
    base_ns: int
    device: list[Span]
    annotations: list[Span]
    ops: Table
    launches: Table
    steps: dict[int, Span]


def read_recorded(path: str | Path, place: int) -> Recorded:
    """Return what a profiler's trace holds; a rank that the file does not state is its place among the files."""
    device: list[Span] = []
    annotations: list[Span] = []
    ops, launches = Table(), Table()
    names: dict[str, str] = {}
    origin, seen = str(path), -1

    def take(event: Event) -> None:
        nonlocal seen
        seen += 1
        if event.get("ph") != "X":
            return
        category = CATEGORIES.get(str(event.get("cat")).lower())
        if category is None:
            return
        start_ns = round(1e3 * number(event, "ts", origin, seen))
        end_ns = start_ns + round(1e3 * number(event, "dur", origin, seen))
        name, tid, args = str(event.get("name", "")), event.get("tid"), event.get("args") or {}
        tid = tid if isinstance(tid, int) else -1
        if category == "op":
            ops.add(name, tid, start_ns, end_ns)
        elif category == "launch":
            if isinstance(args.get("correlation"), int):
                launches.add("", tid, start_ns, args["correlation"])
        else:
            # one string for each name: a file holds each a thousand times
            span = Span(names.setdefault(name, name), tid, start_ns, end_ns, _kept(args), args.get("correlation", -1))
            (device if category == "device" else annotations).append(span)

    fields = read_events(path, take)
    steps = {int(found[1]): span for span in annotations if (found := STEP.match(span.name))}
    distributed = _mapping(fields.get("distributedInfo"))
    if not steps:
        raise BadInput(
            f"{path}: has no ProfilerStep annotation, so no step can be told from the next; give torch.profiler.profile a "
            "schedule, and call its step() after each training step"
        )
    return Recorded(
        path=origin, rank=int(distributed.get("rank", place)), world_size=distributed.get("world_size"),
        has_devices=bool(fields.get("deviceProperties")), base_ns=int(fields.get("baseTimeNanoseconds") or 0), device=device,
        annotations=annotations, ops=ops, launches=launches, steps=steps,
    )


_NOTHING: dict[str, Any] = {}


def _kept(args: dict[str, Any]) -> dict[str, Any]:
    return {key: args[key] for key in COLLECTIVE_ARGS if key in args} or _NOTHING


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return {}
    return value if isinstance(value, dict) else {}
