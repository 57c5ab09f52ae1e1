"""Break-even points of a sweep over one input: where communication hides, where memory fits, where another strategy or plan
becomes the better one. Found by bisection between points where the answer differs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.scenario import Scenario
from planner.settings import Setting
from planner.whatif import METRICS, Method, Point, Sweep, point_at
from profiles.units import show
from simulator.strategy import Strategy

HIDDEN = 0.01
"""Communication hides where what of it a better input could still take away is less than this share of the step."""
SPAN = 8.0
"""How far beyond the values that are asked for (and beyond what the plan has) break-evens are looked for."""
NUM_SCANNED = 33
PRECISION = 1e-4
"""A break-even lies in a bracket no wider than this share of it."""
MOST_STRATEGIES = 8
"""New strategies that are looked for between two points of a sweep."""
EXPOSED = ("exposed_tp", "exposed_cp", "exposed_ep", "exposed_dp", "exposed_pp")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """A value of an input at which an answer changes: between `low`, where it is still `below`, and `high`, where `above`.

    `kind`: hides, fits, strategy or plans; `term` of the step where it is communication. `sentence` says it in words.
    """

    kind: str
    name: str
    low: Any
    high: Any
    below: str
    above: str
    sentence: str
    term: str = ""

    @property
    def value(self) -> Any:
        """Return the middle of the bracket; where only whole values or words make sense, the first beyond it."""
        return (self.low * self.high) ** 0.5 if isinstance(self.low, float) and self.low > 0 else self.high


def bracket(answer: Callable[[float], Hashable], low: float, high: float) -> tuple[float, float]:
    """Return the ends of a bracket around a change of the answer, which differs between `low` and `high`."""
    first = answer(low)
    while high - low > PRECISION * high:
        middle = (low * high) ** 0.5 if low > 0 else (low + high) / 2
        low, high = (middle, high) if answer(middle) == first else (low, middle)
    return low, high


def changes(answer: Callable[[float], Hashable], scanned: list[float]) -> list[tuple[float, float]]:
    """Return a bracket for every change of an answer between neighbours of some values."""
    return [bracket(answer, a, b) for a, b in itertools.pairwise(scanned) if answer(a) != answer(b)]


def scanned_values(setting: Setting, *bases: Scenario) -> list[float]:
    """Return the values between which break-evens are looked for: those that are asked for, what is there, and beyond."""
    now = [1.0] if setting.are_factors else [setting.input.read(base) for base in bases]
    known = [float(v) for v in (*setting.values, *now) if v is not None]
    least = 1.0 if setting.are_factors and setting.input.above else setting.input.above
    if min(known) <= 0:
        return [float(v) for v in np.linspace(min(known), 4 * max(known), NUM_SCANNED)]
    low, high = max(min(known) / SPAN, least), max(known) * SPAN
    return sorted({*np.geomspace(low, high, NUM_SCANNED).tolist(), *known})


def break_evens(swept: Sweep, method: Method) -> tuple[BreakEven, ...]:
    """Return what changes along the one input of a sweep."""
    (setting,), base = swept.settings, swept.base.scenario
    assert base is not None
    if method.replan:
        return _strategies(swept, base, setting, method)
    if not setting.input.is_continuous:
        return _fits(setting, dict(zip(setting.values, swept.points, strict=True)).__getitem__, list(setting.values))
    at = _cached(base, setting, replace(method, goodput=None))
    scanned = [v for v in scanned_values(setting, base) if at(v).prediction is not None]
    return (*_hides(setting, at, scanned), *_fits(setting, at, scanned))


def _cached(base: Scenario, setting: Setting, method: Method) -> Callable[[Any], Point]:
    known: dict[Any, Point] = {}

    def at(value: Any) -> Point:
        if value not in known:
            known[value] = point_at(base, (setting,), (value,), method)
        return known[value]

    return at


def exposed_s(point: Point, term: str) -> float:
    """Return the seconds of a term of a point's step."""
    assert point.prediction is not None
    return point.prediction.breakdown_s[term]


