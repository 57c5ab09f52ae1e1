"""Which rank holds a stage. Both laws take numbers or NumPy arrays."""

from __future__ import annotations

from profiles.ops import Num


def loop(stage: Num, num_ranks: Num) -> Num:
    """Return the rank of a stage where chunks go round the ranks: stage mod p (arXiv 2104.04473, section 2.2.2)."""
    return stage % num_ranks


def v_shape(stage: Num, num_ranks: Num) -> Num:
    """Return the rank of a stage where chunks go there and back: rank r holds r and 2 p - 1 - r (arXiv 2405.15362)."""
    turn, place = stage // num_ranks % 2, stage % num_ranks
    return turn * (num_ranks - 1 - place) + (1 - turn) * place
