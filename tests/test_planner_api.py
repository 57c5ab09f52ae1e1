"""The planner in Python: four lines in a notebook."""

from __future__ import annotations

import doctest
import sys

import pytest

from planner import frame, plan, read_plan, write_plan
from profiles.files import BadInput

SMALL = ("tp=1,2", "pp=1", "cp=1", "micro_batch=4,8", "recompute=none", "zero=0,1", "order=tp-cp-dp-pp")


def test_the_example_in_its_docstring() -> None:
    found = doctest.testmod(sys.modules["planner.api"])
    assert found.attempted >= 4 and not found.failed


def test_a_plan_and_what_was_considered(tmp_path) -> None:  # type: ignore[no-untyped-def]
    best = plan("gpt2", "dgx-h100:1", 1e9, search_axes=SMALL, seq_len=512)
    table = frame(best)
    assert table["step_time_s"].is_monotonic_increasing and len(table) == 1 + len(best.runners_up)
    assert table.loc[0, "dp"] * table.loc[0, "tp"] == 8 and table.loc[0, "seq_len"] == 512
    parts = table.filter(regex="^breakdown_").sum(axis=1)
    assert parts.to_numpy() == pytest.approx(table["step_time_s"].to_numpy(), rel=1e-5)
    again = read_plan(write_plan(best, tmp_path / "a.yaml"))
    assert frame(again).equals(table)


def test_where_nothing_fits() -> None:
    with pytest.raises(BadInput, match="nothing fits: no strategy of"):
        plan("llama-3.1-405b", "dgx-h100:1", "1B", search_axes=[*SMALL, "tp=1"])
