"""Exported traces: every event is of the Trace Event Format, and the trace says what the timeline says."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.cost import cost_model
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from simulator.replay import rank_names, replay
from simulator.strategy import Strategy
from simulator.timeline import COLUMNS, STREAMS, Timeline, chrome_trace, exposed_s, union, write_trace
from simulator.traces import read_trace
from simulator.workload import build_workload

STRATEGY = Strategy(dp=2, tp=2, pp=4, chunks=2, schedule="Interleaved1F1B", num_microbatches=8, seq_len=1024, zero=1)
MEMORY = pd.DataFrame({
    "rank": [0, 0, 0, 0, 4], "time_s": [0.0, 0.0, 0.5, 0.25, 0.0],
    "kind": ["weights", "activations", "activations", "weights", "weights"], "bytes": [4e9, 1e9, 3e9, 5e9, 7.0],
})


def replayed(strategy: Strategy = STRATEGY) -> Timeline:
    return replay(build_workload(load_model("gpt2-xl"), strategy), cost_model(load_cluster("dgx-h100:2")))


def timeline_of(rows: list[tuple[Any, ...]]) -> Timeline:
    """Return a timeline from tuples in the order of the columns; its end is the step's time."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return Timeline(rows=frame, step_time_s=float(frame["end_s"].max()))


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return replayed()


# ---- the format, from its description ("Trace Event Format", Google, 2016): fields of each phase and their types

NUMBER = (int, float)
FIELDS: dict[str, dict[str, Any]] = {
    "M": {"pid": int, "name": str, "args": dict},
    "X": {"pid": int, "tid": int, "ts": NUMBER, "dur": NUMBER, "name": str, "cat": str, "args": dict},
    "s": {"pid": int, "tid": int, "ts": NUMBER, "name": str, "cat": str, "id": int},
    "f": {"pid": int, "tid": int, "ts": NUMBER, "name": str, "cat": str, "id": int, "bp": str},
    "C": {"pid": int, "ts": NUMBER, "name": str, "args": dict},
}
METADATA = {"process_name": ("name", str), "process_labels": ("labels", str), "process_sort_index": ("sort_index", int),
            "thread_name": ("name", str), "thread_sort_index": ("sort_index", int)}


def check_format(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a document in the JSON object format, each checked."""
    assert document["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = document["traceEvents"]
    named: set[tuple[int, int]] = set()
    for event in events:
        fields = FIELDS[event["ph"]]
        assert set(fields) <= set(event) <= {*fields, "ph", "tid"}, event
        for field, kind in fields.items():
            assert isinstance(event[field], kind) and not isinstance(event[field], bool), event
        assert event.get("ts", 0) >= 0 and event.get("dur", 0) >= 0, event
        if event["ph"] == "M":
            key, kind = METADATA[event["name"]]
            assert isinstance(event["args"][key], kind)
            if event["name"] == "thread_name":
                named.add((event["pid"], event["tid"]))
        if event["ph"] == "C":
            assert event["args"] and all(isinstance(v, NUMBER) for v in event["args"].values())
    tracks: dict[tuple[int, int], float] = {}
    for event in events:
        if event["ph"] == "X":
            track = event["pid"], event["tid"]
            assert track in named, "a slice stands on a track that has a name"
            # slices of a track must nest; ours stand one after the other
            assert ns(event["ts"]) >= tracks.get(track, 0), event
            tracks[track] = ns(event["ts"]) + ns(event["dur"])
    return events


def ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def check_flows(events: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the slices at both ends of each flow: each id once as start and once as end, both inside a slice."""
    ends = {ph: {e["id"]: e for e in events if e["ph"] == ph} for ph in "sf"}
    assert set(ends["s"]) == set(ends["f"])
    assert 2 * len(ends["s"]) == sum(e["ph"] in "sf" for e in events)
    slices: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X":
            slices.setdefault((event["pid"], event["tid"]), []).append(event)

    def around(flow: dict[str, Any]) -> dict[str, Any]:
        found = [e for e in slices[flow["pid"], flow["tid"]]
                 if ns(e["ts"]) <= ns(flow["ts"]) < max(ns(e["ts"]) + ns(e["dur"]), ns(e["ts"]) + 1)]
        assert len(found) == 1, flow
        return found[0]

    pairs = [(around(ends["s"][i]), around(ends["f"][i])) for i in sorted(ends["s"])]
    assert all(end["bp"] == "e" for end in ends["f"].values())
    return pairs


def slices_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in events if e["ph"] == "X"]


