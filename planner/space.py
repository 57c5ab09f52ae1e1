"""The space of strategies: the values of every axis, and their combinations in blocks of arrays, legal or not.

A block has one pp and one of everything that a batch has one of; its `grid` holds the combinations of the other axes,
each of which meets each of its `pipes`: a schedule, with chunks and a split of the layers; and each of its `offloads`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planner.balance import balanced_splits, loads_of
from planner.offloading import offload_ways
from planner.question import Question
from planner.rules import num_experts
from profiles.files import BadInput
from simulator.layout import ORDER, ORDERS, check_order, stage_parts
from simulator.schedules import SCHEDULES
from simulator.strategy import CONTEXT, OFFLOAD, PRECISIONS, RECOMPUTE, Strategy

Axes = dict[str, tuple[Any, ...]]
"""What is searched: axis -> its values."""

AXES = {
    "tp": "tensor-parallel degrees", "cp": "context-parallel degrees", "pp": "pipeline-parallel degrees",
    "ep": "expert-parallel degrees", "etp": "tensor-parallel degrees inside an expert",
    "zero": "ZeRO levels, with the ranks of a hybrid group behind a colon (3:8)",
    "recompute": "recomputation, with the share of layers behind a colon (full:0.5)",
    "offload": "what of the optimizer's states lies in host memory, with their share behind a colon (optimizer:0.5)",
    "micro_batch": "sequences of a micro-batch", "schedule": "pipeline schedules",
    "chunks": "chunks of layers a pipeline rank, or 'even' for all that divide its layers",
    "fewer": "layers that the first and the last stage have less than an even split (0/0, 1/1), or 'balanced' over the speeds "
             "of a pool's accelerators",
    "context": "how keys reach other cp ranks", "order": "axes on the machine, innermost first, or 'all'",
    "global_batch": "sequences of a step", "precision": "what is computed in",
}
"""Axis -> what its values are."""
SHARES = (0.5,)
"""Shares of the layers that full recomputation is tried on, beside all."""
FEWER = ((0, 0), (0, 1), (1, 1))
BALANCED = "balanced"
"""Splits of the layers under which the unlike accelerators of a pool take equally long (`planner.balance`)."""
EVEN = "even"
"""Every number of chunks that divides the layers of a pipeline rank, with embedding and head counted as layers or not."""
USUAL_ORDERS = ("", "tp-cp-pp-dp", "cp-tp-dp-pp", "dp-tp-cp-pp")
"""The usual order, Llama 3's with dp outermost (arXiv 2407.21783, section 3.3.2), and cp or dp innermost."""
SHORTEST_PIECE = 1024
"""Tokens of a sequence that a cp rank holds at the least, where the degrees of cp are not given."""
MOST_NODES_OF_TP = 2
"""Nodes over which tensor parallelism is tried, where its degrees are not given."""
HYBRID = (1, 3)
"""ZeRO levels that are tried with hybrid groups."""
GROUP_STEP = 8
"""Hybrid groups larger than a node are tried in these steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipeChoice:
    """How a pipeline runs: a schedule with chunks, and the layers of each stage (empty: as the software splits them)."""

    schedule: str
    chunks: int
    layers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of the space: the question that it answers, a grid whose fields broadcast, the pipes of its pp, and ways to
    offload with their shares (nothing first, where that is one)."""

    question: Question
    grid: Strategy
    shape: tuple[int, ...]
    pipes: tuple[PipeChoice, ...]
    offloads: tuple[tuple[str, float], ...] = (("none", 1.0),)

    @property
    def size(self) -> int:
        """Return how many strategies it holds."""
        return int(np.prod(self.shape)) * len(self.pipes) * len(self.offloads)


