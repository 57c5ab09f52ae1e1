"""Feed-forward blocks, dense and of experts: parameters and operators."""

from __future__ import annotations

from dataclasses import replace

from profiles.collectives import Collective, reached
from profiles.families.pieces import (
    ACTIVATION,
    Item,
    Shape,
    fan_in,
    gather,
    gemm,
    linear_params,
    norm,
    norm_params,
    pointwise,
    scatter,
    used,
)
from profiles.matmul import Gemm, GroupedGemm
from profiles.model import Experts, FeedForward, ModelSpec, ParamSpec
from profiles.ops import ELEMENT_BYTES, Num
from profiles.pointwise import Pointwise


def dense_params(spec: ModelSpec, ffn: FeedForward, name: str = "ffn") -> tuple[ParamSpec, ...]:
    """Return the parameters of a dense block; linear weights are [out, in]."""
    h, f = spec.hidden, ffn.hidden
    return (
        *linear_params(f"{name}.w1", f, h, 0, ffn.bias),
        *(linear_params(f"{name}.w3", f, h, 0, ffn.bias) if ffn.gated else ()),
        *linear_params(f"{name}.w2", h, f, 1, ffn.bias),
    )


def dense_items(
    spec: ModelSpec, ffn: FeedForward, shape: Shape, name: str = "ffn", *, saves_input: bool = True,
) -> tuple[Item, ...]:
    """Return gather, projections up, activation, projection down and scatter."""
    return (
        *gather(name, spec.hidden, shape),
        *fan_in(f"{name}.fan_in", shape.tokens, spec.hidden, shape, projections(ffn, shape)),
        *dense_core(spec, ffn, shape, name, saves_input=saves_input),
        *scatter(name, spec.hidden, shape),
    )


def projections(ffn: FeedForward, shape: Shape) -> int:
    """Return how many matmuls read the normed input."""
    return 2 if ffn.gated and not shape.fused_projections else 1


def dense_core(
    spec: ModelSpec, ffn: FeedForward, shape: Shape, name: str = "ffn", *, saves_input: bool = True,
) -> tuple[Item, ...]:
    """Return what lies between the gathered input and the partial output; another block may keep the input."""
    t, h, f = shape.tokens, spec.hidden, ffn.hidden / shape.tp
    up: tuple[Item, ...] = (gemm(f"{name}.w1", t, h, f, shape, saves_input=saves_input),)
    if ffn.gated:
        up = (
            (gemm(f"{name}.w13", t, h, 2 * f, shape, saves_input=saves_input),) if shape.fused_projections else
            (*up, gemm(f"{name}.w3", t, h, f, shape, saves_input=False))
        )
    return (
        *up, pointwise(f"{name}.{ffn.activation}", ACTIVATION[ffn.activation], t, f, shape),
        gemm(f"{name}.w2", t, f, h, shape),
    )


def expert_params(spec: ModelSpec, ffn: Experts) -> tuple[ParamSpec, ...]:
    """Return router, experts [experts, out, in], and what all tokens share."""
    h, e, f = spec.hidden, ffn.num_experts, ffn.hidden
    width, share = ffn.latent or h, ffn.top_k / e
    branches = ("ffn.experts_norm", "ffn.experts_post_norm", "ffn.shared_post_norm") if ffn.branch_norms else ()

    def expert(name: str, shape: tuple[int, ...], tp_dim: int | None) -> ParamSpec:
        return ParamSpec(name=f"ffn.experts.{name}", shape=(e, *shape), tp_dim=tp_dim, expert=True, active=share)

    up = ("w1", "w3") if ffn.gated else ("w1",)
    return (
        *linear_params("ffn.router", e, h, None, ffn.router_linear_bias),
        *((ParamSpec(name="ffn.router.correction", shape=(e,)),) if ffn.router_bias else ()),
        *((ParamSpec(name="ffn.router.scale", shape=(h,)), ParamSpec(name="ffn.router.expert_scale", shape=(e,)))
          if ffn.branch_norms else ()),
        *(p for branch in branches for p in norm_params(spec, branch)),
        *(linear_params("ffn.latent_down", ffn.latent, h, None, ffn.bias) if ffn.latent else ()),
        *(expert(f"{n}.weight", (f, width), 1) for n in up),
        *(expert(f"{n}.bias", (f,), 1) for n in up if ffn.bias),
        expert("w2.weight", (width, f), 2),
        *((expert("w2.bias", (width,), None),) if ffn.bias else ()),
        *(linear_params("ffn.latent_up", h, ffn.latent, None, ffn.bias) if ffn.latent else ()),
        *(dense_params(spec, _shared(ffn), "ffn.shared") if ffn.shared_hidden else ()),
        *(linear_params("ffn.shared_gate", 1, h, None) if ffn.shared_gate else ()),
    )


