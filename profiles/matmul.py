"""Matmuls with trained weights, and the casts in front of those of a narrow type."""

from __future__ import annotations

from dataclasses import dataclass, replace

from profiles.ops import ELEMENT_BYTES, Kernel, Num, Pass

NARROW = ("fp8", "mxfp8", "nvfp4")
"""Types that only matmuls compute in: their inputs are quantised first."""

LOOP_SHARE = 0.2
"""What a launch in a loop of compiled code takes of the host's time for one from Python: fitted on steps of 16, 32 and 64
experts a rank that the host bounds (Megatron-Bridge, B200 and B300)."""


def matmul_kernel(
    kind: str, pass_: Pass, groups: Num, m: Num, n: Num, k: Num, *, dtype: str, out: str, launches: Num = 1,
) -> Kernel:
    """Return the kernel of `groups` products [m, k] [k, n], 2mnk FLOP each: it reads `dtype` and writes `out`."""
    flop = 2.0 * groups * m * n * k
    return Kernel(
        kind=kind, pass_=pass_, dtype=dtype, size=(groups, m, n, k), flop=flop, model_flop=flop,
        read_bytes=ELEMENT_BYTES[dtype] * groups * (m * k + k * n), written_bytes=ELEMENT_BYTES[out] * groups * m * n,
        launches=launches,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedGemm:
    """`groups` matmuls of one shape in one launch: y_g[m, n] = x_g[m, k] w_g[k, n], the experts of a rank.

    2mnk FLOP a group and pass, three passes. `m` is the rows of one group; with few tokens the weights, not the rows, are
    what is read. `dtype` is that of x and y; `matmul` is what the matmul computes in (empty: the same). Narrower types than
    `dtype` cost a cast of x forward and of dy backward; the weight's cast is shared by all micro-batches and left out.
    `looped`: each group is launched by itself, its cast too (Transformer Engine's GroupedLinear). `casts`: which of its
    tensors a kernel of its own quantises for a narrow type (input, gradient); what writes the others does it.
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

    @property
    def _launches(self) -> Num:
        return 1 + LOOP_SHARE * self.groups if self.looped else 1

    def _matmul(self, pass_: Pass, m: Num, n: Num, k: Num) -> Kernel:
        return matmul_kernel(
            "grouped_gemm", pass_, self.groups, m, n, k, dtype=self._compute, out=self.dtype, launches=self._launches,
        )

    def _cast(self, tensor: str, pass_: Pass, cols: Num) -> tuple[Kernel, ...]:
        """Return the kernel that casts a tensor to a narrow type: read once, written plain and transposed.

        Both layouts are needed where a matmul takes its operands K-major only (Transformer Engine does this for FP8).
        """
        if self._compute not in NARROW or tensor not in self.casts:
            return ()
        rows = self.groups * self.m
        whole = rows * cols
        return (Kernel(
            kind="quantise", pass_=pass_, dtype=self.dtype, size=(rows, cols), read_bytes=ELEMENT_BYTES[self.dtype] * whole,
            written_bytes=2 * ELEMENT_BYTES[self._compute] * whole, launches=self._launches,
        ),)

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return y = x w (F), dx = dy wᵀ (B) or dw = xᵀ dy (W), with the casts of a narrow type."""
        if pass_ == "F":
            return (*(self._cast("input", "F", self.k) if self.saves_input else ()), self._matmul("F", self.m, self.n, self.k))
        if pass_ == "B":
            return (*self._cast("gradient", "B", self.n), self._matmul("B", self.m, self.k, self.n))
        return (self._matmul("W", self.k, self.n, self.m),) if pass_ == "W" else ()

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of all x, which the weight gradients need; 0 where another op already keeps them."""
        return ELEMENT_BYTES[self._compute] * self.groups * self.m * self.k * self.saves_input

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of all y."""
        return ELEMENT_BYTES[self.dtype] * self.groups * self.m * self.n

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of all dx."""
        return ELEMENT_BYTES[self.dtype] * self.groups * self.m * self.k


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """y[m, n] = x[m, k] w[k, n]: a `GroupedGemm` of one group, by the kernel for one."""

    name: str
    m: Num
    k: Num
    n: Num
    dtype: str
    matmul: str = ""
    saves_input: bool = True
    kept_by_selective: bool = True

    @property
    def _group(self) -> GroupedGemm:
        return GroupedGemm(
            name=self.name, groups=1, m=self.m, k=self.k, n=self.n, dtype=self.dtype, matmul=self.matmul,
            saves_input=self.saves_input,
        )

    def kernels(self, pass_: Pass) -> tuple[Kernel, ...]:
        """Return the kernels of a pass, as those of one group."""
        return tuple(
            replace(k, kind="gemm", size=k.size[1:]) if k.kind == "grouped_gemm" else k for k in self._group.kernels(pass_)
        )

    @property
    def saved_bytes(self) -> Num:
        """Return the bytes of x, or 0 where another op already keeps it."""
        return self._group.saved_bytes

    @property
    def output_bytes(self) -> Num:
        """Return the bytes of y."""
        return self._group.output_bytes

    @property
    def gradient_bytes(self) -> Num:
        """Return the bytes of dx."""
        return self._group.gradient_bytes
