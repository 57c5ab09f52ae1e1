"""Memory over time for people: when each rank of a step holds most, in which action, and what holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from planner.plan import Plan
from profiles.units import show
from simulator.layout import coordinates, devices
from simulator.memory_timeline import MemoryTimeline, Peak

NUM_SHOWN = 8
"""How many of the fullest ranks the table shows."""
NUM_KINDS = 5
"""How many kinds are named; the rest is added up."""


def usable_by_rank(plan: Plan, memory: MemoryTimeline) -> dict[int, float]:
    """Return what the accelerator of each rank offers, of unlike ones under a pipeline rank the smallest."""
    kinds = devices(plan.question.cluster.accelerator, int(plan.strategy.pp))
    return {peak.rank: min(kind.memory_bytes for kind in kinds[int(coordinates(plan.strategy, peak.rank)["pp"])])
            for peak in memory.peaks}


def peaks_table(memory: MemoryTimeline, names: Mapping[int, str], usable: Mapping[int, float]) -> Table:
    """Return the peak of each rank as a table, of the fullest if there are many; `names` as `replay.rank_names` gives them."""
    shown = sorted(memory.peaks, key=lambda peak: -peak.bytes)[:NUM_SHOWN]
    more = f": the {NUM_SHOWN} fullest of {len(memory.peaks)}" if len(memory.peaks) > NUM_SHOWN else ""
    table = Table(title=f"Peak memory by rank, of {_span(usable)} usable{more}", title_justify="left")
    for name in ("rank", "peak", "of usable", "when", "of the step", "in", "micro-batches", "what holds it"):
        table.add_column(name, justify="left" if name in ("rank", "in", "what holds it") else "right")
    order = list(names)
    for peak in sorted(shown, key=lambda peak: order.index(peak.rank)):
        table.add_row(
            names[peak.rank], show(peak.bytes, "bytes"), f"{peak.bytes / usable[peak.rank]:.1%}", show(peak.time_s, "s"),
            f"{peak.time_s / memory.step_time_s:.1%}", ", ".join(filter(None, (peak.action, peak.part))),
            str(sum(map(len, peak.microbatches.values()))), _kinds(peak))
    return table


def _span(usable: Mapping[int, float]) -> str:
    return " to ".join(dict.fromkeys(show(num, "bytes") for num in (min(usable.values()), max(usable.values()))))


def _kinds(peak: Peak) -> str:
    """Return the largest kinds, those of all chunks as one."""
    kinds: dict[str, int] = {}
    for kind, num in peak.kinds.items():
        name = kind.split(" of chunk ")[0]
        kinds[name] = kinds.get(name, 0) + num
    order = sorted((kind for kind, num in kinds.items() if num), key=lambda kind: -kinds[kind])
    rest = sum(kinds[kind] for kind in order[NUM_KINDS:])
    named = [f"{kind} {show(kinds[kind], 'bytes')}" for kind in order[:NUM_KINDS]]
    return ", ".join([*named, f"other {show(rest, 'bytes')}"] if rest else named)


def peaks_json(memory: MemoryTimeline, usable: Mapping[int, float]) -> list[dict[str, Any]]:
    """Return the peaks with plain values, for `--json`."""
    return [peak._asdict() | {"share_of_step": peak.time_s / memory.step_time_s,
                              "share_of_usable": peak.bytes / usable[peak.rank]}
            for peak in memory.peaks]
