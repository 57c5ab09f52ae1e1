"""The update of weights."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.ops import Kernel, Num, Pass


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
