"""What is known of a schedule before its table is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from profiles.ops import Num
from simulator.schedules.actions import Table
from simulator.schedules.placement import loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule: `build(ranks, micro-batches, chunks)` gives its table, `placement(stage, ranks)` a stage's rank.

    `torch_class` is the class of torch.distributed.pipelining that runs it. `chunks` is the number of stages a rank that
    it is made for (0: any). `microbatches(ranks, micro-batches)` says whether these suit; `microbatches_reason` why not,
    and which do.
    """

    name: str
    build: Callable[[int, int, int], Table]
    torch_class: str
    placement: Callable[[Num, Num], Num] = loop
    splits_backward: bool = False
    chunks: int = 1
    microbatches: Callable[[Num, Num], Num] = lambda p, m: m >= 1
    microbatches_reason: Callable[[int, int], str] = lambda p, m: f"needs at least 1 micro-batch (is {m})"

    def suits(self, num_ranks: Num, num_microbatches: Num, chunks: Num) -> Num:
        """Return whether the schedule has a table of this shape; numbers or arrays."""
        p, m, v = np.asarray(num_ranks), np.asarray(num_microbatches), np.asarray(chunks)
        chunked = v == self.chunks if self.chunks else v >= 1
        return (p >= 1) & (m >= 1) & chunked & self.microbatches(np.maximum(p, 1), m)

    def reason(self, num_ranks: int, num_microbatches: int, chunks: int) -> str:
        """Return why the schedule has no table of this shape, and which it has, in a sentence; nothing where it has."""
        p, m, v = num_ranks, num_microbatches, chunks
        if self.suits(p, m, v):
            return ""
        for name, number in (("pipeline ranks", p), ("micro-batches", m), ("chunks a rank", v)):
            if number < 1:
                return f"{self.name} needs at least 1 of {name} (is {number})"
        if self.chunks and v != self.chunks:
            plural = "s" * (self.chunks > 1)
            return f"{self.name} needs {self.chunks} chunk{plural} a rank (is {v})"
        return f"{self.name} {self.microbatches_reason(p, m)}"
