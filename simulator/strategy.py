"""Strategies: how one training step is split. Every field may be an array; then it is a batch of strategies."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from profiles.ops import Num
from simulator.schedules import SCHEDULES
from simulator.software import TORCH, Software

RECOMPUTE = ("none", "selective", "full")
CONTEXT = ("ring", "all_gather", "ulysses")
OFFLOAD = ("none", "moments", "states", "optimizer")
"""What lies in host memory between steps: nothing; both moments, or they and the main weights, which travel to the device
for its update and back; or the optimizer, which updates them there, from gradients that travel to it."""
LORA_TARGETS = ("attention", "all")
MATMUL_TYPES = {
    "fp32": ("fp32", ""), "bf16": ("bf16", ""), "fp16": ("fp16", ""), "fp8": ("bf16", "fp8"),
    "fp8-block": ("bf16", "fp8"), "mxfp8": ("bf16", "mxfp8"), "nvfp4": ("bf16", "nvfp4"),
}
"""Precision -> type of the residual stream, and what the layers' linear maps compute in where it is another.

fp8 scales whole tensors, fp8-block tiles of 128 by 128 (arXiv 2412.19437, section 3.3), mxfp8 blocks of 32.
"""
PRECISIONS = tuple(MATMUL_TYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """Degrees per axis, sharding, recomputation and batch of one training step.

    `zero` is the ZeRO level (Rajbhandari et al., arXiv 1910.02054): 0 all replicated, 1 optimizer states sharded
    over dp, 2 gradients too, 3 weights too; `shard_group` ranks share one copy (0: all of dp x cp). With
    `sequence_parallel` the residual stream is sharded over tp. cp splits the sequence, its keys travelling by
    `context` (ring, all_gather, ulysses). ep and etp lay experts over the ranks of dp, cp and tp. `recompute`: none;
    selective repeats what the software names; full keeps only each layer's input; `recompute_share` of the layers do
    so. `offload` puts a share of the optimizer's states (`offload_share`) into host memory (`OFFLOAD`; ZeRO-Offload, arXiv
    2101.06840). `chunks` of layers a stage (interleaved pipelines). `num_microbatches` is per data-parallel rank and step.
    `lora_rank`: all weights are frozen, and low-rank adapters beside the linear maps of `lora_targets` are trained (Hu et
    al., arXiv 2106.09685; 0: all weights are trained). `order` lays the axes on the machine, innermost first
    ('tp-cp-dp-pp'; empty: that). `layers` of each stage in the order of the model, like '7-8-8-7' (empty: as the software
    splits them). `software` is what else the framework does; it and `precision`, `context`, `seq_len` and
    `lora_*` are one for a batch.
    """

    dp: Num = 1
    tp: Num = 1
    cp: Num = 1
    pp: Num = 1
    ep: Num = 1
    etp: Num = 1
    zero: Num = 0
    shard_group: Num = 0
    sequence_parallel: Num = True
    recompute: Any = "none"
    recompute_share: Num = 1.0
    offload: Any = "none"
    offload_share: Num = 1.0
    precision: str = "bf16"
    context: str = "ring"
    order: Any = ""
    schedule: Any = "1F1B"
    chunks: Num = 1
    layers: Any = ""
    micro_batch: Num = 1
    num_microbatches: Num = 1
    seq_len: int = 1024
    imbalance: float = 1.0
    lora_rank: int = 0
    lora_targets: str = "attention"
    software: Software = TORCH

    @property
    def world_size(self) -> Num:
        """Return the number of ranks."""
        return self.dp * self.tp * self.cp * self.pp

    @property
    def dtype(self) -> str:
        """Return the type of the residual stream."""
        return MATMUL_TYPES[self.precision][0]

    @property
    def matmul(self) -> str:
        """Return what the layers' linear maps compute in; empty: as the residual stream."""
        return MATMUL_TYPES[self.precision][1]

    @property
    def kernels(self) -> str:
        """Return whether pointwise chains are fused or eager."""
        return self.software.kernels

    @property
    def split(self) -> str:
        """Return how a strategy (or a batch of one pipe) spreads layers over stages: as given, or in the software's way."""
        return str(np.ravel(self.layers)[0]) or self.software.layer_split

    @property
    def splits_backward(self) -> Num:
        """Return whether the schedule runs the gradients of inputs and of weights apart."""
        split = [name for name, s in SCHEDULES.items() if s.splits_backward]
        return np.isin(self.schedule, split) & (np.asarray(self.pp) > 1)

    @property
    def num_repeats(self) -> Num:
        """Return how often a layer repeats in backward what it does not keep: the share of layers that do, or twice that where
        either half of a split backward repeats all of it."""
        twice = self.splits_backward & (np.asarray(self.recompute) == "full") & self.software.keeps_graph
        return self.recompute_share * (1.0 + twice)

    @property
    def replicas(self) -> Num:
        """Return the ranks that hold the same dense parameters: dp x cp."""
        return self.dp * self.cp

    @property
    def shards(self) -> Num:
        """Return the ranks over which one copy of dense state is sharded."""
        return np.where(np.asarray(self.shard_group) > 0, np.minimum(self.shard_group, self.replicas), self.replicas)

    @property
    def expert_replicas(self) -> Num:
        """Return the ranks that hold the same experts."""
        return self.tp * self.cp * self.dp / (self.ep * self.etp)

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
        return max(int(np.size(getattr(self, f.name))) for f in fields(self) if f.name != "software")

    def pick(self, index: Any) -> Strategy:
        """Return one strategy of a batch (an integer), or a smaller batch (a mask or an array of indices)."""
        scalar = np.ndim(index) == 0

        def of(value: Any) -> Any:
            if np.ndim(value) == 0:
                return value
            return value[index].item() if scalar else value[index]

        return replace(self, **{f.name: of(getattr(self, f.name)) for f in fields(self) if f.name != "software"})

    def describe(self) -> str:
        """Return the strategy in one line, as a report shows it."""
        axes = [f"{a}={getattr(self, a)}" for a in ("dp", "tp", "cp", "pp", "ep", "etp") if getattr(self, a) != 1]
        groups = f" in groups of {self.shard_group}" if self.shard_group else ""
        some = f" of {self.recompute_share:g} of the layers" if self.recompute != "none" and self.recompute_share != 1 else ""
        parts = [" ".join(axes) or "one rank", f"ZeRO-{self.zero}{groups}", f"recompute {self.recompute}{some}",
                 f"micro-batch {self.micro_batch} x {self.num_microbatches}"]
        if self.pp != 1:
            chunks = f" of {self.chunks} chunks" if self.chunks != 1 else ""
            parts.insert(1, f"{self.schedule}{chunks}")
        if self.layers:
            parts.insert(2, f"layers {brief_layers(self.layers)}")
        if self.offload != "none":
            share = f" of {self.offload_share:g}" if self.offload_share != 1 else ""
            parts.append(f"offload {self.offload}{share}")
        if self.cp != 1:
            parts.append(f"keys by {self.context.replace('_', '-')}")
        if self.order:
            parts.append(f"laid out {self.order}")
        if self.lora_rank:
            parts.append(f"LoRA of rank {self.lora_rank} on {self.lora_targets}")
        return ", ".join(parts)


