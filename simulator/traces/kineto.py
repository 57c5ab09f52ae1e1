"""From a PyTorch profiler's (Kineto) trace to the rows of a timeline: one step of one rank.

On a GPU a row is a kernel or a copy, and what nothing on the device covers is the host's. Without one a row is an operator
that no other operator called, less the calls of collectives inside it. Rows belong to the pass, micro-batch and layer of the
annotation under which the host called or launched them (torch's pipelines, FSDP and optimizers annotate; so can users); where
none says the pass, what autograd's engine calls is backward, what follows its last call is the update, and the rest forward.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiles.files import BadInput
from simulator.layout import ORDER, coordinates
from simulator.strategy import Strategy
from simulator.timeline import union
from simulator.traces.names import ELEMENT_BYTES, Scope, axis_of, collective_of, kind_of, scope_of, shortened
from simulator.traces.recorded import Recorded, Span

Times = NDArray[np.int64]

_NCCL = re.compile(r"nccl|rccl", re.I)
_ON_CPU = re.compile(r"^(gloo|mpi|ucc):(\w+)$")
_CALL = re.compile(r"^(_?c10d(_functional)?::|record_param_comms)")
_FUNCTIONAL = "_c10d_functional::"
_AUTOGRAD = "autograd::engine::evaluate_function"
_LOADING = "enumerate(DataLoader)"
_OVER_PCIE = re.compile(r"memcpy (htod|dtoh|host)", re.I)


class Step(NamedTuple):
    """One step of one rank: its bounds, and rows in ns since the epoch."""

    rank: int
    start_ns: int
    end_ns: int
    rows: pd.DataFrame


class Row(NamedTuple):
    """One row before its pass is known; `called_ns` and `tid` say when and on which thread the host called it."""

    stream: str
    start_ns: int
    end_ns: int
    op: str
    bytes: float
    called_ns: int
    tid: int


def step_of(recorded: Recorded, index: int, strategy: Strategy | None) -> Step:
    """Return a step of what a rank recorded; `strategy`, if given, tells the axis of groups that have no name."""
    if index not in recorded.steps:
        numbers = ", ".join(map(str, sorted(recorded.steps)))
        raise BadInput(f"{recorded.path}: has no ProfilerStep#{index}; it has {numbers}")
    mark = recorded.steps[index]
    if recorded.device:
        start, end, rows = _device_rows(recorded, mark, strategy)
    elif recorded.has_devices:
        raise BadInput(
            f"{recorded.path}: has no kernels though a GPU is there; profile with ProfilerActivity.CUDA among the activities"
        )
    else:
        start, end, rows = mark.start_ns, mark.end_ns, _operator_rows(recorded, mark, strategy)
    if not rows:
        raise BadInput(f"{recorded.path}: {mark.name} holds no kernel and no operator")
    frame = pd.DataFrame(rows, columns=list(Row._fields))
    frame["start_ns"], frame["end_ns"] = frame["start_ns"].clip(start, end), frame["end_ns"].clip(start, end)
    frame = frame[frame["end_ns"] > frame["start_ns"]].reset_index(drop=True)
    frame = _with_scopes(frame, recorded, mark)
    frame = pd.concat([frame, _gaps(frame, recorded, start, end)], ignore_index=True)
    frame[["start_ns", "end_ns"]] += recorded.base_ns
    return Step(recorded.rank, start + recorded.base_ns, end + recorded.base_ns, frame)


# ---- on a GPU


def _device_rows(recorded: Recorded, mark: Span, strategy: Strategy | None) -> tuple[int, int, list[Row]]:
    """Return the bounds of a step on the device, and what ran between them.

    A step ends when the host has ended it and all that was launched until then is done; there the next one begins.
    """
    _, threads, launched, correlation = recorded.launches.columns()
    order = np.argsort(correlation, kind="stable")
    place = np.searchsorted(correlation[order], [s.correlation for s in recorded.device])
    place = order[np.minimum(place, len(order) - 1)] if len(order) else place
    starts, ends = (np.array([getattr(s, f) for s in recorded.device]) for f in ("start_ns", "end_ns"))
    called, tids = starts.copy(), np.full(len(starts), mark.tid)
    if len(order):
        known = correlation[place] == [s.correlation for s in recorded.device]
        called[known], tids[known] = launched[place[known]], threads[place[known]]

    def done(time: int) -> int:
        return int(max(time, ends[called < time].max(initial=time)))

    start, end = done(mark.start_ns), done(mark.end_ns)
    annotated = _annotated_collectives(recorded)
    rows = [
        _device_row(span, int(called[i]), int(tids[i]), annotated, strategy)
        for i, span in enumerate(recorded.device) if starts[i] < end and ends[i] > start
    ]
    return start, end, rows


def _device_row(
    span: Span, called_ns: int, tid: int, annotated: Callable[[int, int], str], strategy: Strategy | None
) -> Row:
    def row(stream: str, op: str, size: float = 0.0) -> Row:
        return Row(stream, span.start_ns, span.end_ns, op, size, called_ns, tid)

    if "Collective name" in span.args or _NCCL.search(span.name):
        kind = collective_of(str(span.args.get("Collective name") or annotated(called_ns, tid) or span.name))
        return row(_axis(span.args, kind, strategy), kind, _collective_bytes(span.args))
    if _OVER_PCIE.match(span.name):
        return row("host", f"copy: {shortened(span.name)}")
    return row("compute", f"{kind_of(span.name)}: {shortened(span.name)}")


def _annotated_collectives(recorded: Recorded) -> Callable[[int, int], str]:
    """Return a function from time and thread to the `nccl:all_to_all` around it: old kernels do not say what they do."""
    around: dict[int, list[Span]] = {}
    for span in recorded.annotations:
        if span.name.startswith("nccl:"):
            around.setdefault(span.tid, []).append(span)
    found = {tid: (np.array([s.start_ns for s in spans]), spans)
             for tid, spans in ((tid, sorted(spans, key=lambda s: s.start_ns)) for tid, spans in around.items())}

    def name(time: int, tid: int) -> str:
        starts, spans = found.get(tid, (np.zeros(0), []))
        i = int(np.searchsorted(starts, time, side="right")) - 1
        return spans[i].name if i >= 0 and spans[i].end_ns >= time else ""

    return name


def _axis(args: dict[str, Any], kind: str, strategy: Strategy | None) -> str:
    description = str(args.get("Process Group Description", ""))
    by_name = axis_of(description, "")
    if strategy is None or by_name != "dp" or axis_of(description, "send") == "dp":
        return axis_of(description, kind)
    if kind == "all_to_all" and strategy.ep > 1:
        return "ep"
    ranks = [int(r) for r in re.findall(r"\d+", str(args.get("Process Group Ranks", "")))]
    where = coordinates(strategy, np.array(ranks or [0]))
    spread = [axis for axis in ORDER if len(np.unique(where[axis])) > 1]
    return spread[0] if len(spread) == 1 else axis_of("", kind)


def _collective_bytes(args: dict[str, Any]) -> float:
    """Return the whole buffer, as `profiles.collectives` counts it: what goes in or what comes out, the larger."""
    elements = max((n for key in ("In msg nelems", "Out msg nelems") if isinstance(n := args.get(key), int)), default=0)
    return float(elements * ELEMENT_BYTES.get(str(args.get("dtype", "")).lower(), 0))


# ---- without one


def _operator_rows(recorded: Recorded, mark: Span, strategy: Strategy | None) -> list[Row]:
    """Return operators that no other called, calls of collectives, and the collectives themselves on their axes."""
    names = list(recorded.ops.names)
    name, tid, start, end = recorded.ops.columns()
    of_step = (start >= mark.start_ns) & (start < mark.end_ns)
    autograd = np.isin(name, [i for n, i in recorded.ops.names.items() if n.startswith(_AUTOGRAD)])
    calls = np.isin(name, [i for n, i in recorded.ops.names.items() if _CALL.match(n)])
    rows: list[Row] = []
    begun: list[tuple[int, bool]] = []
    for thread in {mark.tid, *np.unique(tid[of_step & autograd]).tolist()}:
        mine = of_step & (tid == thread)
        inner = _outermost(np.flatnonzero(mine & calls), start, end)
        begun += [(int(start[i]), names[name[i]].startswith(_FUNCTIONAL)) for i in inner]
        rows += [Row("host", int(start[i]), int(end[i]), names[name[i]], 0.0, int(start[i]), thread) for i in inner]
        for i in _outermost(np.flatnonzero(mine & ~calls), start, end):
            first, last = np.searchsorted(start[inner], [start[i], end[i]])
            op = f"{kind_of(names[name[i]])}: {shortened(names[name[i]])}"
            cuts = [int(start[i]), *(int(t) for k in inner[first:last] for t in (start[k], end[k])), int(end[i])]
            rows += [Row("compute", a, b, op, 0.0, a, thread) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    begun.sort()
    for span in recorded.annotations:
        if (found := _ON_CPU.match(span.name)) and span.start_ns < mark.end_ns and span.end_ns > mark.start_ns:
            kind = collective_of(found[2])
            i = bisect_right(begun, (span.start_ns, True)) - 1
            called_ns, functional = begun[i] if i >= 0 else (span.start_ns, False)
            axis = _axis_on_cpu(kind, functional, strategy)
            rows.append(Row(axis, span.start_ns, span.end_ns, kind, _tensor_bytes(span.args), called_ns, mark.tid))
    return rows


def _outermost(where: NDArray[Any], start: Times, end: Times) -> NDArray[Any]:
    """Return of properly nested spans (indices) those that no other contains, in order."""
    where = where[np.lexsort((-end[where], start[where]))]
    reach = np.maximum.accumulate(end[where])
    return where[np.concatenate([[True], start[where][1:] >= reach[:-1]])] if len(where) else where


def _axis_on_cpu(kind: str, functional: bool, strategy: Strategy | None) -> str:
    """Return the axis of a collective whose group the trace does not name: gloo's.

    By the strategy where only one axis has them; else what was called as a functional collective (DTensor's) is tp's.
    """
    if kind in ("send", "recv"):
        return "pp"
    if strategy is not None:
        wide = [axis for axis in ("tp", "cp", "ep", "dp") if getattr(strategy, axis) > 1]
        if len(wide) == 1:
            return wide[0]
    return "tp" if functional else axis_of("", kind)


def _tensor_bytes(args: dict[str, Any]) -> float:
    """Return the bytes of the tensors that a recorded call took (with record_shapes)."""
    dims, types = args.get("Input Dims") or [], args.get("Input type") or []
    return float(sum(np.prod(d) * ELEMENT_BYTES.get(str(t).lower().removeprefix("c10::"), 0)
                     for d, t in zip(dims, types, strict=False) if d and all(isinstance(n, int) for n in d)))


# ---- on both


def _with_scopes(frame: pd.DataFrame, recorded: Recorded, mark: Span) -> pd.DataFrame:
    """Return rows with pass, micro-batch and layer, each of the innermost annotation that says it."""
    called, tid = frame["called_ns"].to_numpy(np.int64), frame["tid"].to_numpy(np.int64)
    scopes = [(span, scope_of(span.name)) for span in recorded.annotations]

    def said(field: str, absent: Any) -> NDArray[Any]:
        result = np.full(len(frame), absent, dtype=object)
        for threads in (tid, np.full(len(frame), mark.tid)):
            for thread in np.unique(threads):
                having = [(s, getattr(c, field)) for s, c in scopes if s.tid == thread and getattr(c, field) != absent]
                at = np.flatnonzero((threads == thread) & (result == absent))
                inner = innermost(np.array([(s.start_ns, s.end_ns) for s, _ in having]).reshape(-1, 2), called[at])
                result[at] = np.array([*(value for _, value in having), absent], dtype=object)[inner]
        return result

    nothing = Scope()
    passes = said("pass_", nothing.pass_)
    names, threads, start, end = recorded.ops.columns()
    calls = np.isin(names, [i for n, i in recorded.ops.names.items() if n.startswith(_AUTOGRAD)])
    calls &= (start >= mark.start_ns) & (start < mark.end_ns)
    back = np.zeros(len(frame), dtype=bool)
    for thread in np.unique(threads[calls]):
        mine = _outermost(np.flatnonzero(calls & (threads == thread)), start, end)
        at = tid == thread
        back[at] = innermost(np.stack([start[mine], end[mine]], axis=1), called[at]) >= 0
    after = called >= end[calls].max() if calls.any() else np.zeros(len(frame), dtype=bool)
    passes = np.where(passes != nothing.pass_, passes, np.where(back, "B", np.where(after, "U", "F")))
    return frame.drop(columns=["called_ns", "tid"]).assign(
        **{"pass": passes.astype(str), "layer": said("layer", nothing.layer).astype(np.int64)},
        microbatch=said("microbatch", nothing.microbatch).astype(np.int64),
    )


def innermost(spans: Times, at: Times) -> NDArray[np.int64]:
    """Return for each time the index of the innermost of nested spans [n, 2] around it, or -1."""
    edges = sorted([(int(s), 1, i) for i, (s, _) in enumerate(spans)] + [(int(e), 0, i) for i, (_, e) in enumerate(spans)])
    times, inside, open_ = np.zeros(len(edges), np.int64), np.full(len(edges) + 1, -1), []
    for k, (time, opens, i) in enumerate(edges):
        if opens:
            open_.append(i)
        elif i in open_:
            open_.remove(i)
        times[k], inside[k] = time, open_[-1] if open_ else -1
    return inside[np.searchsorted(times, at, side="right") - 1]


def _gaps(frame: pd.DataFrame, recorded: Recorded, start: int, end: int) -> pd.DataFrame:
    """Return what no row covers: the host's. An open send of a CPU's covers nothing."""
    covers = frame[(frame["op"] != "send") | bool(recorded.device)]
    busy = union(covers[["start_ns", "end_ns"]].to_numpy(np.int64))
    edges = np.concatenate([[start], busy.ravel(), [end]]).reshape(-1, 2)
    edges = edges[edges[:, 1] > edges[:, 0]]
    loading = union(np.array([s[2:4] for s in recorded.annotations if s.name.startswith(_LOADING)], np.int64).reshape(-1, 2))
    middle = edges.mean(axis=1)
    inside = np.searchsorted(loading[:, 0], middle, side="right") - 1
    waits = (inside >= 0) & (middle < loading[inside, 1]) if len(loading) else np.zeros(len(edges), dtype=bool)
    return pd.DataFrame({
        "stream": "host", "start_ns": edges[:, 0], "end_ns": edges[:, 1],
        "op": np.where(waits, "data loading", "nothing runs"), "bytes": 0.0, "pass": "", "layer": -1, "microbatch": -1,
    })
