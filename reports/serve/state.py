"""What the server keeps between requests: its workers, and what they have searched."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from planner.counts import Sized
from reports.serve import answer as jobs
from reports.serve.asked import Asked
from reports.serve.worker import Worker

MOST_KNOWN = 256


@dataclass(slots=True)
class State:
    """Workers for what must come at once, for what may come after, and for whole plans; searches by what they depend on."""

    quick: Worker = field(default_factory=lambda: Worker("answers", most_waiting=16, limit_s=30.0))
    later: Worker = field(default_factory=lambda: Worker("sizes", most_waiting=16, limit_s=60.0))
    plans: Worker = field(default_factory=lambda: Worker("plans", most_waiting=4, limit_s=1800.0))
    known: OrderedDict[tuple[Any, ...], Sized] = field(default_factory=OrderedDict)

    def of(self, asked: Asked) -> Sized | None:
        """Return what is known of a question, or None."""
        return self.known.get(asked.searched)

    def keep(self, asked: Asked, sized: Sized) -> None:
        """Keep what was searched; the oldest gives way."""
        self.known[asked.searched] = sized
        self.known.move_to_end(asked.searched)
        while len(self.known) > MOST_KNOWN:
            self.known.popitem(last=False)

    async def answer(self, asked: Asked) -> dict[str, Any]:
        """Return verdict, time and memory of a question."""
        shown, sized = await self.quick.run(jobs.answer, asked, self.of(asked))
        self.keep(asked, sized)
        return dict(shown)

    async def sizes(self, asked: Asked) -> dict[str, Any]:
        """Return the same run on other numbers of accelerators."""
        own = await self._sized(asked)
        others = [(there, await self._sized(there)) for there in jobs.counts_of(asked, own.question.global_batch)]
        return dict(await self.later.run(jobs.sizes, asked, others, own))

    async def _sized(self, asked: Asked) -> Sized:
        found: Sized = await self.later.run(jobs.sized_for, asked, self.of(asked))
        self.keep(asked, found)
        return found

    def kill(self) -> None:
        """End all workers."""
        for worker in (self.quick, self.later, self.plans):
            worker.kill()
