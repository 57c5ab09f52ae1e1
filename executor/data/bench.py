"""Measuring shards: the rates of fetching, unpacking and preparing, and how long training that only sleeps waits for data."""

from __future__ import annotations

import datetime
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from executor.data.feed import ORDER_CHUNK
from executor.data.reader import DEPTH, Clock, Kept, Prefetch, Reader, throttled, touched_blocks
from executor.data.shards import WINDOW, Fetch, Shards, decode_block, fetch_block
from profiles.files import BadInput
from profiles.units import show
from simulator.data_stall import DataProfile, load_seconds, stall_share, waits

MIN_BLOCKS, MIN_BATCHES = 4, 20
COPIED_TOKENS = 1 << 18
LOAD_S = 0.02
"""Seconds that the loader has for a batch at most: a sleep ends a tenth of a millisecond late."""
PACES = (0.5, 0.8, 1.0, 1.25, 2.0)
"""Seconds of training a batch over those of loading it: from bound by data to bound by computation."""
Sleep = Callable[[float], None]


def measure_rates(
    shards: Shards, seq_len: int, *, seconds: float = 4.0, bytes_per_s: float | None = None,
    clock: Clock = time.perf_counter, sleep: Sleep = time.sleep,
) -> DataProfile:
    """Return what one reader does; `bytes_per_s` throttles what is read from storage, as a slower one would.

    Blocks are fetched by chance, first with the page cache empty, then from it, then unpacked, then copied into batches.
    """
    part_s = seconds / 4
    chosen = np.random.default_rng(0).permutation(shards.num_blocks).tolist()
    slow = _storage(bytes_per_s, clock, sleep)
    drop_cache(shards)
    begun_s = clock()
    stored: list[bytes] = []
    while len(stored) < len(chosen) and (len(stored) < MIN_BLOCKS or clock() - begun_s < part_s):
        stored.append(slow(shards, chosen[len(stored)]))
    storage_s = clock() - begun_s
    blocks = chosen[: len(stored)]
    memory_s = _mean_s(lambda: [fetch_block(shards, block) for block in blocks], part_s, clock)
    decompress_s = _mean_s(lambda: [decode_block(shards, b, data).size for b, data in zip(blocks, stored, strict=True)],
                           part_s, clock)
    size = sum(map(len, stored))
    return DataProfile(
        storage_bytes_per_s=size / storage_s, memory_bytes_per_s=size / memory_s,
        decompress_bytes_per_s=sum(map(shards.tokens_in, blocks)) * shards.token_bytes / decompress_s,
        prepare_tokens_per_s=_prepare_rate(shards, seq_len, part_s, clock), num_tokens=shards.index.num_tokens,
        token_bytes=shards.token_bytes, block_tokens=shards.index.block_tokens,
        stored_bytes_per_token=shards.stored_bytes / shards.index.num_tokens, window=WINDOW,
        depth=DEPTH, source=_source(shards, bytes_per_s),
    )


def _storage(bytes_per_s: float | None, clock: Clock, sleep: Sleep) -> Fetch:
    return throttled(fetch_block, bytes_per_s, clock, sleep) if bytes_per_s else fetch_block


def drop_cache(shards: Shards) -> None:
    """Ask the system to forget what it holds of the shards in memory (Linux: posix_fadvise(2)); others ignore it."""
    for shard in shards.index.shards if hasattr(os, "posix_fadvise") else ():
        with (shards.folder / shard.file).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _mean_s(do: Callable[[], Any], budget_s: float, clock: Clock) -> float:
    """Return the mean seconds of doing something again and again."""
    begun_s, times = clock(), 0
    while not times or clock() - begun_s < budget_s:
        do()
        times += 1
    return (clock() - begun_s) / times


