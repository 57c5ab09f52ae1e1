"""Reading traces: our own come back as they were, a PyTorch profiler's become a timeline of one step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from profiles.files import BadInput
from simulator.strategy import Strategy
from simulator.timeline import COLUMNS, PRODUCER, Timeline, prefix
from simulator.traces.events import Event, number, opened, read_events
from simulator.traces.kineto import Step, step_of
from simulator.traces.recorded import Recorded, read_recorded

PROFILER = "profiler"
"""The source of rows that a profiler recorded."""
HEAD = 1 << 12
"""Characters in which a trace says that it is one, and ours that they are ours."""


def read_trace(
    paths: Sequence[str | Path], step: int | None = None, strategy: Strategy | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Timeline:
    """Return the timeline in trace files: one that we wrote, or one of a PyTorch profiler for each rank.

    `step` is the number of the ProfilerStep (default: of those in the first file, the one of median length); `strategy`
    tells the axis of process groups that have no name. A file that is cut, damaged or says too little is a `BadInput`.
    """
    if not paths:
        raise BadInput("trace: no file is given")
    if is_ours(paths[0]):
        if len(paths) > 1:
            raise BadInput(f"{paths[1]}: beside a trace of our own no other can be read; give one file")
        return _ours(paths[0])
    recorded = []
    for place, path in enumerate(paths):
        recorded.append(read_recorded(path, place))
        on_progress((place + 1) / len(paths))
    index = _median_step(recorded[0]) if step is None else step
    return _joined(recorded, [step_of(r, index, strategy) for r in recorded])


def is_trace(path: str | Path) -> bool:
    """Return whether a file looks like a trace, whole or cut, by what profilers write in front."""
    with opened(path) as file:
        head = file.read(HEAD)
    return any(f'"{field}"' in head for field in ("traceEvents", "deviceProperties", "schemaVersion"))


def is_ours(path: str | Path) -> bool:
    """Return whether a trace says that this program wrote it."""
    with opened(path) as file:
        head = file.read(HEAD)
    try:
        fields = json.loads(head[: head.index('"traceEvents"')] + '"traceEvents": []}')
    except ValueError:
        return False
    other = fields.get("otherData") if isinstance(fields, dict) else None
    return isinstance(other, dict) and other.get("producer") == PRODUCER


def _ours(path: str | Path) -> Timeline:
    rows: list[tuple[Any, ...]] = []
    seen = -1

    def take(event: Event) -> None:
        nonlocal seen
        seen += 1
        if event.get("ph") == "X":
            start_us, dur_us = (number(event, key, str(path), seen) for key in ("ts", "dur"))
            args, name = event["args"], event["name"]
            pass_, microbatch = args["pass"], args.get("microbatch", -1)
            rows.append((
                event["pid"], event["cat"], start_us / 1e6, (start_us + dur_us) / 1e6, name[len(prefix(pass_, microbatch)) :],
                pass_, args.get("layer", -1), microbatch, float(args.get("bytes", 0.0)), args["source"],
            ))

    try:
        step_time_s = float(read_events(path, take)["otherData"]["step_time_s"])
    except (KeyError, TypeError) as e:
        raise BadInput(f"{path}: event {seen} is none of ours: {e} is missing; write the trace again") from None
    return Timeline(rows=pd.DataFrame(rows, columns=list(COLUMNS)), step_time_s=step_time_s)


def _median_step(recorded: Recorded) -> int:
    """Return the step of median length of those that hold anything: behind the last step() one is open and empty."""
    starts = np.sort(np.concatenate([recorded.ops.columns()[2], [s.start_ns for s in recorded.device]]))
    held = {n: np.diff(np.searchsorted(starts, [s.start_ns, s.end_ns]))[0] for n, s in recorded.steps.items()}
    steps = [n for n in recorded.steps if held[n]] or list(recorded.steps)
    by_length = sorted(steps, key=lambda n: (recorded.steps[n].end_ns - recorded.steps[n].start_ns, n))
    return by_length[(len(by_length) - 1) // 2]


def _joined(recorded: list[Recorded], steps: list[Step]) -> Timeline:
    """Return the steps of several ranks as one timeline, by the clocks of their machines."""
    ranks: dict[int, str] = {}
    for r in recorded:
        if r.rank in ranks:
            raise BadInput(f"{r.path}: is of rank {r.rank}, and so is {ranks[r.rank]}; give one file for each rank")
        ranks[r.rank] = r.path
    origin, end = min(s.start_ns for s in steps), max(s.end_ns for s in steps)
    latest = max(range(len(steps)), key=lambda i: steps[i].start_ns)
    if steps[latest].start_ns >= min(s.end_ns for s in steps):
        apart_s = (steps[latest].start_ns - origin) / 1e9
        raise BadInput(
            f"{recorded[latest].path}: its step begins {apart_s:.3g} s after another rank's, when that one has ended; give "
            "traces of the same step, of machines whose clocks agree"
        )
    rows = pd.concat([s.rows.assign(rank=s.rank) for s in sorted(steps, key=lambda s: s.rank)], ignore_index=True)
    rows = rows.assign(
        start_s=(rows["start_ns"] - origin) / 1e9, end_s=(rows["end_ns"] - origin) / 1e9, source=PROFILER,
        rank=rows["rank"].astype(np.int64),
    )
    return Timeline(rows=rows[list(COLUMNS)].sort_values(["rank", "start_s"], kind="stable", ignore_index=True),
                    step_time_s=(end - origin) / 1e9)
