"""The report of a plan, and of the run that was made of it: one HTML page, the same as Markdown, and one screen.

A section is a function from findings to a value (a title, a sentence, figures with their tables); HTML and Markdown are
renderings of these values. The screen is the verdict and the sentences (`gist`) that closed forms and one replay give. A new
section is a new file, one line in `report_of` and one in `terminal.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from executor.journal import Line
from executor.run import Run
from planner.plan import Plan, write_plan
from profiles import files
from profiles.files import BadInput
from reports.page.alternatives import alternatives
from reports.page.evidence import evidence
from reports.page.findings import Brief, Findings, brief, gather
from reports.page.html import html
from reports.page.markdown import markdown
from reports.page.measured import measured
from reports.page.pool import pool_section
from reports.page.risk import risk
from reports.page.scaling import scaling
from reports.page.step import step
from reports.page.terminal import summary
from reports.page.values import Report
from reports.page.verdict import bill_section, verdict
from reports.page.why import why

__all__ = ["Brief", "Findings", "Report", "brief", "gather", "html", "markdown", "page_target", "render_page", "report_of",
           "summary", "write_page", "write_report"]

SUFFIXES = (".html", ".htm", ".md")


def report_of(found: Findings, trace: str = "") -> Report:
    """Return the report of what was found; `trace` is the name of a trace beside it."""
    unlike = [pool_section(found)] if found.question.cluster.parts else []
    sections = [bill_section(found), why(found), *unlike, alternatives(found), scaling(found), step(found, trace), risk(found)]
    if found.run is not None:
        sections.append(measured(found, found.run))
    return Report(verdict=verdict(found), sections=(*sections, evidence(found, plan_text(found.plan))))


def render_page(plan: Plan, *, run: Run | None = None, trace: str = "") -> str:
    """Return the page's HTML; the same values give the same text."""
    return html(report_of(gather(brief(plan, run)), trace))


def page_target(path: Path) -> Path:
    """Return where a report will be written, if it can be: before long work."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"out: {path}: must end with {', '.join(SUFFIXES)}")
    return files.check_target(path)


def write_page(
    plan: Plan, path: str | Path, *, run: Run | None = None, trace: str = "", journal: Sequence[Line] = (),
) -> Path:
    """Write the report of a plan as HTML or, where the name ends so, Markdown, with the run beside it if there is one.

    `trace` is the name of a trace beside the page; `journal` that of the run.
    """
    target = page_target(Path(path))
    return write_report(report_of(gather(brief(plan, run, journal)), trace), target)


def write_report(report: Report, target: Path) -> Path:
    """Write a report as the ending of a file's name says."""
    return files.write_text(target, markdown(report) if target.suffix.lower() == ".md" else html(report))


def plan_text(plan: Plan) -> str:
    """Return the plan file's text; a profile is named as if it lay beside the file."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder).resolve() / "plan.yaml"
        beside = replace(plan, profile=target.parent / plan.profile.name if plan.profile else None)
        return files.read_text(write_plan(beside, target))
