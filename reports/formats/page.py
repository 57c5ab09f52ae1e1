"""The page of all file formats, made from the schemas that read them: `docs/formats.md`, which `scripts/docs` writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from executor.data.shards import IndexFile
from executor.manifest import Manifest
from executor.run import Run, RunFile
from planner.plan import PlanFile
from profiles import tables
from profiles.accelerators import AcceleratorFile, CountFile, FigureFile, RatioFile
from profiles.families.spec import CHOICES
from profiles.hardware import ClusterFile, PoolFile
from profiles.model import ModelSpec
from profiles.ops import SIZES
from profiles.prices import PricesFile
from profiles.reliability import FleetFile
from profiles.storage_prices import StoragePricesFile
from profiles.units import EXAMPLES, UNITS
from reports.formats.examples import examples
from reports.formats.schema import field_tables, spoken
from reports.formats.words import ABOUT, DIMENSIONS, ELSEWHERE, FOLDER, KEYS, QUANTITIES, TOP
from simulator import timeline
from simulator.data_stall import DataProfileFile
from simulator.networks.fat_tree import FatTreeFile
from simulator.networks.links import LinksFile
from simulator.networks.non_blocking import NonBlockingFile
from simulator.networks.torus import TorusFile
from simulator.software import SoftwareFile

KINDS: dict[str, tuple[Any, ...]] = {
    "Model": (ModelSpec,), "Plan": (PlanFile,), "Cluster": (ClusterFile,),
    "Networks of a cluster": (FatTreeFile, TorusFile, LinksFile, NonBlockingFile), "Pool": (PoolFile,),
    "Accelerator": (AcceleratorFile,), "Software": (SoftwareFile,), "Fleet": (FleetFile,),
    "Prices": (PricesFile, StoragePricesFile), "Data profile": (DataProfileFile,), "Shards": (IndexFile,),
    "Run folder": (RunFile,), "Checkpoint": (Manifest,),
}
DERIVED = ("step_time_s", "p10_s", "p90_s", "tokens_per_s", "next_sample", "data_wait_s")
"""Figures in `run.json` that follow from others."""


def formats_page() -> str:
    """Return the page of all file formats in Markdown."""
    return "\n".join(line.rstrip() for line in _lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (TOP, ", ".join(f"[{title}](#{title.lower().replace(' ', '-')})" for title in ABOUT) + ".", "")
    yield from ("## Quantities", "", QUANTITIES, "", *_units(), "")
    seen: set[str] = set()
    for kind in (FigureFile, CountFile, RatioFile):
        seen.add(kind.__name__)
        yield from (f"### {spoken(kind.__name__)}", "", *field_tables(kind, seen), "")
    shown = examples()
    for title, about in ABOUT.items():
        yield from (f"## {title}", "", " ".join(about.split()), "", *BEFORE.get(title, lambda: ())())
        for kind in KINDS.get(title, ()):
            if len(KINDS[title]) > 1 and spoken(kind.__name__) != title:
                yield from (f"### {spoken(kind.__name__)}", "")
            yield from (*field_tables(kind, seen), "")
        for example in shown[title]:
            yield from (example.shown, "")
    yield from ("## Elsewhere", "", *_table(("file", "its page"), ELSEWHERE), "")
    yield from ("## Keys of `--json`", "", KEYS)


def _units() -> Iterator[str]:
    yield from ("| what | written like | units |", "|---|---|---|")
    for dimension, units in UNITS.items():
        names = ", ".join(unit or "(none)" for unit in units)
        yield f"| {DIMENSIONS[dimension]} | `{EXAMPLES[dimension]}` | {names} |"


def _of_models() -> Iterator[str]:
    words = {field: ", ".join(f"`{word}`" for word in choices) for field, choices in CHOICES.items()}
    yield from (*_table(("field", "may be"), _quoted(words)), "")


def _of_profiles() -> Iterator[str]:
    yield from (*_table(("head", "meaning"), _quoted(tables.HEAD_MEANINGS)), "")
    yield from (*_table(("column", "meaning"), _quoted(tables.MEANINGS)), "")
    yield from (*_table(("kind", "sizes"), _quoted({kind: ", ".join(sizes) for kind, sizes in SIZES.items()})), "")


def _of_runs() -> Iterator[str]:
    yield from (*_table(("file", "holds"), _quoted(FOLDER)), "", "Columns of `timeline.csv`, which a replay has, too:", "")
    yield from (*_table(("column", "meaning"), _quoted(timeline.MEANINGS)), "")
    said = {name: (getattr(Run, name).__doc__ or "").removeprefix("Return ").rstrip(".") for name in DERIVED}
    yield from ("Figures of `run.json` that follow from others:", "", *_table(("field", "meaning"), _quoted(said)), "")
    yield from ("What is read of `run.json`:", "")


BEFORE: dict[str, Callable[[], Iterable[str]]] = {"Model": _of_models, "Profile": _of_profiles, "Run folder": _of_runs}
"""What stands in front of a format's tables: what no schema says."""


def _quoted(rows: Mapping[str, str]) -> dict[str, str]:
    return {f"`{name}`": " ".join(meaning.split()) for name, meaning in rows.items()}


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> Iterator[str]:
    yield from (f"| {head[0]} | {head[1]} |", "|---|---|")
    for name, value in rows.items():
        yield f"| {name} | {value} |"
