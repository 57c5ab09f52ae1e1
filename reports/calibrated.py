"""Fitting the catalogue's calibrations on published runs, and the figures of leaving one source out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from planner.calibrate import Measured, Prior, as_calibration, calibrate, prior_of, spreads, without_source
from profiles import files
from profiles.calibration import NUMBERS, Calibration, catalogue
from profiles.cost import CostModel, cost_model
from profiles.hardware import Cluster
from reports.published import Skipped, as_question, measured_step_s
from reports.rows import Row

TRUST_WEIGHTS = {"A": 1.0, "B": 0.4, "C": 0.0}
"""What a row counts by how far its source is trusted; one whose strategy is not fully stated counts a third of that."""
PARTLY_STATED = 1 / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Calibrations fitted on some rows: by name, and for each name those that left one source out."""

    calibrations: dict[str, Calibration]
    left_out: dict[str, dict[str, Calibration]]


def fit_calibrations(rows: Sequence[Row], on_progress: Callable[[float], None] | None = None) -> Fitted:
    """Return the catalogue's calibrations fitted anew on rows; an accelerator group without rows keeps its numbers."""
    tell = on_progress or (lambda share: None)
    measured = [m for m in map(_measured, rows) if m is not None]
    calibrations, left_out = dict(catalogue()), dict[str, dict[str, Calibration]]()
    # siblings after those that they are like
    for number, (name, old) in enumerate(sorted(catalogue().items(), key=lambda item: bool(item[1].like))):
        mine = [m for m in measured if m.question.cluster.accelerator.name in old.accelerators]
        if mine:
            elder = calibrations.get(old.like)
            calibrations[name], left_out[name] = _fit(old, mine, elder, left_out.get(old.like, {}))
        tell((number + 1) / len(calibrations))
    return Fitted(calibrations=calibrations, left_out=left_out)


def _fit(
    old: Calibration, rows: list[Measured], elder: Calibration | None, elder_left_out: dict[str, Calibration]
) -> tuple[Calibration, dict[str, Calibration]]:
    def prior(unseen: str = "") -> Prior:
        sibling = elder_left_out.get(unseen, elder)
        return prior_of(None if sibling is None else np.array([getattr(sibling, n) for n in NUMBERS], dtype=float))

    at = calibrate(rows, prior())
    others = without_source(rows, at, prior)
    widths = spreads(rows, at.values, at.left)
    num_sources = len(others)
    source = f"least squares on {len(rows)} published steps of {num_sources} sources (headway validate --calibrate)"

    def build(values: np.ndarray) -> Calibration:
        made = as_calibration([round(float(v), 4) for v in values], **widths)
        return made.model_copy(update={
            "accelerators": old.accelerators, "like": old.like, "source": source,
            "num_rows": len(rows), "num_sources": num_sources,
        })

    return build(at.values), {source_name: build(values) for source_name, values in others.items()}


def _measured(row: Row) -> Measured | None:
    found, step_s = as_question(row), measured_step_s(row)
    weight = TRUST_WEIGHTS.get(row.text("trust"), 1.0) * (1.0 if row.text("full_strategy") != "0" else PARTLY_STATED)
    # adapters are priced by the laws of whole models, what offload adds by data sheets, and both show whether these carry over
    if isinstance(found, Skipped) or step_s is None or weight == 0 or found[1].lora_rank or found[1].offload != "none":
        return None
    return Measured(
        id=row.id, question=found[0], strategy=found[1], step_s=step_s, source=row.text("source"), weight=weight
    )


def without_its_source(fitted: Fitted) -> Callable[[Row, Cluster], CostModel]:
    """Return laws that have not seen a row's source, where the fit used any of it."""
    return partial(_unseen, fitted)


def _unseen(fitted: Fitted, row: Row, cluster: Cluster) -> CostModel:
    model = cost_model(cluster)
    for name, calibration in fitted.calibrations.items():
        if cluster.accelerator.name in calibration.accelerators:
            return replace(model, calibration=fitted.left_out.get(name, {}).get(row.text("source"), calibration))
    return model


def write_calibrations(fitted: Fitted, folder: Path) -> list[Path]:
    """Write one YAML a calibration into a folder, as the catalogue holds them."""
    files.make_folder(folder)
    written = []
    for name, calibration in fitted.calibrations.items():
        data = calibration.model_dump()
        for key in (*NUMBERS, "spread", "expert_spread", "comm_spread"):
            data[key] = round(float(data[key]), 4)
        data["accelerators"] = list(data["accelerators"])
        written.append(files.write_text(folder / f"{name}.yaml", yaml.safe_dump(data, sort_keys=False, width=120)))
    return written
