"""Jobs and runs: what is asked of the engine, and the folder of what it measured (run.json and timeline.csv)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from dataclasses import field as field_
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from profiles import files
from profiles.files import BadInput
from profiles.model import ModelSpec
from simulator.strategy import Strategy
from simulator.timeline import COLUMNS

RUN_FILE, TIMELINE_FILE, LOG_FILE, JOB_FILE = "run.json", "timeline.csv", "worker.log", "job.json"
DATA = "data"
"""The action of a timeline in which a rank waits for its batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a plan says of a job, for comparison while it runs; 0, None or nothing where it says nothing.

    `seconds` is the step in the terms of a waterfall that ranks measure; `peak_flop_per_s` and the price are of one rank.
    """

    step_time_s: float = 0.0
    seconds: dict[str, float] = field_(default_factory=dict)
    peak_flop_per_s: float = 0.0
    usd_per_gpu_hour: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training run to make: model, strategy, length, data, device and where the results go.

    The first `num_warmup_steps` of the `num_steps` are trained but left out of medians. `table` is a CSV file with a
    schedule that takes the place of the strategy's. `data` is 'stdlib', a text file or a folder of shards;
    `first_sample` is how many samples were trained before, `fingerprint` (or its beginning) what the data must have.

    Every `checkpoint_every` steps (0: never) a checkpoint is written and the last `keep` are kept. Training goes on from the
    newest good one in `out`, else from that of the run folder `resume`, else from the Hugging Face folder `weights`, else from
    initial weights of the seed; the trained model is written to the folder `save_weights` as `transformers` reads it. Every
    `log_every` steps (0: never) a line says how training goes, beside what is `expected`; `prometheus` is a file and
    `tensorboard` a folder for the same.
    """

    model: ModelSpec
    strategy: Strategy
    out: str
    num_steps: int = 20
    num_warmup_steps: int = 3
    learning_rate: float = 3e-4
    seed: int = 0
    data: str = "stdlib"
    first_sample: int = 0
    device: str = "cpu"
    table: str = ""
    fingerprint: str = ""
    checkpoint_every: int = 0
    keep: int = 2
    async_checkpoint: bool = False
    resume: str = ""
    log_every: int = 0
    prometheus: str = ""
    tensorboard: str = ""
    expected: Expected = Expected()
    weights: str = ""
    save_weights: str = ""


def job_as_dict(job: Job) -> dict[str, Any]:
    """Return a job as a mapping for JSON."""
    return asdict(job)


def job_from_dict(data: dict[str, Any], origin: str) -> Job:
    """Return the job of a mapping; the first fault is a `BadInput` that names `origin` and the field."""
    try:
        return TypeAdapter(Job).validate_python(data)
    except ValidationError as e:
        fault = e.errors()[0]
        raise BadInput(f"{origin}: {'.'.join(map(str, fault['loc'])) or 'job'}: {fault['msg']}") from None


def check_job(job: Job) -> None:
    """Refuse a job whose length or learning rate makes no sense."""
    if job.num_warmup_steps < 0 or job.num_steps <= job.num_warmup_steps:
        raise BadInput(f"num_steps: {job.num_steps} leave none to measure after {job.num_warmup_steps} of warm-up")
    for field, least in (("seed", 0), ("first_sample", 0), ("checkpoint_every", 0), ("keep", 1)):
        if getattr(job, field) < least:
            raise BadInput(f"{field}: must be at least {least} (is {getattr(job, field)})")
    if not job.learning_rate > 0:
        raise BadInput(f"learning_rate: must be above 0 (is {job.learning_rate})")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """A finished training run: the job, the environment, and what was measured.

    `step_times_s` are all steps, each the slowest rank's. `losses` are the mean over the global batch.
    Bytes are by rank: `idle_memory_bytes` before the model was built, `peak_memory_bytes` at most (resident on CPU,
    allocated on CUDA), `reserved_memory_bytes` what the allocator held. `timeline` has a timeline's columns; its first step
    is `first_step`: what was recorded before a restart is gone.
    """

    job: Job
    environment: dict[str, Any]
    step_times_s: tuple[float, ...]
    losses: tuple[float, ...]
    idle_memory_bytes: tuple[int, ...]
    peak_memory_bytes: tuple[int, ...]
    reserved_memory_bytes: tuple[int, ...]
    timeline: pd.DataFrame
    first_step: int = 0

    @property
    def first_measured(self) -> int:
        """Return the first step behind the warm-up, which there is after a restart, too."""
        return min(self.first_step + self.job.num_warmup_steps, self.job.num_steps - 1)

    @property
    def measured_step_times_s(self) -> tuple[float, ...]:
        """Return the step times without the warm-up."""
        return self.step_times_s[self.first_measured :]

    @property
    def step_time_s(self) -> float:
        """Return the median step time after the warm-up."""
        return median(self.measured_step_times_s)

    @property
    def p10_s(self) -> float:
        """Return the tenth percentile of the step times after the warm-up."""
        return float(np.percentile(self.measured_step_times_s, 10))

    @property
    def p90_s(self) -> float:
        """Return the ninetieth percentile of the step times after the warm-up."""
        return float(np.percentile(self.measured_step_times_s, 90))

    @property
    def tokens_per_s(self) -> float:
        """Return tokens trained per second, over all ranks, at the median step time."""
        return float(self.job.strategy.tokens_per_step) / self.step_time_s

    @property
    def next_sample(self) -> int:
        """Return how many samples were trained, those before this run included: where the data go on."""
        return self.job.first_sample + self.job.num_steps * int(self.job.strategy.global_batch)

    @property
    def data_wait_s(self) -> float:
        """Return how long a step waited for its data, by the rank that waited longest; the median after the warm-up."""
        waits = self.timeline[self.timeline["op"] == DATA].sort_values("start_s")
        by_rank = [(rows["end_s"] - rows["start_s"]).to_numpy(float) for _, rows in waits.groupby("rank")]
        after = self.first_measured - self.first_step
        return float(np.median(np.max(by_rank, axis=0)[after:])) if by_rank else 0.0


