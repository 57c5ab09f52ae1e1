"""The few figures by which accuracy is judged: sets of published runs, what is reached on them, and the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reports.accuracy import ADAPTERS, OFFLOADED, Accuracy, Group, Outcome, group

DENSE_16 = ("bf16", "fp16")
LOW_PRECISION = ("fp8", "fp8-block", "mxfp8", "nvfp4")
BLACKWELL = ("B200", "B300", "GB200", "GB300")


LOCAL = "this machine"
"""Source of the runs that `validate --local` makes, and the name of their set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One figure over a set of runs, beside its target (None: none is set); `higher` says which way is better."""

    set: str
    n: int
    figure: str
    reached: float
    target: float | None
    higher: bool = False

    @property
    def met(self) -> bool | None:
        """Return whether the target is reached."""
        if self.target is None:
            return None
        return self.reached >= self.target if self.higher else abs(self.reached) <= self.target


SETS: dict[str, Callable[[Outcome], bool]] = {
    "dense, bf16 and fp16, A100 and H100, trust A, full strategy": lambda o: (
        o.family == "dense" and o.precision in DENSE_16 and o.gpu.startswith(("A100", "H100")) and o.trust == "A" and o.full
    ),
    "vTrain, several nodes of A100": lambda o: "vTrain" in o.source and o.num_gpus > 8,
    "vTrain, small models in one node": lambda o: "vTrain" in o.source and o.num_gpus <= 8,
    "experts, FP8, FP4 or Blackwell": lambda o: o.family != ADAPTERS and (
        o.family.startswith("experts") or o.precision in LOW_PRECISION or o.gpu.startswith(BLACKWELL)
    ),
    "experts": lambda o: o.family.startswith("experts"),
    "FP8 and FP4": lambda o: o.family != ADAPTERS and o.precision in LOW_PRECISION,
    "Blackwell": lambda o: o.family != ADAPTERS and o.gpu.startswith(BLACKWELL),
    "LoRA fine-tuning, no row of it fitted": lambda o: o.family == ADAPTERS,
    "states in host memory, no row of it fitted": lambda o: o.family == OFFLOADED,
    LOCAL: lambda o: o.source == LOCAL,
}
"""Sets of runs with a measured time."""
DENSE, MULTI_NODE, ONE_NODE, NEW = (name for name in list(SETS)[:4])
TARGETS: dict[tuple[str, str], float] = {
    (DENSE, "MAPE"): 0.05, (DENSE, "P90"): 0.12, (DENSE, "bias"): 0.02, (DENSE, "MAPE, source left out"): 0.08,
    (LOCAL, "median"): 0.08, (LOCAL, "worst"): 0.20,
    (MULTI_NODE, "MAPE"): 0.08, (ONE_NODE, "MAPE"): 0.12, (NEW, "MAPE"): 0.08,
    ("peak memory, allocated", "MAPE"): 0.04, ("peak memory, reserved", "MAPE"): 0.04,
    ("peak memory of all runs", "ran, predicted not to fit"): 0.02,
    ("choice of the layout, by sweep", "tau, median"): 0.8, ("choice of the layout, by sweep", "regret, mean"): 0.01,
}
"""(set, figure) -> what is to be reached; a bias counts by its size."""
HIGHER_IS_BETTER = ("coverage of P10 to P90", "tau", "tau, median")


def headlines(accuracy: Accuracy) -> tuple[Headline, ...]:
    """Return the figures of every set that has runs."""
    found: list[Headline] = []
    for name, belongs in SETS.items():
        members = [o for o in accuracy.timed if belongs(o)]
        if members:
            found += _of_times(name, group("set", name, members))
            if name == LOCAL:
                found.append(_headline(name, len(members), "worst", max(abs(o.error or 0.0) for o in members)))
    return (*found, *_of_memory(accuracy), *_of_choice(accuracy))


def _of_times(name: str, g: Group) -> list[Headline]:
    figures = {"MAPE": g.mape, "median": g.median, "P90": g.p90, "bias": g.bias, "coverage of P10 to P90": g.coverage}
    if g.tau is not None:
        figures["tau"] = g.tau
    if g.loso_mape is not None:
        figures["MAPE, source left out"] = g.loso_mape
    return [_headline(name, g.n, figure, value) for figure, value in figures.items()]


def _of_memory(accuracy: Accuracy) -> list[Headline]:
    found = [_headline(f"peak memory, {m.key}", m.n, "MAPE", m.mape) for m in accuracy.memory]
    share = accuracy.share_not_fitting
    if share is not None:
        found.append(_headline("peak memory of all runs", len(accuracy.outcomes), "ran, predicted not to fit", share))
    return found


def _of_choice(accuracy: Accuracy) -> list[Headline]:
    sweeps = accuracy.sweeps
    if not sweeps:
        return []
    name, n = "choice of the layout, by sweep", len(sweeps)
    taus = [s.tau for s in sweeps if s.tau is not None]
    regrets = [s.regret for s in sweeps]
    figures = {"tau, median": _median(taus), "regret, mean": float(np.mean(regrets)), "regret, median": _median(regrets),
               "regret, worst": max(regrets)}
    return [_headline(name, n, figure, value) for figure, value in figures.items()]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _headline(name: str, n: int, figure: str, reached: float) -> Headline:
    return Headline(set=name, n=n, figure=figure, reached=reached, target=TARGETS.get((name, figure)),
                    higher=figure in HIGHER_IS_BETTER)
