"""What ranks tell one another once a step, beside the next step, so that nobody waits: losses, seconds, who has to leave."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist


class Told(NamedTuple):
    """A rank's step: whether it was asked to leave, its mean loss (nan if it has none), seconds, samples, bytes.

    `forward_s` and `backward_s` are passes with what communicates inside, `dp_s` sums of gradients after them. A rank that
    is not the first of its dp share says `num_samples` 0.
    """

    leaves: float
    loss: float
    begun_at_s: float
    step_time_s: float
    data_s: float
    forward_s: float
    backward_s: float
    dp_s: float
    optimizer_s: float
    first_sample: float
    num_samples: float
    crc32: float
    memory_bytes: float


class Pulse:
    """Exchanges a row of each rank; what was sent in one step is received in the next."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self._world = group, dist.get_world_size(group)
        self._sent: tuple[dist.Work | None, list[torch.Tensor], torch.Tensor] | None = None

    def send(self, told: Told) -> None:
        """Send this rank's row; every rank does, once each step."""
        mine = torch.tensor(told, dtype=torch.float64)
        everyone = [torch.empty_like(mine) for _ in range(self._world)]
        self._sent = (dist.all_gather(everyone, mine, group=self._group, async_op=True), everyone, mine)

    def receive(self) -> list[Told] | None:
        """Return what all ranks sent last, by rank; None where it has been received."""
        if self._sent is None:
            return None
        work, everyone, _ = self._sent
        if work is not None:
            work.wait()
        self._sent = None
        return [Told(*row.tolist()) for row in everyone]
