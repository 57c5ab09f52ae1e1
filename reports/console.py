"""The terminal: where it is, and progress bars that stay quiet in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PIPE_WIDTH = 160
"""Columns where nobody's terminal says how many."""
console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
status = Console(stderr=True)
SCREEN_WIDTH = 80
"""Columns of a summary: those of the smallest common terminal."""
Advance = Callable[[float], None]


def screen_width() -> int:
    """Return the columns of a summary: fewer where the terminal has fewer."""
    return min(SCREEN_WIDTH, console.width)


@contextmanager
def progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show one bar on stderr while the body runs; it is given a function that takes the share done and a note."""
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=status, disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(title, total=1.0, note="")

        def advance(share: float, note: str = "") -> None:
            bar.update(task, completed=share, note=note)

        yield advance
        bar.update(task, completed=1.0, note="")
