"""The step: who does what, when, rank by rank."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.compare import share, shown
from reports.figures import action_spans, gantt
from reports.figures.gantt import joined
from reports.figures.palette import PASS_COLOURS, STREAM_COLOURS, css, ink_on
from reports.page.findings import Findings
from reports.page.values import Exhibit, Picture, Section, Table
from reports.page.words import PASS_NAMES, plural
from simulator.layout import distinct_ranks
from simulator.strategy import Strategy
from simulator.timeline import Timeline

DRAWN_WHOLE = 48
"""A step of at most this many micro-batches is drawn whole; of a longer one the beginning and the end are drawn."""
DRAWN_MICROBATCHES = 16
TICKS = 1_000_000
"""Ticks of a step in the data of the zoom."""
MOST_SPANS = 24_000
"""Spans of the zoom over all ranks; where there are more, the shortest are drawn together."""


class RankRow(NamedTuple):
    """A distinct rank's step: seconds by pass, seconds in none of them, and seconds of communication by stream."""

    stage: int
    rank: int
    passes_s: dict[Any, float]
    idle_s: float
    streams_s: dict[Any, float]


def step(found: Findings, trace: str = "") -> Section:
    """Return one step of the distinct ranks; `trace` is a trace beside the page."""
    strategy, timeline = found.plan.strategy, found.timeline
    rows, ranks = _by_rank(timeline), distinct_ranks(strategy)
    names = {int(rank): f"rank {rank}" if strategy.pp == 1 else f"stage {stage}" for stage, rank in enumerate(ranks)}
    table = _rank_rows(strategy, timeline)
    passes = [p for p in PASS_NAMES if any(p in r.passes_s for r in table)]
    streams = [s for s in STREAM_COLOURS if any(s in r.streams_s for r in table)]
    windows, alike = drawn_windows(strategy, timeline.step_time_s), int(strategy.world_size) // len(ranks)
    prose = [
        f"Replayed event by event and drawn for distinct ranks: {'one of each pipeline stage' if strategy.pp > 1 else 'one'}, "
        f"which stands for {alike:,} that {'does' if alike == 1 else 'do'} the same. One bar is one pass of one micro-batch, "
        "its layers together (F0 is the forward of micro-batch 0); communication runs below it.",
    ]
    if len(windows) > 1:
        prose.append(f"The step has {strategy.num_microbatches} micro-batches. In print and without scripts its first and its "
                     f"last {shown(windows[0][1], 's')} are drawn; what lies between repeats.")
    here = f"[The trace of this step]({trace}) opens in [ui.perfetto.dev](https://ui.perfetto.dev)." if trace else (
        "`headway simulate plan.yaml --trace trace.json` writes every layer for [ui.perfetto.dev](https://ui.perfetto.dev).")
    return Section(key="step", title="One step, rank by rank", gist=step_gist(strategy, timeline), exhibits=(Exhibit(
        prose=tuple(prose), zoom=zoom_json(rows, names, timeline.step_time_s),
        legend=(*((PASS_COLOURS[p], PASS_NAMES[p]) for p in passes),
                *((STREAM_COLOURS[s], f"{s} communication") for s in streams)),
        picture=Picture(name="gantt", title="one step, rank by rank", figure=gantt(
            timeline.rows, timeline.step_time_s, windows, names)),
        table=_table(table, passes, streams, int(strategy.pp) > 1, found.prediction.step_time_s),
        notes=("A pass includes the communication that it waits for. Communication is the whole of it, hidden or exposed. "
               + here,),
    ),))


def step_gist(strategy: Strategy, timeline: Timeline) -> str:
    """Return what waits in a step, in a sentence."""
    num = int(strategy.num_microbatches)
    idle = float(np.mean([r.idle_s for r in _rank_rows(strategy, timeline)])) / timeline.step_time_s
    return (f"{num:,} micro-batch{'' if num == 1 else 'es'} on {plural(int(strategy.pp), 'stage')}; ranks wait {share(idle)} "
            "of the step.")


def _by_rank(timeline: Timeline) -> dict[Any, pd.DataFrame]:
    return dict(iter(timeline.rows.groupby("rank")))


def _rank_rows(strategy: Strategy, timeline: Timeline) -> list[RankRow]:
    rows = _by_rank(timeline)
    return [_rank_row(stage, rank, rows[rank], timeline.step_time_s) for stage, rank in enumerate(distinct_ranks(strategy))]


