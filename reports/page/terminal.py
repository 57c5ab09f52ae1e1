"""A report on one screen of 80 columns and 24 lines: the verdict, its figures, and one sentence of each section."""

from __future__ import annotations

import textwrap

from reports.page.values import Report

WIDTH, HEIGHT = 80, 24
NAME = 13
"""Columns of a name."""
SECTION_LINES = 2
VERDICT_LINES = 4


def summary(report: Report) -> str:
    """Return the report in at most `HEIGHT` lines of at most `WIDTH` columns."""
    v = report.verdict
    lines = _wrapped("", v.title, 1) + [line for w in v.warnings for line in _wrapped("! ", w, 1)][:1]
    lines += _wrapped("", f"{v.word.upper()}: {v.line}", VERDICT_LINES)
    for fact in v.facts:
        lines += _wrapped(fact.name.ljust(NAME), f"{fact.value}{f' ({fact.note})' if fact.note else ''}", 1)
    sections = [s for s in report.sections if s.gist]
    room = HEIGHT - 1 - len(lines)
    # the shell's prompt takes the last line; what is left is dealt out evenly
    for i, section in enumerate(sections):
        most = max(1, min(SECTION_LINES, (room - (len(sections) - 1 - i))))
        told = _wrapped(section.key.ljust(NAME), section.gist, most)
        lines += told
        room -= len(told)
    return "\n".join(lines[: HEIGHT - 1])


def _wrapped(name: str, text: str, most: int) -> list[str]:
    """Return text behind a name in at most so many lines, cut with an ellipsis where it is longer."""
    found = textwrap.wrap(text.replace("`", ""), WIDTH - len(name), max_lines=most, placeholder=" …", break_on_hyphens=False)
    return [(name if i == 0 else " " * len(name)) + line for i, line in enumerate(found)]
