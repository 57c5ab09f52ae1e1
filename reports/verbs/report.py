"""`headway report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from executor.run import read_run
from planner.plan import read_plan
from planner.predict import predict_replayed
from reports.console import console
from reports.page import write_page
from reports.verbs.options import PlanArg, refuse_own_input
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples("report plan.yaml", "report plan.yaml out/run --out run.html"))
def report(
    plan: PlanArg,
    run: Annotated[Path | None, typer.Argument(help="A run folder, to show measured beside predicted.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write. [the plan's name with .html]")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page."""
    plan_ = read_plan(plan)
    target = out or plan.with_suffix(".html")
    refuse_own_input(plan, target, "out")
    page = write_page(plan_, target, run=read_run(run) if run else None,
                      timeline=predict_replayed(plan_.question, plan_.strategy)[1])
    if as_json:
        print_json({"path": str(page)})
    else:
        console.print(f"page in {page}", soft_wrap=True)
