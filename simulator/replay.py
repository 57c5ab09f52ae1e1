"""Replay: one step of a strategy, event by event, with SimPy.

One process for each distinct rank walks its row of the schedule table; it waits for what its neighbours send. What
an action does inside the rank (layers, gathers one part ahead, reductions behind) is laid out by `inside.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import simpy

from profiles.cost import CostModel
from simulator.condition import Condition, at_pace, pipelines
from simulator.coupling import Coupling, couple
from simulator.inside import FIRST, LAST, Inside, Span, Stage, lay_out_pair, lay_out_stage, stage_units
from simulator.layout import rank_of, stage_parts
from simulator.networks import Flow, through
from simulator.on_wires import OnWires, Running
from simulator.pricing import Prices, price
from simulator.schedules import Action, Table, build_schedule, homes, needs, passes, results, sent_to
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


class Sent(NamedTuple):
    """A result on its way from a rank to another."""

    rank: int
    target: int
    result: Action
    flow: Flow


Send = Callable[[int, int, float], Flow]
"""Rank, rank that it sends to, and when -> the flow that it puts on its way."""


def replay_table(
    table: Table, seconds: Callable[[Action], float], send_s: Callable[[int, int], float] | float = 0.0, waits: bool = False
) -> list[ActionSpan]:
    """Return when each action of a schedule table runs.

    A send to another rank takes `send_s` (or what it gives for sender and receiver), and holds up its receiver only, or with
    `waits` its sender, too.
    """
    sends = send_s if callable(send_s) else lambda *_: send_s
    env = simpy.Environment()
    spans, _ = walk_table(env, table, seconds, lambda rank, to, at_s: Flow(at_s, sends(rank, to)), waits)
    env.run()
    return spans


def walk_table(
    env: simpy.Environment, table: Table, seconds: Callable[[Action], float], send: Send, waits: bool,
    acts: Mapping[Action, Callable[[float], Running]] | None = None,
    on_end: Callable[[int, float], None] = lambda rank, at_s: None,
) -> tuple[list[ActionSpan], list[Sent]]:
    """Start a process for each rank of a table; return what they did and sent, once the environment has run.

    An action takes so many seconds, or is played by its `acts` from when it starts. `on_end` is told when a row is done.
    """
    home = homes(table)
    acts = acts or {}
    done_s: dict[Action, float] = {}
    coming: dict[Action, Flow] = {}
    awaited: dict[Action, simpy.Event] = {}
    spans: list[ActionSpan] = []
    sent: list[Sent] = []

    def arrival_s(start_s: float, flows: list[Flow]) -> Running:
        for flow in flows:
            yield from through(env, flow)
            start_s = max(start_s, flow.end_s)
        return start_s

    def walk(rank: int, row: list[Action]) -> Generator[Any, Any, None]:
        free_s = 0.0
        for action in row:
            start_s, flows = free_s, list[Flow]()
            for need in needs(action, len(home)):
                if need not in done_s:
                    yield awaited.setdefault(need, env.event())
                if home[need.stage] == rank:
                    start_s = max(start_s, done_s[need])
                else:
                    flows.append(coming[need])
                    start_s = max(start_s, coming[need].end_s)
            if action in acts:
                start_s = yield from arrival_s(start_s, flows)
                end_s = yield from acts[action](start_s)
            else:
                end_s = start_s + seconds(action)
                # one event for the wait and the action: what it waits for is known by now, but for what meets others
                yield env.timeout(max(0.0, end_s - env.now))
                if any(flow.event is not None for flow in flows):
                    start_s = yield from arrival_s(start_s, flows)
                    end_s = start_s + seconds(action)
                    yield env.timeout(max(0.0, end_s - env.now))
            spans.append(ActionSpan(rank, action, start_s, end_s))
            free_s = end_s
            for result in results(action):
                done_s[result] = end_s
                target = sent_to(result, home)
                if target is not None:
                    coming[result] = flow = send(rank, target, end_s)
                    sent.append(Sent(rank, target, result, flow))
                if result in awaited:
                    awaited.pop(result).succeed()
                if waits and target is not None:
                    yield from through(env, flow)
                    free_s += flow.end_s - end_s
        on_end(rank, free_s)

    for rank, row in enumerate(table):
        env.process(walk(rank, row))
    return spans, sent


def replay(
    workload: Workload, cost: CostModel, condition: Condition | None = None, table: Table | None = None, shares: bool = True
) -> Timeline:
    """Return the timeline of one step of one strategy, for one rank of each set that is alike.

    `condition` says which ranks are slower than the rest; a `table` takes the place of the strategy's schedule; without
    `shares` every transfer has its links to itself.
    """
    return timeline_of(play(workload, cost, condition, table, shares))


def play(
    workload: Workload, cost: CostModel, condition: Condition | None = None, table: Table | None = None, shares: bool = True
) -> Step:
    """Return one step as it is played, of which `timeline_of` and `memory_timeline` tell."""
    strategy = workload.strategy
    prices, job = price(workload, cost), pipelines(strategy, condition)
    table = table or build_schedule(schedule_of(strategy), int(strategy.pp), int(strategy.num_microbatches),
                                    int(strategy.chunks))
    player = _Player(workload, prices, table, cost.cluster.gpus_per_node, couple(workload, cost, prices) if shares else None)
    reduced = job.reduced.tolist()
    played = [player.pipeline(c, n, reduced) for c, n in zip(job.compute.tolist(), job.network.tolist(), strict=True)]
    # gradients are summed over replicas: none updates before the last is there
    ready_s = [max(p.ends_s[place] for p in played) for place in range(len(table))]
    ranks = [[rank_of(strategy, pp=place, dp=int(replica)) for place in range(len(table))] for replica in job.replica]
    return Step(workload=workload, prices=prices, table=table, played=played, ranks=ranks, ready_s=ready_s)


def timeline_of(step: Step) -> Timeline:
    """Return the timeline of a step that was played."""
    rows = Rows()
    for ranks, pipe in zip(step.ranks, step.played, strict=True):
        pipe.add_rows(rows, ranks, float(step.workload.send.bytes))
        for place, rank in enumerate(ranks):
            waits_s = step.ready_s[place] - pipe.ends_s[place]
            if waits_s > 0:
                rows.add_spans(rank, [Span("dp", 0.0, waits_s, "waiting for slower replicas", "U", -1)],
                               [pipe.ends_s[place]], [-1])
            begin_s, end_s = (s - step.ready_s[place] for s in step.wait_s(pipe, place))
            last = Span("host", begin_s, end_s, "waiting for the slowest rank", "U", -1)
            rows.add_spans(rank, [*pipe.updates[place], last], [step.ready_s[place]], [-1])
    return rows.timeline("cost model")


def schedule_of(strategy: Strategy) -> str:
    """Return the schedule of one strategy; one without a pipeline takes its micro-batches in turn."""
    return str(strategy.schedule) if int(strategy.pp) > 1 else "1F1B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A pipeline's step: its actions, when each rank has its gradients, its updates, and its sends from one rank to another."""

    spans: list[ActionSpan]
    inside: dict[Action, Inside]
    ends_s: list[float]
    updates: list[list[Span]]
    sends_s: dict[tuple[int, int], float]
    sent: list[Sent]
    home: dict[int, int]

    def add_rows(self, rows: Rows, ranks: Sequence[int], send_bytes: float) -> None:
        """Add what the actions do, and a row on its sender for each tensor that goes to another rank."""
        same: dict[tuple[int, int], list[ActionSpan]] = defaultdict(list)
        sent: dict[tuple[int, int, str], list[tuple[float, float, int]]] = defaultdict(list)
        for span in self.spans:
            same[span.rank, id(self.inside[span.action])].append(span)
        for place, to, result, flow in self.sent:
            sent[place, to, "F" if result.pass_ == "F" else "B"].append((flow.begin_s, flow.end_s, result.microbatch))
        for (place, _), those in same.items():
            spans = self.inside[those[0].action].spans
            for i, part in enumerate(passes(those[0].action)):
                # of a pair, each pass has its own micro-batch
                own = [s for s in spans if (s.pass_ == "F") == (part.pass_ == "F")] if those[0].action.parts else spans
                rows.add_spans(ranks[place], own, [s.start_s for s in those], [passes(s.action)[i].microbatch for s in those])
        for (place, to, pass_), sends in sent.items():
            send = Span("pp", 0.0, 0.0, f"send to {ranks[to]}", pass_, -1, send_bytes)
            rows.add_timed(ranks[place], send, *zip(*sends, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step as it was played: its distinct pipelines with the ranks that stand for them, and when all replicas have the
    gradients of each pipeline rank."""

    workload: Workload
    prices: Prices
    table: Table
    played: list[Played]
    ranks: list[list[int]]
    ready_s: list[float]

    @property
    def step_time_s(self) -> float:
        """Return when the last rank is done."""
        return max(self.wait_s(pipe, place)[1] for pipe in self.played for place in range(len(self.ready_s)))

    def wait_s(self, pipe: Played, place: int) -> tuple[float, float]:
        """Return when a rank has updated, and until when it then waits: for the slowest, and for what no kernel sees."""
        after_s = self.ready_s[place] + max((s.end_s for s in pipe.updates[place]), default=0.0)
        return after_s, after_s * (1 + float(self.prices.wait)) + self.workload.strategy.software.step_s


class _Player:
    """Plays a table for pipelines whose ranks go at their own paces; what two of them share is laid out once."""

    def __init__(
        self, workload: Workload, prices: Prices, table: Table, gpus_per_node: int, coupling: Coupling | None
    ) -> None:
        self.strategy, self.prices, self.table = workload.strategy, prices, table
        self.home, self.gpus_per_node, self.where = homes(table), gpus_per_node, prices.places(len(table))
        self.coupling = coupling
        split = workload.strategy.split
        self.stages = stage_parts(workload.model, len(table), len(self.home) // len(table), split)
        self.laid: dict[tuple[Any, ...], Stage] = {}

    def pipeline(self, compute: Sequence[float], network: Sequence[float], reduced: Sequence[float]) -> Played:
        """Return the step of a pipeline with these factors of each rank's seconds."""
        strategy, prices = self.strategy, self.prices
        paces = [tuple(map(float, p)) for p in zip(compute, network, reduced, strict=True)]
        laid = [self._laid((stage,), self.home[stage], paces) for stage in range(len(self.stages))]
        own = [tuple(sorted(s for s, at in self.home.items() if at == place)) for place in range(len(self.table))]
        updates = [self._laid(stages, place, paces).update for place, stages in enumerate(own)]
        inside = _insides(self.table, laid, float(prices.beside))
        pairs = {pair for s, t in pairwise(sorted(self.home)) for pair in (
            (self.home[s], self.home[t]), (self.home[t], self.home[s]))}
        sends_s = {(a, b): float(prices.hop_s(self.where[a], self.where[b])) * paces[a][1] for a, b in sorted(pairs)}
        # reductions that run beside nothing come after the last backward, those of all chunks
        late = int(strategy.zero) <= 1 and not (prices.overlaps and strategy.software.grad_reduce)
        env = simpy.Environment()
        wires = OnWires(env, len(self.table), self.coupling)
        held_up = cache(lambda place, kind: wires.holds_up(place, kinds[kind]))
        kinds = {id(kind): kind for kind in inside.values()}
        acts = {action: partial(wires.act, place, action, inside[action], late=late)
                for place, row in enumerate(self.table) for action in row
                if inside[action].behind or held_up(place, id(inside[action]))}
        spans, sent = walk_table(
            env, self.table, lambda a: inside[a].busy_s, lambda rank, to, at_s: wires.send(rank, to, sends_s[rank, to], at_s),
            not strategy.software.pp_overlap, acts, wires.end_row)
        env.run()
        ends = list(wires.reduced_s)
        for span in spans:
            ends[span.rank] = max(ends[span.rank], span.end_s)
        return Played(spans=spans, inside=inside | wires.insides(), ends_s=ends, updates=updates, sends_s=sends_s, sent=sent,
                      home=self.home)

    def _laid(self, stages: tuple[int, ...], place: int, paces: Sequence[tuple[float, ...]]) -> Stage:
        key = (stages, paces[place])
        if key not in self.laid:
            prices = at_pace(self.prices.at(self.where[place]), self.strategy, self.gpus_per_node, *paces[place])
            units = [unit for stage in stages for unit in stage_units(prices, self.stages, stage)]
            self.laid[key] = lay_out_stage(units, self.strategy, prices)
        return self.laid[key]


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


def rank_names(strategy: Strategy, condition: Condition | None = None) -> dict[int, str]:
    """Return a name for each distinct rank: its stage and how many ranks it stands for."""
    job, inner = pipelines(strategy, condition), int(strategy.tp) * int(strategy.cp)
    names = {}
    for replica, count in zip(job.replica, job.count, strict=True):
        for stage in range(int(strategy.pp)):
            rank = rank_of(strategy, pp=stage, dp=int(replica))
            names[rank] = f"rank {rank} (stage {stage}, stands for {inner * int(count)})"
    return names
