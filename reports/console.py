"""What the terminal shows: tables, and progress bars that stay quiet in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from planner.plan import Plan
from planner.predict import Prediction
from planner.search import Found
from profiles import files
from profiles.families import load_model, num_active_params, num_params
from profiles.hardware import Accelerator, load_accelerator, load_cluster
from profiles.prices import prices
from profiles.units import show, significant
from simulator.software import load_software
from simulator.strategy import Strategy

PIPE_WIDTH = 160
"""Columns where nobody's terminal says how many."""
console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
status = Console(stderr=True)
Advance = Callable[[float], None]


@contextmanager
def progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """Show one bar on stderr while the body runs; it is given a function that takes the share done and a note."""
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TextColumn("{task.fields[note]}"), console=status, disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(title, total=1.0, note="")

        def advance(share: float, note: str = "") -> None:
            bar.update(task, completed=share, note=note)

        yield advance
        bar.update(task, completed=1.0, note="")


def prediction_table(prediction: dict[str, Any], strategy: Strategy, title: str) -> Table:
    """Return a prediction as a table of quantity and value."""
    p = prediction
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("strategy", strategy.describe())
    table.add_row("precision, kernels", f"{strategy.precision}, {strategy.kernels}")
    table.add_row("software", f"{strategy.software.framework}, {strategy.software.year}")
    table.add_row("step time", f"{show(p['step_time_s'], 's')}  (P10 {show(p['p10_s'], 's')}, P90 {show(p['p90_s'], 's')})")
    table.add_row("tokens/s", f"{show(p['tokens_per_s'], 'count')}  ({significant(p['tokens_per_s_per_gpu'], 4)} a GPU)")
    table.add_row("MFU, HFU", f"{p['mfu']:.3f}, {p['hfu']:.3f}")
    verdict = "fits" if p["fits"] else "DOES NOT FIT"
    needs, usable = show(p["peak_memory_bytes"], "bytes"), show(p["usable_memory_bytes"], "bytes")
    table.add_row("peak memory", f"{needs} of {usable}: {verdict}")
    table.add_row("days", f"{significant(p['days'])}  (P10 {significant(p['days_p10'])}, P90 {significant(p['days_p90'])})")
    table.add_row("GPU-hours", significant(p["gpu_hours"], 4))
    table.add_row("cost", "no price known" if p["usd"] is None else show(p["usd"], "usd"))
    spent = [(k, v) for k, v in p["breakdown_s"].items() if v > 0.0005 * p["step_time_s"]]
    table.add_row("a step's time", ", ".join(f"{k} {v / p['step_time_s']:.1%}" for k, v in spent))
    return table


def runners_up_table(best: Prediction, runners_up: tuple[Prediction, ...]) -> Table:
    """Return the chosen strategy and those that came next."""
    table = Table(title="Considered", title_justify="left")
    for name in ("strategy", "step", "tokens/s/GPU", "MFU", "memory", "days", "slower by"):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for p in (best, *runners_up):
        table.add_row(
            p.strategy.describe(), show(p.step_time_s, "s"), significant(p.tokens_per_s_per_gpu, 4), f"{p.mfu:.3f}",
            show(p.peak_memory_bytes, "bytes"), significant(p.days), f"{p.step_time_s / best.step_time_s - 1:.1%}",
        )
    return table


def rejected_table(found: Found) -> Table:
    """Return why strategies were left out: how many by rule, and the first sentence of each."""
    table = Table(title=f"Left out, of {found.strategies_total:,} strategies", title_justify="left")
    table.add_column("rule")
    table.add_column("strategies", justify="right")
    table.add_column("for example")
    for rule, count in found.rejected.items():
        first = next((r for r in found.rejected_examples if r.rule == rule), None)
        table.add_row(rule, f"{count:,}", f"{first.strategy.describe()}: {first.reason}" if first else "")
    return table


def plan_json(plan: Plan, found: Found) -> dict[str, Any]:
    """Return what `plan --json` prints."""
    return {
        "best": plan.prediction, "runners_up": list(plan.runners_up), "strategies_total": found.strategies_total,
        "strategies_priced": found.strategies_priced, "rejected": found.rejected,
        "rejected_examples": list(plan.rejected_examples), "search_seconds": found.search_seconds,
    }


def _peak(accelerator: Accelerator) -> str:
    peaks = accelerator.peak_flop_per_s
    return show(peaks["bf16"], "flop_per_s", 4) if "bf16" in peaks else "-"


KINDS = ("models", "accelerators", "clusters", "software", "prices")
"""What the catalogue lists."""


def catalog_rows(kind: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of one kind of the catalogue."""
    if kind == "models":
        models = [load_model(name) for name in files.catalog_names("models")]
        return ["model", "parameters", "active", "layers", "hidden", "a layer", "vocab", "context", "source"], [
            [m.name, show(num_params(m), "count", 4), show(num_active_params(m), "count", 4), str(m.num_layers),
             str(m.hidden), m.describe_layers(), str(m.vocab), str(m.max_seq_len), m.source] for m in models
        ]
    if kind == "accelerators":
        found = [load_accelerator(name) for name in files.catalog_names("accelerators")]
        return ["accelerator", "title", "usable memory", "bandwidth", "peak bf16 (dense)", "power", "source"], [
            [a.name, a.title, show(a.memory_bytes, "bytes"), show(a.memory_bytes_per_s, "bytes_per_s"),
             _peak(a), show(a.power_w, "w") if a.power_w else "-", a.sources["memory_bandwidth"]] for a in found
        ]
    if kind == "clusters":
        clusters = [load_cluster(name) for name in files.catalog_names("clusters")]
        return ["cluster", "node", "accelerator", "GPUs a node", "inside the node, per GPU", "between nodes, per GPU"], [
            [c.name, c.title, c.accelerator.name, str(c.gpus_per_node),
             f"{c.scale_up.name} {show(c.scale_up.bytes_per_s, 'bytes_per_s')}",
             f"{c.scale_out.name} {show(c.scale_out.bytes_per_s, 'bytes_per_s')}"] for c in clusters
        ]
    if kind == "software":
        software = [load_software(name) for name in files.catalog_names("software")]
        return ["software", "framework", "year", "kernels", "attention", "source"], [
            [s.name, s.framework, str(s.year), s.kernels, s.attention, s.source] for s in software
        ]
    head = ["accelerator", "provider", "sku", "term", "price", "date", "source", "default"]
    return head, [[str(row.get(k, "")).replace("True", "yes") for k in head] for row in prices()]