def _rank_row(stage: int, rank: int, rows: pd.DataFrame, step_time_s: float) -> RankRow:
    actions = action_spans(rows)
    passes = (actions["end_s"] - actions["start_s"]).groupby(actions["pass"]).sum().to_dict()
    streams = (rows["end_s"] - rows["start_s"]).groupby(rows["stream"]).sum().to_dict()
    return RankRow(stage, rank, passes, step_time_s - sum(passes.values()), streams)


def _table(rows: list[RankRow], passes: list[str], streams: list[str], staged: bool, step_time_s: float) -> Table:
    head = (*(["stage"] if staged else []), "rank", *(PASS_NAMES[p] for p in passes), "idle or waiting", "share of the step",
            *(f"{s} communication" for s in streams))
    lines = tuple((
        *([str(r.stage)] if staged else []), str(r.rank), *(shown(r.passes_s.get(p, 0.0), "s") for p in passes),
        shown(r.idle_s, "s"), share(r.idle_s / step_time_s), *(shown(r.streams_s.get(s, 0.0), "s") for s in streams),
    ) for r in rows)
    return Table(head=head, rows=lines, wide=True)


def drawn_windows(strategy: Strategy, step_time_s: float) -> list[tuple[float, float]]:
    """Return the windows of a step that are drawn: the whole of a short one, beginning and end of a long one."""
    num, stages = int(strategy.num_microbatches), int(strategy.pp)
    width = (stages + DRAWN_MICROBATCHES) * step_time_s / (num + stages - 1)
    if num <= DRAWN_WHOLE or 2 * width >= step_time_s:
        return [(0.0, step_time_s)]
    return [(0.0, width), (step_time_s - width, step_time_s)]


def zoom_json(rows: dict[Any, pd.DataFrame], names: dict[int, str], step_time_s: float) -> str:
    """Return the spans of a step for the figure that can be zoomed, as JSON without spaces.

    `kinds` are name, colour, ink and lane (0: passes, 1: communication); each row has a name and flat spans: kind, start,
    length (in `TICKS` of the step), micro-batch (-1: none, or several).
    """
    kinds = [(p, css(colour), ink_on(colour), 0) for p, colour in PASS_COLOURS.items()]
    kinds += [(s, css(colour), ink_on(colour), 1) for s, colour in STREAM_COLOURS.items()]
    at = {kind[0]: i for i, kind in enumerate(kinds)}
    most = max(200, MOST_SPANS // len(names))
    drawn = [{"name": name, "spans": _spans(rows[rank], at, step_time_s, most)} for rank, name in names.items()]
    # what stands in a script must not end it
    data = {"seconds": step_time_s, "ticks": TICKS, "kinds": kinds, "rows": drawn}
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _spans(rows: pd.DataFrame, at: dict[str, int], step_time_s: float, most: int) -> list[int]:
    """Return a rank's spans, at most so many of its passes and as many of its communication."""
    actions = action_spans(rows)
    flat = []
    for pass_, part in actions.groupby("pass"):
        share_of = max(1, most * len(part) // max(1, len(actions)))
        spans = part[["start_s", "end_s"]].to_numpy(float)
        if len(spans) <= share_of:
            flat += _flat(at[str(pass_)], spans, part["microbatch"].to_numpy(), step_time_s)
        else:
            merged = _fewer(spans, share_of, step_time_s)
            flat += _flat(at[str(pass_)], merged, np.full(len(merged), -1), step_time_s)
    waits = rows[rows["stream"].isin(STREAM_COLOURS)]
    for stream, part in waits.groupby("stream"):
        merged = _fewer(part[["start_s", "end_s"]].to_numpy(float), max(1, most // waits["stream"].nunique()), step_time_s)
        flat += _flat(at[str(stream)], merged, np.full(len(merged), -1), step_time_s)
    return flat


def _fewer(spans: NDArray[np.float64], most: int, step_time_s: float) -> NDArray[np.float64]:
    """Return spans joined over ever wider gaps until there are at most so many."""
    gap, merged = 1e-6 * step_time_s, joined(spans, 0.0)
    while len(merged) > most:
        merged, gap = joined(merged, gap), 2 * gap
    return merged


def _flat(kind: int, spans: NDArray[np.float64], microbatches: NDArray[np.int64], step_time_s: float) -> list[int]:
    begin = np.round(spans[:, 0] / step_time_s * TICKS)
    length = np.maximum(1, np.round(spans[:, 1] / step_time_s * TICKS) - begin)
    columns = (np.full(len(spans), kind), begin, length, microbatches)
    return np.stack(columns, axis=1).astype(int).ravel().tolist()
