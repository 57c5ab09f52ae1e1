"""Lanes on links that they share: one flow of a lane at a time, those of several lanes at max-min fair rates.

A flow that meets no other is through when it was priced to be, and costs no event; only those that meet are `SharedLinks`'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import simpy

from simulator.networks.fair import Routes
from simulator.networks.shared import SharedLinks


class Flow:
    """Something on its way: when it began and when it is through, which is no sooner than said while `event` is to come.

    Without an event the end is as said, unless it gets one before.
    """

    __slots__ = ("begin_s", "end_s", "event", "is_through", "lane", "route", "seconds")

    def __init__(self, begin_s: float, seconds: float, lane: int = -1, route: int = -1) -> None:
        self.begin_s, self.end_s, self.seconds = begin_s, begin_s + seconds, seconds
        self.lane, self.route = lane, route
        self.event: simpy.Event | None = None
        self.is_through = False


def through(env: simpy.Environment, flow: Flow) -> Generator[Any, Any, None]:
    """Wait until a flow is through."""
    if flow.event is None:
        yield env.timeout(max(0.0, flow.end_s - env.now))
    if flow.event is not None and not flow.is_through:
        yield flow.event


class Wires:
    """Lanes in a simulation; `rivals` are for each lane those with which it may have to share a link."""

    def __init__(self, env: simpy.Environment, routes: Routes, rivals: Sequence[Sequence[int]]) -> None:
        self._env, self._rivals = env, rivals
        self._shared = SharedLinks(env, routes)
        self._running: list[Flow | None] = [None] * len(rivals)
        self._queues: list[deque[Flow]] = [deque() for _ in rivals]

    def start(self, lane: int, route: int, seconds: float, at_s: float) -> Flow:
        """Return a flow of so many seconds as priced, put now (exactly: at `at_s`) on a lane behind what is there."""
        flow, before = Flow(at_s, seconds, lane, route), self._running[lane]
        if before is None or not self._runs(before):
            self._begin(flow)
            return flow
        last = self._queues[lane][-1] if self._queues[lane] else before
        flow.end_s, flow.event = last.end_s + seconds, self._env.event()
        self._queues[lane].append(flow)
        if before.event is None:
            self._share(before, before.end_s - self._env.now)
        return flow

    def _runs(self, flow: Flow) -> bool:
        return flow.end_s > self._env.now if flow.event is None else not flow.is_through

    def _begin(self, flow: Flow) -> None:
        self._running[flow.lane] = flow
        now, running = self._env.now, self._running
        met = [rival for lane in self._rivals[flow.lane] if (rival := running[lane]) is not None
               and (rival.end_s > now if rival.event is None else not rival.is_through)]
        if not met and flow.event is None:
            return
        for rival in met:
            if rival.event is None:
                self._share(rival, rival.end_s - self._env.now)
        self._share(flow, flow.seconds)

    def _share(self, flow: Flow, seconds: float) -> None:
        done = self._shared.transfer(flow.route, seconds)
        flow.event = flow.event or done
        assert done.callbacks is not None
        done.callbacks.append(lambda _: self._end(flow))

    def _end(self, flow: Flow) -> None:
        flow.end_s, flow.is_through = self._env.now, True
        if flow.event is not None and not flow.event.triggered:
            flow.event.succeed()
        self._running[flow.lane] = None
        if self._queues[flow.lane]:
            after = self._queues[flow.lane].popleft()
            after.begin_s = self._env.now
            self._begin(after)
