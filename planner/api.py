"""The planner in Python: a plan in one call, what was considered as a DataFrame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from planner.plan import Plan, plan_from_search
from planner.question import ask
from planner.search import search
from planner.space import narrowed, whole_space
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster, with_num_gpus
from profiles.units import parse
from simulator.software import load_software


def plan(
    model: str, cluster: str, tokens: str | float, *, gpus: int | None = None, profile: str | Path | None = None,
    software: str | None = None, search_axes: Sequence[str] = (), **given: Any,
) -> Plan:
    """Return the fastest plan that fits, as `headway plan` finds it; a `BadInput` where nothing does.

    `model` and `cluster` are as on the command line, `tokens` a number or a text like '15T'. `search_axes` are texts like
    'tp=1,2,4'; `given` goes to `planner.ask`: seq_len, global_batch, precision, kernels, lora_rank, lora_targets.

    >>> from planner import frame, plan
    >>> best = plan("gpt2", "dgx-h100:1", "1B", search_axes=["tp=1", "pp=1", "cp=1", "micro_batch=8,16", "recompute=none"])
    >>> best.strategy.dp, best.strategy.tp
    (8, 1)
    >>> frame(best)["step_time_s"].is_monotonic_increasing
    True
    """
    machine = load_cluster(cluster, Path(profile) if profile else None)
    if gpus is not None:
        machine = with_num_gpus(machine, gpus)
    number = parse(tokens, "count", "tokens") if isinstance(tokens, str) else float(tokens)
    if software is not None:
        given["software"] = load_software(software, given.get("precision") or "")
    question = ask(load_model(model), machine, tokens=number, cluster_text=cluster, **given)
    found = search(question, axes=narrowed(whole_space(question), list(search_axes), question))
    if found.best is None:
        raise BadInput(f"nothing fits: no strategy of {found.strategies_total:,} does on {cluster}")
    return plan_from_search(found.question, found, profile)


def frame(plan: Plan) -> pd.DataFrame:
    """Return a plan's choice and its runners-up, one a row, fastest first: fields of the strategy and SI figures.

    Columns end in their unit: step_time_s, peak_memory_bytes, usd, ...; a plan of a given strategy has one row.
    """
    rows = []
    for prediction in (plan.prediction, *plan.runners_up):
        strategy = {k: v for k, v in prediction["strategy"].items() if k != "software"}
        figures = {k: v for k, v in prediction.items() if not isinstance(v, dict)}
        rows.append(strategy | figures | {f"breakdown_{k}_s": v for k, v in prediction["breakdown_s"].items()})
    return pd.DataFrame(rows)
