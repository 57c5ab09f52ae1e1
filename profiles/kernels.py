"""The torch kernels that the executor trains with and the profiler times: one home, so what is timed is what runs.

Shapes: B batch, S sequence, H heads, D head dim, C and F channels, R rows, E experts. Needs torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    """RMSNorm that keeps only its input and one number a row, as CUDA's fused kernel does.

    torch's composite on CPU keeps a second [rows, cols] tensor. y = x w / rms(x), arXiv 1910.07467 equation 4.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return ((x * inverse).to(x.dtype)) * weight

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors  # type: ignore[attr-defined]
        normed = x * inverse
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        scaled = grad * weight
        grad_x = inverse * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def rms_norm(x_BSC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """Return RMSNorm over the last dim."""
    if x_BSC.device.type == "cuda":
        return F.rms_norm(x_BSC, weight_C.shape, weight_C, eps)
    result: Tensor = _RMSNorm.apply(x_BSC, weight_C, eps)  # type: ignore[no-untyped-call]
    return result


def layer_norm(x_BSC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """Return LayerNorm over the last dim."""
    return F.layer_norm(x_BSC, weight_C.shape, weight_C, bias_C, eps)


def rope_tables(seq_len: int, head_dim: int, theta: float, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary angles, each [S, D] (halves repeated). arXiv 2104.09864 section 3.2.2."""
    inverse = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(seq_len, device=device, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rope(x_BSHD: Tensor, cos_SD: Tensor, sin_SD: Tensor) -> Tensor:
    """Return x with its head dim rotated by position (the half-split pairing of the Hugging Face layout)."""
    first, second = x_BSHD.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BSHD * cos_SD[:, None, :].to(x_BSHD.dtype) + turned * sin_SD[:, None, :].to(x_BSHD.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up. arXiv 2002.05202."""
    return F.silu(gate) * up


def gelu(x: Tensor) -> Tensor:
    """Return GELU in its tanh form, as GPT-2 has it. arXiv 1606.08415."""
    return F.gelu(x, approximate="tanh")


class _Fp8Linear(torch.autograd.Function):
    """y = x wᵀ in FP8: inputs and weights in e4m3, gradients in e5m2, each tensor with one scale (arXiv 2209.05433).

    The kernel takes its second operand with the summed dim last in memory. Backward keeps the narrow input, and the weight
    as it is, which lives anyway.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x_RC: Tensor, weight_FC: Tensor) -> Tensor:
        x, scale = _narrow(x_RC, torch.float8_e4m3fn)
        ctx.save_for_backward(x, scale, weight_FC)
        weight, of_weight = _narrow(weight_FC, torch.float8_e4m3fn)
        return torch._scaled_mm(x, weight.t(), scale, of_weight, out_dtype=x_RC.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_RF: Tensor) -> tuple[Tensor, Tensor]:
        x, scale, weight_FC = ctx.saved_tensors  # type: ignore[attr-defined]
        grad, of_grad = _narrow(grad_RF, torch.float8_e5m2)
        weight, of_weight = _narrow(weight_FC, torch.float8_e4m3fn)
        grad_x = torch._scaled_mm(grad, weight.t().contiguous().t(), of_grad, of_weight, out_dtype=grad_RF.dtype)
        grad_weight = torch._scaled_mm(grad.t().contiguous(), x.t().contiguous().t(), of_grad, scale, out_dtype=grad_RF.dtype)
        return grad_x, grad_weight


def _narrow(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a tensor in FP8 whose largest element is the type's, and what to multiply it by."""
    scale = x.abs().amax().float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype).contiguous(), scale


def linear_fp8(x: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Tensor:
    """Return a linear map of the last dim, multiplied in FP8; rows and both widths are multiples of 16."""
    out: Tensor = _Fp8Linear.apply(x.flatten(0, -2), weight_FC)  # type: ignore[no-untyped-call]
    out = out.view(*x.shape[:-1], -1)
    return out if bias_F is None else out + bias_F


def route(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weight of each row, where it stands among [T, K] choices, and the rows of each expert; rows by expert.

    Weights are a softmax over the logits of the chosen experts, in fp32 (arXiv 2401.04088, section 2.1).
    """
    logits_TK, chosen_TK = logits_TE.topk(top_k, dim=-1)
    order_R = chosen_TK.flatten().argsort(stable=True)
    counts_E = torch.bincount(chosen_TK.flatten(), minlength=logits_TE.shape[1])
    return logits_TK.float().softmax(-1).flatten()[order_R], order_R, counts_E


def permute(x_RC: Tensor, order_R: Tensor) -> Tensor:
    """Return rows in another order, or several times."""
    return x_RC.index_select(0, order_R)


def grouped_linear(x_RC: Tensor, weight_EFC: Tensor, counts: list[int]) -> Tensor:
    """Return rows [R, F] of which `counts` in turn go through each group's weight."""
    if x_RC.device.type == "cuda" and x_RC.dtype == torch.bfloat16:
        ends = torch.tensor(counts, device=x_RC.device).cumsum(0, dtype=torch.int32)
        return F.grouped_mm(x_RC, weight_EFC.transpose(1, 2), offs=ends)
    # taken apart in one go: indexing the stack would make a whole stack of gradients for each group
    groups = zip(torch.split(x_RC, counts), weight_EFC.unbind(), strict=True)
    return torch.cat([F.linear(rows, weight) for rows, weight in groups])


def attention(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """Return causal attention [B, S, H, D]; fewer key-value heads than heads are shared."""
    out = F.scaled_dot_product_attention(
        q_BSHD.transpose(1, 2), k_BSHD.transpose(1, 2), v_BSHD.transpose(1, 2),
        is_causal=True, enable_gqa=q_BSHD.shape[2] != k_BSHD.shape[2],
    )
    return out.transpose(1, 2)


def cross_entropy(logits_BSC: Tensor, targets_BS: Tensor) -> Tensor:
    """Return the mean token loss, in fp32."""
    return F.cross_entropy(logits_BSC.flatten(0, 1).float(), targets_BS.flatten(0, 1))
