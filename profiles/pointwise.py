"""Memory-bound operators over [rows, cols]: what each reads and writes, eager or fused."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.ops import ELEMENT_BYTES, Kernel, Num, Pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Tensors of rows x cols that a pointwise operator reads, writes and keeps, and the kernels it launches."""

    read_forward: float
    written_forward: float
    read_backward: float
    written_backward: float
    saved: float
    launches_forward: int = 1
    launches_backward: int = 1


_ONE_IN_ONE_OUT = Traffic(read_forward=1, written_forward=1, read_backward=2, written_backward=1, saved=1)
_ADD = Traffic(read_forward=2, written_forward=1, read_backward=2, written_backward=1, saved=0)

POINTWISE: dict[tuple[str, str], Traffic] = {
    ("rms_norm", "fused"): _ONE_IN_ONE_OUT,
    ("rms_norm", "eager"): _ONE_IN_ONE_OUT,
    ("layer_norm", "fused"): _ONE_IN_ONE_OUT,
    ("layer_norm", "eager"): _ONE_IN_ONE_OUT,
    ("gelu", "fused"): _ONE_IN_ONE_OUT,
    ("gelu", "eager"): _ONE_IN_ONE_OUT,
    ("add", "fused"): _ADD,
    ("add", "eager"): _ADD,
    ("softmax", "fused"): _ONE_IN_ONE_OUT,
    ("softmax", "eager"): _ONE_IN_ONE_OUT,
    # out = residual + dropout(x): a mask of one byte is kept
    ("dropout", "fused"): Traffic(
        read_forward=2, written_forward=1.5, read_backward=1.5, written_backward=1, saved=0.5,
    ),
    ("dropout", "eager"): Traffic(
        read_forward=4, written_forward=2.5, read_backward=1.5, written_backward=1, saved=0.5, launches_forward=3,
    ),
    ("relu2", "fused"): _ONE_IN_ONE_OUT,
    ("relu2", "eager"): Traffic(
        read_forward=2, written_forward=2, read_backward=4, written_backward=2, saved=2,
        launches_forward=2, launches_backward=2,
    ),
    # y = x * sigmoid(g): a gate on an output
    ("gate", "fused"): Traffic(read_forward=2, written_forward=1, read_backward=3, written_backward=2, saved=2),
    ("gate", "eager"): Traffic(
        read_forward=3, written_forward=2, read_backward=6, written_backward=3, saved=3,
        launches_forward=2, launches_backward=3,
    ),
    # rows gathered by expert, and back
    ("permute", "fused"): Traffic(read_forward=1, written_forward=1, read_backward=1, written_backward=1, saved=0),
    ("permute", "eager"): Traffic(read_forward=1, written_forward=1, read_backward=1, written_backward=1, saved=0),
    # softmax or sigmoid over experts, top-k, counts: small, launch-bound
    ("route", "fused"): Traffic(
        read_forward=2, written_forward=2, read_backward=2, written_backward=2, saved=1,
        launches_forward=4, launches_backward=4,
    ),
    ("route", "eager"): Traffic(
        read_forward=4, written_forward=4, read_backward=4, written_backward=4, saved=2,
        launches_forward=10, launches_backward=8,
    ),
    # a short causal convolution along the sequence
    ("conv", "fused"): _ONE_IN_ONE_OUT,
    ("conv", "eager"): _ONE_IN_ONE_OUT,
    ("rope", "fused"): Traffic(read_forward=1, written_forward=1, read_backward=1, written_backward=1, saved=0),
    ("rope", "eager"): Traffic(
        read_forward=5.5, written_forward=4.5, read_backward=5.5, written_backward=4.5, saved=0,
        launches_forward=5, launches_backward=5,
    ),
    ("swiglu", "fused"): Traffic(read_forward=2, written_forward=1, read_backward=3, written_backward=2, saved=2),
    ("swiglu", "eager"): Traffic(
        read_forward=3, written_forward=2, read_backward=6, written_backward=3, saved=3,
        launches_forward=2, launches_backward=3,
    ),
}
"""Traffic by (kind, 'eager' or 'fused'), in tensors; counted kernel by kernel from the definitions in `kernels.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise:
    """A memory-bound operator over [rows, cols]: norms, rotary embedding, activations, residual add.

    `backward_only` marks the sums that autograd makes where one tensor feeds several operators; `absorbed` what the
    matmul in front computes before it writes.
    """

    name: str
    kind: str
    rows: Num
    cols: Num
    dtype: str
    mode: str = "eager"
    backward_only: bool = False
    absorbed: bool = False
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the kernel of the forward or of the backward pass."""
        if pass_ not in ("F", "B") or (pass_ == "F" and self.backward_only) or self.absorbed:
            return ()
        traffic = POINTWISE[self.kind, self.mode]
        tensor = self.output_bytes
        forward = pass_ == "F"
        return (Kernel(
            kind=self.kind, pass_=pass_, dtype=self.dtype, size=(self.rows, self.cols),
            read_bytes=tensor * (traffic.read_forward if forward else traffic.read_backward),
            written_bytes=tensor * (traffic.written_forward if forward else traffic.written_backward),
            launches=traffic.launches_forward if forward else traffic.launches_backward,
        ),)

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of the tensors kept for backward (row statistics of norms are left out: 1/cols)."""
        return POINTWISE[self.kind, self.mode].saved * self.output_bytes

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of one [rows, cols] tensor."""
        return ELEMENT_BYTES[self.dtype] * self.rows * self.cols

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of the gradients of the inputs: what the fused backward writes."""
        return POINTWISE[self.kind, "fused"].written_backward * self.output_bytes
