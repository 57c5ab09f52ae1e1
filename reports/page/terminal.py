"""A report on one screen of 80 columns and 24 lines: the verdict, its figures, and one sentence of each section."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

from reports.console import SCREEN_WIDTH
from reports.matmuls import matmuls
from reports.page.alternatives import alternatives_gist
from reports.page.evidence import evidence_gist
from reports.page.findings import Brief
from reports.page.measured import measured_gist
from reports.page.pool import pool_gist
from reports.page.risk import closed_gist
from reports.page.scaling import matmuls_gist
from reports.page.step import step_gist
from reports.page.verdict import bill_gist, verdict
from reports.page.why import why_gist

HEIGHT = 24
NAME = 13
"""Columns of a name."""
SECTION_LINES = 2
VERDICT_LINES = 4
SAID = ("duration", "cost")
"""Figures that the verdict's sentence holds already."""


def summary(found: Brief, plan: Path | None = None, width: int = SCREEN_WIDTH) -> str:
    """Return the report in at most `HEIGHT` lines of at most `width` columns, with what may be asked of the plan file next."""
    v = verdict(found)
    lines = _wrapped("", v.title, 1, width) + [line for w in v.warnings for line in _wrapped("! ", w, 1, width)][:1]
    lines += _wrapped("", f"{v.word.upper()}: {v.line}", VERDICT_LINES * SCREEN_WIDTH // width, width)
    for i, fact in enumerate(f for f in v.facts if f.name not in SAID):
        note = f" ({fact.note})" if fact.note and i else ""
        lines += _wrapped(fact.name.ljust(NAME), f"{fact.value}{note}", 1 if i else SECTION_LINES, width)
    then = _next(plan) if plan else []
    said = list(_sentences(found))
    # the shell's prompt takes the last line; what is left is dealt out evenly
    room = HEIGHT - 1 - len(lines) - len(then)
    for i, (name, sentence) in enumerate(said):
        most = max(1, min(SECTION_LINES, room - (len(said) - 1 - i)))
        told = _wrapped(name.ljust(NAME), sentence, most, width)
        lines += told
        room -= len(told)
    return "\n".join(lines + then)


def _sentences(found: Brief) -> Iterator[tuple[str, str]]:
    """Return what each section says where nothing more is searched or simulated, by its name."""
    yield "bill", bill_gist(found.bill, found.noun)
    yield "why", why_gist(found.prediction)
    if found.question.cluster.parts:
        yield "pool", pool_gist(found)
    yield "alternatives", alternatives_gist(found)
    rows = matmuls(found.question, found.plan.strategy)
    if len(rows):
        yield "scaling", matmuls_gist(rows)
    yield "step", step_gist(found.plan.strategy, found.timeline)
    yield "risk", closed_gist(found)
    if found.run is not None:
        yield "measured", measured_gist(found, found.run)
    yield "evidence", evidence_gist(found)


def _next(plan: Path) -> list[str]:
    # a command is never broken, however long the name of its file
    return [f"{'next':{NAME}}headway report {plan}", f"{'':{NAME}}also: simulate, whatif, export, run"]


def _wrapped(name: str, text: str, most: int, width: int) -> list[str]:
    """Return text behind a name in at most so many lines, cut with an ellipsis where it is longer."""
    found = textwrap.wrap(text.replace("`", ""), width - len(name), max_lines=most, placeholder=" …", break_on_hyphens=False)
    return [(name if i == 0 else " " * len(name)) + line for i, line in enumerate(found)]
