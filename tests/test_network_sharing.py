"""Max-min fair rates against exact filling, step by step; finish times of flows that come and go; streams of one step."""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from profiles.hardware import load_cluster
from simulator.networks import Routes, SharedLinks, Stream, Transfer, build_fabric, degraded, max_min_rates, stream_routes
from simulator.strategy import Strategy

INF = float("inf")


def routes_of(capacity: list[float], uses: list[dict[int, float]], limit: list[float] | None = None) -> Routes:
    entries = [(i, link, use) for i, row in enumerate(uses) for link, use in row.items()]
    route, link, use = (np.array(column) for column in zip(*entries, strict=True))
    return Routes(capacity=np.array(capacity), limit=np.array(limit or [INF] * len(uses)), route=route, link=link, use=use)


def filled(capacity: list[float], uses: list[dict[int, float]], limit: list[float], count: list[int]) -> list[Fraction]:
    """Return max-min fair rates in exact numbers: all rise by what the next link or limit allows, those it stops stay."""
    left = [Fraction(c) for c in capacity]
    rate, rising = [Fraction(0)] * len(uses), {i for i, n in enumerate(count) if n}
    while rising:
        wanted = [sum((Fraction(uses[i].get(j, 0)) * count[i] for i in rising), Fraction(0)) for j in range(len(left))]
        steps = [room / w for room, w in zip(left, wanted, strict=True) if w]
        step = min([*steps, *(Fraction(limit[i]) - rate[i] for i in rising if limit[i] < INF)])
        left = [room - w * step for room, w in zip(left, wanted, strict=True)]
        for i in rising:
            rate[i] += step
        full = {j for j, room in enumerate(left) if room == 0}
        rising = {i for i in rising if rate[i] != limit[i] and not any(uses[i].get(j) for j in full)}
    return rate


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[float], list[dict[int, float]], list[float]]:
    num = draw(st.integers(1, 5))
    values = st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 7.0])
    capacity = draw(st.lists(values, min_size=num, max_size=num))
    uses = draw(st.lists(st.dictionaries(st.integers(0, num - 1), values, min_size=1, max_size=3), min_size=1, max_size=7))
    limit = draw(st.lists(st.one_of(values, st.just(INF)), min_size=len(uses), max_size=len(uses)))
    return capacity, uses, limit


@given(networks(), st.data())
def test_rates_are_those_of_filling_step_by_step(
    network: tuple[list[float], list[dict[int, float]], list[float]], data: st.DataObject
) -> None:
    capacity, uses, limit = network
    count = data.draw(st.lists(st.integers(0, 3), min_size=len(uses), max_size=len(uses)))
    expected = [float(r) for r in filled(capacity, uses, limit, count)]
    assert max_min_rates(routes_of(capacity, uses, limit), np.array(count)) == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 30))
def test_every_flow_has_a_bottleneck(seed: int, num: int, num_links: int) -> None:
    """What defines max-min fairness (Bertsekas and Gallager, 6.5.2): each flow crosses a full link on which none is faster."""
    rng = np.random.default_rng(seed)
    route, link = np.repeat(np.arange(num), 3), rng.integers(0, num_links, 3 * num)
    _, one = np.unique(route * num_links + link, return_index=True)
    routes = Routes(capacity=rng.random(num_links) + 0.1, limit=np.full(num, INF), route=route[one], link=link[one],
                    use=np.ones(len(one)))
    rate = max_min_rates(routes)
    carried = np.bincount(routes.link, weights=rate[routes.route], minlength=num_links)
    assert np.all(carried <= routes.capacity * (1 + 1e-9))
    fastest = np.zeros(num_links)
    np.maximum.at(fastest, routes.link, rate[routes.route])
    full = carried >= routes.capacity * (1 - 1e-9)
    held = full[routes.link] & (rate[routes.route] >= fastest[routes.link] * (1 - 1e-9))
    assert set(routes.route[held]) == set(range(num))


def test_a_parking_lot() -> None:
    """One flow over n links, on each of which another joins: every link is halved; a limit leaves the rest to others."""
    uses: list[dict[int, float]] = [dict.fromkeys(range(4), 1.0), *({i: 1.0} for i in range(4))]
    assert max_min_rates(routes_of([1.0] * 4, uses)) == pytest.approx([0.5] * 5)
    assert max_min_rates(routes_of([1.0, 1.0, 0.5, 1.0], uses)) == pytest.approx([0.25, 0.75, 0.75, 0.25, 0.75])
    assert max_min_rates(routes_of([1.0] * 4, uses, [0.1, *[INF] * 4])) == pytest.approx([0.1, *[0.9] * 4])


