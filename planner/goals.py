"""Goals: a deadline and a budget, which of several points answers them best, and which constraint binds where none does.

A point is an offer of machines with a count of its accelerators. Only what it takes is asked of it here, so the decisions
are the same for one cluster at many counts and for many clusters and terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from planner.economics import Band
from profiles.units import show, significant

ODDS = ("p10", "p50", "p90")
NEAR = 0.05
"""A point that misses a goal by less than this may meet it with a strategy that a brief search left out."""


class Takes(Protocol):
    """What is asked of a point: its accelerators and what the run takes there; days are None where it does not run."""

    @property
    def num_gpus(self) -> int: ...
    @property
    def days(self) -> Band | None: ...
    @property
    def gpu_hours(self) -> Band | None: ...
    @property
    def usd(self) -> Band | None: ...
    @property
    def is_whole(self) -> bool: ...


P = TypeVar("P", bound=Takes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a run may take at the most, and at which odds: the percentile that has to meet it."""

    deadline_days: float | None = None
    budget_usd: float | None = None
    odds: str = "p50"

    def at(self, band: Band | None) -> float:
        """Return the percentile that counts; infinite where there is none."""
        return math.inf if band is None else float(getattr(band, self.odds))

    def excess(self, point: Takes) -> dict[str, float]:
        """Return how many times over each constraint a point is; none is within."""
        found = {}
        if self.deadline_days is not None:
            found["deadline"] = self.at(point.days) / self.deadline_days if self.deadline_days else math.inf
        if self.budget_usd is not None:
            found["budget"] = self.at(point.usd) / self.budget_usd if self.budget_usd else math.inf
        return {name: ratio for name, ratio in found.items() if ratio > 1}

    def is_met(self, point: Takes, slack: float = 0.0) -> bool:
        """Return whether a point runs and is within all constraints, or no further beyond than `slack`."""
        return runs(point) and all(ratio <= 1 + slack for ratio in self.excess(point).values())

    def wanted(self, several: bool) -> str:
        """Return what is wanted of what meets the goal: fewest, cheapest or fastest; of `several` offers never fewest."""
        if self.deadline_days is not None:
            return "fewest" if self.budget_usd is None and not several else "cheapest"
        return "cheapest" if self.budget_usd is None and several else "fastest"


def runs(point: Takes) -> bool:
    """Return whether a run comes to its end there."""
    return point.days is not None and math.isfinite(point.days.p50)


def rank(goal: Goal, wanted: str) -> Callable[[Takes], tuple[float, ...]]:
    """Return the order of points by what is wanted; without a price accelerator-hours stand for dollars, behind those with."""
    def order(point: Takes) -> tuple[float, ...]:
        days, num = goal.at(point.days), float(point.num_gpus)
        cost = (float(point.usd is None), goal.at(point.gpu_hours if point.usd is None else point.usd))
        return {"fewest": (num, *cost, days), "cheapest": (*cost, days, num), "fastest": (days, *cost, num)}[wanted]

    return order


def best(points: Sequence[P], goal: Goal, wanted: str) -> P | None:
    """Return the point that meets the goal and is wanted most, or None where none meets it."""
    return min(filter(goal.is_met, points), key=rank(goal, wanted), default=None)


def nearest(points: Sequence[P], goal: Goal) -> P | None:
    """Return the point that breaks the fewest constraints, and these by the least; None where nothing runs."""
    cheapest = rank(goal, "cheapest")

    def order(point: Takes) -> tuple[float, ...]:
        excess = goal.excess(point)
        return (len(excess), max(excess.values(), default=1.0), *cheapest(point))

    return min(filter(runs, points), key=order, default=None)


def binding(points: Sequence[P], goal: Goal) -> str:
    """Return the sentence of the constraint that no point meets; of both, where each alone could be met."""
    said, free = [], Goal(odds=goal.odds)
    fastest, cheapest = best(points, free, "fastest"), best(points, free, "cheapest")
    assert fastest and cheapest
    if goal.deadline_days is not None and "deadline" in goal.excess(fastest):
        said.append(f"deadline: {_days(goal.deadline_days)} are less than the fastest plan takes, "
                    f"{_days(goal.at(fastest.days))} on {fastest.num_gpus:,} accelerators")
    if goal.budget_usd is not None and "budget" in goal.excess(cheapest):
        said.append(f"budget: {show(goal.budget_usd, 'usd')} is less than the cheapest plan costs, "
                    f"{show(goal.at(cheapest.usd), 'usd')} on {cheapest.num_gpus:,} accelerators")
    if said:
        return "; ".join(said)
    in_time = best(points, replace(goal, budget_usd=None), "cheapest")
    inside = best(points, replace(goal, deadline_days=None), "fastest")
    assert in_time and inside and goal.deadline_days is not None and goal.budget_usd is not None
    return (
        f"deadline and budget together: in {_days(goal.deadline_days)} the cheapest costs "
        f"{show(goal.at(in_time.usd), 'usd')} on {in_time.num_gpus:,} accelerators, and for {show(goal.budget_usd, 'usd')} "
        f"the fastest takes {_days(goal.at(inside.days))} on {inside.num_gpus:,}"
    )


def _days(days: float) -> str:
    return f"{significant(days)} days"


def front(points: Sequence[P], odds: str = "p50") -> tuple[P, ...]:
    """Return the points that no other beats in days and dollars at once, the fastest first; one of several alike.

    Without any price accelerator-hours are what counts beside days; where some have one, those without are left out.
    """
    goal, priced = Goal(odds=odds), any(p.usd is not None for p in points)

    def pair(point: Takes) -> tuple[float, float, int]:
        return goal.at(point.days), goal.at(point.usd if priced else point.gpu_hours), point.num_gpus

    found: list[P] = []
    for point in sorted((p for p in points if runs(p) and (p.usd is not None or not priced)), key=pair):
        if not found or pair(point)[1] < pair(found[-1])[1]:
            found.append(point)
    return tuple(found)


def settled(points: Sequence[P], goal: Goal, wanted: str, refine: Callable[[P, Sequence[P]], Sequence[P]]) -> Sequence[P]:
    """Return the points after whole searches of those that decide: the best one, and any before it that narrowly misses.

    `refine` returns the points with that one (and those that share its search) searched whole.
    """
    while True:
        hopeful = [p for p in points if goal.is_met(p) or (not p.is_whole and goal.is_met(p, NEAR))]
        first = min(hopeful, key=rank(goal, wanted), default=None) or nearest(points, goal)
        if first is None or first.is_whole:
            return points
        points = refine(first, points)
