"""What matters most: the inputs whose plausible range moves the days or the dollars of a run most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from planner.inputs import INPUTS, Plausible
from planner.scenario import Scenario
from planner.settings import Setting, as_range, text_of
from planner.whatif import Method, Point, evaluate, point_at
from profiles.files import BadInput

MOST_SHOWN = 10
MOVES = 1e-6
"""An input that moves the run by a smaller share does not move it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """An input at the low and the high end of its plausible range; `swing`: between the best and the worst of the metric."""

    name: str
    now: Any
    low: Any
    high: Any
    at_low: Point
    at_high: Point
    swing: float
    source: str

    @property
    def texts(self) -> tuple[str, str, str]:
        """Return what the plan has and both ends, as people write them."""
        now, low, high = (text_of(INPUTS[self.name], value) for value in (self.now, self.low, self.high))
        return now, low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class Tornado:
    """The plan as it is, and the inputs that move it, the most first; `by`: days or usd. `refused`: ends that cannot be."""

    base: Point
    by: str
    bars: tuple[Bar, ...]
    num_tried: int
    refused: tuple[str, ...]


def tornado(
    base: Scenario, method: Method, by: str, given: tuple[Setting, ...] = (), on_progress: Callable[[float], None] | None = None
) -> Tornado:
    """Return the inputs that move a plan most, each from the low to the high end of its range, the others as they are.

    Ranges that are `given` take the place of the plausible ones.
    """
    own = {s.name: _stated(s, base) for s in given}
    ranges = {name: own.get(name) or _plausible(base, name) for name in INPUTS}
    named = [name for name in INPUTS if ranges[name] is not None]
    now = evaluate(base, method)
    if now.prediction is None or not now.fits:
        raise BadInput(f"plan: {now.refused or 'does not fit'}, so nothing can be moved; `headway fit` says what would help")
    found, refused = [], []
    for i, name in enumerate(named):
        bar = _bar(base, method, by, now, name, ranges[name])
        if isinstance(bar, str):
            refused.append(bar)
        elif bar.swing > MOVES * now.metric(by):
            found.append(bar)
        if on_progress:
            on_progress((i + 1) / len(named))
    ranked = sorted(found, key=lambda bar: (-bar.swing, bar.name))
    return Tornado(base=now, by=by, bars=tuple(ranked[:MOST_SHOWN]), num_tried=len(named), refused=tuple(refused))


def _stated(setting: Setting, base: Scenario) -> Plausible:
    values = as_range(setting, base).values
    return Plausible(low=values[0], high=values[-1], source="--set", is_factor=False)


def _plausible(base: Scenario, name: str) -> Plausible | None:
    """Return an input's plausible range in SI, or None where none is known or costs are measured."""
    given = INPUTS[name]
    cluster = base.question.cluster
    if (given.by_law and cluster.table is not None) or (given.of_kind and cluster.parts):
        return None
    found, now = given.plausible(base), given.read(base)
    if found is None or not found.is_factor:
        return found
    return replace(found, low=now * found.low, high=now * found.high, is_factor=False) if now else None


def _bar(base: Scenario, method: Method, by: str, now: Point, name: str, ends: Plausible | None) -> Bar | str:
    """Return what an input moves, or why it cannot be moved so far."""
    assert ends is not None
    setting = Setting(name=name, values=(ends.low, ends.high))
    points = [point_at(base, (setting,), (value,), method) for value in setting.values]
    for value, point in zip(setting.values, points, strict=True):
        if not point.fits:
            return f"{name} {text_of(setting.input, value)}: {point.refused or 'does not fit'}"
    metrics = [p.metric(by) for p in (now, *points)]
    return Bar(name=name, now=setting.input.read(base), low=ends.low, high=ends.high, at_low=points[0],
               at_high=points[1], source=ends.source, swing=max(metrics) - min(metrics))
