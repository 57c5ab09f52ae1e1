"""The journal of a run: a line of JSON for each step and each event, over all its restarts, in the order in which they came.

Ranks and launcher add lines by one write each; a line that a kill cut short is passed over when it is read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

JOURNAL_FILE = "journal.jsonl"
Line = dict[str, Any]


def note(folder: str | Path, **line: Any) -> Line:
    """Add a line to a run's journal, with the time now where it has none (`at_s`, seconds since 1970), and return it."""
    line = {"at_s": time.time(), **line}
    fd = os.open(Path(folder) / JOURNAL_FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        os.write(fd, (("\n" if torn else "") + json.dumps(line) + "\n").encode())
    finally:
        os.close(fd)
    return line


def read_journal(folder: str | Path) -> list[Line]:
    """Return the lines of a run's journal; none where there is no journal."""
    path = Path(folder) / JOURNAL_FILE
    lines = []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def trained_steps(lines: Iterable[Line]) -> dict[int, Line]:
    """Return the lines of the steps that count: those that no restart undid, by step."""
    steps: dict[int, Line] = {}
    for line in lines:
        if line.get("event") == "ready":
            steps = {step: kept for step, kept in steps.items() if step < line["step"]}
        elif "event" not in line:
            steps[line["step"]] = line
    return steps


def sample_faults(lines: Iterable[Line], num_steps: int, global_batch: int, first_sample: int = 0) -> list[str]:
    """Return which samples were lost or trained twice in the steps that count, by the places that ranks noted."""
    steps = trained_steps(lines)
    faults = [f"step {step} is missing" for step in range(num_steps) if step not in steps]
    due = first_sample
    for step in sorted(steps):
        for first, num, _ in sorted(steps[step]["samples"]):
            if first != due:
                faults.append(f"step {step} has samples from {first} on, and {due} was next")
            due = first + num
    if due != first_sample + num_steps * global_batch:
        faults.append(f"training ended before sample {due}, not before {first_sample + num_steps * global_batch}")
    return faults
