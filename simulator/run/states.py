"""What a checkpoint holds: the weights and the optimizer's states of what is trained, each once, however it is sharded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from profiles.families import num_params
from profiles.model import ModelSpec
from profiles.ops import ELEMENT_BYTES
from simulator.adapters import trained_elements, trained_items
from simulator.strategy import Strategy
from simulator.workload import shape_of


def state_bytes_per_param(strategy: Strategy) -> float:
    """Return the bytes of a checkpoint for each trained parameter.

    Mixed precision: master weight and two moments; where ZeRO-0 or 1 keeps the working weights as parameters of their own,
    these too: 2 + 4 + 8 (Megatron's distributed optimizer), under ZeRO-2 and 3 (FSDP) 4 + 8. fp32: 4 + 8.
    """
    software, compute = strategy.software, float(ELEMENT_BYTES[strategy.dtype])
    if strategy.dtype == "fp32":
        return compute + software.moment_bytes
    own = compute if int(np.max(strategy.zero)) <= 1 and software.master_bytes else 0.0
    return own + (software.master_bytes or compute) + software.moment_bytes


def trained_params(model: ModelSpec, strategy: Strategy) -> float:
    """Return the parameters that are trained: all, or those of the adapters."""
    if not strategy.lora_rank:
        return float(num_params(model))
    shape = shape_of(replace(strategy, dp=1, tp=1, cp=1, pp=1, ep=1, etp=1))
    return sum(
        float(sum(trained_elements(trained_items(model, part, shape, strategy.lora_rank, strategy.lora_targets))))
        * model.times(part)
        for part in model.parts
    )


def checkpoint_bytes(model: ModelSpec, strategy: Strategy) -> float:
    """Return the bytes of one checkpoint."""
    return trained_params(model, strategy) * state_bytes_per_param(strategy)


def writing_ranks(strategy: Strategy) -> int:
    """Return how many ranks write: all where states are sharded over the replicas, one replica where each has them all."""
    whole = int(strategy.world_size)
    return whole if int(np.max(strategy.zero)) else whole // int(strategy.replicas)
