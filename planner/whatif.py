"""What if: a plan's prediction where some of its inputs are others, one by one or all combinations of them.

By default the strategy is kept; with a search it is chosen again at every point, in the brief space.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from planner.economics import gpu_hours, run_usd
from planner.inputs import INPUTS, put
from planner.predict import Prediction, predict, predict_replayed
from planner.question import Question
from planner.scenario import Scenario, refusal, slowdown
from planner.search import search
from planner.settings import Setting, changed
from planner.space import Axes, brief_space
from profiles.cost import CostModel
from profiles.files import BadInput
from simulator.strategy import Strategy

Predict = Callable[[Question, Strategy, CostModel], Prediction]
Goodput = Callable[[Scenario, Prediction], float]
Advance = Callable[[float], None]
METRICS = {"days": "days with failures", "usd": "cost with failures"}
"""What inputs are ranked, and plans are compared, by."""


def replayed(question: Question, strategy: Strategy, cost: CostModel) -> Prediction:
    """Return the prediction of a strategy from its replay."""
    return predict_replayed(question, strategy, cost)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a scenario is predicted: in closed form or replayed, its goodput, and whether the strategy is searched again."""

    predict: Predict = predict
    goodput: Goodput | None = None
    replan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A scenario's prediction, or why there is none. `values` of the inputs that were set, by name, as they were set."""

    values: dict[str, Any]
    scenario: Scenario | None = None
    prediction: Prediction | None = None
    goodput: float | None = None
    refused: str = ""

    @property
    def days_with_failures(self) -> float | None:
        """Return the days of the run, its failures and checkpoints with it where they are known."""
        return None if self.prediction is None else self.prediction.days / (1.0 if self.goodput is None else self.goodput)

    @property
    def usd_with_failures(self) -> float | None:
        """Return what these days cost."""
        if self.scenario is None or self.days_with_failures is None:
            return None
        question = self.scenario.question
        usd = run_usd(gpu_hours(self.days_with_failures, question.cluster.num_gpus), question.price)
        return None if usd is None else float(usd)

    @property
    def fits(self) -> bool:
        """Return whether the scenario can be, and fits."""
        return self.prediction is not None and self.prediction.fits

    def metric(self, by: str) -> float:
        """Return days or dollars with failures; infinite where the scenario cannot be, or does not fit."""
        value = self.days_with_failures if by == "days" else self.usd_with_failures
        return value if value is not None and self.fits else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All combinations of the values of some inputs, and the plan as it is."""

    base: Point
    settings: tuple[Setting, ...]
    points: tuple[Point, ...]


def evaluate(scenario: Scenario, method: Method, values: dict[str, Any] | None = None) -> Point:
    """Return the prediction of a scenario, by the strategy that it has or, where the method says so, by the best."""
    if method.replan:
        return _replanned(scenario, method, values or {})
    reason = refusal(scenario)
    if reason:
        return Point(values=values or {}, scenario=scenario, refused=reason)
    found = method.predict(scenario.question, scenario.strategy, scenario.cost)
    if not math.isfinite(found.step_time_s):
        return Point(values=values or {}, scenario=scenario, refused="no cost of it was measured")
    prediction = _slower(found, slowdown(scenario))
    goodput = method.goodput(scenario, prediction) if method.goodput else None
    return Point(values=values or {}, scenario=scenario, prediction=prediction, goodput=goodput)


def _replanned(scenario: Scenario, method: Method, values: dict[str, Any]) -> Point:
    """Return the best of the brief space and of the strategy that there is, in the axes that were set."""
    kept = evaluate(scenario, replace(method, replan=False), values)
    found = search(scenario.question, axes=_axes(scenario, values)).best
    if found is None:
        return kept if kept.fits else replace(
            kept, prediction=None, refused=kept.refused or "no strategy of the brief space fits")
    if kept.prediction and kept.fits and kept.prediction.step_time_s <= found.step_time_s:
        return kept
    return evaluate(replace(scenario, strategy=found.strategy), replace(method, replan=False), values)


def _axes(scenario: Scenario, values: dict[str, Any]) -> Axes:
    """Return the brief space with those axes fixed that were set."""
    axes = brief_space(scenario.question)
    for name in values:
        axis, value = INPUTS[name].axis, INPUTS[name].read(scenario)
        if axis:
            axes[axis] = ({"zero": (value, 0), "recompute": (value, 1.0), "offload": (value, 1.0)}.get(axis, value),)
    return axes


def _slower(prediction: Prediction, factor: float) -> Prediction:
    """Return a prediction whose step takes so many times longer; what is added is no work of any kind."""
    if factor == 1.0:
        return prediction
    p = prediction
    longer = {name: getattr(p, name) * factor for name in ("step_time_s", "p10_s", "p90_s", "days", "days_p10", "days_p90",
                                                           "gpu_hours")}
    rates = {name: getattr(p, name) / factor for name in ("tokens_per_s", "tokens_per_s_per_gpu", "mfu", "hfu")}
    usd = None if p.usd is None else p.usd * factor
    other = p.breakdown_s["other"] + p.step_time_s * (factor - 1.0)
    return replace(p, **longer, **rates, usd=usd, breakdown_s=p.breakdown_s | {"other": other})


def point_at(base: Scenario, settings: tuple[Setting, ...], values: tuple[Any, ...], method: Method) -> Point:
    """Return one combination of values; one that cannot be says why."""
    named = {setting.name: value for setting, value in zip(settings, values, strict=True)}
    try:
        return evaluate(changed(base, settings, values), method, named)
    except BadInput as e:
        return Point(values=named, refused=str(e))


def sweep(base: Scenario, settings: tuple[Setting, ...], method: Method, on_progress: Advance | None = None) -> Sweep:
    """Return every combination of the settings' values, the last setting's changing first."""
    _check(base, settings, method)
    combinations = list(itertools.product(*(setting.values for setting in settings)))
    points = []
    for i, values in enumerate(combinations):
        points.append(point_at(base, settings, values, method))
        if on_progress:
            on_progress((i + 1) / len(combinations))
    return Sweep(base=evaluate(base, replace(method, replan=False)), settings=settings, points=tuple(points))


def _check(base: Scenario, settings: tuple[Setting, ...], method: Method) -> None:
    """Refuse what is no input of this plan, whatever its value."""
    for setting in settings:
        values = [setting.value_for(base, value) for value in setting.values]
        if setting.input.by_law or setting.input.dimension == "word":
            for value in values:
                put(base, setting.name, value)
        if method.replan and not setting.input.searched:
            raise BadInput(f"--replan: a search does not know {setting.name} ({setting.input.title}); leave one of them out")
