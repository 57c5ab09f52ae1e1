"""Where the time of a run went, over all its restarts, from its journal: terms that add up to the wall-clock time.

The vocabulary is the usual one of goodput: productive training, and what is lost to data, checkpoints, restarts and steps that
had to be trained again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from executor.journal import Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Seconds by what they were for; they add up to `wall_s`.

    `wasted_s` are steps that a restart undid. `restart_s` lasts from the last step before a failure to the first after it:
    noticing, waiting, starting, loading. `start_s` is the first start and the end.
    """

    training_s: float
    data_s: float
    checkpoint_s: float
    wasted_s: float
    restart_s: float
    start_s: float

    @property
    def wall_s(self) -> float:
        """Return the time of the run's launches, what lay between them apart."""
        return float(sum(asdict(self).values()))

    @property
    def ratio(self) -> float:
        """Return the share of productive training."""
        return self.training_s / self.wall_s if self.wall_s else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the terms and their sum for JSON."""
        return asdict(self) | {"wall_s": self.wall_s, "goodput": self.ratio}


def goodput(lines: Sequence[Line]) -> Goodput:
    """Return where the time of a run went."""
    spent = dict.fromkeys(("training", "data", "checkpoint", "wasted", "restart", "start"), 0.0)
    attempts = list(_attempts(lines))
    for index, attempt in enumerate(attempts):
        last = attempt[-1]["at_s"]
        following = attempts[index + 1] if index + 1 < len(attempts) else None
        if following and following[0].get("attempt"):
            last = following[0]["at_s"]
        undone_from = min((line["step"] for later in attempts[index + 1 :] for line in later if line.get("event") == "ready"),
                          default=None)
        for kind, seconds in _spent(attempt, last, undone_from, is_first=index == 0).items():
            spent[kind] += seconds
    return Goodput(**{f"{kind}_s": seconds for kind, seconds in spent.items()})


def _attempts(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """Yield the lines of each attempt, from its launch on; where there was no launcher, from when its ranks were ready."""
    kind = "launch" if any(line.get("event") == "launch" for line in lines) else "ready"
    begins = [i for i, line in enumerate(lines) if line.get("event") == kind]
    for begin, end in pairwise([*begins, len(lines)]):
        yield list(lines[begin:end])


def _spent(attempt: list[Line], last_s: float, undone_from: int | None, *, is_first: bool) -> dict[str, float]:
    """Return the seconds of an attempt by kind, until `last_s`; its steps from `undone_from` on were trained again."""
    begun_s = attempt[0]["at_s"]
    steps = [line for line in attempt if "event" not in line and "begun_at_s" in line]
    saved = [line for line in attempt if line.get("event") in ("checkpoint", "checkpoint_failed")]
    before = "start" if is_first else "restart"
    if not steps:
        return {before: last_s - begun_s}
    first_s = steps[0]["begun_at_s"]
    end_s = max([s["begun_at_s"] + s["step_time_s"] for s in steps] + [c["at_s"] + c["stall_s"] for c in saved])
    end_s = min(end_s, last_s)
    data = sum(s["data_s"] for s in steps)
    checkpoint = sum(c["stall_s"] for c in saved)
    undone = [s for s in steps if undone_from is not None and s["step"] >= undone_from]
    wasted = sum(s["step_time_s"] for s in undone)
    data -= sum(s["data_s"] for s in undone)
    failed = any(line.get("event") == "failure" for line in attempt)
    spent = {"data": data, "checkpoint": checkpoint, "wasted": wasted,
             "training": end_s - first_s - data - checkpoint - wasted, "restart": 0.0, "start": 0.0}
    spent[before] += first_s - begun_s
    spent["restart" if failed else "start"] += last_s - end_s
    return spent
