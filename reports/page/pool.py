"""Unlike accelerators: what each pipeline rank does on its kind, and what the slow part of a pool costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.pools import pool_as_dict
from reports.compare import share, shown
from reports.page.findings import Brief, Findings
from reports.page.values import Exhibit, Section, Table
from reports.pool_tables import busy_s, pool_words


def pool_section(found: Findings) -> Section:
    """Return what the ranks of a pool do, kind by kind."""
    pool = pool_as_dict(found.question, found.prediction)
    said = list(_sentences(pool))
    return Section(key="pool", title="Unlike accelerators", gist=said[0], exhibits=(
        Exhibit(title="Pipeline ranks by accelerator", table=_stages(pool["stages"]), notes=tuple(said[1:])),
    ))


def pool_gist(found: Brief) -> str:
    """Return what a pool's slow part costs, in a sentence."""
    return next(_sentences(pool_as_dict(found.question, found.prediction)))


def _sentences(pool: dict[str, Any]) -> Iterator[str]:
    for line in pool_words(pool):
        yield f"{line[0].upper()}{line[1:]}."


def _stages(stages: list[dict[str, Any]]) -> Table:
    slowest = max(map(busy_s, stages))
    return Table(
        head=("pipeline rank", "accelerator", "layers", "a micro-batch", "of the slowest", "peak memory", "usable"),
        words=("accelerator",), wide=True, rows=tuple((
            str(s["rank"]), s["accelerator"], str(s["layers"]), shown(busy_s(s), "s"), share(busy_s(s) / slowest),
            shown(s["peak_memory_bytes"], "bytes"), shown(s["usable_memory_bytes"], "bytes"),
        ) for s in stages),
    )
