"""Money, days and energy of a run."""

from __future__ import annotations

from profiles.hardware import Cluster, Price
from profiles.ops import Num

SECONDS_PER_DAY = 86400.0


def run_days(tokens: float, tokens_per_step: Num, step_time_s: Num) -> Num:
    """Return days = tokens / tokens per step x seconds per step: an undisturbed run."""
    return tokens / tokens_per_step * step_time_s / SECONDS_PER_DAY


def gpu_hours(days: Num, num_gpus: int) -> Num:
    """Return accelerator-hours."""
    return days * 24.0 * num_gpus


def run_usd(hours: Num, price: Price | None) -> Num | None:
    """Return dollars, or None where no price is known."""
    return None if price is None else hours * price.usd_per_gpu_hour


def energy_kwh(days: Num, cluster: Cluster) -> Num | None:
    """Return kilowatt-hours at the nodes' maximum power, or None where the cluster states none."""
    if cluster.node_power_w is None:
        return None
    return days * 24.0 * cluster.num_nodes * cluster.node_power_w / 1000.0
