"""Links that flows share over time: a SimPy resource in which each flow gets its max-min fair rate (processor sharing).

Rates change only when a flow comes or goes, so a flow costs two events: one that wakes the links up when it is through,
and its own. Between changes nothing happens, so finish times are exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np
import simpy

from simulator.networks.fair import Routes, max_min_rates
from simulator.networks.topology import Reals

KNOWN_SETS = 1 << 16
"""Sets of flows whose rates are remembered: the micro-batches of a step repeat each other."""


class SharedLinks:
    """Links in a simulation: `yield shared.transfer(route, amount)` waits until that much has gone over a route."""

    def __init__(self, env: simpy.Environment, routes: Routes) -> None:
        self._env = env
        self._capacity: list[float] = routes.capacity.tolist()
        self._limit: list[float] = np.fmin(routes.limit, _alone(routes)).tolist()
        self._links: list[list[tuple[int, float]]] = [[] for _ in range(routes.num)]
        for route, link, use in zip(routes.route.tolist(), routes.link.tolist(), routes.use.tolist(), strict=True):
            if use > 0:
                self._links[route].append((link, use))
        self._busy: list[set[int]] = [set() for _ in self._capacity]
        self._wanted = [0.0] * len(self._capacity)
        # of each route: what each of its flows got while any ran, at what rate since when; its flows by where they end
        self._got, self._rate, self._since = ([0.0] * routes.num for _ in range(3))
        self._flows: list[list[tuple[float, int, simpy.Event]]] = [[] for _ in range(routes.num)]
        self._ends: list[tuple[float, int, int, int]] = []
        self._version = [0] * routes.num
        self._due, self._order = np.inf, count()
        self._known: dict[tuple[tuple[int, int], ...], list[float]] = {}

    def transfer(self, route: int, amount: float) -> simpy.Event:
        """Return an event that happens when `amount` (bytes, or seconds of work) has gone over a route."""
        done = self._env.event()
        if amount <= 0:
            return done.succeed()
        self._advance(route)
        heappush(self._flows[route], (self._got[route] + amount, next(self._order), done))
        self._want(route, 1)
        self._share(self._together([route]), [route])
        self._sleep()
        return done

    def rate(self, route: int) -> float:
        """Return the rate at which each flow of a route goes now; 0 where none does."""
        return self._rate[route] if self._flows[route] else 0.0

    def _advance(self, route: int) -> None:
        now = self._env.now
        self._got[route] += self._rate[route] * (now - self._since[route])
        self._since[route] = now

    def _want(self, route: int, more: int) -> None:
        """Count flows that come or go in what each link would carry if nothing slowed them."""
        for link, use in self._links[route]:
            self._wanted[link] += more * use * self._limit[route]
            if self._flows[route]:
                self._busy[link].add(route)
            else:
                self._busy[link].discard(route)

    def _together(self, routes: Iterable[int]) -> list[int]:
        """Return the routes whose rates may depend on those of some, by way of links that more is wanted of than they carry."""
        found = set(routes)
        waiting, seen = list(found), set[int]()
        while waiting:
            for link, _ in self._links[waiting.pop()]:
                if link not in seen and self._wanted[link] > self._capacity[link] * (1 + 1e-12):
                    seen.add(link)
                    waiting.extend(self._busy[link] - found)
                    found |= self._busy[link]
        return sorted(found)

    def _share(self, together: list[int], changed: list[int]) -> None:
        """Give the flows of routes that share links their rates, and note when the first of each route is through."""
        active = tuple([(r, len(self._flows[r])) for r in together if self._flows[r]])
        for (route, _), rate in zip(active, self._rates(active), strict=True):
            if rate == self._rate[route] and route not in changed:
                continue
            self._advance(route)
            self._rate[route] = rate
            self._version[route] += 1
            if rate > 0:
                end = self._env.now + (self._flows[route][0][0] - self._got[route]) / rate
                heappush(self._ends, (end, next(self._order), route, self._version[route]))

    def _rates(self, active: tuple[tuple[int, int], ...]) -> list[float]:
        if len(active) == 1 and active[0][1] == 1:
            return [self._limit[active[0][0]]]
        if active not in self._known:
            if len(self._known) >= KNOWN_SETS:
                self._known.clear()
            self._known[active] = self._solve(active)
        return self._known[active]

    def _solve(self, active: tuple[tuple[int, int], ...]) -> list[float]:
        route, link, use = [], [], []
        place: dict[int, int] = {}
        for i, (r, _) in enumerate(active):
            for one, share in self._links[r]:
                route.append(i)
                link.append(place.setdefault(one, len(place)))
                use.append(share)
        part = Routes(
            capacity=np.array([self._capacity[one] for one in place]), limit=np.array([self._limit[r] for r, _ in active]),
            route=np.array(route, np.int64), link=np.array(link, np.int64), use=np.array(use),
        )
        rates: list[float] = max_min_rates(part, np.array([num for _, num in active])).tolist()
        return rates

    def _sleep(self) -> None:
        """Wake up when the next flow is through, unless an earlier wake-up is already due."""
        while self._ends and self._ends[0][3] != self._version[self._ends[0][2]]:
            heappop(self._ends)
        if self._ends and self._ends[0][0] < self._due:
            self._due = self._ends[0][0]
            self._env.timeout(max(0.0, self._due - self._env.now), self._due).callbacks.append(self._wake)

    def _wake(self, event: Any) -> None:
        """End all flows that are through by now, and share what they leave."""
        if event.value != self._due:
            return
        through: list[int] = []
        while self._ends and self._ends[0][0] <= self._due:
            _, _, route, version = heappop(self._ends)
            if version == self._version[route]:
                through.append(route)
        self._due = np.inf
        together = self._together(through)
        for route in through:
            # the first flow got what it was to get: rounding of the clock must not leave a rest
            flows = self._flows[route]
            self._got[route], self._since[route] = flows[0][0], self._env.now
            self._version[route] += 1
            while flows and flows[0][0] <= self._got[route]:
                heappop(flows)[2].succeed()
                self._want(route, -1)
        self._share(together, through)
        self._sleep()


def _alone(routes: Routes) -> Reals:
    """Return the rate of a flow of each route where no other runs."""
    rate, used = np.full(routes.num, np.inf), routes.use > 0
    np.minimum.at(rate, routes.route[used], routes.capacity[routes.link[used]] / routes.use[used])
    return rate
