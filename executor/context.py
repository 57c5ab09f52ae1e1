"""Attention over a sequence that is cut over the ranks of cp: ring, all-gather, Ulysses.

Ring (arXiv 2310.01889) and all-gather (arXiv 2407.21783, section 3.3.2) give rank r the r-th piece of the sequence from
both ends, of twice as many as there are ranks, so that causal work is even (zig-zag). A rank meets the keys of one other
at a time; blocks are merged by the log of their sums, and backward is exact from the merged one. Ulysses (arXiv
2309.14509) gives a rank a run of the sequence, and for attention some of the heads of all of it.

Shapes: B batch, S tokens of this rank, H heads, D head dim, N ranks of cp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from profiles import kernels

aten = torch.ops.aten
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def token_places(seq_len: int, context: str, rank: int, num_ranks: int) -> NDArray[np.int64]:
    """Return where in the whole sequence the tokens of a cp rank stand."""
    places = np.arange(seq_len)
    if context == "ulysses":
        return np.split(places, num_ranks)[rank]
    pieces = np.split(places, 2 * num_ranks)
    return np.concatenate([pieces[rank], pieces[2 * num_ranks - 1 - rank]])


def attend_over(context: str, group: dist.ProcessGroup) -> Attend:
    """Return causal attention of this rank's tokens with the whole sequence: [B, S, H, D] in, [B, S, H, D] out."""
    if context == "ulysses":
        return partial(_ulysses, group)
    return partial(_blockwise, group, context == "ring")


def _blockwise(group: dist.ProcessGroup, in_ring: bool, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    result: Tensor = _Blockwise.apply(q_BSHD, k_BSHD, v_BSHD, group, in_ring)  # type: ignore[no-untyped-call]
    return result


class _Blockwise(torch.autograd.Function):
    """Attention block by block of keys; backward fetches the keys again, which is what keeps memory even."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup, in_ring: bool) -> Tensor:
        q_BHSD, own = q.transpose(1, 2), torch.stack((k, v)).transpose(2, 3)
        rank, result, sums = dist.get_rank(group), torch.empty(0), torch.empty(0)
        for source, (keys, values) in _keys_of_all(own, group, in_ring):
            rows, columns = _meeting(rank, source, q_BHSD.shape[2])
            block, log_sum = _forward(q_BHSD[:, :, rows], keys[:, :, columns], values[:, :, columns], source == rank)
            if source == rank:
                # copies: recomputation may keep what the kernel has given
                result, sums = block.to(torch.float32, copy=True), log_sum.to(torch.float32, copy=True)
                continue
            merged = torch.logaddexp(sums[:, :, rows], log_sum)
            result[:, :, rows] *= (sums[:, :, rows] - merged).exp().unsqueeze(-1)
            result[:, :, rows] += block * (log_sum - merged).exp().unsqueeze(-1)
            sums[:, :, rows] = merged
        out = result.to(q.dtype).transpose(1, 2).contiguous()
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.group, ctx.in_ring = group, in_ring
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums = ctx.saved_tensors
        group, in_ring = ctx.group, ctx.in_ring
        grad_BHSD, q_BHSD, out_BHSD = (t.transpose(1, 2) for t in (grads[0], q, out))
        own, rank = torch.stack((k, v)).transpose(2, 3), dist.get_rank(group)
        dq = torch.zeros(q_BHSD.shape, dtype=torch.float32, device=q.device)

        def of_block(source: int, keys: Tensor, values: Tensor) -> Tensor:
            """Add to the gradient of the queries; return that of a rank's keys and values."""
            rows, columns = _meeting(rank, source, q_BHSD.shape[2])
            to_q, to_k, to_v = _backward(
                grad_BHSD[:, :, rows], q_BHSD[:, :, rows], keys[:, :, columns], values[:, :, columns],
                out_BHSD[:, :, rows], sums[:, :, rows], source == rank,
            )
            dq[:, :, rows] += to_q
            to_keys = torch.zeros(own.shape, dtype=torch.float32, device=q.device)
            to_keys[0][:, :, columns], to_keys[1][:, :, columns] = to_k, to_v
            return to_keys

        blocks = _keys_of_all(own, group, in_ring)
        total = (_sum_in_ring if in_ring else _sum_scattered)(blocks, of_block, group)
        dk, dv = total.transpose(2, 3).to(k.dtype)
        return dq.transpose(1, 2).to(q.dtype), dk, dv, None, None


def _meeting(rank: int, source: int, length: int) -> tuple[slice, slice]:
    """Return which queries of a rank meet which keys of another in causal attention over zig-zag pieces.

    Both pieces of queries see the early piece of a rank before; only the late one sees a rank behind, and both its pieces.
    """
    whole, half = slice(0, length), length // 2
    if source == rank:
        return whole, whole
    return (whole, slice(0, half)) if source < rank else (slice(half, length), whole)


def _keys_of_all(own: Tensor, group: dist.ProcessGroup, in_ring: bool) -> Iterator[tuple[int, Tensor]]:
    """Yield each rank and its keys and values, this rank's first; in a ring the next come while these are used."""
    rank, num = dist.get_rank(group), dist.get_world_size(group)
    held = own.contiguous()
    if not in_ring:
        everyone = held.new_empty(num, *held.shape)
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(everyone.flatten(0, 1), held, group=group)
        yield from ((source, everyone[source]) for source in ((rank - step) % num for step in range(num)))
        return
    for step in range(num):
        arriving = torch.empty_like(held) if step < num - 1 else None
        works = [] if arriving is None else _pass_on(held, arriving, group)
        yield (rank - step) % num, held
        for work in works:
            work.wait()
        held = held if arriving is None else arriving


def _pass_on(leaving: Tensor, arriving: Tensor, group: dist.ProcessGroup) -> list[Any]:
    """Send to the next rank of the ring and receive from the one before."""
    rank, num = dist.get_rank(group), dist.get_world_size(group)
    return list(dist.batch_isend_irecv([
        dist.P2POp(dist.isend, leaving, group=group, group_peer=(rank + 1) % num),
        dist.P2POp(dist.irecv, arriving, group=group, group_peer=(rank - 1) % num),
    ]))


OfBlock = Callable[[int, Tensor, Tensor], Tensor]


def _sum_in_ring(blocks: Iterator[tuple[int, Tensor]], of_block: OfBlock, group: dist.ProcessGroup) -> Tensor:
    """Return the gradient of this rank's keys: sums travel behind the keys, one rank late, and end where they belong."""
    own, travelling = torch.empty(0), torch.empty(0)
    for step, (source, (keys, values)) in enumerate(blocks):
        mine = of_block(source, keys, values)
        if step == 0:
            own = mine
        elif step == 1:
            travelling = mine
        else:
            travelling = _next(travelling, group) + mine
    return own + _next(travelling, group)


def _next(leaving: Tensor, group: dist.ProcessGroup) -> Tensor:
    arriving = torch.empty_like(leaving)
    for work in _pass_on(leaving, arriving, group):
        work.wait()
    return arriving


def _sum_scattered(blocks: Iterator[tuple[int, Tensor]], of_block: OfBlock, group: dist.ProcessGroup) -> Tensor:
    found = {source: of_block(source, keys, values) for source, (keys, values) in blocks}
    everyone = torch.cat([found[source] for source in range(len(found))])
    total = torch.empty_like(found[0])
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    scatter(total, everyone, group=group)
    return total


def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Return attention [B, H, S, D] and the log of its sums [B, H, S], by the device's flash kernel (on CUDA none in fp32)."""
    if q.device.type == "cpu":
        out, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    else:
        out, log_sum, *_ = aten._scaled_dot_product_flash_attention(q, *_shared(q, k, v), 0.0, causal)
    return out, log_sum


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v from the output and log-sums of attention with all keys, merged."""
    if q.device.type == "cpu":
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, log_sum, 0.0, causal)
        return dq, dk, dv
    # without dropout the random state is not read
    state = torch.empty(2, dtype=torch.uint64, device=q.device)
    dq, dk, dv = aten._scaled_dot_product_flash_attention_backward(
        grad, q, *_shared(q, k, v), out, log_sum, None, None, q.shape[2], k.shape[2], 0.0, causal, state, state)
    dk, dv = (torch.unflatten(t, 1, (k.shape[1], -1)).sum(2) for t in (dk, dv))
    return dq, dk, dv


def _shared(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values with a copy for each query head: the kernel of CUDA is given no shared ones."""
    times = q.shape[1] // k.shape[1]
    return k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)


