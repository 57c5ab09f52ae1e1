"""Where ranks sit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.families import load_model
from profiles.model import Experts, FeedForward, ModelSpec, SelfAttention
from simulator.layout import (
    ORDER,
    coordinates,
    distinct_ranks,
    groups,
    mesh,
    rank_of,
    rank_parts,
    ranks_per_node,
    size,
    stage_layers,
    stage_parts,
    stride,
)
from simulator.networks import axis_groups
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
    members = getattr(strategy, axis)
    apart_per_node = max(1, gpus_per_node // inner)
    if members % apart_per_node and apart_per_node % members:
        return
    counted = max(np.bincount(row // gpus_per_node).max() for row in groups(strategy, axis))
    assert ranks_per_node(strategy, axis, gpus_per_node) == counted


def test_tensor_parallel_ranks_are_neighbours() -> None:
    assert groups(Strategy(dp=2, tp=2, pp=2), "tp").tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert groups(Strategy(dp=2, tp=2, pp=2), "pp").tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert mesh(Strategy(dp=2, tp=2, pp=2)).shape == (2, 2, 1, 2)
    assert distinct_ranks(Strategy(dp=2, tp=2, pp=2)) == [0, 4]


FOLDED: dict[str, Callable[[Strategy, int], tuple[int, ...]]] = {
    # what the ranks of one group have in common: their stage, and on it
    "shard": lambda s, r: (r % s.tp, r // s.tp // _copy(s)),
    "shard groups": lambda s, r: (r % s.tp, r // s.tp % _copy(s)),
    "etp": lambda s, r: (r // s.etp,),
    "ep": lambda s, r: (r % s.etp, r // (s.etp * s.ep)),
    "edp": lambda s, r: (r % (s.etp * s.ep),),
}
"""Axes that fold the ranks of a stage anew: dense copies over the ranks of cp and dp; experts over those of tp too."""


def _copy(strategy: Strategy) -> int:
    """Return the ranks that share one copy of the dense parameters."""
    whole = strategy.dp * strategy.cp
    return min(strategy.shard_group, whole) if strategy.shard_group else whole


def folded_groups(strategy: Strategy, axis: str) -> list[list[int]]:
    """Return the groups of a folded axis by comparing every rank with every other."""
    stage = strategy.tp * strategy.cp * strategy.dp
    found: dict[tuple[int, ...], list[int]] = {}
    for rank in range(strategy.world_size):
        found.setdefault((rank // stage, *FOLDED[axis](strategy, rank % stage)), []).append(rank)
    return list(found.values())


powers = st.sampled_from([1, 2, 4])


@given(powers, powers, powers, st.sampled_from([1, 2]), st.sampled_from([0, 1, 2, 4, 8]), powers, powers,
       st.sampled_from(sorted(FOLDED)), st.sampled_from([1, 2, 4, 8]))
def test_folded_axes_by_counting(
    dp: int, tp: int, cp: int, pp: int, shard_group: int, ep: int, etp: int, axis: str, gpus_per_node: int
) -> None:
    """Members, distance and members in a node of the axes of sharded state and of experts."""
    if dp * tp * cp % (ep * etp):
        return
    strategy = Strategy(dp=dp, tp=tp, cp=cp, pp=pp, shard_group=shard_group, ep=ep, etp=etp)
    rows = folded_groups(strategy, axis)
    assert {len(row) for row in rows} == {int(size(strategy, axis))}
    assert all(np.diff(row).tolist() == [int(stride(strategy, axis))] * (len(row) - 1) for row in rows)
    counted = max(np.bincount(np.array(row) // gpus_per_node).max() for row in rows)
    assert ranks_per_node(strategy, axis, gpus_per_node) == counted


def test_a_mixture_of_experts_on_two_nodes() -> None:
    """tp 2 x cp 2 x dp 4 with ep 8: neighbours exchange tokens inside a node of 8, two copies of each expert; state
    sharded over groups of 4 that fill a node, its copies one in each."""
    strategy = Strategy(dp=4, tp=2, cp=2, ep=8, shard_group=4)
    assert [(int(size(strategy, a)), int(stride(strategy, a))) for a in ("etp", "ep", "edp", "shard", "shard groups")] \
        == [(1, 1), (8, 1), (2, 8), (4, 2), (2, 8)]
    assert [int(ranks_per_node(strategy, a, 8)) for a in ("ep", "edp", "shard", "shard groups")] == [8, 1, 4, 1]
    wide = replace(strategy, ep=4, etp=2)
    assert [(int(size(wide, a)), int(stride(wide, a))) for a in ("etp", "ep", "edp")] == [(2, 1), (4, 2), (2, 8)]


@pytest.mark.parametrize("num_layers", range(1, 34))
def test_layers_are_split_evenly(num_layers: int) -> None:
    for stages in range(1, num_layers + 3):
        layers = stage_layers(num_layers, stages)
        assert len(layers) == stages and sum(layers) == num_layers
        assert max(layers) - min(layers) <= 1
        assert layers[-1] == min(layers)


LLAMA = load_model("llama-3-8b")


def patterned(num_layers: int) -> ModelSpec:
    """Return a model whose first layer is dense and whose others have experts, with a layer that looks further ahead."""
    dense = replace(LLAMA.kinds[0], name="dense", ffn=FeedForward(hidden=64))
    sparse = replace(LLAMA.kinds[0], name="sparse", ffn=Experts(num_experts=8, top_k=2, hidden=32))
    return replace(LLAMA, kinds=(dense, sparse), pattern=(0,) + (1,) * (num_layers - 1), mtp_layers=1)


def laid_out(parts: list[tuple[str, int]]) -> list[str]:
    return [part for part, num in parts for _ in range(num)]


@pytest.mark.parametrize("patterns", [False, True])
@pytest.mark.parametrize(("pp", "chunks"), [(1, 1), (2, 1), (3, 1), (4, 1), (8, 1), (2, 2), (4, 2), (2, 4), (4, 4)])
def test_stages_in_a_row_are_the_model(pp: int, chunks: int, patterns: bool) -> None:
    """Every part once, in order; embedding first, head last, no stage empty and none more than a layer ahead.

    A last stage that also looks further ahead has fewer layers than the others, or none.
    """
    # with chunks the embedding and the head may have a stage each
    for num_layers in range(max(1, pp * chunks - 2 * (chunks > 1)), 34):
        model = patterned(num_layers) if patterns else replace(LLAMA, pattern=(0,) * num_layers)
        names = ["dense", *["sparse"] * (num_layers - 1)] if patterns else ["layer"] * num_layers
        stages = stage_parts(model, pp, chunks)
        assert len(stages) == pp * chunks
        assert [p for stage in stages for p in laid_out(stage)] == ["embedding", *names, "head", *["mtp"] * patterns]
        assert all(num >= 1 for stage in stages for _, num in stage)
        layers = [sum(p in ("layer", "dense", "sparse") for p in laid_out(stage)) for stage in stages]
        assert all(stages) and layers[-1] == min(layers)
        assert max(layers[:-1], default=0) - min(layers[:-1], default=0) <= 1
        if not patterns:
            assert max(layers) - min(layers) <= 1
        assert all(a != b for stage in stages for (a, _), (b, _) in pairwise(stage))


@pytest.mark.parametrize("split", ["even", "cost"])
@pytest.mark.parametrize(("model", "pp"), [("llama-3-8b", 4), ("llama-3-8b", 8), ("gpt2-xl", 6), ("llama-3-70b", 16)])
def test_either_split_has_every_layer_once_and_the_costly_one_relieves_the_head(model: str, pp: int, split: str) -> None:
    spec = load_model(model)
    stages = stage_parts(spec, pp, 1, split)
    layers = [sum(part == "layer" for part in laid_out(stage)) for stage in stages]
    assert sum(layers) == spec.num_layers and min(layers) >= 1
    assert layers[-1] == min(layers)
    if split == "cost":
        # no stage is ahead of its share of all weights by more than a layer: h (4 h + ffn) each, v h for the head
        mixer, ffn = spec.kinds[0].mixer, spec.kinds[0].ffn
        assert isinstance(mixer, SelfAttention) and isinstance(ffn, FeedForward)
        each = 4 * mixer.num_heads * mixer.head_dim + (3 if ffn.activation == "swiglu" else 2) * ffn.hidden
        share = (spec.num_layers * each + spec.vocab) / pp
        for i in range(1, pp):
            assert share * i < each * sum(layers[:i]) <= share * i + each


@pytest.mark.parametrize(("model", "pp", "chunks", "split"), [
    (patterned(6), 4, 2, "even"), (load_model("llama-3-8b"), 4, 8, "cost"), (load_model("llama-3-8b"), 30, 1, "cost"),
], ids=["further tokens", "cost, chunks", "cost"])
def test_no_stage_is_empty(model: ModelSpec, pp: int, chunks: int, split: str) -> None:
    assert all(stage_parts(model, pp, chunks, split))


@pytest.mark.parametrize(("pp", "chunks"), [(1, 1), (4, 1), (2, 2), (4, 2), (2, 4)])
def test_a_rank_holds_every_pp_th_stage(pp: int, chunks: int) -> None:
    """Stage s is on rank s % pp, as in arXiv 2104.04473, figure 4."""
    model = patterned(19)
    stages, ranks = stage_parts(model, pp, chunks), rank_parts(model, pp, chunks)
    held = [Counter[str]() for _ in range(pp)]
    for s, stage in enumerate(stages):
        held[s % pp].update(laid_out(stage))
    assert [Counter(laid_out(parts)) for parts in ranks] == held
    assert sum(held, Counter()) == Counter({"embedding": 1, "dense": 1, "sparse": 18, "head": 1, "mtp": 1})


@given(st.permutations(ORDER), degrees)
def test_any_order_numbers_every_rank_once(order: list[str], sizes: Strategy) -> None:
    strategy = replace(sizes, order="-".join(order))
    ranks = mesh(strategy)
    assert sorted(ranks.ravel().tolist()) == list(range(ranks.size))
    for rank in (0, ranks.size // 2, ranks.size - 1):
        where = coordinates(strategy, rank)
        assert rank_of(strategy, **where) == rank
        assert ranks[where["pp"], where["dp"], where["cp"], where["tp"]] == rank
    innermost = next((a for a in order if getattr(sizes, a) > 1), None)
    if innermost:
        assert rank_of(strategy, **{innermost: 1}) == 1


@pytest.mark.parametrize("order", ["tp-cp-dp-pp", "tp-dp-cp-pp", "dp-tp-cp-pp", "pp-cp-dp-tp", "dp-cp-pp-tp", "cp-dp-tp-pp"])
@pytest.mark.parametrize(("dp", "cp"), [(4, 2), (2, 4), (1, 4), (4, 1)])
def test_dense_state_is_sharded_over_the_ranks_of_dp_and_cp_in_every_order(order: str, dp: int, cp: int) -> None:
    """Where dp and cp stand side by side (an axis of one member between them does not part them), however they are ordered."""
    strategy = Strategy(dp=dp, cp=cp, pp=2, order=order, num_microbatches=2)
    groups = axis_groups(int(strategy.world_size), int(size(strategy, "shard")), int(stride(strategy, "shard")))
    for group in groups:
        where = [coordinates(strategy, int(rank)) for rank in group]
        assert len({(at["tp"], at["pp"]) for at in where}) == 1 and len({(at["dp"], at["cp"]) for at in where}) == dp * cp
