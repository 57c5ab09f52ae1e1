"""Streams that share a NIC in the replay: by hand, what no wire can carry, and every rank with every link by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import simpy
from replay_cases import COST, IN_LINE, MODEL, SPARSE, strategy_of

from profiles.cost import CostModel
from profiles.hardware import load_cluster
from profiles.model import ModelSpec
from simulator.coupling import Coupling, _streams, couple
from simulator.inside import Inside, Piece, Program, lay_out_stage, stage_units
from simulator.layout import coordinates, rank_of, size, stage_parts, stride
from simulator.networks import Flows, Routes, SharedLinks, axis_groups, build_fabric, collective_flows
from simulator.pricing import as_run, price
from simulator.replay import _insides, play, replay
from simulator.schedules import build_schedule, homes, needs, passes, results, sent_to
from simulator.strategy import Strategy
from simulator.workload import Workload, build_workload


def coupling_of(workload: Workload, cost: CostModel = COST) -> Coupling:
    found = couple(workload, cost, price(workload, cost))
    assert found is not None
    return found


def test_a_gradient_sent_beside_reductions_by_hand() -> None:
    """One micro-batch through two stages: the last stage reduces its gradients while it sends one back, over the same NICs.

    Both go at 1 / (their shares together); what one gets later the other got before, so the wire is never idle.
    """
    workload = build_workload(MODEL, strategy_of(0, 2, 8, "1F1B", 1, "none"))
    step, prices, coupling = play(workload, COST), price(workload, COST), coupling_of(workload)
    alone = play(workload, COST, shares=False)
    last, first = (next(s for s in step.played[0].spans if s.rank == r and s.action.pass_ == "B") for r in (1, 0))
    uses = np.zeros((coupling.routes.num, len(coupling.routes.capacity)))
    uses[coupling.routes.route, coupling.routes.link] = coupling.routes.use
    lane, send = coupling.find("pp forward", "", "", 1) or (0, 0)  # over two ranks the next is the one before
    _, reduce = coupling.find("dp", "reduce", "layer", 1) or (0, 0)
    slower = float((uses[send] + uses[reduce]).max())
    assert slower > 1.2 and coupling.rivals[lane]
    assert first.start_s - last.end_s == pytest.approx(float(prices.send_s) * slower, rel=1e-9)
    # the reductions of the last stage are later by what the send took of their wire
    late = step.played[0].ends_s[1] - alone.played[0].ends_s[1]
    assert late == pytest.approx(float(prices.send_s) * (slower - 1), rel=1e-6)


@pytest.mark.parametrize(("model", "strategy", "least"), [
    (MODEL, strategy_of(0, 2, 8, "1F1B", 4, "none"), 0.9),
    (MODEL, strategy_of(3, 2, 1, "Interleaved1F1B", 4, "none", chunks=2), 1.1),
    (SPARSE, strategy_of(1, 2, 1, "1F1B", 4, "none", ep=16), 0.85),
    (MODEL, strategy_of(3, 2, 2, "ZBV", 4, "none", chunks=2), 1.1),
], ids=["dp", "ZeRO-3", "experts", "V"])
def test_no_wire_carries_more_than_its_bandwidth(model: ModelSpec, strategy: Strategy, least: float) -> None:
    """Of every link and every stretch of time: busy seconds of all that went over it are no more than the time that it took;
    without coupling more goes over NICs that ZeRO-3 gathers over than they carry."""
    workload = build_workload(model, strategy)
    coupling = coupling_of(workload)

    def fullest(shares: bool) -> float:
        """Return the most seconds of a link that flows of a step asked of a second of it, each spread over its own time."""
        step = play(workload, COST, shares=shares)
        pipe, uses = step.played[0], defaultdict[int, list[tuple[float, float, float]]](list)

        def went(place: int, lane: str, what: str, part: str, begin_s: float, end_s: float, seconds: float) -> None:
            found = coupling.find(lane, what, part, place)
            if found and end_s > begin_s:
                of = coupling.routes.route == found[1]
                for link, use in zip(coupling.routes.link[of].tolist(), coupling.routes.use[of].tolist(), strict=True):
                    uses[link].append((begin_s, end_s, use * seconds))

        for sent in pipe.sent:
            way = "pp forward" if sent.target == (sent.rank + 1) % len(step.table) else "pp backward"
            went(sent.rank, way, "", "", sent.flow.begin_s, sent.flow.end_s, pipe.sends_s[sent.rank, sent.target])
        for span in pipe.spans:
            inside = pipe.inside[span.action]
            pieces = [p for t in inside.program.turns for p in (*t.in_line, *t.beside, *t.behind) if p.seconds > 0]
            named: dict[tuple[str, str, int], list[Piece]] = defaultdict(list)
            for piece in pieces:
                named[piece.stream, f"{piece.unit.name} {piece.what}".rstrip(), piece.unit.layer].append(piece)
            for s in inside.spans:
                for piece in named.get((s.stream, s.op, s.layer), [])[:1]:
                    what = piece.what if s.stream == "dp" else "F" if s.pass_ == "F" else "B"
                    begin_s, end_s = span.start_s + s.start_s, span.start_s + s.end_s
                    went(span.rank, s.stream, what, piece.unit.part, begin_s, end_s, piece.seconds)
        most = 0.0
        for flows in uses.values():
            times = sorted({t for begin, end, _ in flows for t in (begin, end)})
            # from the start of a flow to the end of one: whatever lies whole inside went over the link then
            for begin in times[:: max(1, len(times) // 40)]:
                inner = sorted((end, seconds) for start, end, seconds in flows if start >= begin)
                done = 0.0
                for end, seconds in inner:
                    done += seconds
                    most = max(most, done / (end - begin))
        return most

    assert fullest(shares=True) <= 1 + 1e-6
    assert fullest(shares=False) > least


def test_where_nothing_meets_nothing_changes() -> None:
    """Without a pipeline and with tp alone in its nodes, and on CPU, where nothing runs beside anything."""
    for strategy, cost in ((strategy_of(3, 1, 8, "1F1B", 4, "none"), COST), (strategy_of(3, 4, 1, "1F1B", 4, "none"), IN_LINE)):
        workload = build_workload(MODEL, strategy)
        assert couple(workload, cost, price(workload, cost)) is None
        assert replay(workload, cost).step_time_s == replay(workload, cost, shares=False).step_time_s


class Unfolded:
    """Every rank of a job by itself: a process each, a flow for each group of a collective and each send, over every link of
    the fabric, all of them `SharedLinks`' from the start."""

    def __init__(self, workload: Workload, cost: CostModel) -> None:
        self.strategy, self.prices, self.fabric = workload.strategy, price(workload, cost), build_fabric(cost.cluster)
        strategy = self.strategy
        name = str(strategy.schedule) if strategy.pp > 1 else "1F1B"
        self.table = build_schedule(name, int(strategy.pp), int(strategy.num_microbatches), int(strategy.chunks))
        self.home, self.num = homes(self.table), int(strategy.world_size)
        stages = stage_parts(workload.model, len(self.table), int(strategy.chunks), strategy.split)
        laid = [lay_out_stage(stage_units(self.prices, stages, s), strategy, self.prices) for s in range(len(stages))]
        self.inside = _insides(self.table, laid, float(self.prices.beside))
        self.streams = _streams(workload, as_run(cost, strategy.software), self.prices)
        self.at = [{a: int(c) for a, c in coordinates(strategy, r).items()} for r in range(self.num)]
        self.env = simpy.Environment()
        self.route_of: dict[Any, int] = {}
        self.group_of: dict[Any, tuple[int, ...]] = {}
        self.links = SharedLinks(self.env, self._routes())
        self.waiting: dict[Any, list[simpy.Event]] = defaultdict(list)
        self.done: dict[Any, simpy.Event] = defaultdict(self.env.event)
        self.last_dp: dict[int, simpy.Event] = {}
        self.last_send: dict[tuple[int, int], simpy.Event] = {}

    def _routes(self) -> Routes:
        entries: list[tuple[int, int, float]] = []
        for key, stream in self.streams.items():
            shares: dict[tuple[int, ...], dict[int, float]] = defaultdict(lambda: defaultdict(float))
            for t in stream.transfers:
                groups = axis_groups(self.num, int(size(self.strategy, t.axis)), int(stride(self.strategy, t.axis)))
                for group in groups:
                    flows = collective_flows(t.kind, group[None], t.bytes, self.fabric.gpus_per_node, t.copies)
                    if key[0].startswith("pp"):
                        a, b = (flows.dst, flows.src) if stream.is_backward else (flows.src, flows.dst)
                        each = [((int(a[i]),), Flows(a[[i]], b[[i]], flows.bytes[[i]])) for i in range(len(a))]
                    else:
                        each = [(tuple(group.tolist()), flows)]
                    for members, some in each:
                        paths = self.fabric.paths(some.src, some.dst)
                        busy_s = some.bytes[paths.flow] * paths.share / self.fabric.capacity[paths.link]
                        for link, seconds in zip(paths.link.tolist(), busy_s.tolist(), strict=True):
                            shares[members][link] += seconds / stream.seconds
            total: dict[int, float] = defaultdict(float)
            for use in shares.values():
                for link, share in use.items():
                    total[link] += share
            whole = max(1.0, *total.values())
            for members, use in shares.items():
                route = self.route_of[key, members] = len(self.route_of)
                for m in members:
                    self.group_of[key, m] = members
                entries += [(route, link, share / whole) for link, share in use.items()]
        route, link, share = zip(*entries, strict=True)
        return Routes(capacity=np.ones(len(self.fabric.capacity)), limit=np.ones(len(self.route_of)),
                      route=np.array(route), link=np.array(link), use=np.array(share))

    def meet(self, rank: int, key: tuple[str, str, str], seconds: float, mark: Any) -> Generator[Any, Any, None]:
        """Run a collective once all its ranks have come."""
        members = self.group_of[key, rank]
        those = self.waiting[key, members, mark]
        mine = self.env.event()
        those.append(mine)
        if len(those) == len(members):
            yield self.links.transfer(self.route_of[key, members], seconds)
            for event in those:
                event.succeed()
        yield mine

    def pieces(self, rank: int, program: Program, pieces: list[Piece], mark: Any) -> Generator[Any, Any, None]:
        for i, piece in enumerate(p for p in pieces if p.seconds > 0):
            if piece.stream == "compute":
                yield self.env.timeout(piece.seconds)
            else:
                what = piece.what if piece.stream == "dp" else "F" if program.pass_ == "F" else "B"
                yield from self.meet(rank, (piece.stream, what, piece.unit.part), piece.seconds, (mark, i))

    def behind(self, rank: int, program: Program, pieces: list[Piece], before: Any, mark: Any) -> Generator[Any, Any, None]:
        if before is not None and not before.processed:
            yield before
        yield from self.pieces(rank, program, pieces, mark)

    def send(self, rank: int, target: int, result: Any, before: Any) -> Generator[Any, Any, None]:
        if before is not None and not before.processed:
            yield before
        way = "pp forward" if self.at[target]["pp"] == (self.at[rank]["pp"] + 1) % len(self.table) else "pp backward"
        yield from self.meet(rank, (way, "", ""), float(self.prices.send_s), (result, "send"))
        self.done[target, result].succeed()

    def walk(self, rank: int) -> Generator[Any, Any, None]:
        place = self.at[rank]["pp"]
        for action in self.table[place]:
            for need in needs(action, len(self.home)):
                event = self.done[rank, need]
                if not event.processed:
                    yield event
            inside: Inside = self.inside[action]
            factor = inside.program.beside_factor
            for k, turn in enumerate(inside.program.turns):
                begin = self.env.now
                mark = (action, k)
                other = self.env.process(self.pieces(rank, inside.program, turn.beside, (mark, "beside")))
                yield from self.pieces(rank, inside.program, turn.in_line, (mark, "in line"))
                end = self.env.now
                if not other.processed:
                    yield other
                slowed = factor * min(self.env.now - begin, end - begin) if turn.beside else 0.0
                yield self.env.timeout(max(0.0, end + slowed - self.env.now))
                if turn.behind:
                    self.last_dp[rank] = self.env.process(
                        self.behind(rank, inside.program, turn.behind, self.last_dp.get(rank), (mark, "behind")))
            for result in results(action):
                target = sent_to(result, self.home)
                if target is None:
                    self.done[rank, result].succeed()
                else:
                    other_rank = rank_of(self.strategy, **(self.at[rank] | {"pp": target}))
                    self.last_send[rank, other_rank] = self.env.process(
                        self.send(rank, other_rank, result, self.last_send.get((rank, other_rank))))
                    if any(a.stage == result.stage for a in passes(action)):
                        self.done[rank, result].succeed()

    def ends_s(self) -> list[float]:
        ends = [0.0] * self.num

        def all_of(rank: int) -> Generator[Any, Any, None]:
            yield self.env.process(self.walk(rank))
            if rank in self.last_dp and not self.last_dp[rank].processed:
                yield self.last_dp[rank]
            ends[rank] = self.env.now

        for rank in range(self.num):
            self.env.process(all_of(rank))
        self.env.run()
        return ends


