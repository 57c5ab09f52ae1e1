"""Linear recurrences along the sequence, computed in chunks."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.ops import ELEMENT_BYTES, Kernel, Num, Pass


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