def op_of(event: dict[str, Any]) -> str:
    """Return the name of a slice without its first word, which is the pass and the micro-batch, where it has one."""
    args = event["args"]
    return str(event["name"].split(" ", 1)[1] if args["pass"] or "microbatch" in args else event["name"])


# ---- what the trace says


def test_a_replay_is_a_valid_trace_with_all_its_slices(timeline: Timeline) -> None:
    events = check_format(json.loads(chrome_trace(timeline, rank_names(STRATEGY))))
    found = pd.DataFrame([(e["pid"], e["cat"], e["dur"] / 1e6) for e in slices_of(events)], columns=["rank", "stream", "s"])
    rows = timeline.rows.assign(s=timeline.rows["end_s"] - timeline.rows["start_s"])
    expected = rows.groupby(["rank", "stream"])["s"].agg(["count", "sum"])
    got = found.groupby(["rank", "stream"])["s"].agg(["count", "sum"])
    assert (got["count"] == expected["count"]).all() and len(got) == len(expected)
    np.testing.assert_allclose(got["sum"], expected["sum"], rtol=1e-4, atol=1e-9 * len(rows))


def test_each_rank_and_stream_is_a_named_track_in_order(timeline: Timeline) -> None:
    events = json.loads(chrome_trace(timeline, rank_names(STRATEGY)))["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == rank_names(STRATEGY)
    order = {e["pid"]: e["args"]["sort_index"] for e in events if e["name"] == "process_sort_index"}
    assert sorted(order, key=order.__getitem__) == list(rank_names(STRATEGY))
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for event in slices_of(events):
        assert threads[event["pid"], event["tid"]].split()[0] == event["cat"]
    places = {(e["pid"], e["tid"]): e["args"]["sort_index"] for e in events if e["name"] == "thread_sort_index"}
    assert set(places) == set(threads)
    for pid in processes:
        streams = [threads[t].split()[0] for t in sorted((t for t in places if t[0] == pid), key=places.__getitem__)]
        assert streams == sorted(streams, key=STREAMS.index)


def test_flows_are_the_sends(timeline: Timeline) -> None:
    events = check_format(json.loads(chrome_trace(timeline, rank_names(STRATEGY))))
    pairs = check_flows(events)
    rows = timeline.rows
    sends = rows[rows["op"].str.startswith("send to")]
    p, v, m = STRATEGY.pp, STRATEGY.chunks, STRATEGY.num_microbatches
    assert len(pairs) == len(sends) == 2 * (p * v - 1) * m
    taken = set()
    for send, received in pairs:
        assert send["cat"] == "pp" and received["cat"] == "compute"
        assert op_of(send) == f"send to {received['pid']}"
        assert all(send["args"][k] == received["args"][k] for k in ("pass", "microbatch"))
        assert ns(received["ts"]) >= ns(send["ts"]) + ns(send["dur"])
        taken.add((received["pid"], received["ts"]))
    assert len(taken) == len(pairs), "no slice receives two sends"


@pytest.mark.parametrize(("schedule", "chunks"), [("GPipe", 1), ("LoopedBFS", 2), ("ZBH1", 1), ("ZBV", 2)])
def test_every_send_of_every_schedule_has_its_flow(schedule: str, chunks: int) -> None:
    strategy = replace(STRATEGY, schedule=schedule, chunks=chunks)
    rows = replayed(strategy).rows
    pairs = check_flows(check_format(json.loads(chrome_trace(replayed(strategy), rank_names(strategy)))))
    assert len(pairs) == rows["op"].str.startswith("send to").sum() > 0
    assert len({(received["pid"], received["ts"]) for _, received in pairs}) == len(pairs)


def test_slices_say_what_their_rows_say(timeline: Timeline) -> None:
    events = json.loads(chrome_trace(timeline, {}))["traceEvents"]
    rows = timeline.rows.sort_values(["rank", "start_s", "stream"], ignore_index=True)
    slices = sorted(slices_of(events), key=lambda e: (e["pid"], e["ts"], e["cat"]))
    for row, event in zip(rows.to_dict("records")[:400], slices, strict=False):
        args = event["args"]
        assert (event["pid"], event["cat"], op_of(event), args["source"]) == tuple(
            row[c] for c in ("rank", "stream", "op", "source"))
        for column, absent in (("pass", ""), ("layer", -1), ("microbatch", -1), ("bytes", 0)):
            assert args.get(column, absent) == row[column]


def test_a_part_and_its_pass_are_one_name_but_for_numbers() -> None:
    """Perfetto colours slices by name without its digits: forward and backward of all layers must differ."""
    rows = [(0, "compute", 0.0, 1.0, "layer 3", "F", 3, 7, 0.0, "x"), (0, "compute", 1.0, 2.0, "layer 3", "B", 3, 7, 0.0, "x"),
            (0, "compute", 2.0, 3.0, "optimizer", "U", -1, -1, 0.0, "x"), (0, "host", 3.0, 4.0, "gap", "", -1, -1, 0.0, "x")]
    names = [e["name"] for e in slices_of(json.loads(chrome_trace(timeline_of(rows), {}))["traceEvents"])]
    assert names == ["F7 layer 3", "B7 layer 3", "U optimizer", "gap"]


# ---- exposed and hidden

spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=8)


