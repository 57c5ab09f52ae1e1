"""`headway report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from executor.journal import read_journal
from executor.run import read_run
from planner.embedded import is_page
from planner.plan import read_plan
from profiles import files
from reports.console import console, progress, screen_width
from reports.page import brief, gather, page_target, report_of, summary, write_report
from reports.verbs.options import refuse_own_input
from reports.verbs.style import Json, examples, print_json, verb_app
from simulator.replay import rank_names
from simulator.timeline import write_trace

app = verb_app()


@app.command(epilog=examples("report plan.yaml", "report plan.yaml out/run --out run.html", "report plan.yaml -o plan.md",
                             "report plan.yaml --summary", "report plan.html --trace trace.json -o again.html"))
def report(
    plan: Annotated[Path, typer.Argument(help="A plan file, or a page with one in it.")],
    run: Annotated[Path | None, typer.Argument(help="A run folder, to show measured beside predicted.")] = None,
    out: Annotated[Path | None, typer.Option(
        "--out", "-o", help="What to write: a page (.html) or Markdown (.md). [the plan's name with .html; of a page "
        "with -again.html]"
    )] = None,
    screen: Annotated[bool, typer.Option("--summary", help="Show it on one screen, and write nothing but what --out names.")]
    = False,
    trace: Annotated[Path | None, typer.Option(help="Write the step's trace, too, and link it in the page.")] = None,
    as_json: Json = False,
) -> None:
    """Report a plan, and the run that was made of it: one self-contained HTML page, Markdown, or one screen."""
    plan_ = read_plan(plan)
    beside = plan.with_name(f"{plan.stem}-again.html") if is_page(plan) else plan.with_suffix(".html")
    target = out or (None if screen else beside)
    for path, option in ((target, "out"), (trace, "trace")):
        refuse_own_input(plan, path, option)
    if target is not None:
        page_target(target)
    if trace is not None:
        files.check_target(trace)
    with progress("reporting") as advance:
        found = brief(plan_, read_run(run) if run else None, read_journal(run) if run else ())
        if trace is not None:
            write_trace(trace, found.timeline, rank_names(plan_.strategy))
        page = None
        if target is not None:
            linked = Path(os.path.relpath(trace, target.parent)).as_posix() if trace is not None else ""
            page = write_report(report_of(gather(found, lambda share: advance(share, "")), linked), target)
    if as_json:
        print_json({"path": page and str(page), "trace": trace and str(trace), "summary": summary(found).splitlines()})
        return
    if screen:
        print(summary(found, plan, screen_width()))
    if page is not None:
        console.print(f"{'page' if is_page(page) else 'report'} in {page}", soft_wrap=True)
