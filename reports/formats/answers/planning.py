"""What the verbs that plan print with `--json`: a model for each answer, of which the page of formats and its test are made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from planner.plan import StrategyFile
from planner.pools import AllOfKind, PoolRank
from profiles.hardware import Price
from profiles.power import Factor
from profiles.storage_prices import StoragePrice


class Answer(BaseModel):
    """An object that is printed: no other keys, no other types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Percentiles(Answer):
    """What is passed in one run of ten, in five, in nine; null: such a run does not end."""

    p10: float | None
    p50: float | None
    p90: float | None


class PricedStep(Answer):
    """A strategy and its step."""

    strategy: StrategyFile = Field(description="every field of it, its software's too")
    step_time_s: float
    p10_s: float = Field(description="percentile of the step's time")
    p90_s: float = Field(description="percentile of the step's time")
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    mfu: float = Field(description="model FLOP over what the peak allows")
    hfu: float = Field(description="the same, with what is recomputed")
    peak_memory_bytes: float = Field(description="of the fullest rank")
    usable_memory_bytes: float
    memory_bytes: dict[str, float] = Field(description="parts of the peak")
    fits: bool
    breakdown_s: dict[str, float] = Field(description=(
        "compute, bubble, exposed_tp, exposed_pp, exposed_dp, exposed_cp, exposed_ep, optimizer, data, other: adds up to "
        "`step_time_s`"))


class PricedRun(PricedStep):
    """A strategy, its step, and the run that is made of it, undisturbed."""

    days: float
    days_p10: float
    days_p90: float
    gpu_hours: float
    usd: float | None = Field(description="null where no price is known")


class CostOnTerm(Answer):
    """What the run costs on one offer."""

    price: Price
    usd: Percentiles


class EnergyDrawn(Answer):
    """What the whole building draws, and what the accelerators draw at their data sheet's power."""

    node_w: float
    facility_kwh: Percentiles
    accelerator_kwh: Percentiles | None
    carbon_t: Percentiles
    load: Factor
    pue: Factor
    grid: Factor


class StorageKept(Answer):
    """What is kept while the run lasts, and what that costs."""

    data_bytes: float
    checkpoint_bytes: float
    kept: int = Field(description="checkpoints that are kept at a time")
    price: StoragePrice
    usd: Percentiles


class BillOfRun(Answer):
    """The bill of a run."""

    days: Percentiles
    num_gpus: int = Field(description="spares included")
    gpu_hours: Percentiles
    goodput: Percentiles | None = Field(description="null where no failures are counted")
    usd: Percentiles | None
    terms: list[CostOnTerm] = Field(description="every known offer")
    energy: EnergyDrawn | None
    storage: StorageKept
    assumptions: list[str]


class PoolOrPart(Answer):
    """The pool, or one of its parts alone."""

    cluster: str
    num_gpus: int
    strategy: str | None
    step_time_s: float | None
    tokens_per_s: float | None
    mfu: float | None
    days: float | None
    usd: float | None
    reason: str


class PoolPlanned(Answer):
    """How a pool's strategy lies on its kinds of accelerators."""

    stages: list[PoolRank]
    all_of_one_kind: list[AllOfKind]
    considered: list[PoolOrPart] = Field(description="the pool first; `plan` only: its parts alone")
    share_of_parts_alone: float | None = Field(description="the pool's tokens per second over the sum of its parts'")


class EstimateAnswer(PricedRun):
    """`estimate`."""

    bill: BillOfRun
    pool: PoolPlanned | None = Field(default=None, description="where the cluster is a pool")


class LeftOutStrategy(Answer):
    """A strategy that was left out."""

    strategy: str
    rule: str
    reason: str


class PlanAnswer(Answer):
    """`plan` without a goal."""

    best: PricedRun | None = Field(description="null, and exit status 1: nothing fits")
    runners_up: list[PricedRun]
    strategies_total: int
    strategies_priced: int
    rejected: dict[str, int] = Field(description="rule -> strategies left out by it")
    rejected_examples: list[LeftOutStrategy]
    search_seconds: float
    bill: BillOfRun | None = Field(description="null where nothing fits")
    pool: PoolPlanned | None = Field(default=None, description="where the cluster is a pool and something fits")


class GoalAsked(Answer):
    """What was asked for."""

    deadline_days: float | None
    budget_usd: float | None
    odds: str
    max_gpus: int | None
    wanted: str = Field(description="what is best among those that meet the goal")


class StrategyKept(Answer):
    """What had to change with the count, and what not changing it would cost."""

    what: str
    reason: str
    slower: float
    term: str
    kept_s: float
    now_s: float


class PointTried(Answer):
    """A count on an offer."""

    cluster: str
    price: Price | None
    preemptions_per_node_day: float
    num_gpus: int
    strategy: str | None
    step_time_s: float | None
    mfu: float | None
    days: Percentiles | None
    gpu_hours: Percentiles | None
    usd: Percentiles | None
    goodput: Percentiles | None
    is_whole: bool = Field(description="whether it was searched in full")
    reason: str = Field(description="why it cannot be, or was not chosen")
    change: StrategyKept | None


class PointShown(PointTried):
    """A count on an offer, and how it stands to the others."""

    is_front: bool = Field(description="no other is both faster and cheaper")
    is_chosen: bool


class OfferTried(PointShown):
    """The best count on an offer."""

    break_even_preemptions_per_node_day: float | None


class GoalAnswer(Answer):
    """`plan` with a deadline, a budget, several machines or counts."""

    goal: GoalAsked
    is_met: bool
    binding: str | None = Field(description="what stands against the goal, in a sentence")
    chosen: PointTried | None
    best: PricedRun | None
    runners_up: list[PricedRun]
    strategies_total: int
    strategies_priced: int
    rejected: dict[str, int]
    search_seconds: float
    points: list[PointShown]
    considered: list[OfferTried]
    refused: dict[str, str] = Field(description="machine -> why it cannot be asked")
    assumptions: list[str]
