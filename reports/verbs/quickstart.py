"""`headway quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reports.quickstart import quickstart as run_quickstart
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples("quickstart", "quickstart --out tour --steps 10"))
def quickstart(
    out: Annotated[Path, typer.Option(help="The folder for everything that it makes.")] = Path("out/quickstart"),
    seconds: Annotated[float, typer.Option(help="About how long to measure this machine.")] = 45.0,
    steps: Annotated[int, typer.Option(help="Steps to train.")] = 30,
    ranks: Annotated[int | None, typer.Option(help="Local ranks. [one for each core]")] = None,
    as_json: Json = False,
) -> None:
    """Show the whole loop: plan Llama-3-8B, then profile, plan, replay, train and compare on this machine."""
    result = run_quickstart(out, seconds=seconds, steps=steps, ranks=ranks, quiet=as_json)
    if as_json:
        print_json(result)
