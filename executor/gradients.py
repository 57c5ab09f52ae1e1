"""When and how gradients are summed over the mesh.

FSDP2 sums what it shards. Plain fp32 weights are summed here: torch's DistributedDataParallel would do, but not under
tensor or pipeline parallelism, and while it accumulates micro-batches it holds every gradient twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from executor.model import Stage
from simulator.strategy import Strategy


class GradientSum:
    """Averages the gradients of plain weights over dp, one message a layer and one at a time.

    Messages go while the last backward runs; where nothing overlaps (CPU: both want the same cores) they go after it,
    so that they are measured apart.
    """

    def __init__(self, stage: Stage, group: dist.ProcessGroup, *, overlaps: bool) -> None:
        self._group, self._overlaps, self._armed = group, overlaps, False
        self._under_way: tuple[dist.Work, Tensor, list[Tensor]] | None = None
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in stage.named_parameters():
            part = ".".join(name.split(".")[:2]) if name.startswith("layers.") else name.split(".")[0]
            parts.setdefault(part, []).append(parameter)
        self._parts = list(parts.values())
        for parameters in self._parts if overlaps else []:
            self._watch(parameters)

    def arm(self, *, is_last: bool) -> None:
        """Say whether the backward to come is the last of the step."""
        self._armed = is_last

    def _watch(self, parameters: list[nn.Parameter]) -> None:
        missing = len(parameters)

        def note(_parameter: Tensor) -> None:
            nonlocal missing
            missing -= self._armed
            if missing == 0:
                missing = len(parameters)
                self._send(parameters)

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]

    def _send(self, parameters: list[nn.Parameter]) -> None:
        self._receive()
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        assert work is not None
        self._under_way = work, flat, gradients

    def _receive(self) -> None:
        if self._under_way is None:
            return
        work, flat, gradients = self._under_way
        self._under_way = None
        work.wait()
        flat.div_(dist.get_world_size(self._group))
        totals = torch.split(flat, [g.numel() for g in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))

    def finish(self) -> None:
        """Send what has not been sent, and wait for all."""
        for parameters in self._parts if not self._overlaps else []:
            self._send(parameters)
        self._receive()


@contextmanager
def accumulating(
    stage: Stage, strategy: Strategy, gradient_sum: GradientSum | None, *, is_last: bool
) -> Iterator[None]:
    """Run the backward of a micro-batch: gradients are summed over dp when due, weights resharded when they may be.

    ZeRO-0 and 1 sum once a step. ZeRO-2 and 3 sum after each micro-batch, but once a step in a pipeline, where
    ZeRO-2 also keeps its weights gathered through the step.
    """
    if gradient_sum is not None:
        gradient_sum.arm(is_last=is_last)
    if isinstance(stage, FSDPModule):
        piped, replicated = strategy.pp > 1, strategy.zero < 2 or strategy.dp == 1
        keeps_weights = replicated or (strategy.zero == 2 and piped)
        stage.set_requires_gradient_sync(is_last or not (piped or replicated))
        stage.set_reshard_after_backward(is_last or not keeps_weights)
        stage.set_is_last_backward(is_last)
    yield


@torch.no_grad()
def finish_gradients(
    stage: Stage, gradient_sum: GradientSum | None, tied_group: dist.ProcessGroup | None
) -> None:
    """Complete the gradients after the last backward: the sum under way, norms over tp, a tied head over pp."""
    if gradient_sum is not None:
        gradient_sum.finish()
    if not isinstance(stage, FSDPModule):
        for p in stage.parameters():
            if isinstance(p, DTensor) and isinstance(p.grad, DTensor):
                p.grad = p.grad.redistribute(placements=p.placements)
    if tied_group is not None:
        gradient = stage.embed.weight.grad if stage.is_first else stage.head.weight.grad
        assert gradient is not None
        dist.all_reduce(local(gradient), group=tied_group)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
