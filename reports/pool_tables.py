"""What the terminal shows of a plan on a pool: its pipeline ranks by kind, each part alone, and what the slow part costs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.table import Table

from profiles.units import show, significant


def pool_tables(pool: dict[str, Any]) -> Iterator[Table | str]:
    """Yield what `planner.pools.pool_as_dict` knows, for people."""
    yield _stages_table(pool["stages"])
    if len(pool["considered"]) > 1:
        yield _considered_table(pool["considered"])
    yield from pool_words(pool)


def _stages_table(stages: list[dict[str, Any]]) -> Table:
    table = Table(title="Pipeline ranks by accelerator", title_justify="left")
    for name in ("ranks", "accelerator", "layers", "a micro-batch", "of the slowest", "peak memory", "usable"):
        table.add_column(name, justify="left" if name == "accelerator" else "right")
    slowest = max(busy_s(stage) for stage in stages)
    for _, some in groupby(stages, key=lambda s: (s["accelerator"], s["layers"], round(busy_s(s) / slowest, 3))):
        rows = list(some)
        first, fullest = rows[0], max(rows, key=lambda s: float(s["peak_memory_bytes"]))
        table.add_row(
            f"{first['rank']}" if len(rows) == 1 else f"{first['rank']} to {rows[-1]['rank']}", first["accelerator"],
            str(first["layers"]), show(busy_s(first), "s"), f"{busy_s(first) / slowest:.1%}",
            show(fullest["peak_memory_bytes"], "bytes"), show(first["usable_memory_bytes"], "bytes"))
    return table


def busy_s(stage: dict[str, Any]) -> float:
    """Return the seconds of a rank's micro-batch."""
    return float(stage["forward_s"] + stage["backward_s"])


def _considered_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="The pool, and each part alone", title_justify="left")
    for name in ("cluster", "GPUs", "strategy", "step", "MFU", "days", "cost", "against the pool"):
        table.add_column(name, justify="left" if name in ("cluster", "strategy", "against the pool") else "right")
    for row in rows:
        known = row["strategy"] is not None
        table.add_row(
            row["cluster"], f"{row['num_gpus']:,}", row["strategy"] or "", show(row["step_time_s"], "s") if known else "",
            f"{row['mfu']:.3f}" if known else "", significant(row["days"]) if known else "",
            "" if row["usd"] is None else show(row["usd"], "usd"), _against(row, rows[0]))
    return table


def _against(row: dict[str, Any], pool: dict[str, Any]) -> str:
    said = [row["reason"]] if row["reason"] else []
    if row is not pool and row["usd"] is not None and pool["usd"]:
        times = row["usd"] / pool["usd"]
        said.append(f"{times - 1:.1%} dearer" if times >= 1 else f"{1 - times:.1%} cheaper")
    return ", ".join(said)


def pool_words(pool: dict[str, Any]) -> Iterator[str]:
    """Yield sentences: what the slow part costs."""
    stages, kinds = pool["stages"], pool["all_of_one_kind"]
    step_s = pool["considered"][0]["step_time_s"]
    mixed = next((stage for stage in stages if " + " in stage["accelerator"]), None)
    if mixed is not None:
        what = (f"pipeline rank {mixed['rank']} lies on {mixed['accelerator']} and goes" if len(stages) > 1 else
                f"without pipeline stages all ranks, on {mixed['accelerator']}, go")
        yield f"{what} at the pace of the slowest, with the smallest memory"
    if kinds:
        each = ", ".join(f"{show(kind['step_time_s'], 's')} if all were {kind['accelerator']}"
                         + ("" if kind["fits"] else " (which would not fit)") for kind in kinds)
        fast = min(kinds, key=lambda kind: float(kind["step_time_s"]))
        yield (f"these degrees take {show(step_s, 's')} in the pool, and with even layers {each}: the slower part costs "
               f"{step_s / fast['step_time_s'] - 1:.0%} of the fastest")
    if pool["share_of_parts_alone"] is not None:
        yield f"the pool trains {pool['share_of_parts_alone']:.1%} of the tokens that its parts would alone, added up"
    yield "MFU is over the sum of the peaks of all parts; dollars and energy are the sums of theirs"
