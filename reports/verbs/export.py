"""`headway export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from executor.exports import EXPORTS, export_plan, write_export
from planner.plan import read_plan
from reports.console import console, status
from reports.verbs.options import PlanArg, refuse_own_input
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples(
    "export plan.yaml --to megatron", "export plan.yaml --to torchtitan -o titan", "export plan.yaml --to slurm",
))
def export(
    plan: PlanArg,
    to: Annotated[str, typer.Option(
        help=f"The framework or launcher: {', '.join(EXPORTS)}.",
        autocompletion=lambda incomplete: [name for name in EXPORTS if name.startswith(incomplete)],
    )],
    out: Annotated[Path | None, typer.Option(
        "-o", "--out", help="The folder to write, or the name of a single file. [out/export/TO]"
    )] = None,
    as_json: Json = False,
) -> None:
    """Write a plan in the words of the framework or launcher that runs it, or say what cannot be said there."""
    target = out or Path("out/export") / to
    refuse_own_input(plan, target, "out")
    exported = export_plan(read_plan(plan), to)
    written = write_export(exported, target) if exported.files else []
    if as_json:
        print_json({"target": to, "files": list(map(str, written)), "notes": list(exported.notes),
                    "refusals": list(exported.refusals)})
    else:
        for path in written:
            console.print(str(path), soft_wrap=True, highlight=False)
        for note in exported.notes:
            console.print(f"- {note}", soft_wrap=True, highlight=False, markup=False)
        for reason in exported.refusals:
            status.print(f"headway: {to}: {reason}", soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(1 if exported.refusals else 0)
