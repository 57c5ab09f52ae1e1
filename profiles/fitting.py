"""Least squares for laws of a few numbers: Levenberg-Marquardt with a robust loss, NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Residuals = Callable[[Vector], Vector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The fitted values, their covariance, and the residuals that are left."""

    values: Vector
    covariance: Matrix
    residuals: Vector


def fit(
    residuals: Residuals, start: Vector, *, lower: Vector | float = -np.inf, upper: Vector | float = np.inf,
    width: float = np.inf, rounds: int = 100,
) -> Fit:
    """Minimise the Huber loss of `residuals(values)` within bounds, from `start`; `width` is where it turns linear.

    Levenberg-Marquardt (Marquardt 1963, doi 10.1137/0111030) with iteratively reweighted residuals (Huber 1964,
    doi 10.1214/aoms/1177703732) and forward differences; a value at a bound that pushes outwards is held. Finds the
    minimum that is downhill from `start`.
    """
    values = np.clip(np.asarray(start, dtype=float), lower, upper)
    left = residuals(values)
    loss, damping = _loss(left, width), 1e-3
    jacobian = _slopes(residuals, values, left, upper)
    for _ in range(rounds):
        step = _step(jacobian, left, values, lower, upper, width, damping)
        tried = np.clip(values + step, lower, upper)
        there = residuals(tried)
        gain = loss - _loss(there, width)
        if gain > 0:
            values, left, loss, damping = tried, there, loss - gain, damping / 5
            jacobian = _slopes(residuals, values, left, upper)
            if gain < 1e-10 * loss:
                break
        else:
            damping *= 4
            if damping > 1e12:
                break
    return Fit(values=values, covariance=_covariance(jacobian, left), residuals=left)


def _step(
    jacobian: Matrix, left: Vector, values: Vector, lower: Vector | float, upper: Vector | float, width: float, damping: float
) -> Vector:
    weight = np.minimum(1.0, width / np.maximum(np.abs(left), 1e-300))
    gradient = jacobian.T @ (weight * left)
    free = ~(((values <= lower) & (gradient > 0)) | ((values >= upper) & (gradient < 0)))
    normal = (jacobian.T @ (weight[:, None] * jacobian))[np.ix_(free, free)]
    scale = np.diag(np.maximum(np.diag(normal), 1e-12 * max(1e-300, float(np.trace(normal)))))
    step = np.zeros_like(values)
    step[free] = -np.linalg.lstsq(normal + damping * scale, gradient[free], rcond=None)[0]
    return step


def _loss(left: Vector, width: float) -> float:
    size = np.abs(left)
    if not np.isfinite(width):
        return float(0.5 * (left**2).sum())
    return float(np.where(size <= width, 0.5 * size**2, width * (size - 0.5 * width)).sum())


def _slopes(residuals: Residuals, values: Vector, left: Vector, upper: Vector | float) -> Matrix:
    high = np.broadcast_to(upper, values.shape)
    columns = []
    for i, value in enumerate(values):
        step = 1e-6 * max(1.0, abs(value))
        step = step if value + step <= high[i] else -step
        moved = values.copy()
        moved[i] += step
        columns.append((residuals(moved) - left) / step)
    return np.stack(columns, axis=1)


def _covariance(jacobian: Matrix, left: Vector) -> Matrix:
    spare = max(1, len(left) - jacobian.shape[1])
    return np.asarray(np.linalg.pinv(jacobian.T @ jacobian) * float(left @ left) / spare, dtype=np.float64)
