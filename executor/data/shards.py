"""Shards: a stream of tokens on disk, in blocks that are compressed and checksummed one by one, and an index.

A folder holds `index.json` (schema `headway.shards/1`), shards, and the tokenizer's file if there is one. Block b has the
tokens from b x block_tokens on, and the first of block b + 1 behind them, so that a sample whose last target is there needs
no other block. Tokens are little-endian unsigned integers, as small as the vocabulary allows; a block is one zstd frame; its
checksum is the CRC-32 of that frame. Whole documents follow one another, each with an end.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from executor.data.order import Order
from executor.data.texts import zstandard
from executor.data.tokens import TOKENIZER_FILE, Tokenizer, Tokens
from profiles import files
from profiles.files import BadInput

SCHEMA = "headway.shards/1"
INDEX_FILE = "index.json"
WINDOW = 64
"""Groups of about a block whose samples are mixed."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ShardFile(_Strict):
    """A shard in the index: its blocks' compressed bytes and checksums."""

    file: str = Field(pattern=r"^[^/]+$", description="its name, beside the index")
    bytes: list[PositiveInt] = Field(description="of each block, compressed")
    crc32: list[NonNegativeInt] = Field(description="of each block, compressed")


class TokenizerFile(_Strict):
    """The tokenizer in the index; without a sha256 it is that of bytes."""

    name: str
    sha256: str = Field(description="of its file")


