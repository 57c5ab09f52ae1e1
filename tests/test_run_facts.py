"""Published facts of whole runs: every prediction lies within its bounds, and those that are held out are in no fleet."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tests_support import differences

from reports import run_facts
from reports.accuracy_document import facts_text
from reports.run_facts import Compared, compare_fact, compare_facts, facts_json, facts_table, read_facts

RECORD = Path(__file__).resolve().parent.parent / "docs" / "accuracy" / "whole-runs.json"


@pytest.fixture(scope="module")
def compared() -> list[Compared]:
    return compare_facts()


def test_every_prediction_lies_within_its_bounds(compared: list[Compared]) -> None:
    outside = [f"{c.id} {c.what}: {c.predicted:.4g}, bounds {c.low} to {c.high}" for c in compared if c.met is False]
    assert not outside, outside
    assert sum(c.met is True for c in compared) == 45


@pytest.mark.skipif(not RECORD.exists(), reason="the documents are not part of the wheel")
def test_the_record_is_what_is_predicted_now(compared: list[Compared]) -> None:
    found = differences(json.loads(RECORD.read_text()), json.loads(facts_text(compared)))
    assert not found, f"stale: run scripts/docs docs/accuracy.md: {found[:5]}"


def test_bounds_are_not_so_wide_that_anything_is_inside() -> None:
    """Goodput within 8 points, counts and times fitted within a few per cent and their noise, the others within a fifth."""
    for f in read_facts():
        if not f.low:
            continue
        p, low, high = float(f.published), float(f.low), float(f.high)
        widest = {"goodput": 0.0801 / p, "rate_coverage": 0.26}.get(f.quantity, 0.2001)
        if f.use == "fitted":
            widest = 0.051 if f.quantity != "interruptions" else 0.03 + 3.1 / math.sqrt(200 * p)
        assert p * (1 - widest) - 0.01 <= low and high <= p * (1 + widest) + 0.01, f.id


def test_facts_that_are_held_out_say_so_and_those_not_modelled_are_shown(compared: list[Compared]) -> None:
    uses = {u: [c for c in compared if c.use == u] for u in ("fitted", "held out", "spread", "not modelled")}
    assert sum(map(len, uses.values())) == len(compared) == len({c.id for c in compared})
    assert len(uses["held out"]) >= 16
    assert all(c.met is None for c in uses["spread"] + uses["not modelled"])
    assert all(c.source for c in compared) and all(c.note for c in uses["not modelled"])


def test_a_wrong_model_would_be_outside() -> None:
    """What is fitted tests the draws, what is held out tests the rest: halve either and it is outside."""
    facts = {f.id: f for f in read_facts()}
    def outside(fact_id: str, **change: str) -> bool:
        return compare_fact(replace(facts[fact_id], **change), list(facts.values())).met is False
    assert outside("P21", interval="3 h") and outside("P26", storage="20 GB/s") and outside("P23", key="node failure")
    assert outside("P02", nodes="1024") and outside("P38", interval="2 h") and outside("P44", storage="1 GB/s")


def test_facts_agree_with_the_reference_file(shared: Path) -> None:
    with (shared / "published" / "reliability_facts.csv").open() as f:
        rows = list(csv.DictReader(f))
    theirs = {r["id"]: r for r in rows}
    mine = {f.id: float(f.published) for f in read_facts()}
    counts = [float(r["interruptions"]) for r in rows if r["id"] in {f"F{i:03}" for i in range(1, 21)}]
    assert [mine[f"P{i:02}"] for i in range(1, 21)] == counts
    for ours, reference in {"P22": "F023", "P23": "F024", "P24": "F025", "P25": "F026", "P33": "F030", "P34": "F031",
                            "P40": "F042", "P41": "F045", "P42": "F029"}.items():
        assert mine[ours] == float(theirs[reference]["mttf_h"])
    for ours, reference in {"P21": "F001", "P35": "F031", "P38": "F036", "P43": "F027", "P44": "F039", "P45": "F040"}.items():
        assert mine[ours] == float(theirs[reference]["effective_time_fraction"])
    for i in range(5):
        published = {"llama-3.1-8b": "F049", "llama-3.1-70b": "F050", "llama-3.1-405b": "F051", "nemotron4-15b": "F052",
                     "nemotron4-340b": "F053"}
        fact = next(f for f in read_facts() if f.id == f"P{28 + i}")
        assert float(fact.published) == float(theirs[published[fact.model]]["checkpoint_size_gb"])


def test_the_table_and_the_json_show_all(compared: list[Compared]) -> None:
    table = facts_table(compared)
    assert table.row_count == len(compared) and "45 of 45 inside" in str(table.title) and "16 of 16" in str(table.title)
    rows = facts_json(compared)["facts"]
    assert [r["id"] for r in rows] == [c.id for c in compared] and {"published", "predicted", "use", "source"} <= set(rows[0])


def test_the_interval_of_the_others_leaves_the_one_out() -> None:
    low, middle, high = run_facts.interval_of_others({"a": 1.0, "b": 4.0, "c": 1e9}, "c")
    assert middle == pytest.approx(2.0) and low < 1.0 < 4.0 < high
