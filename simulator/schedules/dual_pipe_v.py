"""DualPipeV: DualPipe (DeepSeek-AI, arXiv 2412.19437, section 3.2.1) cut in half and folded into a V (Sea AI Lab, 2025).

A forward and a backward run as one, so that each hides the other's communication. github.com/deepseek-ai/DualPipe.
"""

from __future__ import annotations

from collections import deque
from itertools import count

from simulator.schedules.actions import Action, Table, overlap


def dual_pipe_v(num_ranks: int, num_microbatches: int, chunks: int = 2) -> Table:
    """Return the table; at least 2 p micro-batches are needed. Backwards are whole, but split where pipelines fill and
    drain."""
    return [_row(rank, num_ranks, num_microbatches) for rank in range(num_ranks)]


def _row(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    stages, behind = (rank, 2 * num_ranks - 1 - rank), num_ranks - 1 - rank
    forwards, backwards = (count(), count()), (count(), count())
    put_off: deque[Action] = deque()
    row: list[Action] = []

    def forward(chunk: int) -> Action:
        return Action(stages[chunk], "F", next(forwards[chunk]))

    def backward(chunk: int) -> Action:
        return Action(stages[chunk], "B", next(backwards[chunk]))

    def input_gradient(chunk: int) -> Action:
        whole = backward(chunk)
        put_off.append(whole._replace(pass_="W"))
        return whole._replace(pass_="I")

    # fill: the way down, then down and up, then the first backwards of the chunk at the end of the V
    row += [forward(0) for _ in range(2 * behind)]
    for _ in range(rank + 1):
        row += [forward(0), forward(1)]
    for _ in range(behind):
        row += [input_gradient(1), put_off.popleft(), forward(1)]
    # steady: pairs; the first at the bend runs as two, so that its backward need not wait for the forward's input
    for step in range(num_microbatches - 2 * num_ranks + rank + 1):
        down, up = forward(0), backward(1)
        row += [down, up] if step == 0 and behind == 0 else [overlap(down, up)]
        row.append(overlap(forward(1), backward(0)))
    # drain: no more forwards down, then none at all; of the last backwards half are split to fill the time that is left
    for _ in range(behind):
        row += [backward(1), overlap(forward(1), backward(0))]
    for step in range(2 * (rank + 1)):
        row.append((input_gradient if step > rank else backward)((step + 1) % 2))
    for _ in range(behind):
        row += [put_off.popleft(), input_gradient(0)]
    return row + list(put_off)
