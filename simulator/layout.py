"""Where ranks sit: rank <-> coordinates, groups per axis, which ranks are alike, which wire a group uses.

Rank r sits on the r-th accelerator. Order, innermost first: tp, cp, dp, pp (Megatron-LM's `tp-cp-ep-dp-pp`; Narayanan
et al., arXiv 2104.04473, keep tp inside the node because it talks most), or as the strategy says. The executor's device
mesh is built from this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.collectives import Collective
from profiles.families import Shape, part_items, part_params
from profiles.files import BadInput
from profiles.hardware import Accelerator
from profiles.model import FeedForward, ModelSpec, Part, SelfAttention
from profiles.ops import Num
from simulator.schedules import rank_stages
from simulator.strategy import Strategy

ORDER = ("tp", "cp", "dp", "pp")
"""Axes from the innermost (neighbouring ranks) to the outermost, where the strategy does not say."""
ORDERS = tuple("-".join(order) for order in permutations(ORDER) if order != ORDER)
"""All others, as a strategy names them."""


def order_of(strategy: Strategy) -> tuple[str, ...]:
    """Return the axes from the innermost to the outermost."""
    return tuple(strategy.order.split("-")) if strategy.order else ORDER


def check_order(text: str) -> str:
    """Return an order of axes, like 'tp-cp-dp-pp', or its fault as a `BadInput`; empty is the usual one."""
    if text and sorted(text.split("-")) != sorted(ORDER):
        raise BadInput(f"order: {text!r} must name each of {', '.join(ORDER)} once, innermost first, like 'tp-cp-dp-pp'")
    return text


def size(strategy: Strategy, axis: str) -> Num:
    """Return the members of a group: of a mesh axis; of `shard` (one copy of dense state), `shard groups` (all copies
    of one shard), `etp`, `ep` and `edp` (one copy of each expert, its shards, their copies)."""
    if axis == "shard":
        return strategy.shards
    if axis == "shard groups":
        return strategy.replicas / strategy.shards
    return strategy.expert_replicas if axis == "edp" else getattr(strategy, axis)


def stride(strategy: Strategy, axis: str) -> Num:
    """Return how far apart in rank number two neighbours on an axis are.

    Experts lie over the ranks of tp, cp and dp in an order of their own, innermost first: etp, ep, edp (Megatron-Core's
    parallel folding, arXiv 2504.14960).
    """
    if axis == "etp":
        return 1
    if axis == "ep":
        return strategy.etp
    if axis == "edp":
        return strategy.etp * strategy.ep
    if axis == "shard":
        # dp and cp stand side by side; the group begins with the inner of those that have members
        along_dp, along_cp = stride(strategy, "dp"), stride(strategy, "cp")
        first = np.where(np.asarray(strategy.dp) > 1, np.minimum(along_dp, along_cp), along_cp)
        return np.where(np.asarray(strategy.cp) > 1, first, along_dp)
    if axis == "shard groups":
        return stride(strategy, "shard") * strategy.shards
    result: Num = 1
    if np.ndim(strategy.order):
        for name in np.unique(strategy.order):
            result = np.where(strategy.order == name, stride(replace(strategy, order=str(name)), axis), result)
        return result
    order = order_of(strategy)
    for inner in order[: order.index(axis)]:
        result = result * getattr(strategy, inner)
    return result


def ranks_per_node(strategy: Strategy, axis: str, gpus_per_node: int) -> Num:
    """Return how many members of one group on an axis share a node."""
    apart = stride(strategy, axis)
    return np.maximum(1, np.minimum(size(strategy, axis), gpus_per_node // np.minimum(apart, gpus_per_node)))


def mesh(strategy: Strategy) -> NDArray[np.int64]:
    """Return all ranks as an array [pp, dp, cp, tp]."""
    outermost_first = order_of(strategy)[::-1]
    shape = [int(getattr(strategy, axis)) for axis in outermost_first]
    by_order = np.arange(int(np.prod(shape))).reshape(shape)
    return by_order.transpose([outermost_first.index(axis) for axis in reversed(ORDER)])


def coordinates(strategy: Strategy, rank: Any) -> dict[str, Any]:
    """Return the coordinates of a rank (or of an array of ranks) by axis."""
    return {
        axis: rank // int(stride(strategy, axis)) % int(getattr(strategy, axis)) for axis in ORDER
    }


def rank_of(strategy: Strategy, **where: int) -> int:
    """Return the rank at these coordinates; axes that are not named are 0."""
    return sum(int(stride(strategy, axis)) * index for axis, index in where.items())


def groups(strategy: Strategy, axis: str) -> NDArray[np.int64]:
    """Return the groups of an axis, one a row."""
    ranks = np.moveaxis(mesh(strategy), len(ORDER) - 1 - ORDER.index(axis), -1)
    return ranks.reshape(-1, ranks.shape[-1])


def distinct_ranks(strategy: Strategy) -> list[int]:
    """Return one rank of each set that is alike: on a uniform cluster, one for each pipeline stage."""
    return [rank_of(strategy, pp=stage) for stage in range(int(strategy.pp))]


def devices(accelerator: Accelerator, pp: int) -> list[tuple[Accelerator, ...]]:
    """Return the kinds of accelerator under each pipeline rank: of a pool's those of the parts over which it lies."""
    if not accelerator.parts:
        return [(accelerator,)] * pp
    return [tuple(accelerator.kinds[part] for part in place)
            for place in covered_parts([num for _, num in accelerator.parts], pp)]


