"""A mixture of experts: every token to its top-k experts, none dropped, across the ranks of ep and back.

The choice is a softmax over the logits of the chosen experts, which is that over all, scaled to add up to one (Mixtral,
arXiv 2401.04088, section 2.1). No auxiliary loss balances the experts: that is how `transformers` trains these models
unless it is told otherwise. Tokens travel as rows, one for each of their experts, sorted by expert.

Shapes: T tokens of this rank, C channels, K experts of a token, R = T K rows, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from executor.blocks import whole
from profiles import kernels
from profiles.model import Experts as ExpertsSpec
from profiles.model import ModelSpec


class Stacked(nn.Module):
    """One linear map of all experts, each [out, in]."""

    def __init__(self, num: int, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num, size_out, size_in))


class Experts(nn.Module):
    """The experts of a layer; with expert parallelism a rank holds some of them.

    Gradients of an expert come from tokens of many ranks. `gradient_scale` makes their mean over its copies what the mean
    over the batch asks for.
    """

    def __init__(self, spec: ModelSpec, ffn: ExpertsSpec) -> None:
        super().__init__()
        self.gradient_scale = 1.0
        self.w1 = Stacked(ffn.num_experts, spec.hidden, ffn.hidden)
        self.w3 = Stacked(ffn.num_experts, spec.hidden, ffn.hidden) if ffn.gated else None
        self.w2 = Stacked(ffn.num_experts, ffn.hidden, spec.hidden)

    def forward(self, x_RC: Tensor, counts: list[int]) -> Tensor:
        """Return the rows through their experts; `counts` rows in turn go to each of this rank's."""
        def through(stacked: Stacked, rows: Tensor) -> Tensor:
            return kernels.grouped_linear(rows, _mine(stacked.weight, self.gradient_scale), counts)

        up = through(self.w1, x_RC)
        hidden = kernels.gelu(up) if self.w3 is None else kernels.swiglu(up, through(self.w3, x_RC))
        return through(self.w2, hidden)


class Mixture(nn.Module):
    """A router and its experts; `group` are the ranks that share them (None: this one has all)."""

    def __init__(self, spec: ModelSpec, ffn: ExpertsSpec) -> None:
        super().__init__()
        self.top_k = ffn.top_k
        self.group: dist.ProcessGroup | None = None
        self.router = nn.Linear(spec.hidden, ffn.num_experts, bias=False)
        self.experts = Experts(spec, ffn)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """Return the sum over each token's experts, each by its weight."""
        x_TC = x_BSC.flatten(0, 1)
        logits_TE = F.linear(x_TC, whole(self.router.weight))
        weights_R, order_R, counts_E = kernels.route(logits_TE, self.top_k)
        token_R = order_R // self.top_k
        out_RC = self._experts(kernels.permute(x_TC, token_R), counts_E) * weights_R.to(x_TC.dtype).unsqueeze(-1)
        out_TC = torch.zeros_like(x_TC).index_add(0, token_R, out_RC)
        return out_TC.view_as(x_BSC)

    def _experts(self, rows_RC: Tensor, counts_E: Tensor) -> Tensor:
        if self.group is None:
            out: Tensor = self.experts(rows_RC, counts_E.tolist())
            return out
        num = dist.get_world_size(self.group)
        arriving_E = torch.empty_like(counts_E)
        dist.all_to_all_single(arriving_E, counts_E, group=self.group)
        sizes_out, sizes_in = (c.view(num, -1).sum(1).tolist() for c in (counts_E, arriving_E))
        here_RC = exchange(rows_RC, sizes_out, sizes_in, self.group)
        # they come by rank, then by expert; kernels want them by expert
        expert_R = torch.arange(len(arriving_E), device=rows_RC.device) % (len(arriving_E) // num)
        order_R = expert_R.repeat_interleave(arriving_E).argsort(stable=True)
        out_RC = self.experts(kernels.permute(here_RC, order_R), arriving_E.view(num, -1).sum(0).tolist())
        back_RC = torch.empty_like(out_RC).index_copy(0, order_R, out_RC)
        return exchange(back_RC, sizes_in, sizes_out, self.group)


def exchange(rows_RC: Tensor, sizes_out: list[int], sizes_in: list[int], group: dist.ProcessGroup) -> Tensor:
    """Return the rows that all ranks have sent this one, by rank; `sizes_out` rows in turn go to each."""
    result: Tensor = _Exchange.apply(rows_RC, sizes_out, sizes_in, group)  # type: ignore[no-untyped-call]
    return result


class _Exchange(torch.autograd.Function):
    """An all-to-all whose gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes_out: list[int], sizes_in: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (sizes_in, sizes_out), group
        # gloo permutes silently what does not lie whole in memory
        leaving, arriving = rows.contiguous(), rows.new_empty(sum(sizes_in), *rows.shape[1:])
        dist.all_to_all_single(arriving, leaving, sizes_in, sizes_out, group=group)
        return arriving

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sizes_out, sizes_in = ctx.sizes
        return exchange(grads[0], sizes_out, sizes_in, ctx.group), None, None, None


def _mine(weight: Tensor, gradient_scale: float) -> Tensor:
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    result: Tensor = _ScaledGradient.apply(local, gradient_scale)  # type: ignore[no-untyped-call]
    return result


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (grads[0] if ctx.scale == 1 else grads[0] * ctx.scale), None
