"""Which accelerator each rank sits on, when axes are laid on the machine in another order than ranks are numbered in."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from profiles.files import BadInput
from simulator.layout import ORDER
from simulator.networks.topology import Index


def parse_order(text: str) -> tuple[str, ...]:
    """Return axes from the innermost to the outermost, from text such as 'tp-cp-ep-dp-pp' (Megatron's `--order`).

    Experts lie over the ranks of tp, cp and dp, wherever these are, so `ep` may stand before dp or be left out.
    """
    axes = text.split("-")
    plain = tuple(a for a in axes if a != "ep")
    if sorted(plain) != sorted(ORDER) or axes.count("ep") > 1:
        raise BadInput(f"order: {text!r} must name each of {', '.join(ORDER)} once (and may name ep), like 'tp-cp-ep-dp-pp'")
    if "ep" in axes and axes.index("ep") > axes.index("dp"):
        raise BadInput(f"order: {text!r}: ep must come before dp, whose ranks experts lie over")
    return plain


def placement(degrees: Mapping[str, int], order: tuple[str, ...] = ORDER) -> Index:
    """Return the accelerator of each rank; ranks are numbered in the layout's order, accelerators filled in `order`."""
    shape = [degrees[axis] for axis in reversed(order)]
    by_order = np.arange(math.prod(shape)).reshape(shape)
    outermost_first = order[::-1]
    return by_order.transpose([outermost_first.index(axis) for axis in reversed(ORDER)]).ravel()