def divisors(n: int) -> list[int]:
    """Return the divisors of n in rising order."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def whole_space(question: Question) -> Axes:
    """Return every axis with all its values, where these are finite; else those that people use."""
    cluster, experts = question.cluster, num_experts(question.model)
    fewer = (*FEWER[:1], BALANCED) if cluster.parts else FEWER
    num, node = cluster.num_gpus, min(cluster.gpus_per_node, cluster.num_gpus)
    degrees = tuple(divisors(num))
    groups = [d for d in divisors(node) if d > 1]
    while groups and groups[-1] * GROUP_STEP < num:
        groups.append(groups[-1] * GROUP_STEP)
    return {
        "tp": tuple(d for d in degrees if d <= MOST_NODES_OF_TP * node),
        "cp": tuple(d for d in degrees if d == 1 or question.seq_len // d >= SHORTEST_PIECE),
        "pp": tuple(d for d in degrees if d <= question.model.num_layers), "ep": tuple(divisors(experts)) if experts else (1,),
        "etp": tuple(divisors(node)) if experts else (1,),
        "zero": (*((level, 0) for level in range(4)), *((level, group) for level in HYBRID for group in groups)),
        "recompute": (*((name, 1.0) for name in RECOMPUTE), *(("full", share) for share in SHARES)),
        "offload": tuple((way, 1.0) for way in ("none", *offload_ways(question))),
        "micro_batch": tuple(divisors(question.global_batch)), "schedule": tuple(SCHEDULES),
        "chunks": (EVEN,), "fewer": fewer, "context": CONTEXT, "order": USUAL_ORDERS,
        "global_batch": (question.global_batch,), "precision": (question.precision,),
    }


def brief_space(question: Question) -> Axes:
    """Return a space of what most runs use, some hundred times smaller: for questions that search many times over."""
    whole = whole_space(question)
    return whole | {
        "zero": tuple((level, 0) for level in range(4)), "recompute": tuple((name, 1.0) for name in RECOMPUTE),
        "schedule": ("1F1B", "Interleaved1F1B"), "chunks": (1, 2, 4, 8),
        "fewer": whole["fewer"] if question.cluster.parts else FEWER[:1], "context": CONTEXT[:1], "order": ("",),
        "cp": tuple(c for c in whole["cp"] if c == 1 or question.seq_len // c >= 4 * SHORTEST_PIECE), "etp": (1,),
    }


def narrowed(axes: Axes, given: list[str], question: Question) -> Axes:
    """Return a space in which some axes have the values of texts like 'tp=1,2,4', or the fault as a `BadInput`."""
    found = dict(axes)
    for text in given:
        name, equals, values = text.partition("=")
        if name not in AXES:
            raise BadInput(f"search: {name!r} is no axis; they are {', '.join(AXES)}")
        if not equals or not values:
            like = ",".join(_text(name, value) for value in axes[name][:3])
            raise BadInput(f"search: {text!r} names no values; write it like '{name}={like}'")
        if (name, values) == ("order", "all"):
            values = ",".join(("-".join(ORDER), *ORDERS))
        found[name] = tuple(dict.fromkeys(_value(name, value) for value in values.split(",")))
    if found["global_batch"] != axes["global_batch"] and found["micro_batch"] == axes["micro_batch"]:
        found["micro_batch"] = tuple(sorted({d for batch in found["global_batch"] for d in divisors(batch)}))
    return found


def blocks(question: Question, axes: Axes) -> Iterator[Block]:
    """Return the space part by part."""
    num = question.cluster.num_gpus
    for precision, batch, context in itertools.product(*(axes[a] for a in ("precision", "global_batch", "context"))):
        asked = replace(question, precision=precision, global_batch=batch)
        for pp in axes["pp"]:
            # only ring says what cp of 1 does
            degrees = [(tp, cp) for tp, cp in itertools.product(axes["tp"], axes["cp"])
                       if num % (tp * cp * pp) == 0 and (cp > 1 or context == axes["context"][0])]
            if num % pp or not degrees:
                continue
            columns = (degrees, list(itertools.product(axes["ep"], axes["etp"])), axes["zero"], axes["recompute"],
                       axes["micro_batch"], axes["order"])
            (tp, cp), (ep, etp), (zero, group), (recompute, share), (micro_batch,), (order,) = (
                _along(at, values, len(columns)) for at, values in enumerate(columns))
            dp = num // (tp * cp * pp)
            # one order of axes is the same for all, and quicker as such
            order = order if len(axes["order"]) > 1 else axes["order"][0]
            grid = Strategy(
                dp=dp, tp=tp, cp=cp, pp=pp, ep=ep, etp=etp, zero=zero, shard_group=group, recompute=recompute,
                recompute_share=share, micro_batch=micro_batch, num_microbatches=np.maximum(1, batch // (dp * micro_batch)),
                context=context, order=order, precision=precision, seq_len=asked.seq_len, lora_rank=asked.lora_rank,
                lora_targets=asked.lora_targets, software=asked.software,
            )
            offloads = tuple(sorted(axes["offload"], key=lambda offload: offload[0] != "none"))
            if pipes := tuple(_pipes(asked, pp, axes)):
                yield Block(question=asked, grid=grid, shape=tuple(map(len, columns)), pipes=pipes, offloads=offloads)


def flat(grid: Strategy, shape: tuple[int, ...], where: Any) -> Strategy:
    """Return those strategies of a grid that are marked in an array of its shape, in a row."""
    def of(value: Any) -> Any:
        return np.broadcast_to(value, shape)[where] if np.ndim(value) else value

    names = (f for f in ("dp", "tp", "cp", "ep", "etp", "zero", "shard_group", "recompute", "recompute_share", "micro_batch",
                         "num_microbatches", "order"))
    return replace(grid, **{name: of(getattr(grid, name)) for name in names})


def _along(axis: int, values: Any, num_axes: int) -> list[Any]:
    """Return each column of a list of values (or of tuples) as an array along one of so many axes."""
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    shape = tuple(len(rows) if i == axis else 1 for i in range(num_axes))
    return [np.array(column).reshape(shape) for column in zip(*rows, strict=True)]


def _pipes(question: Question, pp: int, axes: Axes) -> Iterator[PipeChoice]:
    """Return every schedule with every number of chunks that it may have and every split of the layers, none twice."""
    if pp == 1:
        yield PipeChoice(schedule=axes["schedule"][0] if len(axes["schedule"]) == 1 else "1F1B", chunks=1, layers="")
        return
    model, way = question.model, question.software.layer_split
    counts = {num for num in axes["chunks"] if num != EVEN}
    loads = loads_of(question, pp) if BALANCED in axes["fewer"] and question.cluster.parts else ()
    if EVEN in axes["chunks"]:
        counts |= {1, 2} | {num for num in range(3, model.num_layers // pp + 2)
                            if model.num_layers % (pp * num) == 0 or (model.num_layers + 2) % (pp * num) == 0}
    for schedule, chunks in itertools.product(axes["schedule"], sorted(counts)):
        known = SCHEDULES[schedule].chunks
        if chunks != known if known else chunks == 1:
            continue
        if pp * chunks > model.num_layers + 2 * (chunks > 1):
            continue
        even = [sum(num for part, num in parts if part not in ("embedding", "head", "mtp"))
                for parts in stage_parts(model, pp, chunks, way)]
        seen = {tuple(even)}
        for split in balanced_splits(pp, schedule, chunks, loads):
            if (counts_of := tuple(map(int, split.split("-")))) not in seen:
                seen.add(counts_of)
                yield PipeChoice(schedule=schedule, chunks=chunks, layers=split)
        for fewer in (pair for pair in axes["fewer"] if pair != BALANCED):
            layers = _with_fewer(even, *fewer)
            if fewer == (0, 0):
                yield PipeChoice(schedule=schedule, chunks=chunks, layers="")
            elif layers and tuple(layers) not in seen:
                seen.add(tuple(layers))
                yield PipeChoice(schedule=schedule, chunks=chunks, layers="-".join(map(str, layers)))


def _with_fewer(even: list[int], first: int, last: int) -> list[int]:
    """Return the layers of stages of which the ends give up some, which the others take in turn; nothing where they cannot."""
    base = sum(even) // len(even)
    ends = base - first, base - last
    others = len(even) - 2
    if others < 1 or min(ends) < 0:
        return []
    each, more = divmod(sum(even) - sum(ends), others)
    return [ends[0], *(each + (i < more) for i in range(others)), ends[1]]


def axes_texts(axes: Axes) -> dict[str, list[str]]:
    """Return a space as texts, as `narrowed` reads them."""
    return {name: [_text(name, value) for value in values] for name, values in axes.items()}


def _text(axis: str, value: Any) -> str:
    if axis == "order":
        return value or "-".join(ORDER)
    if not isinstance(value, tuple):
        return str(value)
    head, rest = value
    # what stands behind the colon is left out where it says nothing
    if rest == (1.0 if axis in SHARED else 0) and axis != "fewer":
        return str(head)
    return f"{head}{'/' if axis == 'fewer' else ':'}{rest:g}"


def _value(axis: str, text: str) -> Any:
    """Return a value of an axis from its text."""
    if (axis, text) in (("chunks", EVEN), ("fewer", BALANCED)):
        return text
    if axis == "order":
        return "" if check_order(text) == "-".join(ORDER) else text
    head, _, rest = text.partition("/" if axis == "fewer" else ":")
    if axis in WORDS:
        if head not in WORDS[axis]:
            raise BadInput(f"search: {axis} {head!r} is not known; known are {', '.join(WORDS[axis])}")
        if axis not in SHARED:
            return text
    try:
        if axis in SHARED:
            return head, float(rest or 1)
        return (int(head), int(rest or 0)) if axis in ("zero", "fewer") else int(text)
    except ValueError:
        raise BadInput(f"search: {axis}: {text!r} is no value of {AXES[axis]}") from None


WORDS: dict[str, tuple[str, ...]] = {
    "schedule": tuple(SCHEDULES), "context": CONTEXT, "precision": PRECISIONS, "recompute": RECOMPUTE,
    "offload": OFFLOAD,
}
"""Axes whose values are words."""
SHARED = ("recompute", "offload")
"""Axes whose words stand with a share."""
