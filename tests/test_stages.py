"""What goes on inside a stage: gathers, reductions and copies beside its passes, and what each part is priced at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_cases import CALIBRATED, COST, MODEL, strategy_of

from profiles.cost import CostModel
from simulator.inside import Unit, lay_out_chain, lay_out_queue
from simulator.pricing import PartSeconds, Seconds, price
from simulator.replay import replay
from simulator.software import Software
from simulator.stages import Run, chain_s, queue_tail_s
from simulator.workload import build_workload


def unit(compute: int, gather: int, reduce: int) -> Unit:
    work = Seconds(compute_s=compute / 4)
    return Unit("layer", 0, PartSeconds(forward=work, backward=work, weight=Seconds(), gather_s=gather / 4, reduce_s=reduce / 4,
                                        update_s=0.0, regather_s=0.0))


runs = st.lists(st.tuples(st.integers(1, 5), *[st.integers(0, 12)] * 3), min_size=1, max_size=3)


# slower by a part that is exact in binary
slower = st.sampled_from([0.0, 0.25, 0.5])


@given(runs, st.booleans(), slower)
def test_the_chain_of_gathers_is_its_closed_form(
    rows: list[tuple[int, int, int, int]], overlaps: bool, beside: float
) -> None:
    units = [unit(c, g, r) for n, c, g, r in rows for _ in range(n)]
    inside = lay_out_chain(units, "B", True, True, overlaps, beside)
    busy, tail = chain_s([Run(n, c / 4, g / 4, r / 4) for n, c, g, r in rows], overlaps, beside)
    assert (inside.busy_s, inside.tail_s) == (float(busy), float(tail))
    assert inside.busy_s == written_out(rows, overlaps, beside)


def written_out(rows: list[tuple[int, int, int, int]], overlaps: bool, beside: float) -> float:
    """Return a chain's seconds part by part: each beside the reduction of the one before and the gather of the next."""
    parts = [(c / 4, g / 4, r / 4) for n, c, g, r in rows for _ in range(n)]
    if not overlaps:
        return sum(c + g + r for c, g, r in parts)
    total = parts[0][1]
    for i, (compute, _, _) in enumerate(parts):
        wires = (parts[i - 1][2] if i else 0.0) + (parts[i + 1][1] if i + 1 < len(parts) else 0.0)
        total += max(compute + beside * min(compute, wires), wires)
    return total


@given(runs, st.booleans())
def test_the_queue_of_reductions_is_its_closed_form(rows: list[tuple[int, int, int, int]], overlaps: bool) -> None:
    units = [unit(c, 0, r) for n, c, _, r in rows for _ in range(n)]
    inside = lay_out_queue(units, "B", overlaps)
    compute = sum(n * c for n, c, _, _ in rows) / 4
    assert inside.busy_s == compute
    # a queue, one reduction after the other, each no sooner than its part is done
    done, free = 0.0, 0.0 if overlaps else compute
    for n, c, _, r in rows:
        for _ in range(n):
            done += c / 4
            free = max(free, done) + r / 4
    assert inside.tail_s == (max(0.0, free - compute) if any(r for _, _, _, r in rows) else 0.0)
    assert inside.tail_s == float(queue_tail_s([Run(n, c / 4, 0.0, r / 4) for n, c, _, r in rows], overlaps))


def test_sharding_pays_for_its_copies() -> None:
    """Each gather and each reduction of ZeRO-3 moves its parameters once more through memory."""
    parts = {zero: price(build_workload(MODEL, strategy_of(zero, 1, 1, "1F1B", 1, "none")), COST).parts["layer"]
             for zero in (0, 2, 3)}
    layer = build_workload(MODEL, strategy_of(3, 1, 1, "1F1B", 1, "none")).parts["layer"]
    gather, reduce = (float(COST.kernel(k).seconds) for k in (layer.gather_copy, layer.reduce_copy))
    assert parts[3].forward.compute_s - parts[0].forward.compute_s == pytest.approx(gather)
    assert parts[2].forward.compute_s == parts[3].forward.compute_s
    assert parts[2].backward.compute_s - parts[0].backward.compute_s == pytest.approx(reduce)
    assert parts[3].backward.compute_s - parts[0].backward.compute_s == pytest.approx(gather + reduce)
    assert layer.gather_copy.moved_bytes == pytest.approx(2 * 2 * layer.params * (1 + 1 / 32))