@given(networks(), st.integers(1, 4))
def test_folded_links_give_the_same_rates(
    network: tuple[list[float], list[dict[int, float]], list[float]], copies: int
) -> None:
    """Links that the same routes use alike are one: the tightest."""
    capacity, uses, limit = network
    num = len(capacity)
    wide = [{link + num * c: use * (1 + c) for link, use in row.items() for c in range(copies)} for row in uses]
    whole = routes_of([room * (1 + c) for c in range(copies) for room in capacity], wide, limit)
    folded = whole.folded()
    assert len(folded.capacity) <= num
    assert max_min_rates(folded) == pytest.approx(max_min_rates(whole), rel=1e-12)


Arrival = tuple[float, int, float]


def simulated(routes: Routes, arrivals: list[Arrival]) -> tuple[list[float], int]:
    """Return when each flow was through, and the events that it took beside those of the arrivals."""
    env = simpy.Environment()
    shared, ends, steps = SharedLinks(env, routes), [INF] * len(arrivals), 0

    def flow(i: int, start: float, route: int, amount: float) -> Generator[Any, Any, None]:
        yield env.timeout(start)
        yield shared.transfer(route, amount)
        ends[i] = env.now

    for i, arrival in enumerate(arrivals):
        env.process(flow(i, *arrival))
    while env.peek() < INF:
        env.step()
        steps += 1
    assert all(shared.rate(route) == 0 for route in range(routes.num))
    return ends, steps - 3 * len(arrivals)


def by_hand(
    network: tuple[list[float], list[dict[int, float]], list[float]], arrivals: list[Arrival], in_lanes: bool = False
) -> list[float]:
    """Return finish times in exact numbers: from change to change, all rates anew; in lanes the first that is there goes."""
    capacity, uses, limit = network
    left = {i: Fraction(amount) for i, (_, _, amount) in enumerate(arrivals)}
    ends, now = [0.0] * len(arrivals), Fraction(0)
    while left:
        here = sorted((i for i in left if arrivals[i][0] <= now), key=lambda i: (arrivals[i][0], i))
        if in_lanes:
            here = list({arrivals[i][1]: i for i in reversed(here)}.values())
        rates = filled(capacity, [uses[arrivals[i][1]] for i in here], [limit[arrivals[i][1]] for i in here], [1] * len(here))
        changes = [left[i] / r for i, r in zip(here, rates, strict=True)]
        changes += [Fraction(arrivals[i][0]) - now for i in left if arrivals[i][0] > now]
        step = min(changes)
        now += step
        for i, r in zip(here, rates, strict=True):
            left[i] -= r * step
            if left[i] == 0:
                ends[i] = float(now)
                del left[i]
    return ends


@given(networks(), st.data())
def test_finish_times_are_those_of_reckoning_from_change_to_change(
    network: tuple[list[float], list[dict[int, float]], list[float]], data: st.DataObject
) -> None:
    times = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.75, 3.0, 8.0])
    arrival = st.tuples(times, st.integers(0, len(network[1]) - 1), st.sampled_from([0.125, 0.5, 1.0, 2.0, 5.0]))
    arrivals = data.draw(st.lists(arrival, min_size=1, max_size=8))
    ends, events = simulated(routes_of(*network), arrivals)
    assert ends == pytest.approx(by_hand(network, arrivals), rel=1e-12)
    # its own event and two wake-ups: one when it is through, one that a later arrival made too early
    assert events <= 3 * len(arrivals)


@pytest.mark.parametrize(("second", "ends"), [((0.0, 1.0), (2.0, 2.0)), ((0.5, 2.0), (1.5, 3.0)), ((1.0, 1.0), (1.0, 2.0)),
                                              ((0.5, 0.25), (1.25, 1.0))])
def test_two_flows_on_one_link_in_closed_form(second: tuple[float, float], ends: tuple[float, float]) -> None:
    """A unit of work from 0 on, and another flow (start, work): while both run each gets half."""
    found, _ = simulated(routes_of([1.0], [{0: 1.0}, {0: 1.0}]), [(0.0, 0, 1.0), (second[0], 1, second[1])])
    assert found == pytest.approx(ends, rel=1e-12)


