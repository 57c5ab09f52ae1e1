"""Published facts of whole runs beside what is predicted for them: interruptions, times to failure, goodput, checkpoints.

`use` of a fact: fitted (its own number is in the fleet that predicts it), held out (it is in none), spread (one fleet's rate
beside the others'), not modelled (shown, not held to). A prediction is held to lie from `low` to `high`.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from rich.table import Table

from profiles import files
from profiles.families import load_model
from profiles.reliability import Fleet, load_fleet
from profiles.storage import default_storage
from profiles.units import parse, significant
from simulator.run.interval_curve import best_interval
from simulator.run.monte_carlo import Case, simulate_runs
from simulator.run.outcome import Outcomes
from simulator.run.spares import best_spares
from simulator.run.states import checkpoint_bytes
from simulator.run.strikes import Luck, strikes
from simulator.run.training import Checkpoints, Reserve, Training, checkpoint_costs
from simulator.strategy import Strategy

RUNS = 200
GPUS_PER_NODE = 8
HOST_COPY_BYTES_PER_S = 50e9
"""Of an accelerator, where checkpoints are copied to the host first (profiles/catalog/storage.yaml)."""
MEGATRON = Strategy(zero=1)
"""Checkpoints of these facts are those of Megatron's kind of optimizer: 14 bytes a parameter."""
NUM_GAPS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A published figure and the settings it holds for, cells as in the catalogue's CSV."""

    id: str
    what: str
    quantity: str
    key: str
    fleet: str
    nodes: str
    days: str
    model: str
    checkpoint: str
    storage: str
    stall: str
    load: str
    interval: str
    step: str
    published: str
    unit: str
    low: str
    high: str
    use: str
    source: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A fact beside its prediction; `low` and `high` bound the prediction, or are the P10 and P90 of the other fleets."""

    id: str
    what: str
    published: float
    predicted: float
    low: float | None
    high: float | None
    unit: str
    use: str
    met: bool | None
    source: str
    note: str


def read_facts() -> list[Fact]:
    """Return the catalogue's facts."""
    text = files.read_text(files.catalog_path("published_reliability.csv"))
    return [Fact(**{f.name: row[f.name] for f in fields(Fact)}) for row in csv.DictReader(io.StringIO(text))]


def compare_facts(on_progress: Callable[[float], None] | None = None) -> list[Compared]:
    """Return every fact with its prediction."""
    tell, facts, found = on_progress or (lambda share: None), read_facts(), []
    for i, fact in enumerate(facts):
        found.append(compare_fact(fact, facts))
        tell((i + 1) / len(facts))
    return found


def compare_fact(fact: Fact, facts: list[Fact]) -> Compared:
    """Return a fact with its prediction, and whether that lies where it must."""
    low, high = (float(x) if x else None for x in (fact.low, fact.high))
    if fact.quantity in ("rate", "rate_coverage"):
        rates = {f.key: float(f.published) for f in facts if f.quantity == "rate"}
        if fact.quantity == "rate":
            low, predicted, high = interval_of_others(rates, fact.key)
        else:
            inside = [_inside(rate, *interval_of_others(rates, name)[::2]) for name, rate in rates.items()]
            predicted = float(np.mean(inside))
    else:
        predicted = PREDICTED[fact.quantity](fact)
    # of a fleet's rate it is the published figure that lies inside or not, and only all nine together are held to anything
    held = fact.use in ("fitted", "held out")
    return Compared(id=fact.id, what=fact.what, published=float(fact.published), predicted=predicted, low=low, high=high,
                    unit=fact.unit, use=fact.use, met=_inside(predicted, low, high) if held else None, source=fact.source,
                    note=fact.note)


