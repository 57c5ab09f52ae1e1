"""Checking shards: every block read, its checksum, its tokens, and that blocks follow one another."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from executor.data.prepare import AHEAD, in_order
from executor.data.shards import Shards, decode_block, fetch_block
from profiles.files import BadInput


def faults(shards: Shards, on_progress: Callable[[float], None] | None = None) -> list[str]:
    """Return a line for each block that is not what the index says, in their order."""
    threads = len(os.sched_getaffinity(0))
    found: list[str] = []
    num_documents, behind = 0, -1
    with ThreadPoolExecutor(threads) as pool:
        blocks = in_order(pool, partial(_read, shards), range(shards.num_blocks), AHEAD * threads)
        for number, block in enumerate(blocks):
            if isinstance(block, str):
                found.append(block)
                behind = -1
            else:
                first, behind_this, largest, ends = block
                if largest >= shards.index.vocab:
                    found.append(f"{shards.named(number)}: has the token {largest}, the vocabulary {shards.index.vocab}")
                if behind not in (-1, first):
                    found.append(f"{shards.named(number)}: begins with {first}, the block before it goes on with {behind}")
                num_documents, behind = num_documents + ends, behind_this
            if on_progress is not None:
                on_progress((number + 1) / shards.num_blocks)
    if not found and num_documents != shards.index.num_documents:
        found.append(f"{shards.folder}: has {num_documents} documents, the index says {shards.index.num_documents}")
    return found


def _read(shards: Shards, block: int) -> str | tuple[int, int, int, int]:
    """Return a block's first token, that behind it (-1: none), the largest and the ends in it; or what is wrong."""
    try:
        tokens = decode_block(shards, block, fetch_block(shards, block))
    except BadInput as e:
        return str(e)
    size = shards.index.block_tokens
    behind = int(tokens[size]) if len(tokens) > size else -1
    return int(tokens[0]), behind, int(tokens.max()), int((tokens[:size] == shards.index.end_of_document).sum())
