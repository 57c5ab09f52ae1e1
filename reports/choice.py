"""Would the right layout have been chosen: ranks of published runs that differ in nothing but their strategy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

MIN_ROWS = 4
"""A sweep of fewer layouts says little about a choice."""
MIN_PAIRS = 6
"""So many pairs has the smallest sweep; fewer say little about an order."""


class Ran(Protocol):
    """What ranking needs of a run: what it shares with others, its layout, and both times of its step."""

    @property
    def id(self) -> str: ...
    @property
    def set_key(self) -> str: ...
    @property
    def strategy(self) -> str: ...
    @property
    def tokens_per_step(self) -> float: ...
    @property
    def measured_s(self) -> float | None: ...
    @property
    def predicted_s(self) -> float: ...
    @property
    def fits(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Layouts of one model on one machine with one batch: how well they are ranked, and what our pick costs.

    Picked is the layout predicted fastest of those predicted to fit (of all, where none is). `regret` is its measured
    time over that of the fastest, minus one.
    """

    key: str
    n: int
    tau: float | None
    regret: float
    picked: str
    best: str


def kendall_tau(measured: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Return Kendall's tau: pairs in the same order less pairs in the other, over all that are not tied; None if none is.

    M. G. Kendall, A new measure of rank correlation, Biometrika 30 (1938).
    """
    return _tau(_signs(list(zip(measured, predicted, strict=True))))


def pooled_tau(runs: Sequence[Ran]) -> float | None:
    """Return tau over the pairs within each set of runs that share model and machine, by time per token;
    None of too few pairs."""
    signs: list[int] = []
    for members in _sets(runs, by_batch=False).values():
        signs += _signs([(_measured(r) / r.tokens_per_step, r.predicted_s / r.tokens_per_step) for r in members])
    return _tau(iter(signs)) if len(signs) >= MIN_PAIRS else None


def sweeps_of(runs: Sequence[Ran]) -> tuple[Sweep, ...]:
    """Return the sweeps of at least four layouts among runs with a measured time, the largest first."""
    found = []
    for key, members in _sets(runs, by_batch=True).items():
        if len({r.strategy for r in members}) < MIN_ROWS:
            continue
        best, picked = min(members, key=_measured), min(members, key=lambda r: (not r.fits, r.predicted_s))
        tau = kendall_tau([_measured(r) for r in members], [r.predicted_s for r in members])
        found.append(Sweep(key=key, n=len(members), tau=tau, regret=_measured(picked) / _measured(best) - 1,
                           picked=f"{picked.id}: {picked.strategy}", best=f"{best.id}: {best.strategy}"))
    return tuple(sorted(found, key=lambda s: (-s.n, s.key)))


def _measured(run: Ran) -> float:
    assert run.measured_s is not None, f"{run.id} has no measured time"
    return run.measured_s


def _sets(runs: Sequence[Ran], *, by_batch: bool) -> dict[str, list[Ran]]:
    sets: dict[str, list[Ran]] = {}
    for run in runs:
        sets.setdefault(run.set_key + (f" | {run.tokens_per_step:g} tokens" if by_batch else ""), []).append(run)
    return sets


def _signs(pairs: Sequence[tuple[float, float]]) -> Iterator[int]:
    """Yield 1 for two runs that both sides order alike, -1 for two that they do not; nothing for a tie."""
    for (m1, p1), (m2, p2) in combinations(pairs, 2):
        product = (m1 - m2) * (p1 - p2)
        if product:
            yield 1 if product > 0 else -1


def _tau(signs: Iterator[int]) -> float | None:
    values = list(signs)
    return sum(values) / len(values) if values else None