def _ulysses(group: dist.ProcessGroup, q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    num = dist.get_world_size(group)
    # heads by the rank that they go to; queries, keys and values in one exchange
    sent_BSNXD = torch.cat([torch.unflatten(t, 2, (num, -1)) for t in (q_BSHD, k_BSHD, v_BSHD)], dim=3)
    here_BSXD = _exchange(sent_BSNXD.movedim(2, 0), group).transpose(0, 1).flatten(1, 2)
    heads, kv = q_BSHD.shape[2] // num, k_BSHD.shape[2] // num
    out_BSHD = kernels.attention(*torch.split(here_BSXD, [heads, kv, kv], dim=2))
    back_NBSHD = _exchange(torch.unflatten(out_BSHD, 1, (num, -1)).movedim(1, 0), group)
    return back_NBSHD.movedim(0, 2).flatten(2, 3)


def _exchange(pieces_N: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return what each rank has sent this one; piece n goes to rank n."""
    result: Tensor = _Exchange.apply(pieces_N, group)  # type: ignore[no-untyped-call]
    return result


class _Exchange(torch.autograd.Function):
    """An all-to-all of equal pieces, which is its own mirror; its buffers must lie whole in memory, as gloo asks."""

    @staticmethod
    def forward(ctx: Any, pieces: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        leaving = pieces.contiguous()
        arriving = torch.empty(leaving.shape, dtype=leaving.dtype, device=leaving.device)
        dist.all_to_all_single(arriving, leaving, group=group)
        return arriving

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(grads[0], ctx.group), None
