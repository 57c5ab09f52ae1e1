"""One step's forwards and backwards: a plain loop, or torch's pipeline runtime fed with our own schedule table.

Of a split backward torch makes the gradients of inputs with `stage_backward_input` (I), those of weights with
`stage_backward_weight` (W). Two things differ from what their names say: the first stage sends no gradient, so torch
leaves its whole backward to W; and a pair `OVERLAP_F_B` runs as its forward, then its backward.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime
from torch.utils.checkpoint import GraphExecGroup

from executor.gradients import accumulating, finish_gradients, take_up_weight_gradients
from executor.model import token_loss
from executor.parallel import Parallel
from executor.record import Recorder
from simulator.schedules import Table


def run_step(parallel: Parallel, schedule: _PipelineScheduleRuntime | None, tokens: tuple[Tensor, Tensor],
             recorder: Recorder) -> Tensor | None:
    """Fill the gradients of one step and return this rank's mean loss, or None where the loss is on another stage.

    `tokens` is inputs and targets, each [micro-batches x micro-batch size, S], whole sequences. The gradient is the mean
    over the global batch in every plan: each micro-batch counts 1 / micro-batches, and dp and cp average.
    """
    places = torch.from_numpy(parallel.places).to(tokens[0].device)
    tokens = tokens[0][:, places], tokens[1][:, places]
    losses = _loop(parallel, tokens, recorder) if schedule is None else _piped(parallel, schedule, tokens)
    if parallel.sums_late:
        with recorder.span("reduce_gradients", "B", stream="dp"):
            finish_gradients(parallel)
    return torch.stack(losses).sum() if losses else None


def _loop(parallel: Parallel, tokens: tuple[Tensor, Tensor], recorder: Recorder) -> list[Tensor]:
    num, module = int(parallel.strategy.num_microbatches), parallel.modules[0]
    losses = []
    for index, (inputs_BS, targets_BS) in enumerate(zip(*(t.chunk(num) for t in tokens), strict=True)):
        with accumulating(parallel.strategy, module, is_last=index == num - 1):
            with recorder.span(stage_name(0), "F", index):
                loss = token_loss(module(inputs_BS), targets_BS) / num
            with recorder.span(stage_name(0), "B", index):
                loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        del loss  # else the logits of this micro-batch live through the next forward
    return losses


def _piped(parallel: Parallel, schedule: _PipelineScheduleRuntime, tokens: tuple[Tensor, Tensor]) -> list[Tensor]:
    inputs, targets = tokens
    losses: list[Tensor] = []
    has_loss = max(parallel.home) in parallel.stages
    schedule.step(
        *([inputs] if 0 in parallel.stages else []), target=targets if has_loss else None,
        losses=losses if has_loss else None, return_outputs=False,
    )
    return [loss.detach() for loss in losses]


def build_pipeline(parallel: Parallel, recorder: Recorder) -> _PipelineScheduleRuntime | None:
    """Return torch's runtime loaded with the table that the simulator replays; None where the model is one stage."""
    last = max(parallel.home)
    if last == 0:
        return None
    num = int(parallel.strategy.num_microbatches)
    stages = {index: _RecordedStage(parallel, index, recorder) for index in parallel.stages}

    def loss(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
        with recorder.span(stage_name(last), "F", stages[last].forwarded):
            return token_loss(logits_BSV, targets_BS) / num

    runtime = _PipelineScheduleRuntime(  # type: ignore[no-untyped-call]
        list(stages.values()), num, loss_fn=loss, scale_grads=False
    )
    runtime._prepare_schedule_with_comms(torch_order(parallel.table))
    return runtime


def stage_name(index: int) -> str:
    """Return what a stage is called in a timeline."""
    return f"stage {index}"


def torch_order(table: Table) -> dict[int, list[_Action | None]]:
    """Return a table as torch's runtime takes it: actions by rank, in the same grammar."""
    return {rank: [_Action.from_str(str(action)) for action in row] for rank, row in enumerate(table)}


class _Opaque(nn.Module):
    """Hides FSDP from torch's pipeline, which else gathers all weights for the whole step, whatever the ZeRO level."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)
        return out


class _RecordedStage(PipelineStage):
    """A pipeline stage of fixed shapes that records its passes and knows when gradients are due."""

    def __init__(self, parallel: Parallel, index: int, recorder: Recorder) -> None:
        strategy, stage = parallel.strategy, parallel.stages[index]
        self.strategy, self.module, self.recorder, self.forwarded = strategy, parallel.modules[index], recorder, -1
        device = next(stage.parameters()).device
        dtype = torch.bfloat16 if strategy.dtype == "bf16" else torch.float32
        length = len(stage.places)
        size = (strategy.micro_batch, length // strategy.tp, stage.spec.hidden)
        # shapes are known, so torch need not run a forward and a backward to find them;
        # gradients are sent back only to inputs that ask for them
        between = torch.empty(size, dtype=dtype, device="meta", requires_grad=True)
        ids = torch.empty(strategy.micro_batch, length, dtype=torch.long, device="meta")
        logits = torch.empty(*ids.shape, stage.spec.vocab, dtype=dtype, device="meta", requires_grad=True)
        super().__init__(
            _Opaque(self.module), index, len(parallel.home), device, group=parallel.mesh.get_group("pp"),
            input_args=(ids if stage.is_first else between,), output_args=(logits if stage.is_last else between,),
        )

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self.forwarded = fwd_chunk_id
        with self._span("F", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        """Run B, or I, which a timeline calls B, too."""
        with accumulating(self.strategy, self.module, is_last=kwargs["last_backward"]), self._span("B", bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        # torch makes these gradients weight by weight, each in a backward of its own; as a group they recompute a layer once
        with (
            accumulating(self.strategy, self.module, is_last=last_backward), self._span("W", bwd_chunk_id),
            GraphExecGroup(),
        ):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
            take_up_weight_gradients(self.module)

    def _span(self, pass_: str, microbatch: int) -> AbstractContextManager[None]:
        return self.recorder.span(stage_name(self.stage_index), pass_, microbatch)
