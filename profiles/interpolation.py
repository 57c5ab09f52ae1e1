"""Between measured points: kernels by shape, collectives by bytes, always in logarithms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiles.collectives import Collective, traffic_factor
from profiles.ops import SIZES, Num
from profiles.tables import MeasuredTable

_P10_TO_P90 = 2.563
"""Distance between the 10th and 90th percentile of a normal distribution, in standard deviations."""
_MEDIAN_ERROR = 1.2533
"""Standard error of a median over that of a mean, for a normal distribution: sqrt(pi / 2)."""
DRIFT_SPREAD = 0.05
"""How much all of a shared machine's times drift between profile and run: medians of the same kernels, measured twice
in 20 minutes on two shared cores, were 6 % apart in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPoints:
    """Measured shapes of one kind, pass and dtype: log sizes [points, dims], log of time over the line, noise.

    `noise` is that of each median; `gap_noise` is how far a shape that was left out is from what the others say.
    """

    kind: str
    log_size: NDArray[np.float64]
    log_ratio: NDArray[np.float64]
    noise: NDArray[np.float64]
    gap_noise: float
    fixed_s: float
    unit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectivePoints:
    """Measured sizes of one collective, by group size: bytes, seconds and noise, sorted by bytes."""

    by_group: dict[int, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]


def kernel_points(
    table: MeasuredTable, kind: str, pass_: str | None, dtype: str, engine: str = ""
) -> KernelPoints | None:
    """Return the measured points of a kernel with the line t = fixed + unit x (product of sizes) through them."""
    rows = table.select(kind, pass_, dtype, engine)
    if rows.empty:
        return None
    sizes = rows[[f"size_{i}" for i in range(len(SIZES[kind]))]].to_numpy(float)
    seconds = rows["median_s"].to_numpy(float)
    work = _work(kind, tuple(sizes.T))
    fixed, unit = _fit_line(work, seconds)
    log_size, log_ratio = np.log(sizes), np.log(seconds / (fixed + unit * work))
    return KernelPoints(
        kind=kind, log_size=log_size, log_ratio=log_ratio, noise=_median_noise(rows),
        gap_noise=_gap_noise(log_size, log_ratio), fixed_s=fixed, unit_s=unit,
    )


def _median_noise(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return the relative standard error of medians."""
    samples = np.log(rows["p90_s"].to_numpy(float) / rows["p10_s"].to_numpy(float)) / _P10_TO_P90
    return np.asarray(_MEDIAN_ERROR * samples / np.sqrt(rows["num_samples"].fillna(1).to_numpy(float)), dtype=float)


def _gap_noise(log_size: NDArray[np.float64], log_ratio: NDArray[np.float64]) -> float:
    """Return the root mean square of what leaving one shape out and interpolating it gets wrong, in logarithms."""
    if len(log_ratio) < 2:
        return 0.0
    weight = _weights(log_size, log_size)
    np.fill_diagonal(weight, 0.0)
    others = weight @ log_ratio / weight.sum(axis=1)
    return float(np.sqrt(np.mean((others - log_ratio) ** 2)))


def _weights(at: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return d^-4 between log sizes [queries, dims] and [points, dims]."""
    distance = ((at[:, None, :] - points[None]) ** 2).sum(-1)
    return np.asarray(1.0 / (distance + 1e-9) ** 2)


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
    """Return seconds and noise at a shape, and whether it was measured itself.

    The ratio of measured time to the fitted line is averaged over the measured shapes with weights d^-4, d the
    distance in log size (Shepard's method, doi 10.1145/800186.810616); a measured shape returns its own time.
    """
    arrays = np.broadcast_arrays(*[np.asarray(s, dtype=float) for s in size])
    shape = arrays[0].shape
    query = np.stack([a.ravel() for a in arrays], axis=1)
    unique, inverse = np.unique(query, axis=0, return_inverse=True)
    weight = _weights(np.log(unique), points.log_size)
    measured = weight.max(axis=1) > 1e12
    weight /= weight.sum(axis=1, keepdims=True)
    log_ratio = weight @ points.log_ratio
    noise = np.hypot(weight @ points.noise, np.where(measured, 0.0, points.gap_noise))
    seconds = np.exp(log_ratio) * (points.fixed_s + points.unit_s * _work(points.kind, tuple(unique.T)))
    inverse = inverse.reshape(-1)
    exact = bool(measured.all())
    if shape == ():
        return float(seconds[inverse][0]), float(noise[inverse][0]), exact
    return seconds[inverse].reshape(shape), noise[inverse].reshape(shape), exact


def collective_points(table: MeasuredTable, kind: str, engine: str = "") -> CollectivePoints | None:
    """Return the measured sizes of a collective through an engine, or None."""
    rows = table.select(kind, engine=engine)
    if rows.empty:
        return None
    by_group = {}
    for group, part in rows.groupby("group_size"):
        part = part.sort_values("bytes")
        by_group[int(float(str(group)))] = (
            part["bytes"].to_numpy(float), part["median_s"].to_numpy(float), _median_noise(part)
        )
    return CollectivePoints(by_group=by_group)


def interpolate_collective(points: CollectivePoints, collective: Collective) -> tuple[Num, Num]:
    """Return seconds and noise at a size: straight lines in log-log between points, the last rate beyond them.

    A group size that was not measured takes the nearest measured one, scaled by the traffic each rank sends.
    """
    size, group = np.broadcast_arrays(np.asarray(collective.bytes, float), np.asarray(collective.group_size, float))
    seconds, noise = np.zeros(size.shape), np.zeros(size.shape)
    known = np.array(sorted(points.by_group))
    for n in np.unique(group[group > 1]):
        nearest = int(known[np.argmin(np.abs(np.log(known / n)))])
        at = group == n
        x, y, s = points.by_group[nearest]
        inside = np.exp(np.interp(np.log(np.maximum(size[at], 1.0)), np.log(x), np.log(y)))
        scale = traffic_factor(collective.kind, n) / traffic_factor(collective.kind, nearest)
        seconds[at] = np.where(size[at] > x[-1], y[-1] * size[at] / x[-1], inside) * scale
        noise[at] = np.interp(np.log(np.maximum(size[at], 1.0)), np.log(x), s)
    return (seconds, noise) if size.ndim else (float(seconds), float(noise))
