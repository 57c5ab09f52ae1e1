"""What repeating some operators in backward saves of the bytes that wait for it, and what gathering again does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from profiles.attention import Attention, UnfusedAttention
from profiles.collectives import Collective
from profiles.families import Item
from profiles.matmul import Gemm
from profiles.ops import Num, Op
from profiles.pointwise import Pointwise


def own_shares(items: tuple[Item, ...], tp: Num) -> dict[str, Num]:
    """Return for each matmul that reads what was gathered over tp, by name, the share of it that this rank had before."""
    shares: dict[str, Num] = {}
    for i, gather in enumerate(items):
        if isinstance(gather, Collective) and gather.axis == "tp" and gather.kind == "all_gather":
            block = gather.name.split(".")[0]
            reader = next((op for op in items[i:] if isinstance(op, Gemm) and op.name.split(".")[0] == block), None)
            if reader is not None:
                shares[reader.name] = np.where(np.asarray(gather.group_size) > 1, 1 / np.asarray(tp, dtype=float), 1.0)
    return shares


def regathered_bytes(items: tuple[Item, ...], tp: Num) -> Num:
    """Return what is not kept of the inputs of matmuls where backward gathers them over tp again: others' shares."""
    shares = own_shares(items, tp)
    return sum(((1 - shares[i.name]) * i.saved_bytes for i in items if not isinstance(i, Collective) and i.name in shares), 0.0)


def dropped_bytes(
    items: tuple[Item, ...], again: tuple[str, ...], discarded: tuple[str, ...], tp: Num, keeps_gathered: bool
) -> Num:
    """Return the bytes that are not kept where operators are repeated: all that they save but their inputs.

    `again` is what the names of those repeated begin with, `discarded` of those whose output goes too, though others read
    it. An operator saves what the one in front of it has made; attention also its output, which its projection reads.
    """
    shares = own_shares(items, tp)
    dropped: Num = 0.0
    maker = ""
    for op in items:
        # sums in backward save nothing; the indexer stands beside what makes queries and keys
        if isinstance(op, Collective) or (isinstance(op, Pointwise) and op.backward_only) \
                or op.name.startswith("attn.indexer"):
            continue
        inputs, inside = _split_saved(op)
        share = np.asarray(shares.get(op.name, 1.0))
        if op.name.startswith(again):
            dropped = dropped + inside
        if op.name.startswith(again) and maker.startswith(again):
            dropped = dropped + inputs * (1.0 if keeps_gathered else share)
        elif maker.startswith(discarded):
            # a gathered copy that is kept is not the output itself
            dropped = dropped + inputs * np.where((share < 1) & keeps_gathered, 0.0, share)
        maker = op.name
    return dropped


def _split_saved(op: Op) -> tuple[Num, Num]:
    """Return the saved bytes of an operator that are inputs, and those that are neither inputs nor output."""
    if isinstance(op, Attention):
        log_sum_exp = 4 * op.batch * op.heads * op.seq_len
        return op.saved_bytes - op.output_bytes, log_sum_exp
    if isinstance(op, UnfusedAttention):
        return op.saved_bytes - op.output_bytes - op.score_bytes, op.score_bytes
    inputs = replace(op, mode="fused").saved_bytes if isinstance(op, Pointwise) else op.saved_bytes
    return inputs, op.saved_bytes - inputs
