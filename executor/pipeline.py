"""One step's forwards and backwards: a plain loop, or torch's pipeline runtime fed with our own schedule table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _Action, _PipelineScheduleRuntime

from executor.gradients import accumulating, finish_gradients
from executor.model import token_loss
from executor.parallel import Parallel
from executor.record import Recorder
from simulator.schedules import Table, build_schedule


def run_step(parallel: Parallel, schedule: _PipelineScheduleRuntime | None, tokens: tuple[Tensor, Tensor],
             recorder: Recorder) -> Tensor | None:
    """Fill the gradients of one step and return this rank's mean loss, or None where the loss is on another stage.

    `tokens` is inputs and targets, each [micro-batches x micro-batch size, S]. The gradient is the mean over the
    global batch in every plan: each micro-batch counts 1 / micro-batches, and dp averages.
    """
    losses = _loop(parallel, tokens, recorder) if schedule is None else _piped(parallel, schedule, tokens)
    if parallel.sums_late:
        with recorder.span("reduce_gradients", "B", stream="dp"):
            finish_gradients(parallel)
    return torch.stack(losses).sum() if losses else None


def _loop(parallel: Parallel, tokens: tuple[Tensor, Tensor], recorder: Recorder) -> list[Tensor]:
    num = int(parallel.strategy.num_microbatches)
    losses = []
    for index, (inputs_BS, targets_BS) in enumerate(zip(*(t.chunk(num) for t in tokens), strict=True)):
        with accumulating(parallel, is_last=index == num - 1):
            with recorder.span("forward", "F", index):
                loss = token_loss(parallel.module(inputs_BS), targets_BS) / num
            with recorder.span("backward", "B", index):
                loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        del loss  # else the logits of this micro-batch live through the next forward
    return losses


def _piped(parallel: Parallel, schedule: _PipelineScheduleRuntime, tokens: tuple[Tensor, Tensor]) -> list[Tensor]:
    inputs, targets = tokens
    losses: list[Tensor] = []
    schedule.step(
        *([inputs] if parallel.stage.is_first else []), target=targets if parallel.stage.is_last else None,
        losses=losses if parallel.stage.is_last else None, return_outputs=False,
    )
    return [loss.detach() for loss in losses]


def build_pipeline(parallel: Parallel, recorder: Recorder) -> _PipelineScheduleRuntime | None:
    """Return torch's runtime loaded with the table that the simulator replays; None without a pipeline."""
    strategy = parallel.strategy
    if strategy.pp == 1:
        return None
    num = int(strategy.num_microbatches)
    table = build_schedule(strategy.schedule, strategy.pp, num)

    def loss(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
        with recorder.span("forward", "F", stage.forwarded):
            return token_loss(logits_BSV, targets_BS) / num

    stage = _RecordedStage(parallel, recorder)
    runtime = _PipelineScheduleRuntime(  # type: ignore[no-untyped-call]
        [stage], num, loss_fn=loss, scale_grads=False
    )
    runtime._prepare_schedule_with_comms(torch_order(table))
    return runtime


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

    def __init__(self, parallel: Parallel, recorder: Recorder) -> None:
        strategy, stage = parallel.strategy, parallel.stage
        self.parallel, self.recorder, self.forwarded = parallel, recorder, -1
        device = next(stage.parameters()).device
        dtype = torch.bfloat16 if strategy.precision == "bf16" else torch.float32
        size = (strategy.micro_batch, strategy.seq_len // strategy.tp, stage.spec.hidden)
        # shapes are known, so torch need not run a forward and a backward to find them;
        # gradients are sent back only to inputs that ask for them
        between = torch.empty(size, dtype=dtype, device="meta", requires_grad=True)
        ids = torch.empty(strategy.micro_batch, strategy.seq_len, dtype=torch.long, device="meta")
        logits = torch.empty(*ids.shape, stage.spec.vocab, dtype=dtype, device="meta", requires_grad=True)
        super().__init__(
            _Opaque(stage), parallel.pp_rank, strategy.pp, device, group=parallel.mesh.get_group("pp"),
            input_args=(ids if stage.is_first else between,), output_args=(logits if stage.is_last else between,),
        )

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self.forwarded = fwd_chunk_id
        with self.recorder.span("forward", "F", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        with (
            accumulating(self.parallel, is_last=kwargs["last_backward"]),
            self.recorder.span("backward", "B", bwd_chunk_id),
        ):
            super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
