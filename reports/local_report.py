"""What `headway validate --local` shows: every case, predicted beside measured, and the machine that measured it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from profiles import files
from profiles.files import BadInput
from profiles.measure.others import Load
from profiles.tables import MeasuredTable
from reports.accuracy import Accuracy, Outcome
from reports.accuracy_page import short_section, target, time_section, value, verdict
from reports.accuracy_summary import summary_of
from reports.compare import TERMS, per_cent, share, shown
from reports.headline import LOCAL, headlines
from reports.page.values import Exhibit, Report, Section
from reports.page.values import Table as Cells
from reports.validate_command import accuracy_json

COLUMNS = ("case", "measured", "predicted", "error", "in P10 to P90", "largest part", "peak measured", "peak predicted",
           "error of the peak", "load", "others")
WORDS = ("case", "in P10 to P90", "largest part")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAccuracy:
    """The outcome of each case, the runs' folders aside, what was said by others' use of the processor, and the machine."""

    accuracy: Accuracy
    loads: tuple[Load, ...]
    warnings: tuple[str, ...]
    machine: Mapping[str, Any]


def machine_of(table: MeasuredTable) -> dict[str, Any]:
    """Return which machine a profile is of: its date, processor, versions, and who else used it meanwhile."""
    return {"date": str(table.head["date"]), "backend": table.head["backend"], **table.head["environment"]}


def machine_line(machine: Mapping[str, Any]) -> str:
    """Return the machine of some runs in a line."""
    m = machine
    return f"{m['date']}: {m['cores']} cores of {m['device']}, {m['backend']}, torch {m['torch']}, Python {m['python']}"


def local_json(result: LocalAccuracy) -> dict[str, Any]:
    """Return what `validate --local --json` prints: as `validate --json`, with the machine and who else used it."""
    loads = [{"load_average": x.average, "cores_of_others": x.cores_of_others} for x in result.loads]
    return accuracy_json(result.accuracy) | {"machine": dict(result.machine), "loads": loads, "warnings": list(result.warnings)}


def read_local(path: Path) -> LocalAccuracy:
    """Return the runs in the accuracy.json of an earlier `validate --local`."""
    data = files.parse_mapping(files.read_text(path), str(path))
    try:
        given = ({f.name: row[f.name] for f in fields(Outcome) if f.name != "set_key"} for row in data["rows"])
        return LocalAccuracy(
            accuracy=Accuracy(outcomes=tuple(Outcome(set_key=row["id"], **row) for row in given), skipped=()),
            loads=tuple(Load(average=x["load_average"], cores_of_others=x["cores_of_others"]) for x in data["loads"]),
            warnings=tuple(data["warnings"]), machine=data["machine"],
        )
    except (KeyError, TypeError) as e:
        raise BadInput(f"{path}: {e} is missing; give the accuracy.json that `headway validate --local` wrote") from None


def local_report(result: LocalAccuracy) -> Report:
    """Return the report of runs on this machine."""
    summary = summary_of(result.accuracy)
    title = f"Predicted against measured: runs on this machine, {machine_line(result.machine)}"
    return Report(verdict=verdict(summary, title), sections=(
        short_section((summary,)), cases_section(result), time_section(summary, result.accuracy.timed),
    ))


def cases_section(result: LocalAccuracy) -> Section:
    """Return every case, predicted beside measured."""
    peaks = [o.peak_error for o in result.accuracy.outcomes if o.peak_error is not None]
    gist = f"{len(result.loads)} small models that Headway planned, then trained: {machine_line(result.machine)}."
    if peaks:
        gist += f" Their peak memory is predicted {per_cent(min(peaks))} to {per_cent(max(peaks))} off."
    notes = ("Load is the average when a case began, others the cores that other programs used while it ran.",
             *(f"Warning: {w}." for w in result.warnings))
    return Section(key="cases", title="Run on this machine", gist=gist, exhibits=(
        Exhibit(table=Cells(head=COLUMNS, rows=_cells(result), words=WORDS, wide=True), notes=notes),
    ))


def local_tables(result: LocalAccuracy) -> list[Table]:
    """Return what the terminal shows: every case, and the headline."""
    cases = Table(title="Predicted against measured, on this machine", title_justify="left")
    for name in COLUMNS:
        cases.add_column(name, justify="left" if name in WORDS else "right")
    for row in _cells(result):
        cases.add_row(*row)
    return [cases, _headline_table(result)]


def _cells(result: LocalAccuracy) -> tuple[tuple[str, ...], ...]:
    rows = []
    for o, load in zip(result.accuracy.outcomes, result.loads, strict=True):
        rows.append((
            o.id, shown(o.measured_s, "s"), shown(o.predicted_s, "s"), per_cent(o.error), "yes" if o.inside else "no",
            f"{TERMS[o.dominant]} {share(o.dominant_share)}", shown(o.measured_peak_bytes, "bytes"),
            shown(o.peak_bytes, "bytes"), per_cent(o.peak_error), f"{load.average:.2f}",
            "-" if load.cores_of_others is None else f"{load.cores_of_others:.2f}",
        ))
    return tuple(rows)


def _headline_table(result: LocalAccuracy) -> Table:
    table = Table(title="In short", title_justify="left")
    for name in ("figure", "reached", "target", ""):
        table.add_column(name, justify="left" if name in ("figure", "") else "right")
    for h in headlines(result.accuracy):
        if h.set == LOCAL:
            met = "" if h.met is None else "met" if h.met else "not met"
            table.add_row(h.figure, value(h, h.reached), target(h), met)
    return table
