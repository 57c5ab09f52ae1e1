"""One run under given strikes: against a walk step by step, against arithmetic by hand, and what must hold for all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_cases import HOUR_S, JOB, NODE, fleet, run, strike, training

from profiles.reliability import PlannedStop
from simulator.run.outcome import PARTS, Outcome
from simulator.run.training import Checkpoints, Reserve, Training


def walk(t: Training, c: Checkpoints, detection_s: float, restart_s: float, strikes: list[float]) -> dict[str, float]:
    """Return a run done step by step, with a clock and nothing else: the oracle for the closed forms of stretches."""
    now, left, step, redone, checkpoint = 0.0, sorted(strikes), 0, 0.0, 0.0
    down = restart_s
    while True:
        while left and left[0] < now + down:
            now, down = left.pop(0), detection_s + restart_s + c.load_s
        now += down
        saved, saved_at, stalled = step, now, 0.0
        writes: list[tuple[float, int, float, float]] = []
        struck = None
        while struck is None and step < t.num_steps:
            step += 1
            parts = [("work", t.step_time_s)]
            if t.eval_every and step % t.eval_every == 0:
                parts.append(("work", t.eval_s))
            if step % c.interval_steps == 0 or step == t.num_steps:
                parts += [("wait", 0.0), ("copy", c.stall_s)]
            if step == t.num_steps:
                parts.append(("last", c.write_s))
            for kind, seconds in parts:
                if kind == "wait":
                    seconds = max(0.0, writes[-1][0] - now) if writes else 0.0
                if left and left[0] < now + seconds:
                    struck = left.pop(0)
                    break
                now += seconds
                stalled += seconds if kind != "work" else 0.0
                if kind == "copy":
                    writes.append((now + c.write_s, step, now, stalled))
        if struck is None:
            return {"elapsed": now, "redone": redone, "checkpoint": checkpoint + stalled}
        kept = 0.0
        for written, at, copied, by_then in writes:
            if written <= struck:
                saved, saved_at, kept = at, copied, by_then
        redone += struck - saved_at
        checkpoint += kept
        now, step, down = struck, saved, detection_s + restart_s + c.load_s


@given(
    num_steps=st.integers(1, 60), interval=st.integers(1, 60), eval_every=st.integers(0, 9),
    stall=st.sampled_from([0.25, 3.0]), write=st.sampled_from([0.0, 4.0, 37.5]),
    gaps=st.lists(st.floats(0.1, 300.0), max_size=8), detection=st.sampled_from([0.0, 5.0]),
    restart=st.sampled_from([0.0, 20.0]),
)
def test_a_run_is_what_a_walk_step_by_step_makes_of_it(
    num_steps: int, interval: int, eval_every: int, stall: float, write: float, gaps: list[float], detection: float,
    restart: float,
) -> None:
    times = [sum(gaps[: i + 1]) + 0.0137 for i in range(len(gaps))]
    t = training(num_steps, 10.0, eval_every=eval_every, eval_s=7.0)
    c = Checkpoints(interval_steps=min(interval, num_steps), stall_s=stall, write_s=write, load_s=2.0)
    found = run(t, c, fleet(JOB, detection_s=detection, restart_s=restart), [strike(x) for x in times])
    expected = walk(t, c, detection, restart, times)
    assert found.elapsed_s == pytest.approx(expected["elapsed"], rel=1e-9)
    assert found.parts_s["redone"] == pytest.approx(expected["redone"], abs=1e-6)
    assert found.parts_s["checkpoint"] == pytest.approx(expected["checkpoint"], abs=1e-6)
    assert found.parts_s["productive"] == pytest.approx(num_steps * 10.0, rel=1e-9)


def adds_up(outcome: Outcome) -> None:
    assert set(outcome.parts_s) == set(PARTS)
    assert min(outcome.parts_s.values()) >= -1e-6
    assert sum(outcome.parts_s.values()) == pytest.approx(outcome.elapsed_s, rel=1e-9, abs=1e-6)


@given(
    strikes=st.lists(st.tuples(st.floats(1.0, 4000.0), st.integers(0, 2), st.floats(0, 0.999), st.booleans(),
                               st.floats(0.0, 3000.0)), max_size=12),
    spares=st.integers(0, 3), elastic=st.booleans(), write=st.sampled_from([0.0, 25.0]), limit=st.floats(500.0, 1e5),
    unit=st.sampled_from([1, 2, 4]),
)
def test_the_parts_of_the_time_add_up_whatever_happens(
    strikes: list[tuple[float, int, float, bool, float]], spares: int, elastic: bool, write: float, limit: float, unit: int
) -> None:
    causes = (JOB, replace(NODE, num_nodes=2), replace(JOB, name="stall", pause_s=90.0))
    f = fleet(*causes, planned=(PlannedStop(name="firmware", every_s=700.0, lasts_s=50.0, source="test"),), detection_s=20.0,
              restart_s=30.0, replacement_s=10.0)
    events = [strike(*s) for s in sorted(strikes)]
    found = run(training(num_steps=120, unit_nodes=unit, eval_every=7, eval_s=3.0),
                Checkpoints(interval_steps=9, stall_s=4.0, write_s=write, load_s=5.0), f, events,
                Reserve(num_spares=spares, elastic=elastic), limit)
    adds_up(found)
    assert found.finished == (found.elapsed_s < limit)
    if found.finished:
        assert found.parts_s["productive"] == pytest.approx(1200.0) and found.parts_s["evaluation"] == pytest.approx(51.0)


def test_without_failures_a_run_is_its_steps_evaluations_and_checkpoints() -> None:
    t = training(num_steps=100, eval_every=20, eval_s=3.0)
    sync = run(t, Checkpoints(interval_steps=30, stall_s=6.0), fleet(restart_s=45.0))
    assert sync.elapsed_s == 45.0 + 100 * 10.0 + 5 * 3.0 + 4 * 6.0
    # the write runs beside training, but for the last one, and for the one that is not over at step 60
    late = run(t, Checkpoints(interval_steps=30, stall_s=1.0, write_s=310.0), fleet())
    assert late.elapsed_s == pytest.approx(303.0 + 1 + 310.0 + 1 + 310.0 + 1 + 310.0 + 1 + 310.0)
    assert late.parts_s["checkpoint"] == pytest.approx(late.elapsed_s - 1015.0)


def test_detection_and_restart_are_gone_through_and_begin_anew() -> None:
    f = fleet(JOB, detection_s=100.0, restart_s=50.0)
    c = Checkpoints(interval_steps=10, stall_s=0.0, load_s=5.0)
    # at 250 (after a start of 50) two checkpoints hold steps 1 to 20; a second strike in the restart
    found = run(training(), c, f, [strike(253.0), strike(253.0 + 120.0)])
    assert found.parts_s["redone"] == pytest.approx(3.0)
    assert found.parts_s["detection"] == pytest.approx(200.0)
    assert found.parts_s["restart"] == pytest.approx(50.0 + 20.0 + 55.0)
    assert found.elapsed_s == pytest.approx(1000.0 + 3.0 + 200.0 + 125.0)
    assert found.strikes == (2,)


def test_a_cause_has_its_own_time_of_detection() -> None:
    slow = replace(JOB, name="hang", detection_s=600.0)
    found = run(training(), Checkpoints(interval_steps=10, stall_s=0.0), fleet(JOB, slow, detection_s=60.0),
                [strike(100.0, cause=0), strike(400.0, cause=1)])
    assert found.parts_s["detection"] == 660.0


def test_without_a_spare_the_job_waits_for_the_repair_and_with_one_it_does_not() -> None:
    f, c = fleet(NODE, replacement_s=7.0), Checkpoints(interval_steps=1, stall_s=0.0)
    broken = [strike(100.0, replaced=True, repair_s=HOUR_S)]
    waits = run(training(), c, f, broken)
    assert waits.parts_s["waiting"] == HOUR_S and waits.elapsed_s == pytest.approx(1000.0 + HOUR_S + 7.0)
    swaps = run(training(), c, f, broken, Reserve(num_spares=1))
    assert swaps.parts_s["waiting"] == 0.0 and swaps.elapsed_s == pytest.approx(1007.0)


def test_an_outage_takes_all_nodes_of_its_domain() -> None:
    f = fleet(replace(NODE, scope="domain", num_nodes=3))
    broken, c = [strike(100.0, replaced=True, repair_s=HOUR_S)], Checkpoints(interval_steps=1, stall_s=0.0)
    assert run(training(), c, f, broken, Reserve(num_spares=2)).parts_s["waiting"] == HOUR_S
    assert run(training(), c, f, broken, Reserve(num_spares=3)).parts_s["waiting"] == 0.0


def test_an_elastic_job_goes_on_with_fewer_replicas_and_grows_again() -> None:
    # units of two nodes: one node lost is half the job
    t, c = training(num_steps=1000, unit_nodes=2), Checkpoints(interval_steps=1, stall_s=0.0)
    f = fleet(replace(NODE, rate_per_s=1e-9), restart_s=10.0)
    broken = [strike(1010.0, replaced=True, repair_s=1995.0)]
    found = run(t, c, f, broken, Reserve(elastic=True))
    # 100 steps; then at 1,020 half speed, 20 s a step, until the node is back at 3,005; the running step ends at 3,020
    assert found.parts_s["reduced"] == pytest.approx(100 * 10.0)
    assert found.parts_s["restart"] == pytest.approx(30.0)
    assert found.elapsed_s == pytest.approx(10_000.0 + 1000.0 + 30.0)
    # where the next failure is due sooner than a regrow pays, the job grows back at its next restart only
    often = run(t, c, fleet(replace(NODE, rate_per_s=1.0), restart_s=10.0), [*broken, strike(5020.0)], Reserve(elastic=True))
    assert often.parts_s["reduced"] == pytest.approx(200 * 10.0) and often.parts_s["restart"] == pytest.approx(30.0)


def test_nodes_that_an_elastic_job_does_not_have_cannot_fail() -> None:
    t, c = training(num_steps=1000, unit_nodes=1), Checkpoints(interval_steps=1, stall_s=0.0)
    f = fleet(replace(NODE, rate_per_s=1.0))
    lost = strike(100.0, where=0.0, replaced=True, repair_s=1e9)
    found = run(t, c, f, [lost, strike(200.0, where=0.8), strike(300.0, where=0.7)], Reserve(elastic=True))
    assert found.strikes == (2,)


def test_a_planned_stop_saves_first_and_loses_no_step() -> None:
    f = fleet(planned=(PlannedStop(name="firmware", every_s=333.0, lasts_s=60.0, source="test"),), restart_s=5.0)
    found = run(training(num_steps=50), Checkpoints(interval_steps=100, stall_s=4.0, load_s=1.0), f)
    # from 5 on steps of 10 s; the one that runs at 333 ends at 335; saved at 339; from 405 on the last 17 and their save
    assert found.elapsed_s == pytest.approx(335.0 + 4.0 + 60.0 + 6.0 + 170.0 + 4.0)
    assert found.parts_s["redone"] == 0.0 and found.parts_s["maintenance"] == 60.0 and found.stops == (1,)


def test_a_failure_before_a_planned_stop_has_saved_is_a_failure() -> None:
    f = fleet(JOB, planned=(PlannedStop(name="firmware", every_s=333.0, lasts_s=60.0, source="test"),))
    found = run(training(num_steps=50), Checkpoints(interval_steps=20, stall_s=4.0), f, [strike(336.0)])
    assert found.stops == (0,) and found.strikes == (1,)
    assert found.parts_s["redone"] == pytest.approx(336.0 - 204.0)


def test_a_stop_that_comes_while_another_is_under_way_is_done_with_it() -> None:
    stops = tuple(PlannedStop(name=f"{t}", every_s=t, lasts_s=60.0, source="test") for t in (333.0, 333.5, 336.0))
    found = run(training(num_steps=50), Checkpoints(interval_steps=100, stall_s=4.0), fleet(planned=stops))
    assert found.stops == (1, 0, 0) and found.elapsed_s == pytest.approx(500.0 + 8.0 + 60.0)
    adds_up(found)


def test_a_data_stall_stops_the_clock_of_training_and_loses_nothing() -> None:
    stall = replace(JOB, name="loader", pause_s=70.0)
    found = run(training(), Checkpoints(interval_steps=10, stall_s=0.0), fleet(stall, JOB),
                [strike(105.0), strike(120.0), strike(250.0, cause=1)])
    # 105 s of training, 140 s still, then 5 s more: step 11 is half done when the failure comes
    assert found.parts_s["stall"] == pytest.approx(140.0) and found.parts_s["redone"] == pytest.approx(10.0)
    assert found.elapsed_s == pytest.approx(1150.0) and found.strikes == (2, 1)


def test_a_run_that_cannot_end_is_cut_off() -> None:
    found = run(training(), Checkpoints(interval_steps=50, stall_s=0.0), fleet(JOB),
                (strike(100.0 * i) for i in range(1, 10**6)), limit_s=10_000.0)
    assert not found.finished and found.elapsed_s == 10_000.0 and found.parts_s["productive"] == 0.0
    adds_up(found)
