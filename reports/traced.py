"""A plan against a profiled step of it: where the time went on both sides, and the computation kind by kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from planner.plan import Plan
from planner.predict import predict_replayed
from profiles.cost import CostModel, cost_model
from profiles.files import BadInput
from profiles.ops import Kernel
from reports.compare import ROUNDING_S, TERMS, Comparison, Row
from simulator.breakdown import breakdown
from simulator.estimate import BREAKDOWN
from simulator.layout import coordinates, distinct_ranks, rank_parts
from simulator.metrics import tokens_per_s
from simulator.pricing import as_run
from simulator.timeline import Timeline
from simulator.traces import PROFILER, is_trace, read_trace
from simulator.workload import PartWork, Work, Workload, build_workload

KINDS = {
    "gemm": "gemm", "grouped_gemm": "gemm", "batched_gemm": "gemm", "attention": "attention", "embedding": "embedding",
    "cross_entropy": "loss", "adamw": "optimizer", "scan": "scan", "conv": "scan", "rms_norm": "norm", "layer_norm": "norm",
    "softmax": "softmax", "permute": "experts", "route": "experts",
}
"""Kinds of our kernels as kinds of traced ones; all that are not named are pointwise."""
PASSES = {"F": "forward", "B": "backward", "I": "backward", "W": "backward", "U": "update"}
SECTIONS = ("forward", "backward", "update", "communication")
REST = "else"
"""What of a replayed pass is no kernel's: what the host launches late, what communication slows, gradients that add up."""


def trace_files(paths: Sequence[Path]) -> list[Path]:
    """Return the trace files of some paths, those in folders included; empty if not one is a trace."""
    named = [path for path in paths if not path.is_dir()]
    found = [file for path in paths if path.is_dir() for file in sorted(path.glob("*.json*")) if is_trace(file)]
    return named + found if found or any(is_trace(path) for path in named) else []


def compare_plan_trace(
    plan: Plan, paths: Sequence[Path], on_progress: Callable[[float], None] = lambda share: None
) -> Comparison:
    """Return a plan's replay against the traces of a step of it, one file for each rank.

    Of the ranks that were traced the one that computes most is compared, with the replayed rank of its pipeline stage.
    """
    strategy = plan.strategy
    traced = read_trace(paths, strategy=strategy, on_progress=on_progress)
    beyond = traced.rows["rank"].max()
    if beyond >= strategy.world_size:
        raise BadInput(f"trace: is of rank {beyond}; the plan has {strategy.world_size} ranks ({strategy.describe()})")
    prediction, replayed = predict_replayed(plan.question, strategy)
    rank = _busiest(traced)
    stage = int(coordinates(strategy, rank)["pp"])
    ours, theirs = _only(replayed, distinct_ranks(strategy)[stage]), _only(traced, rank)
    predicted, measured = breakdown(ours), breakdown(theirs)
    rows = (
        Row(key="step_time_s", quantity="step time", unit="s", first=prediction.step_time_s, second=traced.step_time_s),
        Row(key="tokens_per_s", quantity="throughput", unit="tokens/s", first=prediction.tokens_per_s,
            second=float(tokens_per_s(strategy, traced.step_time_s))),
    )
    workload, cost = build_workload(plan.question.model, strategy), cost_model(plan.question.cluster)
    return Comparison(
        title=f"{plan.question.model.name}, {strategy.describe()}; rank {rank}, stage {stage}",
        sides=("predicted", "measured"), prefixes=("predicted_", ""), rows=rows,
        breakdown=tuple(
            Row(key=term, quantity=TERMS[term], unit="s", first=predicted[term], second=measured[term])
            for term in BREAKDOWN if max(predicted[term], measured[term]) > ROUNDING_S
        ),
        work=_work(ours, theirs, kernel_seconds(workload, cost, stage)), facts={"rank": rank, "stage": stage},
    )


def kernel_seconds(workload: Workload, cost: CostModel, stage: int) -> dict[tuple[str, str], float]:
    """Return what the kernels of a pipeline rank take in a step, by pass and kind."""
    strategy = workload.strategy
    cost = as_run(cost, strategy.software)
    seconds: dict[tuple[str, str], float] = {}
    split, schedule = strategy.split, str(strategy.schedule)
    for name, num in rank_parts(workload.model, int(strategy.pp), int(strategy.chunks), split, schedule)[stage]:
        part = workload.parts[name]
        times = num * int(strategy.num_microbatches)
        for pass_, work, each in (
            ("forward", part.forward, times), ("backward", part.backward, times),
            ("backward", _repeated(part, str(strategy.recompute)), times * float(strategy.recompute_share)),
        ):
            for kernel in work:
                if isinstance(kernel, Kernel):
                    key = pass_, KINDS.get(kernel.kind, "pointwise")
                    seconds[key] = seconds.get(key, 0.0) + each * float(cost.kernel(kernel).seconds)
    return seconds


def _repeated(part: PartWork, recompute: str) -> Work:
    return {"none": (), "selective": part.recompute_selective, "full": part.recompute_full}[recompute]


def _busiest(timeline: Timeline) -> int:
    def computing_s(rank: int) -> float:
        parts = breakdown(_only(timeline, rank))
        return parts["compute"] + parts["optimizer"]

    return int(max(timeline.rows["rank"].unique(), key=computing_s))


def _only(timeline: Timeline, rank: int) -> Timeline:
    return Timeline(rows=timeline.rank(rank), step_time_s=timeline.step_time_s)


def _work(ours: Timeline, theirs: Timeline, kernels_s: dict[tuple[str, str], float]) -> tuple[Row, ...]:
    """Return computation by pass and kind, and the communication of each axis, beside computation or not."""
    first, second = _sums(ours.rows), _sums(theirs.rows)
    for (pass_, kind), seconds in kernels_s.items():
        first[pass_, REST] = first.pop((pass_, REST), 0.0) - seconds
        first[pass_, kind] = seconds
    keys = sorted({*first, *second}, key=lambda key: (SECTIONS.index(key[0]), -second.get(key, 0.0), key))
    return tuple(
        Row(key=f"{section}_{what.replace(' ', '_')}", quantity=f"{section}, {what}", unit="s",
            first=first.get((section, what)), second=second.get((section, what)))
        for section, what in keys
        if max(abs(side.get((section, what), 0.0)) for side in (first, second)) > ROUNDING_S
    )


def _sums(rows: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return seconds by pass and kind of what is computed, and by axis of what is communicated."""
    rows = rows[rows["stream"] != "host"]
    computes = rows["stream"] == "compute"
    kinds = rows["op"].str.split(":").str[0].where(rows["source"] == PROFILER, REST)
    kinds = kinds.mask(rows["op"] == "optimizer", "optimizer")
    sections = rows["pass"].map(PASSES).where(computes, "communication").tolist()
    sums: dict[tuple[str, str], float] = {}
    for key, seconds in zip(zip(sections, kinds.where(computes, rows["stream"]), strict=True), rows["end_s"] - rows["start_s"],
                            strict=True):
        sums[key] = sums.get(key, 0.0) + float(seconds)
    return sums
