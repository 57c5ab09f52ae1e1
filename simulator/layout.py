"""Where ranks sit: rank <-> coordinates, groups per axis, which ranks are alike, which wire a group uses.

Order, innermost first: tp, cp, dp, pp (Megatron-LM's `tp-cp-ep-dp-pp`; Narayanan et al., arXiv 2104.04473, keep tp
inside the node because it talks most). The executor's device mesh is built from this file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.ops import Num
from simulator.strategy import Strategy

ORDER = ("tp", "cp", "dp", "pp")
"""Axes from the innermost (neighbouring ranks) to the outermost."""


def stride(strategy: Strategy, axis: str) -> Num:
    """Return how far apart in rank number two neighbours on an axis are."""
    result: Num = 1
    for inner in ORDER[: ORDER.index(axis)]:
        result = result * getattr(strategy, inner)
    return result


def ranks_per_node(strategy: Strategy, axis: str, gpus_per_node: int) -> Num:
    """Return how many members of one group on an axis share a node."""
    size, apart = getattr(strategy, axis), stride(strategy, axis)
    return np.maximum(1, np.minimum(size, gpus_per_node // np.minimum(apart, gpus_per_node)))


def mesh(strategy: Strategy) -> NDArray[np.int64]:
    """Return all ranks as an array [pp, dp, cp, tp]."""
    shape = [int(getattr(strategy, axis)) for axis in reversed(ORDER)]
    return np.arange(int(np.prod(shape))).reshape(shape)


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


def stage_layers(num_layers: int, pp: int) -> list[int]:
    """Return the layers of each stage, as even as can be; the last stage, which has the head, never gets one more."""
    base, extra = divmod(num_layers, pp)
    layers = [base] * pp
    for stage in [*range(1, pp - 1), 0][:extra]:
        layers[stage] += 1
    return layers


def stage_layers_by_place(num_layers: int, pp: Num) -> tuple[Num, Num, Num]:
    """Return the layers of the first stage, of the largest middle stage (0 if none) and of the last, for any pp.

    `stage_layers` as a formula over arrays; with pp = 1 the first stage is also the last.
    """
    base, extra = num_layers // pp, num_layers % pp
    first = base + ((extra == pp - 1) & (pp > 1))
    middle = np.where(pp > 2, base + (extra > 0), 0)
    return first, middle, base
