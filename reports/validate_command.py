"""What `headway validate` does: read published runs, predict them, and show how far off the predictions are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from profiles import files
from profiles.files import BadInput
from reports.accuracy import Accuracy, Change, Laws, changes, fitted_laws, predict_rows
from reports.accuracy_page import accuracy_report, ratio, rows_csv, target, value
from reports.accuracy_summary import reasons, summary_of, summary_text
from reports.calibrated import fit_calibrations, without_its_source, write_calibrations
from reports.compare import per_cent, share
from reports.headline import Headline, headlines
from reports.page import write_report
from reports.page.values import Report
from reports.rows import MEASURED, NEEDED, chosen, read_rows

COLUMNS_HELP = (
    f"A CSV of measured runs, one a row, with the columns {', '.join(NEEDED)} and one of {', '.join(MEASURED)}; "
    "docs/validate.md says what each holds. [the published runs of the catalogue]"
)


def validate(
    path: Path | None, where: Sequence[str] = (), out: Path | None = None,
    on_progress: Callable[[float], None] | None = None, laws: Laws = fitted_laws, leave_out: bool = False,
) -> Accuracy:
    """Return the accuracy over the chosen rows of a file, and write page, rows and figures into a folder if one is given.

    With `leave_out`, each row is predicted a second time by calibrations fitted on the file without the row's source.
    """
    path = path or files.catalog_path("published_runs.csv")
    rows = chosen(read_rows(path), where)
    if out is not None:
        files.make_folder(out)
    tell = on_progress or (lambda share: None)
    loso = without_its_source(fit_calibrations(rows, lambda share: tell(0.8 * share))) if leave_out else None
    begin = 0.8 if leave_out else 0.0
    accuracy = predict_rows(rows, laws=laws, loso=loso, on_progress=lambda share: tell(begin + (1 - begin) * share))
    if out is not None:
        title = path.name + "".join(f", {condition}" for condition in where)
        write_accuracy(accuracy, accuracy_report(accuracy, title), accuracy_json(accuracy), out)
        files.write_text(out / "summary.json", summary_text(summary_of(accuracy)))
    return accuracy


def write_accuracy(accuracy: Accuracy, report: Report, data: Mapping[str, Any], out: Path) -> None:
    """Write an accuracy into a folder: its report as a page and as Markdown, its rows, and all of it as JSON."""
    for name in ("accuracy.html", "accuracy.md"):
        write_report(report, out / name)
    files.write_text(out / "rows.csv", rows_csv(accuracy))
    files.write_text(out / "accuracy.json", json.dumps(data, indent=1, allow_nan=False))


def calibrate_runs(
    path: Path | None, where: Sequence[str], folder: Path, on_progress: Callable[[float], None] | None = None
) -> list[Path]:
    """Fit the catalogue's calibrations on the chosen rows of a file and write them into a folder."""
    rows = read_rows(path or files.catalog_path("published_runs.csv"))
    return write_calibrations(fit_calibrations(chosen(rows, where), on_progress), folder)


def accuracy_json(accuracy: Accuracy) -> dict[str, Any]:
    """Return what `validate --json` prints; `rows` are those with a measured time, `memory_rows` those with a peak."""
    return {
        "rows": [o.as_dict() for o in accuracy.timed],
        "skipped": [asdict(s) for s in accuracy.skipped],
        "groups": [asdict(g) for g in accuracy.groups],
        "headline": [asdict(h) | {"met": h.met} for h in headlines(accuracy)],
        "choice": [asdict(s) for s in accuracy.sweeps],
        "memory": [asdict(m) for m in accuracy.memory],
        "memory_rows": [
            {"id": o.id, "peak_kind": o.peak_kind, "measured_peak_bytes": o.measured_peak_bytes,
             "peak_bytes": o.peak_bytes, "error": o.peak_error, "fits": o.fits}
            for o in accuracy.outcomes if o.measured_peak_bytes is not None
        ],
        "share_not_fitting": accuracy.share_not_fitting,
    }


def read_before(path: Path) -> list[dict[str, Any]]:
    """Return the groups of an earlier `validate --json`, to compare with."""
    groups = files.read_mapping(path).get("groups")
    if not isinstance(groups, list) or not all(isinstance(g, dict) and {"by", "key", "mape"} <= set(g) for g in groups):
        raise BadInput(f"{path}: groups: is missing or no list of groups; give what `headway validate --json` printed")
    return groups


def accuracy_tables(accuracy: Accuracy, before: Sequence[dict[str, Any]] | None = None) -> list[Table]:
    """Return what the terminal shows: the headline, the groups, memory, what was left out and what has changed."""
    tables = [_headline_table(headlines(accuracy)), _group_table(accuracy)]
    if accuracy.skipped:
        tables.append(_skipped_table(accuracy))
    if before is not None:
        tables.append(_change_table(changes(before, accuracy.groups)))
    return [t for t in tables if t.row_count]


def _headline_table(found: Sequence[Headline]) -> Table:
    table = Table(title="Predicted against measured", title_justify="left")
    for name in ("set", "n", "figure", "reached", "target", ""):
        table.add_column(name, justify="right" if name in ("n", "reached", "target") else "left")
    last = ""
    for h in found:
        new = h.set != last
        met = "" if h.met is None else "met" if h.met else "not met"
        table.add_row(h.set if new else "", str(h.n) if new else "", h.figure, value(h, h.reached), target(h), met)
        last = h.set
    return table


def _group_table(accuracy: Accuracy) -> Table:
    table = Table(title="Errors of the step's time, by group", title_justify="left")
    left_out = any(o.loso_s is not None for o in accuracy.timed)
    for name in ("by", "key", "n", "MAPE", "median", "P90", "bias", "coverage", "tau", *(("left out",) if left_out else ())):
        table.add_column(name, justify="left" if name in ("by", "key") else "right")
    last = ""
    for g in accuracy.groups:
        cells = [g.by if g.by != last else "", g.key, str(g.n), share(g.mape), share(g.median), share(g.p90),
                 per_cent(g.bias), share(g.coverage), ratio(g.tau)]
        table.add_row(*cells, *([("-" if g.loso_mape is None else share(g.loso_mape))] if left_out else []))
        last = g.by
    return table


def _skipped_table(accuracy: Accuracy) -> Table:
    table = Table(title=f"Left out: {len(accuracy.skipped)} rows", title_justify="left")
    table.add_column("rows", justify="right")
    table.add_column("reason")
    table.add_column("the first")
    for left_out in reasons(accuracy.skipped):
        table.add_row(str(left_out.rows), left_out.reason, left_out.first.split(":")[0])
    return table


def _change_table(found: Sequence[Change]) -> Table:
    table = Table(title="MAPE before and after", title_justify="left")
    for name in ("by", "key", "before", "after", "change"):
        table.add_column(name, justify="left" if name in ("by", "key") else "right")
    for c in sorted(found, key=lambda c: c.before - c.after):
        table.add_row(c.by, c.key, share(c.before), share(c.after), per_cent(c.after - c.before))
    return table