class IndexFile(_Strict):
    """The index; `fingerprint` is the SHA-256 of all else in it."""

    schema_: Literal["headway.shards/1"] = Field(alias="schema")
    tokenizer: TokenizerFile
    vocab: PositiveInt
    end_of_document: NonNegativeInt = Field(description="the token that ends a document")
    dtype: Literal["uint8", "uint16", "uint32"] = Field(description="of a token as it lies unpacked")
    num_tokens: PositiveInt
    num_documents: PositiveInt
    text_bytes: PositiveInt = Field(description="of the text before it became tokens")
    block_tokens: PositiveInt = Field(description="tokens of a block; the last may have fewer")
    level: int = Field(description="of the compression")
    zstd: str = Field(description="version of the compressor")
    shards: list[ShardFile]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shards:
    """An open folder of shards; `shard`, `offset`, `size` and `crc32` say of each block where it is and what it must be."""

    folder: Path
    index: IndexFile
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc32: NDArray[np.uint32]

    @property
    def num_blocks(self) -> int:
        """Return the blocks of all shards."""
        return len(self.size)

    @property
    def fingerprint(self) -> str:
        """Return what tells these shards from others."""
        return self.index.fingerprint

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of all blocks on disk."""
        return int(self.size.sum())

    @property
    def token_bytes(self) -> int:
        """Return the bytes of a token that is not compressed."""
        return np.dtype(self.index.dtype).itemsize

    @property
    def block_bytes(self) -> int:
        """Return the bytes of a block that is not compressed."""
        return (self.index.block_tokens + 1) * self.token_bytes

    @property
    def tokenizer(self) -> Tokenizer:
        """Return what made the tokens."""
        i = self.index
        path = str(self.folder / TOKENIZER_FILE) if i.tokenizer.sha256 else ""
        return Tokenizer(name=i.tokenizer.name, vocab=i.vocab, end_of_document=i.end_of_document, path=path,
                         sha256=i.tokenizer.sha256)

    def num_samples(self, seq_len: int) -> int:
        """Return how many samples of `seq_len` tokens and one target more there are; what is left at the end is no sample."""
        return (self.index.num_tokens - 1) // seq_len

    def order(self, seq_len: int, seed: int) -> Order:
        """Return the order in which training meets the samples."""
        return Order(num_samples=self.num_samples(seq_len), seed=seed, group=max(1, self.index.block_tokens // seq_len),
                     window=WINDOW)

    def kept_blocks(self, seq_len: int) -> int:
        """Return how many blocks a reader keeps so that it fetches each once: a group of each lane, and half as many again.

        Of several readers each meets a lane less often, and meanwhile others change their groups.
        """
        size = self.index.block_tokens
        if seq_len >= size:
            return 2
        in_one = size % seq_len == 0
        return (WINDOW + WINDOW // 2 + 2 * WINDOW // (size // seq_len)) * (1 if in_one else 2)

    def tokens_in(self, block: int) -> int:
        """Return the tokens that a block holds, the first of the next one included."""
        return min(self.index.block_tokens + 1, self.index.num_tokens - block * self.index.block_tokens)

    def named(self, block: int) -> str:
        """Return the file of a block and its number there."""
        shard = int(self.shard[block])
        first = int(np.searchsorted(self.shard, shard))
        return f"{self.folder / self.index.shards[shard].file}: block {block - first}"


Fetch = Callable[[Shards, int], bytes]


def fetch_block(shards: Shards, block: int) -> bytes:
    """Return a block as it lies on the disk."""
    path = shards.folder / shards.index.shards[int(shards.shard[block])].file
    try:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), int(shards.size[block]), int(shards.offset[block]))
    except OSError as e:
        raise BadInput(f"{shards.named(block)}: cannot be read ({e.strerror})") from None


def decode_block(shards: Shards, block: int, data: bytes) -> Tokens:
    """Return the tokens of a block; a damaged one is a `BadInput` with both checksums."""
    found, expected = zlib.crc32(data), int(shards.crc32[block])
    if found != expected:
        size = "" if len(data) == shards.size[block] else f", {len(data)} of {shards.size[block]} bytes"
        raise BadInput(f"{shards.named(block)}: has the checksum {found:08x}{size}, the index says {expected:08x}; "
                       "it is damaged: copy the shards anew")
    num = shards.tokens_in(block)
    raw = zstandard().ZstdDecompressor().decompress(data, max_output_size=num * shards.token_bytes)
    tokens = np.frombuffer(raw, dtype=np.dtype(shards.index.dtype).newbyteorder("<"))
    if len(tokens) != num:
        raise BadInput(f"{shards.named(block)}: holds {len(tokens)} tokens, the index says {num}")
    return tokens


def open_shards(folder: str | Path) -> Shards:
    """Return the shards of a folder; a missing or damaged index, or a shard of another size, is a `BadInput`."""
    folder = Path(folder)
    if not (folder / INDEX_FILE).is_file():
        raise BadInput(f"{folder}: has no {INDEX_FILE}, so it holds no shards; make them with `headway data prepare`")
    zstandard()
    data = files.read_mapping(folder / INDEX_FILE)
    index = files.validate(IndexFile, data, str(folder / INDEX_FILE))
    if fingerprint(data) != index.fingerprint:
        raise BadInput(f"{folder / INDEX_FILE}: fingerprint: is {index.fingerprint[:16]}, of what is there it would be "
                       f"{fingerprint(data)[:16]}; the index is damaged: copy the shards anew")
    sizes = [np.array(shard.bytes, dtype=np.int64) for shard in index.shards]
    shards = Shards(
        folder=folder, index=index, size=np.concatenate(sizes),
        shard=np.repeat(np.arange(len(sizes), dtype=np.int32), [len(s) for s in sizes]),
        offset=np.concatenate([np.cumsum(s) - s for s in sizes]),
        crc32=np.concatenate([np.array(shard.crc32, dtype=np.uint32) for shard in index.shards]),
    )
    for shard, size in zip(index.shards, sizes, strict=True):
        path = folder / shard.file
        found = path.stat().st_size if path.is_file() else None
        if found != size.sum():
            fault = "is missing" if found is None else f"has {found:,} bytes, the index says {size.sum():,}"
            raise BadInput(f"{path}: {fault}; copy the shards anew")
    return shards


def fingerprint(index: dict[str, Any]) -> str:
    """Return the SHA-256 of an index without its fingerprint."""
    rest = {k: v for k, v in index.items() if k != "fingerprint"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def pack(stream: Iterable[Tokens], block_tokens: int) -> Iterator[Tokens]:
    """Yield the blocks of a stream that comes in parts: each with the first token of the next one behind it."""
    held: list[Tokens] = []
    size = 0
    for part in stream:
        held.append(part)
        size += len(part)
        if size > block_tokens:
            tokens = np.concatenate(held)
            while len(tokens) > block_tokens:
                yield tokens[: block_tokens + 1]
                tokens = tokens[block_tokens:]
            held, size = [tokens], len(tokens)
    if size:
        yield np.concatenate(held)


def compress(tokens: Tokens, level: int) -> bytes:
    """Return a block as it is stored."""
    raw = np.ascontiguousarray(tokens, dtype=tokens.dtype.newbyteorder("<"))
    packed: bytes = zstandard().ZstdCompressor(level=level).compress(raw.data)
    return packed


def write_blocks(blocks: Iterable[bytes], folder: Path, shard_bytes: int) -> list[ShardFile]:
    """Write compressed blocks into shards of at least so many bytes (the last one: what is left); return their index."""
    shards: list[ShardFile] = []
    blocks = iter(blocks)
    block = next(blocks, None)
    while block is not None:
        shard = ShardFile(file=f"shard-{len(shards):06d}", bytes=[], crc32=[])
        with (folder / shard.file).open("wb") as file:
            while block is not None and file.tell() < shard_bytes:
                file.write(block)
                shard.bytes.append(len(block))
                shard.crc32.append(zlib.crc32(block))
                block = next(blocks, None)
            file.flush()
            os.fsync(file.fileno())
        shards.append(shard)
    return shards
