"""What is shown of an accuracy: its figures, its groups, its largest errors with what is known of them, what was left out.

A summary holds no run but the worst ones, and is written to a file and read back: docs/accuracy.md is made of such records.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from profiles import files
from profiles.files import BadInput
from reports.accuracy import Accuracy, Group, MemoryGroup, Outcome
from reports.choice import Sweep
from reports.compare import TERMS, per_cent, share, shown
from reports.headline import Headline, headlines
from reports.published import Skipped

NUM_WORST = 20
NUM_SWEEPS = 30
DIGITS = 5
"""Significant digits of a record's numbers."""
WITHIN = (0.02, 0.05, 0.10, 0.20)
MANY_ROWS, LARGE_BIAS = 3, 0.15
"""A source of so many rows, whose mean error is so large, is off as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """A run with one of the largest errors, and what is known of why."""

    id: str
    model: str
    gpu: str
    num_gpus: int
    source: str
    strategy: str
    precision: str
    software: str
    measured_s: float
    predicted_s: float
    error: float
    inside: bool
    measured_mfu: float | None
    mfu: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Rows that were left out for one kind of reason, and the first of them."""

    rows: int
    reason: str
    first: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the page of an accuracy shows; `within` is the share of runs with an error no larger than each of `WITHIN`."""

    num_predicted: int
    num_timed: int
    num_skipped: int
    headlines: tuple[Headline, ...]
    groups: tuple[Group, ...]
    within: tuple[float, ...]
    worst: tuple[Worst, ...]
    num_sweeps: int
    sweeps: tuple[Sweep, ...]
    memory: tuple[MemoryGroup, ...]
    share_not_fitting: float | None
    left_out: tuple[LeftOut, ...]


def summary_of(accuracy: Accuracy) -> Summary:
    """Return what is shown of an accuracy."""
    timed, sweeps = accuracy.timed, accuracy.sweeps
    sizes = [abs(o.error or 0.0) for o in timed]
    return Summary(
        num_predicted=len(accuracy.outcomes), num_timed=len(timed), num_skipped=len(accuracy.skipped),
        headlines=headlines(accuracy), groups=accuracy.groups,
        within=tuple(sum(s <= most for s in sizes) / len(sizes) for most in WITHIN) if sizes else (),
        worst=worst(timed), num_sweeps=len(sweeps), sweeps=sweeps[:NUM_SWEEPS], memory=accuracy.memory,
        share_not_fitting=accuracy.share_not_fitting, left_out=reasons(accuracy.skipped),
    )


def worst(timed: Sequence[Outcome]) -> tuple[Worst, ...]:
    """Return the runs with the largest errors, the largest first."""
    largest = sorted(timed, key=lambda o: (-abs(o.error or 0.0), o.id))[:NUM_WORST]
    return tuple(
        Worst(id=o.id, model=o.model, gpu=o.gpu, num_gpus=o.num_gpus, source=o.source, strategy=o.strategy,
              precision=o.precision, software=o.software, measured_s=o.measured_s or 0.0, predicted_s=o.predicted_s,
              error=o.error or 0.0, inside=bool(o.inside), measured_mfu=o.measured_mfu, mfu=o.mfu, reason=why(o, timed))
        for o in largest
    )


def why(outcome: Outcome, timed: Sequence[Outcome]) -> str:
    """Return what the other runs, and the row itself, say of an error; always the largest part of the predicted step."""
    said = [f"{TERMS[outcome.dominant]} {share(outcome.dominant_share)}"]
    twins = [o for o in timed if o is not outcome and _settings(o) == _settings(outcome)]
    if twins:
        times = [o.measured_s or 0.0 for o in twins]
        said.append(f"the same settings took {_span(min(times), max(times))} in {len(twins)} other rows")
    errors = [o.error or 0.0 for o in timed if o.source == outcome.source]
    bias = sum(errors) / len(errors)
    if len(errors) >= MANY_ROWS and abs(bias) >= LARGE_BIAS and bias * (outcome.error or 0.0) > 0:
        said.append(f"its source as a whole: {per_cent(bias)} over {len(errors)} rows")
    if outcome.trust > "A" or not outcome.full:
        said.append("settings in part inferred")
    return "; ".join(said)


def _settings(o: Outcome) -> tuple[Any, ...]:
    return o.model, o.gpu, o.num_gpus, o.precision, o.strategy, o.tokens_per_step


def _span(low: float, high: float) -> str:
    return shown(low, "s") if low == high else f"{shown(low, 's')} to {shown(high, 's')}"


def reasons(skipped: Sequence[Skipped]) -> tuple[LeftOut, ...]:
    """Return how many rows were left out for each kind of reason, with the first one's id and sentence."""
    kinds = Counter(_kind(s.reason) for s in skipped)
    first = {_kind(s.reason): f"{s.id}: {s.reason}" for s in reversed(skipped)}
    return tuple(LeftOut(rows=count, reason=kind, first=first[kind]) for kind, count in kinds.most_common())


def _kind(reason: str) -> str:
    """Return what reasons of one kind share: the words, not the numbers and names."""
    if reason.startswith("repeats "):
        return "repeats another row"
    return re.sub(r"'[^']*'", "'...'", re.sub(r"\d[\d.]*", "#", reason))


def with_notes(summary: Summary, notes: Mapping[str, str]) -> Summary:
    """Return a summary whose worst runs say, too, what is noted of them (id -> sentence)."""
    noted = (replace(w, reason=f"{w.reason}; {notes[w.id]}") if w.id in notes else w for w in summary.worst)
    return replace(summary, worst=tuple(noted))


def record_text(data: Mapping[str, Any]) -> str:
    """Return a record as JSON, an item of a list a line."""
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {_lines(value)}" for name, value in rounded(data).items()) + "\n}\n"


def summary_text(summary: Summary) -> str:
    """Return a summary as the text of a record."""
    return record_text(asdict(summary))


def read_summary(path: Path) -> Summary:
    """Return the summary in a record."""
    try:
        return TypeAdapter(Summary).validate_json(files.read_text(path))
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise BadInput(f"{path}: {field}: {first['msg']}; give the summary.json that `headway validate` wrote") from None


def rounded(value: Any) -> Any:
    """Return plain values with numbers of a few digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(item, ensure_ascii=False, allow_nan=False)}" for item in value) + "\n ]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