class RunFile(BaseModel):
    """What is read of `run.json`; beside it stand figures that follow from these."""

    model_config = ConfigDict(extra="ignore")

    job: dict[str, Any] = Field(description="what was asked: model, strategy, length, data, device")
    environment: dict[str, Any] = Field(description="versions, device, threads, date")
    step_times_s: tuple[float, ...] = Field(description="of all steps, each the slowest rank's")
    losses: tuple[float, ...] = Field(description="of all steps, the mean over the global batch")
    idle_memory_bytes: tuple[int, ...] = Field(description="by rank, before the model was built")
    peak_memory_bytes: tuple[int, ...] = Field(description="by rank, at most: resident on CPU, allocated on CUDA")
    reserved_memory_bytes: tuple[int, ...] = Field(description="by rank, what the allocator held")
    timeline_rows: int = Field(description="rows of `timeline.csv`")
    first_step: int = Field(default=0, description="first step of the timeline; before it lies a restart")


def write_run(run: Run, folder: str | Path) -> Path:
    """Write a run into a folder, `run.json` last, so that a folder with one is whole."""
    folder = files.make_folder(folder)
    files.write_text(folder / TIMELINE_FILE, run.timeline.to_csv(index=False))
    data = {
        "job": job_as_dict(run.job), "environment": run.environment,
        "step_time_s": run.step_time_s, "p10_s": run.p10_s, "p90_s": run.p90_s, "tokens_per_s": run.tokens_per_s,
        "step_times_s": run.step_times_s, "losses": run.losses, "next_sample": run.next_sample, "data_wait_s": run.data_wait_s,
        "idle_memory_bytes": run.idle_memory_bytes,
        "peak_memory_bytes": run.peak_memory_bytes, "reserved_memory_bytes": run.reserved_memory_bytes,
        "timeline_rows": len(run.timeline), "first_step": run.first_step,
    }
    files.write_text(folder / RUN_FILE, json.dumps(data, indent=2) + "\n")
    return folder


def read_run(folder: str | Path) -> Run:
    """Return the run in a folder; a missing or damaged file is a `BadInput`."""
    path = Path(folder) / RUN_FILE
    data = files.validate(RunFile, files.read_mapping(path), str(path))
    job = job_from_dict(data.job, str(path))
    check_job(job)
    for field in ("step_times_s", "losses"):
        num = len(getattr(data, field))
        if num != job.num_steps:
            raise BadInput(f"{path}: {field}: has {num} values, the job has {job.num_steps} steps")
    return Run(
        job=job, environment=data.environment, step_times_s=data.step_times_s, losses=data.losses,
        idle_memory_bytes=data.idle_memory_bytes, peak_memory_bytes=data.peak_memory_bytes,
        reserved_memory_bytes=data.reserved_memory_bytes,
        timeline=_read_timeline(Path(folder) / TIMELINE_FILE, data.timeline_rows), first_step=data.first_step,
    )


def _read_timeline(path: Path, num_rows: int) -> pd.DataFrame:
    files.read_text(path)
    try:
        timeline = pd.read_csv(path, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as e:
        raise BadInput(f"{path}: not CSV: {str(e).splitlines()[0]}") from None
    if tuple(timeline.columns) != COLUMNS:
        raise BadInput(f"{path}: has the columns {', '.join(timeline.columns)}; a timeline has {', '.join(COLUMNS)}")
    if len(timeline) != num_rows:
        raise BadInput(f"{path}: has {len(timeline)} rows, {RUN_FILE} counts {num_rows}; one of the two is damaged")
    for column in ("rank", "start_s", "end_s", "layer", "microbatch", "bytes"):
        if num_rows and not pd.api.types.is_numeric_dtype(timeline[column]):
            raise BadInput(f"{path}: {column}: holds values that are not numbers")
    return timeline
