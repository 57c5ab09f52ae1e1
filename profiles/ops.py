"""Operators: shape and dtype in; FLOP, bytes moved and bytes saved for backward out. Never seconds.

Every dimension may be a number or a NumPy array, so that one op describes a batch of strategies.

`model_flop` follows the convention of `simulator/metrics.py`: a multiply-add is 2 FLOP, causal attention is not
halved, backward of a matmul is two matmuls. `flop` is what the kernel really executes (flash attention skips
the masked half and recomputes the scores in backward: Dao, arXiv 2205.14135 and 2307.08691).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

Num = Any
"""A number or a NumPy array of numbers."""

Pass = Literal["F", "B", "W", "U"]
"""Forward, backward for the input, backward for the weight, update."""

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "mxfp8": 33 / 32, "nvfp4": 9 / 16}
"""Bytes of an element; block formats carry a scale of one byte for 32 (MXFP8, OCP MX 1.0) or 16 (NVFP4) elements."""

NARROW = ("fp8", "mxfp8", "nvfp4")
"""Types that only matmuls compute in: their inputs are quantised first."""

LOOP_SHARE = 0.2
"""What a launch in a loop of compiled code takes of the host's time for one from Python: fitted on steps of 16, 32 and 64
experts a rank that the host bounds (Megatron-Bridge, B200 and B300)."""

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


def quantise(name: str, rows: Num, cols: Num, dtype: str, to: str, pass_: Pass) -> Kernel:
    """Return the kernel that casts a tensor to a narrow type: read once, written plain and transposed.

    Both layouts are needed where a matmul takes its operands K-major only (Transformer Engine does this for FP8).
    """
    whole = rows * cols
    return Kernel(
        kind="quantise", pass_=pass_, dtype=dtype, size=(rows, cols), read_bytes=ELEMENT_BYTES[dtype] * whole,
        written_bytes=2 * ELEMENT_BYTES[to] * whole,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """y[m, n] = x[m, k] w[k, n] with a trained w; 2mnk FLOP a pass, three passes.

    `dtype` is that of x and y; `matmul` is what the matmul computes in (empty: the same). Narrower types than
    `dtype` cost a cast of x forward and of dy backward; the weight's cast is shared by all micro-batches and left out.
    """

    name: str
    m: Num
    k: Num
    n: Num
    dtype: str
    matmul: str = ""
    saves_input: bool = True
    kept_by_selective: bool = True

    @property
    def _compute(self) -> str:
        return self.matmul or self.dtype

    def _kernel(self, pass_: Pass, m: Num, n: Num, k: Num) -> Kernel:
        e, out = ELEMENT_BYTES[self._compute], ELEMENT_BYTES[self.dtype]
        flop = 2.0 * m * n * k
        return Kernel(
            kind="gemm", pass_=pass_, dtype=self._compute, size=(m, n, k), flop=flop, model_flop=flop,
            read_bytes=e * (m * k + k * n), written_bytes=out * m * n,
        )

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return y = x w (F), dx = dy wᵀ (B) or dw = xᵀ dy (W), with the casts of a narrow type."""
        narrow = self._compute in NARROW
        if pass_ == "F":
            cast = (quantise(self.name, self.m, self.k, self.dtype, self._compute, "F"),) if narrow and self.saves_input else ()
            return (*cast, self._kernel("F", self.m, self.n, self.k))
        if pass_ == "B":
            cast = (quantise(self.name, self.m, self.n, self.dtype, self._compute, "B"),) if narrow else ()
            return (*cast, self._kernel("B", self.m, self.k, self.n))
        return (self._kernel("W", self.k, self.n, self.m),) if pass_ == "W" else ()

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of x, which the weight gradient needs; 0 where another op already keeps it."""
        return ELEMENT_BYTES[self._compute] * self.m * self.k * self.saves_input

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of y."""
        return ELEMENT_BYTES[self.dtype] * self.m * self.n

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of dx."""
        return ELEMENT_BYTES[self.dtype] * self.m * self.k


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemm:
    """`groups` matmuls of one shape in one launch: y_g[m, n] = x_g[m, k] w_g[k, n], the experts of a rank.

    `m` is the rows of one group; with few tokens the weights, not the rows, are what is read. `looped`: each group is
    launched by itself, its cast too (Transformer Engine's GroupedLinear). `casts`: which of its tensors a kernel of its
    own quantises for a narrow type (input, gradient); what writes the others does it.
    """

    name: str
    groups: Num
    m: Num
    k: Num
    n: Num
    dtype: str
    matmul: str = ""
    looped: bool = False
    casts: tuple[str, ...] = ("input", "gradient")
    saves_input: bool = True
    kept_by_selective: bool = True

    @property
    def _compute(self) -> str:
        return self.matmul or self.dtype

    def _kernel(self, pass_: Pass, m: Num, n: Num, k: Num) -> Kernel:
        e, out = ELEMENT_BYTES[self._compute], ELEMENT_BYTES[self.dtype]
        flop = 2.0 * self.groups * m * n * k
        return Kernel(
            kind="grouped_gemm", pass_=pass_, dtype=self._compute, size=(self.groups, m, n, k), flop=flop,
            model_flop=flop, read_bytes=e * self.groups * (m * k + k * n), written_bytes=out * self.groups * m * n,
            launches=1 + LOOP_SHARE * self.groups if self.looped else 1,
        )

    def _cast(self, tensor: str, pass_: Pass, cols: Num) -> tuple[Kernel, ...]:
        if self._compute not in NARROW or tensor not in self.casts:
            return ()
        cast = quantise(self.name, self.groups * self.m, cols, self.dtype, self._compute, pass_)
        return (replace(cast, launches=1 + LOOP_SHARE * self.groups if self.looped else 1),)

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the grouped matmul of a pass, with the casts of a narrow type."""
        if pass_ == "F":
            return (*(self._cast("input", "F", self.k) if self.saves_input else ()), self._kernel("F", self.m, self.n, self.k))
        if pass_ == "B":
            return (*self._cast("gradient", "B", self.n), self._kernel("B", self.m, self.k, self.n))
        return (self._kernel("W", self.k, self.n, self.m),) if pass_ == "W" else ()

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of all x, which the weight gradients need."""
        return ELEMENT_BYTES[self._compute] * self.groups * self.m * self.k * self.saves_input

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of all y."""
        return ELEMENT_BYTES[self.dtype] * self.groups * self.m * self.n

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of all dx."""
        return ELEMENT_BYTES[self.dtype] * self.groups * self.m * self.k


def attended_pairs(seq_len: Num, kv_len: Num, causal: bool, window: Num) -> Num:
    """Return (query, key) pairs that are computed: half of them under a causal mask, a band of `window` keys at most."""
    whole = seq_len * kv_len * (0.5 if causal else 1.0)
    band = np.minimum(window, kv_len) if np.any(window) else 0
    return np.where(np.asarray(band) > 0, np.minimum(whole, seq_len * band - seq_len * band**2 / (2.0 * kv_len)), whole) \
        if np.any(window) else whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Fused scaled-dot-product attention; 4 b h s² d FLOP forward, 8 b h s² d backward (masked half counted).

    `kv_len` is the keys that the queries of this rank meet (0: as many as queries; under context parallelism all
    of the sequence), `value_dim` the width of a value where it is not that of a key (0: the same), `window` the
    reach of a sliding window in tokens (0: none), `version` which kernel (flash1, flash2; empty: the best).
    """

    name: str
    batch: Num
    heads: Num
    kv_heads: Num
    seq_len: Num
    head_dim: Num
    dtype: str
    kv_len: Num = 0
    value_dim: Num = 0
    window: Num = 0
    causal: bool = True
    version: str = ""
    kept_by_selective: bool = True

    @property
    def _kv_len(self) -> Num:
        return self.kv_len if np.any(self.kv_len) else self.seq_len

    @property
    def _value_dim(self) -> Num:
        return self.value_dim or self.head_dim

    def _bytes(self, heads: Num, length: Num, dim: Num) -> Num:
        return ELEMENT_BYTES[self.dtype] * self.batch * length * heads * dim

    @property
    def _q_bytes(self) -> Num:
        return self._bytes(self.heads, self.seq_len, self.head_dim)

    @property
    def _out_bytes(self) -> Num:
        return self._bytes(self.heads, self.seq_len, self._value_dim)

    @property
    def _kv_bytes(self) -> Num:
        return self._bytes(self.kv_heads, self._kv_len, self.head_dim + self._value_dim)

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the forward or backward kernel; backward executes 5 matmuls against forward's 2.

        Model FLOP count twice the pairs that a causal mask leaves: all of them where there is no window.
        """
        if pass_ not in ("F", "B"):
            return ()
        pairs = attended_pairs(self.seq_len, self._kv_len, self.causal, self.window)
        widths = self.head_dim + self._value_dim
        done = 2.0 * self.batch * self.heads * pairs * widths
        forward = done * (2.0 if self.causal else 1.0)
        # dq, dk and the scores again are as wide as a key, dv and dp as a value
        ratio = (3.0 * self.head_dim + 2.0 * self._value_dim) / widths
        size = (self.batch, self.heads, self.seq_len, self.head_dim)
        q, kv, out = self._q_bytes, self._kv_bytes, self._out_bytes
        if pass_ == "F":
            return (Kernel(
                kind="attention", pass_="F", dtype=self.dtype, size=size, flop=done, model_flop=forward,
                read_bytes=q + kv, written_bytes=out, version=self.version,
            ),)
        return (Kernel(
            kind="attention", pass_="B", dtype=self.dtype, size=size, flop=ratio * done, model_flop=2 * forward,
            read_bytes=q + kv + 2 * out, written_bytes=q + kv, version=self.version,
        ),)

    @property
    def _log_sum_exp_bytes(self) -> Num:
        return 4 * self.batch * self.heads * self.seq_len

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of this rank's q, k, v, the output and its log-sum-exp (fp32); keys of others are not kept."""
        own = self._bytes(self.kv_heads, self.seq_len, self.head_dim + self._value_dim)
        return self._q_bytes + self._out_bytes + own + self._log_sum_exp_bytes

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of the output and its log-sum-exp."""
        return self._out_bytes + self._log_sum_exp_bytes

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of the gradients of q, k and v."""
        return self._q_bytes + self._kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfusedAttention:
    """Attention as matmul, masked softmax, dropout, matmul, with the scores in memory (Korthikanti et al.,
    arXiv 2205.05198, section 4.1: 5 a s² b bytes with dropout); the masked half is computed like the rest."""

    name: str
    batch: Num
    heads: Num
    kv_heads: Num
    seq_len: Num
    head_dim: Num
    dtype: str
    dropout: bool = True
    kept_by_selective: bool = False

    @property
    def _scores(self) -> Num:
        return self.batch * self.heads * self.seq_len**2

    def _matmul(self, pass_: Pass, m: Num, n: Num, k: Num) -> Kernel:
        e, groups = ELEMENT_BYTES[self.dtype], self.batch * self.heads
        flop = 2.0 * groups * m * n * k
        return Kernel(
            kind="batched_gemm", pass_=pass_, dtype=self.dtype, size=(groups, m, n, k), flop=flop, model_flop=flop,
            read_bytes=e * groups * (m * k + k * n), written_bytes=e * groups * m * n,
        )

    def _pointwise(self, kind: str, pass_: Pass) -> Kernel:
        e = ELEMENT_BYTES[self.dtype]
        # softmax reads scores and writes probabilities; dropout reads, writes and keeps a mask of one byte
        read = e * (1.0 if pass_ == "F" else 2.0) if kind == "softmax" else e + (0.0 if pass_ == "F" else 1.0)
        written = e + (1.0 if kind == "dropout" and pass_ == "F" else 0.0)
        return Kernel(
            kind=kind, pass_=pass_, dtype=self.dtype, size=(self.batch * self.heads * self.seq_len, self.seq_len),
            read_bytes=read * self._scores, written_bytes=written * self._scores,
        )

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return scores, softmax, dropout and values (F), or their gradients (B: four matmuls)."""
        s, d = self.seq_len, self.head_dim
        if pass_ == "F":
            middle = ("softmax", *(("dropout",) if self.dropout else ()))
            return (self._matmul("F", s, s, d), *(self._pointwise(k, "F") for k in middle), self._matmul("F", s, d, s))
        if pass_ == "B":
            middle = (*(("dropout",) if self.dropout else ()), "softmax")
            return (
                self._matmul("B", s, d, s), self._matmul("B", s, s, d), *(self._pointwise(k, "B") for k in middle),
                self._matmul("B", s, d, s), self._matmul("B", s, d, s),
            )
        return ()

    @property
    def _qkv_bytes(self) -> Num:
        return ELEMENT_BYTES[self.dtype] * self.batch * self.seq_len * self.head_dim * (self.heads + 2 * self.kv_heads)

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of q, k, v, of the output (which the projection needs) and of what the scores leave."""
        return self._qkv_bytes + self.output_bytes + self.score_bytes

    @property
    def score_bytes(self) -> Num:
        """Return the bytes of probabilities, and of dropout's mask and result."""
        e = ELEMENT_BYTES[self.dtype]
        return (2 * e + 1 if self.dropout else e) * self._scores

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of the output."""
        return ELEMENT_BYTES[self.dtype] * self.batch * self.seq_len * self.heads * self.head_dim

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of the gradients of the scores, which are larger than those of q, k and v."""
        return np.maximum(ELEMENT_BYTES[self.dtype] * self._scores, self._qkv_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A chunked linear recurrence (Mamba-2, arXiv 2405.21060 section 6; gated delta rule, arXiv 2412.06464).

    Per token and head a chunk of length c costs 2 c (state + head_dim) within it and 4 state head_dim for the state
    that passes on; backward twice that, and the forward again (mamba_ssm and flash-linear-attention keep no states).
    `solve` adds the triangular solve of the delta rule: 2 c (state + head_dim).
    """

    name: str
    tokens: Num
    heads: Num
    head_dim: int
    state: int
    dtype: str
    chunk: int = 64
    solve: bool = False
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the kernels of the forward or backward scan; a chunk's partial results go through memory twice."""
        if pass_ not in ("F", "B"):
            return ()
        times = 1.0 if pass_ == "F" else 3.0
        within = 2.0 * self.chunk * (self.state + self.head_dim) * (2.0 if self.solve else 1.0)
        flop = times * self.tokens * self.heads * (within + 4.0 * self.state * self.head_dim)
        per_token = self.heads * (2.0 * self.head_dim + 2.0 * self.state * self.head_dim / self.chunk)
        moved = 2.0 * times * ELEMENT_BYTES[self.dtype] * self.tokens * per_token
        return (Kernel(
            kind="scan", pass_=pass_, dtype=self.dtype, size=(self.tokens, self.heads, self.head_dim, self.state),
            flop=flop, model_flop=flop * (1.0 if pass_ == "F" else 2.0 / 3.0), read_bytes=moved / 2, written_bytes=moved / 2,
            launches=5,
        ),)

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of the inputs and of the states between chunks (fp32)."""
        states = 4.0 * self.tokens / self.chunk * self.heads * self.state * self.head_dim
        return 2 * self.output_bytes + states

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of the output."""
        return ELEMENT_BYTES[self.dtype] * self.tokens * self.heads * self.head_dim

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of the gradients of the inputs."""
        return 2 * self.output_bytes


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

    @property
    def gradient_bytes(self) -> Num:
        """Return 0: the gradient of the table is a parameter's."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """Mean token loss over logits[tokens, vocab], in fp32: cast, log-softmax, pick.

    `in_place`: one kernel turns logits into their gradients where they stand (Liger, arXiv 2410.10989, section 3.2;
    Transformer Engine's fused loss); backward then only scales them.
    """

    name: str
    tokens: Num
    vocab: Num
    dtype: str
    in_place: bool = False
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the forward or backward kernel; where logits are not fp32 the cast is one more launch."""
        if pass_ not in ("F", "B"):
            return ()
        logits, cast = self.tokens * self.vocab, self.dtype != "fp32"
        e = ELEMENT_BYTES[self.dtype]
        read, written = (4.0 + e * cast, 4.0 + 4.0 * cast) if pass_ == "F" else (4.0 + 4.0 * cast, 4.0 + e * cast)
        if self.in_place:
            read = written = e
        return (Kernel(
            kind="cross_entropy", pass_=pass_, dtype=self.dtype, size=(self.tokens, self.vocab),
            read_bytes=read * logits, written_bytes=written * logits, launches=1 if self.in_place else 2 + cast,
        ),)

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of the log-probabilities (fp32; in place: the gradients) and the targets (int64)."""
        return ((ELEMENT_BYTES[self.dtype] if self.in_place else 4) * self.vocab + 8) * self.tokens

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of the loss."""
        return 4

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of the gradients of the logits."""
        return ELEMENT_BYTES[self.dtype] * self.tokens * self.vocab


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """The fused AdamW update of `params` weights: reads master weight, gradient and moments, writes all but the gradient.

    `state_bytes` of master weight and both moments for each parameter (12: all in fp32).
    """

    name: str
    params: Num
    writes_bf16_copy: bool = False
    state_bytes: float = 12.0
    grad_bytes: float = 4.0
    kept_by_selective: bool = False

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the update kernel."""
        if pass_ != "U":
            return ()
        written = self.state_bytes + (2.0 if self.writes_bf16_copy else 0.0)
        return (Kernel(
            kind="adamw", pass_="U", dtype="fp32", size=(self.params,),
            read_bytes=(self.state_bytes + self.grad_bytes) * self.params, written_bytes=written * self.params,
        ),)

    @property
    def saved_bytes(self) -> Num:
        """Return 0: nothing waits for a backward."""
        return 0

    @property
    def output_bytes(self) -> Num:
        """Return 0: the update is in place."""
        return 0

    @property
    def gradient_bytes(self) -> Num:
        """Return 0: nothing is differentiated."""
        return 0