def _shared(ffn: Experts) -> FeedForward:
    return FeedForward(hidden=ffn.shared_hidden, activation=ffn.activation, bias=ffn.bias)


def expert_items(spec: ModelSpec, ffn: Experts, shape: Shape) -> tuple[Item, ...]:
    """Return router, dispatch over ep, the experts of this rank, combination, and the shared block.

    Each rank dispatches the tokens whose residual stream it holds, top_k copies of each; the degree of expert tensor
    parallelism is its own (parallel folding, arXiv 2504.14960).
    """
    local, h, k = shape.local_tokens, spec.hidden, ffn.top_k
    width = ffn.latent or h
    routed = local * k
    travelling = local * reached(shape.ep, k) if shape.sends_once else routed
    copies = k if shape.sends_once else 0
    # with a token sent once go its weights for all experts, in fp32 (HybridEP: probabilities of the whole domain)
    weights = 4 / ELEMENT_BYTES[shape.dtype] * ffn.num_experts if shape.sends_once else 0
    # Megatron-Core's all-to-all dispatcher sorts copies by rank before they leave, and by expert where they arrive
    arrived = routed * shape.imbalance
    sorts = shape.expert_kernels == "loop" and not shape.sends_once
    sort = (pointwise("ffn.sort", "permute", arrived, width, shape),) if sorts else ()
    readers = 2 + bool(ffn.shared_hidden) + ffn.shared_gate
    return (
        *fan_in("ffn.fan_in", local, h, shape, readers),
        *((pointwise("ffn.router_norm", "rms_norm", local, h, shape), norm(spec, "ffn.experts_norm", shape))
          if ffn.branch_norms else ()),
        # the choice of experts is computed in full precision (arXiv 2101.03961, section 2.4); the matmul is not narrowed
        Gemm(name="ffn.router", m=local, k=h, n=ffn.num_experts, dtype=shape.dtype),
        Pointwise(name="ffn.route", kind="route", rows=local, cols=ffn.num_experts, dtype="fp32", mode=shape.mode),
        *((gemm("ffn.latent_down", local, h, width, shape, saves_input=False),) if ffn.latent else ()),
        pointwise("ffn.permute", "permute", routed, width, shape),
        *_routes(ffn, shape),
        *_dispatched("ffn.dispatch", "all_gather", travelling, width + weights, shape, copies),
        *sort,
        *_grouped(ffn, arrived * shape.etp, width, shape),
        *sort,
        *reversed(_dispatched("ffn.combine", "reduce_scatter", travelling, width, shape, copies)),
        pointwise("ffn.unpermute", "permute", routed, width, shape),
        *((gemm("ffn.latent_up", local, width, h, shape),) if ffn.latent else ()),
        *((norm(spec, "ffn.experts_post_norm", shape),) if ffn.branch_norms else ()),
        *_shared_items(spec, ffn, shape),
    )


