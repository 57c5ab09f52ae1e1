"""Strategies: how one training step is split. Every field may be an array; then it is a batch of strategies."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from profiles.ops import Num

RECOMPUTE = ("none", "selective", "full")
SCHEDULES = ("1F1B", "GPipe")
PRECISIONS = ("bf16", "fp32")
MODES = ("eager", "fused")


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """Degrees per axis, sharding, recomputation and batch of one training step.

    `zero` is the ZeRO level (Rajbhandari et al., arXiv 1910.02054): 0 all replicated, 1 optimizer states sharded
    over dp, 2 gradients too, 3 weights too. tp includes sequence parallelism. `recompute`: none; selective keeps
    the outputs of matmuls and attention and recomputes the rest; full keeps only each layer's input. `kernels`:
    eager, or fused (`torch.compile`). `num_microbatches` is per data-parallel rank and step.
    """

    dp: Num = 1
    tp: Num = 1
    cp: Num = 1
    pp: Num = 1
    ep: Num = 1
    zero: Num = 0
    recompute: Any = "none"
    precision: str = "bf16"
    kernels: str = "eager"
    schedule: Any = "1F1B"
    chunks: Num = 1
    micro_batch: Num = 1
    num_microbatches: Num = 1
    seq_len: int = 1024

    @property
    def world_size(self) -> Num:
        """Return the number of ranks."""
        return self.dp * self.tp * self.cp * self.pp

    @property
    def global_batch(self) -> Num:
        """Return the sequences of one step, over all ranks."""
        return self.dp * self.micro_batch * self.num_microbatches

    @property
    def tokens_per_step(self) -> Num:
        """Return the tokens of one step, over all ranks."""
        return self.global_batch * self.seq_len

    def __len__(self) -> int:
        """Return how many strategies this batch holds; 1 for a single one."""
        return max(int(np.size(getattr(self, f.name))) for f in fields(self))

    def pick(self, index: Any) -> Strategy:
        """Return one strategy of a batch (an integer), or a smaller batch (a mask or an array of indices)."""
        scalar = np.ndim(index) == 0

        def of(value: Any) -> Any:
            if np.ndim(value) == 0:
                return value
            return value[index].item() if scalar else value[index]

        return replace(self, **{f.name: of(getattr(self, f.name)) for f in fields(self)})

    def describe(self) -> str:
        """Return the strategy in one line, as a report shows it."""
        axes = [f"{a}={getattr(self, a)}" for a in ("dp", "tp", "cp", "pp", "ep") if getattr(self, a) != 1]
        parts = [" ".join(axes) or "one rank", f"ZeRO-{self.zero}", f"recompute {self.recompute}",
                 f"micro-batch {self.micro_batch} x {self.num_microbatches}"]
        if self.pp != 1:
            parts.insert(1, str(self.schedule))
        return ", ".join(parts)
