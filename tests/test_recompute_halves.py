"""Full recomputation where backward is split: torch repeats it in either half; FLOP counted in torch, and what is priced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from replay_cases import COST, FUSED, MODEL, off, strategy_of

from profiles.ops import Kernel
from simulator.metrics import hfu
from simulator.pricing import price
from simulator.replay import play
from simulator.software import load_software
from simulator.strategy import Strategy
from simulator.workload import Work, build_workload

ONCE = replace(FUSED, keeps_graph=False)


def flop(work: Work) -> float:
    return sum(float(k.flop) for k in work if isinstance(k, Kernel) and k.kind == "gemm")


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_torch_repeats_a_layer_in_both_halves(recompute: str) -> None:
    """Multiplications of a stage's own backward, whole and split, as the engine runs them."""
    torch = pytest.importorskip("torch")
    from torch.distributed.pipelining._backward import stage_backward, stage_backward_input, stage_backward_weight
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.checkpoint import GraphExecGroup
    from torch.utils.flop_counter import flop_registry

    from executor.model import materialise
    from executor.parallel import build_stage

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        flop = 0.0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
                self.flop += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
            return out

    kind = MODEL.kinds[0]
    small = replace(MODEL, hidden=256, vocab=512, max_seq_len=256, pattern=(0,) * 6, kinds=(replace(
        kind, mixer=replace(kind.mixer, num_heads=4, num_kv_heads=2, head_dim=64), ffn=replace(kind.ffn, hidden=768)),))
    strategy = Strategy(pp=3, schedule="ZBH1", seq_len=256, precision="fp32", recompute=recompute)
    stage = build_stage(small, strategy, 1)
    materialise(stage, torch.device("cpu"), 0)
    found = []
    for split in (False, True):
        x = torch.randn(1, 256, 256, requires_grad=True)
        out = stage(x)
        with Count() as first:  # type: ignore[no-untyped-call]
            if split:
                _, groups = stage_backward_input([out], [torch.ones_like(out)], [x], iter(stage.parameters()))
            else:
                stage_backward(out, torch.ones_like(out), [x])
        found.append(first.flop)
        if split:
            with Count() as second, GraphExecGroup():  # type: ignore[no-untyped-call]
                stage_backward_weight(iter(stage.parameters()), groups)
            found.append(second.flop)
    part = build_workload(small, strategy).parts["layer"]
    again = flop(part.recompute_full) if recompute == "full" else 0.0
    weight = flop(tuple(k for k in part.backward if isinstance(k, Kernel) and k.pass_ == "W"))
    assert found == pytest.approx([2 * (flop(part.backward) + again), 2 * (flop(part.backward) - weight + again),
                                   2 * (weight + again)])


@pytest.mark.parametrize("schedule", ["ZBH1", "ZBV", "DualPipeV", "InterleavedZeroBubble"])
def test_each_half_is_priced_with_what_it_repeats(schedule: str) -> None:
    chunks = 1 if schedule == "ZBH1" else 2

    def layer(recompute: str, **changes: Any) -> tuple[float, float]:
        strategy = strategy_of(1, 2, 4, schedule, 4, recompute, chunks=chunks, **changes)
        part = price(build_workload(MODEL, strategy), COST).parts["layer"]
        return float(part.of("I").total_s), float(part.of("W").total_s)

    plain, twice, once = layer("none"), layer("full"), layer("full", software=ONCE)
    again = once[0] - plain[0]
    assert again > 0 and once[1] == pytest.approx(plain[1], rel=1e-12)
    assert twice == pytest.approx((plain[0] + again, plain[1] + again), rel=1e-12)
    half = layer("full", recompute_share=0.5)
    assert half == pytest.approx((plain[0] + again / 2, plain[1] + again / 2), rel=1e-12)
    assert layer("selective") == layer("selective", software=ONCE)


def test_a_whole_backward_repeats_once() -> None:
    one, other = (price(build_workload(MODEL, strategy_of(1, 2, 4, "1F1B", 4, "full", software=s)), COST).parts["layer"]
                  for s in (FUSED, ONCE))
    assert one == other


@pytest.mark.parametrize(("schedule", "chunks", "bound"), [("ZBH1", 1, 0.08), ("ZBV", 2, 0.10)])
def test_the_closed_form_follows_the_replay(schedule: str, chunks: int, bound: float) -> None:
    for pp, rounds in ((2, 2), (4, 4), (8, 2)):
        strategy = strategy_of(1, pp, 1, schedule, rounds * pp, "full", chunks=chunks)
        assert abs(off(strategy)) < bound
        workloads = [build_workload(MODEL, replace(strategy, software=s)) for s in (FUSED, ONCE)]
        steps = [play(w, COST).step_time_s for w in workloads]
        prices = price(workloads[0], COST).parts["layer"]
        # what every micro-batch repeats once more on a rank, but for what the bubble takes
        more = rounds * pp * 32 / pp * float(prices.of("W").total_s - price(workloads[1], COST).parts["layer"].of("W").total_s)
        assert 0.5 * more < steps[0] - steps[1] < 1.2 * more
        assert hfu(MODEL, strategy, 1.0, COST.cluster.accelerator) > hfu(MODEL, replace(strategy, software=ONCE), 1.0,
                                                                        COST.cluster.accelerator)


def test_frameworks_that_do_not_run_torchs_pipelines_repeat_once() -> None:
    assert not load_software("megatron-lm-2024").keeps_graph and load_software("torchtitan-2025").keeps_graph
    batch = Strategy(pp=np.array([1, 4, 4]), schedule=np.array(["1F1B", "ZBH1", "1F1B"]), recompute="full", recompute_share=0.5)
    assert np.asarray(batch.num_repeats).tolist() == [0.5, 1.0, 0.5]
