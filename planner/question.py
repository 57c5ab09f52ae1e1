"""The question: a model, a cluster, a token budget, and what is given of the step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from profiles.files import BadInput
from profiles.hardware import Cluster, Price
from profiles.model import ModelSpec
from profiles.prices import default_price
from simulator.adapters import largest_rank
from simulator.software import MODES, Software
from simulator.strategy import LORA_TARGETS, MATMUL_TYPES, PRECISIONS

DEFAULT_TOKENS_PER_STEP = 4 * 2**20
"""Tokens of one step where none are given: 4 Mi, as Llama 2 was trained (arXiv 2307.09288, section 2.2)."""
DEFAULT_MAX_SEQ_LEN = 8192
"""Longest sequence assumed where none is given: longer context is a stage of its own (arXiv 2407.21783, 3.4.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked; `assumptions` says in words what was not given and was filled in.

    With a `lora_rank` low-rank adapters on `lora_targets` are trained, not the model.
    """

    model: ModelSpec
    cluster: Cluster
    cluster_text: str
    tokens: float
    seq_len: int
    global_batch: int
    precision: str
    software: Software
    price: Price | None
    lora_rank: int = 0
    lora_targets: str = "attention"
    assumptions: tuple[str, ...] = ()


def ask(
    model: ModelSpec, cluster: Cluster, *, tokens: float, cluster_text: str = "", seq_len: int | None = None,
    global_batch: int | None = None, precision: str | None = None, kernels: str | None = None,
    software: Software | None = None, price: Price | None = None, lora_rank: int = 0, lora_targets: str = "attention",
) -> Question:
    """Return a question with what is not given filled in, and each filling said."""
    if tokens <= 0:
        raise BadInput(f"tokens: must be more than zero (is {tokens:g}); write it like '15T'")
    assumptions: list[str] = []
    if seq_len is None:
        seq_len = min(model.max_seq_len, DEFAULT_MAX_SEQ_LEN)
        assumptions.append(f"sequence length {seq_len}: the model's context, at most {DEFAULT_MAX_SEQ_LEN}")
    if seq_len < 1 or seq_len > model.max_seq_len:
        raise BadInput(f"seq_len: must be from 1 to the model's context of {model.max_seq_len} (is {seq_len})")
    if global_batch is None:
        global_batch = _default_batch(seq_len, cluster.num_gpus)
        assumptions.append(
            f"global batch {global_batch} sequences ({global_batch * seq_len / 2**20:.3g} Mi tokens): about 4 Mi "
            "tokens a step as for Llama 2 (arXiv 2307.09288), at least one sequence for each accelerator"
        )
    if global_batch < 1:
        raise BadInput(f"global_batch: must be at least 1 sequence (is {global_batch})")
    for name, value, known in (("precision", precision, PRECISIONS), ("kernels", kernels, MODES),
                               ("lora_targets", lora_targets, LORA_TARGETS)):
        if value is not None and value not in known:
            raise BadInput(f"{name}: {value!r} is not known; known are {', '.join(known)}")
    _check_adapters(model, lora_rank, lora_targets)
    cuda = cluster.accelerator.device == "cuda"
    if precision is None:
        precision = "bf16" if cuda else "fp32"
        assumptions.append(f"precision {precision}" + (" with fp32 master weights and gradients" if cuda else ""))
    for dtype in filter(None, MATMUL_TYPES[precision]):
        if dtype not in cluster.accelerator.peak_flop_per_s:
            peaks = ", ".join(cluster.accelerator.peak_flop_per_s)
            raise BadInput(f"precision: {precision!r} computes in {dtype}, which {cluster.accelerator.title} lacks; "
                           f"it has {peaks}")
    if software is None:
        software = Software(kernels="fused" if cuda else "eager")
        assumptions.append(f"software: {software.framework}, {software.year}")
    if kernels is None:
        assumptions.append(f"kernels {software.kernels}" + (
            ": pointwise chains compiled into one" if software.kernels == "fused" else ""
        ))
    else:
        software = replace(software, kernels=kernels)
    price = price or default_price(cluster.accelerator)
    if price:
        assumptions.append(
            f"{price.usd_per_gpu_hour:g} USD per GPU-hour, {price.term}, {price.provider}, as of {price.date} "
            f"({price.source})"
        )
    if software.pipe_buffers:
        assumptions.append(
            "memory and recomputation are those of torch's own engines: a pipeline keeps its buffers until the step ends"
        )
    assumptions.append("days that stand beside a step are those of an undisturbed run: no failures, evaluation or checkpoints")
    return Question(
        model=model, cluster=cluster, cluster_text=cluster_text or f"{cluster.name}:{cluster.num_nodes}",
        tokens=tokens, seq_len=seq_len, global_batch=global_batch, precision=precision, software=software, price=price,
        lora_rank=lora_rank, lora_targets=lora_targets, assumptions=tuple(assumptions),
    )


def _check_adapters(model: ModelSpec, rank: int, targets: str) -> None:
    """Refuse adapters that are no narrower than the maps beside which they stand."""
    if rank and not 0 < rank <= largest_rank(model, targets):
        raise BadInput(f"lora_rank: must be from 0 (all weights are trained) to {largest_rank(model, targets)}, the narrowest "
                       f"of {model.name}'s linear maps of {targets} (is {rank})")


def _default_batch(seq_len: int, num_gpus: int) -> int:
    """Return sequences for about 4 Mi tokens: the multiple of the accelerators' number nearest below, at least that."""
    wanted = max(1, DEFAULT_TOKENS_PER_STEP // seq_len)
    return max(num_gpus, wanted // num_gpus * num_gpus)
