"""Timelines: who did what, when. A replay's and a measured run's have the same columns, so comparing is a join.

Written as a trace, a timeline opens in ui.perfetto.dev and chrome://tracing; `simulator.traces` reads traces back.
"""

from __future__ import annotations

import gzip
import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profiles.files import check_target, whole

MEANINGS = {
    "rank": "who", "stream": "which lane of the rank: compute, an axis of communication, or host",
    "start_s": "from the start of the step (of a run: of all steps)", "end_s": "the same", "op": "what was done",
    "pass": "F, B, I, W or U (update)", "layer": "-1: all layers of a stage",
    "microbatch": "-1: all of them", "bytes": "moved or sent, 0 where unknown", "source": "where the seconds come from",
}
COLUMNS = tuple(MEANINGS)
STREAMS = ("compute", "tp", "cp", "ep", "dp", "pp", "host")
"""Lanes of a rank: computation, communication by axis, and what no device sees."""
CAUSES = {
    "compute": "compute", "tp": "exposed_tp", "cp": "exposed_cp", "ep": "exposed_ep", "dp": "exposed_dp",
    "pp": "exposed_pp", "host": "other",
}
PRODUCER = "headway"
"""What `otherData` of our own traces names as their maker."""
_SEND = r"^send to (\d+)$"
_TAKES = {"F": "F", "B": "B", "I": "B"}
"""Which way a pass's sends and receives go: forward, or back with whole or input gradients."""
_EVENTS_A_WRITE = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One step of the distinct ranks; `rows` has the columns above, times from the start of the step."""

    rows: pd.DataFrame
    step_time_s: float

    def rank(self, rank: int) -> pd.DataFrame:
        """Return the rows of one rank."""
        return self.rows[self.rows["rank"] == rank]


def union(spans: NDArray[Any]) -> NDArray[Any]:
    """Return spans [n, 2] sorted and merged where they touch."""
    if len(spans) == 0:
        return spans.reshape(0, 2)
    spans = spans[np.argsort(spans[:, 0])]
    reach = np.maximum.accumulate(spans[:, 1])
    fresh = np.concatenate([[True], spans[1:, 0] > reach[:-1]])
    ends = reach[np.concatenate([np.flatnonzero(fresh)[1:] - 1, [len(spans) - 1]])]
    return np.stack([spans[fresh, 0], ends], axis=1)


def exposed_s(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return how long each row of communication has no computation beside it; NaN for other rows.

    It is its own rank's computation that hides a collective, and its receiver's that hides a send.
    """
    owner = _receivers(rows).fillna(rows["rank"]).to_numpy(np.int64)
    spans, stream = rows[["start_s", "end_s"]].to_numpy(float), rows["stream"].to_numpy(str)
    result = np.full(len(rows), np.nan)
    waits = np.flatnonzero(~np.isin(stream, ("compute", "host")))
    result[waits] = spans[waits, 1] - spans[waits, 0]
    computes = np.flatnonzero(stream == "compute")
    computed = {rank: union(spans[at]) for rank, at in pd.Series(computes).groupby(rows["rank"].to_numpy()[computes])}
    for rank, at in pd.Series(waits).groupby(owner[waits]):
        if (busy := computed.get(rank)) is not None:
            result[at] -= _covered(busy, spans[at, 1]) - _covered(busy, spans[at, 0])
    return np.where(result < 0, 0.0, result)


