"""Where ranks sit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.layout import (
    ORDER,
    coordinates,
    distinct_ranks,
    groups,
    mesh,
    rank_of,
    ranks_per_node,
    stage_layers,
    stage_layers_by_place,
)
from simulator.strategy import Strategy

degrees = st.builds(
    Strategy, dp=st.integers(1, 4), tp=st.integers(1, 4), cp=st.integers(1, 2), pp=st.integers(1, 4)
)


@given(degrees)
def test_rank_and_coordinates_are_inverse(strategy: Strategy) -> None:
    for rank in range(strategy.world_size):
        assert rank_of(strategy, **coordinates(strategy, rank)) == rank


@given(degrees, st.sampled_from(ORDER))
def test_groups_partition_the_ranks(strategy: Strategy, axis: str) -> None:
    rows = groups(strategy, axis)
    assert sorted(rows.ravel()) == list(range(strategy.world_size))
    for row in rows:
        others = [{a: c for a, c in coordinates(strategy, r).items() if a != axis} for r in row]
        assert all(o == others[0] for o in others)


@given(degrees, st.sampled_from(ORDER), st.sampled_from([1, 2, 4, 8]))
def test_members_in_a_node_are_counted(strategy: Strategy, axis: str, gpus_per_node: int) -> None:
    """The formula equals counting, wherever groups align with nodes."""
    inner = int(np.prod([getattr(strategy, a) for a in ORDER[: ORDER.index(axis)]]))
    if gpus_per_node % inner and inner % gpus_per_node:
        return
    size = getattr(strategy, axis)
    apart_per_node = max(1, gpus_per_node // inner)
    if size % apart_per_node and apart_per_node % size:
        return
    counted = max(np.bincount(row // gpus_per_node).max() for row in groups(strategy, axis))
    assert ranks_per_node(strategy, axis, gpus_per_node) == counted


def test_tensor_parallel_ranks_are_neighbours() -> None:
    assert groups(Strategy(dp=2, tp=2, pp=2), "tp").tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert groups(Strategy(dp=2, tp=2, pp=2), "pp").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert mesh(Strategy(dp=2, tp=2, pp=2)).shape == (2, 2, 1, 2)
    assert distinct_ranks(Strategy(dp=2, tp=2, pp=2)) == [0, 4]


@pytest.mark.parametrize("num_layers", range(1, 34))
def test_layers_by_place_is_the_same_split(num_layers: int) -> None:
    for pp in range(1, num_layers + 1):
        stages = stage_layers(num_layers, pp)
        first, middle, last = stage_layers_by_place(num_layers, np.array([pp]))
        assert sum(stages) == num_layers
        assert max(stages) - min(stages) <= 1
        assert (stages[0], max(stages[1:-1], default=0), stages[-1]) == (first[0], middle[0], last[0])
