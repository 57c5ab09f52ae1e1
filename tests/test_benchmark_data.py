"""Shards at speed: writing, reading, and waiting on a throttled disk. `pytest -m benchmark -s tests/test_benchmark_data.py`."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zstandard")

from executor.data.bench import measure_rates, measure_stalls
from executor.data.corpus import write_stdlib
from executor.data.feed import ORDER_CHUNK
from executor.data.prepare import prepare
from executor.data.reader import Reader
from executor.data.shards import Shards
from executor.data.tokens import load_tokenizer

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Five times Python's own sources: some 60 million bytes, in blocks small enough that there are a thousand."""
    folder = tmp_path_factory.mktemp("data")
    text = write_stdlib(folder).read_bytes()
    for i in range(5):
        (folder / f"{i}.txt").write_bytes(text)
    begun = time.perf_counter()
    made = prepare(sorted(folder.glob("?.txt")), folder / "shards", load_tokenizer("bytes"), block_tokens=1 << 16)
    seconds = time.perf_counter() - begun
    print(f"\n{made.index.num_tokens:,} bytes in {made.num_blocks:,} blocks written in {seconds:.1f} s, "
          f"{made.index.num_tokens / seconds / 1e6:.0f} MB/s")
    return made


def test_reading_an_epoch(shards: Shards) -> None:
    seq_len = 2048
    order, reader = shards.order(seq_len, seed=0), Reader(shards, seq_len)
    begun = time.perf_counter()
    for first in range(0, order.num_samples, ORDER_CHUNK):
        numbers = order.samples(np.arange(first, min(first + ORDER_CHUNK, order.num_samples)))
        for rows in np.array_split(numbers, len(numbers) // 8):
            reader.samples(rows)
    seconds, spent = time.perf_counter() - begun, reader.spent
    print(f"\n{spent.tokens / seconds / 1e6:.0f} M tokens/s: fetching {spent.fetch_s:.2f} s, unpacking "
          f"{spent.decompress_s:.2f} s, copying {spent.total_s - spent.fetch_s - spent.decompress_s:.2f} s, "
          f"order {seconds - spent.total_s:.2f} s; {spent.blocks:,} fetches of {shards.num_blocks:,} blocks")


@pytest.mark.parametrize("bytes_per_s", [1e6, 5e6, 20e6])
def test_waiting_on_a_throttled_disk(shards: Shards, bytes_per_s: float) -> None:
    profile = measure_rates(shards, 2048, bytes_per_s=bytes_per_s)
    stalls = measure_stalls(shards, profile, 2048, bytes_per_s=bytes_per_s, seconds=12)
    print(f"\nstorage at {bytes_per_s / 1e6:g} MB/s (measured {profile.storage_bytes_per_s / 1e6:.2f})")
    for s in stalls:
        print(f"  trains {s.compute_s * 1e3:.1f} ms, loads {s.load_s * 1e3:.1f} ms: waits {s.predicted:.1%} predicted, "
              f"{s.queued:.1%} queued, {s.measured:.1%} measured")
        assert s.measured == pytest.approx(s.queued, abs=0.15)


def test_writing_with_more_workers(shards: Shards, tmp_path: Path) -> None:
    """With a tokenizer, where the time goes into it."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel()
    trainer = library.trainers.BpeTrainer(vocab_size=8000, special_tokens=["</s>"], show_progress=False,
                                          initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet())
    text = (shards.folder.parent / "0.txt").read_text()
    tokenizer.train_from_iterator([text[:3_000_000]], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(text)
    print()
    for workers in (1, 2):
        begun = time.perf_counter()
        made = prepare([tmp_path / "text.txt"], tmp_path / str(workers), load_tokenizer(str(tmp_path)), workers=workers)
        seconds = time.perf_counter() - begun
        print(f"{workers} workers: {made.index.num_tokens / seconds / 1e6:.2f} M tokens/s, "
              f"{len(text) / seconds / 1e6:.1f} MB/s of text")