def covered_parts(num_gpus: Sequence[int], pp: int) -> list[tuple[int, ...]]:
    """Return the parts of a pool, each of so many accelerators, over which each pipeline rank lies, pp being outermost."""
    ends = np.cumsum(num_gpus).tolist()
    size = ends[-1] // pp
    begins = [0, *ends[:-1]]
    return [tuple(part for part, (begin, end) in enumerate(zip(begins, ends, strict=True))
                  if begin < (rank + 1) * size and rank * size < end) for rank in range(pp)]


def stage_layers(num_layers: int, stages: int) -> list[int]:
    """Return the layers of each stage, as even as can be; the last stage, which has the head, never gets one more."""
    base, extra = divmod(num_layers, stages)
    layers = [base] * stages
    for stage in [*range(1, stages - 1), 0][:extra]:
        layers[stage] += 1
    return layers


def stage_parts(model: ModelSpec, pp: int, chunks: int = 1, split: str = "even") -> list[list[tuple[Part, int]]]:
    """Return the parts of each virtual stage in forward order, runs of like ones counted; the schedule places stages.

    Layers are spread by `split`: as `Strategy.layers` says ('7-8-8-7'), or in the way of `Software.layer_split`: evenly, with
    what is left over on the last stages (late), or by cost.
    Spread evenly, what the last stage does beside its layers where further tokens are predicted (`tail_layers`) counts as
    layers, as in Megatron's published layouts for DeepSeek-V3 (`Et*4|(t*4|)*14tmL`).
    """
    result: list[list[tuple[Part, int]]] = []
    begin, counts = 0, _layer_counts(model, pp * chunks, split)
    for stage, num in enumerate(counts):
        names = [model.kinds[k].name for k in model.pattern[begin : begin + num]]
        parts: list[tuple[Part, int]] = [(name, len(list(run))) for name, run in groupby(names)]
        if stage == 0:
            parts.insert(0, ("embedding", 1))
        if stage == len(counts) - 1:
            parts += [("head", 1)] + ([("mtp", model.mtp_layers)] if model.mtp_layers else [])
        result.append(parts)
        begin += num
    return result


def _layer_counts(model: ModelSpec, stages: int, split: str) -> list[int]:
    if split[:1].isdigit():
        return [int(num) for num in split.split("-")]
    if split == "cost" and stages > 1:
        return _by_cost([_layer_cost(model, kind) for kind in model.pattern], float(model.vocab * model.hidden), stages)
    if split == "late":
        base, extra = divmod(model.num_layers, stages)
        return [base + (stage >= stages - extra) for stage in range(stages)]
    extra = tail_layers(model) if model.mtp_layers and stages > 1 else 0
    if not extra:
        return stage_layers(model.num_layers, stages)
    # the last stage gives up the layers that its tail stands for, as many as it has
    kept = max(0, stage_layers(model.num_layers + extra, stages)[-1] - extra)
    rest, others = model.num_layers - kept, stages - 1
    more = [*range(1, others), 0][: rest % others]
    return [rest // others + (stage in more) for stage in range(others)] + [kept]


def _by_cost(costs: list[float], head: float, stages: int) -> list[int]:
    """Return the layers of each stage where a stage takes layers until it has passed its share of layers and head."""
    share = (sum(costs) + head) / stages
    counts, stage, done = [0] * stages, 0, 0.0
    for cost in costs:
        counts[stage] += 1
        done += cost
        stage += done > share * (stage + 1)
    # a large head must not leave stages in front of its own without a layer
    for stage in range(stages - 2, 0, -1):
        if not counts[stage]:
            donor = max(range(stage), key=lambda s: (counts[s], s))
            counts[donor], counts[stage] = counts[donor] - 1, 1
    return counts


def _layer_cost(model: ModelSpec, kind: int) -> float:
    """Return the weights that a token meets in a layer, with keys and values counted as wide as queries.

    That is what nanotron balances (models/llama.py, get_block_compute_costs: 4 heads head_dim hidden + 3 ffn hidden).
    """
    layer, h = model.kinds[kind], model.hidden
    if isinstance(layer.mixer, SelfAttention) and isinstance(layer.ffn, FeedForward):
        return h * (4.0 * layer.mixer.num_heads * layer.mixer.head_dim + (2 + layer.ffn.gated) * layer.ffn.hidden)
    return sum(p.num_elements * p.active for p in part_params(model, layer.name))


def tail_layers(model: ModelSpec) -> int:
    """Return how many whole layers the work of head and multi-token prediction is worth, by FLOP."""
    shape = Shape(micro_batch=1, seq_len=min(model.max_seq_len, 4096))

    def flop(part: Part) -> float:
        ops = [i for i in part_items(model, part, shape) if not isinstance(i, Collective)]
        return sum(float(k.model_flop) for op in ops for k in op.kernels("F"))

    layer = flop(model.kinds[model.pattern[-1]].name)
    return int((flop("head") + model.mtp_layers * flop("mtp")) / layer)


def rank_parts(
    model: ModelSpec, pp: int, chunks: int = 1, split: str = "even", schedule: str = "1F1B"
) -> list[list[tuple[Part, int]]]:
    """Return the parts of each pipeline rank: those of its chunks, one after the other, where the schedule places them."""
    stages = stage_parts(model, pp, chunks, split)
    return [[part for stage in rank_stages(schedule, rank, pp, chunks) for part in stages[stage]] for rank in range(pp)]