def step_s(point: Point) -> float:
    """Return a point's step."""
    assert point.prediction is not None
    return point.prediction.step_time_s


def hidden(point: Point, term: str, rest_s: float) -> bool:
    """Return whether all of a term hides but for what stays exposed at the best value of the input."""
    return exposed_s(point, term) - rest_s <= HIDDEN * step_s(point)


def _hides(setting: Setting, at: Callable[[Any], Point], scanned: list[float]) -> list[BreakEven]:
    found = []
    for term in EXPOSED if len(scanned) > 1 else ():
        ends = at(scanned[0]), at(scanned[-1])
        best = min(ends, key=lambda p: exposed_s(p, term))
        rest_s = exposed_s(best, term)
        for low, high in changes(lambda v, t=term, r=rest_s: hidden(at(v), t, r), scanned):  # type: ignore[misc]
            found.append(_hiding(setting, term, rest_s, at, low, high))
    return found


def _hiding(
    setting: Setting, term: str, rest_s: float, at: Callable[[Any], Point], low: float, high: float
) -> BreakEven:
    rises = hidden(at(high), term, rest_s)
    point = at(high if rises else low)
    assert point.scenario is not None
    share = rest_s / step_s(point)
    but = f" but for {show(rest_s, 's')} ({share:.1%} of the step), which stay exposed at any value"
    words = f"{'above' if rises else 'below'} {setting.text((low * high) ** 0.5 if low > 0 else high)} "
    words += f"the {named(term, point.scenario.strategy)} hide" + (but if share >= HIDDEN else "")
    states = ("exposed", "hidden") if rises else ("hidden", "exposed")
    return BreakEven(kind="hides", name=setting.name, low=low, high=high, below=states[0], above=states[1], term=term,
                     sentence=words)


def named(term: str, strategy: Strategy) -> str:
    """Return what communication of a term is, under a strategy."""
    both = f"gradient sums and weight gathers of ZeRO-{strategy.zero}"
    over_dp = {0: "gradient sums", 1: both, 2: both, 3: "ZeRO-3 gathers and gradient sums"}
    return {"exposed_tp": "tensor-parallel collectives", "exposed_cp": "exchanges of keys over cp",
            "exposed_ep": "exchanges of tokens between experts", "exposed_pp": "pipeline sends"}.get(
                term, over_dp[int(strategy.zero)])


def _fits(setting: Setting, at: Callable[[Any], Point], scanned: list[Any]) -> tuple[BreakEven, ...]:
    """Return where memory begins or ends to be enough."""
    known = [v for v in scanned if at(v).prediction is not None]

    def fits(value: Any) -> bool:
        return at(value).fits

    if setting.input.is_continuous:
        found = changes(fits, known)
    else:
        found = [(a, b) for a, b in itertools.pairwise(known) if fits(a) != fits(b)]
    return tuple(_fitting(setting, at, low, high) for low, high in found)


def _fitting(setting: Setting, at: Callable[[Any], Point], low: Any, high: Any) -> BreakEven:
    states = [point.prediction for point in (at(low), at(high))]
    assert states[0] is not None and states[1] is not None
    words = ["fits" if p is not None and p.fits else "does not fit" for p in states]
    if setting.input.is_continuous:
        side = "above" if states[1].fits else "below"
        sentence = f"it fits {side} {setting.text((low * high) ** 0.5)}, and not {'below' if side == 'above' else 'above'}"
    else:
        needs = [f"{show(p.peak_memory_bytes, 'bytes')} of {show(p.usable_memory_bytes, 'bytes')}" for p in states if p]
        sentence = (f"it {words[0]} at {setting.text(low)} ({needs[0]}), and {words[1]} at {setting.text(high)} ({needs[1]})")
    return BreakEven(kind="fits", name=setting.name, low=low, high=high, below=words[0], above=words[1], sentence=sentence)


