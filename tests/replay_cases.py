"""A model, a machine and strategies that the replay and the closed form are compared on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from profiles.calibration import NONE, Calibration
from profiles.cost import CostModel, cost_model
from profiles.families import load_model
from profiles.hardware import load_cluster
from profiles.model import Experts, ModelSpec
from simulator.estimate import estimate
from simulator.replay import replay
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.workload import build_workload

ONE_CHUNK = ("1F1B", "GPipe")
MODEL = load_model("llama-3-8b")
CLUSTER = load_cluster("dgx-h100:4")
COST = replace(cost_model(CLUSTER), calibration=NONE)


FUSED = Software(kernels="fused")
CALIBRATED = replace(COST, calibration=Calibration(beside=0.2, wait=0.01))
THE_CATALOGUES = cost_model(CLUSTER)
# on CPU nothing hides behind anything
IN_LINE = replace(COST, cluster=replace(CLUSTER, accelerator=replace(CLUSTER.accelerator, device="cpu")))


def strategy_of(zero: int, pp: int, tp: int, schedule: str, m: int, recompute: str, **others: Any) -> Strategy:
    common = {"seq_len": 4096, "software": FUSED} | others
    return Strategy(dp=32 // pp // tp // others.get("cp", 1), tp=tp, pp=pp, zero=zero, num_microbatches=m,
                    recompute=recompute, schedule=schedule, **common)


def off(strategy: Strategy, cost: CostModel = COST, model: ModelSpec = MODEL, shares: bool = True) -> float:
    """Return the closed form over the replay, less one; without `shares` transfers never meet, as in the closed form."""
    workload = build_workload(model, strategy)
    return float(estimate(workload, cost).step_time_s) / replay(workload, cost, shares=shares).step_time_s - 1


SPARSE = replace(
    MODEL, name="sparse", kinds=(
        replace(MODEL.kinds[0], name="dense"),
        replace(MODEL.kinds[0], name="sparse", ffn=Experts(num_experts=8, top_k=2, hidden=14336, shared_hidden=2048)),
    ), pattern=(0, 0, 0) + (1,) * 29,
)
"""Llama 3 8B with experts in all but its first three layers."""
