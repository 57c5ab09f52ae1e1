"""`headway whatif`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.plan import read_plan
from reports.console import console, progress
from reports.verbs.options import refuse_own_input
from reports.verbs.style import Json, examples, names_of, print_json, verb_app
from reports.whatif_command import WhatIfOptions, what_if, whatif_json
from reports.whatif_page import whatif_target, write_whatif
from reports.whatif_tables import whatif_screen

app = verb_app()


@app.command(epilog=examples(
    "whatif plan.yaml", "whatif plan.yaml --set network=200Gb/s,400Gb/s,800Gb/s --out network.html",
    "whatif plan.yaml --set failure_rate=x2 --set price=x0.5", "whatif a.yaml b.yaml --set network=100Gb/s..800Gb/s:8",
))
def whatif(
    plans: Annotated[list[Path], typer.Argument(help="A plan file; or two, to see where they cross.")],
    set_: Annotated[list[str] | None, typer.Option(
        "--set", help="An input and its values, like network=400Gb/s,800Gb/s, failure_rate=x2 or tp=2..16:4; repeatable."
    )] = None,
    replan: Annotated[bool, typer.Option("--replan", help="Search the strategy again at every point.")] = False,
    tornado: Annotated[bool, typer.Option("--tornado", help="What matters most; also where nothing is set.")] = False,
    by: Annotated[str, typer.Option(help="What inputs are ranked and plans compared by: days or usd.")] = "days",
    replay: Annotated[bool, typer.Option("--replay", help="Replay every point instead of the closed form.")] = False,
    fleet: Annotated[str, typer.Option(
        help="How often what fails; a name or a YAML.", autocompletion=names_of("reliability"),
    )] = "published",
    out: Annotated[Path | None, typer.Option(help="Write a page (.html), the figure (.svg) or the rows (.csv), too.")] = None,
    as_json: Json = False,
) -> None:
    """Change inputs of a plan: sweeps, break-even points, and what matters most. Exit status 1 if nothing of it fits."""
    for plan in plans if out is not None else ():
        refuse_own_input(plan, out, "out")
    target = None if out is None else whatif_target(out)
    options = WhatIfOptions(sets=tuple(set_ or ()), replan=replan, tornado=tornado, by=by, replay=replay, fleet=fleet)
    with progress("trying what if") as advance:
        found = what_if(tuple(read_plan(p) for p in plans), tuple(map(str, plans)), options, lambda share: advance(share, ""))
    if target is not None:
        write_whatif(found, target)
    if as_json:
        print_json(whatif_json(found))
    else:
        console.print(whatif_screen(found))
        if out is not None:
            console.print(f"in {out}", soft_wrap=True)
    raise typer.Exit(0 if found.can_be else 1)
