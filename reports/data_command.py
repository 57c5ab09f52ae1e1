"""What `headway data` shows of shards and their rates, and what waiting for data does to a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from executor.data.bench import Stall
from executor.data.shards import Shards
from planner.plan import Plan
from planner.predict import Prediction
from profiles.units import show, significant
from simulator.data_stall import DataProfile, LoadSeconds, blocks_per_sample, load_seconds, read_data_profile


def shards_json(shards: Shards) -> dict[str, Any]:
    """Return what `data prepare` and `data info` print with --json."""
    index = shards.index
    return {
        "path": str(shards.folder), "tokenizer": index.tokenizer.name, "vocab": index.vocab,
        "end_of_document": index.end_of_document, "dtype": index.dtype, "num_documents": index.num_documents,
        "num_tokens": index.num_tokens, "text_bytes": index.text_bytes, "stored_bytes": shards.stored_bytes,
        "block_tokens": index.block_tokens, "num_blocks": shards.num_blocks, "num_shards": len(index.shards),
        "level": index.level, "fingerprint": index.fingerprint,
    }


def shards_table(shards: Shards, seq_lens: Sequence[int]) -> Table:
    """Return shards as a table of quantity and value, with the samples that they hold at some lengths."""
    index = shards.index
    per_token, smaller = index.text_bytes / index.num_tokens, index.num_tokens * shards.token_bytes / shards.stored_bytes
    table = Table(title=str(shards.folder), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("tokens", f"{index.num_tokens:,} of {index.vocab:,} kinds ({index.tokenizer.name}), {index.dtype}")
    table.add_row("documents", f"{index.num_documents:,}, each ended by token {index.end_of_document}")
    table.add_row("text", f"{show(index.text_bytes, 'bytes')}, {significant(per_token)} bytes a token")
    table.add_row("on disk", f"{show(shards.stored_bytes, 'bytes')}, {significant(shards.stored_bytes / index.num_tokens)} "
                  f"bytes a token, {significant(smaller)} times smaller by zstd {index.level}")
    table.add_row("shards, blocks", f"{len(index.shards):,}, {shards.num_blocks:,} of {index.block_tokens:,} tokens")
    for seq_len in seq_lens:
        table.add_row(f"samples of {seq_len:,}", f"{shards.num_samples(seq_len):,}")
    table.add_row("fingerprint", index.fingerprint)
    return table


def rates_table(profile: DataProfile, seq_len: int) -> Table:
    """Return measured rates, and what of them a token takes."""
    table = Table(title="one reader", title_justify="left", caption_justify="left",
                  caption=f"{significant(blocks_per_sample(profile, seq_len))} blocks are fetched for a sample of {seq_len:,}")
    for name in ("part", "rate", "tokens/s"):
        table.add_column(name, justify="left" if name == "part" else "right")
    cold, warm = load_seconds(profile, seq_len), load_seconds(profile, seq_len, in_memory=1.0)
    for part, rate, unit, seconds in (
        ("fetch from storage", profile.storage_bytes_per_s, "bytes_per_s", cold.fetch),
        ("fetch from memory", profile.memory_bytes_per_s, "bytes_per_s", warm.fetch),
        ("check and unpack", profile.decompress_bytes_per_s, "bytes_per_s", cold.decompress),
        ("copy into batches", profile.prepare_tokens_per_s, "", cold.prepare),
        ("all, from storage", 0.0, "", cold.total), ("all, from memory", 0.0, "", warm.total),
    ):
        table.add_row(part, show(rate, unit) if unit else "", show(1.0 / seconds, "count"))
    return table


def stalls_table(stalls: Sequence[Stall]) -> Table:
    """Return predicted beside measured stalls."""
    table = Table(title="share of the time that training waits for data", title_justify="left", caption_justify="left",
                  caption="predicted: 1 - min(G, L)/G; queued: batch by batch through the queue, from an empty cache")
    for name in ("a batch trains in", "is loaded in", "batches", "predicted", "queued", "measured", "first batch"):
        table.add_column(name, justify="right")
    for s in stalls:
        table.add_row(show(s.compute_s, "s"), show(s.load_s, "s"), f"{s.num_batches} x {s.batch}",
                      *(f"{100 * share:.1f} %" for share in (s.predicted, s.queued, s.measured)), show(s.first_s, "s"))
    return table


def bench_json(path: Path, profile: DataProfile, seq_len: int, stalls: Sequence[Stall]) -> dict[str, Any]:
    """Return what `data bench --json` prints."""
    seconds: LoadSeconds = load_seconds(profile, seq_len)
    return {"path": str(path), "seq_len": seq_len, "tokens_per_s": 1.0 / seconds.total} | asdict(profile) | {
        "stalls": [asdict(s) for s in stalls]
    }


def with_data(prediction: Prediction, plan: Plan, path: Path | None) -> Prediction:
    """Return a prediction in which each step waits for its data where loading takes longer than training.

    Every replica of a host has a reader of its own, and they divide the storage's rate.
    """
    if path is None:
        return prediction
    strategy, cluster = plan.strategy, plan.question.cluster
    seq_len, dp = int(strategy.seq_len), int(strategy.dp)
    host = min(cluster.gpus_per_host or cluster.gpus_per_node, cluster.gpus_per_node)
    readers = min(dp, max(1, host // int(strategy.tp * strategy.cp * strategy.pp)))
    tokens = int(strategy.micro_batch * strategy.num_microbatches) * seq_len
    load_s = tokens * load_seconds(read_data_profile(path), seq_len, dp=dp, sharing=readers).total
    p = prediction
    step_s = max(p.step_time_s, load_s)
    longer = step_s / p.step_time_s
    low, high = max(p.p10_s, load_s), max(p.p90_s, load_s)
    days = p.days * longer
    return replace(
        p, step_time_s=step_s, p10_s=low, p90_s=high, tokens_per_s=p.tokens_per_s / longer,
        tokens_per_s_per_gpu=p.tokens_per_s_per_gpu / longer, mfu=p.mfu / longer, hfu=p.hfu / longer,
        breakdown_s=p.breakdown_s | {"data": p.breakdown_s["data"] + step_s - p.step_time_s}, days=days,
        days_p10=days * low / step_s, days_p90=days * high / step_s, gpu_hours=p.gpu_hours * longer,
        usd=None if p.usd is None else p.usd * longer,
    )
