"""The order of samples: a permutation, by chance, the same for any number of ranks, with neighbours read together."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.data.order import Order, mix, permute, positions
from simulator.strategy import Strategy

sizes, seeds = st.integers(1, 400), st.integers(0, 2**70)


def u64(values: object) -> np.ndarray:
    return np.asarray(values, dtype=np.uint64)


@given(sizes, st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    found = permute(np.arange(size, dtype=np.uint64), u64(np.full(size, size)), u64(np.full(size, key)))
    assert sorted(found.tolist()) == list(range(size))


def test_permute_of_mixed_sizes_is_each_ones_own() -> None:
    at, size, key = u64([0, 1, 2, 5, 70]), u64([1, 2, 3, 9, 100]), u64([3, 1, 4, 1, 5])
    each = [permute(at[i : i + 1], size[i : i + 1], key[i : i + 1])[0] for i in range(5)]
    assert permute(at, size, key).tolist() == [int(x) for x in each]


def test_mix_is_splitmix64() -> None:
    """Its first outputs from the state 1234567, as Rosetta Code and the JDK have them."""
    gamma, state, found = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        found.append(int(mix(u64([state]))[0]))
        state = (state + gamma) % 2**64
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(sizes, seeds, st.integers(1, 20), st.integers(1, 12), st.integers(0, 3))
def test_every_epoch_is_a_permutation(num: int, seed: int, group: int, window: int, epoch: int) -> None:
    order = Order(num_samples=num, seed=seed, group=group, window=window)
    found = order.samples(np.arange(num) + epoch * num)
    assert sorted(found.tolist()) == list(range(num))


@given(sizes, seeds, st.data())
def test_a_position_alone_gives_the_same_sample(num: int, seed: int, data: st.DataObject) -> None:
    """So resuming costs an integer."""
    order = Order(num_samples=num, seed=seed, group=7, window=3)
    first = data.draw(st.integers(0, 3 * num))
    assert np.array_equal(order.samples(np.arange(4 * num))[first:], order.samples(np.arange(first, 4 * num)))


def test_epochs_and_seeds_differ() -> None:
    order = Order(num_samples=1000, seed=0, group=10, window=8)
    first, second = order.samples(np.arange(2000)).reshape(2, 1000)
    other = replace(order, seed=1).samples(np.arange(1000))
    for a, b in ((first, second), (first, other)):
        assert (a == b).sum() < 20


def test_all_orders_of_a_few_come_up_equally_often() -> None:
    """Chi-squared over the 24 orders of four samples; 60 is beyond 99.99 % of chance (23 degrees of freedom)."""
    num = 4800
    counts = dict.fromkeys(permutations(range(4)), 0)
    order = Order(num_samples=4, seed=9, window=2)
    for found in order.samples(np.arange(4 * num)).reshape(num, 4).tolist():
        counts[tuple(found)] += 1
    assert sum((c - num / 24) ** 2 / (num / 24) for c in counts.values()) < 60


def test_places_are_not_correlated() -> None:
    """Over a long epoch, a sample's number says nothing about when it comes, nor about what comes next."""
    found = Order(num_samples=50_000, seed=4, group=16, window=64).samples(np.arange(50_000))
    assert abs(np.corrcoef(found, np.arange(50_000))[0, 1]) < 0.03
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.03
    assert (found[1:] == found[:-1] + 1).mean() < 0.002


@given(st.integers(1, 40), st.integers(1, 12), st.integers(200, 3000), seeds)
def test_each_group_is_read_once_by_a_reader_that_keeps_a_window(group: int, window: int, num: int, seed: int) -> None:
    """And so evenly that each run of `group` samples meets one new group, give or take one for each lane that wraps."""
    num -= num % group
    found = Order(num_samples=num, seed=seed, group=group, window=window).samples(np.arange(num)) // group
    kept: list[int] = []
    misses = []
    for g in found.tolist():
        misses.append(g not in kept)
        kept = [*(k for k in kept if k != g), g][-(window + window // group + 2) :]
    num_groups = num // group
    # each lane comes back to its first group
    assert num_groups <= sum(misses) <= num_groups + min(window, num_groups)
    steady = np.add.reduceat(np.array(misses[group * window :], dtype=int), np.arange(0, max(1, num - group * window), group)
                             ) if num > 2 * group * window else np.zeros(1)
    assert steady[:-1].max(initial=0) <= 3


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("first", [0, 37])
def test_ranks_share_a_step_whatever_their_number(step: int, first: int) -> None:
    order = Order(num_samples=29, seed=2, group=4, window=3)
    whole = order.samples(first + 8 * step + np.arange(8))
    for dp, micro_batch, num in ((1, 1, 8), (1, 8, 1), (2, 2, 2), (4, 1, 2), (8, 1, 1)):
        strategy = Strategy(precision="fp32", seq_len=8, dp=dp, micro_batch=micro_batch, num_microbatches=num)
        parts = [order.samples(positions(strategy, first, step, rank)) for rank in range(dp)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_memory_does_not_grow_with_the_samples() -> None:
    tracemalloc.start()
    found = Order(num_samples=10**12, seed=0, group=128, window=64).samples(np.arange(5 * 10**11, 5 * 10**11 + 64))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(found.tolist())) == 64 and peak < 100_000
