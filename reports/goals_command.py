"""What `headway plan` does with a goal: a deadline, a budget, several clusters and terms become points, one of them a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.considered import Advance, Considered, Job, Method, consider
from planner.counts import gpu_counts
from planner.economics import run_usd
from planner.goals import ODDS, Goal
from planner.offers import PREEMPTIONS_PER_NODE_DAY, PREEMPTIONS_SOURCE, SPOT, Cases, Point, check_terms, offers_of
from planner.plan import Plan, plan_from_prediction, plan_from_search
from planner.predict import Prediction
from planner.question import Question
from planner.search import Found, Refuse
from planner.space import Axes, brief_space, narrowed, whole_space
from profiles.files import BadInput
from profiles.hardware import Price
from profiles.reliability import load_fleet
from profiles.units import UNITS, parse
from reports.run_command import RunOptions, run_case
from simulator.run.monte_carlo import Case

UNDISTURBED = "none"
"""The fleet of which nothing fails."""
SECONDS_PER_DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalOptions:
    """What is asked, as people type it; `clusters` are all that are considered, the first one's job is that of all."""

    clusters: tuple[str, ...]
    deadline: str | None = None
    budget: str | None = None
    max_gpus: int | None = None
    counts: str | None = None
    terms: str | None = None
    failures: str | None = None
    preemptions_per_day: float | None = None
    odds: str = "p50"
    search: tuple[str, ...] = ()
    price: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How the command line asks of a cluster (with a price, a sequence length and a global batch in place of its own)."""

    question: Callable[[str, str | Price | None, int | None, int | None], Question]
    refuse: Callable[[Question], Refuse | None]
    profile: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalAnswer:
    """What was considered, the clusters that cannot be asked and why, and the plan of the chosen point, if one runs."""

    options: GoalOptions
    considered: Considered
    refused: dict[str, str]
    question: Question | None
    found: Found | None
    plan: Plan | None
    assumptions: tuple[str, ...]


def goal_options(
    cluster: str | None, clusters: str | None, search: Sequence[str], odds: str | None, price: str | None,
    **given: str | float | None,
) -> GoalOptions | None:
    """Return what is asked, or None where one cluster is asked for without a goal; options that are None were not given."""
    names = tuple(dict.fromkeys(filter(None, [cluster, *(text.strip() for text in (clusters or "").split(","))])))
    if not names:
        raise BadInput("cluster: is missing; name one after the model, like 'dgx-h100:16', or several with --clusters")
    if odds is not None and odds not in ODDS:
        raise BadInput(f"odds: {odds!r} is no percentile that is predicted; they are {', '.join(ODDS)}")
    named = {name: value for name, value in given.items() if value is not None}
    if clusters is None and not named:
        if odds is not None:
            raise BadInput("odds: goes with --deadline, --budget, --max-gpus or --clusters")
        return None
    if price is not None and (len(names) > 1 or "terms" in named):
        raise BadInput(f"price: {price!r} is one price; it goes with one cluster and without --terms")
    return GoalOptions(clusters=names, search=tuple(search), odds=odds or "p50", price=price, **named)  # type: ignore[arg-type]


def goal_of(options: GoalOptions) -> Goal:
    """Return the goal with its numbers."""
    days = None if options.deadline is None else parse(options.deadline, "s", "deadline") / SECONDS_PER_DAY
    for name, value in (("max_gpus", options.max_gpus), ("preemptions_per_day", options.preemptions_per_day)):
        if value is not None and value < (1 if name == "max_gpus" else 0):
            raise BadInput(f"{name}: must not be less than {1 if name == 'max_gpus' else 0} (is {value:g})")
    return Goal(deadline_days=days, budget_usd=None if options.budget is None else _dollars(options.budget), odds=options.odds)


def _dollars(text: str) -> float:
    """Return dollars from '5M' as from '5 MUSD'."""
    has_unit = any(text.rstrip().endswith(unit) for unit in UNITS["usd"])
    return parse(text, "usd" if has_unit else "count", "budget")


def spaces(given: Sequence[str]) -> tuple[Callable[[Question], Axes], Callable[[Question], Axes]]:
    """Return the brief and the whole space, each with the axes that are given."""
    return (lambda q: narrowed(brief_space(q), list(given), q)), (lambda q: narrowed(whole_space(q), list(given), q))


def answer_goal(options: GoalOptions, asked: Asked, on_progress: Advance | None = None) -> GoalAnswer:
    """Return what serves a goal best, what else was considered, and why it lost."""
    goal = goal_of(options)
    questions, refused = _questions(options, asked)
    if options.failures is not None:
        load_fleet(options.failures)
    terms = [text.strip() for text in (options.terms or "").split(",") if text.strip()]
    check_terms(terms, [q.cluster for q in questions.values()])
    rate = PREEMPTIONS_PER_NODE_DAY if options.preemptions_per_day is None else options.preemptions_per_day
    jobs = []
    for name, question in questions.items():
        given = question.price if options.price is not None or not (terms or len(options.clusters) > 1) else None
        of_cluster = offers_of(name, question.cluster, terms, given, rate)
        if of_cluster:
            jobs.append(Job(name=name, question=question, counts=_counts(options, question), offers=of_cluster))
        else:
            refused[name] = f"no price on these terms: {options.terms}"
    if not jobs:
        raise BadInput("clusters: none can be asked: " + "; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    if goal.budget_usd is not None and all(offer.price is None for job in jobs for offer in job.offers):
        raise BadInput(f"budget: no price known of {', '.join(q.cluster.accelerator.title for q in questions.values())}; "
                       "give one with --price, like '2.20 USD/h'")
    brief, whole = spaces(options.search)
    cases = cases_of(options.failures or UNDISTURBED)
    considered = consider(jobs, goal, Method(brief=brief, whole=whole, cases=cases, refuse=asked.refuse), on_progress)
    chosen, found, plan = _plan(considered.chosen, asked)
    return GoalAnswer(options=options, considered=considered, refused=refused, question=chosen, found=found, plan=plan,
                      assumptions=tuple(_assumptions(options, considered, rate)))


def _questions(options: GoalOptions, asked: Asked) -> tuple[dict[str, Question], dict[str, str]]:
    """Return the same job on each cluster; one of several that cannot be asked is refused with its reason."""
    questions: dict[str, Question] = {}
    refused: dict[str, str] = {}
    seq_len = batch = None
    for name in options.clusters:
        try:
            questions[name] = asked.question(name, options.price, seq_len, batch)
        except BadInput as e:
            # a cluster that lacks a type loses; a name that nobody knows is a mistake
            if len(options.clusters) == 1 or not str(e).startswith("precision"):
                raise
            refused[name] = str(e)
            continue
        seq_len, batch = questions[name].seq_len, questions[name].global_batch
    return questions, refused


def _counts(options: GoalOptions, question: Question) -> tuple[int, ...]:
    """Return the counts that are tried: many where the goal leaves them open, else the whole cluster."""
    if options.counts is None and options.deadline is None and options.budget is None and options.max_gpus is None:
        return (question.cluster.num_gpus,)
    try:
        given = [int(text) for text in (options.counts or "").split(",") if text.strip()]
    except ValueError:
        raise BadInput(f"counts: {options.counts!r} are no numbers of accelerators; write them like '8,16,32'") from None
    return gpu_counts(question.cluster, options.max_gpus, given)


def cases_of(fleet: str) -> Cases:
    """Return the whole run of a prediction on a fleet, each made once."""
    known: dict[object, Case] = {}

    def case(question: Question, prediction: Prediction) -> Case:
        key = (question.cluster_text, question.cluster.num_gpus, prediction.strategy)
        if key not in known:
            plan = plan_from_prediction(question, prediction, None)
            known[key] = run_case(plan, prediction.as_dict(), RunOptions(fleet=fleet))[0]
        return known[key]

    return case


def _plan(chosen: Point | None, asked: Asked) -> tuple[Question | None, Found | None, Plan | None]:
    """Return the plan of the chosen point, at its price."""
    if chosen is None or chosen.sized.prediction is None:
        return None, None, None
    found, sized = chosen.sized.found, chosen.sized.question
    priced = asked.question(chosen.offer.cluster, chosen.offer.price, sized.seq_len, None)
    assumed = [line for line in priced.assumptions if not line.startswith("global batch")]
    question = replace(sized, price=chosen.offer.price, assumptions=(
        f"global batch {sized.global_batch} sequences ({sized.global_batch * sized.seq_len / 2**20:.3g} Mi tokens) at every "
        "count", *assumed))

    def at_price(p: Prediction) -> Prediction:
        usd = run_usd(p.gpu_hours, chosen.offer.price)
        return replace(p, usd=None if usd is None else float(usd))

    found = replace(found, question=question, best=at_price(chosen.sized.prediction),
                    runners_up=tuple(at_price(p) for p in found.runners_up))
    return question, found, plan_from_search(question, found, asked.profile)


def _assumptions(options: GoalOptions, considered: Considered, rate: float) -> list[str]:
    said = []
    if not all(p.is_whole for p in considered.points):
        said.append("points are compared by a brief search of what most runs use; the one that decides is searched whole, "
                    "and marked *")
    if options.failures is None:
        said.append("--failures published counts failures and checkpoints")
    else:
        said.append(f"days, hours and dollars with the failures of fleet '{options.failures}' and checkpoints in closed form "
                    "(Daly 2006), without spares and planned stops; those of the plan below are undisturbed")
    terms = {p.offer.term for p in considered.offers}
    if SPOT in terms:
        source = "" if options.preemptions_per_day is not None else f": {PREEMPTIONS_SOURCE}; --preemptions-per-day"
        said.append(f"a spot node is taken back {rate:g} times a day{source}; another one is there at once")
    if any(term.startswith("reserved") or term == "contract" for term in terms):
        said.append("reserved and contract prices are those of the run's hours: what a commitment costs beyond is left out")
    prices = dict.fromkeys(point.offer.price for point in considered.offers)
    return said + [f"{p.usd_per_gpu_hour:g} USD per GPU-hour, {p.term}, {p.provider}, as of {p.date} ({p.source})"
                   for p in prices if p is not None and len(prices) > 1]


def exit_status(answer: GoalAnswer) -> int:
    """Return 0 where the goal is met, 1 where it is not."""
    return 0 if answer.considered.is_met else 1
