"""The ratchet: figures of accuracy that were reached may only improve; and the page of accuracy is that of today."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests_support import differences

from profiles import files
from profiles.files import BadInput
from reports.accuracy import Accuracy
from reports.accuracy_document import accuracy_document
from reports.accuracy_summary import read_summary, summary_of, summary_text, why, with_notes
from reports.compare import TERMS
from reports.headline import headlines
from reports.validate_command import validate

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "accuracy.md"
RECORDS = PAGE.with_suffix("")
COLLECTION = ROOT.parent / "shared" / "published"
NUMBERS = re.compile(r"\d[\d.,]*")
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


@pytest.fixture(scope="module")
def catalogue() -> Accuracy:
    return validate(None)


@pytest.fixture(scope="module")
def collection() -> Accuracy:
    return validate(published("runs.csv"), leave_out=True)


@pytest.fixture(scope="module")
def one_node() -> Accuracy:
    return validate(published("vtrain_single_node.csv"))


def published(name: str) -> Path:
    """Return a file of the published collection, or skip."""
    path = COLLECTION / name
    if not path.exists():
        pytest.skip("../shared with the reference files is absent")
    return path


def test_the_catalogues_runs_are_predicted_as_well_as_before(catalogue: Accuracy) -> None:
    hold("catalogue", figures(catalogue))


def test_the_published_collection_is_predicted_as_well_as_before(collection: Accuracy) -> None:
    hold("collection", figures(collection))


def test_small_models_in_one_node_are_predicted_as_well_as_before(one_node: Accuracy) -> None:
    hold("one node", figures(one_node))


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not part of the wheel")
@pytest.mark.parametrize("name", ["catalogue", "collection", "one_node"])
def test_the_record_is_what_is_predicted_now(name: str, request: pytest.FixtureRequest) -> None:
    recorded: dict[str, Any] = json.loads((RECORDS / f"{name.replace('_', '-')}.json").read_text())
    fresh: dict[str, Any] = json.loads(summary_text(summary_of(request.getfixturevalue(name))))
    # errors that are nearly alike may change places, and the last of them leave the list
    before, after = ({w["id"]: w | {"reason": NUMBERS.sub("#", w["reason"])} for w in side.pop("worst")}
                     for side in (recorded, fresh))
    common = before.keys() & after.keys()
    assert len(common) >= len(before) - 2, "stale: the largest errors are others; run scripts/docs docs/accuracy.md"
    found = differences(recorded, fresh) + [d for i in sorted(common) for d in differences(before[i], after[i], where=i)]
    assert not found, f"stale: run scripts/docs docs/accuracy.md: {found[:5]}"


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not part of the wheel")
def test_the_page_is_made_of_the_records() -> None:
    assert PAGE.read_text() == accuracy_document(RECORDS), "stale; run scripts/docs docs/accuracy.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not part of the wheel")
def test_the_readme_agrees_with_the_page_and_leads_to_it() -> None:
    readme, page = (ROOT / "README.md").read_text(), cells(PAGE.read_text())
    shown = cells(readme.partition("## How far off is it")[2].partition("\n## ")[0])
    assert len(shown) >= 7
    for name, figures_of in shown.items():
        assert {f: v for f, v in figures_of.items() if v != "–"}.items() <= page[name].items(), name
    num_predicted = read_summary(RECORDS / "collection.json").num_predicted
    assert f"949 collected runs, of which {num_predicted} state enough" in " ".join(readme.split())
    for path in ("README.md", "docs/README.md", "docs/validate.md"):
        assert f"]({'docs/' if path == 'README.md' else ''}accuracy.md)" in (ROOT / path).read_text(), path


def cells(text: str) -> dict[str, dict[str, str]]:
    """Return the rows of a document's tables of errors by their first cell: heading -> cell; of a name the first counts."""
    found: dict[str, dict[str, str]] = {}
    head: list[str] = []
    for line in text.splitlines():
        row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] if line.startswith("|") else []
        if row and not head:
            head = row
        elif "MAPE" in head and row and not set(row[0]) <= set("-:"):
            name = f"peak memory, {row[0]}" if head[0] == "counter" else row[0]
            found.setdefault(name, dict(zip(head[1:], row[1:], strict=True)))
        head = head if row else []
    return found


def test_differences_of_records_are_found() -> None:
    assert not differences({"a": [1.0, {"b": "x"}]}, {"a": [1.0005, {"b": "x"}]})
    assert differences({"a": 0.1}, {"a": 0.103}) and differences({"a": 1}, {"a": 2}) and differences({"a": "x"}, {"a": "y"})
    assert differences({"a": []}, {"a": [1]}) and differences({"a": 1}, {}) and not differences(3000.0, 3001.0)


def test_a_record_is_read_as_it_was_written(catalogue: Accuracy, tmp_path: Path) -> None:
    summary = summary_of(catalogue)
    path = files.write_text(tmp_path / "summary.json", summary_text(summary))
    assert summary_text(read_summary(path)) == summary_text(summary)
    assert len(summary.worst) == 20 and summary.within[-1] >= summary.within[0]
    path.write_text(path.read_text().replace('"num_timed"', '"num"'))
    with pytest.raises(BadInput, match=r"summary.json: num_timed: "):
        read_summary(path)


def test_what_is_known_of_an_error_comes_from_other_rows(catalogue: Accuracy) -> None:
    one = catalogue.timed[0]
    twin = replace(one, id="twin", measured_s=2 * (one.measured_s or 1.0), source="elsewhere")
    said = why(one, [one, twin])
    assert "the same settings took" in said and "in 1 other rows" in said and said.startswith(TERMS[one.dominant])
    slow = [replace(one, id=str(i), measured_s=2 * one.predicted_s, tokens_per_step=float(i)) for i in range(3)]
    assert "its source as a whole: -50.0 % over 3 rows" in why(slow[0], slow) and "took" not in why(slow[0], slow)
    assert "settings in part inferred" in why(replace(one, trust="B"), [one])
    noted = with_notes(summary_of(catalogue), {summary_of(catalogue).worst[0].id: "a note"})
    assert noted.worst[0].reason.endswith("; a note") and "a note" not in noted.worst[1].reason


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not part of the wheel")
def test_every_note_is_of_a_run_that_the_page_shows() -> None:
    notes = files.read_mapping(RECORDS / "notes.yaml")
    shown = {w.id for w in read_summary(RECORDS / "collection.json").worst}
    assert notes and set(notes) <= shown


@pytest.mark.parametrize("accelerators", [("A100",), ("H100", "H200"), ("B200", "B300", "GB200", "GB300")])
def test_most_runs_lie_in_their_interval(accelerators: tuple[str, ...], catalogue: Accuracy) -> None:
    """From P10 to P90 lie 65 to 95 per cent of the catalogue's runs of each generation."""
    inside = [o.inside for o in catalogue.timed if o.gpu.startswith(accelerators)]
    assert 0.65 <= sum(map(bool, inside)) / len(inside) <= 0.95


def test_every_run_of_the_catalogue_names_its_source() -> None:
    text = files.read_text(files.catalog_path("published_runs.csv")).splitlines()
    head = text[0].split(",")
    assert {"source", "source_locator", "trust"} <= set(head)
    assert len(text) > 100
