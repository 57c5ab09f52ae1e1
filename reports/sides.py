"""A plan or a run as one side of a waterfall: its step in pieces, and what explains them."""

from __future__ import annotations

from dataclasses import dataclass

from executor.run import Run
from planner.plan import Plan
from planner.predict import Prediction, predict_replayed
from profiles.cost import cost_model
from profiles.hardware import Cluster
from profiles.model import ModelSpec
from reports.measured import measured_seconds, predicted_seconds, records_dp
from simulator.strategy import Strategy
from simulator.timeline import Timeline
from simulator.waterfall import Decomposed, decompose, decompose_recorded
from simulator.workload import build_workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side: what was trained, where (None: a run does not say), and its step in pieces."""

    model: ModelSpec
    strategy: Strategy
    cluster: Cluster | None
    step: Decomposed

    @property
    def tokens_per_gpu(self) -> float:
        """Return the tokens of a step over the ranks."""
        return float(self.strategy.tokens_per_step / self.strategy.world_size)

    def about(self, term: str) -> float:
        """Return the number that a term is about; 0 where this side has no such term."""
        return self.step.about[term].value if term in self.step.about else 0.0


def two_sides(first: Plan | Run, second: Plan | Run) -> tuple[Side, Side] | None:
    """Return both sides in terms that both have, plans replayed; None where a run recorded no pass."""
    if isinstance(first, Plan) and isinstance(second, Plan):
        return _of_plan(first), _of_plan(second)
    apart = all(records_dp(side) for side in (first, second) if isinstance(side, Run))
    sides = _as_recorded(first, apart), _as_recorded(second, apart)
    return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])


def _replayed(plan: Plan) -> tuple[Prediction, Timeline]:
    return predict_replayed(plan.question, plan.strategy)


def _of_plan(plan: Plan) -> Side:
    model, strategy, cluster = plan.question.model, plan.strategy, plan.question.cluster
    prediction, timeline = _replayed(plan)
    step = decompose(build_workload(model, strategy), cost_model(cluster), timeline, prediction.breakdown_s)
    return Side(model=model, strategy=strategy, cluster=cluster, step=step)


def _as_recorded(side: Plan | Run, dp_apart: bool) -> Side | None:
    if isinstance(side, Run):
        model, strategy, cluster = side.job.model, side.job.strategy, None
        seconds = measured_seconds(side, dp_apart)
    else:
        model, strategy, cluster = side.question.model, side.strategy, side.question.cluster
        prediction, timeline = _replayed(side)
        seconds = predicted_seconds(prediction.breakdown_s, timeline, strategy, dp_apart)
    if seconds is None:
        return None
    return Side(model=model, strategy=strategy, cluster=cluster, step=decompose_recorded(model, strategy, seconds))
