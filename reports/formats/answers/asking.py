"""What `fit`, `size`, `whatif` and `catalog` print with `--json`."""

from __future__ import annotations

from pydantic import Field

from planner.plan import StrategyFile
from reports.formats.answers.planning import Answer, Percentiles, PricedRun


class ChangeThatFits(Answer):
    """What would make it fit; changes of rates are relative to what was asked."""

    title: str
    strategy: StrategyFile = Field(description="without its software, which is that of what was asked")
    num_gpus: int
    peak_memory_bytes: float
    step_time_s: float
    tokens_per_s: float
    tokens_per_s_change: float
    tokens_per_s_per_gpu_change: float


class FileRead(Answer):
    """What was read of another framework's file."""

    framework: str
    ignored: list[str]
    unknown: list[str]
    notes: list[str]


class FitAnswer(PricedRun):
    """`fit`."""

    room_bytes: float = Field(description="negative where it does not fit")
    largest_micro_batch: int
    largest_dividing_micro_batch: int = Field(description="of the same global batch")
    largest_seq_len: int
    changes: list[ChangeThatFits] = Field(description="empty where it fits")
    fewest_gpus: ChangeThatFits | None = Field(description="null where it fits")
    source: FileRead | None = Field(description="with `--from`")


class SizeOptimum(Answer):
    """The best use of the computation."""

    flop: Percentiles
    params: Percentiles
    tokens: Percentiles
    tokens_per_param: Percentiles
    loss: Percentiles


class SizedModel(Answer):
    """A model, and the tokens that the budget trains it on."""

    name: str
    params: float
    tokens: float
    loss: Percentiles
    tokens_per_param: float
    excess_compute: float = Field(description="FLOP over those of the best model of the same loss, minus one")


class BatchLimit(Answer):
    """How large a batch may be, by one law."""

    law: str
    kind: str
    tokens: Percentiles
    source: str


class SizeAnswer(Answer):
    """`size`."""

    law: str
    flop: float
    optimum: SizeOptimum
    gpu_hours: Percentiles | None
    days: Percentiles | None
    usd: Percentiles | None
    asked: SizedModel | None = Field(description="with `--model` or `--params`")
    models: list[SizedModel]
    batch_tokens: float | None
    batch_limits: list[BatchLimit]
    warnings: list[str]
    assumptions: list[str]


class InputTried(Answer):
    """An input that was changed."""

    name: str
    title: str
    dimension: str
    are_factors: bool
    values: list[float | str]


class TriedPoint(Answer):
    """A point of a sweep; the keys after `refused` are there where it can be."""

    values: dict[str, float | str]
    refused: str | None
    step_time_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    peak_memory_bytes: float | None = None
    usable_memory_bytes: float | None = None
    fits: bool | None = None
    days: float | None = None
    usd: float | None = None
    breakdown_s: dict[str, float] | None = None
    step_time_change: float | None = None
    goodput: float | None = None
    days_with_failures: float | None = None
    usd_with_failures: float | None = None
    strategy: str | None = None


class SweepOfPlan(Answer):
    """A plan's sweep."""

    plan: str
    base: TriedPoint
    rows: list[TriedPoint]


class BreakEven(Answer):
    """Where the answer turns."""

    kind: str
    input: str
    term: str | None
    value: float | str
    low: float | str
    high: float | str
    below: str
    above: str
    sentence: str


class TornadoBar(Answer):
    """An input, and the answer at both ends of what it may be."""

    input: str
    now: float | str
    low: float | str
    high: float | str
    at_low: float | None
    at_high: float | None
    swing: float
    source: str


class TornadoFound(Answer):
    """What matters most, the largest swing first."""

    by: str
    base: TriedPoint
    inputs_tried: int
    refused: list[str]
    bars: list[TornadoBar]


class WhatifAnswer(Answer):
    """`whatif`."""

    plans: list[str]
    inputs: list[InputTried]
    sweeps: list[SweepOfPlan]
    break_even: list[BreakEven]
    tornado: TornadoFound | None
    assumptions: list[str]


class CatalogAnswer(Answer):
    """`catalog`: the one kind that is asked for, the texts of its table by their headings."""

    models: list[dict[str, str]] | None = None
    accelerators: list[dict[str, str]] | None = None
    clusters: list[dict[str, str]] | None = None
    software: list[dict[str, str]] | None = None
    fleets: list[dict[str, str]] | None = None
    prices: list[dict[str, str]] | None = None
