"""Predicted against measured: the error of each published run, and how large errors are by group.

An error is predicted / measured - 1. MAPE is the mean of its size, bias its mean, coverage the share of runs whose
measured time lies from the predicted P10 to P90.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from planner.predict import Prediction, predict
from planner.question import Question
from profiles.cost import CostModel, cost_model
from profiles.files import BadInput
from profiles.hardware import Cluster
from profiles.model import Experts, LatentAttention, StateSpace
from reports.choice import Sweep, pooled_tau, sweeps_of
from reports.compare import comparable_bytes
from reports.published import Skipped, as_question, measured_peak_bytes, measured_step_s, tokens_per_step
from reports.rows import Row
from simulator.metrics import mfu
from simulator.strategy import Strategy

Laws = Callable[[Row, Cluster], CostModel]
"""Which laws price a row's machine; other laws for other rows make leave-one-source-out."""
GPU_BINS = ((1, 8), (9, 64), (65, 256), (257, 1024), (1025, 10**7))
MEMORY_KINDS = (("allocated", "allocated"), ("allocated", "active"), ("reserved", "reserved"), ("device", "device"))
"""Counter of peak memory, and the word by which a row names it."""
NOT_SAID = "not said"
FEW_ROWS = 64
"""So many rows are predicted before a second process would have started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One published run: what it measured and what is predicted for it; None where a side has no figure.

    MFU is Headway's own (simulator/metrics.py) on both sides. Peak memory is compared with the part of the predicted
    peak that the run's counter sees (`peak_kind`). `loso_s` is predicted by laws that have not seen the row's source.
    """

    id: str
    source: str
    model: str
    family: str
    gpu: str
    num_gpus: int
    precision: str
    trust: str
    full: bool
    strategy: str
    software: str
    set_key: str
    tokens_per_step: float
    measured_s: float | None
    predicted_s: float
    p10_s: float
    p90_s: float
    loso_s: float | None
    measured_tokens_per_s_per_gpu: float | None
    tokens_per_s_per_gpu: float
    measured_mfu: float | None
    mfu: float
    peak_kind: str
    measured_peak_bytes: float | None
    peak_bytes: float
    fits: bool
    breakdown_s: dict[str, float]

    @property
    def error(self) -> float | None:
        """Return predicted / measured - 1 of the step's time."""
        return None if self.measured_s is None else self.predicted_s / self.measured_s - 1

    @property
    def loso_error(self) -> float | None:
        """Return the error where the row's source was left out of the fit."""
        return None if self.measured_s is None or self.loso_s is None else self.loso_s / self.measured_s - 1

    @property
    def peak_error(self) -> float | None:
        """Return predicted / measured - 1 of the peak memory."""
        return None if self.measured_peak_bytes is None else self.peak_bytes / self.measured_peak_bytes - 1

    @property
    def inside(self) -> bool | None:
        """Return whether the measured time lies from P10 to P90."""
        return None if self.measured_s is None else self.p10_s <= self.measured_s <= self.p90_s

    @property
    def dominant(self) -> str:
        """Return the largest part of the predicted step."""
        return max(self.breakdown_s, key=lambda part: self.breakdown_s[part])

    @property
    def dominant_share(self) -> float:
        """Return the largest part's share of the predicted step."""
        return self.breakdown_s[self.dominant] / self.predicted_s

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and CSV, the derived ones too."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "set_key"}
        derived = ("error", "loso_error", "peak_error", "inside", "dominant", "dominant_share")
        return own | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Errors of the step's time over the rows that share a key; `tau` where layouts of one model can be ranked."""

    by: str
    key: str
    n: int
    mape: float
    median: float
    p90: float
    bias: float
    coverage: float
    tau: float | None
    loso_mape: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGroup:
    """Errors of the peak memory over the rows of one counter (allocated, reserved, device, not said)."""

    key: str
    n: int
    mape: float
    median: float
    p90: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """All published runs of a file: outcomes, rows left out, groups, sweeps and memory."""

    outcomes: tuple[Outcome, ...]
    skipped: tuple[Skipped, ...]

    @property
    def timed(self) -> tuple[Outcome, ...]:
        """Return the outcomes with a measured time."""
        return tuple(o for o in self.outcomes if o.measured_s is not None)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Return the groups of every kind, the largest first within each."""
        return tuple(g for by in GROUPINGS for g in groups_by(by, self.timed))

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """Return the sweeps in which a layout could have been chosen."""
        return sweeps_of(self.timed)

    @property
    def memory(self) -> tuple[MemoryGroup, ...]:
        """Return the errors of peak memory by counter."""
        keys = dict.fromkeys(o.peak_kind for o in self.outcomes if o.peak_kind)
        return tuple(memory_group(key, self.outcomes) for key in keys)

    @property
    def share_not_fitting(self) -> float | None:
        """Return the share of runs that ran and are predicted not to fit.

        Those that offload may have offloaded activations, too, which is not priced.
        """
        judged = [o for o in self.outcomes if o.family != OFFLOADED]
        return float(np.mean([not o.fits for o in judged])) if judged else None


GROUPINGS: dict[str, Callable[[Outcome], str]] = {
    "accelerator": lambda o: o.gpu,
    "source": lambda o: o.source,
    "family": lambda o: o.family,
    "precision": lambda o: o.precision,
    "gpus": lambda o: next(f"{low} to {high}" if high < 10**7 else f"{low} and more"
                           for low, high in GPU_BINS if low <= o.num_gpus <= high),
    "trust": lambda o: o.trust + (", full strategy" if o.full else ", strategy in part"),
}


def groups_by(by: str, outcomes: Sequence[Outcome]) -> list[Group]:
    """Return the groups of one kind over outcomes with a measured time, the largest first."""
    members: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        members.setdefault(GROUPINGS[by](outcome), []).append(outcome)
    return [group(by, key, of) for key, of in sorted(members.items(), key=lambda x: (-len(x[1]), x[0]))]


def group(by: str, key: str, outcomes: Sequence[Outcome]) -> Group:
    """Return the errors of some outcomes with a measured time, of which there is at least one."""
    errors = np.array([o.error for o in outcomes], dtype=float)
    left_out = np.array([o.loso_error for o in outcomes if o.loso_error is not None], dtype=float)
    return Group(
        by=by, key=key, n=len(outcomes), **_sizes(errors), coverage=float(np.mean([bool(o.inside) for o in outcomes])),
        tau=pooled_tau(outcomes), loso_mape=float(np.abs(left_out).mean()) if left_out.size else None,
    )


def memory_group(key: str, outcomes: Sequence[Outcome]) -> MemoryGroup:
    """Return the errors of peak memory of the outcomes that one counter measured."""
    errors = np.array([o.peak_error for o in outcomes if o.peak_kind == key], dtype=float)
    return MemoryGroup(key=key, n=len(errors), **_sizes(errors))


def _sizes(errors: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    size = np.abs(errors)
    return {"mape": float(size.mean()), "median": float(np.median(size)), "p90": float(np.quantile(size, 0.9)),
            "bias": float(errors.mean())}


def fitted_laws(row: Row, cluster: Cluster) -> CostModel:
    """Return the cost model of the catalogue, whatever the row."""
    return cost_model(cluster)


def outcome_of(row: Row, laws: Laws = fitted_laws, loso: Laws | None = None) -> Outcome | Skipped:
    """Return a row's prediction beside what it measured, or why it is left out."""
    asked = as_question(row)
    if isinstance(asked, Skipped):
        return asked
    question, strategy = asked
    try:
        prediction = predict(question, strategy, cost=laws(row, question.cluster))
        left_out = predict(question, strategy, cost=loso(row, question.cluster)).step_time_s if loso else None
    except BadInput as e:
        return Skipped(id=row.id, reason=str(e))
    measured_s = measured_step_s(row)
    tokens = tokens_per_step(row)
    kind, peak_bytes = _peak(row, prediction)
    return Outcome(
        id=row.id, source=row.text("source"), model=question.model.name, family=family_of(question, strategy),
        gpu=row.text("gpu"), num_gpus=question.cluster.num_gpus, precision=strategy.precision, trust=row.text("trust"),
        full=row.text("full_strategy") == "1", strategy=strategy.describe(), software=strategy.software.name,
        set_key=_set_key(row, strategy), tokens_per_step=tokens, measured_s=measured_s,
        predicted_s=prediction.step_time_s, p10_s=prediction.p10_s, p90_s=prediction.p90_s, loso_s=left_out,
        measured_tokens_per_s_per_gpu=tokens / measured_s / question.cluster.num_gpus if measured_s else None,
        tokens_per_s_per_gpu=prediction.tokens_per_s_per_gpu,
        measured_mfu=float(mfu(question.model, strategy, measured_s, question.cluster.accelerator)) if measured_s else None,
        mfu=prediction.mfu, peak_kind=kind, measured_peak_bytes=measured_peak_bytes(row), peak_bytes=peak_bytes,
        fits=prediction.fits, breakdown_s=prediction.breakdown_s,
    )


