"""Reading shards in bounded memory: the blocks used last are kept, and batches are made ahead by a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from executor.data.shards import Fetch, Shards, decode_block, fetch_block
from executor.data.tokens import Tokens

T = TypeVar("T")
Clock = Callable[[], float]
DEPTH = 8
"""Batches that are made ahead."""
_PATIENCE_S = 0.05


class Kept(Generic[T]):
    """What was used last, at most `capacity` values; others are made again."""

    def __init__(self, capacity: int, make: Callable[[int], T]) -> None:
        self._capacity, self._make = capacity, make
        self._values: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, key: int) -> T:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        while len(self._values) >= self._capacity:
            self._values.popitem(last=False)
        self._values[key] = value = self._make(key)
        return value


@dataclass(slots=True)
class Spent:
    """What reading came to: blocks fetched, bytes and seconds; `total_s` holds the other two."""

    blocks: int = 0
    stored_bytes: int = 0
    tokens: int = 0
    fetch_s: float = 0.0
    decompress_s: float = 0.0
    total_s: float = 0.0


class Reader:
    """Samples of shards by number, for one thread; `spent` counts what they cost by `clock`."""

    def __init__(
        self, shards: Shards, seq_len: int, *, fetch: Fetch = fetch_block, clock: Clock = time.perf_counter
    ) -> None:
        self.shards, self.seq_len, self.spent = shards, seq_len, Spent()
        self._fetch, self._clock = fetch, clock
        self._blocks: Kept[Tokens] = Kept(shards.kept_blocks(seq_len), self._load)

    def samples(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return samples [n, seq_len + 1] by number: sample i has the stream's tokens from i x seq_len on."""
        begun_s = self._clock()
        found = np.empty((len(numbers), self.seq_len + 1), dtype=np.int64)
        # neighbours one after the other, so that a small cache serves them
        for row in np.argsort(numbers, kind="stable"):
            self._copy(int(numbers[row]) * self.seq_len, found[row])
        self.spent.tokens += len(numbers) * self.seq_len
        self.spent.total_s += self._clock() - begun_s
        return found

    def _copy(self, start: int, out: NDArray[np.int64]) -> None:
        """Fill a row with the stream's tokens from `start` on."""
        size = self.shards.index.block_tokens
        for block in touched_blocks(start, len(out), size):
            tokens = self._blocks[block]
            first = max(start, block * size)
            end = min(start + len(out), block * size + len(tokens))
            out[first - start : end - start] = tokens[first - block * size : end - block * size]

    def _load(self, block: int) -> Tokens:
        begun_s = self._clock()
        data = self._fetch(self.shards, block)
        fetched_s = self._clock()
        tokens = decode_block(self.shards, block, data)
        self.spent.fetch_s += fetched_s - begun_s
        self.spent.decompress_s += self._clock() - fetched_s
        self.spent.blocks += 1
        self.spent.stored_bytes += len(data)
        return tokens


def touched_blocks(start: int, num: int, block_tokens: int) -> range:
    """Return the blocks that `num` tokens (2 or more) from `start` on need; a block holds the next one's first token, too."""
    return range(start // block_tokens, (start + num - 2) // block_tokens + 1)


def throttled(
    fetch: Fetch, bytes_per_s: float, clock: Clock = time.perf_counter, sleep: Callable[[float], None] = time.sleep
) -> Fetch:
    """Return a fetch that takes no less than its bytes do at a given rate: a slow disk."""

    def slow(shards: Shards, block: int) -> bytes:
        begun_s = clock()
        data = fetch(shards, block)
        sleep(max(0.0, begun_s + len(data) / bytes_per_s - clock()))
        return data

    return slow


class Prefetch(Generic[T]):
    """Items made ahead by a thread, at most `depth` of them and one in its hand; its error is raised where it is met."""

    def __init__(self, items: Iterator[T], depth: int = DEPTH) -> None:
        self._ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def _make(self, items: Iterator[T]) -> None:
        try:
            for item in items:
                if not self._put((True, item)):
                    return
            self._put((False, StopIteration()))
        except BaseException as e:
            self._put((False, e))

    def _put(self, entry: tuple[bool, Any]) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(entry, timeout=_PATIENCE_S)
                return True
            except queue.Full:
                pass
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        whole, value = self._ready.get()
        if not whole:
            self._ready.put((whole, value))  # the end stays the end
            raise value
        item: T = value
        return item

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