def test_a_flow_of_nothing_takes_no_time_and_a_dead_link_all_of_it() -> None:
    assert simulated(routes_of([1.0], [{0: 1.0}]), [(2.0, 0, 0.0)])[0] == [2.0]
    assert simulated(routes_of([1.0, 2.0], [{0: 1.0}, {1: 1.0}]), [(0.0, 0, 1.0), (0.0, 1, 1.0)])[0] == [1.0, 0.5]
    env = simpy.Environment()
    done = SharedLinks(env, routes_of([0.0], [{0: 1.0}])).transfer(0, 1.0)
    env.run()
    assert not done.triggered


def test_the_mean_time_in_a_shared_link_is_that_of_the_queue() -> None:
    """M/G/1 processor sharing: work x stays x / (1 - load) on average, whatever the distribution (Kleinrock 1967)."""
    rng, load, num = np.random.default_rng(1), 0.5, 20_000
    starts = np.cumsum(rng.exponential(1 / load, num))
    work = np.where(rng.random(num) < 0.5, 0.5, 1.5)
    ends, _ = simulated(routes_of([1.0], [{0: 1.0}]), list(zip(starts.tolist(), [0] * num, work.tolist(), strict=True)))
    for x in (0.5, 1.5):
        stay = (np.array(ends) - starts)[work == x].mean()
        assert stay == pytest.approx(x / (1 - load), rel=0.04)


def stream(axis: str, kind: str, seconds: float = 1e-12, is_backward: bool = False) -> Stream:
    """Return a stream of a gigabyte; priced at next to nothing it takes all of its busiest link."""
    return Stream((Transfer(axis, kind, 1e9),), seconds, is_backward)


STREAMS = (stream("tp", "all_gather"), stream("dp", "reduce_scatter"), stream("pp", "send"),
           stream("pp", "send", is_backward=True))


@pytest.mark.parametrize("text", ["dgx-h100:16", "h100-roce3200:2048", "frontier:256"])
def test_a_stream_alone_runs_as_priced_and_two_on_a_nic_share_it(text: str) -> None:
    cluster = load_cluster(text)
    strategy = Strategy(tp=8, pp=4, dp=cluster.num_gpus // 32)
    routes = stream_routes(build_fabric(cluster), strategy, STREAMS)
    of = np.arange(routes.num).reshape(len(STREAMS), 4)
    for one in of:
        assert max_min_rates(routes, np.isin(np.arange(routes.num), one).astype(np.int64))[one] == pytest.approx(1)
    both = max_min_rates(routes, np.isin(np.arange(routes.num), of[1:3]).astype(np.int64))
    # in the middle of the pipeline sends and reductions leave by one NIC; tensor parallelism has its own wires
    assert np.all(both[of[1]] < 1) and np.all(both[of[2, 1:3]] < 1)
    apart = max_min_rates(routes, np.isin(np.arange(routes.num), of[0:2]).astype(np.int64))
    assert apart[of[:2]] == pytest.approx(1)


def test_a_degraded_nic_slows_the_streams_of_its_stage_and_no_others() -> None:
    fabric, strategy = build_fabric(load_cluster("dgx-h100:8")), Strategy(tp=8, dp=2, pp=4)
    slow = degraded(fabric, {fabric.nic_links(2 * 8 + 3)[0]: 0.5})
    routes = stream_routes(slow, strategy, STREAMS, priced_on=fabric)
    alone = np.concatenate([max_min_rates(routes, np.repeat(one, 4)) for one in np.eye(len(STREAMS), dtype=np.int64)])
    # of tp, of dp, forward, backward; node 2 is of stage 1
    assert alone[alone > 0] == pytest.approx([1] * 4 + [1, 0.5, 1, 1] * 3)


def test_forward_and_backward_sends_pass_each_other() -> None:
    """A wire carries as much each way; what a stage sends or gets both ways goes by one NIC."""
    fabric, strategy = build_fabric(load_cluster("dgx-h100:4")), Strategy(tp=8, pp=4)
    routes = stream_routes(fabric, strategy, STREAMS[2:])
    forward, backward = np.eye(8, dtype=np.int64)[:4], np.eye(8, dtype=np.int64)[4:]
    assert max_min_rates(routes, forward[1] + backward[2]).sum() == pytest.approx(1 + 1)
    assert max_min_rates(routes, forward[1] + backward[1]).sum() == pytest.approx(0.5 + 0.5)
    assert max_min_rates(routes, forward[1] + backward[3]).sum() == pytest.approx(0.5 + 0.5)
    slow = stream_routes(fabric, strategy, tuple(s._replace(seconds=1e9 / fabric.out_bytes_per_s / 0.6) for s in STREAMS[2:]))
    assert max_min_rates(slow, forward[1] + backward[1]).sum() == pytest.approx(2 * 0.5 / 0.6)
