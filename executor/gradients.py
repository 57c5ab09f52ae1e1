"""When gradients are summed over the mesh, and what torch's engines leave to sum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from executor.parallel import Parallel
from simulator.strategy import Strategy


@contextmanager
def accumulating(strategy: Strategy, module: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Run a micro-batch of a stage: gradients are summed over dp x cp when due, weights resharded when they may be.

    ZeRO-0 and 1 sum once a step, and ZeRO-1 keeps its weights gathered until then. ZeRO-2 and 3 sum after each
    micro-batch, but once a step in a pipeline, where ZeRO-2 keeps its weights, too. DDP must be told before the forward.
    """
    if isinstance(module, DistributedDataParallel) and not is_last:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        piped, once = strategy.pp > 1, strategy.zero < 2 or strategy.replicas == 1
        keeps_weights = once or (strategy.zero == 2 and piped)
        module.set_requires_gradient_sync(is_last or not (piped or once))
        module.set_reshard_after_backward(is_last or not keeps_weights)
        module.set_is_last_backward(is_last)
    yield


def take_up_weight_gradients(module: nn.Module) -> None:
    """Do behind a W what FSDP does behind a backward, which is all that its hooks see: accumulate, and sum when due."""
    if isinstance(module, FSDPModule):
        module._get_fsdp_state()._root_post_backward_final_callback()


@torch.no_grad()
def finish_gradients(parallel: Parallel) -> None:
    """Complete the gradients after the last backward: norms over tp, a tied head over stages."""
    for stage in parallel.stages.values():
        if not isinstance(stage, FSDPModule):
            for p in stage.parameters():
                if isinstance(p, DTensor) and isinstance(p.grad, DTensor):
                    p.grad = p.grad.redistribute(placements=p.placements)
    tied = [local(weight.grad) for weight in parallel.tied_weights if weight.grad is not None]
    if parallel.tied_group is not None:
        (gradient,) = tied
        dist.all_reduce(gradient, group=parallel.tied_group)
    elif tied:
        embedding, head = tied
        head.copy_(embedding.add_(head))


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