def _covered(busy: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
    """Return how much of the time until t lies in sorted spans that do not overlap."""
    before = np.concatenate([[0.0], np.cumsum(busy[:, 1] - busy[:, 0])])
    i = np.searchsorted(busy[:, 0], t, side="right")
    return before[i] - np.where(i > 0, np.maximum(0.0, busy[i - 1, 1] - t), 0.0)


def _receivers(rows: pd.DataFrame) -> pd.Series[Any]:
    """Return the rank that each send goes to; NaN for what is no send."""
    codes, ops = pd.factorize(rows["op"])
    found = pd.to_numeric(pd.Series(ops, dtype=object).astype(str).str.extract(_SEND)[0]).to_numpy(float)
    return pd.Series(found[codes] if len(ops) else np.nan, index=rows.index).where(rows["stream"] == "pp")


def chrome_trace(timeline: Timeline, names: Mapping[int, str], memory: pd.DataFrame | None = None) -> str:
    """Return a timeline in the Trace Event Format (JSON object form), as `write_trace` writes it."""
    return "".join(_trace_text(timeline, names, memory))


def write_trace(
    path: str | Path, timeline: Timeline, names: Mapping[int, str], memory: pd.DataFrame | None = None
) -> Path:
    """Write a trace that ui.perfetto.dev and chrome://tracing open, whole or not at all; gzip where the name ends in .gz.

    A process for each rank, in the order of `names` and called by them; a track for each stream; a flow from each send to
    what waits for it. `memory` has the columns rank, time_s, kind, bytes: so many bytes of a kind from that time on.
    """
    path = check_target(path)
    with whole(path) as file:
        packed = gzip.GzipFile("", "wb", 6, file, mtime=0) if path.suffix == ".gz" else file
        for text in _trace_text(timeline, names, memory):
            packed.write(text.encode("utf-8"))
        if packed is not file:
            packed.close()
    return path


def _trace_text(timeline: Timeline, names: Mapping[int, str], memory: pd.DataFrame | None) -> Iterator[str]:
    """Yield the text of a trace, some thousand events at a time, ranks one after the other."""
    head = {"displayTimeUnit": "ms", "otherData": {"producer": PRODUCER, "step_time_s": timeline.step_time_s}}
    yield json.dumps(head)[:-1] + ', "traceEvents": [\n'
    events = _placed(timeline.rows, names)
    ranks = set(events["rank"]) | set(memory["rank"] if memory is not None else ())
    order = [*names, *sorted(ranks - set(names))]
    yield ",\n".join(_metadata(events, order, names))
    flows = _flows(events)
    for begin in range(0, len(events), _EVENTS_A_WRITE):
        slices = _slices(events.iloc[begin : begin + _EVENTS_A_WRITE])
        yield "".join(f",\n{text}{flows.get(i, '')}" for i, text in enumerate(slices, begin))
    if memory is not None and len(memory):
        yield "".join(f",\n{text}" for text in _counters(memory, order))
    yield "\n]}\n"


def _placed(rows: pd.DataFrame, names: Mapping[int, str]) -> pd.DataFrame:
    """Return rows with whole nanoseconds and tracks, sorted as they are written.

    Slices of a track may not overlap, so what overlaps in a stream goes on further tracks of it.
    """
    unknown = set(rows["stream"].unique()) - set(STREAMS)
    if unknown:
        raise ValueError(f"stream: {min(unknown)!r} is none of {', '.join(STREAMS)}")
    order = ["place", "rank", "tid", "start_ns", "end_ns"]
    start_ns, end_ns = (np.rint(rows[c].to_numpy(float) * 1e9).astype(np.int64) for c in ("start_s", "end_s"))
    events = rows.assign(
        place=rows["rank"].map({rank: i for i, rank in enumerate(names)}).fillna(len(names)),
        tid=rows["stream"].map({stream: i + 1 for i, stream in enumerate(STREAMS)}).astype(np.int64),
        start_ns=start_ns, end_ns=end_ns, to=_receivers(rows),
        # of the whole nanoseconds, so that a trace that is read and written again is the same
        exposed_us=exposed_s(rows.assign(start_s=start_ns, end_s=end_ns)) / 1e3,
    ).sort_values(order, kind="stable", ignore_index=True)
    tid, start, end = (events[c].to_numpy(copy=True) for c in ("tid", "start_ns", "end_ns"))
    for at in events.groupby(["rank", "tid"]).indices.values():
        if (start[at[1:]] < end[at[:-1]]).any():
            tid[at] += len(STREAMS) * _lanes(start[at].tolist(), end[at].tolist())
    return events.assign(tid=tid).sort_values(order, kind="stable", ignore_index=True)


def _lanes(starts: list[int], ends: list[int]) -> NDArray[np.int64]:
    """Return the lowest lane that is free for each span, in order of their starts."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []
    lanes = []
    for start, end in zip(starts, ends, strict=True):
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, lane))
        lanes.append(lane)
    return np.array(lanes)


def _metadata(events: pd.DataFrame, order: list[int], names: Mapping[int, str]) -> Iterator[str]:
    def event(name: str, pid: int, args: dict[str, Any], **place: int) -> str:
        return json.dumps({"ph": "M", "pid": pid, **place, "name": name, "args": args})

    tracks = events.groupby("rank")["tid"].unique()
    for place, rank in enumerate(order):
        yield event("process_name", rank, {"name": names.get(rank, f"rank {rank}")})
        yield event("process_sort_index", rank, {"sort_index": place})
        for tid in sorted(tracks.get(rank, ()), key=lambda tid: ((tid - 1) % len(STREAMS), tid)):
            lane, stream = divmod(int(tid) - 1, len(STREAMS))
            name = STREAMS[stream] + (f" {lane + 1}" if lane else "")
            yield event("thread_name", rank, {"name": name}, tid=int(tid))
            yield event("thread_sort_index", rank, {"sort_index": 1000 * stream + lane}, tid=int(tid))


def _slices(events: pd.DataFrame) -> Iterator[str]:
    """Return the slices of events: few fragments, each written once, then joined."""
    place = _fragments(
        events, ["rank", "tid", "stream"], lambda rank, tid, stream: f'"pid":{rank},"tid":{tid},"cat":"{stream}"')
    called = _fragments(events, ["pass", "microbatch"], lambda pass_, m: _quoted(prefix(pass_, m)))
    passes = _fragments(events, ["pass", "microbatch"], lambda pass_, m: (
        f'"pass":"{_quoted(pass_)}"' + (f',"microbatch":{m}' if m >= 0 else "")))
    rest = _fragments(events, ["layer", "bytes", "source"], lambda layer, size, source: (
        (f',"layer":{layer}' if layer >= 0 else "") + (f',"bytes":{_number(size)}' if size > 0 else "")
        + f',"source":"{_quoted(source)}"'))
    start, end = events["start_ns"].to_numpy(), events["end_ns"].to_numpy()
    exposed = [f',"exposed_us":{us:.3f}' if us == us else "" for us in events["exposed_us"].tolist()]
    return map(
        '{"ph":"X",%s,"ts":%.3f,"dur":%.3f,"name":"%s%s","args":{%s%s%s}}'.__mod__,
        zip(place, (start / 1e3).tolist(), ((end - start) / 1e3).tolist(), called, _fragments(events, ["op"], _quoted),
            passes, rest, exposed, strict=True),
    )


def prefix(pass_: str, microbatch: int) -> str:
    """Return what stands before the `op` in the name of a slice: pass and micro-batch.

    Perfetto colours slices by their names without the digits: so by pass and part.
    """
    called = f"{pass_}{microbatch if microbatch >= 0 else ''}"
    return f"{called} " if called else ""


def _fragments(events: pd.DataFrame, columns: list[str], write: Callable[..., str]) -> list[str]:
    """Return what `write` makes of some columns, row by row; it is called once for each distinct value."""
    distinct = events.drop_duplicates(columns)[columns]
    written = [write(*row) for row in distinct.itertuples(index=False, name=None)]
    return [written[i] for i in events.groupby(columns, sort=False, dropna=False).ngroup().tolist()]


def _quoted(text: str) -> str:
    return json.dumps(text)[1:-1]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _flows(events: pd.DataFrame) -> dict[int, str]:
    """Return, by the slice that it stands behind, the start or end of each flow: from a send to what waits for it.

    That is the first computation of the same micro-batch and direction on the receiver after the arrival.
    """
    events = pd.DataFrame({c: events[c] for c in ("rank", "tid", "stream", "start_ns", "end_ns", "microbatch", "to")} | {
        "way": events["pass"].map(_TAKES), "row": np.arange(len(events))}).dropna(subset=["way"])
    sends, takers = events[events["to"].notna()], events[events["stream"] == "compute"]
    pairs = pd.merge_asof(
        sends.assign(at=sends["end_ns"], by=sends["to"].astype(np.int64)).sort_values("at", kind="stable"),
        takers.assign(at=takers["start_ns"], by=takers["rank"]).sort_values("at", kind="stable"),
        on="at", by=["by", "way", "microbatch"], suffixes=("", "_taker"), direction="forward",
    ).dropna(subset=["row_taker"]).sort_values("row")
    flows: dict[int, str] = {}
    shape = ',\n{"ph":"%s","pid":%d,"tid":%d,"ts":%.3f,"id":%d,"cat":"pp","name":"send"%s}'
    for end, phase, more in (("", "s", ""), ("_taker", "f", ',"bp":"e"')):
        columns = (pairs[column + end].tolist() for column in ("row", "rank", "tid", "start_ns"))
        for i, (row, rank, tid, start_ns) in enumerate(zip(*columns, strict=True)):
            flows[int(row)] = flows.get(int(row), "") + shape % (phase, rank, tid, start_ns / 1e3, i, more)
    return flows


def _counters(memory: pd.DataFrame, order: list[int]) -> Iterator[str]:
    """Yield a counter for each time at which something changes, with every kind in it (as chrome://tracing needs)."""
    kinds = sorted(memory["kind"].unique())
    table = memory.pivot_table(index=["rank", "time_s"], columns="kind", values="bytes", aggfunc="last").sort_index()
    table = table.groupby(level="rank").ffill().fillna(0.0)[kinds]
    labels = [f'"{_quoted(kind)}":' for kind in kinds]
    for rank in order:
        if rank in table.index.get_level_values("rank"):
            own = table.loc[rank]
            for time_s, values in zip(own.index.tolist(), own.to_numpy(np.int64).tolist(), strict=True):
                args = ",".join(f"{label}{value}" for label, value in zip(labels, values, strict=True))
                yield f'{{"ph":"C","pid":{rank},"ts":{1e6 * time_s:.3f},"name":"memory_bytes","args":{{{args}}}}}'
