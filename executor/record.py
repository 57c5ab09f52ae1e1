"""What a rank measures while it trains: one row per action, in the columns of a timeline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import record_function

from simulator.timeline import COLUMNS

WHOLE_STAGE = -1
"""`layer` of a row that is about all layers of a stage; also `microbatch` of a row that is about all of them."""
MAX_STEPS_KEPT = 2000


class Recorder:
    """Rows of one rank: wall time on CPU; on CUDA events, read when the step is over, so that nothing waits early."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self.rank, self.on_cuda = rank, device.type == "cuda"
        self.rows: list[dict[str, Any]] = []
        self.spent_s: dict[str, float] = {}
        self.num_steps = 0
        self._pending: list[tuple[Any, Any, dict[str, Any]]] = []
        self._origin_s = self._step_start_s = time.perf_counter()
        self._step_start: Any = None

    def start(self) -> None:
        """Set time zero; call it right after a barrier, so that ranks agree."""
        self._origin_s = time.perf_counter()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Record a whole step, with the device idle before and after it; `spent_s` has the seconds of the last by pass.

        Rows are kept of the first `MAX_STEPS_KEPT` steps: a long run must not fill the memory.
        """
        self._synchronise()
        self._step_start_s = time.perf_counter()
        self._step_start = self._mark()
        yield
        self._synchronise()
        end_s = time.perf_counter()
        step = {"stream": "compute", "op": "step", "pass": "", "microbatch": WHOLE_STAGE, "bytes": 0}
        spans = [(self._since_origin(start), self._since_origin(end), row) for start, end, row in self._pending]
        spans.append((self._step_start_s - self._origin_s, end_s - self._origin_s, step))
        self._pending.clear()
        self.spent_s = {}
        for start_s, last_s, row in spans:
            kind = "dp" if row["stream"] == "dp" else row["pass"] or row["op"]
            self.spent_s[kind] = self.spent_s.get(kind, 0.0) + last_s - start_s
        if self.num_steps < MAX_STEPS_KEPT:
            for span in spans:
                self._append(*span)
        self.num_steps += 1

    @contextmanager
    def span(self, op: str, pass_: str, microbatch: int = WHOLE_STAGE, stream: str = "compute") -> Iterator[None]:
        """Record one action, named in a profiler's trace, too; one that continues the action before it lengthens that row."""
        start = self._mark()
        with record_function(f"{op} {pass_}{microbatch if microbatch >= 0 else ''}"):
            yield
        row = {"stream": stream, "op": op, "pass": pass_, "microbatch": microbatch, "bytes": 0}
        if self._pending and self._pending[-1][2] == row:
            start = self._pending.pop()[0]
        self._pending.append((start, self._mark(), row))

    def _append(self, start_s: float, end_s: float, row: dict[str, Any]) -> None:
        values = {"rank": self.rank, "start_s": start_s, "end_s": end_s, "layer": WHOLE_STAGE, "source": "measured"}
        self.rows.append({column: {**values, **row}[column] for column in COLUMNS})

    def _mark(self) -> Any:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _since_origin(self, mark: Any) -> float:
        if not self.on_cuda:
            return float(mark - self._origin_s)
        return self._step_start_s - self._origin_s + float(self._step_start.elapsed_time(mark)) / 1e3

    def _synchronise(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()
