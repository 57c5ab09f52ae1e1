"""The bill of a run: days, accelerator-hours, dollars on every known term, energy, carbon and storage, with what was assumed.

Percentiles of the days come from the simulated runs where there are any; from the closed form of failures and checkpoints
(Daly 2006) where only the case is known; and from the predicted step alone where neither is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from planner.economics import (
    SECONDS_PER_DAY,
    Band,
    accelerator_kwh,
    carbon_t,
    facility_kwh,
    gpu_hours,
    run_usd,
    storage_usd,
)
from planner.question import Question
from profiles.files import BadInput
from profiles.hardware import Price
from profiles.power import Factor, carbon_kg_per_kwh, load_factor, node_maximum_w, pue
from profiles.prices import offers
from profiles.storage_prices import StoragePrice, storage_price
from profiles.units import show
from simulator.run.interval_curve import expected_goodput
from simulator.run.monte_carlo import Case
from simulator.run.outcome import Outcomes, percentiles
from simulator.run.states import checkpoint_bytes
from simulator.run.strikes import LUCK
from simulator.strategy import Strategy

KEPT_CHECKPOINTS = 10
"""Checkpoints that are kept at a time where nobody says how many: an assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermCost:
    """What the run's accelerator-hours cost on one offer."""

    price: Price
    usd: Band


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What the run draws and emits: of the whole building, and of the accelerators at their data sheet's power."""

    node_w: float
    facility_kwh: Band
    accelerator_kwh: Band | None
    carbon_t: Band
    load: Factor
    pue: Factor
    grid: Factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """What is kept while the run lasts, and what that costs."""

    data_bytes: float
    checkpoint_bytes: float
    kept: int
    price: StoragePrice
    usd: Band


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A run's bill; `usd` is that of the question's price, None where none is known."""

    days: Band
    num_gpus: int
    gpu_hours: Band
    goodput: Band | None
    usd: Band | None
    terms: tuple[TermCost, ...]
    energy: Energy | None
    storage: Storage
    assumptions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the bill with plain values, for JSON; percentiles of runs that do not end are null."""
        data: dict[str, Any] = _finite(asdict(self))
        return data


def bill(
    question: Question, strategy: Strategy, prediction: Mapping[str, Any], *, case: Case | None = None,
    outcomes: Outcomes | None = None, region: str | float | None = None, pue_given: str | float | None = None,
    storage: str | None = None, kept: int = KEPT_CHECKPOINTS,
) -> Bill:
    """Return the bill of a predicted run (a mapping in the keys of `Prediction`), its failures from a case or its outcomes."""
    if kept < 0:
        raise BadInput(f"kept: must not be negative (is {kept})")
    days, goodput, said = _days(prediction, case, outcomes)
    num_gpus = question.cluster.num_gpus
    if case is not None:
        num_gpus = (case.training.num_nodes + case.reserve.num_spares) * case.training.gpus_per_node
    hours = days.map(lambda d: gpu_hours(d, num_gpus))
    energy = _energy(question, days, hours, num_gpus, region, pue_given)
    kept_there = _storage(question, strategy, days, kept, storage)
    said += _price_words(question) + _energy_words(question, energy) + [
        f"{kept} checkpoints of {show(kept_there.checkpoint_bytes, 'bytes')} and the tokens are kept for the whole run, at "
        f"{kept_there.price.usd_per_gb_month:g} USD for each GB and month: {kept_there.price.title}, {kept_there.price.date} "
        f"({kept_there.price.source})",
    ]
    return Bill(
        days=days, num_gpus=num_gpus, gpu_hours=hours, goodput=goodput, usd=_usd(hours, question.price),
        terms=tuple(TermCost(price=p, usd=hours.times(p.usd_per_gpu_hour)) for p in known_prices(question)),
        energy=energy, storage=kept_there, assumptions=tuple(said),
    )


def known_prices(question: Question) -> tuple[Price, ...]:
    """Return the question's price, and the catalogue's other offers of its accelerator, by term and from the lowest."""
    own = () if question.price is None else (question.price,)
    others = [p for p in offers(question.cluster.accelerator) if p not in own]
    return (*own, *sorted(others, key=lambda p: (p.term, p.usd_per_gpu_hour)))


