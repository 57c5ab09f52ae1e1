"""`headway data`: prepare, check, info and bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from executor.data.bench import check_samples, measure_rates, measure_stalls
from executor.data.check import faults
from executor.data.prepare import BLOCK_TOKENS, LEVEL, SHARD_BYTES
from executor.data.prepare import prepare as prepare_shards
from executor.data.shards import open_shards
from executor.data.texts import find_texts
from executor.data.tokens import BYTES, load_tokenizer
from profiles import files
from profiles.files import BadInput
from profiles.units import parse, show
from reports.console import console, progress, status
from reports.data_command import bench_json, rates_table, shards_json, shards_table, stalls_table
from reports.verbs import VERBS
from reports.verbs.style import Json, examples, print_json, verb_app
from simulator.data_stall import write_data_profile

app = verb_app(help=VERBS["data"], no_args_is_help=True, epilog=examples(
    "data prepare corpus/ -o shards", "data check shards", "data bench shards --seq-len 4096",
))
ShardsArg = Annotated[Path, typer.Argument(help="A folder that `headway data prepare` made.")]


@app.command("prepare")
def data_prepare(
    texts: Annotated[list[Path], typer.Argument(
        help="Text: .txt (a document each), .jsonl (one on each line), with .gz or .zst behind; or folders of them."
    )],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.")] = Path("shards"),
    tokenizer: Annotated[str, typer.Option(help="'bytes', or a tokenizer.json of Hugging Face's tokenizers.")] = BYTES,
    end_of_document: Annotated[str | None, typer.Option(help="The token that ends a document. [by its usual names]")] = None,
    field: Annotated[str, typer.Option(help="Which field of .jsonl holds the text.")] = "text",
    workers: Annotated[int | None, typer.Option(help="Processes that tokenise. [one for each core]")] = None,
    level: Annotated[int, typer.Option(help="Level of zstd: 1 is fast, 19 is small.")] = LEVEL,
    block_tokens: Annotated[int, typer.Option(help="Tokens that are compressed together.")] = BLOCK_TOKENS,
    shard_size: Annotated[str, typer.Option(help="Bytes of a shard.")] = show(SHARD_BYTES, "bytes"),
    as_json: Json = False,
) -> None:
    """Tokenise text, pack, compress and checksum it; the folder appears when it is whole."""
    kind, size = load_tokenizer(tokenizer, end_of_document), parse(shard_size, "bytes", "shard_size")
    left_out = find_texts(texts)[1]
    with progress("preparing data") as advance:
        shards = prepare_shards(texts, out, kind, field=field, workers=workers, level=level, block_tokens=block_tokens,
                                shard_bytes=int(size), on_progress=lambda share: advance(share, ""))
    if left_out:
        status.print(f"headway: warning: {left_out:,} files that are no .txt or .jsonl were left out", soft_wrap=True)
    if as_json:
        print_json(shards_json(shards))
    else:
        console.print(shards_table(shards, ()))


@app.command("check")
def data_check(shards: ShardsArg, as_json: Json = False) -> None:
    """Read every block and name those that are damaged. Exit status 1 if any is."""
    opened = open_shards(shards)
    with progress("checking blocks") as advance:
        found = faults(opened, lambda share: advance(share, ""))
    if as_json:
        print_json({"ok": not found, "num_blocks": opened.num_blocks, "faults": found})
    else:
        console.print("\n".join(found or [f"all {opened.num_blocks:,} blocks are whole"]), soft_wrap=True, highlight=False)
    raise typer.Exit(1 if found else 0)


@app.command("info")
def data_info(
    shards: ShardsArg,
    seq_len: Annotated[list[int] | None, typer.Option(help="Count samples of this length; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is in shards."""
    opened, lengths = open_shards(shards), seq_len or [2048, 4096, 8192]
    for length in seq_len or ():
        check_samples(opened, length)
    if as_json:
        print_json(shards_json(opened) | {"num_samples": {str(length): opened.num_samples(length) for length in lengths}})
    else:
        console.print(shards_table(opened, lengths))


@app.command("bench")
def data_bench(
    shards: ShardsArg,
    seq_len: Annotated[int, typer.Option(help="Tokens of a sample.")] = 2048,
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 15.0,
    throttle: Annotated[str | None, typer.Option(help="Read no faster than this, like 20MB/s: a slower disk.")] = None,
    out: Annotated[Path, typer.Option(help="The file of rates to write, for `headway simulate --data`.")] = Path("data.yaml"),
    as_json: Json = False,
) -> None:
    """Measure fetching, unpacking and copying, and show predicted beside measured waiting for data."""
    opened, limit = open_shards(shards), parse(throttle, "bytes_per_s", "throttle") if throttle else None
    check_samples(opened, seq_len)
    if limit == 0 or not seconds > 0:
        raise BadInput(f"throttle, seconds: must be more than zero (are {throttle}, {seconds})")
    files.check_target(out)
    with progress("measuring shards") as advance:
        rates = measure_rates(opened, seq_len, seconds=seconds / 3, bytes_per_s=limit)
        advance(1 / 3, "waiting")
        stalls = measure_stalls(opened, rates, seq_len, seconds=2 * seconds / 3, bytes_per_s=limit)
    write_data_profile(rates, out)
    if as_json:
        print_json(bench_json(out, rates, seq_len, stalls))
        return
    console.print(rates_table(rates, seq_len))
    console.print(stalls_table(stalls))
    console.print(f"rates in {out}", soft_wrap=True)
