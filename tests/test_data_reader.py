"""Reading shards: the right tokens, bounded memory, batches made ahead, exact resume, rates by a clock of our own."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("zstandard")

from executor.data.bench import measure_rates
from executor.data.feed import batches, open_data
from executor.data.prepare import prepare
from executor.data.reader import Kept, Prefetch, Reader, throttled
from executor.data.shards import Shards, decode_block, fetch_block, open_shards
from executor.data.tokens import load_tokenizer
from executor.launch import check_launch
from executor.run import Job
from profiles.families.llama import llama_spec
from profiles.files import BadInput
from simulator.strategy import Strategy

STRATEGY = Strategy(precision="fp32", seq_len=32, micro_batch=2, num_microbatches=2)
NUM_BYTES = 100_000


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("reader")
    letters = np.random.default_rng(0).integers(97, 123, NUM_BYTES, dtype=np.uint8)
    (folder / "text.txt").write_bytes(letters.tobytes())
    return prepare([folder / "text.txt"], folder / "shards", load_tokenizer("bytes"), block_tokens=1000, shard_bytes=20_000,
                   workers=1)


@pytest.fixture(scope="module")
def stream(shards: Shards) -> np.ndarray:
    return np.concatenate([decode_block(shards, i, fetch_block(shards, i))[:1000] for i in range(shards.num_blocks)])


@given(seq_len=st.integers(1, 3500), data=st.data())
def test_samples_are_windows_of_the_stream(shards: Shards, stream: np.ndarray, seq_len: int, data: st.DataObject) -> None:
    num = shards.num_samples(seq_len)
    assert num == NUM_BYTES // seq_len  # and one token more, which ends the text
    numbers = np.array(data.draw(st.lists(st.integers(0, num - 1), max_size=5)), dtype=np.int64)
    found = Reader(shards, seq_len).samples(numbers)
    assert found.shape == (len(numbers), seq_len + 1) and found.dtype == np.int64
    for row, number in zip(found, numbers, strict=True):
        assert np.array_equal(row, stream[number * seq_len : number * seq_len + seq_len + 1])


@pytest.mark.parametrize("seq_len", [50, 70, 1000, 2300])
def test_an_epoch_fetches_each_block_about_once(shards: Shards, seq_len: int) -> None:
    reader, order = Reader(shards, seq_len), shards.order(seq_len, seed=1)
    num = shards.num_samples(seq_len)
    for numbers in np.array_split(order.samples(np.arange(num)), 20):
        reader.samples(numbers)
    # a lane for each of 64 groups comes back to its first one; longer samples than blocks share the blocks at their ends
    assert shards.num_blocks - 1 <= reader.spent.blocks <= shards.num_blocks + 64 + (num if seq_len > 1000 else 0)
    assert reader.spent.tokens == num * seq_len


def test_kept_forgets_what_was_used_longest_ago() -> None:
    made: list[int] = []
    kept = Kept(2, lambda key: made.append(key) or key)
    assert [kept[k] for k in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2] and made == [1, 2, 3, 2]


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Four epochs over 8 MB with a cache of 98 blocks of 16 KiB and a queue of three batches of 256 KiB."""
    (tmp_path / "a.txt").write_bytes(b"some text that is not long\n" * 300_000)
    shards = prepare([tmp_path / "a.txt"], tmp_path / "shards", load_tokenizer("bytes"), block_tokens=1 << 14, workers=1)
    order, strategy = shards.order(256, seed=0), replace(STRATEGY, seq_len=256, micro_batch=128, num_microbatches=1)
    assert shards.num_samples(256) > 30_000
    tracemalloc.start()
    with Prefetch(batches(shards, strategy, seed=0, dp_rank=0, num_steps=1000), depth=3) as ready:
        num = sum(1 for _ in ready)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num == 1000 and order.num_samples < 128 * 1000
    bound = (shards.kept_blocks(256) + 1) * shards.block_bytes + 6 * 128 * 257 * 8 + 1_000_000
    assert bound < 5_000_000 and peak < bound


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_resuming_costs_an_integer(shards: Shards, stop: int) -> None:
    """Stopped anywhere, also beyond an epoch's end, and gone on with on another number of ranks."""
    strategy = replace(STRATEGY, seq_len=3000, dp=2)
    whole = [np.concatenate(parts) for parts in zip(*(
        [tokens for tokens, _ in batches(shards, strategy, seed=5, dp_rank=rank, num_steps=12)] for rank in range(2)
    ), strict=True)]
    assert shards.num_samples(3000) < 5 * 8
    for dp, micro_batch, num_microbatches in ((1, 1, 8), (4, 2, 1), (8, 1, 1)):
        again = replace(strategy, dp=dp, micro_batch=micro_batch, num_microbatches=num_microbatches)
        rest = [list(batches(shards, again, seed=5, dp_rank=rank, num_steps=12 - stop, first_sample=8 * stop))
                for rank in range(dp)]
        for step, wanted in enumerate(whole[stop:]):
            assert np.array_equal(np.concatenate([rest[rank][step][0] for rank in range(dp)]), wanted)


