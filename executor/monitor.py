"""What training says of itself every few steps: a line, a file for Prometheus, scalars for TensorBoard, drift.

Prometheus: the text format 0.0.4, for the textfile collector of its node exporter.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from executor.drift import drift
from executor.journal import Line
from executor.run import Job
from executor.told import Told
from profiles.files import BadInput, write_text
from profiles.units import show
from simulator.metrics import step_flop

HELP = {
    "step": "steps trained", "loss": "mean loss of the last step", "tokens_per_s": "tokens a second, over all ranks",
    "mfu": "model FLOP over peak FLOP", "memory_bytes": "memory of the fullest rank", "step_time_s": "median seconds of a step",
    "predicted_step_time_s": "seconds of a step in the plan", "eta_s": "seconds to the end of the run",
    "usd_to_go": "dollars to the end of the run",
}
"""What an interval's line says, in this order."""


class Monitor:
    """Gathers steps, and every `log_every` of them says how training goes; rank 0 has one."""

    def __init__(self, job: Job) -> None:
        check_monitor(job)
        self.job = job
        self._steps: list[list[Told]] = []
        self._begun_s = time.monotonic()
        self._cause = ""
        self._flop = float(step_flop(job.model, job.strategy)) if job.expected.peak_flop_per_s else 0.0
        self._board: Any = None
        if job.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(job.tensorboard)

    def add(self, step: int, everyone: list[Told]) -> list[Line]:
        """Take up a step, and return the lines that are due: of the interval, and of drift where its cause is another."""
        self._steps.append(everyone)
        if not self.job.log_every or (step + 1) % self.job.log_every:
            return []
        now_s = time.monotonic()
        line = interval(self.job, step + 1, self._steps, now_s - self._begun_s, self._flop)
        found = drift(self.job.model, self.job.strategy, self._steps, self.job.expected.seconds) if (
            self.job.expected.seconds) else None
        self._steps, self._begun_s = [], now_s
        if self.job.prometheus:
            write_text(self.job.prometheus, prometheus_text(line))
        if self._board is not None:
            for name in line.keys() & HELP.keys() - {"step"}:
                self._board.add_scalar(name, line[name], step + 1)
            self._board.flush()
        known, self._cause = self._cause, found.cause if found else ""
        told = [{"event": "drift", "step": step + 1, "ratio": found.ratio, "cause": found.cause, "says": found.says}] if (
            found and found.cause != known) else []
        return [line, *told]


def check_monitor(job: Job) -> None:
    """Refuse what cannot be written."""
    if job.log_every < 0:
        raise BadInput(f"log_every: must not be negative (is {job.log_every})")
    if job.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise BadInput("tensorboard: needs the package of that name; pip install tensorboard")


def interval(job: Job, num_steps: int, steps: Sequence[Sequence[Told]], wall_s: float, flop: float) -> Line:
    """Return the line of some steps that took `wall_s` with all that lay between them; what is not known is left out."""
    step_time_s = median(max(told.step_time_s for told in step) for step in steps)
    expected, world = job.expected, int(job.strategy.world_size)
    eta_s = (job.num_steps - num_steps) * wall_s / len(steps)
    line: Line = {
        "event": "interval", "step": num_steps, "loss": fmean(t.loss for t in steps[-1] if not math.isnan(t.loss)),
        "tokens_per_s": float(job.strategy.tokens_per_step) / step_time_s, "step_time_s": step_time_s,
        "memory_bytes": max(t.memory_bytes for step in steps for t in step), "eta_s": eta_s,
    }
    if flop:
        line["mfu"] = flop / step_time_s / (expected.peak_flop_per_s * world)
    if expected.step_time_s:
        line["predicted_step_time_s"] = expected.step_time_s
    if expected.usd_per_gpu_hour is not None:
        line["usd_to_go"] = eta_s / 3600 * world * expected.usd_per_gpu_hour
    return line


def interval_text(line: Line, num_steps: int) -> str:
    """Return an interval's line as people read it."""
    predicted = line.get("predicted_step_time_s")
    parts = [
        f"step {line['step']}/{num_steps}", f"loss {line['loss']:.4f}", f"{show(line['tokens_per_s'], 'count')} tokens/s",
        f"MFU {line['mfu']:.1%}" if "mfu" in line else "", f"memory {show(line['memory_bytes'], 'bytes')}",
        f"{show(line['step_time_s'], 's')} a step" + (f" (planned {show(predicted, 's')})" if predicted else ""),
        f"{show(line['eta_s'], 's')} to go", f"${line['usd_to_go']:,.2f} to go" if "usd_to_go" in line else "",
    ]
    return ", ".join(part for part in parts if part)


def prometheus_text(line: Line) -> str:
    """Return an interval's line as Prometheus reads it."""
    return "".join(f"# HELP headway_{name} {what}\n# TYPE headway_{name} gauge\nheadway_{name} {float(line[name])!r}\n"
                   for name, what in HELP.items() if name in line)
