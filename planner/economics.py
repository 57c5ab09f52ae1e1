"""Money, days, energy and carbon of a run: closed forms over numbers or arrays, and percentiles that they are carried with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from profiles.hardware import Price
from profiles.ops import Num

SECONDS_PER_DAY = 86400.0
DAYS_PER_MONTH = 365.25 / 12.0
P90_DEVIATIONS = 1.2815515655446004
"""Standard deviations from the median of a normal distribution to its ninetieth percentile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The tenth, fiftieth and ninetieth percentile of a quantity that is more than zero."""

    p10: Num
    p50: Num
    p90: Num

    def as_dict(self) -> dict[str, Num]:
        """Return the percentiles as a mapping, in the keys of `--json`."""
        return asdict(self)

    def map(self, function: Callable[[Num], Num]) -> Band:
        """Return the percentiles of a function of the quantity that rises with it."""
        return Band(p10=function(self.p10), p50=function(self.p50), p90=function(self.p90))

    def times(self, factor: Num, spread: Num = 0.0) -> Band:
        """Return the percentiles of the quantity times an independent lognormal factor.

        Distances from the median add as ln(p)^2 = ln(p1)^2 + ln(p2)^2 on each side, which is exact for lognormals.
        """
        if np.ndim(spread) == 0 and spread == 0:
            return self.map(lambda value: value * factor)
        low = np.hypot(np.log(self.p50 / self.p10), P90_DEVIATIONS * spread)
        high = np.hypot(np.log(self.p90 / self.p50), P90_DEVIATIONS * spread)
        middle = self.p50 * factor
        return Band(p10=_plain(middle * np.exp(-low)), p50=middle, p90=_plain(middle * np.exp(high)))


def lognormal(median: Num, spread: Num) -> Band:
    """Return the percentiles of a lognormal quantity; `spread`: standard deviation of its logarithm."""
    return Band(p10=median, p50=median, p90=median).times(1.0, spread)


def spread_between(p10: float, p90: float) -> float:
    """Return the standard deviation of the logarithm of a lognormal quantity with these percentiles."""
    return math.log(p90 / p10) / (2.0 * P90_DEVIATIONS)


def _plain(value: Num) -> Num:
    return value if np.ndim(value) else float(value)


def run_days(tokens: Num, tokens_per_step: Num, step_time_s: Num) -> Num:
    """Return days = tokens / tokens per step x seconds per step: an undisturbed run."""
    return tokens / tokens_per_step * step_time_s / SECONDS_PER_DAY


def gpu_hours(days: Num, num_gpus: Num) -> Num:
    """Return accelerator-hours."""
    return days * 24.0 * num_gpus


def days_of(hours: Num, num_gpus: Num) -> Num:
    """Return the days in which so many accelerators make these accelerator-hours."""
    return hours / (24.0 * num_gpus)


def run_usd(hours: Num, price: Price | None) -> Num | None:
    """Return dollars, or None where no price is known."""
    return None if price is None else hours * price.usd_per_gpu_hour


def hours_for(usd: Num, price: Price) -> Num:
    """Return the accelerator-hours that so many dollars buy."""
    return usd / price.usd_per_gpu_hour


def training_flop(hours: Num, peak_flop_per_s: float, mfu: Num, goodput: Num = 1.0) -> Num:
    """Return model FLOP = accelerator-hours x peak x MFU x goodput."""
    return hours * 3600.0 * peak_flop_per_s * mfu * goodput


def hours_of_flop(flop: Num, peak_flop_per_s: float, mfu: Num, goodput: Num = 1.0) -> Num:
    """Return the accelerator-hours that so much model FLOP takes."""
    return flop / (3600.0 * peak_flop_per_s * mfu * goodput)


def facility_kwh(days: Num, num_nodes: Num, node_w: Num, pue: Num = 1.0) -> Num:
    """Return kilowatt-hours = days x nodes x power of a node x PUE."""
    return days * 24.0 * num_nodes * node_w / 1000.0 * pue


def accelerator_kwh(hours: Num, power_w: Num) -> Num:
    """Return kilowatt-hours of the accelerators alone at their data sheet's power: what model cards report."""
    return hours * power_w / 1000.0


def carbon_t(kwh: Num, kg_per_kwh: Num) -> Num:
    """Return tonnes of CO2 equivalent by the grid where the energy is used (location-based; GHG Protocol, scope 2)."""
    return kwh * kg_per_kwh / 1000.0


def storage_usd(kept_bytes: Num, days: Num, usd_per_gb_month: Num) -> Num:
    """Return dollars for bytes that are kept so long; GB is 1e9 bytes, a month 30.44 days."""
    return kept_bytes / 1e9 * (days / DAYS_PER_MONTH) * usd_per_gb_month
