"""Figures of merit, once. Ratios, never per cent.

Model FLOP: a multiply-add is 2; attention is counted whole although causal masking skips half of it; backward is
twice forward (arXiv 2204.02311 appendix B; arXiv 2205.05198 section 5), so 6 FLOP for each parameter and token. A frozen
weight has no gradient: its backward is as much as its forward, 4 FLOP for each parameter and token; adapters (LoRA) count
6, attention as ever. HFU adds what recomputation repeats.
"""

from __future__ import annotations

import numpy as np

from profiles.collectives import Collective
from profiles.cost import peak_flop_per_s
from profiles.families import Shape
from profiles.hardware import Accelerator
from profiles.model import ModelSpec, Part
from profiles.ops import Num, Pass
from simulator.adapters import trained_items
from simulator.strategy import Strategy


def step_flop(model: ModelSpec, strategy: Strategy) -> Num:
    """Return the model FLOP of one step, over all ranks."""
    per_token = sum(_flop_per_token(model, strategy, ("F", "B", "W")).values())
    return per_token * strategy.tokens_per_step


def _flop_per_token(model: ModelSpec, strategy: Strategy, passes: tuple[Pass, ...]) -> dict[str, float]:
    flop: dict[str, float] = {}
    for part in model.parts:
        for kind, value in _part_flop(model, part, strategy, passes).items():
            flop[kind] = flop.get(kind, 0.0) + model.times(part) * value / strategy.seq_len
    return flop


def _part_flop(model: ModelSpec, part: Part, strategy: Strategy, passes: tuple[Pass, ...]) -> dict[str, float]:
    shape = Shape(micro_batch=1, seq_len=strategy.seq_len, tp=1, dtype="bf16")
    flop: dict[str, float] = {}
    for item in trained_items(model, part, shape, strategy.lora_rank, strategy.lora_targets):
        if isinstance(item, Collective):
            continue
        for pass_ in passes:
            for kernel in item.kernels(pass_):
                if np.any(kernel.model_flop):
                    flop[kernel.kind] = flop.get(kernel.kind, 0.0) + float(kernel.model_flop)
    return flop


def mfu(model: ModelSpec, strategy: Strategy, step_time_s: Num, accelerator: Accelerator) -> Num:
    """Return model FLOP per second over the dense peak of all ranks, in the type that most matmuls compute in."""
    peak = peak_flop_per_s(accelerator, strategy.matmul or strategy.dtype)
    return step_flop(model, strategy) / step_time_s / (peak * strategy.world_size)


def hfu(model: ModelSpec, strategy: Strategy, step_time_s: Num, accelerator: Accelerator) -> Num:
    """Return MFU plus what full recomputation repeats: the layers' forward; selective repeats no matmul."""
    again = sum(
        model.times(part) / strategy.seq_len * sum(_part_flop(model, part, strategy, ("F",)).values())
        for part in model.parts if part not in ("embedding", "head")
    )
    full = np.where(np.asarray(strategy.recompute) == "full", strategy.num_repeats, 0.0)
    extra = full * again * strategy.tokens_per_step
    peak = peak_flop_per_s(accelerator, strategy.matmul or strategy.dtype)
    return (step_flop(model, strategy) + extra) / step_time_s / (peak * strategy.world_size)


def tokens_per_s(strategy: Strategy, step_time_s: Num) -> Num:
    """Return tokens per second over all ranks."""
    return strategy.tokens_per_step / step_time_s
