"""Lanes that share links: by hand, against exact reckoning from change to change, and what no link can carry."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st
from test_network_sharing import by_hand, networks, routes_of

from simulator.networks import Routes, Wires, through

Arrival = tuple[float, int, float]
"""When, on which lane (which is its route), and how many seconds as priced."""


def ends_of(routes: Routes, rivals: list[list[int]], arrivals: list[Arrival]) -> tuple[list[tuple[float, float]], int]:
    """Return when each flow began and ended, and how many events that took beside two for each arrival and for its wait."""
    env = simpy.Environment()
    wires, spans, steps = Wires(env, routes, rivals), [(0.0, 0.0)] * len(arrivals), 0

    def flow(i: int, start_s: float, lane: int, seconds: float) -> Generator[Any, Any, None]:
        yield env.timeout(start_s)
        sent = wires.start(lane, lane, seconds, start_s)
        yield from through(env, sent)
        assert env.now == pytest.approx(sent.end_s, rel=1e-12)
        spans[i] = (sent.begin_s, sent.end_s)

    for i, arrival in enumerate(arrivals):
        env.process(flow(i, *arrival))
    while env.peek() < float("inf"):
        env.step()
        steps += 1
    return spans, steps - 4 * len(arrivals)


def everyone(num: int) -> list[list[int]]:
    return [[other for other in range(num) if other != lane] for lane in range(num)]


@given(networks(), st.data())
def test_lanes_are_those_of_reckoning_from_change_to_change(
    network: tuple[list[float], list[dict[int, float]], list[float]], data: st.DataObject
) -> None:
    """Alone every route goes as priced: at rate 1 at the most."""
    capacity, uses, _ = network
    uses = [{link: min(use, capacity[link]) for link, use in row.items()} for row in uses]
    network = capacity, uses, [1.0] * len(uses)
    times = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.75, 3.0, 8.0])
    arrival = st.tuples(times, st.integers(0, len(uses) - 1), st.sampled_from([0.125, 0.5, 1.0, 2.0, 5.0]))
    arrivals = data.draw(st.lists(arrival, min_size=1, max_size=8))
    spans, _ = ends_of(routes_of(*network), everyone(len(uses)), arrivals)
    assert [end for _, end in spans] == pytest.approx(by_hand(network, arrivals, in_lanes=True), rel=1e-12)


@pytest.mark.parametrize(("arrivals", "spans"), [
    # a reduction of 2 s, and a send of 1 s half a second later: three seconds of bytes on one wire
    ([(0.0, 0, 2.0), (0.5, 1, 1.0)], [(0.0, 3.0), (0.5, 2.5)]),
    ([(0.5, 0, 2.0), (0.0, 1, 1.0)], [(0.5, 3.0), (0.0, 1.5)]),
    # two sends of one rank go one after the other, and both beside the reduction
    ([(0.0, 0, 2.0), (0.0, 1, 0.5), (0.0, 1, 0.5)], [(0.0, 3.0), (0.0, 1.0), (1.0, 2.0)]),
    ([(0.0, 0, 2.0), (2.0, 1, 1.0)], [(0.0, 2.0), (2.0, 3.0)]),
])
def test_a_reduction_beside_sends_on_one_wire_by_hand(arrivals: list[Arrival], spans: list[tuple[float, float]]) -> None:
    found, _ = ends_of(routes_of([1.0], [{0: 1.0}, {0: 1.0}], [1.0, 1.0]), everyone(2), arrivals)
    assert found == [pytest.approx(span) for span in spans]


def test_where_the_wire_is_wide_enough_for_both_nothing_is_slower() -> None:
    found, _ = ends_of(routes_of([1.0], [{0: 0.5}, {0: 0.5}], [1.0, 1.0]), everyone(2), [(0.0, 0, 2.0), (0.5, 1, 1.0)])
    assert found == [(0.0, 2.0), (0.5, 1.5)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 8)), min_size=1, max_size=20))
def test_flows_that_meet_no_other_cost_no_event(flows: list[tuple[int, int]]) -> None:
    now, arrivals = 0.0, []
    for lane, ticks in flows:
        arrivals.append((now, lane, ticks / 4))
        now += ticks / 4
    found, events = ends_of(routes_of([1.0], [{0: 1.0}] * 4, [1.0] * 4), everyone(4), arrivals)
    assert found == [(at, at + seconds) for at, _, seconds in arrivals] and events <= 0
