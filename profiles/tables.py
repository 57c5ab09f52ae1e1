"""Measured tables: what `headway profile` writes and the cost model reads.

One file: a YAML head in `#` lines (schema, accelerator figures, environment), then CSV rows of

    kind, pass, dtype, mode, size_0 .. size_3, group_size, bytes, median_s, p10_s, p90_s, num_samples

`mode` is how it was called: `eager`, or through an engine of torch's, `ENGINES` (on CPU, with what Python and copies cost).
`size_i` are the numbers that `profiles.ops.SIZES` names for the kind; a collective has `bytes` and `group_size`
instead. Times are seconds for one kernel on one rank while all ranks of the machine are busy.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from profiles import files
from profiles.collectives import KINDS
from profiles.files import BadInput
from profiles.ops import SIZES

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "headway.profile/1"
MEANINGS = {
    "kind": "of kernel, collective or copy", "pass": "F, B, W or U of a kernel", "dtype": "what it computes in",
    "mode": "how it was called", "size_0": "first size of the kind", "size_1": "second", "size_2": "third", "size_3": "fourth",
    "group_size": "ranks of a collective", "bytes": "of a collective's buffer, or copied", "median_s": "seconds of one call",
    "p10_s": "tenth percentile", "p90_s": "ninetieth percentile", "num_samples": "calls that were timed",
}
COLUMNS = tuple(MEANINGS)
TEXT = ("kind", "pass", "dtype", "mode")
OTHER_KINDS = ("memory_copy", "disk_write", "disk_read")
"""Kinds beside kernels and collectives; their `bytes` are what was moved."""
CUDA_KINDS = ("host_to_device", "device_to_host", "launch")
"""Kinds of a GPU alone; `launch` is one empty kernel, in mode `stream` or in a replayed `graph`."""
ENGINES = ("tp F", "tp B", "tp", "fsdp")
"""Modes of collectives and updates through DTensor (tensor parallelism; its two passes) and FSDP2 (ZeRO-2 and 3)."""
HEAD_MEANINGS = {
    "name": "of the machine", "date": "of the measurement", "num_ranks": "ranks that were busy at once",
    "peak_flop_per_s": "best rate of a matmul, by type", "memory_bytes_per_s": "best rate of a copy",
    "memory_bytes": "of a rank", "framework_bytes": "what torch holds before it trains", "backend": "gloo or nccl",
    "environment": "versions, device, threads",
}
HEAD_FIELDS = tuple(HEAD_MEANINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTable:
    """A machine's measured costs: `head` says on what and how, `rows` has the columns above."""

    head: dict[str, Any]
    rows: pd.DataFrame

    def select(
        self, kind: str, pass_: str | None = None, dtype: str | None = None, engine: str = ""
    ) -> pd.DataFrame:
        """Return the rows of a kind (and pass, and dtype), called through an engine or (empty) through none."""
        keep = (self.rows["kind"] == kind) & (
            self.rows["mode"] == engine if engine else ~self.rows["mode"].isin(ENGINES)
        )
        if pass_ is not None:
            keep &= self.rows["pass"] == pass_
        if dtype is not None:
            keep &= self.rows["dtype"] == dtype
        return self.rows[keep]


def table_from_rows(head: dict[str, Any], rows: list[dict[str, Any]]) -> MeasuredTable:
    """Return a table from measured rows; columns that a row lacks stay empty."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame[list(TEXT)] = frame[list(TEXT)].astype(object).fillna("").astype(str)
    return MeasuredTable(head=head, rows=frame)


def write_table(table: MeasuredTable, path: str | Path) -> Path:
    """Write a profile file."""
    head = yaml.safe_dump({"schema": SCHEMA} | table.head, sort_keys=False, allow_unicode=True)
    lines = "".join(f"# {line}\n" for line in head.splitlines())
    return files.write_text(path, lines + table.rows.to_csv(index=False, float_format="%.9g"))


def read_table(path: str | Path) -> MeasuredTable:
    """Read a profile file; a corrupted one is a `BadInput` that names the line or the column."""
    import pandas as pd

    text = files.read_text(path)
    lines = text.splitlines()
    num_head = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    head = files.parse_mapping("\n".join(line[2:] for line in lines[:num_head]) or "{}", str(path))
    if head.pop("schema", None) != SCHEMA:
        raise BadInput(f"{path}: schema: this is no profile file; its first line must be '# schema: {SCHEMA}'")
    missing = [f for f in HEAD_FIELDS if f not in head]
    if missing:
        raise BadInput(f"{path}: {missing[0]}: this field of the head is missing; run `headway profile` again")
    for field in HEAD_FIELDS[2:7]:
        value = head[field]
        values = value.values() if field == "peak_flop_per_s" and isinstance(value, dict) else [value]
        ok = len(values) > 0 and all(isinstance(v, (int, float)) and 0 < v < float("inf") for v in values)
        if not ok:
            raise BadInput(f"{path}: {field}: must be a positive number (is {value!r})")
    try:
        frame = pd.read_csv(io.StringIO("\n".join(lines[num_head:])), dtype=dict.fromkeys(TEXT, str))
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as e:
        raise BadInput(f"{path}: the rows are not CSV: {str(e).splitlines()[0]}") from None
    return MeasuredTable(head=head, rows=_check_rows(frame, str(path), num_head + 2))


def _check_rows(frame: pd.DataFrame, origin: str, first_line: int) -> pd.DataFrame:
    from pandas import to_numeric

    for column in COLUMNS:
        if column not in frame:
            raise BadInput(f"{origin}: {column}: this column is missing; columns are {', '.join(COLUMNS)}")
    frame = frame[list(COLUMNS)].copy()
    frame[list(TEXT)] = frame[list(TEXT)].fillna("")
    if frame.empty:
        raise BadInput(f"{origin}: holds no measured rows; run `headway profile` again")

    def refuse(bad: Any, column: str, want: str) -> None:
        if bool(np.any(bad)):
            i = int(np.argmax(np.asarray(bad)))
            value = frame[column].iloc[i]
            shown = repr(value) if isinstance(value, str) else str(value)
            raise BadInput(f"{origin}: line {first_line + i}: {column}: must be {want} (is {shown})")

    known = (*SIZES, *KINDS, *OTHER_KINDS, *CUDA_KINDS)
    refuse(~frame["kind"].isin(known), "kind", f"one of {', '.join(known)}")
    for column in COLUMNS[4:]:
        numbers = to_numeric(frame[column], errors="coerce")
        refuse(numbers.isna() & frame[column].notna(), column, "a number")
        frame[column] = numbers.astype(float)
    for column in ("median_s", "p10_s", "p90_s"):
        refuse(~((frame[column] > 0) & (frame[column] < float("inf"))), column, "a positive number of seconds")
    for column in ("group_size", "bytes", "num_samples"):
        refuse(frame[column].notna() & ~(frame[column] > 0), column, "a positive number")
    refuse(~(frame["p90_s"] >= frame["p10_s"]), "p90_s", "at least p10_s")
    for kind, names in SIZES.items():
        of_kind = frame["kind"] == kind
        for i in range(len(names)):
            refuse(of_kind & ~(frame[f"size_{i}"] > 0), f"size_{i}", f"the {names[i]} of a {kind}, at least 1")
    return frame
