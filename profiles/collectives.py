"""Collectives: kind, bytes and group in; bytes on each rank's wire out. Never seconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.ops import Num

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")
MIRROR = {"all_gather": "reduce_scatter", "reduce_scatter": "all_gather"}
"""What the backward of a collective is; the others are their own mirror."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective over one axis; `bytes` is the whole buffer as in nccl-tests (gathered, or to be scattered).

    For all-to-all and send it is what one rank holds to send; an item that goes to so many `copies` drawn at random is
    held once for each rank that any of them is on, and crosses to each node once (0: every item has one place to go). A
    group of one is free: that is how a collective is absent. Where backward is not the mirror of forward,
    `backward_kind` (empty: the mirror), `backward_bytes` and `backward_group` (None: as forward) say what it is.
    `is_backward` marks that of the gradient.
    """

    name: str
    kind: str
    axis: str
    bytes: Num
    group_size: Num
    copies: int = 0
    backward_kind: str = ""
    backward_bytes: Num = None
    backward_group: Num = None
    is_backward: bool = False

    def backward(self) -> Collective:
        """Return the collective that the gradient takes: all-gather and reduce-scatter mirror each other."""
        return Collective(
            name=self.name, kind=self.backward_kind or MIRROR.get(self.kind, self.kind), axis=self.axis,
            bytes=self.bytes if self.backward_bytes is None else self.backward_bytes,
            group_size=self.group_size if self.backward_group is None else self.backward_group, copies=self.copies,
            is_backward=True,
        )

    @property
    def wire_bytes(self) -> Num:
        """Return the bytes that each rank sends with a bandwidth-optimal algorithm."""
        return self.bytes * traffic_factor(self.kind, self.group_size)


def traffic_factor(kind: str, group_size: Num) -> Num:
    """Return bytes sent per rank over buffer bytes: 2(n-1)/n for all-reduce, (n-1)/n for gather, scatter, all-to-all.

    The 'bus bandwidth' factors of nccl-tests (doc/PERFORMANCE.md). A group of one sends nothing.
    """
    n = np.asarray(group_size, dtype=float)
    if kind == "all_reduce":
        factor = 2 * (n - 1) / n
    elif kind in ("all_gather", "reduce_scatter", "all_to_all"):
        factor = (n - 1) / n
    else:
        factor = np.where(n > 1, 1.0, 0.0)
    return factor if factor.ndim else float(factor)


def reached(members: Num, copies: Num) -> Num:
    """Return how many of so many members get one or more of an item's copies, each drawn at random: n (1 - (1 - 1/n)^k)."""
    n = np.asarray(members, dtype=float)
    return n * (1 - (1 - 1 / n) ** copies)
