"""`headway catalog`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from profiles.files import BadInput
from reports.catalog_tables import KINDS, catalog_rows
from reports.console import console
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples("catalog", "catalog prices", "catalog clusters --json"))
def catalog(
    kind: Annotated[str, typer.Argument(
        help=f"{', '.join(KINDS)}.", autocompletion=lambda incomplete: [k for k in KINDS if k.startswith(incomplete)],
    )] = "models",
    as_json: Json = False,
) -> None:
    """List what the catalogue holds, with sources."""
    if kind not in KINDS:
        raise BadInput(f"kind: {kind!r} is not in the catalogue; it has {', '.join(KINDS)}")
    head, rows = catalog_rows(kind)
    if as_json:
        print_json({kind: [dict(zip(head, row, strict=True)) for row in rows]})
        return
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
