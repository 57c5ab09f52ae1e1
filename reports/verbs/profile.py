"""`headway profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.shapes import model_cases
from profiles import files
from profiles.families import load_model
from profiles.measure import measure_machine
from profiles.measure.devices import num_devices
from profiles.tables import write_table
from reports.console import console, progress
from reports.verbs.style import Json, examples, names_of, print_json, verb_app

app = verb_app()


@app.command(epilog=examples(
    "profile --out here.csv", "profile --device cuda --model llama-3-8b", "plan gpt2 local --profile here.csv --tokens 10M",
))
def profile(
    out: Annotated[Path, typer.Option(help="The profile file to write.")] = Path("profile.csv"),
    ranks: Annotated[int | None, typer.Option(help="Processes that measure at once. [one for each core or GPU]")] = None,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 45.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[list[str] | None, typer.Option(
        help="fp32, bf16, fp16 or, on CUDA, fp8; may be repeated. [all of the GPU's; fp32 on CPU]"
    )] = None,
    model: Annotated[str | None, typer.Option(
        help="Measure the very shapes that this model needs, too.", autocompletion=names_of("models"),
    )] = None,
    seq_len: Annotated[int | None, typer.Option(help="Their sequence length. [the model's context, at most 8192]")] = None,
    global_batch: Annotated[int | None, typer.Option(help="Their sequences in a step. [about 4 Mi tokens]")] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: kernels, collectives, copies and disk. Then: `headway plan MODEL local --profile FILE`."""
    num_ranks = ranks if ranks is not None else num_devices(device)
    files.make_folder(out.resolve().parent)
    cases = model_cases(load_model(model), num_ranks, device, seq_len, global_batch) if model else []
    with progress("measuring this machine") as advance:
        table = measure_machine(
            num_ranks=num_ranks, cases=cases, device=device, seconds=seconds, folder=out.resolve().parent, dtypes=dtype,
            on_progress=lambda stage, share: advance(share, stage),
        )
    write_table(table, out)
    if as_json:
        print_json({"path": str(out), "rows": len(table.rows)} | table.head)
    else:
        console.print(f"{len(table.rows)} measured costs of {num_ranks} ranks in {out}", soft_wrap=True)
