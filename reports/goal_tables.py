"""A goal's answer as a screen, as JSON, and as the rows of its figure."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.counts import Change
from planner.goals import runs
from planner.offers import Offer, Point, why_not
from profiles.units import show, significant
from reports.compare import TERMS
from reports.figures import PARETO_COLUMNS, pareto, svg
from reports.goals_command import GoalAnswer
from reports.plan_tables import prediction_table

WISHES = {
    "fewest": "Fewest accelerators", "cheapest": "Cheapest", "fastest": "Fastest",
}


def goal_screen(answer: GoalAnswer, title: str, verbose: bool = False) -> RenderableType:
    """Return what the terminal shows: the answer, its plan, what was considered, every count.

    Where it is `verbose` also why the strategy is another one than at the count before, and what was assumed.
    """
    shown: list[RenderableType] = [Text("\n".join(_headline(answer)))]
    if answer.plan is not None:
        shown.append(prediction_table(answer.plan.prediction, answer.plan.strategy, title))
    if len(answer.considered.offers) + len(answer.refused) > 1:
        shown.append(_considered_table(answer))
    shown += [_counts_table(answer, p.offer, verbose) for p in answer.considered.offers[:1] if answer.considered.chosen is None]
    if answer.considered.chosen is not None and len(answer.considered.of(answer.considered.chosen.offer)) > 1:
        shown.append(_counts_table(answer, answer.considered.chosen.offer, verbose))
    if not verbose:
        return Group(*shown)
    assumed = [*(answer.question.assumptions if answer.question else ()), *answer.assumptions]
    return Group(*shown, Text("Assumed:", style="bold"), *(Text(f"  {line}") for line in assumed))


def _headline(answer: GoalAnswer) -> list[str]:
    c = answer.considered
    if c.chosen is None:
        return ["Nothing runs on any of these."]
    if not c.is_met:
        return [f"Not possible: {c.binding}.", f"The nearest plan: {_words(answer, c.chosen)}"]
    lines = [f"{WISHES[c.wanted]}{_within(answer)}: {_words(answer, c.chosen)}"]
    cheapest = c.cheapest
    if cheapest is not None and cheapest is not c.chosen and c.goal.deadline_days is not None:
        lines.append(f"Cheapest{_within(answer)}: {_words(answer, cheapest)}")
    return lines


def _within(answer: GoalAnswer) -> str:
    goal, said = answer.considered.goal, ""
    if goal.deadline_days is not None:
        said += f" in {significant(goal.deadline_days)} days"
    if goal.budget_usd is not None:
        said += f" for {show(goal.budget_usd, 'usd')}"
    if answer.options.max_gpus is not None:
        said += f" on at most {answer.options.max_gpus:,}"
    return said + (f" ({goal.odds.upper()})" if said and goal.odds != "p50" else "")


def _words(answer: GoalAnswer, point: Point) -> str:
    where = f"{point.num_gpus:,} GPUs of {point.offer.cluster}"
    term = f", {point.offer.term}" if len(answer.considered.offers) > 1 else ""
    assert point.days is not None
    low, middle, high = (significant(float(v)) for v in (point.days.p10, point.days.p50, point.days.p90))
    return f"{where}{term}: {middle} days (P10 {low}, P90 {high}), {_cost(point)}"


def _cost(point: Point) -> str:
    if point.gpu_hours is None:
        return "-"
    if point.usd is None:
        return f"no price known: {significant(float(point.gpu_hours.p50), 4)} GPU-hours"
    return show(float(point.usd.p50), "usd")


def _considered_table(answer: GoalAnswer) -> Table:
    c, table = answer.considered, Table(title="Considered", title_justify="left")
    for name in ("cluster", "term", "USD/GPU-h", "GPUs", "strategy", "step", "MFU", "days", "cost", "outcome"):
        table.add_column(name, justify="left" if name in ("cluster", "term", "strategy", "outcome") else "right")
    order = sorted(c.offers, key=lambda p: (p is not c.chosen, not runs(p), p.usd is None, c.goal.at(p.usd)))
    for point in order:
        price = point.offer.price
        table.add_row(
            point.offer.cluster, point.offer.term if price is None else f"{price.term}, {price.provider}",
            "-" if price is None else f"{price.usd_per_gpu_hour:.2f}", *_cells(point), _outcome(answer, point),
            style="bold" if point is c.chosen else "",
        )
    for name, reason in answer.refused.items():
        table.add_row(name, *["-"] * 8, reason)
    return table


def _cells(point: Point) -> list[str]:
    """Return accelerators, strategy, step, MFU, days and cost of a point."""
    p = point.sized.prediction
    star = "*" if point.is_whole else ""
    if p is None:
        return [f"{point.num_gpus:,}", "-", "-", "-", "-", "-"]
    days = "-" if point.days is None else significant(float(point.days.p50))
    return [f"{point.num_gpus:,}", p.strategy.describe() + star, show(p.step_time_s, "s"), f"{p.mfu:.3f}", days, _cost(point)]


def _outcome(answer: GoalAnswer, point: Point) -> str:
    c = answer.considered
    if point is c.chosen:
        said = "chosen" if c.is_met else "nearest"
    else:
        said = why_not(point, c.chosen, c.goal, c.wanted) if c.chosen else point.reason
    if point.offer in c.break_even:
        most = c.break_even[point.offer]
        said += "; never the cheapest" if most is None else f"; cheapest up to {significant(most, 2)} preemptions a node-day"
    return said


def _counts_table(answer: GoalAnswer, offer: Offer, verbose: bool) -> Table:
    c, front = answer.considered, answer.considered.front
    table = Table(title=f"Every count of {offer.cluster}, {offer.term}", title_justify="left")
    for name in ("GPUs", "strategy", "step", "MFU", "days", "P10", "P90", "cost", ""):
        table.add_column(name, justify="left" if name in ("strategy", "") else "right")
    for point in c.of(offer):
        num, strategy, step, mfu, days, cost = _cells(point)
        if point.reason:
            strategy = point.reason
        elif point.sized.change and verbose:
            strategy += f"\n  {_change(point.sized.change)}"
        low, high = ("-", "-") if point.days is None else (significant(float(v)) for v in (point.days.p10, point.days.p90))
        mark = ("chosen" if c.is_met else "nearest") if point is c.chosen else "front" if point in front else ""
        table.add_row(num, strategy, step, mfu, days, low, high, cost, mark, style="bold" if point is c.chosen else "")
    return table


def _change(change: Change) -> str:
    """Return how and why the best strategy is another one than with fewer accelerators."""
    if change.reason:
        return f"{change.what}; as before: {change.reason}"
    if change.slower < 0.0005:
        return f"{change.what}; as before: just as fast"
    return (f"{change.what}; as before: {change.slower:.1%} slower, most of it {TERMS[change.term]} "
            f"({show(change.kept_s, 's')} instead of {show(change.now_s, 's')})")


def goal_json(answer: GoalAnswer) -> dict[str, Any]:
    """Return what `plan --json` prints where there is a goal."""
    c, front = answer.considered, answer.considered.front
    found, plan = answer.found, answer.plan

    def row(point: Point) -> dict[str, Any]:
        return _point_json(point) | {"is_front": point in front, "is_chosen": point is c.chosen}

    data: dict[str, Any] = _finite({
        "goal": asdict(c.goal) | {"max_gpus": answer.options.max_gpus, "wanted": c.wanted}, "is_met": c.is_met,
        "binding": c.binding or None, "chosen": None if c.chosen is None else _point_json(c.chosen),
        "best": plan.prediction if plan else None, "runners_up": list(plan.runners_up) if plan else [],
        "strategies_total": found.strategies_total if found else 0,
        "strategies_priced": found.strategies_priced if found else 0, "rejected": found.rejected if found else {},
        "search_seconds": sum({id(p.sized): p.sized.found.search_seconds for p in c.points}.values()),
        "points": [row(p) for p in c.points],
        "considered": [row(p) | {
            "reason": "" if p is c.chosen or c.chosen is None else why_not(p, c.chosen, c.goal, c.wanted),
            "break_even_preemptions_per_node_day": c.break_even.get(p.offer),
        } for p in c.offers],
        "refused": answer.refused,
        "assumptions": [*(answer.question.assumptions if answer.question else ()), *answer.assumptions],
    })
    return data


def _point_json(point: Point) -> dict[str, Any]:
    p, change = point.sized.prediction, point.sized.change
    return {
        "cluster": point.offer.cluster, "price": asdict(point.offer.price) if point.offer.price else None,
        "preemptions_per_node_day": point.offer.preemptions_per_node_day, "num_gpus": point.num_gpus,
        "strategy": p.strategy.describe() if p else None, "step_time_s": p.step_time_s if p else None,
        "mfu": p.mfu if p else None, "days": point.days.as_dict() if point.days else None,
        "gpu_hours": point.gpu_hours.as_dict() if point.gpu_hours else None,
        "usd": point.usd.as_dict() if point.usd else None,
        "goodput": point.bill.goodput.as_dict() if point.bill and point.bill.goodput else None,
        "is_whole": point.is_whole, "reason": point.reason, "change": asdict(change) if change else None,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def figure_rows(answer: GoalAnswer) -> pd.DataFrame:
    """Return the rows of the figure: points that run, and where some have a price only those."""
    c, front = answer.considered, answer.considered.front
    priced = any(p.usd is not None for p in c.points)
    rows = []
    for p in c.points:
        cost = p.usd if priced else p.gpu_hours
        if not runs(p) or cost is None or p.days is None:
            continue
        low, middle, high = (float(v) for v in (p.days.p10, p.days.p50, p.days.p90))
        high = high if math.isfinite(high) else middle
        rows.append((f"{p.offer.cluster}, {p.offer.term}", p.num_gpus, middle, low, high, float(cost.p50),
                     p.sized.change is not None, p in front, p is c.chosen))
    return pd.DataFrame(rows, columns=list(PARETO_COLUMNS))


def goal_figure(answer: GoalAnswer) -> str | None:
    """Return the figure of days against dollars as SVG, or None where nothing runs."""
    rows, goal = figure_rows(answer), answer.considered.goal
    if rows.empty:
        return None
    limits = {"deadline": goal.deadline_days, "budget": goal.budget_usd}
    priced = any(p.usd is not None for p in answer.considered.points)
    cost = "USD" if priced else "GPU-hours"
    drawn = pareto(rows, cost, {name: value for name, value in limits.items() if value})
    return svg(drawn, "pareto", f"days against {cost}", font="sans-serif")
