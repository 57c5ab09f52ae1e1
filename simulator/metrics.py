"""Figures of merit, once. Ratios, never per cent.

Model FLOP: a multiply-add is 2; attention is counted whole although causal masking skips half of it; backward is
twice forward (arXiv 2204.02311 appendix B; arXiv 2205.05198 section 5). HFU adds what recomputation repeats.
"""

from __future__ import annotations

import numpy as np

from profiles.collectives import Collective
from profiles.cost import peak_flop_per_s
from profiles.families import Shape, part_items
from profiles.hardware import Accelerator
from profiles.model import PARTS, ModelSpec
from profiles.ops import Num, Pass
from simulator.strategy import Strategy


def step_flop(model: ModelSpec, strategy: Strategy) -> Num:
    """Return the model FLOP of one step, over all ranks."""
    per_token = sum(_flop_per_token(model, strategy.seq_len, ("F", "B", "W")).values())
    return per_token * strategy.tokens_per_step


def _flop_per_token(model: ModelSpec, seq_len: int, passes: tuple[Pass, ...]) -> dict[str, float]:
    shape = Shape(micro_batch=1, seq_len=seq_len, tp=1, dtype="bf16")
    flop: dict[str, float] = {}
    for part in PARTS:
        times = model.num_layers if part == "layer" else 1
        for item in part_items(model, part, shape):
            if isinstance(item, Collective):
                continue
            for pass_ in passes:
                for kernel in item.kernels(pass_):
                    if np.any(kernel.model_flop):
                        flop[kernel.kind] = flop.get(kernel.kind, 0.0) + times * kernel.model_flop / seq_len
    return flop


def mfu(model: ModelSpec, strategy: Strategy, step_time_s: Num, accelerator: Accelerator) -> Num:
    """Return model FLOP per second over the dense peak of all ranks, in the strategy's precision."""
    peak = peak_flop_per_s(accelerator, strategy.precision)
    return step_flop(model, strategy) / step_time_s / (peak * strategy.world_size)


def hfu(model: ModelSpec, strategy: Strategy, step_time_s: Num, accelerator: Accelerator) -> Num:
    """Return MFU plus what full recomputation repeats: the layers' forward; selective repeats no matmul."""
    shape = Shape(micro_batch=1, seq_len=strategy.seq_len, tp=1, dtype="bf16")
    again = model.num_layers / strategy.seq_len * sum(
        k.model_flop for i in part_items(model, "layer", shape) if not isinstance(i, Collective) for k in i.kernels("F")
    )
    extra = np.where(np.asarray(strategy.recompute) == "full", again * strategy.tokens_per_step, 0.0)
    peak = peak_flop_per_s(accelerator, strategy.precision)
    return (step_flop(model, strategy) + extra) / step_time_s / (peak * strategy.world_size)


def tokens_per_s(strategy: Strategy, step_time_s: Num) -> Num:
    """Return tokens per second over all ranks."""
    return strategy.tokens_per_step / step_time_s