ADAPTERS = "adapters"
"""Family of runs that train adapters beside frozen weights."""
OFFLOADED = "states in host memory"
"""Family of runs that offload."""


def family_of(question: Question, strategy: Strategy) -> str:
    """Return the kind of model: dense, with experts, with latent attention, hybrid; adapters where only these are trained, and
    states in host memory where there are any."""
    kinds = question.model.kinds
    if strategy.offload != "none":
        return OFFLOADED
    if question.lora_rank:
        return ADAPTERS
    if any(isinstance(k.mixer, StateSpace) for k in kinds):
        return "hybrid"
    experts = "experts" if any(isinstance(k.ffn, Experts) for k in kinds) else "dense"
    return f"{experts}, latent attention" if any(isinstance(k.mixer, LatentAttention) for k in kinds) else experts


def _set_key(row: Row, strategy: Strategy) -> str:
    """Return what runs share whose layouts can be ranked: source, model, machine, sequence and precision."""
    columns = ("source", "model", "n_layers", "hidden", "n_heads", "vocab", "gpu", "interconnect", "n_gpus", "seq_len")
    return " | ".join((*(row.text(c) for c in columns), strategy.precision))


def _peak(row: Row, prediction: Prediction) -> tuple[str, float]:
    """Return which counter measured the peak, and the part of the predicted peak that it sees."""
    whole, parts = prediction.peak_memory_bytes, prediction.memory_bytes
    if measured_peak_bytes(row) is None:
        return "", whole
    said = row.text("peak_mem_kind")
    kind = next((name for name, word in MEMORY_KINDS if word in said), NOT_SAID)
    if kind == "allocated":
        return kind, comparable_bytes(whole, parts, cuda=True)
    # reserved blocks are the allocator's; the context beside them is not
    return kind, whole - parts.get("framework", 0.0) if kind == "reserved" else whole


