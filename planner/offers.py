"""Offers of machines: a cluster on the terms of a price, what a run takes there, and why one offer loses against another.

Spot nodes are taken back: each preemption is a failure of the fleet that waits for nothing but another node's start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.bill import Bill, bill, goodput_at
from planner.break_even import bracket
from planner.counts import Sized
from planner.economics import Band
from planner.goals import Goal, runs
from planner.predict import Prediction
from planner.question import Question
from profiles.files import BadInput
from profiles.hardware import Cluster, Price
from profiles.prices import by_term, default_price, joint_prices, offers
from profiles.reliability import Cause, load_fleet
from profiles.units import show, significant
from simulator.run.interval_curve import best_interval
from simulator.run.monte_carlo import Case

SPOT = "spot"
PREEMPTIONS_PER_NODE_DAY = 10.5
"""Median of seven zones, 1.4 to 17.6: nodes lost a day of a node, V100 on AWS in April and August 2023 (the preemption traces
of skypilot-org/spot-traces, 'Can't Be Late', NSDI 2024). No such figures are published for later accelerators."""
PREEMPTIONS_SOURCE = "median of seven traces of V100 on AWS in 2023, from 1.4 to 17.6 (skypilot-org/spot-traces, NSDI 2024)"
LEAST_GOODPUT = 0.02
"""A run that makes new steps in less of its time than this does not come to its end."""
RARE, OFTEN = 1e-4, 1e3
"""Preemptions a day of a node between which break-evens are looked for."""

Cases = Callable[[Question, Prediction], Case]
"""The whole run of a prediction; one of a fleet without causes is undisturbed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A cluster (as it was asked for) on the terms of a price; None where no price is known."""

    cluster: str
    price: Price | None
    preemptions_per_node_day: float = 0.0

    @property
    def term(self) -> str:
        """Return the term, or what stands for one."""
        return "no price" if self.price is None else self.price.term


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An offer with a count of its accelerators: the best strategy there and the run's bill, or the `reason` for none."""

    offer: Offer
    sized: Sized
    bill: Bill | None = None
    reason: str = ""

    @property
    def num_gpus(self) -> int:
        """Return the accelerators that train."""
        return self.sized.num_gpus

    @property
    def is_whole(self) -> bool:
        """Return whether all strategies were searched."""
        return self.sized.is_whole

    @property
    def days(self) -> Band | None:
        """Return the days of the run, or None where it does not run."""
        return self.bill.days if self.bill else None

    @property
    def gpu_hours(self) -> Band | None:
        """Return the accelerator-hours that are paid for."""
        return self.bill.gpu_hours if self.bill else None

    @property
    def usd(self) -> Band | None:
        """Return the dollars, or None where no price is known."""
        return self.bill.usd if self.bill else None


def offers_of(
    name: str, cluster: Cluster, terms: Sequence[str], price: Price | None, preemptions: float
) -> tuple[Offer, ...]:
    """Return one offer for each term: `price` alone where one is given, else what the catalogue knows of the cluster.

    A provider's own machine has that provider's prices; of others the default of a term counts, or else its lowest price.
    """
    if price is not None:
        return (Offer(cluster=name, price=price),)
    known = _terms(cluster)
    wanted = [p for term, p in known.items() if not terms or any(_is(term, t) for t in terms)]
    if not wanted:
        return (Offer(cluster=name, price=None),) if not known else ()
    return tuple(Offer(cluster=name, price=p, preemptions_per_node_day=preemptions if p.term == SPOT else 0.0) for p in wanted)


def _terms(cluster: Cluster) -> dict[str, Price]:
    """Return the price of each term on which a cluster, or every part of a pool, can be had."""
    if cluster.parts:
        return by_term(joint_prices([_terms(part) for part in cluster.parts], [part.num_gpus for part in cluster.parts]))
    default, known = default_price(cluster.accelerator), offers(cluster.accelerator)
    return by_term(sorted(_own(cluster, known) or known, key=lambda p: (p != default, p.usd_per_gpu_hour)))


def check_terms(terms: Sequence[str], clusters: Sequence[Cluster]) -> None:
    """Refuse a term that no price of these clusters has."""
    known = sorted({p.term for cluster in clusters for p in offers(cluster.accelerator)})
    for term in terms:
        if not any(_is(k, term) for k in known):
            raise BadInput(f"terms: {term!r} is none of these clusters' prices; there are {', '.join(known) or 'no prices'}")


def _is(term: str, asked: str) -> bool:
    return term == asked or term.startswith(f"{asked}-")


def _own(cluster: Cluster, known: Sequence[Price]) -> list[Price]:
    """Return the prices of a provider's machine: those whose SKU begins with the cluster's name, as p5.48xlarge with p5."""
    return [p for p in known if p.provider.split()[-1].startswith(cluster.name)]


def point(offer: Offer, sized: Sized, cases: Cases) -> Point:
    """Return what the run takes with the best strategy of a count, on the terms of an offer."""
    prediction = sized.prediction
    if prediction is None:
        return Point(offer=offer, sized=sized, reason=sized.reason)
    question = replace(sized.question, price=offer.price)
    case = preempted(cases(question, prediction), offer.preemptions_per_node_day)
    if case.fleet.causes and goodput_at(case, 0.0) < LEAST_GOODPUT:
        return Point(offer=offer, sized=sized, reason=_hopeless(case))
    days = {"days_p10": prediction.days_p10, "days": prediction.days, "days_p90": prediction.days_p90}
    # fleets with bad luck may never let a run end: those draws take forever
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        made = bill(question, prediction.strategy, days, case=case if case.fleet.causes else None)
    return Point(offer=offer, sized=sized, bill=made)


def _hopeless(case: Case) -> str:
    t = case.training
    mean = 1.0 / case.fleet.failures_per_s(t.num_gpus, t.num_nodes)
    again = show(case.fleet.detection_s + case.fleet.restart_s, "s")
    return f"does not come to its end: interrupted every {show(mean, 's')}, and {again} to start again"


def preempted(case: Case, per_node_day: float) -> Case:
    """Return a case in which nodes are also taken back so often, with the checkpoint interval that is then best.

    A preemption is announced, so nothing has to be noticed; processes start again on another node (times of the fleet
    'published'). The closed form has one time to start again: the mean over causes, by their rates.
    """
    if not per_node_day:
        return case
    t, fleet, usual = case.training, case.fleet, load_fleet("published")
    rate = per_node_day / 86400.0
    failing, taken = fleet.failures_per_s(t.num_gpus, t.num_nodes), rate * t.num_nodes
    lost = failing * (fleet.detection_s + fleet.restart_s) + taken * (usual.restart_s + usual.replacement_s)
    with_spot = replace(fleet, detection_s=0.0, restart_s=lost / (failing + taken), causes=(*fleet.causes, Cause(
        name="preemption", scope="node", rate_per_s=rate, replaced=1.0, source=PREEMPTIONS_SOURCE)))
    interval = best_interval(t, case.checkpoints, with_spot)
    return replace(case, fleet=with_spot, checkpoints=replace(case.checkpoints, interval_steps=interval))


def break_even_preemptions(spot: Point, usd: float, odds: str, cases: Cases) -> float | None:
    """Return up to how many preemptions a day of a node a spot offer costs no more than so many dollars; None: with none."""
    def is_cheaper(rate: float) -> bool:
        there = point(replace(spot.offer, preemptions_per_node_day=rate), spot.sized, cases)
        return runs(there) and Goal(odds=odds).at(there.usd) <= usd

    if not is_cheaper(RARE):
        return None
    return OFTEN if is_cheaper(OFTEN) else bracket(is_cheaper, RARE, OFTEN)[0]


def why_not(loser: Point, winner: Point, goal: Goal, wanted: str) -> str:
    """Return why an offer loses against the chosen one, with a number."""
    if loser.reason or loser.days is None or loser.gpu_hours is None:
        return loser.reason
    if not runs(loser):
        return "does not come to its end in most runs"
    if loser.usd is None and winner.usd is not None:
        return f"no price known: {significant(goal.at(loser.gpu_hours), 4)} GPU-hours"
    said = []
    for name in goal.excess(loser):
        if name == "deadline" and goal.deadline_days is not None:
            said.append(f"{significant(goal.at(loser.days) - goal.deadline_days)} days late")
        elif goal.budget_usd is not None:
            said.append(f"{show(goal.at(loser.usd) - goal.budget_usd, 'usd')} over the budget")
    if said:
        return ", ".join(said)
    if wanted == "fastest":
        return _more(goal.at(loser.days), goal.at(winner.days), "slower")
    if loser.usd is None:
        return _more(goal.at(loser.gpu_hours), goal.at(winner.gpu_hours), "more GPU-hours")
    return _more(goal.at(loser.usd), goal.at(winner.usd), "dearer")


def _more(value: float, least: float, word: str) -> str:
    if least == 0 or not math.isfinite(value / least):
        return word
    share = value / least - 1
    return f"{share:.0%} {word}" if share >= 0.1 else f"{share:.1%} {word}"
