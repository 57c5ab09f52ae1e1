"""The bytes that memory is made of: what one part of a model holds, of its states and of one micro-batch.

The same for the closed form of the peak (`memory.py`) and for memory over time (`memory_timeline.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from profiles.collectives import Collective
from profiles.model import Part
from profiles.ops import Num
from profiles.pointwise import Pointwise
from simulator.adapters import trained_items
from simulator.states import buffer_bytes, copies_gradients, part_states, update_bytes
from simulator.strategy import Strategy
from simulator.workload import PartWork, Workload, shape_of

LOSS_PARTS = ("head", "mtp")
"""Parts with a loss: of one rank, at the end of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartBytes:
    """Bytes of one part; fields may be arrays.

    States: `weights`, `gradients` and `optimizer`; `in_update` lives beside them in the update. ZeRO-3 holds `gathered`
    weights; whole gradients are `reduced` on their way to their shards.

    Of one micro-batch: `saved` waits from F for B or I, `deferred` from I for W. `in_forward`, `in_backward` (B and I) and
    `in_weight` (W) live beside them inside a pass; a loss has its logits, their copies and gradients in `in_backward`.
    """

    weights: Num
    gradients: Num
    optimizer: Num
    in_update: Num
    gathered: Num
    reduced: Num
    saved: Num
    deferred: Num
    in_forward: Num
    in_backward: Num
    in_weight: Num

    def in_pass(self, pass_: str) -> Num:
        """Return what lives inside a pass; logits as computed are no more than all that backward counts of them."""
        if pass_ == "F":
            return np.minimum(self.in_forward, self.in_backward)
        return self.in_weight if pass_ == "W" else self.in_backward

    def gone_behind(self, pass_: str) -> Num:
        """Return what of a micro-batch is there no more behind a B, I or W."""
        return {"B": self.saved, "I": self.saved - self.deferred, "W": self.deferred}[pass_]


class Pieces(NamedTuple):
    """The bytes of a strategy (or of a batch): of its parts, of one tensor between stages, of flat buffers of collectives;
    its micro-batches, whether gradients appear while activations go (those of a single one that are not kept for good), and
    whether the update frees them."""

    parts: dict[Part, PartBytes]
    send: Num
    buckets: Num
    num_microbatches: Num
    single: Num
    copies: bool

    def values(self) -> Iterator[Num]:
        """Return all that may be an array."""
        yield from self[1:]
        for part in self.parts.values():
            yield from (getattr(part, f.name) for f in fields(part))

    def pick(self, index: Any) -> Pieces:
        """Return the bytes of some strategies of a batch (an array of indices)."""
        def of(value: Any) -> Any:
            return value[index] if np.ndim(value) else value

        return Pieces({name: PartBytes(**{f.name: of(getattr(part, f.name)) for f in fields(part)})
                       for name, part in self.parts.items()}, *(of(value) for value in self[1:]))


def pieces_of(workload: Workload) -> Pieces:
    """Return the bytes that the memory of a workload is made of."""
    strategy = workload.strategy
    return Pieces(
        parts={part: part_bytes(workload, part) for part in workload.parts}, send=workload.send.bytes,
        buckets=buffer_bytes(strategy).buckets, num_microbatches=strategy.num_microbatches,
        single=(np.asarray(strategy.num_microbatches) == 1) & strategy.software.late_gradients,
        copies=copies_gradients(strategy),
    )


def part_bytes(workload: Workload, part: Part) -> PartBytes:
    """Return what a part holds under the strategy's sharding and recomputation."""
    strategy, work, buffers = workload.strategy, workload.parts[part], buffer_bytes(workload.strategy)
    loss = part in LOSS_PARTS
    saved = work.saved_none_bytes if loss else _saved_bytes(work, strategy)
    again = work.saved_none_bytes - saved
    return PartBytes(
        **part_states(workload, part), in_update=update_bytes(workload, part),
        gathered=buffers.gathered * (work.params + work.expert_params),
        reduced=buffers.reduced * (work.trained_params + work.trained_expert_params), saved=saved,
        deferred=_deferred_bytes(workload, part, saved) if np.any(strategy.splits_backward) else 0.0,
        in_forward=work.freed_bytes if loss else np.minimum(work.freed_bytes, again),
        in_backward=work.transient_bytes + again, in_weight=again * strategy.software.keeps_graph,
    )


def _saved_bytes(work: PartWork, strategy: Strategy) -> Num:
    recompute, share = np.asarray(strategy.recompute), strategy.recompute_share
    less: Num = np.where(recompute == "selective", work.saved_selective_bytes, work.saved_none_bytes)
    less = np.where(recompute == "full", work.saved_full_bytes, less)
    return share * less + (1 - share) * work.saved_none_bytes


def _deferred_bytes(workload: Workload, part: Part, saved: Num) -> Num:
    """Return what waits for the gradients of weights: the inputs of what has weights, and the gradients of its outputs.

    Both together are as much as backward keeps without recomputation: 32 of 34 sbh in a layer of GPT (arXiv 2401.10241,
    table 1), all of it in a gated one. torch's runtime keeps its whole graph, and the gradients of outputs beside it
    (stage_backward_input).
    """
    strategy = workload.strategy
    if not strategy.software.keeps_graph:
        return workload.parts[part].saved_none_bytes
    items = trained_items(workload.model, part, shape_of(strategy), strategy.lora_rank, strategy.lora_targets)
    outputs: Num = 0.0
    for op in items:
        if isinstance(op, Collective):
            continue
        normed = isinstance(op, Pointwise) and op.kind in ("rms_norm", "layer_norm") and not strategy.lora_rank
        if normed or op.kernels("W"):
            outputs = outputs + op.output_bytes
    return saved + outputs
