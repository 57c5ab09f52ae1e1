"""Counts of accelerators: the best strategy on each of them, at the same global batch, and where and why it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from planner.differences import differences
from planner.predict import Prediction, predict_replayed
from planner.question import Question
from planner.rules import MEMORY_RULE, illegal_reason
from planner.search import NUM_REPLAYED, Found, Refuse, search
from planner.space import Axes, brief_space, whole_space
from profiles.cost import cost_model
from profiles.files import BadInput
from profiles.hardware import Cluster, with_num_gpus
from profiles.units import show
from simulator.strategy import RECOMPUTE, Strategy

Spaces = Callable[[Question], Axes]
"""The space to search for a question."""
BATCH_RULE = "batch divides"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How the best strategy differs from that of the count below, and what is wrong with keeping that one.

    `reason`: why it cannot be kept, or empty; then it would be `slower` (a ratio), and `term` is the part of the step that
    would grow most, with its seconds as it would be and as it is.
    """

    what: str
    reason: str = ""
    slower: float = 0.0
    term: str = ""
    kept_s: float = 0.0
    now_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A count of accelerators with its best strategy, or the `reason` why there is none. `is_whole`: all were searched."""

    question: Question
    found: Found
    reason: str = ""
    change: Change | None = None
    is_whole: bool = False

    @property
    def num_gpus(self) -> int:
        """Return the accelerators that train."""
        return self.question.cluster.num_gpus

    @property
    def prediction(self) -> Prediction | None:
        """Return the prediction of the best strategy, or None where nothing fits."""
        return self.found.best


def gpu_counts(cluster: Cluster, most: int | None = None, given: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the counts that are tried: whole nodes (1, 2, 3, 4, 6, 8, 12, ... and as many as may be), or those given."""
    limit = min(cluster.num_gpus, most or cluster.num_gpus)
    if given:
        for num in given:
            if not 1 <= num <= limit:
                raise BadInput(f"counts: {num} accelerators are asked for; there can be 1 to {limit}")
        return tuple(sorted(set(given)))
    node = cluster.smallest_gpus
    if limit < node:
        return (limit,)
    nodes = limit // node
    return tuple(node * num for num in sorted({*(n for n in _ladder(nodes)), nodes}))


def _ladder(most: int) -> Iterator[int]:
    step = 1
    while step <= most:
        yield step
        if step > 1 and step * 3 // 2 <= most:
            yield step * 3 // 2
        step *= 2


def sweep(
    question: Question, counts: Sequence[int], refuse: Refuse | None = None, spaces: Spaces = brief_space,
    on_progress: Callable[[float, int], None] | None = None,
) -> tuple[Sized, ...]:
    """Return each count with the best of a space, and what changes from one count to the next; progress: share, count."""
    found: list[Sized] = []
    last: Prediction | None = None
    for i, num in enumerate(counts):
        if on_progress:
            on_progress(i / len(counts), num)
        sized = searched(on_count(question, num), refuse, spaces)
        if sized.prediction is not None:
            change = changed(last, sized.prediction, sized.found.question) if last else None
            sized, last = replace(sized, change=change), sized.prediction
        found.append(sized)
    return tuple(found)


def on_count(question: Question, num_gpus: int) -> Question:
    """Return the question on so many of its cluster's accelerators."""
    return replace(question, cluster=with_num_gpus(question.cluster, num_gpus))


def searched(
    question: Question, refuse: Refuse | None, spaces: Spaces, on_progress: Callable[[float], None] | None = None,
    num_replayed: int = NUM_REPLAYED,
) -> Sized:
    """Return a question's best strategy in a space, or why there is none."""
    found = search(question, refuse, on_progress, spaces(question), num_replayed)
    return Sized(question=found.question, found=found, reason="" if found.best else _nothing(found))


def _nothing(found: Found) -> str:
    """Return why nothing is left: what comes nearest to fitting, the batch, or the rule that most strategies break."""
    most = max(found.rejected, key=lambda name: found.rejected[name], default="")
    rule = next((name for name in (MEMORY_RULE, BATCH_RULE) if name in found.rejected), most)
    begin = "does not fit" if rule == MEMORY_RULE else "nothing divides" if rule == BATCH_RULE else "no legal strategy"
    example = next((r for r in found.rejected_examples if r.rule == rule), None)
    return begin if example is None else f"{begin}: {example.reason}"


def changed(before: Prediction, after: Prediction, question: Question) -> Change | None:
    """Return how the best strategy changed to that of this question's count, and why the one before is not kept."""
    what = differences(before.strategy, after.strategy)
    if not what:
        return None
    same, reason = kept(before.strategy, question)
    if same is None:
        return Change(what=what, reason=reason)
    there = predict_replayed(question, same, cost_model(question.cluster))[0]
    if not there.fits:
        return Change(what=what, reason=f"needs {show(there.peak_memory_bytes, 'bytes')}, "
                      f"{show(there.usable_memory_bytes, 'bytes')} usable on {question.cluster.accelerator.title}")
    term = max(there.breakdown_s, key=lambda t: there.breakdown_s[t] - after.breakdown_s[t])
    return Change(what=what, slower=there.step_time_s / after.step_time_s - 1, term=term, kept_s=there.breakdown_s[term],
                  now_s=after.breakdown_s[term])


def kept(strategy: Strategy, question: Question) -> tuple[Strategy | None, str]:
    """Return a strategy with as many replicas as the count makes, or why it cannot be."""
    num, others = question.cluster.num_gpus, int(strategy.tp * strategy.cp * strategy.pp)
    if num % others:
        return None, f"tp {strategy.tp} x cp {strategy.cp} x pp {strategy.pp} = {others} does not divide {num} accelerators"
    dp = num // others
    same = replace(strategy, dp=dp, num_microbatches=max(1, question.global_batch // int(dp * strategy.micro_batch)))
    reason = illegal_reason(same, question)
    return (None, reason) if reason else (same, "")


def near_space(question: Question, strategy: Strategy) -> Axes:
    """Return a small space around a strategy: its schedule and order, degrees and batches up to four times as large or small.

    For another count of accelerators, where what is best lies near: some hundreds of strategies.
    """
    whole, s = whole_space(question), strategy

    def around(axis: str, factor: int) -> tuple[int, ...]:
        own = getattr(s, axis)
        return tuple(v for v in whole[axis] if own <= v * factor and v <= own * factor)

    return brief_space(question) | {
        "tp": around("tp", 4), "pp": tuple(sorted({1, *around("pp", 4)})), "cp": around("cp", 2), "ep": around("ep", 2),
        "etp": (s.etp,), "zero": tuple(dict.fromkeys(((s.zero, s.shard_group), (1, 0), (3, 0)))),
        "recompute": tuple(dict.fromkeys(((s.recompute, s.recompute_share), *((name, 1.0) for name in RECOMPUTE)))),
        "micro_batch": around("micro_batch", 4), "schedule": (s.schedule,), "chunks": tuple(sorted({1, 2, s.chunks})),
        "context": (s.context,), "order": (s.order,),
    }
