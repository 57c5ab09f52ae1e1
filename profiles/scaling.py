"""Published scaling laws: the constants of the loss over parameters and tokens, and of batch sizes, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from profiles import files
from profiles.files import BadInput

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossLaw:
    """Nats a token: E + A / N^alpha + B / D^beta, of N parameters and D tokens.

    `standard_errors`: as published. `covariance`: of (ln A, ln B, ln E, alpha, beta), from the same fit; None where no usable
    interval is published.
    """

    name: str
    A: float
    B: float
    E: float
    alpha: float
    beta: float
    standard_errors: dict[str, float]
    covariance: tuple[tuple[float, ...], ...] | None
    fitted_on: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLaw:
    """Tokens of a step: coefficient (x / unit)^exponent, of the run's tokens, FLOP, or last loss in nats (`grows_with`).

    `kind`: critical (a larger batch wastes tokens) or best (a larger or smaller one has a higher loss). At a critical batch
    steps are `overhead` times those of linear scaling from a `base` batch. The logarithm's variance is
    residual^2 + at_centre^2 + (exponent_error ln(x / centre))^2; `error` is None where none is known.
    """

    name: str
    kind: str
    means: str
    grows_with: str
    unit: float
    coefficient: float
    exponent: float
    overhead: float | None
    base: float
    error: BatchError | None
    fitted_on: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchError:
    """Standard errors of a straight line in logarithms, which are independent at its centre."""

    centre: float
    at_centre: float
    exponent: float
    residual: float


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _LossFile(_Strict):
    name: str
    A: Positive
    B: Positive
    E: Positive
    alpha: Positive
    beta: Positive
    standard_errors: dict[str, float] = {}
    covariance: list[list[float]] | None = None
    covariance_source: str = ""
    fitted_on: str
    source: str


class _ErrorFile(_Strict):
    centre: Positive
    at_centre: Positive
    exponent: Positive
    residual: Positive


class _BatchFile(_Strict):
    name: str
    kind: Literal["critical", "best"]
    means: str
    grows_with: Literal["tokens", "flop", "loss"]
    unit: Positive
    coefficient: Positive
    exponent: float
    overhead: Annotated[float, Field(gt=1)] | None = None
    base: Annotated[float, Field(ge=0)] = 0.0
    error: _ErrorFile | None = None
    error_source: str = ""
    fitted_on: str
    source: str


class _ScalingFile(_Strict):
    default: str
    loss: list[_LossFile]
    batch: list[_BatchFile]


@cache
def _catalog() -> _ScalingFile:
    return files.validate(_ScalingFile, files.catalog_mapping("", "scaling_laws"), "scaling_laws.yaml")


def loss_laws() -> tuple[LossLaw, ...]:
    """Return the catalogue's laws of the loss."""
    return tuple(_loss_law(row) for row in _catalog().loss)


def loss_law(name: str | None = None) -> LossLaw:
    """Return a law of the loss by name, or the catalogue's default."""
    wanted = name or _catalog().default
    for law in loss_laws():
        if law.name == wanted:
            return law
    raise BadInput(f"law: {wanted!r} is not in the catalogue; it has {', '.join(law.name for law in loss_laws())}")


def _loss_law(row: _LossFile) -> LossLaw:
    covariance = None if row.covariance is None else tuple(map(tuple, row.covariance))
    return LossLaw(
        name=row.name, A=row.A, B=row.B, E=row.E, alpha=row.alpha, beta=row.beta, standard_errors=row.standard_errors,
        covariance=covariance, fitted_on=row.fitted_on, source=_joined(row.source, row.covariance_source),
    )


def batch_laws() -> tuple[BatchLaw, ...]:
    """Return the catalogue's laws of the batch."""
    return tuple(
        BatchLaw(**_without(row.model_dump(), "error", "error_source", "source"),
                 error=BatchError(**row.error.model_dump()) if row.error else None,
                 source=_joined(row.source, row.error_source))
        for row in _catalog().batch
    )


def _without(data: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in data.items() if k not in names}


def _joined(source: str, error_source: str) -> str:
    return f"{source}; interval: {error_source}" if error_source else source
