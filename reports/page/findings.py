"""What a report has to find out before it can be written: each once, for all its sections.

A `Brief` is what closed forms and one replay say, well within a second: a screen is made of it. `Findings` add what is
searched and simulated, seconds of work: a page needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from executor.goodput import Goodput, goodput
from executor.journal import Line
from executor.run import Run
from planner.bill import Bill, bill
from planner.counts import Sized, changed, kept, near_space, on_count, searched
from planner.offers import Offer, Point, point
from planner.plan import Plan
from planner.predict import Prediction, predict_replayed
from planner.question import Question
from planner.scenario import sized
from planner.search import Found
from planner.tornado import Tornado
from profiles.files import BadInput
from profiles.hardware import load_cluster
from reports.accuracy import Outcome
from reports.compare import current_prediction
from reports.goals_command import cases_of
from reports.nearest import nearest
from reports.page.words import noun_of
from reports.run_command import RunOptions, run_case
from reports.whatif_command import WhatIfOptions, what_if
from simulator.run.monte_carlo import Case, simulate_runs
from simulator.run.outcome import Outcomes
from simulator.run.spares import best_spares
from simulator.strategy import Strategy
from simulator.timeline import Timeline

FLEET = "published"
NUM_REPLAYED = 3
"""Strategies that are replayed at another count than the plan's: the closed form ranks the others."""
NUM_RUNS = 64
"""Simulated runs behind the fan: enough for its bands, and seconds of work for the largest fleets."""
SIZES = (0.25, 0.5, 1.0, 2.0)
"""Counts of the scaling curve, over the plan's own."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Brief:
    """A plan with what is quickly known of it, and the run that was made of it, if there is one.

    `case` holds the spare nodes that pay, `spent` is where the time of the run went, by its journal.
    """

    plan: Plan
    run: Run | None
    prediction: Prediction
    edited: str | None
    timeline: Timeline
    bill: Bill
    case: Case
    near: tuple[Outcome, ...]
    spent: Goodput | None = None

    @property
    def question(self) -> Question:
        """Return the plan's question."""
        return self.plan.question

    @property
    def noun(self) -> str:
        """Return what an accelerator is called."""
        return noun_of(self.question)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings(Brief):
    """Everything that is known of a plan.

    `runs` are simulated with failures (None where nothing fits), `points` are counts of accelerators with what the run takes
    there, the plan's own among them; `left_out` says why a count is not there.
    """

    runs: Outcomes | None
    tornado: Tornado | None
    points: tuple[Point, ...]
    left_out: tuple[str, ...]

    @property
    def own(self) -> Point:
        """Return the plan's own point."""
        return next(p for p in self.points if p.num_gpus == self.question.cluster.num_gpus)


def brief(plan: Plan, run: Run | None = None, journal: Sequence[Line] = ()) -> Brief:
    """Return what a screen needs of a plan; `journal` is that of the run."""
    prediction, edited = current_prediction(plan)
    current = replace(plan, prediction=prediction.as_dict())
    case = run_case(current, current.prediction, RunOptions(fleet=FLEET))[0]
    spares = best_spares(case.training, fleet=case.fleet, elastic=False)
    return Brief(
        plan=plan, run=run, prediction=prediction, edited=edited, timeline=predict_replayed(plan.question, plan.strategy)[1],
        bill=bill(plan.question, plan.strategy, current.prediction, case=case),
        case=replace(case, reserve=replace(case.reserve, num_spares=spares)), near=nearest(plan.question, plan.strategy),
        spent=goodput(journal) if journal else None,
    )


def gather(known: Brief, on_progress: Callable[[float], None] | None = None) -> Findings:
    """Return all that a page needs of a plan, with what is known of it already."""
    tell = on_progress or (lambda share: None)
    plan, prediction = known.plan, known.prediction
    points, left_out = _points(plan, prediction, lambda share: tell(0.5 * share))
    runs = simulate_runs(known.case, NUM_RUNS, lambda share: tell(0.5 + 0.3 * share)) if prediction.fits else None
    asked, current = WhatIfOptions(tornado=True, fleet=FLEET), replace(plan, prediction=prediction.as_dict())
    moves = what_if((current,), ("plan",), asked, lambda share: tell(0.8 + 0.2 * share)).tornado if prediction.fits else None
    return Findings(**{f.name: getattr(known, f.name) for f in fields(Brief)}, runs=runs, tornado=moves, points=points,
                    left_out=left_out)


def _points(plan: Plan, prediction: Prediction, tell: Callable[[float], None]) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """Return what the run takes on a few counts, each with the best strategy near the plan's; and what is left out, and why."""
    question, strategy, left_out = plan.question, plan.strategy, []
    offer, cases = Offer(cluster=question.cluster_text, price=question.price), cases_of(FLEET)
    last: Prediction | None = None
    points = []
    counts = _counts(plan)
    for i, (num, asked) in enumerate(counts):
        tell(i / len(counts))
        if num == question.cluster.num_gpus:
            there = Sized(question=question, found=_alone(question, prediction))
        else:
            there = searched(asked, None, lambda q: near_space(q, strategy), num_replayed=NUM_REPLAYED)
            there = _or_kept(there, strategy, *([last.strategy] if last else []))
        if there.prediction is None:
            left_out.append(f"{num:,}: {there.reason}")
            continue
        change = changed(last, there.prediction, there.question) if last else None
        last = there.prediction
        points.append(point(offer, replace(there, change=change), cases))
    return tuple(points), tuple(left_out)


def _or_kept(there: Sized, *strategies: Strategy) -> Sized:
    """Return a count with a strategy of another count in place of the one that was found, where it is faster and fits."""
    for strategy in strategies:
        same, _ = kept(strategy, there.question)
        if same is None or same.global_batch != there.question.global_batch:
            continue
        prediction, best = predict_replayed(there.question, same)[0], there.prediction
        if prediction.fits and (best is None or prediction.step_time_s < best.step_time_s):
            there = replace(there, found=replace(there.found, best=prediction), reason="")
    return there


def _counts(plan: Plan) -> list[tuple[int, Question]]:
    """Return the counts that can be had of the plan's cluster, or of more of its nodes."""
    question, found = plan.question, []
    own = question.cluster.num_gpus
    whole = load_cluster(question.cluster_text, plan.profile)
    for num in sorted({max(1, round(own * size)) for size in SIZES}):
        try:
            if num <= own:
                found.append((num, on_count(question, num)))
            elif num <= whole.num_gpus or whole.table is None:
                found.append((num, replace(question, cluster=sized(whole, num))))
        except BadInput:
            # no whole nodes
            continue
    return found


def _alone(question: Question, prediction: Prediction) -> Found:
    """Return a plan's own prediction as if it had been searched for."""
    return Found(question=question, axes={}, best=prediction, runners_up=(), strategies_total=1, strategies_priced=1,
                 rejected={}, rejected_examples=(), search_seconds=0.0)