def test_targets_are_one_ahead(shards: Shards) -> None:
    for inputs, targets in batches(shards, STRATEGY, seed=0, dp_rank=0, num_steps=3):
        assert inputs.shape == targets.shape == (4, 32)
        assert np.array_equal(inputs[:, 1:], targets[:, :-1])


def test_prefetch_keeps_order_and_stays_within_its_depth() -> None:
    made: list[int] = []
    room = threading.Event()

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            if len(made) == 4:
                room.set()
            yield i

    with Prefetch(items(), depth=3) as ready:
        assert room.wait(10)
        # three in the queue and one in the hand of the thread
        assert len(made) == 4 and list(ready) == list(range(50))
        with pytest.raises(StopIteration):
            next(ready)


def test_prefetch_raises_where_the_error_is_met() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise BadInput("shard-000003: block 7: is damaged")

    with Prefetch(items()) as ready:
        assert next(ready) == 1
        for _ in range(2):
            with pytest.raises(BadInput, match="block 7"):
                next(ready)


def test_prefetch_ends_its_thread_when_it_is_left() -> None:
    before = threading.active_count()
    with Prefetch(iter(range(1000)), depth=1) as ready:
        next(ready)
    assert threading.active_count() == before


class Clock:
    """Time that passes by a tick whenever somebody looks, and by sleeping."""

    def __init__(self, tick_s: float = 1e-9) -> None:
        self.now_s, self.tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self.tick_s
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_throttled_disk_takes_its_time(shards: Shards) -> None:
    clock = Clock()
    reader = Reader(shards, 50, fetch=throttled(fetch_block, 1e6, clock, clock.sleep), clock=clock)
    reader.samples(np.arange(0, 1999, 40))
    assert reader.spent.blocks == 50 and reader.spent.stored_bytes > 30_000
    assert reader.spent.fetch_s == pytest.approx(reader.spent.stored_bytes / 1e6, rel=1e-3)
    assert reader.spent.total_s == pytest.approx(reader.spent.fetch_s + reader.spent.decompress_s, rel=1e-3)


def test_measured_rates(shards: Shards) -> None:
    """By a clock that ticks: storage as throttled; each other part by its ticks, so that bytes and calls are counted."""
    clock = Clock(tick_s=1e-4)
    profile = measure_rates(shards, 50, seconds=0.2, bytes_per_s=2e4, clock=clock, sleep=clock.sleep)
    assert profile.storage_bytes_per_s == pytest.approx(2e4, rel=0.02)
    assert (profile.token_bytes, profile.block_tokens, profile.num_tokens) == (1, 1000, NUM_BYTES + 1)
    assert profile.stored_bytes_per_token == shards.stored_bytes / shards.index.num_tokens
    assert "20 kB/s" in profile.source and shards.index.fingerprint[:16] in profile.source
    # one tick of the clock for each round over the same blocks
    assert profile.decompress_bytes_per_s / profile.memory_bytes_per_s == pytest.approx(
        1 / profile.stored_bytes_per_token, rel=0.05)


def test_what_a_job_cannot_train_on(shards: Shards, tmp_path: Path) -> None:
    model = llama_spec(name="tiny", num_layers=1, hidden=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_hidden=128,
                       vocab=256, max_seq_len=64)
    job = Job(model=model, strategy=STRATEGY, out=str(tmp_path / "run"), data=str(shards.folder))
    pytest.importorskip("torch")
    check_launch(job)
    check_launch(replace(job, first_sample=10**9, fingerprint=shards.fingerprint[:16]))
    for change, says in (({"first_sample": -1}, "first_sample"), ({"fingerprint": "0f0f"}, "training began on data with 0f0f"),
                         ({"data": str(tmp_path)}, "holds no shards")):
        with pytest.raises(BadInput, match=says):
            check_launch(replace(job, **change))
    for options, says in (({"seq_len": 32, "vocab": 255}, "vocabulary of 256"), ({"seq_len": 10**6, "vocab": 256}, "tokens;")):
        with pytest.raises(BadInput, match=says):
            open_data(str(shards.folder), "", **options)
    assert isinstance(open_data(str(shards.folder), "", seq_len=32, vocab=300), Shards)
    assert open_shards(shards.folder).index == shards.index
