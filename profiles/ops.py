"""What every operator says: shape and dtype in; FLOP, bytes moved and bytes saved for backward out. Never seconds.

The operators themselves stand in files by kind: matmul, attention, scan, pointwise, vocabulary, optimizer. Every dimension may
be a number or a NumPy array, so that one op describes a batch of strategies.

`model_flop` follows the convention of `simulator/metrics.py`: a multiply-add is 2 FLOP, causal attention is not
halved, backward of a matmul is two matmuls. `flop` is what the kernel really executes (flash attention skips
the masked half and recomputes the scores in backward: Dao, arXiv 2205.14135 and 2307.08691).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Num = Any
"""A number or a NumPy array of numbers."""

Pass = Literal["F", "B", "W", "U"]
"""Forward, backward for the input, backward for the weight, update."""

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "mxfp8": 33 / 32, "nvfp4": 9 / 16}
"""Bytes of an element; block formats carry a scale of one byte for 32 (MXFP8, OCP MX 1.0) or 16 (NVFP4) elements."""

SIZES = {
    "gemm": ("m", "n", "k"),
    "grouped_gemm": ("groups", "m", "n", "k"),
    "batched_gemm": ("groups", "m", "n", "k"),
    "attention": ("batch", "heads", "seq_len", "head_dim"),
    "embedding": ("tokens", "hidden", "vocab"),
    "cross_entropy": ("tokens", "vocab"),
    "adamw": ("params",),
    "scan": ("tokens", "heads", "head_dim", "state"),
} | dict.fromkeys((
    "rms_norm", "layer_norm", "rope", "swiglu", "gelu", "relu2", "add", "dropout", "softmax", "quantise", "permute",
    "route", "conv", "gate",
), ("rows", "cols"))
"""What the numbers of `Kernel.size` mean, by kind of kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What one pass of an operator asks of the machine."""

    kind: str
    pass_: Pass
    dtype: str
    size: tuple[Num, ...]
    flop: Num = 0.0
    model_flop: Num = 0.0
    read_bytes: Num
    written_bytes: Num
    launches: Num = 1
    version: str = ""

    @property
    def moved_bytes(self) -> Num:
        """Return the bytes read and written."""
        return self.read_bytes + self.written_bytes


class Op(Protocol):
    """An operator: its kernels by pass, what backward needs of it, what it leaves."""

    @property
    def name(self) -> str: ...
    @property
    def saved_bytes(self) -> Num: ...
    @property
    def output_bytes(self) -> Num: ...
    @property
    def gradient_bytes(self) -> Num: ...
    @property
    def kept_by_selective(self) -> bool: ...
    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]: ...
