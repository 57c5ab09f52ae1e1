"""What was considered: every count of every offer, which of them answers a goal, and which constraint binds where none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from planner.counts import Spaces, searched, sweep
from planner.goals import Goal, best, binding, front, nearest, settled
from planner.offers import SPOT, Cases, Offer, Point, break_even_preemptions, point
from planner.question import Question
from planner.search import Refuse

SWEEP_SHARE = 0.6
"""Of the progress, what the counts take; the rest are whole searches."""
Advance = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The question on the whole of a cluster, the counts of its accelerators that are tried, and the offers of it."""

    name: str
    question: Question
    counts: tuple[int, ...]
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How points are found: the space of a sweep, the space of what decides, what an engine refuses, and the whole run."""

    brief: Spaces
    whole: Spaces
    cases: Cases
    refuse: Callable[[Question], Refuse | None] = lambda question: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """All points; the one of each offer that serves best; the chosen one, whether it meets the goal, and what binds if not.

    `break_even`: of spot offers, up to how many preemptions a day of a node they cost no more than the cheapest other offer.
    """

    goal: Goal
    wanted: str
    points: tuple[Point, ...]
    offers: tuple[Point, ...]
    chosen: Point | None
    is_met: bool
    binding: str
    break_even: dict[Offer, float | None]

    @property
    def front(self) -> tuple[Point, ...]:
        """Return the points that no other beats in days and dollars at once, the fastest first."""
        return front(self.points, self.goal.odds)

    @property
    def cheapest(self) -> Point | None:
        """Return the cheapest point that meets the goal."""
        return best(self.points, self.goal, "cheapest")

    def of(self, offer: Offer) -> tuple[Point, ...]:
        """Return the points of one offer, by count."""
        return tuple(p for p in self.points if p.offer == offer)


def consider(jobs: Sequence[Job], goal: Goal, method: Method, on_progress: Advance | None = None) -> Considered:
    """Return what each offer takes at each count, in a brief space, with whole searches of the counts that decide."""
    tell = on_progress or (lambda share, note: None)
    wanted = goal.wanted(several=sum(len(job.offers) for job in jobs) > 1)
    points: list[Point] = []
    for i, job in enumerate(jobs):
        points += _swept(job, method, _part(tell, SWEEP_SHARE * i / len(jobs), SWEEP_SHARE / len(jobs)))

    def refine(chosen: Point, now: Sequence[Point]) -> Sequence[Point]:
        question = chosen.sized.question
        note = f"{chosen.offer.cluster}: all strategies of {chosen.num_gpus:,} accelerators"
        part = _part(tell, SWEEP_SHARE, 1 - SWEEP_SHARE)
        found = searched(question, method.refuse(question), method.whole, lambda share: part(share, note))
        # what changes from count to count is what it was in the one space that all were searched in
        sized = replace(found, is_whole=True, change=chosen.sized.change)
        return [point(p.offer, sized, method.cases) if p.sized is chosen.sized else p for p in now]

    return decided(settled(points, goal, wanted, refine), goal, wanted, method.cases)


def _part(tell: Advance, begin: float, length: float) -> Advance:
    return lambda share, note: tell(begin + length * share, note)


def _swept(job: Job, method: Method, tell: Advance) -> list[Point]:
    swept = sweep(job.question, job.counts, method.refuse(job.question), method.brief,
                  lambda share, num: tell(share, f"{job.name}: {num:,} accelerators"))
    return [point(offer, sized, method.cases) for offer in job.offers for sized in swept]


def decided(points: Sequence[Point], goal: Goal, wanted: str, cases: Cases) -> Considered:
    """Return which point answers a goal, the best of each offer beside it, and up to which preemptions spot nodes pay."""
    met = best(points, goal, wanted)
    chosen = met or nearest(points, goal)
    each = [_serves([p for p in points if p.offer == offer], goal, wanted) for offer in dict.fromkeys(p.offer for p in points)]
    if chosen is not None:
        each = [chosen if p.offer == chosen.offer else p for p in each]
    steady = best([p for p in each if p.offer.term != SPOT and p.usd is not None], Goal(odds=goal.odds), "cheapest")
    return Considered(
        goal=goal, wanted=wanted, points=tuple(points), offers=tuple(each), chosen=chosen, is_met=met is not None,
        binding="" if met or chosen is None else binding(points, goal),
        break_even={p.offer: break_even_preemptions(p, goal.at(steady.usd), goal.odds, cases)
                    for p in each if steady is not None and p.offer.term == SPOT and p.sized.prediction is not None},
    )


def _serves(points: Sequence[Point], goal: Goal, wanted: str) -> Point:
    return best(points, goal, wanted) or nearest(points, goal) or points[-1]
