"""What `headway whatif` does: plans and what is typed become sweeps, break-evens and a tornado; as JSON, rows and files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from planner.break_even import BreakEven, break_evens, crossings
from planner.plan import Plan
from planner.predict import Prediction, predict
from planner.scenario import RunInputs, Scenario, scenario_of
from planner.settings import Setting, changed, settings_of
from planner.tornado import Tornado, tornado
from planner.whatif import METRICS, Goodput, Method, Point, Sweep, replayed, sweep
from profiles.files import BadInput
from profiles.reliability import load_fleet
from reports.run_command import RunOptions, run_case
from simulator.run.interval_curve import best_interval, expected_goodput


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIfOptions:
    """What is asked, as people type it."""

    sets: tuple[str, ...] = ()
    replan: bool = False
    tornado: bool = False
    by: str = "days"
    replay: bool = False
    fleet: str = "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The answer: a sweep of each plan, where answers change along one input, and what matters most."""

    plans: tuple[Plan, ...]
    names: tuple[str, ...]
    options: WhatIfOptions
    sweeps: tuple[Sweep, ...]
    break_evens: tuple[BreakEven, ...]
    tornado: Tornado | None
    assumptions: tuple[str, ...]

    @property
    def title(self) -> str:
        """Return what is asked about."""
        return "; ".join(f"{p.question.model.name} on {p.question.cluster_text}, {p.strategy.describe()}" for p in self.plans)

    @property
    def can_be(self) -> bool:
        """Return whether anything that was asked for can be, and fits."""
        return not self.sweeps or any(point.fits for s in self.sweeps for point in s.points)


def what_if(
    plans: tuple[Plan, ...], names: tuple[str, ...], options: WhatIfOptions, advance: Callable[[float], None] | None = None
) -> WhatIf:
    """Return what becomes of one plan, or of two, where inputs are others."""
    settings = _checked(plans, options)
    method = Method(predict=replayed if options.replan or options.replay else predict, replan=options.replan)
    pairs = [_with_run(plan, options.fleet, method) for plan in plans]
    found: dict[str, Any] = {"sweeps": (), "break_evens": (), "tornado": None}
    if options.tornado or not settings:
        base, own = pairs[0]
        fixed = tuple(s for s in settings if len(s.values) == 1)
        moved = changed(base, fixed, tuple(s.values[0] for s in fixed))
        ranges = tuple(s for s in settings if len(s.values) > 1)
        found["tornado"] = tornado(moved, own, options.by, ranges, advance)
    else:
        found["sweeps"] = tuple(sweep(base, settings, own, advance) for base, own in pairs)
        if len(settings) == 1 and len(pairs) == 1:
            found["break_evens"] = break_evens(found["sweeps"][0], pairs[0][1])
        elif len(settings) == 1:
            (first, own), (second, other) = pairs
            found["break_evens"] = crossings((first, second), (names[0], names[1]), settings[0], (own, other), options.by)
    return WhatIf(plans=plans, names=names, options=options, assumptions=_assumed(plans, options, method), **found)


def _checked(plans: tuple[Plan, ...], options: WhatIfOptions) -> tuple[Setting, ...]:
    settings = settings_of(list(options.sets))
    if options.by not in METRICS:
        raise BadInput(f"by: {options.by!r} is not known; known are {', '.join(METRICS)}")
    if options.by == "usd" and any(p.question.price is None for p in plans):
        raise BadInput("by: no price is known of these accelerators; make the plan with --price, like '2.20 USD/h'")
    if len(plans) > 2:
        raise BadInput(f"plans: at most two are compared (are {len(plans)})")
    if len(plans) == 2 and (len(settings) != 1 or options.tornado or options.replan):
        raise BadInput("plans: two are compared along one --set, like --set network=100..800Gb/s, and nothing else")
    if options.tornado and options.replan:
        raise BadInput("--replan: does not go with --tornado, which keeps the strategy")
    if options.replan and not settings:
        raise BadInput("--replan: needs a --set, like --set network=100..800Gb/s:4")
    return settings