def brief_layers(layers: str) -> str:
    """Return the layers of stages with runs of like ones counted: '7-8-8-8-7' is 7, 3 x 8, 7."""
    runs = [(num, len(list(run))) for num, run in groupby(layers.split("-"))]
    return ", ".join(num if times == 1 else f"{times} x {num}" for num, times in runs)


class Pipe(NamedTuple):
    """Strategies of a batch with one schedule that cut a model into the same stages: their indices, pipeline ranks, chunks,
    schedule, and how layers are spread (`layout.stage_parts`)."""

    where: NDArray[np.int64]
    pp: int
    chunks: int
    schedule: str
    split: str


def by_pipe(strategy: Strategy) -> list[Pipe]:
    """Return a batch by number of pipeline ranks, chunks and schedule; without a pipeline the schedule says nothing."""
    if not any(map(np.ndim, (strategy.pp, strategy.chunks, strategy.schedule, strategy.layers))):
        name = str(strategy.schedule) if strategy.pp > 1 else "1F1B"
        return [Pipe(np.arange(len(strategy)), int(strategy.pp), int(strategy.chunks), name, strategy.split)]
    size = (len(strategy),)
    pp, chunks = (np.broadcast_to(np.asarray(v), size) for v in (strategy.pp, strategy.chunks))
    schedule = np.where(pp > 1, np.broadcast_to(np.asarray(strategy.schedule), size), "1F1B")
    split = np.broadcast_to(np.where(np.asarray(strategy.layers) == "", strategy.software.layer_split, strategy.layers), size)
    pipes = sorted(set(zip(pp.tolist(), chunks.tolist(), schedule.tolist(), split.tolist(), strict=True)))
    return [
        Pipe(np.flatnonzero((pp == p) & (chunks == v) & (schedule == name) & (split == cut)), int(p), int(v), str(name), cut)
        for p, v, name, cut in pipes
    ]