def priced(zero: int = 0, tp: int = 1, m: int = 3, cost: CostModel = COST, **software: Any) -> dict[str, float]:
    """Return what a step without a pipeline is made of: computation, reductions, gathers and updates of all its parts."""
    strategy = strategy_of(zero, 1, tp, "1F1B", m, "none", software=Software(kernels="fused", **software))
    parts = price(build_workload(MODEL, strategy), cost).parts
    times = {"embedding": 1, "layer": 32, "head": 1}
    names = ("gather_s", "reduce_s", "update_s", "regather_s")
    sums = {n: sum(k * float(getattr(parts[p], n)) for p, k in times.items()) for n in names}
    passes = {n: sum(k * float(getattr(parts[p], n).total_s) for p, k in times.items()) for n in ("forward", "backward")}
    timeline = replay(build_workload(MODEL, strategy), cost)
    return sums | passes | {"step": timeline.step_time_s}


def test_reductions_after_backward_add_up() -> None:
    """With nothing hidden a step is its passes, all reductions and the update, one after the other."""
    s = priced(grad_reduce=False)
    assert s["step"] == pytest.approx(3 * (s["forward"] + s["backward"]) + s["reduce_s"] + s["update_s"], rel=1e-12)
    assert priced()["step"] < s["step"]


def test_updated_weights_come_in_beside_the_first_forward() -> None:
    """What is hidden is the shorter of the gather and a forward; beside it computation slows down."""
    for cost, slowed in ((COST, 0.0), (CALIBRATED, 0.2)):
        s, hidden = priced(1, cost=cost), priced(1, cost=cost, param_gather=True)
        wait = 1 + cost.calibration.wait * 2
        saved = min(s["regather_s"], s["forward"]) * (1 - slowed)
        assert s["regather_s"] > 0
        assert s["step"] - hidden["step"] == pytest.approx(saved * wait, rel=1e-9)


def test_communication_beside_backward_slows_it() -> None:
    """DDP's reductions last 0.2 s of computation for each second that both run; ranks of 4 nodes wait 2 x 1 %."""
    plain, slowed = priced(m=1), priced(m=1, cost=CALIBRATED)
    both = min(plain["reduce_s"], plain["backward"])
    # the computation so slowed, or the reductions where they last longer
    least = plain["forward"] + plain["backward"] + 0.2 * both + plain["update_s"]
    assert slowed["step"] == pytest.approx(max(plain["step"], least) * 1.02, rel=1e-12)
    late, alone = priced(m=1, cost=CALIBRATED, grad_reduce=False), priced(m=1, grad_reduce=False)
    assert late["step"] == pytest.approx(alone["step"] * 1.02, rel=1e-12)


def test_what_the_host_adds_to_a_step() -> None:
    assert priced(step_s=0.25)["step"] == pytest.approx(priced()["step"] + 0.25, rel=1e-12)
    # a pass takes no less than its launches: with a millisecond each they are all that counts
    layer = build_workload(MODEL, strategy_of(0, 1, 1, "1F1B", 1, "none")).parts["layer"]
    slow = strategy_of(0, 1, 1, "1F1B", 1, "none", software=Software(kernels="fused", host_launch_s=1.0))
    prices = price(build_workload(MODEL, slow), COST).parts["layer"]
    assert float(prices.forward.total_s) == sum(getattr(w, "launches", 1) for w in layer.forward)


def test_collectives_of_backward_hide_behind_the_weight_gradients() -> None:
    """Column-parallel inputs: two a layer and one in front of the head, each with the gradients' scatter."""
    plain, hidden = priced(tp=4), priced(tp=4, tp_backward=True)
    again, both = priced(tp=4, keeps_gathered=False), priced(tp=4, keeps_gathered=False, tp_backward=True)
    workload = build_workload(MODEL, strategy_of(0, 1, 4, "1F1B", 3, "none"))
    size = 2 * 4096 * MODEL.hidden
    seconds = {
        kind: float(COST.collective(replace(g, kind=kind, bytes=size), 4).seconds)
        for g in workload.parts["layer"].hidden_backward[:1] for kind in ("reduce_scatter", "all_gather")
    }
    assert plain["backward"] - hidden["backward"] == pytest.approx(65 * seconds["reduce_scatter"], rel=1e-9)
    assert again["backward"] - plain["backward"] == pytest.approx(65 * seconds["all_gather"], rel=1e-9)
    # weight gradients are long enough for both
    assert both["backward"] == pytest.approx(hidden["backward"], rel=1e-12)
    assert plain["forward"] == both["forward"]
