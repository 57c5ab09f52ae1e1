"""The waterfall from one plan or run to another: terms that a person can act on, which add up to the difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from executor.run import Run
from planner.plan import Plan
from reports.compare import ROUNDING_S, current_prediction, per_cent, shown
from reports.sides import Side, two_sides
from reports.waterfall_notes import note
from simulator.waterfall import Quantity, waterfall

NAMES = {
    "model_work": "model, work per token", "extra_work": "work done more than once", "peak": "peak FLOP/s",
    "bandwidth": "memory bandwidth", "matmul": "matmul kernels", "grouped_matmul": "experts' matmul kernels",
    "attention": "attention kernels", "scan": "recurrence kernels", "pointwise": "norms and pointwise kernels",
    "routing": "routing to experts", "vocabulary": "embedding and loss", "casts": "casts to narrow types",
    "copies": "adding and copying gradients", "recompute": "recomputation", "imbalance": "imbalance of stages",
    "launch": "waiting for the host", "slowed": "slowed by communication", "forward": "forward passes",
    "backward": "backward passes", "exposed_tp": "exposed tp", "exposed_cp": "exposed cp", "exposed_ep": "exposed ep",
    "exposed_pp": "exposed pp", "exposed_dp": "exposed dp", "bubble": "pipeline bubble", "optimizer": "optimizer",
    "stragglers": "stragglers", "waiting": "waiting", "data": "data", "other": "other",
}
SHOWN = 5e-5
"""Changes of less than this share of the longer step are left out of tables and figures; JSON has all of them."""
STEP, TOKEN = "s of a step", "GPU-s of a token"
WORDS = {STEP: "time of a step", TOKEN: "time of one GPU for a token"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One term: the seconds that it adds on the way, the number of both sides that it is about, and one sentence."""

    term: str
    seconds: float
    first: Quantity | None
    second: Quantity | None
    note: str

    @property
    def name(self) -> str:
        """Return what people call the term."""
        return NAMES[self.term]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """The way from `first_s` to `second_s`, seconds in `unit`; the changes add up to their difference."""

    sides: tuple[str, str]
    unit: str
    first_s: float
    second_s: float
    changes: tuple[Change, ...]
    remarks: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[Change, ...]:
        """Return the changes that are large enough to be seen."""
        least = SHOWN * max(self.first_s, self.second_s)
        return tuple(c for c in self.changes if abs(c.seconds) > least)

    @property
    def frame(self) -> pd.DataFrame:
        """Return the changes that are seen as a table: term, name, seconds; what is left out together as the last."""
        rows = [(c.term, c.name, c.seconds) for c in self.shown]
        left = [("rest", "all others", self.left_s)] if abs(self.left_s) > ROUNDING_S else []
        return pd.DataFrame([*rows, *left], columns=["term", "name", "seconds"])

    @property
    def left_s(self) -> float:
        """Return what the changes that are too small to be seen come to."""
        shown = self.shown
        return math.fsum(c.seconds for c in self.changes if c not in shown)

    def as_dict(self) -> dict[str, Any]:
        """Return the waterfall for JSON."""
        return {
            "waterfall": [
                {"term": c.term, "seconds": c.seconds, "first": c.first.value if c.first else None,
                 "second": c.second.value if c.second else None, "unit": (c.first or c.second or _NOTHING).unit, "note": c.note}
                for c in self.changes
            ],
            "waterfall_first": self.first_s, "waterfall_second": self.second_s, "waterfall_unit": self.unit,
        }


_NOTHING = Quantity(value=0.0, unit="ratio")


def waterfall_between(first: Plan | Run, second: Plan | Run) -> Waterfall | None:
    """Return the way from one plan or run to another; None where a run recorded no pass.

    Seconds are those of a step where both train as many tokens on each GPU in it, else GPU-seconds of a token.
    """
    sides = two_sides(first, second)
    if sides is None:
        return None
    a, b = sides
    alike = a.tokens_per_gpu == b.tokens_per_gpu
    scale = a.tokens_per_gpu if alike else 1.0
    changes = tuple(
        Change(term=term, seconds=scale * seconds, first=a.step.about.get(term), second=b.step.about.get(term),
               note=note(term, a, b))
        for term, seconds in waterfall(a.step, b.step).items() if seconds or _stands(term, a, b)
    )
    names = ("predicted", "measured") if isinstance(first, Plan) and isinstance(second, Run) else ("A", "B")
    return Waterfall(
        sides=names, unit=STEP if alike else TOKEN, first_s=scale * a.step.gpu_s_per_token,
        second_s=scale * b.step.gpu_s_per_token, changes=changes,
        remarks=tuple(r for r in (_stated(n, p, s) for n, p, s in zip(names, (first, second), sides, strict=True)) if r),
    )


def _stands(term: str, a: Side, b: Side) -> bool:
    """Return whether a term that changes nothing is a part of either side all the same."""
    return max(abs(s.about(term)) for s in (a, b)) > SHOWN


def _stated(name: str, side: Plan | Run, replayed: Side) -> str:
    """Return what to know of a plan whose file states another step than its replay."""
    if isinstance(side, Run):
        return ""
    stated_s = current_prediction(side)[0].step_time_s
    now_s = replayed.step.gpu_s_per_token * replayed.tokens_per_gpu
    if abs(now_s / stated_s - 1) < 1e-3:
        return ""
    return f"{name}: the plan states a step of {shown(stated_s, 's', 4)}; replayed, as here, it takes {shown(now_s, 's', 4)}"


def waterfall_table(fall: Waterfall) -> Table:
    """Return a waterfall for the terminal."""
    table = Table(title=f"From {fall.sides[0]} to {fall.sides[1]}, {fall.unit}", title_justify="left", caption_justify="left",
                  caption=escape("\n".join(fall.remarks)) or None)
    table.add_column("term")
    for head in (*fall.sides, "adds"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("what it is, and what helps")
    table.add_row(fall.sides[0], "", "", shown(fall.first_s, "s", 4))
    table.add_section()
    for change in fall.shown:
        table.add_row(change.name, quantity(change.first), quantity(change.second), signed(change.seconds),
                      escape(change.note))
    if abs(fall.left_s) > ROUNDING_S:
        table.add_row("all others", "", "", signed(fall.left_s))
    table.add_section()
    table.add_row(fall.sides[1], "", "", shown(fall.second_s, "s", 4), per_cent(fall.second_s / fall.first_s - 1))
    return table


def quantity(about: Quantity | None) -> str:
    """Return the number that a term is about, as people read it."""
    if about is None:
        return "-"
    if about.unit == "bytes/s":
        return f"{shown(about.value, 'bytes')}/s"
    if about.unit == "FLOP/token":
        return f"{about.value:.3g} FLOP"
    return shown(about.value, about.unit)


def signed(seconds: float) -> str:
    """Return seconds with their sign."""
    text = shown(abs(seconds), "s")
    return text if text == "0 s" else f"{'-' if seconds < 0 else '+'}{text}"
