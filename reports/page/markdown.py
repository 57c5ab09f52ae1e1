"""A report as Markdown: the same sentences and tables; figures are in the page."""

from __future__ import annotations

from collections.abc import Iterator

from reports.page.values import Exhibit, Report, Table


def markdown(report: Report) -> str:
    """Return the report; every figure's numbers stand in its table."""
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    v = report.verdict
    yield f"# {_plain(v.title)}"
    yield from (f"> {_plain(line)}" for line in v.warnings)
    yield f"**{v.word}**: {_plain(v.line)}"
    yield "\n".join(f"- **{f.name}**: {_plain(f.value)}{f' ({_plain(f.note)})' if f.note else ''}" for f in v.facts)
    for section in report.sections:
        yield f"## {section.title}"
        yield _plain(section.gist)
        for exhibit in section.exhibits:
            yield from _exhibit(exhibit)


def _exhibit(exhibit: Exhibit) -> Iterator[str]:
    if exhibit.title:
        yield f"### {_plain(exhibit.title)}"
    yield from map(_plain, exhibit.prose)
    if exhibit.table is not None and exhibit.table.rows:
        yield _table(exhibit.table)
    if exhibit.text:
        # a fence longer than any that the text may hold
        yield f"````\n{exhibit.text.rstrip()}\n````"
    yield from map(_plain, exhibit.notes)


def _table(table: Table) -> str:
    rule = ["---" if name in table.words else "---:" for name in table.head]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" if row is not rule else f"|{'|'.join(rule)}|"
                     for row in (table.head, rule, *table.rows))


def _cell(text: str) -> str:
    return _plain(text).replace("|", r"\|")


def _plain(text: str) -> str:
    """Return text in which nothing is taken for HTML, and no line ends."""
    return " ".join(text.split()).replace("<", "&lt;")
