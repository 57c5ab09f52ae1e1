"""When gradients are summed over the mesh, and what torch's engines leave to sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from executor.parallel import Parallel


@contextmanager
def accumulating(parallel: Parallel, *, is_last: bool) -> Iterator[None]:
    """Run a micro-batch: gradients are summed over dp when due, weights resharded when they may be.

    ZeRO-0 and 1 sum once a step. ZeRO-2 and 3 sum after each micro-batch, but once a step in a pipeline, where
    ZeRO-2 also keeps its weights gathered through the step. DDP must be told before the forward.
    """
    stage, strategy, module = parallel.stage, parallel.strategy, parallel.module
    if isinstance(module, DistributedDataParallel) and not is_last:
        with module.no_sync():
            yield
        return
    if isinstance(stage, FSDPModule):
        piped, replicated = strategy.pp > 1, strategy.zero < 2 or strategy.dp == 1
        keeps_weights = replicated or (strategy.zero == 2 and piped)
        stage.set_requires_gradient_sync(is_last or not (piped or replicated))
        stage.set_reshard_after_backward(is_last or not keeps_weights)
        stage.set_is_last_backward(is_last)
    yield


@torch.no_grad()
def finish_gradients(parallel: Parallel) -> None:
    """Complete the gradients after the last backward: norms over tp, a tied head over pp."""
    stage = parallel.stage
    if not isinstance(stage, FSDPModule):
        for p in stage.parameters():
            if isinstance(p, DTensor) and isinstance(p.grad, DTensor):
                p.grad = p.grad.redistribute(placements=p.placements)
    if parallel.tied_group is not None:
        gradient = stage.embed.weight.grad if stage.is_first else stage.head.weight.grad
        assert gradient is not None
        dist.all_reduce(local(gradient), group=parallel.tied_group)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
