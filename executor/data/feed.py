"""What a rank trains on, step by step: its rows of each global batch, from shards or from a plain text file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from executor.data.corpus import Corpus, batch, open_corpus
from executor.data.order import positions
from executor.data.reader import Reader
from executor.data.shards import Shards, open_shards
from profiles.files import BadInput
from simulator.strategy import Strategy

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Inputs and targets [micro-batches x micro-batch, S], targets one token ahead."""
ORDER_CHUNK = 4096
"""Samples whose place in the order is found at a time."""


def open_data(name: str, folder: str | Path, *, seq_len: int, vocab: int, fingerprint: str = "") -> Corpus | Shards:
    """Return what a job trains on: a folder of shards, or a text file; what does not go with the job is a `BadInput`.

    Given a `fingerprint`, or its beginning, other data than those that have it are refused.
    """
    source = _open_shards(name, seq_len, vocab) if Path(name).is_dir() else open_corpus(name, folder, seq_len)
    if not source.fingerprint.startswith(fingerprint):
        raise BadInput(f"data: {name} has the fingerprint {source.fingerprint[:16]}, "
                       f"training began on data with {fingerprint[:16]}")
    return source


def _open_shards(name: str, seq_len: int, vocab: int) -> Shards:
    shards = open_shards(name)
    if shards.index.vocab > vocab:
        raise BadInput(f"data: {name} has a vocabulary of {shards.index.vocab}, the model only one of {vocab}")
    if not shards.num_samples(seq_len):
        raise BadInput(f"data: {name} has {shards.index.num_tokens} tokens; sequences of {seq_len} need {seq_len + 1} or more")
    return shards


def batches(
    source: Corpus | Shards, strategy: Strategy, *, seed: int, dp_rank: int, num_steps: int, first_sample: int = 0
) -> Iterator[Batch]:
    """Yield a rank's batch of each step; together the ranks have the next `global_batch` samples, however many they are.

    Training that stopped after n samples goes on exactly with `first_sample` n, on any number of ranks.
    """
    if isinstance(source, Corpus):
        for step in range(num_steps):
            yield batch(source, strategy, seed=seed, step=step, dp_rank=dp_rank, first_sample=first_sample)
        return
    reader = Reader(source, strategy.seq_len)
    for numbers in rank_samples(source, strategy, seed=seed, dp_rank=dp_rank, num_steps=num_steps, first_sample=first_sample):
        tokens = reader.samples(numbers)
        yield tokens[:, :-1], tokens[:, 1:]


def rank_samples(
    shards: Shards, strategy: Strategy, *, seed: int, dp_rank: int, num_steps: int, first_sample: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of a rank's samples of each step."""
    order = shards.order(strategy.seq_len, seed)
    # many steps at once: what the order costs, it costs for each call
    at_once = max(1, ORDER_CHUNK // (strategy.micro_batch * strategy.num_microbatches))
    for first in range(0, num_steps, at_once):
        steps = range(first, min(first + at_once, num_steps))
        yield from order.samples(np.stack([positions(strategy, first_sample, step, dp_rank) for step in steps]))
