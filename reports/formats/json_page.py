"""The page of what each verb prints with `--json`, made from the models of the answers: `docs/json.md`."""

from __future__ import annotations

from collections.abc import Iterator

from reports.formats.answers import ANSWERS
from reports.formats.answers.planning import Answer
from reports.formats.schema import field_tables, spoken

TOP = """\
# Keys of `--json`

<!-- Made by scripts/docs from the models of the answers (reports/formats/answers/): change those, not this page. -->

Every verb takes `--json`: one JSON object on stdout, SI numbers, no NaN or Infinity, and nothing else there. Progress and
warnings go to stderr. A mistake is one line on stderr, nothing on stdout, and exit status 2. New keys may be added; those that
are here keep their meaning. *Sometimes*: the key is there only where it applies. A type that several answers hold is told once.
"""


def json_page() -> str:
    """Return the page of all answers in Markdown."""
    return "\n".join(line.rstrip() for line in _lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield TOP
    seen: set[str] = set()
    for verb, kind in ANSWERS.items():
        yield from (f"## headway {verb}", "")
        yield from _own(kind, seen)


def _own(kind: type[Answer], seen: set[str]) -> Iterator[str]:
    """Yield what an answer has beyond those that it is made of, then these, but of those that were `seen` before."""
    parents = [base for base in kind.__bases__ if issubclass(base, Answer) and base is not Answer]
    if parents:
        yield from (f"The keys of {' and of '.join(map(_link, parents))}, and:", "")
    yield from field_tables(kind, seen, answer=True, told={name for base in parents for name in base.model_fields})
    yield ""
    for base in parents:
        if base.__name__ not in seen and base not in ANSWERS.values():
            seen.add(base.__name__)
            yield from (f"### {spoken(base.__name__)}", "", *_own(base, seen))


def _link(kind: type[Answer]) -> str:
    verb = next((verb for verb, answer in ANSWERS.items() if answer is kind), None)
    name = f"headway {verb}" if verb else spoken(kind.__name__).lower()
    return f"[{name}](#{name.replace(' ', '-')})"
