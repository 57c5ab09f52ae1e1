"""What one strategy has otherwise than another, in words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from simulator.strategy import Strategy

ASKED = ("num_microbatches", "seq_len", "precision", "software", "lora_rank", "lora_targets")
"""Fields of a strategy that the question or the other fields say: they are no change of strategy."""
TITLES = {"zero": "ZeRO", "micro_batch": "micro-batch", "shard_group": "shard group", "recompute_share": "share recomputed",
          "sequence_parallel": "sequence parallelism", "offload_share": "share offloaded"}


def differences(before: Strategy, after: Strategy, hidden: Collection[str] = (*ASKED, "dp")) -> str:
    """Return in words what of a strategy is other than before, fields that are `hidden` left out.

    Sequence parallelism is named where there is a tp for it, the shares recomputed and offloaded where something is.
    """
    moot = {"sequence_parallel"} if before.tp == 1 or after.tp == 1 else set()
    moot |= {"recompute_share"} if "none" in (before.recompute, after.recompute) else set()
    moot |= {"offload_share"} if "none" in (before.offload, after.offload) else set()
    words = []
    for name in (f.name for f in fields(Strategy) if f.name not in hidden and f.name not in moot):
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        title = TITLES.get(name, name)
        if isinstance(new, bool):
            words.append(f"{'with' if new else 'without'} {title}")
        elif isinstance(old, str):
            words.append(f"{title} {old or 'even'} -> {new or 'even'}")
        else:
            words.append(f"{title} {old:g} -> {new:g}")
    return ", ".join(words)
