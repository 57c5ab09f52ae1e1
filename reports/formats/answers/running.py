"""What the verbs that simulate, train and compare print with `--json`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from reports.formats.answers.planning import Answer, Percentiles, PricedRun, PricedStep


class RankPeak(Answer):
    """The most that a rank holds, and when."""

    rank: int
    time_s: float
    action: str
    part: str
    bytes: int
    kinds: dict[str, int]
    microbatches: dict[str, list[int]] = Field(description="stage -> micro-batches whose activations lie there")
    share_of_step: float
    share_of_usable: float


class DisturbedSteps(Answer):
    """Steps with slow ranks and noise, beside the healthy one."""

    healthy_s: float
    slow_s: float = Field(description="with the slow ranks, without noise")
    steps: int
    mean_s: float
    p10_s: float
    p50_s: float
    p90_s: float
    slowdown: float = Field(description="the mean step over the healthy one")


class SimulateAnswer(PricedRun):
    """`simulate`."""

    peak_memory_by_rank: list[RankPeak]
    disturbed: DisturbedSteps | None = Field(default=None, description="with slow ranks or noise")


class Interruptions(Answer):
    """How often a mean run is interrupted."""

    unplanned: float
    planned: float
    by_cause: dict[str, float]
    mean_time_to_failure_s: float | None


class IntervalTried(Answer):
    """A checkpoint interval that was tried."""

    interval_steps: int
    interval_s: float
    goodput: float | None
    expected_goodput: float | None


class CheckpointCurve(Answer):
    """Goodput over the checkpoint interval, and where laws place the best."""

    young_s: float | None
    daly_s: float | None
    exact_s: float | None
    points: list[IntervalTried]


class SparesTried(Answer):
    """A number of spare nodes that was tried."""

    spares: int
    days: float | None
    gpu_hours: float | None
    waiting: float


class EndDates(Answer):
    """The day that the run ends on."""

    p10: str | None
    p50: str | None
    p90: str | None


class SimulateRunAnswer(PricedStep):
    """`simulate --run`: the step, and the whole run with failures."""

    days: Percentiles
    gpu_hours: Percentiles
    usd: Percentiles | None = Field(description="null where no price is known")
    undisturbed_days: float
    end_dates: EndDates | None = Field(description="with `--start`")
    goodput: float = Field(description="of the median run")
    goodput_p10: float
    goodput_p90: float
    time_shares: dict[str, float] = Field(description="productive, checkpoint, redone, ...: adds up to 1")
    interruptions: Interruptions
    checkpoint_interval_s: float
    checkpoint_interval_steps: int
    checkpoint_bytes: float
    checkpoint_stall_s: float
    checkpoint_write_s: float
    checkpoint_curve: CheckpointCurve
    spares: int
    spares_curve: list[SparesTried]
    fleet: str
    fleet_sources: dict[str, str]
    elastic: bool
    runs: int
    seed: int
    share_finished: float
    assumptions: list[str]


class GoodputTerms(Answer):
    """Where the time of a run went."""

    training_s: float
    data_s: float
    checkpoint_s: float
    wasted_s: float
    restart_s: float
    start_s: float
    wall_s: float = Field(description="the sum of the terms")
    goodput: float


class PlanAndRun(Answer):
    """A plan beside what was measured: `error` is (predicted - measured) / measured, of every quantity and part."""

    predicted_step_time_s: float
    step_time_s: float
    predicted_tokens_per_s: float
    tokens_per_s: float
    predicted_breakdown_s: dict[str, float]
    breakdown_s: dict[str, float]
    error: dict[str, float | None]


class RunAnswer(PlanAndRun):
    """`run`."""

    predicted_peak_memory_bytes: float
    peak_memory_bytes: float
    final_loss: float
    data_wait_s: float
    next_sample: int
    data_fingerprint: str
    goodput: float
    goodput_s: GoodputTerms


class DryRunAnswer(Answer):
    """`run --dry-run`."""

    ranks: int
    strategy: str
    loss: float
    first_step_s: float
    peak_memory_bytes: list[int] = Field(description="of each rank")
    environment: dict[str, Any]


class NodesAnswer(Answer):
    """`run --nodes`."""

    nodes: str = Field(description="the launcher")
    done: list[str] = Field(description="what was written and submitted, in lines")


class WaterfallTerm(Answer):
    """A cause of the difference."""

    term: str
    seconds: float
    first: float | None
    second: float | None
    unit: str
    note: str


class WithWaterfall(Answer):
    """Where the difference comes from: terms that add up; not of traces, or of a run that recorded no pass."""

    waterfall: list[WaterfallTerm] = Field(default=[], description="adds up to `waterfall_second` - `waterfall_first`")
    waterfall_first: float | None = Field(default=None, description="of a step, or of a token and accelerator")
    waterfall_second: float | None = None
    waterfall_unit: str | None = None


class CompareRunAnswer(PlanAndRun, WithWaterfall):
    """`compare` of a plan and its run."""

    predicted_peak_memory_bytes: float
    peak_memory_bytes: float
    final_loss: float


class CompareTraceAnswer(PlanAndRun):
    """`compare` of a plan and traces."""

    predicted_work_s: dict[str, float | None] = Field(description="by pass and kind of kernel, hidden or not")
    work_s: dict[str, float | None] = Field(description="null: nothing like it was done on this side")
    rank: int
    stage: int


BOTH = ("tokens_per_step", "step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "peak_memory_bytes")
PLANS_ONLY, RUNS_ONLY = ("model_flop_per_s_per_gpu", "mfu", "hfu", "days", "gpu_hours", "usd"), ("final_loss",)


def _alike_answer() -> type[Answer]:
    """Return the answer on two plans or two runs: every quantity of each side, with its letter in front."""
    fields: dict[str, Any] = {}
    for side in ("a", "b"):
        fields[side] = (str, Field(description="which side that is, in words"))
        fields |= {f"{side}_{name}": (float, ...) for name in BOTH}
        fields[f"{side}_breakdown_s"] = (dict[str, float | None], Field(description="null: this run recorded no pass"))
        for names, when in ((PLANS_ONLY, "of plans"), (RUNS_ONLY, "of runs")):
            fields |= {f"{side}_{name}": (float | None, Field(default=None, description=when)) for name in names}
    fields["error"] = (dict[str, float | None], Field(description="(a - b) / b, of every quantity and part"))
    return create_model("CompareAnswer", __base__=WithWaterfall, __doc__="`compare` of two plans or two runs.", **fields)


CompareAnswer = _alike_answer()


class ExportAnswer(Answer):
    """`export`."""

    target: str
    files: list[str]
    notes: list[str]
    refusals: list[str] = Field(description="what cannot be said there; then no file is written, and the exit status is 1")


class ReportAnswer(Answer):
    """`report`."""

    path: str | None = Field(description="null where nothing is written")
    trace: str | None
    summary: list[str] = Field(description="the lines of `--summary`")


class ServeAnswer(Answer):
    """`serve`, before it serves."""

    url: str