def predict_rows(
    rows: Sequence[Row], *, laws: Laws = fitted_laws, loso: Laws | None = None,
    on_progress: Callable[[float], None] | None = None, processes: int = 2,
) -> Accuracy:
    """Return the accuracy over rows, predicted in some processes; `laws` must be importable where there are several."""
    one = functools.partial(outcome_of, laws=laws, loso=loso)
    processes = min(processes, os.cpu_count() or 1)
    if len(rows) <= FEW_ROWS or processes == 1:
        results = _collect(map(one, rows), len(rows), on_progress)
    else:
        with ProcessPoolExecutor(processes) as pool:
            results = _collect(pool.map(one, rows, chunksize=16), len(rows), on_progress)
    return Accuracy(outcomes=tuple(r for r in results if isinstance(r, Outcome)),
                    skipped=tuple(r for r in results if isinstance(r, Skipped)))


def _collect(
    results: Iterable[Outcome | Skipped], total: int, on_progress: Callable[[float], None] | None
) -> list[Outcome | Skipped]:
    found = []
    for done, result in enumerate(results, start=1):
        found.append(result)
        if on_progress is not None:
            on_progress(done / total)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A group's MAPE before and after a change of the laws."""

    by: str
    key: str
    before: float
    after: float

    def worse(self, tolerance: float) -> bool:
        """Return whether the error has grown by more than a tolerance."""
        return self.after > self.before + tolerance


def changes(before: Sequence[dict[str, Any]], after: Sequence[Group]) -> tuple[Change, ...]:
    """Return how each group changed that both sides have; `before` is the `groups` of an earlier `validate --json`."""
    known = {(g["by"], g["key"]): float(g["mape"]) for g in before}
    return tuple(Change(by=g.by, key=g.key, before=known[g.by, g.key], after=g.mape) for g in after if (g.by, g.key) in known)
