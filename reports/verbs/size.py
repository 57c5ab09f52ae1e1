"""`headway size`."""

from __future__ import annotations

from reports.console import console
from reports.size_command import SizeOptions
from reports.size_command import size as size_run
from reports.size_tables import size_json, size_screen
from reports.verbs.options import unfolded
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples(
    "size --cluster dgx-h100:16 --budget 2M", "size --cluster dgx-h100:16 --days 30", "size --flop 1e24",
    "size --cluster dgx-h100:16 --model llama-3-8b --days 30",
))
@unfolded
def size(asked: SizeOptions, as_json: Json = False) -> None:
    """Size a run: the model and tokens that a budget is best spent on, and how large a batch may be."""
    report = size_run(asked)
    if as_json:
        print_json(size_json(report))
    else:
        console.print(size_screen(report))
