"""`headway compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reports.compare_command import compare_json, compare_paths, compare_screen, write_waterfall
from reports.console import console, progress
from reports.verbs.options import refuse_own_input
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples(
    "compare a.yaml b.yaml", "compare plan.yaml out/run --figure waterfall.svg", "compare plan.yaml traces/",
))
def compare(
    a: Annotated[Path, typer.Argument(help="A plan file or a run folder.")],
    b: Annotated[list[Path], typer.Argument(
        help="A plan file, a run folder, or torch.profiler traces of a step: a file for each rank, or their folder."
    )],
    figure: Annotated[Path | None, typer.Option(help="Write the waterfall as an SVG file, too.")] = None,
    as_json: Json = False,
) -> None:
    """Compare plans, runs, one of each, or a plan with traces of it: what leads from A to B, term by term."""
    with progress("comparing") as advance:
        comparison, fall = compare_paths(a, b, lambda share: advance(share, ""))
    if figure is not None:
        for read in (a, *b):
            refuse_own_input(read, figure, "figure")
        write_waterfall(fall, figure)
    if as_json:
        print_json(compare_json(comparison, fall))
    else:
        for table in compare_screen(comparison, fall):
            console.print(table)
