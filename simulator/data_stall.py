"""How long training waits for its data: the rates of fetching, unpacking and preparing, against that of training.

The differential model of DS-Analyzer (Mohan et al., VLDB 2021, arXiv 2007.06775, section 4): of what is read, a share x
comes from memory at C bytes/s, the rest from storage at S, so a byte takes x/C + (1 - x)/S. A rank's loader is one thread
that fetches, unpacks and prepares by turns, so its seconds add up; ahead of training as it is, the slower of the two sets
the pace, and the stall is 1 - min(G, L)/G for the rates G of training and L of the loader.

What is fetched for a sample of seq_len S depends on the blocks of B tokens in which it lies (`blocks_per_sample`). Rates are
measured by `headway data bench` and kept in a profile file, `headway.data-profile/1`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from profiles import files

SCHEMA = "headway.data-profile/1"
Num = TypeVar("Num", float, NDArray[np.float64])


@dataclass(frozen=True, slots=True, kw_only=True)
class DataProfile:
    """What one reader of some shards was measured to do, and how the shards are made.

    `storage_bytes_per_s` is S, `memory_bytes_per_s` C, both of compressed bytes; `decompress_bytes_per_s` is of bytes that
    come out, checksum included; `prepare_tokens_per_s` of tokens that are copied into batches. `window` is the
    lanes of the order, `depth` the batches made ahead.
    """

    storage_bytes_per_s: float
    memory_bytes_per_s: float
    decompress_bytes_per_s: float
    prepare_tokens_per_s: float
    num_tokens: int
    token_bytes: int
    block_tokens: int
    stored_bytes_per_token: float
    window: int
    depth: int
    source: str


class DataProfileFile(BaseModel):
    """Measured rates of one reader of some shards, as `headway data bench` writes them."""

    model_config = ConfigDict(extra="forbid")

    schema_: Literal["headway.data-profile/1"] = Field(alias="schema")
    storage_bytes_per_s: PositiveFloat = Field(description="compressed bytes from storage, page cache empty")
    memory_bytes_per_s: PositiveFloat = Field(description="compressed bytes from the page cache")
    decompress_bytes_per_s: PositiveFloat = Field(description="bytes that come out, checksum included")
    prepare_tokens_per_s: PositiveFloat = Field(description="tokens that are copied into batches")
    num_tokens: PositiveInt = Field(description="of all shards")
    token_bytes: PositiveInt = Field(description="of a token as it lies unpacked")
    block_tokens: PositiveInt
    stored_bytes_per_token: PositiveFloat = Field(description="as it lies compressed")
    window: PositiveInt = Field(description="lanes of the order")
    depth: PositiveInt = Field(description="batches made ahead")
    source: str = Field(description="what was measured where and when")


def read_data_profile(path: str | Path) -> DataProfile:
    """Return the rates in a file that `headway data bench` wrote."""
    data = files.validate(DataProfileFile, files.read_mapping(path), str(path)).model_dump()
    return DataProfile(**{k: v for k, v in data.items() if k != "schema_"})


def write_data_profile(profile: DataProfile, path: str | Path) -> Path:
    """Write measured rates."""
    return files.write_text(path, yaml.safe_dump({"schema": SCHEMA} | asdict(profile), sort_keys=False, width=120))


def touched_per_sample(seq_len: int, block_tokens: int) -> float:
    """Return in how many blocks a sample lies, on the mean: (S + B - gcd(S, B)) / B, as its start may be any such multiple."""
    return (seq_len + block_tokens - math.gcd(seq_len, block_tokens)) / block_tokens


def blocks_per_sample(profile: DataProfile, seq_len: int, dp: int = 1) -> float:
    """Return how many blocks one of `dp` readers fetches for each of its samples.

    A group of g samples lies in u blocks, which one reader of all samples fetches once: u/g. With dp readers each meets a
    random share of the group, and fetches a block unless it meets none of its samples. The reader's cache holds a window.
    """
    p = profile
    group = max(1, p.block_tokens // seq_len)
    each = touched_per_sample(seq_len, p.block_tokens)
    together = touched_per_sample(group * seq_len, p.block_tokens)
    met: float = 1.0 - (1.0 - 1.0 / dp) ** (group * each / together)
    # a lane comes back to the group in whose middle it began
    twice = min(1.0, p.window * group * seq_len / p.num_tokens)
    return together / group * dp * met * (1.0 + twice)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSeconds:
    """Seconds of a loader for each of its tokens, by what they are spent on."""

    fetch: float
    decompress: float
    prepare: float

    @property
    def total(self) -> float:
        """Return the seconds of a token; 1 over it is the loader's rate."""
        return self.fetch + self.decompress + self.prepare


def load_seconds(
    profile: DataProfile, seq_len: int, *, dp: int = 1, in_memory: float = 0.0, sharing: int = 1,
    blocks: float | None = None,
) -> LoadSeconds:
    """Return a loader's seconds for each token; `blocks` per sample where they were counted.

    `in_memory` is x, the share of reads that memory serves; `sharing` readers divide the storage's rate.
    """
    p = profile
    fetched = blocks_per_sample(p, seq_len, dp) if blocks is None else blocks
    tokens = fetched * p.block_tokens / seq_len
    byte_s = in_memory / p.memory_bytes_per_s + (1.0 - in_memory) * sharing / p.storage_bytes_per_s
    return LoadSeconds(
        fetch=tokens * p.stored_bytes_per_token * byte_s, decompress=tokens * p.token_bytes / p.decompress_bytes_per_s,
        prepare=1.0 / p.prepare_tokens_per_s,
    )


def in_memory_share(profile: DataProfile, memory_bytes: float) -> float:
    """Return x of a cache that keeps what it once has (MinIO of the same paper): its size over that of the data."""
    return min(1.0, memory_bytes / (profile.num_tokens * profile.stored_bytes_per_token))


def stall_share(load_s: Num, compute_s: Num) -> Num:
    """Return the share of time that training waits, 1 - min(G, L)/G, by the seconds of a batch in loader and training."""
    longer: Num = np.maximum(load_s, compute_s)
    return 1.0 - compute_s / longer


def waits(load_s: NDArray[np.float64], compute_s: float, depth: int) -> NDArray[np.float64]:
    """Return how long training waits for each batch, when each takes `load_s` to make and `depth` fit into the queue.

    Batch i is made after batch i - 1 was put into the queue, which has room once batch i - 1 - depth was taken out:
    put(i) = max(put(i - 1) + load(i), taken(i - depth)), taken(i) = max(put(i), taken(i - 1) + compute).
    """
    put = np.zeros(len(load_s))
    taken = np.zeros(len(load_s))
    result = np.zeros(len(load_s))
    for i, seconds in enumerate(load_s.tolist()):
        made = (put[i - 1] if i else 0.0) + seconds
        put[i] = max(made, taken[i - depth]) if i >= depth else made
        asked = taken[i - 1] + compute_s if i else 0.0
        taken[i] = max(put[i], asked)
        result[i] = taken[i] - asked
    return result
