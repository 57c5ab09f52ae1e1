"""Operators: shape and dtype in; FLOP, bytes moved and bytes saved for backward out. Never seconds.

Every dimension may be a number or a NumPy array, so that one op describes a batch of strategies.

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

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}

SIZES = {
    "gemm": ("m", "n", "k"),
    "attention": ("batch", "heads", "seq_len", "head_dim"),
    "embedding": ("tokens", "hidden", "vocab"),
    "cross_entropy": ("tokens", "vocab"),
    "adamw": ("params",),
    "rms_norm": ("rows", "cols"),
    "layer_norm": ("rows", "cols"),
    "rope": ("rows", "cols"),
    "swiglu": ("rows", "cols"),
    "gelu": ("rows", "cols"),
    "add": ("rows", "cols"),
}
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
    launches: int = 1

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
    def kept_by_selective(self) -> bool: ...
    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """y[m, n] = x[m, k] w[k, n] with a trained w; 2mnk FLOP a pass, three passes."""

    name: str
    m: Num
    k: Num
    n: Num
    dtype: str
    saves_input: bool = True
    kept_by_selective: bool = True

    def _kernel(self, pass_: Pass, m: Num, n: Num, k: Num) -> Kernel:
        e = ELEMENT_BYTES[self.dtype]
        flop = 2.0 * m * n * k
        return Kernel(
            kind="gemm", pass_=pass_, dtype=self.dtype, size=(m, n, k), flop=flop, model_flop=flop,
            read_bytes=e * (m * k + k * n), written_bytes=e * m * n,
        )

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return y = x w (F), dx = dy wᵀ (B) or dw = xᵀ dy (W)."""
        if pass_ == "F":
            return (self._kernel("F", self.m, self.n, self.k),)
        if pass_ == "B":
            return (self._kernel("B", self.m, self.k, self.n),)
        return (self._kernel("W", self.k, self.n, self.m),) if pass_ == "W" else ()

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of x, which the weight gradient needs; 0 where another op already keeps it."""
        return ELEMENT_BYTES[self.dtype] * self.m * self.k * self.saves_input

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of y."""
        return ELEMENT_BYTES[self.dtype] * self.m * self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Fused scaled-dot-product attention; 4 b h s² d FLOP forward, 8 b h s² d backward (masked half counted)."""

    name: str
    batch: Num
    heads: Num
    kv_heads: Num
    seq_len: Num
    head_dim: Num
    dtype: str
    causal: bool = True
    kept_by_selective: bool = True

    @property
    def _q_bytes(self) -> Num:
        return ELEMENT_BYTES[self.dtype] * self.batch * self.seq_len * self.heads * self.head_dim

    @property
    def _kv_bytes(self) -> Num:
        return 2 * ELEMENT_BYTES[self.dtype] * self.batch * self.seq_len * self.kv_heads * self.head_dim

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the forward or backward kernel; backward executes 5 matmuls against forward's 2."""
        if pass_ not in ("F", "B"):
            return ()
        forward = 4.0 * self.batch * self.heads * self.seq_len**2 * self.head_dim
        done = forward * (0.5 if self.causal else 1.0)
        size = (self.batch, self.heads, self.seq_len, self.head_dim)
        qo, kv = self._q_bytes, self._kv_bytes
        if pass_ == "F":
            return (Kernel(
                kind="attention", pass_="F", dtype=self.dtype, size=size, flop=done, model_flop=forward,
                read_bytes=qo + kv, written_bytes=qo,
            ),)
        return (Kernel(
            kind="attention", pass_="B", dtype=self.dtype, size=size, flop=2.5 * done, model_flop=2 * forward,
            read_bytes=3 * qo + kv, written_bytes=qo + kv,
        ),)

    @property
    def _log_sum_exp_bytes(self) -> Num:
        return 4 * self.batch * self.heads * self.seq_len

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of q, k, v, the output and its log-sum-exp (fp32)."""
        return 2 * self._q_bytes + self._kv_bytes + self._log_sum_exp_bytes

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of the output and its log-sum-exp."""
        return self._q_bytes + self._log_sum_exp_bytes


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

    `backward_only` marks the sums that autograd makes where one tensor feeds several operators.
    """

    name: str
    kind: str
    rows: Num
    cols: Num
    dtype: str
    mode: str = "eager"
    backward_only: bool = False
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the kernel of the forward or of the backward pass."""
        if pass_ not in ("F", "B") or (pass_ == "F" and self.backward_only):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """A table look-up: tokens rows of `hidden` out of `vocab`; backward fills and scatters into a dense gradient."""

    name: str
    tokens: Num
    hidden: Num
    vocab: Num
    dtype: str
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the gather (F) or the fill and scatter-add (W)."""
        size = (self.tokens, self.hidden, self.vocab)
        if pass_ == "F":
            return (Kernel(
                kind="embedding", pass_="F", dtype=self.dtype, size=size,
                read_bytes=self.output_bytes, written_bytes=self.output_bytes,
            ),)
        if pass_ == "W":
            table = ELEMENT_BYTES[self.dtype] * self.vocab * self.hidden
            return (Kernel(
                kind="embedding", pass_="W", dtype=self.dtype, size=size,
                read_bytes=2 * self.output_bytes, written_bytes=table + self.output_bytes, launches=2,
            ),)
        return ()

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of the token ids (int64)."""
        return 8 * self.tokens

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of the looked-up rows."""
        return ELEMENT_BYTES[self.dtype] * self.tokens * self.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """Mean token loss over logits[tokens, vocab], in fp32: cast, log-softmax, pick."""

    name: str
    tokens: Num
    vocab: Num
    dtype: str
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the forward or backward kernel; where logits are not fp32 the cast is one more launch."""
        if pass_ not in ("F", "B"):
            return ()
        logits, cast = self.tokens * self.vocab, self.dtype != "fp32"
        e = ELEMENT_BYTES[self.dtype]
        read, written = (4.0 + e * cast, 4.0 + 4.0 * cast) if pass_ == "F" else (4.0 + 4.0 * cast, 4.0 + e * cast)
        return (Kernel(
            kind="cross_entropy", pass_=pass_, dtype=self.dtype, size=(self.tokens, self.vocab),
            read_bytes=read * logits, written_bytes=written * logits, launches=2 + cast,
        ),)

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of the log-probabilities (fp32) and the targets (int64)."""
        return (4 * self.vocab + 8) * self.tokens

    @property
    def transient_bytes(self) -> Num:
        """Return the peak bytes beside the saved ones: logits and their fp32 copy or gradients, whichever is more."""
        e = ELEMENT_BYTES[self.dtype]
        return self.tokens * self.vocab * (e + (4 if self.dtype != "fp32" else 0))

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of the loss."""
        return 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """The fused AdamW update of `params` fp32 weights: reads w, g, m, v and writes w, m, v (28 bytes each)."""

    name: str
    params: Num
    writes_bf16_copy: bool = False
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the update kernel."""
        if pass_ != "U":
            return ()
        return (Kernel(
            kind="adamw", pass_="U", dtype="fp32", size=(self.params,),
            read_bytes=16.0 * self.params, written_bytes=(14.0 if self.writes_bf16_copy else 12.0) * self.params,
        ),)

    @property
    def saved_bytes(self) -> Num:
        """Return 0: nothing waits for a backward."""
        return 0

    @property
    def output_bytes(self) -> Num:
        """Return 0: the update is in place."""
        return 0