def _routes(ffn: Experts, shape: Shape) -> tuple[Collective, ...]:
    """Return what tells every rank which experts all tokens of the group go to, a byte for each pair.

    HybridEP gathers this map before it sends (deepseek-ai/DeepEP hybrid-ep, allgather_routing_map), forward only.
    """
    size = shape.local_tokens * ffn.num_experts * shape.ep
    return (Collective(name="ffn.routes", kind="all_gather", axis="ep", bytes=size, group_size=shape.ep, backward_group=1),) \
        if shape.sends_once else ()


def _dispatched(
    name: str, over_etp: str, rows: Num, width: Num, shape: Shape, copies: int
) -> tuple[Collective, ...]:
    """Return the all-to-all over ep (what one rank sends), and the gather or scatter over expert tensor parallelism."""
    sent = ELEMENT_BYTES[shape.dtype] * rows * width
    exchange = Collective(name=name, kind="all_to_all", axis="ep", bytes=sent, group_size=shape.ep, copies=copies)
    cut = Collective(name=f"{name}.etp", kind=over_etp, axis="etp", bytes=sent * shape.etp, group_size=shape.etp)
    return (exchange, cut) if used(shape.etp) else (exchange,)


def _grouped(ffn: Experts, rows: Num, width: Num, shape: Shape) -> tuple[Item, ...]:
    """Return the matmuls of this rank's experts, which share `rows` evenly."""
    groups, f = ffn.num_experts / shape.ep, ffn.hidden / shape.etp
    m, fused, looped = rows / groups, shape.expert_kernels == "fused", shape.expert_kernels == "loop"

    def grouped(name: str, k: Num, n: Num, casts: str, saves_input: bool = True) -> GroupedGemm:
        # where kernels are fused, the matmul in front of an activation (forward) or behind it (backward) writes it cast
        return GroupedGemm(name=f"ffn.experts.{name}", groups=groups, m=m, k=k, n=n, dtype=shape.dtype,
                           matmul=shape.matmul, saves_input=saves_input, looped=looped,
                           casts=(casts,) if fused else ("input", "gradient"))

    split = ffn.gated and not shape.fused_projections
    up = (grouped("w1", width, f, "input"), grouped("w3", width, f, "input", False)) if split else \
        (grouped("w13", width, 2 * f, "input"),) if ffn.gated else (grouped("w1", width, f, "input"),)
    activation = pointwise(f"ffn.experts.{ffn.activation}", ACTIVATION[ffn.activation], rows, f, shape)
    return (
        *fan_in("ffn.experts.fan_in", rows, width, shape, len(up)), *up, replace(activation, absorbed=fused),
        grouped("w2", f, width, "gradient"), *_biased(ffn, rows, width, shape),
    )


def _biased(ffn: Experts, rows: Num, width: Num, shape: Shape) -> tuple[Item, ...]:
    """Return what adds the biases of the experts' outputs, each times its token's weight, where no kernel does it too.

    Eager in fp32: the product, the sum, and joining the experts (Megatron-Core moe/experts.py, _apply_bias).
    """
    if not ffn.bias or shape.expert_kernels != "loop":
        return ()
    return tuple(Pointwise(name=f"ffn.experts.bias.{n}", kind="add", rows=rows, cols=width, dtype="fp32", mode=shape.mode)
                 for n in ("product", "sum", "join"))


def _shared_items(spec: ModelSpec, ffn: Experts, shape: Shape) -> tuple[Item, ...]:
    if not ffn.shared_hidden:
        return ()
    local, h = shape.local_tokens, spec.hidden
    return (
        # the router keeps the input
        *dense_items(spec, _shared(ffn), shape, "ffn.shared", saves_input=False),
        *((gemm("ffn.shared_gate", local, h, 1, shape, saves_input=False),
           pointwise("ffn.shared_gate.mul", "gate", local, h, shape)) if ffn.shared_gate else ()),
        *((norm(spec, "ffn.shared_post_norm", shape),) if ffn.branch_norms else ()),
        pointwise("ffn.shared.add", "add", local, h, shape),
    )
