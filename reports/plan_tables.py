"""What the terminal shows of a plan: the prediction, what came next, what was left out, what was assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from planner.plan import Plan
from planner.predict import Prediction, fit_odds
from planner.question import Question
from planner.search import Found
from profiles.units import show, significant
from reports.console import console
from simulator.strategy import Strategy


def title_of(question: Question) -> str:
    """Return what is planned, on what, in one line."""
    cluster = question.cluster
    return f"{question.model.name} on {question.cluster_text} ({cluster.num_gpus} x {cluster.accelerator.title})"


def print_assumptions(question: Question, more: Sequence[str] = ()) -> None:
    """Print what was assumed in place of what was not said."""
    console.print("Assumed:", style="bold")
    for line in (*question.assumptions, *more):
        console.print(f"  {line}", soft_wrap=True, highlight=False)


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
    sure = fit_odds(p["memory_bytes"], p["usable_memory_bytes"])
    odds = f" (odds {sure:.0%})" if 0.005 < sure < 0.995 else ""
    needs, usable = show(p["peak_memory_bytes"], "bytes"), show(p["usable_memory_bytes"], "bytes")
    table.add_row("peak memory", f"{needs} of {usable}: {verdict}{odds}")
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


def plan_json(plan: Plan | None, found: Found) -> dict[str, Any]:
    """Return what `plan --json` prints, its bill apart; no plan is where nothing fits."""
    return {
        "best": plan.prediction if plan else None, "runners_up": list(plan.runners_up) if plan else [],
        "strategies_total": found.strategies_total, "strategies_priced": found.strategies_priced, "rejected": found.rejected,
        "rejected_examples": [r.as_dict() for r in found.rejected_examples], "search_seconds": found.search_seconds,
    }
