"""The accuracy of predictions as one self-contained HTML page, and its rows as a CSV."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from profiles import files
from profiles.units import significant
from reports.accuracy import GROUPINGS, Accuracy, Outcome
from reports.compare import TERMS, per_cent, share, shown
from reports.figures import svg
from reports.figures.accuracy import colour_of, histogram, scatter, spans
from reports.figures.palette import css, css_variables
from reports.headline import Headline, headlines
from reports.published import Skipped

NUM_WORST = 20
NUM_SWEEPS = 30
DRAWN_GROUPINGS = ("accelerator", "source")


def write_accuracy_page(accuracy: Accuracy, path: str | Path, title: str) -> Path:
    """Write the page of an accuracy."""
    return files.write_text(path, render_accuracy_page(accuracy, title))


def render_accuracy_page(accuracy: Accuracy, title: str) -> str:
    """Return the page's HTML; the same values give the same text."""
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters |= {"per_cent": per_cent, "share": share, "si": shown, "significant": significant, "ratio": ratio}
    timed, groups = accuracy.timed, accuracy.groups
    drawn = {by: _members(by, timed) for by in DRAWN_GROUPINGS} if timed else {}
    rows = pd.DataFrame([{"gpu": o.gpu, "measured_s": o.measured_s, "predicted_s": o.predicted_s, "error": o.error}
                         for o in timed])
    return environment.get_template("accuracy.html.j2").render(
        title=title, accuracy=accuracy, headlines=_by_set(accuracy), terms=TERMS,
        groups={by: [g for g in groups if g.by == by] for by in GROUPINGS} if timed else {},
        sweeps=accuracy.sweeps[:NUM_SWEEPS], num_sweeps=len(accuracy.sweeps), worst=worst(accuracy),
        skipped=reasons(accuracy.skipped), left_out=any(g.loso_mape is not None for g in groups),
        scatter=Markup(svg(scatter(rows), "scatter", "predicted over measured step time")) if timed else None,
        histogram=Markup(svg(histogram(rows), "errors", "distribution of errors")) if timed else None,
        legend=legend(timed), colours=css_variables(), dark_colours=css_variables(dark=True),
        spans={by: Markup(svg(spans(_errors(members)), f"spans-{by}", f"errors by {by}")) for by, members in drawn.items()},
    )


def legend(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    """Return colour and accelerators of that colour, in the order of the palette."""
    names: dict[str, list[str]] = {}
    for gpu in sorted({o.gpu for o in outcomes}):
        names.setdefault(css(colour_of(gpu)), []).append(gpu)
    return [(colour, ", ".join(of)) for colour, of in names.items()]


def _errors(groups: Mapping[str, Sequence[Outcome]]) -> pd.DataFrame:
    return pd.DataFrame([{"group": key, "error": o.error or 0.0} for key, members in groups.items() for o in members])


def ratio(value: float | None, digits: int = 2) -> str:
    """Return a plain ratio, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def worst(accuracy: Accuracy) -> list[Outcome]:
    """Return the runs with the largest errors, the largest first."""
    return sorted(accuracy.timed, key=lambda o: (-abs(o.error or 0.0), o.id))[:NUM_WORST]


def reasons(skipped: tuple[Skipped, ...]) -> list[tuple[int, str, str]]:
    """Return how many rows were left out for each kind of reason, with the first one's id and sentence."""
    kinds = Counter(_kind(s.reason) for s in skipped)
    first = {_kind(s.reason): f"{s.id}: {s.reason}" for s in reversed(skipped)}
    return [(count, kind, first[kind]) for kind, count in kinds.most_common()]


def _kind(reason: str) -> str:
    """Return what reasons of one kind share: the words, not the numbers and names."""
    if reason.startswith("repeats "):
        return "repeats another row"
    return re.sub(r"'[^']*'", "'...'", re.sub(r"\d[\d.]*", "#", reason))


def rows_csv(accuracy: Accuracy) -> str:
    """Return every row as CSV, the parts of the predicted step as columns of their own."""
    text = io.StringIO()
    flat = [
        {k: v for k, v in o.as_dict().items() if k != "breakdown_s"} | {f"{k}_s": v for k, v in o.breakdown_s.items()}
        for o in accuracy.outcomes
    ]
    if flat:
        writer = csv.DictWriter(text, fieldnames=list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    return text.getvalue()


def _by_set(accuracy: Accuracy) -> dict[str, list[Headline]]:
    found: dict[str, list[Headline]] = {}
    for headline in headlines(accuracy):
        found.setdefault(headline.set, []).append(headline)
    return found


def _members(by: str, outcomes: tuple[Outcome, ...]) -> dict[str, list[Outcome]]:
    members: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        members.setdefault(GROUPINGS[by](outcome), []).append(outcome)
    return dict(sorted(members.items(), key=lambda x: (-len(x[1]), x[0])))
