"""What a run came to: where its time went, and what goodput means here.

Goodput = productive time / elapsed time, over the nodes that train. Productive is what the steps of the run take with all
replicas, each counted once: steps that were lost and done again count when they are done for good. Everything else is lost
time, by cause; the parts add up to the elapsed time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRODUCTIVE = "productive"
PARTS = (PRODUCTIVE, "evaluation", "checkpoint", "redone", "detection", "restart", "waiting", "maintenance", "stall",
         "reduced")
"""Parts of the elapsed time. redone: what a failure threw away; waiting: for nodes; stall: standing still with nothing lost
(data); reduced: slower steps for want of replicas."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: elapsed seconds, the same by part, interruptions by cause and planned stops, and whether it ended in time."""

    elapsed_s: float
    parts_s: dict[str, float]
    strikes: tuple[int, ...]
    stops: tuple[int, ...]
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Many runs: arrays with one row a run, parts and causes as columns."""

    elapsed_s: NDArray[np.float64]
    parts_s: NDArray[np.float64]
    strikes: NDArray[np.int64]
    stops: NDArray[np.int64]
    finished: NDArray[np.bool_]

    @property
    def goodputs(self) -> NDArray[np.float64]:
        """Return each run's goodput."""
        return self.parts_s[:, 0] / self.elapsed_s

    @property
    def goodput(self) -> float:
        """Return the mean of the runs' goodputs: 1 less the shares of lost time."""
        return float(self.goodputs.mean())

    @property
    def shares(self) -> dict[str, float]:
        """Return each part as a share of a run's elapsed time, mean over the runs; they add up to 1."""
        shares = (self.parts_s / self.elapsed_s[:, None]).mean(axis=0)
        return dict(zip(PARTS, shares.tolist(), strict=True))


def collect(outcomes: list[Outcome]) -> Outcomes:
    """Return runs as arrays."""
    return Outcomes(
        elapsed_s=np.array([o.elapsed_s for o in outcomes]),
        parts_s=np.array([[o.parts_s[p] for p in PARTS] for o in outcomes]),
        strikes=np.array([o.strikes for o in outcomes], dtype=np.int64).reshape(len(outcomes), -1),
        stops=np.array([o.stops for o in outcomes], dtype=np.int64).reshape(len(outcomes), -1),
        finished=np.array([o.finished for o in outcomes]),
    )


def percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    """Return P10, P50 and P90."""
    low, middle, high = np.percentile(values, (10, 50, 90)).tolist()
    return {"p10": low, "p50": middle, "p90": high}
