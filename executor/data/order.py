"""The order of samples: a function of (seed, position) in constant memory, whatever the number of ranks.

Position p of the endless order is in epoch p // num_samples; each epoch is another permutation. Consecutive samples form
groups of about a block. Groups are dealt by chance to `window` lanes, and each round takes one sample from every lane, lanes
and samples of a group by chance. Lanes begin at different places of their first group (and come back to it at the end), so
that they change groups by turns: a reader that keeps a group for each lane fetches each block once, and at an even pace.

A permutation is a Feistel network over the next power of four with cycle walking: outputs beyond the end go through the
network again until one is inside (Black and Rogaway, CT-RSA 2002, methods 2 and 3). Its round function is the finaliser of
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, figure 15).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.strategy import Strategy

Ids = NDArray[np.uint64]
NUM_ROUNDS = 6
_GAMMA = 0x9E3779B97F4A7C15
_LANES, _INSIDE = np.uint64(1), np.uint64(2)
"""What keys are for, beside the order of groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The order of `num_samples` samples in groups of `group` neighbours, of which `window` are mixed at a time."""

    num_samples: int
    seed: int
    group: int = 1
    window: int = 64

    def samples(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at positions from 0 on, of any epoch."""
        at = np.asarray(positions, dtype=np.uint64)
        num, seed = np.uint64(self.num_samples), np.array([self.seed % 2**64], dtype=np.uint64)
        keys = mix(mix(seed) ^ (at // num))
        found = self._mixed(at % num, keys)
        # the last group may be a part of one: what falls on its missing end is sent on
        while (outside := found >= num).any():
            found[outside] = self._mixed(found[outside], keys[outside])
        return found.astype(np.int64)

    def _mixed(self, at: Ids, keys: Ids) -> Ids:
        """Permute the samples of whole groups."""
        group, num_groups = np.uint64(self.group), np.uint64(-(-self.num_samples // self.group))
        lanes = np.minimum(np.uint64(self.window), num_groups)
        # each lane has `least` groups, the first `longer` lanes one more; those alone have the last rounds
        least, longer = num_groups // lanes, num_groups % lanes
        even = at < lanes * least * group
        past = np.where(even, at, at - lanes * least * group)
        width = np.where(even, lanes, np.maximum(longer, np.uint64(1)))
        turn = np.where(even, 0, least * group).astype(np.uint64) + past // width
        lane = permute(past % width, width, mix(keys ^ (turn << np.uint64(2) | _LANES)))
        along = (turn + lane * group // lanes) % (group * (least + (lane < longer)))
        slot = lane + lanes * (along // group)
        inside = permute(along % group, np.broadcast_to(group, at.shape), mix(keys ^ (slot << np.uint64(2) | _INSIDE)))
        return permute(slot, np.broadcast_to(num_groups, at.shape), keys) * group + inside


def positions(strategy: Strategy, first_sample: int, step: int, dp_rank: int) -> NDArray[np.int64]:
    """Return the places of a rank's rows of a step in the endless order of samples."""
    rows = strategy.micro_batch * strategy.num_microbatches
    first = first_sample + step * int(strategy.global_batch) + dp_rank * int(rows)
    return np.arange(first, first + int(rows), dtype=np.int64)


def permute(at: Ids, size: Ids, key: Ids) -> Ids:
    """Return where a keyed permutation of 0 .. size - 1 sends each number; arrays of one shape, size below 2^52."""
    half = np.maximum(1, (np.frexp((size - np.uint64(1)).astype(float))[1] + 1) // 2).astype(np.uint64)
    found = _network(at, half, key)
    while (outside := found >= size).any():
        found[outside] = _network(found[outside], half[outside], key[outside])
    return found


def _network(at: Ids, half: Ids, key: Ids) -> Ids:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = at >> half, at & mask
    for turn in range(NUM_ROUNDS):
        rounds_key = key + np.uint64((turn + 1) * _GAMMA % 2**64)
        left, right = right, left ^ (mix(right ^ rounds_key) & mask)
    return (left << half) | right


def mix(values: Ids) -> Ids:
    """Return well-mixed 64-bit numbers, one to one."""
    z = values + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
