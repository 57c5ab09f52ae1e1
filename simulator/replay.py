"""Replay: one step of a strategy, event by event, with SimPy.

One process for each distinct rank walks its row of the schedule table; it waits for what its neighbours send. What
an action does inside the rank (layers, gathers one part ahead, reductions behind) is laid out by `inside.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import simpy

from profiles.cost import CostModel
from simulator.inside import Inside, Span, lay_out_stage, stage_units
from simulator.layout import distinct_ranks, stage_parts
from simulator.pricing import Prices, price
from simulator.schedules import Action, Table, build_schedule
from simulator.strategy import Strategy
from simulator.timeline import Timeline, timeline_from_rows
from simulator.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpan:
    """When a rank ran an action."""

    rank: int
    action: Action
    start_s: float
    end_s: float


def replay_table(
    table: Table, seconds: Callable[[Action], float], send_s: float = 0.0, num_stages: int | None = None
) -> list[ActionSpan]:
    """Return when each action of a schedule table runs; a send takes `send_s` and holds up no one but its receiver."""
    stages = num_stages or 1 + max(a.stage for row in table for a in row)
    env = simpy.Environment()
    arrived: dict[Action, simpy.Event] = {}
    spans: list[ActionSpan] = []

    def arrival(action: Action) -> simpy.Event:
        return arrived.setdefault(action, env.event())

    def send(action: Action) -> Generator[Any, Any, None]:
        yield env.timeout(send_s)
        arrival(action).succeed()

    def walk(rank: int, row: list[Action]) -> Generator[Any, Any, None]:
        for action in row:
            if _received(action, stages):
                yield arrival(action)
            start = env.now
            yield env.timeout(seconds(action))
            spans.append(ActionSpan(rank=rank, action=action, start_s=start, end_s=env.now))
            target = _sent_to(action, stages)
            if target is not None:
                if send_s > 0:
                    env.process(send(target))
                else:
                    arrival(target).succeed()

    for rank, row in enumerate(table):
        env.process(walk(rank, row))
    env.run()
    return spans


def _received(action: Action, num_stages: int) -> bool:
    """Return whether an action waits for another stage's tensor."""
    return action.stage > 0 if action.pass_ == "F" else action.stage < num_stages - 1


def _sent_to(action: Action, num_stages: int) -> Action | None:
    """Return the action that an action's output feeds on another stage."""
    if action.pass_ == "F":
        return Action(action.stage + 1, "F", action.microbatch) if action.stage + 1 < num_stages else None
    return Action(action.stage - 1, "B", action.microbatch) if action.stage > 0 else None


def replay(workload: Workload, cost: CostModel) -> Timeline:
    """Return the timeline of one step of one strategy, for one rank of each set that is alike."""
    strategy = workload.strategy
    prices = price(workload, cost)
    pp, num_microbatches = int(strategy.pp), int(strategy.num_microbatches)
    num_stages = pp * int(strategy.chunks)
    table = build_schedule(str(strategy.schedule), pp, num_microbatches, int(strategy.chunks))
    stages = stage_parts(workload.model, pp, int(strategy.chunks), strategy.software.layer_split)
    units = [stage_units(prices, stages, stage) for stage in range(num_stages)]
    insides = [lay_out_stage(u, strategy, prices) for u in units]
    updates = [lay_out_stage([u for s in units[rank::pp] for u in s], strategy, prices).update for rank in range(pp)]
    send_s = float(prices.send_s)

    def inside(action: Action) -> Inside:
        return insides[action.stage].of(action.pass_, action.microbatch, num_microbatches)

    spans = replay_table(table, lambda a: inside(a).busy_s, send_s, num_stages)
    ranks = distinct_ranks(strategy)
    rows: list[tuple[Any, ...]] = []
    ends, behind = [0.0] * pp, [0.0] * pp
    # reductions that run beside nothing come after the last backward, those of all chunks
    waits_for_all = int(strategy.zero) <= 1 and not (prices.overlaps and strategy.software.grad_reduce)
    for span in spans:
        done = inside(span.action)
        place, m = span.action.stage % pp, span.action.microbatch
        rank = ranks[place]
        rows += [_row(rank, s, span.start_s, m, "cost model") for s in done.spans]
        ends[place] = max(ends[place], span.end_s + (0.0 if waits_for_all else done.tail_s))
        behind[place] += done.tail_s * waits_for_all
        target = _sent_to(span.action, num_stages)
        if target is not None and send_s > 0:
            rows.append((rank, "pp", span.end_s, span.end_s + send_s, f"send to {ranks[target.stage % pp]}",
                         span.action.pass_, -1, m, float(workload.send.bytes), "cost model"))
    for place, end in enumerate(end + tail for end, tail in zip(ends, behind, strict=True)):
        rows += [_row(ranks[place], s, end, -1, "cost model") for s in updates[place]]
        waits = [end + max((s.end_s for s in updates[place]), default=0.0)]
        rows.append((ranks[place], "host", waits[0], waits[0] + _uneven_s(waits[0], prices, strategy),
                     "waiting for the slowest rank", "U", -1, -1, 0.0, "cost model"))
    return timeline_from_rows([r for r in rows if r[3] > r[2]])


def _uneven_s(end_s: float, prices: Prices, strategy: Strategy) -> float:
    """Return what ranks wait for the slowest in a step, and what no kernel of it sees."""
    return float(end_s * prices.wait) + strategy.software.step_s


def _row(rank: int, span: Span, start_s: float, microbatch: int, source: str) -> tuple[Any, ...]:
    return (rank, span.stream, start_s + span.start_s, start_s + span.end_s, span.op, span.pass_, span.layer,
            microbatch, span.bytes, source)


def rank_names(strategy: Strategy) -> dict[int, str]:
    """Return a name for each distinct rank: its stage and how many ranks it stands for."""
    alike = int(strategy.world_size) // int(strategy.pp)
    return {
        rank: f"rank {rank} (stage {stage}, stands for {alike})" for stage, rank in enumerate(distinct_ranks(strategy))
    }