def _prepare_rate(shards: Shards, seq_len: int, budget_s: float, clock: Clock) -> float:
    """Return tokens per second of batches whose blocks are in the reader's cache, with the share of finding their order."""
    order, reader = shards.order(seq_len, seed=0), Reader(shards, seq_len)
    order_s = _mean_s(lambda: order.samples(np.arange(ORDER_CHUNK)), budget_s / 2, clock) / ORDER_CHUNK
    # as many neighbours as the cache holds for sure
    num = min(shards.num_samples(seq_len), max(1, COPIED_TOKENS // seq_len))
    reader.samples(np.arange(num))
    return seq_len / (order_s + _mean_s(lambda: reader.samples(np.arange(num)), budget_s / 2, clock) / num)


def _source(shards: Shards, bytes_per_s: float | None) -> str:
    how = f", storage throttled to {show(bytes_per_s, 'bytes_per_s')}" if bytes_per_s else ""
    return (f"headway data bench on {platform.node()} ({os.cpu_count()} cores), {datetime.date.today().isoformat()}, shards "
            f"{shards.index.fingerprint[:16]}{how}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """Training that takes `compute_s` a batch beside a loader that takes `load_s` on the mean: shares of the time it waits.

    `predicted` is the closed form, of training that never ends; `queued` goes through the queue batch by batch, from an
    empty cache; `measured` was slept through.
    """

    load_s: float
    compute_s: float
    batch: int
    num_batches: int
    predicted: float
    queued: float
    measured: float
    first_s: float


def measure_stalls(
    shards: Shards, profile: DataProfile, seq_len: int, *, seconds: float = 10.0, bytes_per_s: float | None = None,
    paces: tuple[float, ...] = PACES,
) -> list[Stall]:
    """Return predicted beside measured stalls at several paces of training, from when every lane has its first block."""
    sample_s = load_seconds(profile, seq_len).total * seq_len
    batch = max(1, min(math.ceil(LOAD_S / sample_s), COPIED_TOKENS // seq_len))
    start = math.ceil(WINDOW / batch)
    order, found = shards.order(seq_len, seed=0), []
    for epoch, pace in enumerate(paces):
        num = start + max(MIN_BATCHES, int(seconds / len(paces) / (batch * sample_s * max(1.0, pace))))
        numbers = order.samples(epoch * order.num_samples + np.arange(num * batch)).reshape(num, batch)
        drop_cache(shards)
        reader = Reader(shards, seq_len, fetch=_storage(bytes_per_s, time.perf_counter, time.sleep))
        first_s, compute_s, measured = _sleep_through(
            map(reader.samples, numbers), batch * sample_s * pace, profile.depth, start)
        queued = waits(_batch_seconds(shards, profile, numbers, seq_len), compute_s, profile.depth)[start:].sum()
        found.append(Stall(
            load_s=batch * sample_s, compute_s=compute_s, batch=batch, num_batches=num, first_s=first_s,
            predicted=float(stall_share(batch * sample_s, compute_s)), measured=measured,
            queued=float(queued / (queued + (num - start) * compute_s)),
        ))
    return found


def _batch_seconds(
    shards: Shards, profile: DataProfile, numbers: NDArray[np.int64], seq_len: int
) -> NDArray[np.float64]:
    """Return what each batch costs, by the blocks that it has to fetch by the reader's own rule."""
    fetched: list[int] = []
    cache = Kept(shards.kept_blocks(seq_len), lambda block: fetched.append(block))
    counts = np.zeros(len(numbers))
    for i, rows in enumerate(numbers):
        before = len(fetched)
        for sample in np.sort(rows).tolist():
            for block in touched_blocks(sample * seq_len, seq_len + 1, shards.index.block_tokens):
                cache[block]
        counts[i] = len(fetched) - before
    one = load_seconds(profile, seq_len, blocks=1.0)
    result: NDArray[np.float64] = seq_len * (counts * (one.fetch + one.decompress) + numbers.shape[1] * one.prepare)
    return result


def _sleep_through(batches: Iterator[Any], compute_s: float, depth: int, start: int) -> tuple[float, float, float]:
    """Return the seconds until the first batch, what a sleep really took, and the share that was waited from a start on."""
    asked, got = [time.perf_counter()], []
    with Prefetch(batches, depth) as ready:
        for _ in ready:
            got.append(time.perf_counter())
            time.sleep(compute_s)
            asked.append(time.perf_counter())
    waited = np.array(got) - np.array(asked[:-1])
    slept = np.array(asked[1:]) - np.array(got)
    return float(waited[0]), float(slept[:-1].mean()), float(waited[start:].sum() / (got[-1] - got[start - 1]))


def check_samples(shards: Shards, seq_len: int) -> None:
    """Refuse a length of which the shards hold no sample."""
    if seq_len < 1 or not shards.num_samples(seq_len):
        raise BadInput(f"seq_len: must be from 1 to {shards.index.num_tokens - 1}, as {shards.folder} has "
                       f"{shards.index.num_tokens} tokens (is {seq_len})")