@pytest.mark.parametrize("order", ["dp-tp-cp-pp", "cp-tp-dp-pp", "tp-dp-cp-pp", "pp-dp-tp-cp", "tp-cp-pp-dp"])
def test_axes_may_lie_in_any_order(order: str) -> None:
    """Every rank is on its stage's routes, and what meets costs time, wherever dp and cp lie."""
    for tp, pp, zero in ((1, 1, 1), (2, 2, 3), (1, 4, 1)):
        strategy = strategy_of(zero, pp, tp, "1F1B", 4, "none", cp=2, context="all_gather", order=order)
        workload = build_workload(cut(MODEL, 8), strategy)
        steps = [replay(workload, COST, shares=shares).step_time_s for shares in (False, True)]
        assert 0.999 * steps[0] < steps[1] < 1.3 * steps[0]


def cut(model: ModelSpec, num_layers: int) -> ModelSpec:
    return replace(model, pattern=model.pattern[-num_layers:])


@pytest.mark.parametrize(("dp", "tp", "cp", "pp", "ep", "zero", "schedule", "m"), [
    (8, 4, 1, 2, 1, 0, "1F1B", 4), (8, 2, 1, 4, 1, 1, "Interleaved1F1B", 4), (16, 1, 1, 2, 1, 3, "1F1B", 2),
    (4, 2, 2, 2, 1, 3, "GPipe", 2), (16, 1, 1, 2, 16, 0, "1F1B", 2), (4, 2, 1, 4, 1, 1, "ZBH1", 4),
    (64, 1, 1, 4, 1, 0, "1F1B", 2),
])
def test_folded_is_every_rank_on_every_link_by_itself(
    dp: int, tp: int, cp: int, pp: int, ep: int, zero: int, schedule: str, m: int
) -> None:
    """Up to 256 ranks: what stands for a stage's ranks, its links folded and only what meets shared, ends when each ends."""
    num, chunks = dp * tp * cp * pp, 2 if schedule == "Interleaved1F1B" else 1
    strategy = Strategy(dp=dp, tp=tp, cp=cp, pp=pp, ep=ep, zero=zero, schedule=schedule, num_microbatches=m, seq_len=2048,
                        chunks=chunks, context="all_gather")
    cost = replace(COST, cluster=load_cluster(f"dgx-h100:{-(-num // 8)}"))
    workload = build_workload(cut(SPARSE if ep > 1 else MODEL, 8 if num <= 64 else 4), strategy)
    ends = Unfolded(workload, cost).ends_s()
    pipe = play(workload, cost).played[0]
    for rank in range(num):
        assert ends[rank] == pytest.approx(pipe.ends_s[int(coordinates(strategy, rank)["pp"])], rel=1e-9)
    alone = max(play(workload, cost, shares=False).played[0].ends_s)
    assert max(pipe.ends_s) > alone * (1 + 1e-6 if schedule != "ZBH1" else 1 - 1e-12)


def test_sends_of_a_rank_go_one_after_the_other() -> None:
    """Where a pass is shorter than its send, sends queue: none of a rank's overlap another in the same direction."""
    strategy = Strategy(dp=1, tp=8, pp=4, num_microbatches=4, seq_len=8192, schedule="GPipe")
    cost = replace(COST, cluster=load_cluster("dgx-h100:4"))
    workload = build_workload(cut(MODEL, 4), strategy)
    workload = replace(workload, send=replace(workload.send, bytes=200 * workload.send.bytes))
    rows = replay(workload, cost).rows
    for _, own in rows[rows["op"].str.startswith("send to")].groupby(["rank", "op"]):
        spans = own.sort_values("start_s")[["start_s", "end_s"]].itertuples(index=False)
        assert all(a.end_s <= b.start_s * (1 + 1e-12) for a, b in pairwise(spans))
