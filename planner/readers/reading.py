"""What a reader makes of another tool's file, and how its open ends are filled for a cluster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from profiles.files import BadInput
from profiles.model import ModelSpec
from simulator.software import Software, load_software


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A run as another tool's file states it.

    `options` has what the file states, in the words of the command line (tp, micro_batch, seq_len, precision); what it leaves
    open is not there. `software` names the catalogue's generation of the framework, `changes` the fields of it that the file
    sets. `num_microbatches` of a dp rank, where the file states these (0: not); `copies` of sharded states (HSDP);
    `num_gpus` that its launcher starts (0: not said). `ignored` changes neither memory nor time; `unknown` was not known and
    is taken to change neither; `notes` say what was assumed.
    """

    framework: str
    software: str
    model: ModelSpec | None = None
    options: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    num_microbatches: int = 0
    copies: int = 1
    num_gpus: int = 0
    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


TAKE_OUT = "take it out to price the run without"
ADAM = "is not priced, only Adam and AdamW; take it out to price the run with that"
"""What helps where a field, or another optimizer, cannot be priced."""


class Stated:
    """The fields that a file states, taken one by one by their reader; `left` are those that nobody took."""

    def __init__(self, values: Mapping[str, Any], origin: str, prefix: str = "") -> None:
        """Hold values by name; errors name `origin`, and fields with `prefix` in front."""
        self.left, self._origin, self._prefix = dict(values), origin, prefix

    def fault(self, name: str, what: str) -> BadInput:
        """Return the error that names a field of the file."""
        return BadInput(f"{self._origin}: {self._prefix}{name}: {what}")

    def take(self, name: str, default: Any = None) -> Any:
        """Return a value as it is written."""
        return self.left.pop(name, default)

    def text(self, name: str, default: str = "") -> str:
        """Return a value as text; an unset variable of a script is an error."""
        value = str(self.take(name, default))
        if value.startswith("$"):
            raise self.fault(name, f"{value} is not set in the file; write the value")
        return value

    def choice(self, name: str, known: Iterable[str], default: str) -> str:
        """Return a value that is one of some words."""
        value = self.text(name, default)
        if value not in (*known, default):
            raise self.fault(name, f"must be one of {', '.join(known)} (is {value!r})")
        return value

    def whole(self, name: str, default: int = 0, least: int = 0) -> int:
        """Return a whole number of at least `least`."""
        value = self.number(name, float(default), float(least))
        if value != int(value):
            raise self.fault(name, f"must be a whole number (is {value:g})")
        return int(value)

    def number(self, name: str, default: float = 0.0, least: float = -math.inf) -> float:
        """Return a finite number of at least `least`."""
        text = self.text(name, str(default))
        try:
            value = float(text)
        except ValueError:
            raise self.fault(name, f"must be a number (is {text!r})") from None
        if not math.isfinite(value) or value < least:
            raise self.fault(name, f"must be a number of at least {least:g} (is {text})")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Return whether a switch is on: named alone, or true."""
        value = self.take(name, default)
        if str(value).lower() not in ("true", "false", "1", "0", ""):
            raise self.fault(name, f"must be true or false (is {value!r})")
        return str(value).lower() in ("true", "1", "")

    def refuse(self, table: Mapping[str, str], mend: str) -> None:
        """Refuse a field that a table of names (or globs) has, with its reason and mend; one switched off is as not there."""
        for name in list(self.left):
            reason = next((why for glob, why in table.items() if fnmatchcase(name, glob)), None)
            if reason and str(self.left[name]).lower() in ("false", "none", "0", "0.0", "[]", "{}"):
                self.take(name)
            elif reason:
                raise self.fault(name, f"{reason}; {mend}")

    def rest(self, ignored: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names that are left: those that some globs have, and the unknown."""
        globs = tuple(ignored)
        known = {name: any(fnmatchcase(name, glob) for glob in globs) for name in self.left}
        return (tuple(self._prefix + n for n, yes in known.items() if yes),
                tuple(self._prefix + n for n, yes in known.items() if not yes))


def flattened(data: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= flattened(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return flat


def software_of(reading: Reading, name: str | None, precision: str) -> Software:
    """Return the software of a reading, or the one named instead, with what the file sets of it."""
    software = load_software(name or reading.software, precision)
    return replace(software, **reading.changes) if reading.changes else software


def completed(reading: Reading, given: Mapping[str, Any], defaults: Mapping[str, Any], num_gpus: int) -> dict[str, Any]:
    """Return all options of a run on so many accelerators: what is `given` goes before the file, the file before defaults.

    What follows from the number of accelerators is filled in: dp, micro-batch or global batch, the ranks that share
    one copy of the states; states of one replica are not sharded.
    """
    values = {**defaults, **reading.options, **given}
    others = values["tp"] * values["cp"] * values["pp"]
    if values["dp"] is None and num_gpus % others:
        raise BadInput(f"dp: tp {values['tp']} x cp {values['cp']} x pp {values['pp']} = {others} does not divide the "
                       f"{num_gpus} accelerators")
    dp = values["dp"] or num_gpus // others
    values |= _batch(reading, given, values, dp)
    replicas = dp * values["cp"]
    if reading.copies > 1 and "shard_group" not in given:
        if replicas % reading.copies:
            raise BadInput(f"shard_group: {reading.copies} copies of the states do not divide dp x cp = {replicas} ranks")
        values["shard_group"] = replicas // reading.copies
        # a copy on each rank shards nothing
        values |= {"zero": 0, "shard_group": 0} if values["shard_group"] == 1 and "zero" not in given else {}
    if replicas == 1 and "zero" not in given:
        values["zero"] = 0
    if values["tp"] == 1 and "sequence_parallel" not in given:
        values["sequence_parallel"] = defaults["sequence_parallel"]
    return values


def _batch(reading: Reading, given: Mapping[str, Any], values: Mapping[str, Any], dp: int) -> dict[str, int]:
    """Return micro-batch and global batch: two of micro-batch, micro-batches and global batch make the third."""
    micro = values["micro_batch"] if "micro_batch" in {**reading.options, **given} else None
    whole, num = values["global_batch"], reading.num_microbatches
    if micro is None and whole is None:
        raise BadInput(f"micro_batch: the {reading.framework} file leaves it open; give --micro-batch and --global-batch")
    if micro is None:
        if whole % (dp * (num or 1)):
            raise BadInput(f"global_batch: {whole} sequences do not divide by dp {dp}"
                           + (f" x {num} micro-batches" if num > 1 else "") + "; give --micro-batch")
        return {"micro_batch": whole // (dp * (num or 1)), "global_batch": whole}
    if whole is None:
        return {"micro_batch": micro, "global_batch": micro * dp * (num or 1)}
    if num and not {"micro_batch", "global_batch", "dp"} & set(given) and micro * num * dp != whole:
        raise BadInput(f"global_batch: micro-batch {micro} x {num} micro-batches x dp {dp} = {micro * num * dp} sequences, the "
                       f"{reading.framework} file states {whole}; give the --gpus that it was made for, or --global-batch")
    return {"micro_batch": micro, "global_batch": whole}
