"""Replay: one step of a strategy, event by event, with SimPy.

One process for each distinct rank walks its row of the schedule table; it waits for what its neighbours send. What
an action does inside the rank (layers, gathers one part ahead, reductions behind) is laid out by `inside.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import simpy

from profiles.cost import CostModel
from simulator.inside import FIRST, LAST, Inside, Span, Stage, lay_out_pair, lay_out_stage, stage_units
from simulator.layout import distinct_ranks, stage_parts
from simulator.pricing import Prices, price
from simulator.schedules import Action, Table, build_schedule, needs, passes, rank_stages, results
from simulator.strategy import Strategy
from simulator.timeline import Timeline
from simulator.timeline_rows import Rows
from simulator.workload import Workload


class ActionSpan(NamedTuple):
    """When a rank ran an action."""

    rank: int
    action: Action
    start_s: float
    end_s: float


def replay_table(
    table: Table, seconds: Callable[[Action], float], send_s: float = 0.0, waits: bool = False
) -> list[ActionSpan]:
    """Return when each action of a schedule table runs; a send to another rank takes `send_s` and holds up its receiver
    only, or with `waits` its sender, too."""
    home = {a.stage: rank for rank, row in enumerate(table) for slot in row for a in passes(slot)}
    num_stages = 1 + max(home, default=-1)
    env = simpy.Environment()
    done_s: dict[Action, float] = {}
    awaited: dict[Action, simpy.Event] = {}
    spans: list[ActionSpan] = []

    def walk(rank: int, row: list[Action]) -> Generator[Any, Any, None]:
        free_s = 0.0
        for action in row:
            start_s = free_s
            for need in needs(action, num_stages):
                if need not in done_s:
                    yield awaited.setdefault(need, env.event())
                start_s = max(start_s, done_s[need] + (send_s if home[need.stage] != rank else 0.0))
            end_s = start_s + seconds(action)
            # one event for the wait and the action: what it waits for is known by now
            yield env.timeout(max(0.0, end_s - env.now))
            spans.append(ActionSpan(rank, action, start_s, end_s))
            free_s = end_s
            for result in results(action):
                done_s[result] = end_s
                if waits and _leaves(result, rank, home, num_stages):
                    free_s += send_s
                if result in awaited:
                    awaited.pop(result).succeed()

    for rank, row in enumerate(table):
        env.process(walk(rank, row))
    env.run()
    return spans


def _leaves(result: Action, rank: int, home: dict[int, int], num_stages: int) -> bool:
    """Return whether a result goes to another rank."""
    target = receiver(result)
    return 0 <= target < num_stages and home[target] != rank


def receiver(result: Action) -> int:
    """Return the stage that takes a result: the next one an output, the one before a gradient; may be none of the model."""
    return result.stage + 1 if result.pass_ == "F" else result.stage - 1


def replay(workload: Workload, cost: CostModel) -> Timeline:
    """Return the timeline of one step of one strategy, for one rank of each set that is alike."""
    strategy = workload.strategy
    name, pp, chunks = str(strategy.schedule) if strategy.pp > 1 else "1F1B", int(strategy.pp), int(strategy.chunks)
    return replay_schedule(workload, cost, build_schedule(name, pp, int(strategy.num_microbatches), chunks),
                           [rank_stages(name, rank, pp, chunks) for rank in range(pp)])


def replay_schedule(workload: Workload, cost: CostModel, table: Table, held: Sequence[list[int]]) -> Timeline:
    """Return the timeline of one step under a schedule table; `held` has the stages of each pipeline rank."""
    strategy = workload.strategy
    prices = price(workload, cost)
    stages = stage_parts(workload.model, int(strategy.pp), int(strategy.chunks), strategy.software.layer_split)
    units = [stage_units(prices, stages, stage) for stage in range(len(stages))]
    laid = [lay_out_stage(u, strategy, prices) for u in units]
    updates = [lay_out_stage([u for s in own for u in units[s]], strategy, prices).update for own in held]
    send_s = float(prices.send_s)
    inside = _insides(table, laid, float(prices.beside))
    spans = replay_table(table, lambda a: inside[a].busy_s, send_s, not strategy.software.pp_overlap)

    ranks = distinct_ranks(strategy)
    home = {stage: rank for rank, own in enumerate(held) for stage in own}
    rows = Rows()
    ends, behind = [0.0] * len(held), [0.0] * len(held)
    # reductions that run beside nothing come after the last backward, those of all chunks
    waits_for_all = int(strategy.zero) <= 1 and not (prices.overlaps and strategy.software.grad_reduce)
    same: dict[tuple[int, int], list[ActionSpan]] = defaultdict(list)
    for span in spans:
        done = inside[span.action]
        same[span.rank, id(done)].append(span)
        ends[span.rank] = max(ends[span.rank], span.end_s + (0.0 if waits_for_all else done.tail_s))
        behind[span.rank] += done.tail_s * waits_for_all
    for (rank, _), those in same.items():
        rows.add_spans(ranks[rank], inside[those[0].action].spans, [s.start_s for s in those],
                       [passes(s.action)[0].microbatch for s in those])
    if send_s > 0:
        _add_sends(rows, spans, home, ranks, send_s, float(workload.send.bytes))
    for rank, end_s in enumerate(end + tail for end, tail in zip(ends, behind, strict=True)):
        after_s = end_s + max((s.end_s for s in updates[rank]), default=0.0)
        waiting = Span("host", after_s - end_s, after_s - end_s + _uneven_s(after_s, prices, strategy),
                       "waiting for the slowest rank", "U", -1)
        rows.add_spans(ranks[rank], [*updates[rank], waiting], [end_s], [-1])
    return rows.timeline("cost model")


def _insides(table: Table, laid: Sequence[Stage], beside: float) -> dict[Action, Inside]:
    """Return what each action of a table does; actions that do the same share it."""
    first: set[Action] = set()
    last: dict[int, Action] = {}
    seen: set[int] = set()
    for row in table:
        for action in (a for slot in row for a in passes(slot)):
            if action.pass_ == "F" and action.stage not in seen:
                seen.add(action.stage)
                first.add(action)
            elif action.pass_ in "BW":
                last[action.stage] = action

    def of(action: Action) -> Inside:
        kind = FIRST if action in first else LAST if last.get(action.stage) == action else ""
        return laid[action.stage].actions[kind + action.pass_]

    pairs: dict[tuple[int, int], Inside] = {}
    found: dict[Action, Inside] = {}
    for action in (a for row in table for a in row):
        if not action.parts:
            found[action] = of(action)
            continue
        one, other = (of(a) for a in action.parts)
        key = id(one), id(other)
        if key not in pairs:
            pairs[key] = lay_out_pair(one, other, beside)
        found[action] = pairs[key]
    return found


def _add_sends(
    rows: Rows, spans: Sequence[ActionSpan], home: dict[int, int], ranks: Sequence[int], send_s: float, num_bytes: float
) -> None:
    """Add a row for each tensor that goes to another rank, on its sender."""
    sent: dict[tuple[int, int, str], list[tuple[float, int]]] = defaultdict(list)
    for span in spans:
        for result in results(span.action):
            if _leaves(result, span.rank, home, len(home)):
                target = home[receiver(result)]
                sent[span.rank, target, "F" if result.pass_ == "F" else "B"].append((span.end_s, result.microbatch))
    for (rank, target, pass_), those in sent.items():
        send = Span("pp", 0.0, send_s, f"send to {ranks[target]}", pass_, -1, num_bytes)
        rows.add_spans(ranks[rank], [send], [start for start, _ in those], [m for _, m in those])


def _uneven_s(end_s: float, prices: Prices, strategy: Strategy) -> float:
    """Return what ranks wait for the slowest in a step, and what no kernel of it sees."""
    return float(end_s * prices.wait) + strategy.software.step_s


def rank_names(strategy: Strategy) -> dict[int, str]:
    """Return a name for each distinct rank: its stage and how many ranks it stands for."""
    alike = int(strategy.world_size) // int(strategy.pp)
    return {
        rank: f"rank {rank} (stage {stage}, stands for {alike})" for stage, rank in enumerate(distinct_ranks(strategy))
    }
