"""The two ends of a model, which know its vocabulary: the look-up of tokens and the loss over logits."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.ops import ELEMENT_BYTES, Kernel, Num, Pass


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
