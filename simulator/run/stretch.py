"""A stretch: training from one checkpoint on, for as long as nothing comes in between. All in closed form, no event a step.

Checkpoints lie at the multiples of the interval and at the last step; evaluations at the multiples of theirs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from simulator.run.training import Checkpoints, Training


@dataclass(frozen=True, slots=True)
class Spent:
    """What became of a stretch: the step that is safe, and the seconds until then by what they were spent on."""

    step: int
    elapsed_s: float
    productive_s: float
    reduced_s: float
    evaluation_s: float
    checkpoint_s: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps from `first` on, each `slowdown` times as long as with all replicas; seconds count from its beginning."""

    training: Training
    checkpoints: Checkpoints
    first: int
    slowdown: float

    @property
    def end_s(self) -> float:
        """Return when the last step's checkpoint is written."""
        count, t, c = self._most(), self.training, self.checkpoints
        after = self._done_s(count)
        boundary = self._boundary(count)
        if boundary < t.num_steps:
            after += self._wait(self._work_s(boundary, t.num_steps), count) + c.stall_s
        return after + c.write_s

    def at_end(self) -> Spent:
        """Return what a stretch was spent on that came to its end."""
        return self._spent(self.training.num_steps, self.end_s)

    def failed(self, elapsed_s: float) -> Spent:
        """Return what is left when a failure strikes: all that the last written checkpoint holds."""
        # a checkpoint is safe once its write is over; the stretch began at a safe one
        count = self._count_by(elapsed_s - self.checkpoints.write_s)
        return self._spent(self._boundary(count), self._done_s(count))

    def clean(self, elapsed_s: float) -> int:
        """Return the step of the newest checkpoint that was taken by a time, written or not."""
        return self._boundary(self._count_by(elapsed_s))

    def stopped(self, elapsed_s: float) -> Spent:
        """Return what a stop on request leaves: the step that runs is finished, and a checkpoint written, late or early."""
        c, count = self.checkpoints, self._count_by(elapsed_s)
        begun, boundary = self._done_s(count), self._boundary(count)
        room = min(c.interval_steps - boundary % c.interval_steps, self.training.num_steps - boundary)
        steps = bisect_left(range(room + 1), elapsed_s - begun, key=lambda n: self._work_s(boundary, boundary + n))
        steps = min(steps, room)
        if steps == 0:
            # nothing new: wait for the write that is under way, if any
            return self._spent(boundary, max(elapsed_s, begun + (c.write_s if count else 0.0)))
        work = self._wait(self._work_s(boundary, boundary + steps), count)
        return self._spent(boundary + steps, begun + work + c.stall_s + c.write_s)

    def _most(self) -> int:
        """Return how many regular checkpoints are left until the last step."""
        k = self.checkpoints.interval_steps
        return self.training.num_steps // k - self.first // k

    def _boundary(self, count: int) -> int:
        """Return the step of a regular checkpoint; 0: where the stretch began."""
        k = self.checkpoints.interval_steps
        return (self.first // k + count) * k if count else self.first

    def _evals(self, first: int, last: int) -> int:
        every = self.training.eval_every
        return last // every - first // every if every else 0

    def _work_s(self, first: int, last: int) -> float:
        t = self.training
        return (last - first) * t.step_time_s * self.slowdown + self._evals(first, last) * t.eval_s * self.slowdown

    def _wait(self, work_s: float, before: int) -> float:
        """Return the time from one copy's end to the next copy's start: work, or the write before where it takes longer."""
        return max(work_s, self.checkpoints.write_s) if before else work_s

    def _done_s(self, count: int) -> float:
        """Return when training goes on after that many regular checkpoints."""
        if count == 0:
            return 0.0
        first = self._boundary(1)
        begun = self._work_s(self.first, first) + self.checkpoints.stall_s
        if count == 1:
            return begun
        few, short_s, long_s = self._gaps()
        many = self._evals(first, self._boundary(count)) - few * (count - 1)
        return begun + (count - 1 - many) * short_s + many * long_s

    def _gaps(self) -> tuple[int, float, float]:
        """Return how many evaluations an interval has at least, and its seconds with so many and with one more."""
        c, t = self.checkpoints, self.training
        few = c.interval_steps // t.eval_every if t.eval_every else 0
        work_s = (c.interval_steps * t.step_time_s + few * t.eval_s) * self.slowdown
        return few, max(work_s, c.write_s) + c.stall_s, max(work_s + t.eval_s * self.slowdown, c.write_s) + c.stall_s

    def _count_by(self, elapsed_s: float) -> int:
        """Return how many regular checkpoints are done by a time; it lies between what long and short intervals alone say."""
        most = self._most()
        if not most or elapsed_s < self._done_s(1):
            return 0
        after_s, (_, short_s, long_s) = elapsed_s - self._done_s(1), self._gaps()
        least, largest = int(after_s / long_s), int(after_s / short_s) + 2
        return bisect_right(range(1, most + 1), elapsed_s, min(least, most), min(largest, most), key=self._done_s)

    def _spent(self, step: int, elapsed_s: float) -> Spent:
        t = self.training
        productive = (step - self.first) * t.step_time_s
        evaluation = self._evals(self.first, step) * t.eval_s
        reduced = (productive + evaluation) * (self.slowdown - 1.0)
        return Spent(step, elapsed_s, productive, reduced, evaluation, elapsed_s - productive - evaluation - reduced)
