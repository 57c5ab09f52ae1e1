"""Text to quantities and back: people's units at the edge, SI inside.

`GB` is decimal and `GiB` binary; `b` is bit and `B` byte. A bare number is refused where a unit is needed.
"""

from __future__ import annotations

import math
import re

from profiles.files import BadInput

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_PREFIX = _DECIMAL | _BINARY

UNITS: dict[str, dict[str, float]] = {
    "bytes": {f"{p}B": f for p, f in _PREFIX.items()},
    "bytes_per_s": {f"{p}B/s": f for p, f in _PREFIX.items()} | {f"{p}b/s": f / 8 for p, f in _PREFIX.items()},
    "flop_per_s": {f"{p}FLOP/s": f for p, f in _DECIMAL.items()},
    "s": {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0},
    "w": {f"{p}W": f for p, f in _DECIMAL.items()},
    "usd": {"USD": 1.0, "$": 1.0, "kUSD": 1e3, "MUSD": 1e6},
    "usd_per_hour": {"USD/h": 1.0, "$/h": 1.0},
    "count": {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20},
}
EXAMPLES = {
    "bytes": "80 GiB", "bytes_per_s": "400 Gb/s", "flop_per_s": "989.4 TFLOP/s", "s": "30d", "w": "700 W",
    "usd": "5000000 USD", "usd_per_hour": "2.95 USD/h", "count": "15T",
}
_NUMBER = re.compile(r"^\s*([-+]?\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?\.\d+(?:[eE][-+]?\d+)?)\s*(\S*)\s*$")


def parse(text: object, dimension: str, field: str = "value") -> float:
    """Return a quantity in SI from text such as '80 GiB', '400 Gb/s', '15T', '30d'.

    Refused with one line that names `field`: no unit where one is needed, an unknown unit, a negative or
    non-finite number.
    """
    units, example = UNITS[dimension], EXAMPLES[dimension]
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise BadInput(f"{field}: {text!r} is not a quantity; write it like {example!r}")
    match = _NUMBER.match(str(text))
    if not match:
        raise BadInput(f"{field}: {text!r} is not a quantity; write it like {example!r}")
    number, unit = float(match[1].replace("_", "")), match[2]
    if unit not in units:
        problem = f"unknown unit {unit!r}" if unit else "a bare number; the unit is needed"
        raise BadInput(f"{field}: {text!r} is {problem}; write it like {example!r}")
    if number < 0 or not math.isfinite(number):
        problem = "must not be negative" if number < 0 else "is too large a number"
        raise BadInput(f"{field}: {text!r} {problem}; write it like {example!r}")
    return number * units[unit]


def show(value: float, dimension: str, digits: int = 3) -> str:
    """Return a quantity as people write it, in the largest fitting unit ('79.6 GiB', '2.95 s', '15 T')."""
    if not math.isfinite(value):
        return "-"
    scales = {
        "bytes": ("B", "KiB", "MiB", "GiB", "TiB", "PiB"),
        "bytes_per_s": ("B/s", "kB/s", "MB/s", "GB/s", "TB/s"),
        "flop_per_s": ("FLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s", "EFLOP/s"),
        "s": ("ns", "us", "ms", "s", "min", "h", "d"),
        "w": ("W", "kW", "MW", "GW"),
        "usd": ("USD", "kUSD", "MUSD"),
        "usd_per_hour": ("USD/h",),
        "count": ("", "k", "M", "B", "T"),
    }[dimension]
    unit = scales[0]
    for candidate in scales:
        if abs(value) >= UNITS[dimension][candidate] * (1 - 1e-9):
            unit = candidate
    scaled = value / UNITS[dimension][unit]
    return f"{significant(scaled, digits)} {unit}".rstrip()


def significant(value: float, digits: int = 3) -> str:
    """Return a number with that many significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
