"""Attention: fused, or with its scores in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profiles.matmul import matmul_kernel
from profiles.ops import ELEMENT_BYTES, Kernel, Num, Pass


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
        return matmul_kernel("batched_gemm", pass_, self.batch * self.heads, m, n, k, dtype=self.dtype, out=self.dtype)

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
