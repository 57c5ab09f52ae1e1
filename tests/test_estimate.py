"""The closed form of a step against its replay."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from replay_cases import CALIBRATED, COST, FUSED, IN_LINE, MODEL, ONE_CHUNK, SPARSE, THE_CATALOGUES, off, strategy_of

from profiles.calibration import NONE
from profiles.cost import cost_model
from profiles.families import load_model
from profiles.hardware import load_cluster
from profiles.model import ModelSpec
from simulator.estimate import BREAKDOWN, estimate
from simulator.pricing import price
from simulator.software import Software
from simulator.strategy import RECOMPUTE, Strategy
from simulator.workload import build_workload


@pytest.mark.parametrize(("zero", "tp", "m"), list(product(range(4), (1, 4), (1, 2, 7))))
def test_without_a_pipeline_estimate_and_replay_are_one(zero: int, tp: int, m: int) -> None:
    for recompute in RECOMPUTE:
        assert abs(off(strategy_of(zero, 1, tp, "1F1B", m, recompute), shares=False)) < 1e-12


SOFTWARE: dict[str, dict[str, Any]] = {
    "plain": {}, "reduces after backward": {"grad_reduce": False}, "gathers beside forward": {"param_gather": True},
    "hides tp in backward": {"tp_backward": True}, "gathers again": {"keeps_gathered": False},
    "gathers again, hidden": {"keeps_gathered": False, "tp_backward": True}, "pieces": {"tp_overlap": True},
    "slow host": {"host_launch_s": 2e-5, "step_s": 0.05}, "unfused": {"attention": "unfused", "dropout": True},
    "narrow": {"grad_bytes": 2, "reduce_bytes": 2, "gather_bytes": 1, "master_bytes": 0, "moment_bytes": 4},
}
AXES: dict[str, dict[str, Any]] = {
    "ring": {"cp": 4}, "all_gather": {"cp": 2, "context": "all_gather"}, "ulysses": {"cp": 2, "context": "ulysses"},
    "experts": {"ep": 8}, "experts cut": {"ep": 4, "etp": 2}, "experts and ring": {"ep": 8, "cp": 2, "imbalance": 1.5},
    "no sp": {"sequence_parallel": False}, "groups": {"shard_group": 4}, "some layers": {"recompute_share": 0.25},
    "fp8": {"precision": "fp8"},
}


@pytest.mark.parametrize(("zero", "tp"), list(product(range(4), (1, 4))))
@pytest.mark.parametrize("name", SOFTWARE)
def test_without_a_pipeline_they_are_one_with_any_software(name: str, zero: int, tp: int) -> None:
    software = Software(kernels="fused", **SOFTWARE[name])
    for cost, m, recompute in product((COST, CALIBRATED, THE_CATALOGUES, IN_LINE), (1, 5), ("none", "full")):
        assert abs(off(strategy_of(zero, 1, tp, "1F1B", m, recompute, software=software), cost, shares=False)) < 1e-12


@pytest.mark.parametrize(("zero", "tp"), list(product(range(4), (1, 2))))
@pytest.mark.parametrize("name", AXES)
def test_without_a_pipeline_they_are_one_on_any_axis(name: str, zero: int, tp: int) -> None:
    for cost, m in product((COST, CALIBRATED, THE_CATALOGUES, IN_LINE), (1, 5)):
        assert abs(off(strategy_of(zero, 1, tp, "1F1B", m, "full", **AXES[name]), cost, SPARSE, shares=False)) < 1e-12
        assert -0.015 < off(strategy_of(zero, 1, tp, "1F1B", m, "full", **AXES[name]), cost, SPARSE) < 1e-6


@pytest.mark.parametrize(("name", "zero", "pp", "m"), [
    *product(["ring", "experts", "experts and ring"], range(4), (2, 4), (4, 16)),
])
def test_with_a_pipeline_the_estimate_of_other_axes_is_close(name: str, zero: int, pp: int, m: int) -> None:
    assert abs(off(strategy_of(zero, pp, 1, "1F1B", m, "none", **AXES[name]), COST, SPARSE)) < 0.02


@pytest.mark.parametrize("name", ["plain", "reduces after backward", "gathers beside forward", "slow host"])
@pytest.mark.parametrize(("zero", "pp", "m"), list(product(range(4), (2, 8), (4, 16))))
def test_with_a_pipeline_the_calibrated_estimate_is_close(name: str, zero: int, pp: int, m: int) -> None:
    software = Software(kernels="fused", **SOFTWARE[name])
    for cost in (CALIBRATED, THE_CATALOGUES):
        assert abs(off(strategy_of(zero, pp, 1, "1F1B", m, "none", software=software), cost)) < CALIBRATED_BOUND


@pytest.mark.parametrize(("zero", "pp", "m"), [
    *product(range(4), (2, 8), (4, 16)),
])
def test_with_a_pipeline_where_nothing_hides_the_estimate_is_close(zero: int, pp: int, m: int) -> None:
    assert abs(off(strategy_of(zero, pp, 1, "1F1B", m, "none"), IN_LINE)) < 0.02


CALIBRATED_BOUND = 0.02
CHUNKED_BOUNDS = {0: (0.03, 0.01), 1: (0.03, 0.01), 2: (0.07, 0.01), 3: (0.07, 0.03)}
"""By ZeRO level, of short steps and of 8 p micro-batches: the head makes one chunk of the last rank longer, and gathers of
ZeRO-3 share NICs with sends, of which the closed form knows nothing."""


@pytest.mark.parametrize(("zero", "pp", "chunks"), list(product(range(4), (2, 4, 8), (2, 4))))
def test_with_chunks_the_estimate_is_close(zero: int, pp: int, chunks: int) -> None:
    errors = [
        abs(off(strategy_of(zero, pp, 1, "Interleaved1F1B", rounds * pp, "none", chunks=chunks)))
        for rounds in (1, 2, 4, 8)
    ]
    short, long = CHUNKED_BOUNDS[zero]
    assert max(errors) < short and errors[-1] < long


@pytest.mark.parametrize("schedule", ONE_CHUNK)
@pytest.mark.parametrize(("zero", "pp", "m"), list(product(range(4), (2, 4, 8), (1, 4, 16, 64))))
def test_with_a_pipeline_the_estimate_is_close(schedule: str, zero: int, pp: int, m: int) -> None:
    """The closed form knows stages only by place, so uneven ends cost it a few per cent."""
    assert abs(off(strategy_of(zero, pp, 1, schedule, m, "none"))) < 0.02


@pytest.mark.parametrize("model", [MODEL, SPARSE], ids=lambda m: m.name)
def test_a_batch_is_priced_as_its_members(model: ModelSpec) -> None:
    cases = [strategy_of(*c) for c in product((0, 1, 3), (1, 2, 4), (1, 2), ONE_CHUNK, (4,), RECOMPUTE)]
    cases += [
        strategy_of(zero, 2, 2, "Interleaved1F1B", 4, "none", chunks=v, ep=ep, cp=cp, shard_group=group,
                    sequence_parallel=cp == 1)
        for zero, v, (ep, cp, group) in product((0, 1, 2, 3), (2, 4), ((1, 1, 0), (8, 1, 4), (4, 2, 0), (1, 4, 2)))
    ]
    fields = ("dp", "tp", "cp", "pp", "ep", "zero", "shard_group", "sequence_parallel", "schedule", "chunks",
              "num_microbatches", "recompute")
    batch = Strategy(**{f: np.array([getattr(s, f) for s in cases]) for f in fields}, seq_len=4096, software=FUSED)
    together = estimate(build_workload(model, batch), CALIBRATED)
    for i, strategy in enumerate(cases):
        alone = estimate(build_workload(model, strategy), CALIBRATED)
        assert together.step_time_s[i] == pytest.approx(float(alone.step_time_s), rel=1e-12)
        for name in BREAKDOWN:
            assert np.broadcast_to(together.breakdown_s[name], len(cases))[i] == pytest.approx(
                float(alone.breakdown_s[name]), rel=1e-9, abs=1e-12
            )


OTHER_SCHEDULES = {"LoopedBFS": (2, 0.02), "ZBH1": (1, 0.08), "InterleavedZeroBubble": (2, 0.06), "ZBV": (2, 0.10),
                   "DualPipeV": (2, 0.12)}
"""Chunks, and how far the closed form is off at the most: of short steps, with the head on one stage."""


@pytest.mark.parametrize("model", [MODEL, SPARSE], ids=lambda m: m.name)
@pytest.mark.parametrize(("zero", "pp"), list(product(range(4), (2, 4, 8))))
@pytest.mark.parametrize("schedule", OTHER_SCHEDULES)
def test_the_estimate_of_any_schedule_is_close(schedule: str, zero: int, pp: int, model: ModelSpec) -> None:
    chunks, bound = OTHER_SCHEDULES[schedule]
    ep = 4 if model is SPARSE else 1
    errors = [
        abs(off(strategy_of(zero, pp, 1, schedule, rounds * pp, "none", chunks=chunks, ep=ep), COST, model))
        for rounds in (2, 4, 16)
    ]
    assert max(errors) < bound and errors[-1] < bound / 2


def test_split_backward_is_the_whole_one_cut_in_two() -> None:
    for software in (replace(FUSED, keeps_graph=False), Software(kernels="fused", tp_backward=True, keeps_graph=False)):
        strategy = strategy_of(1, 2, 4, "ZBH1", 4, "full", software=software)
        prices = price(build_workload(SPARSE, strategy), COST)
        whole = price(build_workload(SPARSE, replace(strategy, schedule="1F1B")), COST)
        for part in prices.parts.values():
            assert float(part.of("I").total_s + part.of("W").total_s) == pytest.approx(float(part.backward.total_s), rel=1e-12)
            assert 0 < float(part.of("W").total_s) < float(part.backward.total_s)
        # what hides beside the weights' gradients cannot where these go later
        slower = sum(float(p.backward.total_s) - float(w.backward.total_s)
                     for p, w in zip(prices.parts.values(), whole.parts.values(), strict=True))
        assert slower > 0 if software.tp_backward else slower == 0


@pytest.mark.parametrize(("chunks", "rounds", "bound"), [(7, 1, 0.065), (7, 2, 0.03), (7, 8, 0.01), (4, 1, 0.07), (2, 2, 0.02)])
def test_with_unequal_chunks_the_estimate_is_close(chunks: int, rounds: int, bound: float) -> None:
    """126 layers on 112 stages: some have two, most have one, and ranks go through the chunks together. Sends on the way back
    share NICs with reductions, which the closed form does not know (0.7 % of the shortest step)."""
    model, cost = load_model("llama-3.1-405b"), cost_model(load_cluster("dgx-h100:2048"))
    strategy = Strategy(dp=128, tp=8, pp=16, chunks=chunks, schedule="Interleaved1F1B", num_microbatches=16 * rounds,
                        seq_len=8192, zero=1)
    assert abs(off(strategy, cost, model)) < bound


def test_where_axes_lie_matters() -> None:
    """Llama 3 on its own network: sends between pods share its 7:1 oversubscribed top, unless pp lies inside dp as Meta laid
    it (arXiv 2407.21783, section 3.3.2); tp over nodes is slow anywhere."""
    model = load_model("llama-3.1-405b")
    seconds = {}
    for cluster, order in product(("h100-roce3200:2048", "dgx-h100:2048"), ("", "tp-cp-pp-dp", "pp-tp-cp-dp")):
        strategy = Strategy(dp=128, tp=8, pp=16, num_microbatches=16, seq_len=8192, zero=1, order=order)
        found = estimate(build_workload(model, strategy), replace(cost_model(load_cluster(cluster)), calibration=NONE))
        seconds[cluster, order] = {k: float(v) for k, v in found.breakdown_s.items()} | {"step": float(found.step_time_s)}
    own, open_ = "h100-roce3200:2048", "dgx-h100:2048"
    assert seconds[own, ""]["exposed_pp"] > 2 * seconds[own, "tp-cp-pp-dp"]["exposed_pp"]
    assert seconds[open_, ""]["exposed_pp"] == pytest.approx(seconds[open_, "tp-cp-pp-dp"]["exposed_pp"])
    assert seconds[open_, "pp-tp-cp-dp"]["exposed_tp"] > 4 * seconds[open_, ""]["exposed_tp"]
    assert seconds[own, "tp-cp-pp-dp"]["step"] == pytest.approx(seconds[open_, ""]["step"], rel=1e-6)
