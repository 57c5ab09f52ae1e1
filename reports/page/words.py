"""How a report writes durations, bands and terms."""

from __future__ import annotations

import math

from planner.economics import Band
from planner.predict import Prediction
from planner.question import Question
from profiles.units import show, significant
from reports.compare import ROUNDING_S, TERMS, share

MEMORY_NAMES = {
    "weights": "weights", "gradients": "gradients", "optimizer": "optimizer states", "gathered": "gathered weights",
    "activations": "activations", "transient": "transient, inside one pass", "framework": "framework",
    "slack": "allocator slack",
}
PASS_NAMES = {"F": "forward", "B": "backward", "W": "weight gradient", "U": "optimizer"}


def days(value: float | None) -> str:
    """Return a duration, in days where it is at least one."""
    if value is None or not math.isfinite(value):
        return "does not end"
    return f"{significant(value)} days" if value >= 1 else show(value * 86400, "s")


def usd(value: float | None) -> str:
    """Return dollars, or that no price is known."""
    return "no price known" if value is None else show(value, "usd")


def three(band: Band) -> tuple[float, float, float]:
    """Return P10, P50 and P90 as numbers."""
    return float(band.p10), float(band.p50), float(band.p90)


def losses(p: Prediction) -> list[tuple[str, float]]:
    """Return the terms of a step beside compute with their share of it, the largest first."""
    return sorted(((TERMS[t], s / p.step_time_s) for t, s in p.breakdown_s.items() if t != "compute" and s > ROUNDING_S),
                  key=lambda x: -x[1])


def binding(p: Prediction) -> tuple[str, str]:
    """Return what keeps a plan from being faster, and what comes next, with their shares."""
    if not p.fits:
        return "memory", f"{show(p.peak_memory_bytes, 'bytes')} needed, {show(p.usable_memory_bytes, 'bytes')} usable"
    terms = sorted([("compute", p.breakdown_s["compute"] / p.step_time_s), *losses(p)], key=lambda x: -x[1])
    then = f"then {terms[1][0]}, {share(terms[1][1])}; " if len(terms) > 1 else ""
    full = share(p.peak_memory_bytes / p.usable_memory_bytes)
    return f"{terms[0][0]}, {share(terms[0][1])} of the step", f"{then}memory {full} full"


def noun_of(question: Question) -> str:
    """Return what an accelerator is called."""
    return "GPU" if question.cluster.accelerator.device == "cuda" else "rank"


def plural(number: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
