"""The ratchet: figures of accuracy that were reached may only improve; CHANGELOG.md shows the table when they move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from profiles import files
from reports.accuracy import Accuracy
from reports.headline import headlines
from reports.validate_command import validate

RECORDED = Path(__file__).parent / "recorded_accuracy.json"
ROUNDING = 5e-4
"""Figures are recorded with four digits."""
RATCHETED = ("MAPE", "P90", "MAPE, source left out", "ran, predicted not to fit")


def figures(accuracy: Accuracy) -> dict[str, float]:
    return {f"{h.set}: {h.figure}": round(h.reached, 4) for h in headlines(accuracy) if h.figure in RATCHETED}


def hold(name: str, reached: dict[str, float]) -> None:
    recorded: dict[str, float] = json.loads(RECORDED.read_text())[name]
    assert set(recorded) <= set(reached)
    worse = {k: (recorded[k], reached[k]) for k in recorded if reached[k] > recorded[k] + ROUNDING}
    assert not worse, f"recorded and reached: {worse}"


def test_the_catalogues_runs_are_predicted_as_well_as_before() -> None:
    hold("catalogue", figures(validate(None)))


def test_the_published_collection_is_predicted_as_well_as_before(shared: Path) -> None:
    hold("collection", figures(validate(shared / "published" / "runs.csv", leave_out=True)))


def test_small_models_in_one_node_are_predicted_as_well_as_before(shared: Path) -> None:
    hold("one node", figures(validate(shared / "published" / "vtrain_single_node.csv")))


@pytest.mark.parametrize("accelerators", [("A100",), ("H100", "H200"), ("B200", "B300", "GB200", "GB300")])
def test_most_runs_lie_in_their_interval(accelerators: tuple[str, ...]) -> None:
    """From P10 to P90 lie 65 to 95 per cent of the catalogue's runs of each generation."""
    inside = [o.inside for o in validate(None).timed if o.gpu.startswith(accelerators)]
    assert 0.65 <= sum(map(bool, inside)) / len(inside) <= 0.95


def test_every_run_of_the_catalogue_names_its_source() -> None:
    text = files.read_text(files.catalog_path("published_runs.csv")).splitlines()
    head = text[0].split(",")
    assert {"source", "source_locator", "trust"} <= set(head)
    assert len(text) > 100
