"""The stall model: what is fetched for a sample, how long training waits for it, and the file of rates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from executor.data.reader import Kept, touched_blocks
from executor.data.shards import IndexFile, Shards
from profiles.files import BadInput
from simulator.data_stall import (
    DataProfile,
    blocks_per_sample,
    in_memory_share,
    load_seconds,
    read_data_profile,
    stall_share,
    touched_per_sample,
    waits,
    write_data_profile,
)

PROFILE = DataProfile(
    storage_bytes_per_s=2e7, memory_bytes_per_s=2e9, decompress_bytes_per_s=5e8, prepare_tokens_per_s=2e8,
    num_tokens=100_000_000, token_bytes=2, block_tokens=4096, stored_bytes_per_token=0.75, window=64, depth=4,
    source="made up",
)


@given(st.integers(1, 60), st.integers(1, 60))
def test_blocks_of_a_sample_are_counted(seq_len: int, block_tokens: int) -> None:
    counted = [len(touched_blocks(i * seq_len, seq_len + 1, block_tokens)) for i in range(block_tokens)]
    assert touched_per_sample(seq_len, block_tokens) == pytest.approx(np.mean(counted))


def fetches(shards: Shards, seq_len: int, dp: int) -> float:
    """Count what one of dp readers fetches for a sample of an epoch, by walking the order with the reader's cache."""
    count = 0

    def fetch(block: int) -> int:
        nonlocal count
        count += 1
        return block

    order, cache = shards.order(seq_len, seed=3), Kept(shards.kept_blocks(seq_len), fetch)
    met = order.samples(np.arange(0, order.num_samples, dp))
    for sample in met.tolist():
        for block in touched_blocks(sample * seq_len, seq_len + 1, shards.index.block_tokens):
            cache[block]
    return count / len(met)


@pytest.mark.parametrize("dp", [1, 2, 8, 64])
@pytest.mark.parametrize("seq_len", [64, 256, 300, 1000, 4096, 10_000])
def test_fetched_blocks_are_those_of_the_order_and_the_cache(seq_len: int, dp: int) -> None:
    index = IndexFile.model_construct(num_tokens=60_000 * seq_len, block_tokens=PROFILE.block_tokens)
    none = np.zeros(0, dtype=np.int64)
    shards = Shards(folder=Path(), index=index, shard=none, offset=none, size=none, crc32=none)
    profile = replace(PROFILE, num_tokens=index.num_tokens)
    assert blocks_per_sample(profile, seq_len, dp) == pytest.approx(fetches(shards, seq_len, dp), rel=0.15)


def test_seconds_of_a_token_add_up() -> None:
    """One reader, blocks of 16 whole samples: every token fetched, unpacked and copied once."""
    one = load_seconds(PROFILE, 256)
    # of 100 million tokens the 64 groups of 4096 where lanes begin are read twice
    again = 1 + 64 * 4096 / 1e8
    assert one.fetch == pytest.approx(again * 0.75 / 2e7)
    assert one.decompress == pytest.approx(again * 2 / 5e8) and one.prepare == pytest.approx(1 / 2e8)
    assert load_seconds(PROFILE, 256, in_memory=1.0).fetch == pytest.approx(again * 0.75 / 2e9)
    assert load_seconds(PROFILE, 256, in_memory=0.5).fetch == pytest.approx(again * 0.75 * (0.5 / 2e9 + 0.5 / 2e7))
    assert load_seconds(PROFILE, 256, sharing=8).fetch == pytest.approx(8 * one.fetch)
    assert load_seconds(PROFILE, 256, blocks=1.0).fetch == pytest.approx(16 * one.fetch / again)
    assert in_memory_share(PROFILE, 3e7) == pytest.approx(0.4) and in_memory_share(PROFILE, 1e9) == 1.0


@given(st.floats(1e-3, 10), st.floats(1e-3, 10))
def test_the_stall_is_one_less_the_lesser_rate(load_s: float, compute_s: float) -> None:
    g, rate = 1 / compute_s, 1 / load_s
    assert stall_share(load_s, compute_s) == pytest.approx(1 - min(g, rate) / g, abs=1e-12)


def queue_waits(load_s: list[float], compute_s: float, depth: int) -> list[float]:
    """The same in SimPy: a loader, a bounded store, a trainer."""
    env, found = simpy.Environment(), []
    store = simpy.Store(env, capacity=depth)

    def loader() -> Iterator[Any]:
        for seconds in load_s:
            yield env.timeout(seconds)
            yield store.put(seconds)

    def trainer() -> Iterator[Any]:
        for _ in load_s:
            asked = env.now
            yield store.get()
            found.append(env.now - asked)
            yield env.timeout(compute_s)

    env.process(loader())
    env.process(trainer())
    env.run()
    return found


@given(st.lists(st.floats(0, 3), min_size=1, max_size=30), st.floats(0, 3), st.integers(1, 5))
def test_waits_are_those_of_a_queue(load_s: list[float], compute_s: float, depth: int) -> None:
    assert waits(np.array(load_s), compute_s, depth) == pytest.approx(queue_waits(load_s, compute_s, depth), abs=1e-9)


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(1, 6))
def test_even_batches_wait_as_the_closed_form_says(load_s: float, compute_s: float, depth: int) -> None:
    found = waits(np.full(200, load_s), compute_s, depth)[1:]
    # what the queue held at first hides nothing here, as it starts empty
    assert found.sum() / (found.sum() + 199 * compute_s) == pytest.approx(stall_share(load_s, compute_s), abs=1e-9)


def test_bursts_stall_less_with_a_deeper_queue() -> None:
    load_s = np.tile([4.0, 0.0, 0.0, 0.0], 50)
    totals = [waits(load_s, 1.1, depth).sum() for depth in (1, 2, 4, 8)]
    assert sorted(totals, reverse=True) == totals and totals[0] > 2 * totals[-1]


def test_profile_files(tmp_path: Path) -> None:
    path = write_data_profile(PROFILE, tmp_path / "data.yaml")
    assert read_data_profile(path) == PROFILE
    path.write_text(path.read_text().replace("storage_bytes_per_s: 20000000.0", "storage_bytes_per_s: -1.0"))
    with pytest.raises(BadInput, match="storage_bytes_per_s"):
        read_data_profile(path)
    path.write_text("schema: headway.profile/1\n")
    with pytest.raises(BadInput, match="schema"):
        read_data_profile(path)
