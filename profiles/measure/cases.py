"""A kernel to be timed: its torch call as a training step makes it, over inputs that rotate through a pool.

Forward runs with the autograd graph being built; backward runs the graph of forwards that were made off the clock.
Several calls share one sample, on different inputs. What a step has just written when a kernel starts (activations
forward, the output's gradient backward) is read once off the clock, so that it is as near as it is there; weights are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from profiles import kernels
from profiles.ops import Kernel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
NORM_EPS = 1e-5
TENSORS_A_PART, MAX_PARTS = 9, 8
"""Tensors of a layer, and parts of a model that one optimizer is given at most."""
OPTIMIZER_BYTES = 1 << 28
"""Weights, gradients and moments of those parts take no more than this."""
ALIGNMENT = 64
"""Inputs start at a multiple of this many elements, as an allocator's do."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kernel, `prepare(num_calls)` off the clock, and `call(prepared)`, which makes the calls and returns results."""

    kernel: Kernel
    prepare: Callable[[int], Any]
    call: Callable[[Any], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A differentiable function of `shapes`; which of them a pass differentiates, and how many are activations (first)."""

    shapes: tuple[Shape, ...]
    apply: Callable[..., Tensor]
    wanted: tuple[int, ...]
    num_activations: int

    @property
    def num_elements(self) -> int:
        """Return the elements of one set of inputs, each aligned."""
        return sum(_aligned(prod(s)) for s in self.shapes)


def case_of(kernel: Kernel, pool: Tensor) -> Case:
    """Return the case of a kernel with inputs out of `pool` (one dimension, the kernel's dtype)."""
    if kernel.kind == "adamw":
        return _adamw(kernel, pool)
    if kernel.dtype == "fp8" or kernel.kind == "quantise":
        return _ungraded(kernel, pool)
    recipe = recipe_of(kernel, pool.device)
    numbers = itertools.count()

    def inputs(wanted: tuple[int, ...]) -> list[Tensor]:
        return [t.requires_grad_(i in wanted) for i, t in enumerate(_take(pool, recipe.shapes, numbers))]

    def forward_sets(num_calls: int) -> list[list[Tensor]]:
        sets = [inputs(tuple(range(len(recipe.shapes)))) for _ in range(num_calls)]
        _touch(t for tensors in sets for t in tensors[: recipe.num_activations])
        return sets

    def forward(sets: list[list[Tensor]]) -> list[Tensor]:
        return [recipe.apply(*tensors) for tensors in sets]

    def graphs(num_calls: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        sets = [inputs(recipe.wanted) for _ in range(num_calls)]
        outputs = [recipe.apply(*tensors) for tensors in sets]
        grads = [t.to(o.dtype) for o in outputs for t in _take(pool, (tuple(o.shape),), numbers)]
        _touch(grads)
        return outputs, [tensors[i] for tensors in sets for i in recipe.wanted], grads

    def backward(prepared: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> None:
        # unlike activations, gradients are freed as backward goes: here
        torch.autograd.grad(*prepared)

    if kernel.pass_ == "F":
        return Case(kernel=kernel, prepare=forward_sets, call=forward)
    if kernel.kind == "add":
        return _accumulate(kernel, recipe, pool, numbers)
    return Case(kernel=kernel, prepare=graphs, call=backward)


def num_pool_elements(kernel: Kernel) -> int:
    """Return the elements that a pool must have for one call of this kernel."""
    if kernel.kind == "adamw":
        return 1
    if kernel.dtype == "fp8" or kernel.kind == "quantise":
        return sum(_aligned(prod(s)) for s in _ungraded_shapes(kernel)) + ALIGNMENT
    recipe = recipe_of(kernel, "meta")
    return max(recipe.num_elements, _aligned(int(kernel.written_bytes))) + ALIGNMENT


def recipe_of(kernel: Kernel, device: torch.device | str) -> Recipe:
    """Return how a kernel is called: shapes as in the executor's model, [1, rows, cols] for pointwise operators."""
    make = _RECIPES[kernel.kind]
    return make(kernel, device)


def _gemm(kernel: Kernel, device: torch.device | str) -> Recipe:
    a, b, c = kernel.size
    m, n, k = {"F": (a, b, c), "B": (a, c, b), "W": (c, b, a)}[kernel.pass_]
    return Recipe(shapes=((1, m, k), (n, k)), apply=F.linear, wanted=(1,) if kernel.pass_ == "W" else (0,), num_activations=1)


def _attention(kernel: Kernel, device: torch.device | str) -> Recipe:
    batch, heads, seq_len, head_dim = kernel.size
    shape = (batch, seq_len, heads, head_dim)
    return Recipe(shapes=(shape, shape, shape), apply=kernels.attention, wanted=(0, 1, 2), num_activations=3)


def _rms_norm(kernel: Kernel, device: torch.device | str) -> Recipe:
    rows, cols = kernel.size
    apply = partial(kernels.rms_norm, eps=NORM_EPS)
    return Recipe(shapes=((1, rows, cols), (cols,)), apply=apply, wanted=(0, 1), num_activations=1)


def _layer_norm(kernel: Kernel, device: torch.device | str) -> Recipe:
    rows, cols = kernel.size
    apply = partial(kernels.layer_norm, eps=NORM_EPS)
    return Recipe(shapes=((1, rows, cols), (cols,), (cols,)), apply=apply, wanted=(0, 1, 2), num_activations=1)


def _rope(kernel: Kernel, device: torch.device | str) -> Recipe:
    rows, cols = kernel.size
    # the kernel does not name its head dim: 64 is usual up to 1024 channels, 128 above
    usual = 64 if cols <= 1024 else 128
    head_dim = usual if cols % usual == 0 else cols
    # the executor casts the tables once a step, not once a call
    cos_SD, sin_SD = (t.to(DTYPES[kernel.dtype]) for t in kernels.rope_tables(rows, head_dim, 10000.0, device))
    apply = partial(kernels.rope, cos_SD=cos_SD, sin_SD=sin_SD)
    return Recipe(shapes=((1, rows, cols // head_dim, head_dim),), apply=apply, wanted=(0,), num_activations=1)


def _swiglu(kernel: Kernel, device: torch.device | str) -> Recipe:
    shape = (1, *kernel.size)
    return Recipe(shapes=(shape, shape), apply=kernels.swiglu, wanted=(0, 1), num_activations=2)


def _gelu(kernel: Kernel, device: torch.device | str) -> Recipe:
    return Recipe(shapes=((1, *kernel.size),), apply=kernels.gelu, wanted=(0,), num_activations=1)


def _add(kernel: Kernel, device: torch.device | str) -> Recipe:
    shape = (1, *kernel.size)
    return Recipe(shapes=(shape, shape), apply=torch.add, wanted=(0, 1), num_activations=2)


def _embedding(kernel: Kernel, device: torch.device | str) -> Recipe:
    tokens, hidden, vocab = kernel.size
    ids = torch.randint(vocab, (1, tokens), device=device)
    return Recipe(shapes=((vocab, hidden),), apply=partial(F.embedding, ids), wanted=(0,), num_activations=0)


def _cross_entropy(kernel: Kernel, device: torch.device | str) -> Recipe:
    tokens, vocab = kernel.size
    targets = torch.randint(vocab, (1, tokens), device=device)
    apply = partial(kernels.cross_entropy, targets_BS=targets)
    return Recipe(shapes=((1, tokens, vocab),), apply=apply, wanted=(0,), num_activations=1)


def _grouped_gemm(kernel: Kernel, device: torch.device | str) -> Recipe:
    groups, a, b, c = kernel.size
    m, n, k = {"F": (a, b, c), "B": (a, c, b), "W": (c, b, a)}[kernel.pass_]
    apply = partial(kernels.grouped_linear, counts=[m] * groups)
    return Recipe(shapes=((groups * m, k), (groups, n, k)), apply=apply, wanted=(1,) if kernel.pass_ == "W" else (0,),
                  num_activations=1)


def _permute(kernel: Kernel, device: torch.device | str) -> Recipe:
    rows, cols = kernel.size
    apply = partial(kernels.permute, order_R=torch.randperm(rows, device=device))
    return Recipe(shapes=((rows, cols),), apply=apply, wanted=(0,), num_activations=1)


def _route(kernel: Kernel, device: torch.device | str) -> Recipe:
    rows, cols = kernel.size
    # the kernel does not name how many experts a token takes: two are usual of few, eight of many
    top_k = min(2 if cols <= 16 else 8, cols)
    return Recipe(shapes=((rows, cols),), apply=lambda logits: kernels.route(logits, top_k)[0], wanted=(0,), num_activations=1)


_RECIPES: dict[str, Callable[[Kernel, torch.device | str], Recipe]] = {
    "gemm": _gemm, "attention": _attention, "rms_norm": _rms_norm, "layer_norm": _layer_norm, "rope": _rope,
    "swiglu": _swiglu, "gelu": _gelu, "add": _add, "embedding": _embedding, "cross_entropy": _cross_entropy,
    "grouped_gemm": _grouped_gemm, "permute": _permute, "route": _route,
}


def _accumulate(kernel: Kernel, recipe: Recipe, pool: Tensor, numbers: Iterator[int]) -> Case:
    def prepare(num_calls: int) -> list[list[Tensor]]:
        sets = [_take(pool, recipe.shapes, numbers) for _ in range(num_calls)]
        _touch(second for _, second in sets)
        return sets

    def call(sets: list[list[Tensor]]) -> None:
        # autograd hands an add's gradient on as it is; what backward pays is the sum of the gradients of the two
        # branches, which its engine makes in place. A factor of 0 costs the same and leaves the pool as it was.
        for first, second in sets:
            first.add_(second, alpha=0)

    return Case(kernel=kernel, prepare=prepare, call=call)


def num_parts(num_params: int) -> int:
    """Return how many parts (layers) of a model an optimizer is given: one call updates them all, as in training."""
    return max(1, min(MAX_PARTS, OPTIMIZER_BYTES // (16 * num_params)))


def _adamw(kernel: Kernel, pool: Tensor) -> Case:
    """Return the update of parts of a model by one optimizer; a call stands for one part's share of its step."""
    num_params = kernel.size[0]
    num_tensors = min(TENSORS_A_PART, num_params)
    made: dict[int, torch.optim.AdamW] = {}

    def prepare(num_calls: int) -> torch.optim.AdamW:
        if num_calls not in made:
            made.clear()
            tensors = [torch.zeros(num_params // num_tensors, device=pool.device, requires_grad=True)
                       for _ in range(num_tensors * num_calls)]
            made[num_calls] = torch.optim.AdamW(tensors, lr=1e-4, fused=True)
        (group,) = made[num_calls].param_groups
        for tensor in group["params"]:
            tensor.grad = torch.full_like(tensor, 1e-3)
        return made[num_calls]

    def call(optimizer: torch.optim.AdamW) -> None:
        optimizer.step()
        # a training step frees its gradients, too
        optimizer.zero_grad()

    return Case(kernel=kernel, prepare=prepare, call=call)


def _ungraded_shapes(kernel: Kernel) -> tuple[Shape, ...]:
    """Return the inputs of a kernel that is called by itself, whatever the pass: both matrices with k last, or a tensor."""
    if kernel.kind == "quantise":
        rows, cols = kernel.size
        return ((rows, cols),)
    m, n, k = kernel.size
    return ((m, k), (n, k))


def _ungraded(kernel: Kernel, pool: Tensor) -> Case:
    """Return an FP8 matmul, or a cast to FP8 in both layouts: of each pass autograd knows nothing."""
    numbers = itertools.count()
    shapes = _ungraded_shapes(kernel)
    one = torch.ones((), device=pool.device)

    def prepare(num_calls: int) -> list[list[Tensor]]:
        sets = [_take(pool, shapes, numbers) for _ in range(num_calls)]
        if kernel.kind == "quantise":
            _touch(t for tensors in sets for t in tensors)
        return sets

    def call(sets: list[list[Tensor]]) -> list[object]:
        if kernel.kind == "quantise":
            # matmuls take their operands with k last only, so that a tensor is needed as it is and transposed
            narrow = [x.to(DTYPES["fp8"]) for (x,) in sets]
            return [(x, x.t().contiguous()) for x in narrow]
        return [torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16) for a, b in sets]

    return Case(kernel=kernel, prepare=prepare, call=call)


def _aligned(num_elements: int) -> int:
    return -(-num_elements // ALIGNMENT) * ALIGNMENT


def _touch(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        tensor.detach().sum()


def _take(pool: Tensor, shapes: tuple[Shape, ...], numbers: Iterator[int]) -> list[Tensor]:
    needed = sum(_aligned(prod(s)) for s in shapes)
    room = (pool.numel() - needed) // ALIGNMENT + 1
    start = (next(numbers) * (needed // ALIGNMENT)) % room * ALIGNMENT
    taken = []
    for shape in shapes:
        taken.append(pool[start : start + prod(shape)].view(shape).detach())
        start += _aligned(prod(shape))
    return taken