@given(spans, spans)
def test_exposed_is_what_no_computation_covers(compute: list[tuple[int, int]], comm: list[tuple[int, int]]) -> None:
    """Against counting ticks one by one."""
    rows = [(0, "compute", float(a), float(a + n), "c", "F", -1, -1, 0.0, "x") for a, n in compute]
    rows += [(0, "dp", float(a), float(a + n), "r", "B", -1, -1, 0.0, "x") for a, n in comm]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    busy = {t for a, n in compute for t in range(a, a + n)}
    expected = [float(sum(t not in busy for t in range(a, a + n))) for a, n in comm]
    assert exposed_s(frame)[len(compute):].tolist() == expected
    assert np.isnan(exposed_s(frame)[: len(compute)]).all()


@given(spans)
def test_union_covers_the_same_ticks_once(given_spans: list[tuple[int, int]]) -> None:
    merged = union(np.array([(a, a + n) for a, n in given_spans], dtype=float).reshape(-1, 2))
    assert {t for a, b in merged for t in range(int(a), int(b))} == {t for a, n in given_spans for t in range(a, a + n)}
    assert (merged[1:, 0] > merged[:-1, 1]).all()


def test_a_send_is_exposed_where_its_receiver_computes_nothing() -> None:
    rows = [(0, "compute", 0.0, 1.0, "layer 0", "F", 0, 0, 0.0, "x"), (0, "compute", 1.0, 3.0, "layer 0", "F", 0, 1, 0.0, "x"),
            (0, "pp", 1.0, 2.0, "send to 1", "F", -1, 0, 8.0, "x"), (1, "compute", 2.0, 3.0, "layer 1", "F", 1, 0, 0.0, "x"),
            (0, "pp", 3.0, 3.5, "send to 1", "F", -1, 1, 8.0, "x"), (1, "compute", 3.25, 4.0, "other", "B", 1, 0, 0.0, "x"),
            (0, "dp", 3.0, 4.0, "reduce", "B", -1, -1, 8.0, "x")]
    timeline = timeline_of(rows)
    assert exposed_s(timeline.rows).tolist() == pytest.approx([np.nan, np.nan, 1.0, np.nan, 0.25, np.nan, 1.0], nan_ok=True)
    events = json.loads(chrome_trace(timeline, {}))["traceEvents"]
    assert {op_of(e): e["args"]["exposed_us"] for e in slices_of(events) if "exposed_us" in e["args"]} == {
        "send to 1": 0.25e6, "reduce": 1e6}


