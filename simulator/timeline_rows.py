"""Rows of a timeline from what is the same again and again: the spans of an action, and when it starts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from simulator.inside import Span
from simulator.timeline import COLUMNS, Timeline


class Rows:
    """Gathers spans as arrays; a step has hundreds of thousands, of a few hundred kinds."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str, int, float], int] = {}
        self._blocks: list[tuple[NDArray[np.float64], ...]] = []

    def add_spans(self, rank: int, spans: Sequence[Span], starts_s: ArrayLike, microbatches: ArrayLike) -> None:
        """Add the same spans on a rank once for each start, with that start's micro-batch."""
        starts, numbers = np.asarray(starts_s, dtype=float), np.asarray(microbatches, dtype=float)
        if not spans or not starts.size:
            return
        kinds = [self._kinds.setdefault((s.stream, s.op, s.pass_, s.layer, s.bytes), len(self._kinds)) for s in spans]
        begin, end = (np.add.outer(starts, [getattr(s, f) for s in spans]).ravel() for f in ("start_s", "end_s"))
        self._blocks.append((np.full(begin.shape, float(rank)), begin, end, np.repeat(numbers, len(spans)),
                             np.tile(np.array(kinds, float), starts.size)))

    def add_timed(
        self, rank: int, span: Span, starts_s: Sequence[float], ends_s: Sequence[float], microbatches: Sequence[int]
    ) -> None:
        """Add the same span on a rank from each start to each end."""
        kind = self._kinds.setdefault((span.stream, span.op, span.pass_, span.layer, span.bytes), len(self._kinds))
        begin, end, numbers = (np.asarray(values, dtype=float) for values in (starts_s, ends_s, microbatches))
        self._blocks.append((np.full(begin.shape, float(rank)), begin, end, numbers, np.full(begin.shape, float(kind))))

    def timeline(self, source: str) -> Timeline:
        """Return the timeline: spans that last no time left out, in the order of their starts."""
        rank, begin, end, microbatch, kind = (np.concatenate(column) for column in zip(*self._blocks, strict=True))
        order = np.argsort(begin, kind="stable")
        order = order[(end > begin)[order]]
        which = kind[order].astype(int)
        of = list(zip(*self._kinds, strict=True))
        stream, op, pass_ = (np.array(values, dtype=object)[which] for values in of[:3])
        layer, num_bytes = np.array(of[3], dtype=int)[which], np.array(of[4], dtype=float)[which]
        columns = (rank[order].astype(int), stream, begin[order], end[order], op, pass_, layer,
                   microbatch[order].astype(int), num_bytes, np.full(order.shape, source, dtype=object))
        return Timeline(rows=pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))), step_time_s=float(end[order].max()))