def _days(
    prediction: Mapping[str, Any], case: Case | None, outcomes: Outcomes | None
) -> tuple[Band, Band | None, list[str]]:
    if outcomes is not None:
        said = [f"days are those of {len(outcomes.elapsed_s):,} simulated runs"]
        return _simulated_days(outcomes), Band(**percentiles(outcomes.goodputs)), said
    if case is not None:
        goodputs = np.array([goodput_at(case, float(z)) for z in LUCK])
        work_s = case.training.num_steps * case.training.step_time_s
        steps = np.exp(case.training.step_spread * LUCK)
        days = Band(**percentiles(np.multiply.outer(steps, work_s / goodputs).ravel() / SECONDS_PER_DAY))
        return days, Band(**percentiles(goodputs)), [
            f"failures of fleet '{case.fleet.name}' and checkpoints in closed form (Daly 2006), without spares and planned "
            "stops; `headway simulate --run` simulates them"
        ]
    days = Band(p10=prediction["days_p10"], p50=prediction["days"], p90=prediction["days_p90"])
    return days, None, ["no failures, restarts or checkpoint stalls: days are those of an undisturbed run"]


def _simulated_days(outcomes: Outcomes) -> Band:
    """Return percentiles of the days; infinite where so many runs do not come to their end."""
    if outcomes.finished.all():
        return Band(**percentiles(outcomes.elapsed_s / SECONDS_PER_DAY))
    open_ended = np.where(outcomes.finished, outcomes.elapsed_s, np.inf) / SECONDS_PER_DAY
    low, middle, high = np.percentile(open_ended, (10, 50, 90), method="higher").tolist()
    return Band(p10=low, p50=middle, p90=high)


def goodput_at(case: Case, luck: float) -> float:
    """Return the expected goodput of a case whose fleet fails exp(spread x luck) times as often as its median."""
    t, c, factor = case.training, case.checkpoints, math.exp(case.fleet.spread * luck)
    return expected_goodput(t, c, replace(case.fleet.failing(factor), spread=0.0), c.interval_steps)


def _usd(hours: Band, price: Price | None) -> Band | None:
    return None if price is None else hours.map(lambda h: run_usd(h, price))


def _energy(
    question: Question, days: Band, hours: Band, num_gpus: int, region: str | float | None, pue_given: str | float | None
) -> Energy | None:
    cluster, load, building, grid = question.cluster, load_factor(), pue(pue_given), carbon_kg_per_kwh(region)
    most = node_maximum_w(cluster)
    if most is None:
        return None
    node_w, num_nodes, tdp_w = most.value * load.value, num_gpus / cluster.gpus_per_node, cluster.accelerator.power_w
    whole = days.map(lambda d: facility_kwh(d, num_nodes, node_w, building.value))
    whole = whole.times(1.0, math.hypot(load.spread, building.spread))
    return Energy(
        node_w=node_w, facility_kwh=whole, load=load, pue=building, grid=grid,
        accelerator_kwh=None if tdp_w is None else hours.map(lambda h: accelerator_kwh(h, tdp_w)),
        carbon_t=whole.map(lambda e: carbon_t(e, grid.value)),
    )


def _storage(question: Question, strategy: Strategy, days: Band, kept: int, name: str | None) -> Storage:
    price, size = storage_price(name), checkpoint_bytes(question.model, strategy)
    data = question.tokens * (2 if question.model.vocab <= 2**16 else 4)
    return Storage(data_bytes=data, checkpoint_bytes=size, kept=kept, price=price,
                   usd=days.map(lambda d: storage_usd(data + kept * size, d, price.usd_per_gb_month)))


def _price_words(question: Question) -> list[str]:
    terms = {p.term for p in known_prices(question)}
    if not terms:
        return [f"no price known of {question.cluster.accelerator.title} (--price)"]
    spot = ["spot prices leave out the time that is lost to being evicted"] if "spot" in terms else []
    return ["prices are list prices of their date, for the hours that nodes are held, spares with them", *spot]


def _energy_words(question: Question, energy: Energy | None) -> list[str]:
    if energy is None:
        return [f"no power known of {question.cluster.title}"]
    most = node_maximum_w(question.cluster)
    assert most is not None
    return [
        f"a node draws {show(energy.node_w, 'w')}, {energy.load.value:g} of its maximum of {show(most.value, 'w')} "
        f"({most.source}), also while it waits: {energy.load.source}",
        f"PUE {energy.pue.value:g} ({energy.pue.source})",
        f"grid '{energy.grid.name}' at {energy.grid.value * 1000:.3g} g CO2e a kWh, location-based ({energy.grid.source}); "
        "making the hardware is not counted",
    ]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