# ---- what does not fit on one track


def test_slices_that_overlap_get_tracks_of_their_own() -> None:
    rows = [(0, "pp", float(i), float(i) + 2.5, "send", "F", -1, i, 0.0, "x") for i in range(6)]
    events = check_format(json.loads(chrome_trace(timeline_of(rows), {})))
    assert Counter(e["args"]["name"] for e in events if e["name"] == "thread_name") == {"pp": 1, "pp 2": 1, "pp 3": 1}
    assert len(slices_of(events)) == 6


def test_a_track_is_used_again_as_soon_as_it_is_free() -> None:
    rows = [(0, "pp", float(i), float(i) + 2.0, "send", "F", -1, i, 0.0, "x") for i in range(6)]
    events = check_format(json.loads(chrome_trace(timeline_of(rows), {})))
    assert sum(e["name"] == "thread_name" for e in events) == 2


def test_a_send_to_a_rank_that_is_not_shown_has_no_flow() -> None:
    rows = [(0, "compute", 0.0, 1.0, "layer 0", "F", 0, 0, 0.0, "x"), (0, "pp", 1.0, 2.0, "send to 9", "F", -1, 0, 8.0, "x")]
    events = check_format(json.loads(chrome_trace(timeline_of(rows), {})))
    assert check_flows(events) == []


def test_split_backwards_are_received_by_either_half() -> None:
    rows = [(1, "compute", 0.0, 1.0, "layer 1", "I", 1, 0, 0.0, "x"), (1, "compute", 1.0, 2.0, "layer 1", "W", 1, 0, 0.0, "x"),
            (1, "pp", 1.0, 1.5, "send to 0", "I", -1, 0, 8.0, "x"), (0, "compute", 1.5, 2.0, "layer 0", "W", 0, 0, 0.0, "x"),
            (0, "compute", 2.0, 3.0, "layer 0", "B", 0, 0, 0.0, "x")]
    (send, received), = check_flows(check_format(json.loads(chrome_trace(timeline_of(rows), {}))))
    assert send["args"]["pass"] == "I" and received["args"]["pass"] == "B"


# ---- memory


def test_memory_counters_hold_each_kind_until_it_changes(timeline: Timeline) -> None:
    events = check_format(json.loads(chrome_trace(timeline, rank_names(STRATEGY), MEMORY)))
    counters = [(e["pid"], e["ts"], e["args"]) for e in events if e["ph"] == "C"]
    assert counters == [
        (0, 0.0, {"activations": 1_000_000_000, "weights": 4_000_000_000}),
        (0, 250_000.0, {"activations": 1_000_000_000, "weights": 5_000_000_000}),
        (0, 500_000.0, {"activations": 3_000_000_000, "weights": 5_000_000_000}),
        (4, 0.0, {"activations": 0, "weights": 7}),
    ]


# ---- files


