"""The kernels of a step by kind: their seconds, their FLOP, and what these take at peak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from profiles.cost import CostModel, peak_flop_per_s
from profiles.model import ModelSpec, Part
from profiles.ops import Kernel
from simulator.pricing import Prices, as_run, price
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.workload import PartWork, Work, Workload, build_workload

KINDS = {
    "gemm": "matmul", "grouped_gemm": "grouped_matmul", "attention": "attention", "batched_gemm": "attention",
    "softmax": "attention", "scan": "scan", "conv": "scan", "embedding": "vocabulary", "cross_entropy": "vocabulary",
    "quantise": "casts", "permute": "routing", "route": "routing",
}
"""Kinds of kernels as terms; all that are not named are pointwise."""
COMPUTED = ("matmul", "grouped_matmul", "attention", "scan")
"""Terms whose kernels have FLOP, so an efficiency of the peak."""
Sums = dict[str, NDArray[np.float64]]
"""By kind: seconds, FLOP, and seconds of these FLOP at peak."""


def work_per_token(model: ModelSpec, strategy: Strategy) -> dict[str, float]:
    """Return what a model asks for a token, by kind: FLOP where there are any, else the bytes of fused kernels in bf16."""
    one = Strategy(seq_len=strategy.seq_len, lora_rank=strategy.lora_rank, lora_targets=strategy.lora_targets,
                   software=Software(kernels="fused"))
    work: dict[str, float] = {}
    for name, part in build_workload(model, one).parts.items():
        for kernel in _kernels((*part.forward, *part.backward)):
            kind = KINDS.get(kernel.kind, "pointwise")
            amount = kernel.model_flop if kind in COMPUTED else kernel.moved_bytes
            work[kind] = work.get(kind, 0.0) + float(model.times(name) * amount) / strategy.seq_len
    return work


def model_flop(model: Mapping[str, float]) -> float:
    """Return the FLOP of a token out of `work_per_token`."""
    return sum(model.get(kind, 0.0) for kind in COMPUTED)


def ratio(part: float, whole: float) -> float:
    """Return part / whole, 0 of nothing."""
    return part / whole if whole else 0.0


def recomputed_share(model: ModelSpec, strategy: Strategy) -> float:
    """Return the FLOP that recomputation repeats over those of backward without it."""
    flop = [0.0, 0.0]
    for name, part in build_workload(model, strategy).parts.items():
        for i, work in enumerate((part.backward, _repeated(part, strategy))):
            flop[i] += sum(float(model.times(name) * k.model_flop) for k in _kernels(work))
    return float(strategy.num_repeats) * ratio(flop[1], flop[0])


def _by_kind(work: Work, cost: CostModel) -> Sums:
    """Return the kernels of some work by kind."""
    sums: Sums = {}
    for kernel in _kernels(work):
        kind = KINDS.get(kernel.kind, "pointwise")
        flop = float(kernel.model_flop) if kind in COMPUTED else 0.0
        ideal_s = flop / peak_flop_per_s(cost.cluster.accelerator, kernel.dtype) if flop else 0.0
        sums[kind] = sums.get(kind, np.zeros(3)) + np.array([float(cost.kernel(kernel).seconds), flop, ideal_s])
    return sums


def _kernels(work: Work) -> Iterable[Kernel]:
    return (w for w in work if isinstance(w, Kernel))


def _repeated(part: PartWork, strategy: Strategy) -> Work:
    return {"none": (), "selective": part.recompute_selective, "full": part.recompute_full}[str(strategy.recompute)]


def kernels_of_parts(workload: Workload, cost: CostModel) -> tuple[dict[Part, Sums], dict[Part, Sums]]:
    """Return the kernels of one micro-batch by part: those of forward and backward, and those that run again."""
    strategy, parts = workload.strategy, workload.parts
    cost, share = as_run(cost, strategy.software), float(strategy.num_repeats)
    return (
        {name: _by_kind((*part.forward, *part.backward), cost) for name, part in parts.items()},
        {name: {kind: share * values for kind, values in _by_kind(_repeated(part, strategy), cost).items()}
         for name, part in parts.items()},
    )


def mean_rank(workload: Workload, ranks: list[list[tuple[Part, int]]], kernels: Mapping[Part, Sums]) -> Sums:
    """Return the kernels of a step on the mean pipeline rank."""
    times = int(workload.strategy.num_microbatches) / len(ranks)
    sums: Sums = {}
    for name, num in (part for rank in ranks for part in rank):
        for kind, values in kernels[name].items():
            sums[kind] = sums.get(kind, np.zeros(3)) + times * num * values
    return sums


def priced_parts(workload: Workload, cost: CostModel) -> tuple[dict[Part, float], dict[Part, float]]:
    """Return by part the seconds of a micro-batch that the host launches late, and those that its kernels take alone."""
    strategy = workload.strategy

    def computed(prices: Prices) -> dict[Part, float]:
        return {name: float(p.forward.compute_s + p.backward.compute_s) for name, p in prices.parts.items()}

    at_once = replace(workload, strategy=replace(strategy, software=replace(strategy.software, host_launch_s=0.0)))
    late, prompt = computed(price(workload, cost)), computed(price(at_once, cost))
    alone = computed(price(at_once, replace(cost, calibration=cost.calibration.model_copy(update={"beside": 0.0}))))
    return {name: late[name] - prompt[name] for name in late}, alone
