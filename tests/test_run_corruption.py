"""Corruption that is noticed late, and spares that break while idle: by hand, against a walk that carries what is spoilt."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_cases import HOUR_S, JOB, NODE, fleet, run, strike, training

from profiles.files import BadInput
from profiles.reliability import FleetFile, fleet_from, load_fleet
from simulator.run.engine import simulate_run
from simulator.run.interval_curve import expected_goodput
from simulator.run.monte_carlo import Case, simulate_runs
from simulator.run.outcome import Outcome
from simulator.run.strikes import Strike, draw_luck, idle_strikes
from simulator.run.training import Checkpoints, Reserve

EVERY_100_S = Checkpoints(interval_steps=10, stall_s=0.0)
SILENT = replace(JOB, name="silent", unnoticed_s=100.0)


@pytest.mark.parametrize(("at_s", "unnoticed_s", "kept", "redone_s"), [
    # struck in step 26 and seen in step 36: back to step 20, 150 s of 355 are done again
    (255.0, 100.0, 0, 155.0), (255.0, 100.0, 2, 155.0),
    # the newest checkpoint, of step 30, is spoilt, and the only one that is kept: training begins anew
    (255.0, 100.0, 1, 355.0),
    # seen before the next checkpoint: as if it had been seen at once
    (255.0, 20.0, 1, 75.0),
    (55.0, 300.0, 0, 355.0), (255.0, 600.0, 0, 655.0), (255.0, 600.0, 7, 655.0), (255.0, 600.0, 6, 855.0),
    # never seen
    (955.0, 100.0, 0, 0.0),
])
def test_a_late_corruption_by_hand(at_s: float, unnoticed_s: float, kept: int, redone_s: float) -> None:
    f = fleet(replace(SILENT, unnoticed_s=unnoticed_s), detection_s=7.0, restart_s=5.0)
    found = run(training(), replace(EVERY_100_S, kept=kept, load_s=3.0), f, [strike(at_s + 5.0)])
    assert found.parts_s["redone"] == pytest.approx(redone_s)
    assert found.elapsed_s == pytest.approx(5.0 + 1000.0 + redone_s + (7.0 + 5.0 + 3.0) * (redone_s > 0))
    assert found.parts_s["productive"] == pytest.approx(1000.0)
    assert found.strikes == ((1,) if redone_s else (0,))


def test_a_failure_in_between_undoes_a_corruption_that_no_checkpoint_holds() -> None:
    f = fleet(SILENT, replace(JOB, name="crash"))
    undone = run(training(), EVERY_100_S, f, [strike(255.0), strike(285.0, 1)])
    assert undone.strikes == (0, 1) and undone.elapsed_s == 1000.0 + 85.0
    # the checkpoint of step 30 is spoilt: the crash goes back to it, and the corruption, seen at 355, to step 20
    both = run(training(), EVERY_100_S, f, [strike(255.0), strike(325.0, 1)])
    assert both.strikes == (1, 1) and both.elapsed_s == pytest.approx(1000.0 + 25.0 + 130.0)


def test_what_stands_still_corrupts_nothing() -> None:
    f = fleet(SILENT, replace(JOB, name="crash"), restart_s=50.0)
    assert run(training(), EVERY_100_S, f, [strike(20.0), strike(200.0, 1), strike(220.0)]).strikes == (0, 1)


def walk(
    num_steps: int, interval: int, kept: int, unnoticed_s: float, restart_s: float, events: list[tuple[float, bool]]
) -> float:
    """Return the seconds of a run done step by step: its state and its checkpoints carry the corruptions that are in them.

    Events are times of corruptions (True) and of crashes.
    """
    now, step, spoilt, saved = 0.0, 0, set[int](), list[tuple[int, frozenset[int]]]()
    pending = sorted((at, "corrupt" if silent else "crash", i) for i, (at, silent) in enumerate(events))
    trains, left_s = False, restart_s
    while True:
        if not pending or pending[0][0] >= now + left_s:
            now += left_s
            step += trains
            if step == num_steps:
                return now
            if trains and step % interval == 0:
                saved = [*saved, (step, frozenset(spoilt))][-kept:]
            trains, left_s = True, 10.0
            continue
        at, kind, which = pending.pop(0)
        now, left_s = at, left_s - (at - now)
        if kind == "corrupt" and trains:
            spoilt.add(which)
            pending = sorted([*pending, (at + unnoticed_s, "seen", which)])
        elif kind == "crash" or (kind == "seen" and which in spoilt):
            saved = [(s, those) for s, those in saved if kind == "crash" or which not in those]
            step, spoilt = (saved[-1][0], set(saved[-1][1])) if saved else (0, set())
            trains, left_s = False, restart_s


@settings(max_examples=150)
@given(
    num_steps=st.integers(5, 60), interval=st.integers(2, 12), kept=st.integers(0, 3),
    unnoticed=st.sampled_from([3.3, 47.1, 250.7]), restart=st.sampled_from([0.0, 20.0]),
    gaps=st.lists(st.tuples(st.floats(11.0, 300.0), st.booleans()), max_size=6),
)
def test_a_run_is_what_a_walk_makes_of_it_that_carries_what_is_spoilt(
    num_steps: int, interval: int, kept: int, unnoticed: float, restart: float, gaps: list[tuple[float, bool]]
) -> None:
    now, events = 0.0137, []
    for gap, silent in gaps:
        now += gap
        events.append((now, silent))
    f = fleet(replace(SILENT, unnoticed_s=unnoticed), replace(JOB, name="crash"), restart_s=restart)
    found = run(training(num_steps), Checkpoints(interval_steps=min(interval, num_steps), stall_s=0.0, kept=kept), f,
                [strike(at, 0 if silent else 1) for at, silent in events])
    assert found.elapsed_s == pytest.approx(walk(num_steps, min(interval, num_steps), kept, unnoticed, restart, events))
    assert sum(found.parts_s.values()) == pytest.approx(found.elapsed_s)
    assert found.parts_s["productive"] == pytest.approx(10.0 * num_steps) and min(found.parts_s.values()) >= -1e-9


def test_the_mean_loss_is_the_time_unnoticed_and_the_closed_form_knows_it() -> None:
    """Each corruption costs half an interval and the time until it is seen, where these are short against the gaps."""
    rate, lag = 1 / (200 * HOUR_S), 2 * HOUR_S
    f = fleet(replace(SILENT, rate_per_s=rate, unnoticed_s=lag))
    t, c = training(num_steps=2_000_000), Checkpoints(interval_steps=36, stall_s=0.0)
    runs = simulate_runs(Case(training=t, checkpoints=c, fleet=f, reserve=Reserve(), limit=100.0), 12, processes=1)
    expected = lag + 36 * 10.0 / 2
    assert runs.parts_s[:, 3].sum() / runs.strikes.sum() == pytest.approx(expected, rel=0.03)
    assert runs.goodput == pytest.approx(expected_goodput(t, c, f, 36), abs=1.5e-3)
    assert expected_goodput(t, c, fleet(replace(JOB, rate_per_s=rate)), 36) - runs.goodput > 0.005


def test_spares_break_while_they_stand_idle() -> None:
    """One spare, in repair from 100 s to 1100 s: a node that breaks then waits for it."""
    f = fleet(replace(NODE, name="node"))
    t, hit = training(), [strike(500.0, replaced=True, repair_s=9000.0)]

    def under(*idle: Strike) -> Outcome:
        return simulate_run(t, EVERY_100_S, f, Reserve(num_spares=1), iter(hit), 1e9, iter(idle))

    ready, away = under(), under(strike(100.0, replaced=True, repair_s=1000.0))
    mended = under(strike(100.0, replaced=True, repair_s=300.0), strike(700.0, replaced=True, repair_s=9.0))
    assert ready.parts_s["waiting"] == mended.parts_s["waiting"] == 0.0
    assert away.parts_s["waiting"] == pytest.approx(600.0) and away.elapsed_s == pytest.approx(ready.elapsed_s + 600.0)
    assert away.strikes == ready.strikes, "what strikes a spare interrupts nothing"
    assert under(strike(100.0, repair_s=1000.0)) == ready, "processes that only start again are not there on a spare"


def test_spares_break_as_often_as_nodes_that_train() -> None:
    f = fleet(replace(NODE, rate_per_s=1e-6, replaced=0.5), replace(JOB, rate_per_s=1.0), replace(NODE, name="gpu", scope="gpu",
              rate_per_s=1e-7), replace(NODE, name="stall", pause_s=5.0))
    found = idle_strikes(f, draw_luck(f, 0.0, 0, 0), 8, 20, 0, 0)
    those = [next(found) for _ in range(20_000)]
    assert {s.cause for s in those} == {0, 2}
    assert len(those) / those[-1].time_s == pytest.approx(20 * 1e-6 + 160 * 1e-7, rel=0.02)
    assert np.mean([s.replaced for s in those if s.cause == 0]) == pytest.approx(0.5, abs=0.02)
    assert not list(idle_strikes(f, draw_luck(f, 0.0, 0, 0), 8, 0, 0, 0))


def test_what_a_file_may_say() -> None:
    times = {"value": "1 min", "source": "x"}
    head = {"name": "mine", "replaced": {"value": 1, "source": "x"}, "detection": times, "restart": times, "replacement": times,
            "repair": {"median": "1 h", "spread": 0, "source": "x"}}

    def of(**cause: str) -> float:
        causes = [{"cause": "silent", "source": "x", "rate": "1 per GPU-day"} | cause]
        file = FleetFile.model_validate(head | {"causes": causes})
        return fleet_from("mine", file, "mine.yaml").causes[0].unnoticed_s

    assert of(unnoticed="12 h") == 12 * HOUR_S and of() == 0
    for given_, says in (({"unnoticed": "0 s"}, "unnoticed: must be more than zero"),
                         ({"unnoticed": "1 h", "pause": "1 min"}, "a pause loses nothing")):
        with pytest.raises(BadInput, match=says):
            of(**given_)
    llama = next(c for c in load_fleet("llama-3-405b").causes if c.name == "silent data corruption")
    assert llama.unnoticed_s == 0 and math.isclose(llama.rate_per_s, 6 / 884736 / 86400)
