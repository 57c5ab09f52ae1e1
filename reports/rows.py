"""Rows of published measured runs: read from a CSV, chosen by their columns."""

from __future__ import annotations

import csv
import io
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from profiles import files
from profiles.files import BadInput

NEEDED = ("id", "model", "n_layers", "hidden", "n_heads", "ffn_hidden", "vocab", "gated_mlp", "seq_len", "gpu", "n_gpus",
          "tp", "pp", "micro_batch", "global_batch", "precision", "recompute", "zero_stage")
"""Columns without which a file holds no runs that could be predicted."""
MEASURED = ("step_time_s", "iteration_time_s", "tokens_per_s_per_gpu", "peak_mem_gib_per_gpu")
"""Columns of which a file needs one."""
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published run as its source states it: cells by column, empty where nothing is stated."""

    id: str
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """Return a cell's text; empty where it or its column is absent."""
        return self.cells.get(column, "")

    def number(self, column: str) -> float | None:
        """Return a cell's number, or None where it is empty."""
        text = self.text(column)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise BadInput(f"{column}: {text!r} is not a number") from None
        if not math.isfinite(value):
            raise BadInput(f"{column}: {text!r} is not a finite number")
        return value

    def whole(self, column: str) -> int | None:
        """Return a cell's whole number, or None where it is empty."""
        value = self.number(column)
        if value is not None and value != int(value):
            raise BadInput(f"{column}: {self.text(column)!r} is not a whole number")
        return None if value is None else int(value)

    def flag(self, column: str) -> bool | None:
        """Return whether a cell of 0 or 1 is 1, or None where it is empty."""
        value = self.number(column)
        return None if value is None else bool(value)


def read_rows(path: str | Path) -> list[Row]:
    """Return the rows of a CSV of measured runs; a file without the needed columns is a `BadInput`."""
    reader = csv.DictReader(io.StringIO(files.read_text(path)))
    columns = [c.strip() for c in reader.fieldnames or ()]
    missing = [c for c in NEEDED if c not in columns]
    if missing:
        raise BadInput(f"{path}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; see docs/validate.md")
    if not any(c in columns for c in MEASURED):
        raise BadInput(f"{path}: needs one measured column of {', '.join(MEASURED)}; see docs/validate.md")
    rows: list[Row] = []
    for cells in reader:
        if None in cells or None in cells.values():
            raise BadInput(f"{path}: line {reader.line_num}: not as many cells as the head has columns")
        kept = {c.strip(): v.strip() for c, v in cells.items()}
        rows.append(Row(id=kept["id"] or f"line {reader.line_num}", cells=kept))
    if not rows:
        raise BadInput(f"{path}: holds a head and no rows")
    return rows


def chosen(rows: list[Row], where: Iterable[str]) -> list[Row]:
    """Return the rows for which every condition holds: `column=glob`, or `column>=number` and its like."""
    for condition in where:
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|=|>|<)\s*(.*?)\s*", condition)
        if not match:
            raise BadInput(f"where: {condition!r} is no condition; write it like 'gpu=H100*' or 'n_gpus>=64'")
        column, sign, value = match.groups()
        if column not in rows[0].cells:
            raise BadInput(f"where: {column!r} is not a column; the file has {', '.join(rows[0].cells)}")
        rows = [r for r in rows if _holds(r, column, sign, value)]
        if not rows:
            raise BadInput(f"where: {condition!r} leaves no rows")
    return rows


def _holds(row: Row, column: str, sign: str, value: str) -> bool:
    if sign == "=":
        return fnmatchcase(row.text(column).lower(), value.lower())
    try:
        limit = float(value)
    except ValueError:
        raise BadInput(f"where: {value!r} is not a number to compare {column} with") from None
    number = row.number(column)
    return number is not None and COMPARISONS[sign](number, limit)
