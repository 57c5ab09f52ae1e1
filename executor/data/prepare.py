"""Text to shards: tokenised by processes, packed, compressed by threads, written to one side and renamed when whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from executor.data.shards import INDEX_FILE, SCHEMA, Shards, compress, fingerprint, open_shards, pack, write_blocks
from executor.data.texts import PIECE_BYTES, find_texts, pieces, zstandard
from executor.data.tokens import TOKENIZER_FILE, Encoded, Tokenizer, Tokens, encode_piece
from profiles import files
from profiles.files import BadInput

BLOCK_TOKENS = 1 << 18
SHARD_BYTES = 1 << 26
LEVEL = 3
LEVELS = range(1, 23)
AHEAD = 3
"""Pieces and blocks in hand for each worker: enough that none waits, few enough that memory stays bounded."""
S = TypeVar("S")
T = TypeVar("T")


@dataclass(slots=True)
class _Counts:
    """What went by in the stream."""

    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    read_bytes: int = 0


def prepare(
    texts: Sequence[str | Path], out: str | Path, tokenizer: Tokenizer, *, field: str = "text", workers: int | None = None,
    level: int = LEVEL, block_tokens: int = BLOCK_TOKENS, shard_bytes: int = SHARD_BYTES, piece_bytes: int = PIECE_BYTES,
    on_progress: Callable[[float], None] | None = None,
) -> Shards:
    """Write the shards of texts into a new folder; the same bytes whatever the number of workers."""
    for name, value, least in (("block_tokens", block_tokens, 1), ("shard_bytes", shard_bytes, 1), ("workers", workers, 1)):
        if value is not None and value < least:
            raise BadInput(f"{name}: must be at least {least} (is {value})")
    if level not in LEVELS:
        raise BadInput(f"level: must be from {LEVELS[0]} to {LEVELS[-1]} (is {level})")
    zstandard()
    out, paths = check_new(out), find_texts(texts)[0]
    size = sum(path.stat().st_size for path in paths)
    # a process costs more than a few pieces of text
    workers = min(workers or len(os.sched_getaffinity(0)), size // piece_bytes + 1)
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        counts = _Counts()
        with ExitStack() as stack:
            # bytes are tokens already: handing them over would cost more than it saves
            processes = stack.enter_context(_processes(workers)) if workers > 1 and tokenizer.path else None
            threads = stack.enter_context(ThreadPoolExecutor(workers))
            source = (piece for path in paths for piece in pieces(path, piece_bytes))
            encoded = in_order(processes, partial(encode_piece, tokenizer, field), source, AHEAD * workers)
            stream = _counted(encoded, counts, size, on_progress)
            blocks = in_order(threads, partial(compress, level=level), pack(stream, block_tokens), AHEAD * workers)
            shards = write_blocks(blocks, aside, shard_bytes)
        if not shards:
            raise BadInput(f"texts: {len(paths)} files hold no text at all, the first is {paths[0]}")
        _write_index(aside, {
            "schema": SCHEMA, "tokenizer": {"name": tokenizer.name, "sha256": tokenizer.sha256}, "vocab": tokenizer.vocab,
            "end_of_document": tokenizer.end_of_document, "dtype": tokenizer.dtype.name, "num_tokens": counts.tokens,
            "num_documents": counts.documents, "text_bytes": counts.text_bytes, "block_tokens": block_tokens, "level": level,
            "zstd": ".".join(map(str, zstandard().ZSTD_VERSION)), "shards": [shard.model_dump() for shard in shards],
        })
        if tokenizer.path:
            files.write_bytes(aside / TOKENIZER_FILE, Path(tokenizer.path).read_bytes())
        _move(aside, check_new(out))
    except BrokenProcessPool:
        raise RuntimeError("a process that tokenised was ended from outside (out of memory?); nothing was written") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return open_shards(out)


def check_new(out: str | Path) -> Path:
    """Return where shards will be written, if nothing is there yet."""
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise BadInput(f"out: {out} is there already; name a new folder, or remove it")
    files.make_folder(out.resolve().parent)
    return out.resolve()


def _processes(workers: int) -> ProcessPoolExecutor:
    # spawned: this process has threads, and so have tokenizers
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_work_alone)


def _work_alone() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def in_order(pool: Executor | None, do: Callable[[S], T], items: Iterable[S], ahead: int) -> Iterator[T]:
    """Yield what is done to each item, in their order, with at most `ahead` of them in hand; without a pool, one by one."""
    if pool is None:
        yield from map(do, items)
        return
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(do, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _counted(
    encoded: Iterable[Encoded], counts: _Counts, size: int, on_progress: Callable[[float], None] | None
) -> Iterator[Tokens]:
    for part in encoded:
        counts.tokens += len(part.tokens)
        counts.documents += part.num_documents
        counts.text_bytes += part.text_bytes
        counts.read_bytes += part.read_bytes
        if on_progress is not None:
            on_progress(counts.read_bytes / max(1, size))
        yield part.tokens


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in (index | {"fingerprint": fingerprint(index)}).items())
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    with (folder / INDEX_FILE).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _move(aside: Path, out: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    aside.chmod(0o777 & ~umask)
    try:
        aside.rename(out)
    except OSError as e:
        raise BadInput(f"out: cannot make {out} ({e.strerror})") from None
    folder = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