def _inside(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def interval_of_others(rates: dict[str, float], name: str) -> tuple[float, float, float]:
    """Return P10, P50 and P90 of the lognormal distribution through all rates but one."""
    logs = np.log([rate for key, rate in rates.items() if key != name])
    middle, spread = float(logs.mean()), float(logs.std(ddof=1))
    return math.exp(middle - 1.2816 * spread), math.exp(middle), math.exp(middle + 1.2816 * spread)


def _mttf(fact: Fact) -> float:
    """Return hours between failures of a job, all causes or one, as they are drawn."""
    fleet = load_fleet(fact.fleet)
    if fact.key:
        fleet = replace(fleet, causes=tuple(c for c in fleet.causes if c.name == fact.key))
    return _gap_s(fleet, int(fact.nodes)) / 3600.0


def _gap_s(fleet: Fleet, num_nodes: int) -> float:
    luck = Luck(step=1.0, rates=(1.0,) * len(fleet.causes))
    *_, last = islice(strikes(fleet, luck, num_nodes * GPUS_PER_NODE, num_nodes, 0, 0), NUM_GAPS)
    return last.time_s / NUM_GAPS


def _daily_failure(fact: Fact) -> float:
    return -math.expm1(-24.0 / _mttf(fact))


def _downtime(fact: Fact) -> float:
    fleet = load_fleet(fact.fleet)
    return (fleet.detection_s + fleet.restart_s + fleet.replacement_s) / 60.0


def _checkpoint(fact: Fact) -> float:
    return checkpoint_bytes(load_model(fact.model), MEGATRON) / {"GB": 1e9, "GiB": 2.0**30}[fact.unit]


def _interruptions(fact: Fact) -> float:
    """Return interruptions in the published days: all, the unplanned ones or those of one cause."""
    runs, fleet = _runs(replace(fact, **_EMPTY)), load_fleet(fact.fleet)
    names = [c.name for c in fleet.causes]
    if not fact.key:
        counts = runs.strikes.sum(axis=1) + runs.stops.sum(axis=1)
    elif fact.key == "unplanned":
        counts = runs.strikes.sum(axis=1)
    else:
        counts = runs.strikes[:, names.index(fact.key)]
    return float(counts.sum() / runs.elapsed_s.sum() * float(fact.days) * 86400.0)


def _goodput(fact: Fact) -> float:
    return float(np.median(_runs(replace(fact, **_EMPTY)).goodputs))


def _checkpoint_share(fact: Fact) -> float:
    return _runs(replace(fact, **_EMPTY)).shares["checkpoint"]


_EMPTY: dict[str, Any] = dict.fromkeys(
    ("id", "what", "quantity", "key", "published", "unit", "low", "high", "use", "source", "note"), ""
)
"""What does not change the runs: facts that differ in these only share them."""
PREDICTED: dict[str, Callable[[Fact], float]] = {
    "mttf": _mttf, "daily_failure": _daily_failure, "downtime": _downtime, "checkpoint_bytes": _checkpoint,
    "interruptions": _interruptions, "goodput": _goodput, "checkpoint_share": _checkpoint_share,
}
"""Quantity -> how it is predicted."""


@cache
def _runs(fact: Fact) -> Outcomes:
    """Return runs by a fact's settings, whose steps alone take the published days."""
    fleet, step, nodes = load_fleet(fact.fleet), parse(fact.step, "s", "step"), int(fact.nodes)
    training = Training(num_steps=round(float(fact.days) * 86400.0 / step), step_time_s=step, num_nodes=nodes,
                        gpus_per_node=GPUS_PER_NODE)
    if fact.model:
        storage = parse(fact.storage, "bytes_per_s", "storage") if fact.storage else (
            default_storage().bytes_per_s * training.num_gpus
        )
        size, copy = checkpoint_bytes(load_model(fact.model), MEGATRON), HOST_COPY_BYTES_PER_S * training.num_gpus
        checkpoints = checkpoint_costs(fact.checkpoint, size, storage, copy, 1)
    else:
        stall_s, load_s = parse(fact.stall, "s", "stall"), parse(fact.load, "s", "load")
        checkpoints = Checkpoints(interval_steps=1, stall_s=stall_s, load_s=load_s)
    steps = best_interval(training, checkpoints, fleet) if fact.interval == "auto" else round(
        parse(fact.interval, "s", "interval") / step
    )
    case = Case(training=training, checkpoints=replace(checkpoints, interval_steps=steps), fleet=fleet,
                reserve=Reserve(num_spares=best_spares(training, fleet)))
    return simulate_runs(case, RUNS)


def facts_json(compared: list[Compared]) -> dict[str, Any]:
    """Return what `headway validate --reliability --json` prints."""
    return {"facts": [asdict(c) for c in compared]}


def facts_table(compared: list[Compared]) -> Table:
    """Return the table that `headway validate --reliability` shows."""
    held = [c for c in compared if c.met is not None]
    out = [c for c in held if c.use == "held out"]
    title = (f"Published beside predicted: {sum(bool(c.met) for c in held)} of {len(held)} inside their bounds, "
             f"{sum(bool(c.met) for c in out)} of {len(out)} that no fleet was fitted on")
    table = Table(title=title, title_justify="left")
    for name in ("", "fact", "published", "predicted", "bounds", "unit", "use", ""):
        table.add_column(name, justify="right" if name in ("published", "predicted", "bounds") else "left")
    for c in compared:
        bounds = f"{significant(c.low or 0.0)} to {significant(c.high)}" if c.high is not None else "-"
        verdict = {True: "inside", False: "OUTSIDE", None: ""}[c.met]
        table.add_row(c.id, c.what, significant(c.published), significant(c.predicted), bounds, c.unit, c.use, verdict)
    return table