def test_files_are_whole_and_the_same_bytes_each_time(tmp_path: Path, timeline: Timeline) -> None:
    names = rank_names(STRATEGY)
    plain = write_trace(tmp_path / "t.json", timeline, names, MEMORY)
    packed = write_trace(tmp_path / "t.json.gz", timeline, names, MEMORY)
    assert plain.read_text() == chrome_trace(timeline, names, MEMORY) == gzip.decompress(packed.read_bytes()).decode()
    first = packed.read_bytes()
    assert first[4:8] == bytes(4), "no time of writing in the header"
    assert write_trace(tmp_path / "t.json.gz", replayed(), names, MEMORY).read_bytes() == first
    assert len(first) < len(plain.read_bytes()) / 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.json", "t.json.gz"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, timeline: Timeline) -> None:
    path = write_trace(tmp_path / "t.json", timeline, {})
    before = path.read_bytes()
    broken = Timeline(rows=timeline.rows.assign(stream="nowhere"), step_time_s=1.0)
    with pytest.raises(ValueError, match="nowhere"):
        write_trace(path, broken, {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["t.json"]
    with pytest.raises(BadInput, match="is a folder"):
        write_trace(tmp_path, timeline, {})


def test_llama_405b_on_16384_gpus_stays_under_50_mb(tmp_path: Path) -> None:
    strategy = Strategy(tp=8, pp=16, dp=128, chunks=8, schedule="Interleaved1F1B", num_microbatches=16, seq_len=8192, zero=1)
    timeline = replay(build_workload(load_model("llama-3.1-405b"), strategy), cost_model(load_cluster("dgx-h100:2048")))
    path = write_trace(tmp_path / "t.json", timeline, rank_names(strategy))
    assert path.stat().st_size < 50e6
    document = json.loads(path.read_text())
    assert {e["pid"] for e in document["traceEvents"]} == set(rank_names(strategy)) and len(rank_names(strategy)) == 16
    assert len(check_flows(check_format(document))) == 2 * (16 * 8 - 1) * 16


# ---- there and back


def sorted_rows(timeline: Timeline) -> pd.DataFrame:
    rows = timeline.rows.assign(start_s=timeline.rows["start_s"].round(9), end_s=timeline.rows["end_s"].round(9))
    return rows.sort_values([*(c for c in COLUMNS if c != "end_s"), "end_s"], ignore_index=True)


def assert_same(back: Timeline, timeline: Timeline) -> None:
    assert back.step_time_s == timeline.step_time_s
    assert tuple(back.rows.columns) == COLUMNS
    assert back.rows.dtypes.to_dict() == timeline.rows.dtypes.to_dict()
    pd.testing.assert_frame_equal(sorted_rows(back), sorted_rows(timeline), check_exact=False, rtol=0, atol=1.1e-9)


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_trace_reads_back_as_the_timeline_it_was_written_from(tmp_path: Path, timeline: Timeline, name: str) -> None:
    path = write_trace(tmp_path / name, timeline, rank_names(STRATEGY), MEMORY)
    back = read_trace([path])
    assert_same(back, timeline)
    again = write_trace(tmp_path / f"again-{name}", back, rank_names(STRATEGY), MEMORY)
    assert again.read_bytes() == path.read_bytes(), "a second trip changes nothing"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
times = st.floats(0, 1e4, allow_nan=False).map(lambda t: round(t, 9))


@given(st.lists(st.tuples(
    st.integers(0, 2**31 - 1), st.sampled_from(STREAMS), times, times, texts, st.sampled_from(["F", "B", "I", "W", "U", ""]),
    st.integers(-1, 200), st.integers(-1, 600), st.sampled_from([0.0, 1.0, 1.5, 3.3554432e7]), texts,
), min_size=1, max_size=6))
def test_any_timeline_goes_there_and_back(rows: list[tuple[Any, ...]]) -> None:
    import tempfile

    rows = [(*row[:2], min(row[2:4]), max(row[2:4]), *row[4:]) for row in rows]
    timeline = timeline_of(rows)
    check_format(json.loads(chrome_trace(timeline, {})))
    with tempfile.TemporaryDirectory() as folder:
        back = read_trace([write_trace(Path(folder) / "t.json", timeline, {})])
    assert_same(back, timeline)
    assert math.isclose(back.rows["end_s"].max(), timeline.step_time_s, abs_tol=1e-9)
