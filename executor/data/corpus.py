"""Training tokens: bytes of text, in an order that is a function of the seed and the position alone."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from executor.data.order import positions
from profiles import files
from profiles.files import BadInput
from simulator.strategy import Strategy

STDLIB, CORPUS_FILE = "stdlib", "corpus.txt"
FAKE = "fake"
MAX_BYTES = 30_000_000
_SEEN = 1 << 20
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A text file; bytes are read from it as they are needed, so that it takes no memory from training."""

    path: Path
    num_bytes: int

    def read(self, start: int, num: int) -> NDArray[np.uint8]:
        """Return `num` bytes from `start` on."""
        with self.path.open("rb", buffering=0) as f:
            return np.frombuffer(os.pread(f.fileno(), num, start), dtype=np.uint8)

    @property
    def fingerprint(self) -> str:
        """Return what tells this text from another: the SHA-256 of its size and of `_SEEN` bytes at both ends."""
        ends = self.read(0, _SEEN).tobytes() + self.read(max(0, self.num_bytes - _SEEN), _SEEN).tobytes()
        return hashlib.sha256(str(self.num_bytes).encode() + ends).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeCorpus(Corpus):
    """Bytes by chance, from no file: for a dry run."""

    def read(self, start: int, num: int) -> NDArray[np.uint8]:
        """Return `num` bytes that depend on `start` alone."""
        return np.random.default_rng(start).integers(256, size=num, dtype=np.uint8)


def open_corpus(name: str, folder: str | Path, seq_len: int) -> Corpus:
    """Return a text file as a corpus; 'stdlib' is the file that `write_stdlib` left in the run's folder, 'fake' is none."""
    if name == FAKE:
        return FakeCorpus(path=Path(os.devnull), num_bytes=MAX_BYTES)
    path = Path(folder) / CORPUS_FILE if name == STDLIB else Path(name)
    try:
        with path.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
    except OSError as e:
        raise BadInput(f"data: {name!r} cannot be read ({e.strerror}); give a text file or '{STDLIB}'") from None
    if size < seq_len + 2:
        raise BadInput(f"data: {name} has {size} bytes; sequences of {seq_len} tokens need {seq_len + 2} or more")
    return Corpus(path=path, num_bytes=size)


def write_stdlib(folder: str | Path) -> Path:
    """Write the Python standard library's own sources, one after the other, into a folder."""
    return files.write_bytes(Path(folder) / CORPUS_FILE, _stdlib())


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


def sample(corpus: Corpus, seq_len: int, *, seed: int, position: int) -> NDArray[np.int64]:
    """Return one sequence [seq_len + 1], at a place drawn from (seed, position in the endless order) alone."""
    start = np.random.default_rng((seed, position)).integers(corpus.num_bytes - seq_len)
    return corpus.read(int(start), seq_len + 1).astype(np.int64)


def batch(
    corpus: Corpus, strategy: Strategy, *, seed: int, step: int, dp_rank: int, first_sample: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return inputs and targets of a rank's step, each [micro-batches x micro-batch, S], targets one token ahead."""
    places = positions(strategy, first_sample, step, dp_rank).tolist()
    tokens = np.stack([sample(corpus, strategy.seq_len, seed=seed, position=place) for place in places])
    return tokens[:, :-1], tokens[:, 1:]
