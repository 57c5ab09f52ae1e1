"""The same schedule tables as the replay's, evaluated for many steps at once: a start is the latest of what it waits for.

Exactly what SimPy finds for one step (a test holds the two together), without an event: every time is an array over
steps, pipelines or strategies (max-plus algebra: Baccelli et al., Synchronization and Linearity, 1992).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from profiles.ops import Num
from simulator.schedules import Action, Table, homes, needs, results, sent_to


def play_table(
    table: Table, seconds: Callable[[Action], Num], send_s: Callable[[int, int], Num] | float = 0.0, waits: bool = False,
    on_end: Callable[[int, Action, Num], None] | None = None,
) -> list[Num]:
    """Return when each rank is done with its row of a table, as `replay.replay_table` would; seconds may be arrays.

    `send_s` is the time of a send, or gives that between two ranks. `on_end` is told each action's end.
    """
    home = homes(table)
    num_stages = len(home)
    sends = send_s if callable(send_s) else lambda *_: send_s
    takers: dict[Action, int] = {}
    for row in table:
        for action in row:
            for need in needs(action, num_stages):
                takers[need] = takers.get(need, 0) + 1
    done: dict[Action, Num] = {}
    free: list[Num] = [0.0] * len(table)
    ends: list[Num] = [0.0] * len(table)
    position = [0] * len(table)
    waiting: dict[Action, list[int]] = {}
    ready = list(range(len(table)))
    while ready:
        rank = ready.pop()
        row = table[rank]
        while position[rank] < len(row):
            action = row[position[rank]]
            wanted = needs(action, num_stages)
            lacking = next((n for n in wanted if n not in done), None)
            if lacking is not None:
                waiting.setdefault(lacking, []).append(rank)
                break
            position[rank] += 1
            start = free[rank]
            for need in wanted:
                came_from = home[need.stage]
                start = np.maximum(start, done[need] + (sends(came_from, rank) if came_from != rank else 0.0))
                takers[need] -= 1
                if not takers[need]:
                    del done[need]  # nobody needs it any more, and it may be large
            end = start + seconds(action)
            ends[rank] = free[rank] = end
            if on_end:
                on_end(rank, action, end)
            for result in results(action):
                if waits and (to := sent_to(result, home)) is not None:
                    free[rank] = free[rank] + sends(rank, to)
                if takers.get(result):
                    done[result] = end
                ready += waiting.pop(result, [])
    return ends
