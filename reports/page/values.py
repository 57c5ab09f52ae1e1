"""What a report is made of, whatever it is written as: sections of prose, figures and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text. `words` are the columns of words, the others hold numbers; `colours` mark rows as in the figure beside it.

    `strong` are the numbers of the rows that stand out. A table with many columns is `wide`: it stands below its figure.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    strong: tuple[int, ...] = ()
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure with the name that keeps it apart from others and the title that is read aloud."""

    name: str
    title: str
    figure: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A figure with its table beside it, and what must be said of both; `folded` behind its title where it is long.

    `text` is a file's own text, `key` its name in the page; `zoom` holds the spans of a figure that can be zoomed. In prose,
    `words` between back quotes are what people type.
    """

    title: str = ""
    prose: tuple[str, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    picture: Picture | None = None
    table: Table | None = None
    notes: tuple[str, ...] = ()
    text: str = ""
    key: str = ""
    folded: bool = False
    zoom: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report: its answer in one sentence (`gist`), and the exhibits that bear it out."""

    key: str
    title: str
    gist: str
    exhibits: tuple[Exhibit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A figure of the verdict: its name, its value, and what stands below it in small letters."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer: what was asked, whether it fits, one sentence, and the figures; `warnings` come before all of it."""

    title: str
    word: str
    good: bool
    line: str
    facts: tuple[Fact, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole report."""

    verdict: Verdict
    sections: tuple[Section, ...]

    @property
    def is_zoomed(self) -> bool:
        """Return whether a figure of it can be zoomed."""
        return any(e.zoom for section in self.sections for e in section.exhibits)
