"""Training tokens: bytes of text, in an order that is a function of the seed, the step and the place in the batch."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiles.files import BadInput
from simulator.strategy import Strategy

STDLIB = "stdlib"
MAX_BYTES = 30_000_000
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def load_corpus(name: str, seq_len: int) -> NDArray[np.uint8]:
    """Return the bytes of a text file, or of the Python standard library's own sources ('stdlib')."""
    data = _stdlib() if name == STDLIB else _file(name)
    if len(data) < seq_len + 2:
        raise BadInput(f"data: {name} has {len(data)} bytes; sequences of {seq_len} tokens need {seq_len + 2} or more")
    return np.frombuffer(data, dtype=np.uint8)


def _file(name: str) -> bytes:
    try:
        with Path(name).open("rb") as f:
            return f.read(MAX_BYTES)
    except OSError as e:
        raise BadInput(f"data: {name!r} cannot be read ({e.strerror}); give a text file or '{STDLIB}'") from None


def _stdlib() -> bytes:
    root = Path(sysconfig.get_paths()["stdlib"])
    parts: list[bytes] = []
    size = 0
    for path in sorted(root.rglob("*.py")):
        if size >= MAX_BYTES:
            break
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            parts.append(path.read_bytes())
            size += len(parts[-1])
    return b"".join(parts)[:MAX_BYTES]


def sample(corpus: NDArray[np.uint8], seq_len: int, *, seed: int, step: int, index: int) -> NDArray[np.int64]:
    """Return one sequence [seq_len + 1], at a place drawn from (seed, step, index in the global batch) alone."""
    start = np.random.default_rng((seed, step, index)).integers(len(corpus) - seq_len)
    return corpus[start : start + seq_len + 1].astype(np.int64)


def batch(
    corpus: NDArray[np.uint8], strategy: Strategy, *, seed: int, step: int, dp_rank: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return inputs and targets of a rank's step, each [micro-batches x micro-batch, S], targets one token ahead."""
    size = strategy.micro_batch * strategy.num_microbatches
    rows = [
        sample(corpus, strategy.seq_len, seed=seed, step=step, index=dp_rank * size + row) for row in range(size)
    ]
    tokens = np.stack(rows)
    return tokens[:, :-1], tokens[:, 1:]
