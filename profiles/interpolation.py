"""Between measured points: kernels by shape, collectives by bytes, always in logarithms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.collectives import Collective, traffic_factor
from profiles.ops import SIZES, Num
from profiles.tables import MeasuredTable

_P10_TO_P90 = 2.563
"""Distance between the 10th and 90th percentile of a normal distribution, in standard deviations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPoints:
    """Measured shapes of one kind, pass and dtype: log sizes [points, dims], log of time over the line, spread."""

    kind: str
    log_size: NDArray[np.float64]
    log_ratio: NDArray[np.float64]
    spread: NDArray[np.float64]
    fixed_s: float
    unit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectivePoints:
    """Measured sizes of one collective, by group size: bytes, seconds and spread, sorted by bytes."""

    by_group: dict[int, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]


def kernel_points(table: MeasuredTable, kind: str, pass_: str, dtype: str) -> KernelPoints | None:
    """Return the measured points of a kernel with the line t = fixed + unit x (product of sizes) through them."""
    rows = table.select(kind, pass_, dtype)
    if rows.empty:
        return None
    sizes = rows[[f"size_{i}" for i in range(len(SIZES[kind]))]].to_numpy(float)
    seconds = rows["median_s"].to_numpy(float)
    work = _work(kind, tuple(sizes.T))
    fixed, unit = _fit_line(work, seconds)
    spread = np.log(rows["p90_s"].to_numpy(float) / rows["p10_s"].to_numpy(float)) / _P10_TO_P90
    return KernelPoints(
        kind=kind, log_size=np.log(sizes), log_ratio=np.log(seconds / (fixed + unit * work)), spread=spread,
        fixed_s=fixed, unit_s=unit,
    )


def _work(kind: str, size: tuple[Num, ...]) -> Num:
    """Return what time grows with: the product of the sizes; attention's grows with the square of its length."""
    work = 1.0
    for name, value in zip(SIZES[kind], size, strict=True):
        # an embedding touches its tokens' rows and, in backward, its whole table: neither is the product
        if kind == "embedding" and name == "vocab":
            continue
        work = work * (value**2 if name == "seq_len" else value)
    return work


def _fit_line(work: NDArray[np.float64], seconds: NDArray[np.float64]) -> tuple[float, float]:
    """Return fixed and unit of seconds = fixed + unit work, both >= 0, least squares of relative errors."""
    a = np.stack([1 / seconds, work / seconds], axis=1)
    fixed, unit = np.linalg.lstsq(a, np.ones(len(work)), rcond=None)[0]
    if fixed < 0 or unit <= 0 or len(work) < 2:
        fixed, unit = 0.0, float(np.exp(np.mean(np.log(seconds / work))))
    return float(fixed), float(unit)


def interpolate_kernel(points: KernelPoints, size: tuple[Num, ...]) -> tuple[Num, Num, bool]:
    """Return seconds and spread at a shape, and whether it was measured itself.

    The ratio of measured time to the fitted line is averaged over the measured shapes with weights d^-4, d the
    distance in log size (Shepard's method, doi 10.1145/800186.810616); a measured shape returns its own time.
    """
    arrays = np.broadcast_arrays(*[np.asarray(s, dtype=float) for s in size])
    shape = arrays[0].shape
    query = np.stack([a.ravel() for a in arrays], axis=1)
    unique, inverse = np.unique(query, axis=0, return_inverse=True)
    distance = ((np.log(unique)[:, None, :] - points.log_size[None]) ** 2).sum(-1)
    weight = 1.0 / (distance + 1e-9) ** 2
    weight /= weight.sum(axis=1, keepdims=True)
    log_ratio, spread = weight @ points.log_ratio, weight @ points.spread
    seconds = np.exp(log_ratio) * (points.fixed_s + points.unit_s * _work(points.kind, tuple(unique.T)))
    inverse = inverse.reshape(-1)
    exact = bool((distance.min(axis=1) < 1e-6).all())
    if shape == ():
        return float(seconds[inverse][0]), float(spread[inverse][0]), exact
    return seconds[inverse].reshape(shape), spread[inverse].reshape(shape), exact


def collective_points(table: MeasuredTable, kind: str) -> CollectivePoints | None:
    """Return the measured sizes of a collective, or None."""
    rows = table.select(kind)
    if rows.empty:
        return None
    by_group = {}
    for group, part in rows.groupby("group_size"):
        part = part.sort_values("bytes")
        spread = np.log(part["p90_s"].to_numpy(float) / part["p10_s"].to_numpy(float)) / _P10_TO_P90
        by_group[int(float(str(group)))] = (part["bytes"].to_numpy(float), part["median_s"].to_numpy(float), spread)
    return CollectivePoints(by_group=by_group)


def interpolate_collective(points: CollectivePoints, collective: Collective) -> tuple[Num, Num]:
    """Return seconds and spread at a size: straight lines in log-log between points, the last rate beyond them.

    A group size that was not measured takes the nearest measured one, scaled by the traffic each rank sends.
    """
    size, group = np.broadcast_arrays(np.asarray(collective.bytes, float), np.asarray(collective.group_size, float))
    seconds, spread = np.zeros(size.shape), np.zeros(size.shape)
    known = np.array(sorted(points.by_group))
    for n in np.unique(group[group > 1]):
        nearest = int(known[np.argmin(np.abs(np.log(known / n)))])
        at = group == n
        x, y, s = points.by_group[nearest]
        inside = np.exp(np.interp(np.log(np.maximum(size[at], 1.0)), np.log(x), np.log(y)))
        scale = traffic_factor(collective.kind, n) / traffic_factor(collective.kind, nearest)
        seconds[at] = np.where(size[at] > x[-1], y[-1] * size[at] / x[-1], inside) * scale
        spread[at] = np.interp(np.log(np.maximum(size[at], 1.0)), np.log(x), s)
    return (seconds, spread) if size.ndim else (float(seconds), float(spread))
