"""The matmuls of a step one by one: their shapes, how many there are, their intensity and the rate that they reach."""

from __future__ import annotations

import pandas as pd

from planner.question import Question
from profiles.collectives import Collective
from profiles.cost import cost_model, peak_flop_per_s
from profiles.laws import MATMULS
from profiles.ops import Pass
from simulator.adapters import trained_items
from simulator.strategy import Strategy
from simulator.workload import shape_of

PASSES: tuple[Pass, ...] = ("F", "B", "W")
COLUMNS = ("part", "op", "pass", "dtype", "groups", "m", "n", "k", "times", "flop", "flop_per_byte", "seconds", "flop_per_s",
           "share_of_peak")


def matmuls(question: Question, strategy: Strategy) -> pd.DataFrame:
    """Return each matmul of a micro-batch over all layers, with `COLUMNS`: the longest first.

    `times`: how many parts of the model have it; `flop` and `seconds` are those of all of them, priced as every prediction is.
    """
    cost, accelerator = cost_model(question.cluster), question.cluster.accelerator
    rows = []
    for part in question.model.parts:
        times = float(question.model.times(part))
        for item in trained_items(question.model, part, shape_of(strategy), strategy.lora_rank, strategy.lora_targets):
            for kernel in () if isinstance(item, Collective) else (k for p in PASSES for k in item.kernels(p)):
                if kernel.kind not in MATMULS:
                    continue
                size = [float(v) for v in kernel.size]
                groups, m, n, k = [1.0, *size] if len(size) == 3 else size
                seconds, flop = float(cost.kernel(kernel).seconds), float(kernel.flop)
                rows.append((part, item.name, kernel.pass_, kernel.dtype, groups, m, n, k, times, times * flop,
                             flop / float(kernel.moved_bytes), times * seconds, flop / seconds,
                             flop / seconds / peak_flop_per_s(accelerator, kernel.dtype)))
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("seconds", ascending=False, kind="stable", ignore_index=True)
