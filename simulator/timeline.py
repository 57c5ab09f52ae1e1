"""Timelines: who did what, when. A replay's and a measured run's have the same columns, so comparing is a join."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

COLUMNS = ("rank", "stream", "start_s", "end_s", "op", "pass", "layer", "microbatch", "bytes", "source")
STREAMS = ("compute", "tp", "cp", "ep", "dp", "pp", "host")
"""Lanes of a rank: computation, communication by axis, and what no device sees."""
CAUSES = {
    "compute": "compute", "tp": "exposed_tp", "cp": "exposed_cp", "ep": "exposed_ep", "dp": "exposed_dp",
    "pp": "exposed_pp", "host": "other",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """One step of the distinct ranks; `rows` has the columns above, times from the start of the step."""

    rows: pd.DataFrame
    step_time_s: float

    def rank(self, rank: int) -> pd.DataFrame:
        """Return the rows of one rank."""
        return self.rows[self.rows["rank"] == rank]


def timeline_from_rows(rows: list[tuple[Any, ...]]) -> Timeline:
    """Return a timeline from tuples in the order of the columns; its end is the step's time."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return Timeline(rows=frame, step_time_s=float(frame["end_s"].max()))


def trace_events(timeline: Timeline, names: dict[int, str]) -> list[dict[str, Any]]:
    """Return Chrome trace events: a process per rank, a thread per stream, flows from sender to receiver."""
    events: list[dict[str, Any]] = []
    for rank, name in names.items():
        events.append({"ph": "M", "pid": rank, "name": "process_name", "args": {"name": name}})
        events += [
            {"ph": "M", "pid": rank, "tid": i, "name": "thread_name", "args": {"name": stream}}
            for i, stream in enumerate(STREAMS)
        ]
    for i, row in enumerate(timeline.rows.itertuples(index=False)):
        record = dict(zip(COLUMNS, row, strict=True))
        start, end, stream = float(record["start_s"]) * 1e6, float(record["end_s"]) * 1e6, str(record["stream"])
        args = {"pass": record["pass"], "microbatch": int(record["microbatch"]), "source": record["source"]}
        if record["layer"] >= 0:
            args["layer"] = int(record["layer"])
        if record["bytes"] > 0:
            args["bytes"] = float(record["bytes"])
        common = {"pid": int(record["rank"]), "tid": STREAMS.index(stream)}
        events.append({"ph": "X", "name": record["op"], "cat": stream, "ts": start, "dur": end - start,
                       "args": args} | common)
        if stream == "pp" and record["pass"] != "U":
            to = int(str(record["op"]).rsplit(" ", 1)[1])
            flow = {"name": "send", "cat": "pp", "id": i}
            events.append({"ph": "s", "ts": start} | flow | common)
            # the receiver's slice begins no earlier than the arrival; bind to the enclosing or next slice
            events.append({"ph": "f", "ts": end, "pid": to, "tid": STREAMS.index("compute")} | flow)
    return events


def chrome_trace(timeline: Timeline, names: dict[int, str]) -> str:
    """Return the trace as JSON that ui.perfetto.dev and chrome://tracing open."""
    document = {"displayTimeUnit": "ms", "traceEvents": trace_events(timeline, names)}
    return json.dumps(document, separators=(",", ":"))
