"""Where checkpoints go: the rate of storage where none is stated, and of the copy to a host's memory; with sources."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from profiles import files
from profiles.accelerators import Accelerator, FigureFile
from profiles.units import parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Bytes per second and accelerator, and where the figure was read."""

    bytes_per_s: float
    source: str


class _CopyFile(FigureFile):
    from_year: int


class _StorageFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    write_per_gpu: FigureFile
    host_copy: list[_CopyFile]


def default_storage() -> Rate:
    """Return what storage takes from each accelerator where the user states none."""
    return _rate(_catalog().write_per_gpu, "write_per_gpu")


def host_copy(accelerator: Accelerator) -> Rate:
    """Return the rate of a copy from an accelerator to its host, by the bus of its year."""
    known = [row for row in _catalog().host_copy if row.from_year <= max(accelerator.year, 2000)]
    return _rate(max(known, key=lambda row: row.from_year), "host_copy")


def _catalog() -> _StorageFile:
    return files.validate(_StorageFile, files.catalog_mapping("", "storage"), "storage.yaml")


def _rate(figure: FigureFile, field: str) -> Rate:
    rate = parse(figure.value, "bytes_per_s", f"storage.yaml: {field}")
    return Rate(bytes_per_s=rate, source=figure.source.strip())
