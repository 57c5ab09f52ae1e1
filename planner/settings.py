"""What people type after `--set`: an input and its values, as they stand, as factors, or as a range."""

from __future__ import annotations

import difflib
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.inputs import INPUTS, Input, put
from planner.scenario import Scenario
from profiles.files import BadInput
from profiles.units import UNITS, parse, show, significant

RANGE_POINTS = 8
"""Values of a range that does not say how many."""
MOST_POINTS = 2000
FLAGS = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An input and the values that it takes, in SI; where they are factors, on what the plan has."""

    name: str
    values: tuple[Any, ...]
    are_factors: bool = False

    @property
    def input(self) -> Input:
        """Return what is set."""
        return INPUTS[self.name]

    def value_for(self, scenario: Scenario, value: Any) -> Any:
        """Return a value of the setting as a scenario has it."""
        if not self.are_factors:
            return value
        now = self.input.read(scenario)
        if now is None or not now:
            raise BadInput(f"{self.name}: is {_nothing(now)} here, so a factor on it says nothing; give values as they stand")
        if self.input.dimension != "whole":
            return now * value
        if not math.isclose(now * value, round(now * value)):
            raise BadInput(f"{self.name}: x{value:g} of {now} is no whole number")
        return round(now * value)

    def text(self, value: Any) -> str:
        """Return a value as people write it."""
        return f"x{significant(value, 4)}" if self.are_factors else text_of(self.input, value)


def _nothing(now: Any) -> str:
    return "not known" if now is None else f"{now!r}"


def text_of(given: Input, value: Any) -> str:
    """Return a value of an input in SI as people write it."""
    if value is None:
        return "-"
    if given.dimension == "flag":
        return "on" if value else "off"
    if given.dimension in ("word", "whole"):
        return str(value)
    if given.dimension == "ratio":
        return significant(value, 4)
    if given.unit:
        return f"{significant(value / UNITS[given.dimension][given.unit], 4)} {given.unit}"
    return show(value, given.dimension, 4)


def settings_of(texts: list[str]) -> tuple[Setting, ...]:
    """Return the settings that texts like 'network=400Gb/s,800Gb/s' state."""
    found: dict[str, Setting] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in INPUTS:
            raise BadInput(unknown(name))
        if not equals or not values.strip():
            raise BadInput(f"--set: {text!r} names no values; write it like {name}={example(name)}")
        if name in found:
            raise BadInput(f"--set: {name} stands there twice; give all its values behind one '='")
        found[name] = _setting(name, [v.strip() for v in values.split(",")])
    if math.prod(len(s.values) for s in found.values()) > MOST_POINTS:
        raise BadInput(f"--set: {' x '.join(str(len(s.values)) for s in found.values())} combinations are too many; "
                       f"at most {MOST_POINTS:,} are priced at a time")
    return tuple(found.values())


def unknown(name: str) -> str:
    """Return what is said of an input that is not known: the nearest names, and all of them."""
    near = difflib.get_close_matches(name, INPUTS, n=3, cutoff=0.5)
    near += [known for known in INPUTS if name and name in known and known not in near][:3]
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"--set: {name!r} is no input; {meant}They are {', '.join(INPUTS)}"


def example(name: str) -> str:
    """Return values that an input could take, as people write them."""
    given = INPUTS[name]
    by_dimension = {"whole": "4,8", "flag": "on,off", "ratio": "0.9,1.1", "bytes_per_s": "400Gb/s,800Gb/s", "bytes": "80GiB",
                    "s": "10us,20us", "flop_per_s": "500TFLOP/s", "usd_per_hour": "2USD/h", "count": "1T,15T", "word": "..."}
    return ",".join(given.words[:2]) or by_dimension[given.dimension]


def _setting(name: str, texts: list[str]) -> Setting:
    given, field = INPUTS[name], f"--set {name}"
    parts = list(itertools.chain.from_iterable(_values(given, text, field) for text in texts))
    kinds = {is_factor for is_factor, _ in parts}
    if len(kinds) > 1:
        raise BadInput(f"{field}: factors (x2) and values do not go together; give the one or the other")
    return Setting(name=name, values=tuple(dict.fromkeys(value for _, value in parts)), are_factors=kinds == {True})


def _values(given: Input, text: str, field: str) -> list[tuple[bool, Any]]:
    """Return whether a text states factors, and the values: one, or those of a range."""
    if ".." not in text or given.dimension in ("word", "flag"):
        return [_value(given, text, field)]
    ends, colon, count = text.partition(":")
    first, _, last = ends.partition("..")
    unit = last.lstrip("x0123456789._eE+- ")
    (low_factor, low), (high_factor, high) = (
        _value(given, t, field) for t in (first if first[-1:].isalpha() or not unit else first + unit, last))
    num = int(count) if count.isdecimal() else 0 if colon else RANGE_POINTS
    if low_factor != high_factor or num < 2 or low >= high:
        raise BadInput(f"{field}: {text!r} is no range; write it like 100..800Gb/s:8, from the lower to the higher")
    points = np.geomspace(low, high, num) if low > 0 else np.linspace(low, high, num)
    inner = [round(p) if given.dimension == "whole" and not low_factor else p for p in points.tolist()[1:-1]]
    return [(low_factor, p) for p in (low, *inner, high)]


def _value(given: Input, text: str, field: str) -> tuple[bool, Any]:
    """Return whether a text states a factor, and its value in SI."""
    if given.dimension == "flag":
        if text.lower() not in FLAGS:
            raise BadInput(f"{field}: {text!r} is neither on nor off")
        return False, FLAGS[text.lower()]
    if given.dimension == "word":
        if given.words and text not in given.words:
            raise BadInput(f"{field}: {text!r} is not known; known are {', '.join(given.words)}")
        return False, text
    if text[:1] == "x":
        return True, _number(text[1:], field, text, 0.0)
    if given.dimension == "whole":
        if not text.isdecimal():
            raise BadInput(f"{field}: {text!r} is no whole number; write it like {field.split()[-1]}=4,8, or x2")
        value = float(text)
    elif given.dimension == "ratio":
        value = _number(text.removesuffix("%"), field, text, None) / (100.0 if text.endswith("%") else 1.0)
    else:
        value = parse(text, given.dimension, field)
    if value < given.above or (value == 0 and given.dimension not in ("ratio", "whole")):
        least = f"at least {given.above:g}" if given.above else "more than 0"
        raise BadInput(f"{field}: {text!r} is too little; it is {least}")
    return False, int(value) if given.dimension == "whole" else value


def _number(text: str, field: str, typed: str, above: float | None) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{field}: {typed!r} is no number; write it like 0.9, 2%, or x2 for twice what the plan has") from None
    if not math.isfinite(value) or value < 0 or (above is not None and value <= above):
        raise BadInput(f"{field}: {typed!r} must be a number above 0")
    return value


def changed(scenario: Scenario, settings: tuple[Setting, ...], values: tuple[Any, ...]) -> Scenario:
    """Return a scenario with each input set to a value, in the order of `INPUTS`; factors are on what it had before."""
    wanted = {s.name: s.value_for(scenario, value) for s, value in zip(settings, values, strict=True)}
    for name in INPUTS:
        scenario = put(scenario, name, wanted[name]) if name in wanted else scenario
    return scenario


def as_range(setting: Setting, scenario: Scenario) -> Setting:
    """Return a setting whose factors are made values of a scenario."""
    return replace(setting, values=tuple(setting.value_for(scenario, v) for v in setting.values), are_factors=False)
