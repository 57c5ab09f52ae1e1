"""What ranks tell one another once a step, beside the next step, so that nobody waits: losses, seconds, who has to leave."""

from __future__ import annotations

import torch
import torch.distributed as dist

from executor.told import Told


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