def _strategies(swept: Sweep, base: Scenario, setting: Setting, method: Method) -> tuple[BreakEven, ...]:
    """Return where the best strategy becomes another, between the points of a sweep that searched.

    Two strategies' times cross where bisection finds it; a search there finds whether a third is better still, which then
    crosses each of them (the lower envelope of Eisner and Severance, JACM 23(4), 1976).
    """
    found: list[BreakEven] = []
    if setting.input.axis:
        # a value of the strategy itself is another strategy
        return ()
    points = [(v, p) for v, p in zip(setting.values, swept.points, strict=True) if p.prediction is not None]
    for (a, first), (b, second) in itertools.pairwise(points):
        if chosen(first) == chosen(second):
            continue
        if setting.input.is_continuous:
            found += _envelope(base, setting, method, (a, first), (b, second), MOST_STRATEGIES)
        else:
            found.append(_new_best(setting, a, b, first, second))
    return tuple(found)


def chosen(point: Point) -> str:
    """Return a point's strategy in words; the micro-batches follow from it."""
    assert point.prediction is not None
    return point.prediction.strategy.describe()


def _envelope(
    base: Scenario, setting: Setting, method: Method, first: tuple[Any, Point], second: tuple[Any, Point], left: int
) -> list[BreakEven]:
    (a, one), (b, other) = first, second
    ways = [replace(base, strategy=p.prediction.strategy) for p in (one, other) if p.prediction is not None]
    kept = replace(method, replan=False, goodput=None)

    def first_wins(value: float) -> bool:
        times = [point_at(way, (setting,), (value,), kept).metric("days") for way in ways]
        return times[0] <= times[1]

    if first_wins(a) == first_wins(b):
        return [_new_best(setting, a, b, one, other)]
    low, high = bracket(first_wins, a, b)
    middle = (low * high) ** 0.5 if low > 0 else high
    third = point_at(base, (setting,), (middle,), method)
    if left and third.prediction is not None and chosen(third) not in (chosen(one), chosen(other)):
        return [*_envelope(base, setting, method, first, (middle, third), left - 1),
                *_envelope(base, setting, method, (middle, third), second, left - 1)]
    return [_new_best(setting, low, high, one, other)]


def _new_best(setting: Setting, low: Any, high: Any, one: Point, other: Point) -> BreakEven:
    narrow = isinstance(low, float) and high - low <= 2 * PRECISION * high
    where = f"above {setting.text((low * high) ** 0.5)}" if narrow and low > 0 else \
        f"between {setting.text(low)} and {setting.text(high)}"
    return BreakEven(kind="strategy", name=setting.name, low=low, high=high, below=chosen(one), above=chosen(other),
                     sentence=f"{where} the best strategy is {chosen(other)}; below, {chosen(one)}")


def crossings(
    bases: tuple[Scenario, Scenario], names: tuple[str, str], setting: Setting, methods: tuple[Method, Method], by: str
) -> tuple[BreakEven, ...]:
    """Return where one of two plans becomes the better: fewer days or dollars."""
    curves = [_cached(base, setting, method) for base, method in zip(bases, methods, strict=True)]

    def better(value: Any) -> str:
        first, second = (curve(value).metric(by) for curve in curves)
        return names[0] if first < second else names[1] if second < first else ""

    if setting.input.is_continuous:
        found = changes(better, scanned_values(setting, *bases))
    else:
        found = [(a, b) for a, b in itertools.pairwise(setting.values) if better(a) != better(b)]
    return tuple(_crossing(setting, better, low, high, by) for low, high in found)


def _crossing(setting: Setting, better: Callable[[Any], str], low: Any, high: Any, by: str) -> BreakEven:
    below, above = (better(v) or "neither" for v in (low, high))
    where = f"above {setting.text((low * high) ** 0.5)}" if setting.input.is_continuous and low > 0 else \
        f"between {setting.text(low)} and {setting.text(high)}"
    return BreakEven(kind="plans", name=setting.name, low=low, high=high, below=below, above=above,
                     sentence=f"{where} {above} has the fewer {METRICS[by]}; below, {below}")
