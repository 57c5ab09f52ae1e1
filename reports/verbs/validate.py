"""`headway validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from profiles.files import BadInput
from reports.console import console, progress, status
from reports.local import validate_local
from reports.local_report import local_json, local_tables
from reports.run_facts import compare_facts, facts_json, facts_table
from reports.validate_command import COLUMNS_HELP, accuracy_json, accuracy_tables, calibrate_runs, read_before
from reports.validate_command import validate as validate_runs
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples(
    "validate runs.csv --where 'gpu=H100*'", "validate runs.csv --leave-out", "validate --reliability",
    "validate --local --cases 3",
))
def validate(
    runs: Annotated[Path | None, typer.Argument(help=COLUMNS_HELP)] = None,
    where: Annotated[list[str] | None, typer.Option(
        help="Only rows with column=glob or column>=number, like 'gpu=H100*'; may be repeated."
    )] = None,
    out: Annotated[Path, typer.Option(help="The folder for the page, as HTML and Markdown, and for every row.")]
    = Path("out/validate"),
    before: Annotated[Path | None, typer.Option(help="The accuracy.json of an earlier run, to show what changed.")] = None,
    leave_out: Annotated[bool, typer.Option(
        help="Predict each row also by numbers that were fitted without its source (refits; about a minute)."
    )] = False,
    calibrate: Annotated[Path | None, typer.Option(
        help="Fit the calibrations on these runs, and write them into this folder instead of predicting."
    )] = None,
    local: Annotated[bool, typer.Option(
        "--local", help="Predict and run small models on this machine instead (some minutes)."
    )] = False,
    profile: Annotated[Path | None, typer.Option(help="With --local: a profile file. [measure this machine first]")] = None,
    cases: Annotated[int | None, typer.Option(help="With --local: only so many cases, the cheapest. [all]")] = None,
    reliability: Annotated[bool, typer.Option(
        "--reliability", help="Compare published facts of whole runs (failures, goodput, checkpoints) with predictions instead."
    )] = False,
    as_json: Json = False,
) -> None:
    """Predict published measured runs, and show how far off the predictions are."""
    if reliability:
        if runs or where or local or before or leave_out or calibrate:
            raise BadInput("--reliability: takes no runs and no other option than --json")
        _validate_reliability(as_json)
    if local:
        _validate_local(out, profile, cases, [name for name, given in (
            ("RUNS", runs), ("--where", where), ("--before", before), ("--leave-out", leave_out), ("--calibrate", calibrate)
        ) if given], as_json)
        return
    for name, given in (("--profile", profile), ("--cases", cases)):
        if given is not None:
            raise BadInput(f"{name}: goes with --local only")
    if calibrate is not None:
        with progress("fitting on measured runs") as advance:
            written = calibrate_runs(runs, where or (), calibrate, on_progress=lambda share: advance(share, ""))
        if as_json:
            print_json({"files": list(map(str, written))})
        else:
            console.print("\n".join(map(str, written)), soft_wrap=True)
        return
    earlier = read_before(before) if before else None
    with progress("predicting measured runs") as advance:
        accuracy = validate_runs(
            runs, where or (), out, on_progress=lambda share: advance(share, ""), leave_out=leave_out
        )
    if as_json:
        print_json(accuracy_json(accuracy))
        return
    for table in accuracy_tables(accuracy, earlier):
        console.print(table)
    console.print(f"{out / 'accuracy.html'}, the same as accuracy.md, and {out / 'rows.csv'}", soft_wrap=True)


def _validate_reliability(as_json: bool) -> NoReturn:
    with progress("simulating published runs") as advance:
        compared = compare_facts(lambda share: advance(share, ""))
    if as_json:
        print_json(facts_json(compared))
    else:
        console.print(facts_table(compared))
    raise typer.Exit(1 if any(c.met is False for c in compared) else 0)


def _validate_local(out: Path, profile: Path | None, cases: int | None, others: list[str], as_json: bool) -> None:
    if others:
        raise BadInput(f"{others[0]}: does not go with --local, which makes its own runs")
    with progress("predicting and running on this machine") as advance:
        result = validate_local(out, profile=profile, num_cases=cases, on_progress=advance)
    for warning in result.warnings:
        status.print(f"headway: warning: {warning}", soft_wrap=True, highlight=False)
    if as_json:
        print_json(local_json(result))
        return
    for table in local_tables(result):
        console.print(table)
    console.print(f"{out / 'accuracy.html'}, the same as accuracy.md, and {out / 'rows.csv'}", soft_wrap=True)
