"""The answer of `headway size` on one screen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from planner.economics import Band
from planner.sizing import BatchLimit, more_steps, more_tokens, noise_batch
from profiles.units import show, significant
from reports.size_command import NamedChoice, SizeReport


def size_screen(report: SizeReport) -> RenderableType:
    """Return what the terminal shows."""
    lines = [f"Warning: {w}" for w in report.warnings]
    return Group(_summary(report), _models(report), _batch(report), *lines, "Assumed:", *(f"  {a}" for a in report.assumptions))


def _summary(report: SizeReport) -> Table:
    best, machine = report.best, report.machine
    table = Table(title="Compute-optimal size", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    if machine is not None:
        cluster = machine.cluster
        table.add_row("machine", f"{cluster.num_gpus:,} x {cluster.accelerator.title}")
        table.add_row("GPU-hours", _three(machine.gpu_hours, lambda v: show(v, "count", 4)))
        table.add_row("days", _three(machine.days, lambda v: significant(v, 4)))
        table.add_row("cost", _three(machine.usd, lambda v: show(v, "usd")) if machine.usd else "no price known")
    table.add_row("compute", _three(best.flop, lambda v: f"{v:.3g} FLOP"))
    table.add_row("parameters", _three(best.params, _count))
    table.add_row("tokens", _three(best.tokens, _count))
    table.add_row("tokens per parameter", _three(best.tokens_per_param, significant))
    table.add_row("loss", _three(best.loss, lambda v: f"{v:.4f}") + " nats a token")
    return table


def _models(report: SizeReport) -> Table:
    table = Table(title="Models on this compute", title_justify="left")
    for name in ("model", "active parameters", "tokens", "tokens per parameter", "loss", "over a best split"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for named in report.models:
        _add(table, named, "")
    if report.asked is not None:
        _add(table, report.asked, "bold")
    return table


def _add(table: Table, named: NamedChoice, style: str) -> None:
    c = named.choice
    table.add_row(named.name, _count(float(c.params)), _count(float(c.tokens)), significant(float(c.tokens_per_param)),
                  f"{float(c.loss.p50):.4f}", f"+{float(c.excess):.1%}", style=style)


def _batch(report: SizeReport) -> Table:
    batch = report.batch_tokens
    table = Table(title=f"Batch for {_count(report.tokens)} tokens", title_justify="left")
    yours = [] if batch is None else [f"at {_count(batch)}"]
    for name in ("law", "tokens of a step", "P10", "P90", "steps", *yours, "means"):
        table.add_column(name, justify="left" if name in ("law", "means") else "right")
    for x in report.limits:
        interval = (_count(x.tokens.p10), _count(x.tokens.p90)) if x.law.error else ("-", "-")
        table.add_row(x.law.name, _count(x.tokens.p50), *interval, f"{report.tokens / x.tokens.p50:,.0f}",
                      *([] if batch is None else [_waste(x, batch)]), x.law.means)
    return table


def _waste(limit: BatchLimit, batch: float) -> str:
    """Return what a batch needs over the fewest tokens and the fewest steps, by a law."""
    noise = float(noise_batch(limit))
    if math.isnan(noise):
        return "-"
    return f"tokens x {more_tokens(batch, noise):.2f}, steps x {more_steps(batch, noise):.2f}"


def _count(value: float) -> str:
    return show(value, "count")


def _three(band: Band, text: Callable[[float], str]) -> str:
    if band.p10 == band.p90:
        return text(float(band.p50))
    return f"{text(float(band.p50))}  (P10 {text(float(band.p10))}, P90 {text(float(band.p90))})"


def size_json(report: SizeReport) -> dict[str, Any]:
    """Return what `size --json` prints."""
    m = report.machine
    return {
        "law": report.law.name, "flop": report.flop,
        "optimum": {k: getattr(report.best, k).as_dict() for k in ("flop", "params", "tokens", "tokens_per_param", "loss")},
        "gpu_hours": m.gpu_hours.as_dict() if m else None, "days": m.days.as_dict() if m else None,
        "usd": m.usd.as_dict() if m and m.usd else None,
        "asked": _choice_json(report.asked) if report.asked else None, "models": [_choice_json(c) for c in report.models],
        "batch_tokens": report.batch_tokens,
        "batch_limits": [{"law": x.law.name, "kind": x.law.kind, "tokens": x.tokens.as_dict(), "source": x.law.source}
                         for x in report.limits],
        "warnings": list(report.warnings), "assumptions": list(report.assumptions),
    }


def _choice_json(named: NamedChoice) -> dict[str, Any]:
    c = named.choice
    return {"name": named.name, "params": float(c.params), "tokens": float(c.tokens), "loss": c.loss.as_dict(),
            "tokens_per_param": float(c.tokens_per_param), "excess_compute": float(c.excess)}
