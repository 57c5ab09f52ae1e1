"""Max-min fair rates of flows that share links at one time (Bertsekas and Gallager, Data Networks, section 6.5.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.networks.topology import Index, Reals


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routes:
    """What kinds of flows use: at rate r, route `route[i]` takes r x `use[i]` of link `link[i]`; each pair stands once.

    `capacity` is that of each link, `limit` the highest rate of a flow of each route (infinite: its links alone bind).
    Rates are in bytes per second, or in seconds of work per second; a route needs a link or a limit.
    """

    capacity: Reals
    limit: Reals
    route: Index
    link: Index
    use: Reals

    @property
    def num(self) -> int:
        """Return the number of routes."""
        return len(self.limit)

    def folded(self) -> Routes:
        """Return the same constraints with one link for each set of links of which the same routes use the same shares."""
        by_route = np.argsort(self.route, kind="stable")
        route, link, use = self.route[by_route], self.link[by_route], self.use[by_route]
        share = use / self.capacity[link]
        # links used alike by the same routes have the same sums of random numbers, added in the same order
        random = np.random.default_rng(0).random((2, self.num))
        sums = [np.bincount(link, weights=share * r[route], minlength=len(self.capacity)) for r in random]
        used = np.unique(link)
        _, one = np.unique(np.stack([s[used] for s in sums]), axis=1, return_index=True)
        kept = np.full(len(self.capacity), -1)
        kept[used[one]] = np.arange(len(one))
        stays = kept[link] >= 0
        return replace(self, capacity=self.capacity[used[one]], route=route[stays], link=kept[link[stays]], use=use[stays])


def max_min_rates(routes: Routes, count: Index | None = None) -> Reals:
    """Return the max-min fair rate of one flow of each route, of which `count` run (default: one); 0 where none runs.

    All rates rise together. Where a link fills sooner than all that its flows cross, they stop there, whatever else
    fills later; all such links are settled in one pass, so passes are as many as bottlenecks wait for each other.
    """
    count = np.ones(routes.num, np.int64) if count is None else count
    rate = np.zeros(routes.num)
    rising = count > 0
    taken = np.zeros(len(routes.capacity))
    entry = np.flatnonzero(rising[routes.route] & (routes.use > 0))
    while rising.any():
        route, link = routes.route[entry], routes.link[entry]
        weight = routes.use[entry] * count[route]
        wanted = np.bincount(link, weights=weight, minlength=len(taken))
        level = np.maximum(0.0, routes.capacity - taken) / np.where(wanted > 0, wanted, np.nan)
        first = routes.limit.copy()
        np.fmin.at(first, route, level[link])
        first_here = np.full(len(taken), np.inf)
        np.minimum.at(first_here, link, first[route])
        stops = rising & (first == routes.limit)
        stops[route[level[link] <= first_here[link]]] = True
        rate[stops] = first[stops]
        rising &= ~stops
        stopped = stops[route]
        taken += np.bincount(link[stopped], weights=weight[stopped] * rate[route[stopped]], minlength=len(taken))
        entry = entry[~stopped]
    return rate
