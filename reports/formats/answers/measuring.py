"""What the verbs that measure this machine, its data and Headway's own accuracy print with `--json`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from reports.accuracy import Group, MemoryGroup
from reports.choice import Sweep
from reports.formats.answers.planning import Answer, PricedRun
from reports.formats.answers.running import PlanAndRun
from reports.published import Skipped
from reports.run_facts import Compared


class MeasuredRow(Answer):
    """A run with a measured time, predicted beside measured; errors are predicted / measured - 1."""

    id: str
    source: str
    model: str
    family: str
    gpu: str
    num_gpus: int
    precision: str
    trust: str
    full: bool
    strategy: str
    software: str
    tokens_per_step: float
    measured_s: float
    predicted_s: float
    p10_s: float
    p90_s: float
    loso_s: float | None = Field(description="predicted by numbers fitted without the row's source: with `--leave-out`")
    measured_tokens_per_s_per_gpu: float | None
    tokens_per_s_per_gpu: float
    measured_mfu: float | None
    mfu: float
    peak_kind: str
    measured_peak_bytes: float | None
    peak_bytes: float
    fits: bool
    breakdown_s: dict[str, float]
    error: float
    loso_error: float | None
    peak_error: float | None
    inside: bool = Field(description="whether the measured time lies from P10 to P90")
    dominant: str
    dominant_share: float


class MemoryRow(Answer):
    """A run with a measured peak."""

    id: str
    peak_kind: str
    measured_peak_bytes: float
    peak_bytes: float
    error: float
    fits: bool


class HeadlineFigure(Answer):
    """A figure over a set of runs, beside its target."""

    set: str
    n: int
    figure: str
    reached: float
    target: float | None
    higher: bool = Field(description="whether more is better")
    met: bool | None


class ValidateAnswer(Answer):
    """`validate`; `accuracy.json` in its folder is the same."""

    rows: list[MeasuredRow]
    skipped: list[Skipped]
    groups: list[Group]
    headline: list[HeadlineFigure]
    choice: list[Sweep] = Field(description="would the right layout have been chosen")
    memory: list[MemoryGroup]
    memory_rows: list[MemoryRow]
    share_not_fitting: float | None = Field(description="of runs that ran")


class OthersLoad(Answer):
    """Who else used the processor while a case ran."""

    load_average: float
    cores_of_others: float | None


class ValidateLocalAnswer(ValidateAnswer):
    """`validate --local`."""

    machine: dict[str, Any] = Field(description="date, device, cores, versions")
    loads: list[OthersLoad]
    warnings: list[str]


class ReliabilityAnswer(Answer):
    """`validate --reliability`."""

    facts: list[Compared]


class CalibrateAnswer(Answer):
    """`validate --calibrate`."""

    files: list[str] = Field(description="what was written")


class ProfileAnswer(Answer):
    """`profile`: where the file is, and its head."""

    path: str
    rows: int
    name: str
    date: str
    num_ranks: int
    peak_flop_per_s: dict[str, float]
    memory_bytes_per_s: float
    memory_bytes: float
    framework_bytes: float
    backend: str
    environment: dict[str, Any]


class ShardsAnswer(Answer):
    """`data prepare`."""

    path: str
    tokenizer: str
    vocab: int
    end_of_document: int
    dtype: str
    num_documents: int
    num_tokens: int
    text_bytes: int
    stored_bytes: int
    block_tokens: int
    num_blocks: int
    num_shards: int
    level: int
    fingerprint: str


class DataInfoAnswer(ShardsAnswer):
    """`data info`."""

    num_samples: dict[str, int] = Field(description="length of a sample -> how many there are")


class DataCheckAnswer(Answer):
    """`data check`; exit status 1 where there are faults."""

    ok: bool
    num_blocks: int
    faults: list[str]


class WaitForData(Answer):
    """The share of its time that training waits for data."""

    load_s: float
    compute_s: float
    batch: int
    num_batches: int
    predicted: float
    queued: float
    measured: float
    first_s: float


class DataBenchAnswer(Answer):
    """`data bench`."""

    path: str
    seq_len: int
    tokens_per_s: float
    storage_bytes_per_s: float
    memory_bytes_per_s: float
    decompress_bytes_per_s: float
    prepare_tokens_per_s: float
    num_tokens: int
    token_bytes: int
    block_tokens: int
    stored_bytes_per_token: float
    window: int
    depth: int
    source: str
    stalls: list[WaitForData]


class PlannedOnce(Answer):
    """The plan for real."""

    best: PricedRun
    strategies_total: int
    strategies_priced: int
    rejected: dict[str, int]


class LoopAtHome(PlanAndRun):
    """The loop on this machine."""

    predicted_peak_memory_bytes: float
    peak_memory_bytes: float
    strategy: str
    first_loss: float
    final_loss: float


class QuickstartAnswer(Answer):
    """`quickstart`."""

    plan: PlannedOnce
    local: LoopAtHome
