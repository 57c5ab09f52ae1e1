"""What `headway compare` does: two plans, two runs or one of each, or a plan and traces of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from executor.run import Run, read_run
from planner.plan import Plan, read_plan
from profiles import files
from profiles.files import BadInput
from reports.compare import Comparison, compare_plan_run, compare_plans, compare_runs, comparison_table
from reports.figures import between, svg
from reports.traced import compare_plan_trace, trace_files
from reports.waterfall import WORDS, Waterfall, waterfall_between, waterfall_table


def compare_paths(a: Path, others: list[Path], on_progress: Callable[[float], None]) -> tuple[Comparison, Waterfall | None]:
    """Return the comparison of what lies at some paths, and the waterfall; none of traces, or of runs without passes."""
    first = _side(a)
    if traces := trace_files(others):
        if isinstance(first, Run):
            raise BadInput(f"a: {a}: is a run folder; traces are compared with a plan file")
        return compare_plan_trace(first, traces, on_progress), None
    if len(others) > 1:
        raise BadInput(f"b: {others[1]}: only of traces can there be several; give one plan file or run folder")
    second = _side(others[0])
    # a prediction stands in front of what was measured, however they were named
    if isinstance(first, Run) and isinstance(second, Plan):
        first, second = second, first
    return compare_sides(first, second), waterfall_between(first, second)


def _side(path: Path) -> Plan | Run:
    return read_run(path) if path.is_dir() else read_plan(path)


def compare_sides(first: Plan | Run, second: Plan | Run) -> Comparison:
    """Return two plans, two runs, or a plan and its run, quantity by quantity."""
    if isinstance(first, Plan):
        return compare_plan_run(first, second) if isinstance(second, Run) else compare_plans(first, second)
    assert isinstance(second, Run)
    return compare_runs(first, second)


def write_waterfall(fall: Waterfall | None, path: Path) -> Path:
    """Write a waterfall as an SVG file."""
    if fall is None:
        raise BadInput("figure: there is no waterfall of traces, or of a run that recorded no pass")
    title = f"from {fall.sides[0]} to {fall.sides[1]}, term by term"
    drawn = between(fall.frame, fall.sides, (fall.first_s, fall.second_s), WORDS[fall.unit])
    return files.write_text(path, svg(drawn, "between", title, font="sans-serif"))


def compare_json(comparison: Comparison, fall: Waterfall | None) -> dict[str, Any]:
    """Return what `compare --json` prints."""
    return comparison.as_dict() | (fall.as_dict() if fall else {})


def compare_screen(comparison: Comparison, fall: Waterfall | None) -> list[Table]:
    """Return what `compare` shows."""
    if fall is None:
        return [comparison_table(comparison)]
    # the parts of the step stand in the waterfall; beside a run they show how far off each was predicted
    parts = comparison.breakdown if "measured" in comparison.sides else ()
    return [comparison_table(replace(comparison, breakdown=parts)), waterfall_table(fall)]
