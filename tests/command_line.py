"""The command line as a person meets it: what a command leaves, and what a mistake must look like."""

from __future__ import annotations

from typing import NamedTuple


class Result(NamedTuple):
    """What a command left: exit status, stdout, stderr."""

    code: int
    out: str
    err: str


def mistake(result: Result, *parts: str) -> None:
    """Assert one line on stderr that names field, value and mend; status 2; no traceback; nothing on stdout."""
    assert result.code == 2, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("headway: "), result.err
    assert "Traceback" not in result.err
    for part in parts:
        assert part in lines[0], lines[0]
    assert result.out == ""