def _assumed(plans: tuple[Plan, ...], options: WhatIfOptions, method: Method) -> tuple[str, ...]:
    way = "replayed" if method.predict is replayed else "in closed form (--replay: event by event)"
    kept = "the best of the brief space and the plan's own, at every point" if options.replan else "kept (--replan: searched)"
    return (
        f"steps are predicted {way}; the strategy is {kept}; dp and micro-batches follow from accelerators and batch",
        f"failures of fleet '{options.fleet}' and checkpoints in closed form (Daly 2006), without spares and planned stops; "
        "`headway simulate --run` simulates them",
    )


def _with_run(plan: Plan, fleet: str, method: Method) -> tuple[Scenario, Method]:
    """Return a plan's own scenario, and the method with the goodput of its runs."""
    run = RunInputs(fleet=load_fleet(fleet))
    base = scenario_of(plan.question, plan.strategy, run)
    prediction = predict(plan.question, plan.strategy)
    case, _, _ = run_case(plan, _step(prediction), RunOptions(fleet=fleet))
    best_s = case.checkpoints.interval_steps * prediction.step_time_s
    return replace(base, run=replace(run, best_interval_s=best_s)), replace(method, goodput=_goodput(plan, fleet))


def _step(prediction: Prediction) -> dict[str, float]:
    return {name: getattr(prediction, name) for name in ("step_time_s", "p10_s", "p90_s")}


def _goodput(plan: Plan, fleet: str) -> Goodput:
    """Return the expected goodput of a scenario's run, whose case is that of `simulate --run`."""
    def goodput(scenario: Scenario, prediction: Prediction) -> float:
        run = scenario.run
        assert run is not None
        storage = None if run.storage_bytes_per_s is None else f"{run.storage_bytes_per_s!r}B/s"
        asked = replace(plan, question=scenario.question, strategy=scenario.strategy)
        case, _, _ = run_case(asked, _step(prediction), RunOptions(fleet=fleet, checkpoint=run.checkpoint, storage=storage))
        training, failing = case.training, run.failing
        if run.interval_s is None:
            steps = best_interval(training, case.checkpoints, failing)
        else:
            steps = min(training.num_steps, max(1, round(run.interval_s / training.step_time_s)))
        return expected_goodput(training, case.checkpoints, failing, steps)

    return goodput


def whatif_json(found: WhatIf) -> dict[str, Any]:
    """Return what `whatif --json` prints, in SI."""
    return {
        "plans": list(found.names),
        "inputs": [{"name": s.name, "title": s.input.title, "dimension": s.input.dimension, "are_factors": s.are_factors,
                    "values": list(s.values)} for s in (found.sweeps[0].settings if found.sweeps else ())],
        "sweeps": [{"plan": name, "base": point_json(s.base, s.base), "rows": [point_json(p, s.base) for p in s.points]}
                   for name, s in zip(found.names, found.sweeps, strict=False)],
        "break_even": [{"kind": b.kind, "input": b.name, "term": b.term or None, "value": b.value, "low": b.low, "high": b.high,
                        "below": b.below, "above": b.above, "sentence": b.sentence} for b in found.break_evens],
        "tornado": None if found.tornado is None else tornado_json(found.tornado), "assumptions": list(found.assumptions),
    }


def point_json(point: Point, base: Point) -> dict[str, Any]:
    """Return a point in SI, with the keys of `estimate`; null where it cannot be."""
    p, b = point.prediction, base.prediction
    data: dict[str, Any] = {"values": point.values, "refused": point.refused or None}
    if p is None:
        return data
    usual = {name: getattr(p, name) for name in ("step_time_s", "tokens_per_s_per_gpu", "mfu", "hfu", "peak_memory_bytes",
                                                 "usable_memory_bytes", "fits", "days", "usd", "breakdown_s")}
    return data | usual | {
        "step_time_change": p.step_time_s / b.step_time_s - 1 if b else None, "goodput": point.goodput,
        "days_with_failures": _finite(point.days_with_failures), "usd_with_failures": _finite(point.usd_with_failures),
        "strategy": p.strategy.describe(),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def tornado_json(found: Tornado) -> dict[str, Any]:
    """Return a tornado in SI."""
    return {
        "by": found.by, "base": point_json(found.base, found.base), "inputs_tried": found.num_tried,
        "refused": list(found.refused),
        "bars": [{
            "input": bar.name, "now": bar.now, "low": bar.low, "high": bar.high, "at_low": bar.at_low.metric(found.by),
            "at_high": bar.at_high.metric(found.by), "swing": bar.swing, "source": bar.source,
        } for bar in found.bars],
    }
