"""Predicted against measured, and plan against plan: quantity by quantity, and where the difference comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from rich.markup import escape
from rich.table import Table

from executor.run import Run
from planner.economics import run_days, run_usd
from planner.plan import Plan, StrategyFile
from planner.predict import Prediction, predict_replayed
from profiles import files
from profiles.cost import peak_flop_per_s
from profiles.files import BadInput
from profiles.units import show, significant
from reports.measured import as_recorded, measured_breakdown, records_dp
from simulator.estimate import BREAKDOWN
from simulator.software import software_from
from simulator.strategy import Strategy

TERMS = {
    "compute": "compute", "bubble": "pipeline bubble", "exposed_tp": "exposed tp communication",
    "exposed_pp": "exposed pp communication", "exposed_dp": "exposed dp communication",
    "exposed_cp": "exposed cp communication", "exposed_ep": "exposed ep communication", "optimizer": "optimizer",
    "data": "data", "other": "other",
    "passes": "forward and backward, with the communication inside", "waiting": "waiting (bubble, pp, host)",
}
"""Names of a step's terms; the last two are sums of terms that a run does not record apart."""
ROUNDING_S = 1e-9
"""Less of a step than this is what adding up left over, and is shown as nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantity of both sides in SI, or None where a side does not have it."""

    key: str
    quantity: str
    unit: str
    first: float | None
    second: float | None

    @property
    def difference(self) -> float | None:
        """Return first - second."""
        return None if self.first is None or self.second is None else self.first - self.second

    @property
    def error(self) -> float | None:
        """Return the signed ratio (first - second) / second: above 0 where the prediction is more than was measured."""
        return None if self.difference is None or not self.second else self.difference / self.second


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two sides, quantity by quantity; the `breakdown` rows are the parts of the step's time of each side.

    `work` rows are what was done in it, hidden or not, kind by kind. `prefixes` begin the keys of each side in `as_dict`;
    `facts` are added to it as they are.
    """

    title: str
    sides: tuple[str, str]
    prefixes: tuple[str, str]
    rows: tuple[Row, ...]
    breakdown: tuple[Row, ...]
    work: tuple[Row, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def row(self, key: str) -> Row:
        """Return the row of a quantity."""
        return next(row for row in (*self.rows, *self.breakdown, *self.work) if row.key == key)

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison for JSON: each side's quantities under its prefix, and the signed errors."""
        first, second = self.prefixes
        data: dict[str, Any] = {}
        for row in self.rows:
            data |= {first + row.key: row.first, second + row.key: row.second}
        for name, rows in (("breakdown_s", self.breakdown), ("work_s", self.work)):
            if rows or name == "breakdown_s":
                data |= {f"{first}{name}": {r.key: r.first for r in rows}, f"{second}{name}": {r.key: r.second for r in rows}}
        data["error"] = {row.key: row.error for row in (*self.rows, *self.breakdown, *self.work)}
        return data | self.facts


_PREDICTED = {name: TypeAdapter(hint) for name, hint in get_type_hints(Prediction).items() if name != "strategy"}


def prediction_from_dict(data: dict[str, Any], origin: str) -> Prediction:
    """Return a prediction as it stands in a plan file; a missing or damaged field is a `BadInput`."""
    values: dict[str, Any] = {}
    for name, adapter in _PREDICTED.items():
        if name not in data:
            raise BadInput(f"{origin}.{name}: this field is missing; make the plan again with `headway plan`")
        try:
            values[name] = adapter.validate_python(data[name])
        except ValidationError as e:
            raise BadInput(f"{origin}.{name}: {e.errors()[0]['msg']} (is {data[name]!r})") from None
    if not isinstance(data.get("strategy"), dict):
        raise BadInput(f"{origin}.strategy: a mapping is needed; make the plan again with `headway plan`")
    strategy = files.validate(StrategyFile, data["strategy"], f"{origin}.strategy")
    software = software_from(strategy.software, f"{origin}.strategy")
    return Prediction(strategy=Strategy(**(strategy.model_dump() | {"software": software})), **values)


def current_prediction(plan: Plan) -> tuple[Prediction, str | None]:
    """Return a plan's prediction, and what was edited where it had to be predicted again."""
    stated = prediction_from_dict(plan.prediction, "plan: prediction")
    question = plan.question
    days = float(run_days(question.tokens, plan.strategy.tokens_per_step, stated.step_time_s))
    usd = run_usd(stated.gpu_hours, question.price)
    if stated.strategy != plan.strategy:
        edited = f"the strategy (the plan's prediction is of {stated.strategy.describe()})"
    elif not math.isclose(days, stated.days, rel_tol=1e-4):
        edited = f"the tokens (the plan's prediction is of {significant(stated.days)} days)"
    elif (usd is None) != (stated.usd is None) or not math.isclose(usd or 0.0, stated.usd or 0.0, rel_tol=1e-4):
        edited = "the price"
    else:
        return stated, None
    return predict_replayed(question, plan.strategy)[0], edited


def compare_plan_run(plan: Plan, run: Run) -> Comparison:
    """Return a plan's prediction against the run that was made of it."""
    if run.job.strategy != plan.strategy or run.job.model != plan.question.model:
        raise BadInput(
            f"run: trained {run.job.model.name} with {run.job.strategy.describe()}; "
            f"the plan is {plan.question.model.name} with {plan.strategy.describe()}"
        )
    prediction, _ = current_prediction(plan)
    cuda = run.job.device == "cuda"
    rows = (
        Row(key="step_time_s", quantity="step time", unit="s", first=prediction.step_time_s, second=run.step_time_s),
        Row(key="tokens_per_s", quantity="throughput", unit="tokens/s", first=prediction.tokens_per_s,
            second=run.tokens_per_s),
        Row(key="peak_memory_bytes", quantity=f"peak memory, fullest rank ({'allocated' if cuda else 'resident'})",
            unit="bytes", first=comparable_bytes(prediction.peak_memory_bytes, prediction.memory_bytes, cuda=cuda),
            second=float(max(run.peak_memory_bytes))),
    )
    measured = measured_breakdown(run)
    apart = records_dp(run)
    predicted = as_recorded(prediction.breakdown_s, apart)
    terms = tuple(
        Row(key=term, quantity=TERMS[term], unit="s", first=predicted[term], second=seconds)
        for term, seconds in (as_recorded(measured, apart) if measured else {}).items()
    )
    return Comparison(
        title=f"{plan.question.model.name}, {plan.strategy.describe()}", sides=("predicted", "measured"),
        prefixes=("predicted_", ""), rows=rows, breakdown=terms, facts={"final_loss": run.losses[-1]},
    )


def comparable_bytes(peak_bytes: float, parts_bytes: dict[str, float], *, cuda: bool) -> float:
    """Return the part of a predicted peak that a run measures.

    On CUDA that is what tensors hold: the allocator counts neither the context nor blocks that it cannot use. On CPU it
    is all that is resident.
    """
    return peak_bytes - (parts_bytes.get("framework", 0.0) + parts_bytes.get("slack", 0.0) if cuda else 0.0)


def compare_plans(plan_a: Plan, plan_b: Plan) -> Comparison:
    """Return two plans against each other; the breakdown's differences add up to that of the step."""
    (a, _), (b, _) = current_prediction(plan_a), current_prediction(plan_b)
    tokens = Row(key="tokens_per_step", quantity="tokens of a step", unit="tokens",
                 first=float(plan_a.strategy.tokens_per_step), second=float(plan_b.strategy.tokens_per_step))
    rows = tuple(
        Row(key=key, quantity=quantity, unit=unit, first=getattr(a, key), second=getattr(b, key))
        for key, quantity, unit in (
            ("step_time_s", "step time", "s"), ("tokens_per_s", "throughput", "tokens/s"),
            ("tokens_per_s_per_gpu", "throughput per GPU", "tokens/s"), ("mfu", "MFU", "ratio"),
            ("hfu", "HFU", "ratio"), ("peak_memory_bytes", "peak memory, fullest rank", "bytes"),
            ("days", "days", "days"), ("gpu_hours", "GPU-hours", "hours"), ("usd", "cost", "usd"),
        )
    )
    rates = [p.mfu * peak_flop_per_s(plan.question.cluster.accelerator, p.strategy.matmul or p.strategy.dtype)
             for p, plan in ((a, plan_a), (b, plan_b))]
    rate = Row(key="model_flop_per_s_per_gpu", quantity="model FLOP/s per GPU", unit="FLOP/s", first=rates[0], second=rates[1])
    terms = tuple(
        Row(key=term, quantity=TERMS[term], unit="s", first=a.breakdown_s.get(term, 0.0),
            second=b.breakdown_s.get(term, 0.0))
        for term in BREAKDOWN if max(side.breakdown_s.get(term, 0.0) for side in (a, b)) > ROUNDING_S
    )
    sides = [f"{p.question.model.name} on {p.question.cluster_text}: {p.strategy.describe()}" for p in (plan_a, plan_b)]
    return Comparison(title=f"A: {sides[0]}\nB: {sides[1]}", sides=("A", "B"), prefixes=("a_", "b_"),
                      rows=(tokens, *rows[:3], rate, *rows[3:]), breakdown=terms, facts={"a": sides[0], "b": sides[1]})


def compare_runs(run_a: Run, run_b: Run) -> Comparison:
    """Return two runs against each other, of any model and strategy."""
    both = (run_a, run_b)
    tokens, ranks = ([float(getattr(r.job.strategy, f)) for r in both] for f in ("tokens_per_step", "world_size"))
    rows = tuple(
        Row(key=key, quantity=quantity, unit=unit, first=values[0], second=values[1])
        for key, quantity, unit, values in (
            ("tokens_per_step", "tokens of a step", "tokens", tokens),
            ("step_time_s", "step time, median", "s", [r.step_time_s for r in both]),
            ("tokens_per_s", "throughput", "tokens/s", [r.tokens_per_s for r in both]),
            ("tokens_per_s_per_gpu", "throughput per rank", "tokens/s",
             [r.tokens_per_s / n for r, n in zip(both, ranks, strict=True)]),
            ("peak_memory_bytes", "peak memory, fullest rank", "bytes", [float(max(r.peak_memory_bytes)) for r in both]),
            ("final_loss", "final loss", "nats", [r.losses[-1] for r in both]),
        )
    )
    apart = all(map(records_dp, both))
    parts = [measured_breakdown(r) for r in both]
    first, second = (as_recorded(p, apart) if p else {} for p in parts)
    sides = [f"{r.job.model.name} on {int(n)} ranks: {r.job.strategy.describe()}" for r, n in zip(both, ranks, strict=True)]
    return Comparison(
        title=f"A: {sides[0]}\nB: {sides[1]}", sides=("A", "B"), prefixes=("a_", "b_"), rows=rows,
        breakdown=tuple(Row(key=t, quantity=TERMS[t], unit="s", first=first.get(t), second=second.get(t))
                        for t in (first or second)),
        facts={"a": sides[0], "b": sides[1]},
    )


def comparison_table(comparison: Comparison) -> Table:
    """Return a comparison for the terminal."""
    table = Table(title=escape(comparison.title), title_justify="left", caption_justify="left",
                  caption="{2} = ({0} - {1}) / {1}".format(*comparison.sides, error_name(comparison)))
    table.add_column("quantity")
    for name in (*comparison.sides, "difference", error_name(comparison)):
        table.add_column(name, justify="right")
    for section in (comparison.rows, comparison.breakdown, comparison.work):
        for row in section:
            table.add_row(row.quantity, *(shown(v, row.unit) for v in (row.first, row.second, row.difference)),
                          per_cent(row.error))
        table.add_section()
    return table


def error_name(comparison: Comparison) -> str:
    """Return what the signed ratio is called: an error where one side was measured."""
    return "error" if "measured" in comparison.sides else "ratio - 1"


def shown(value: float | None, unit: str, digits: int = 3) -> str:
    """Return an SI quantity as people read it, with its unit."""
    if value is None:
        return "-"
    if unit == "s" and (abs(value) < ROUNDING_S or 1 <= abs(value) < 1000):
        return f"{significant(value, digits) if abs(value) >= 1 else 0} s"
    if unit in ("s", "bytes", "usd"):
        return show(value, unit, digits)
    if unit == "FLOP/s":
        return show(value, "flop_per_s", digits)
    if unit == "ratio":
        return f"{100 * value:.1f} %"
    if unit in ("tokens", "tokens/s") and abs(value) >= 1e5:
        return f"{show(value, 'count', digits)} {unit}"
    return f"{significant(value, 4 if unit in ('tokens/s', 'hours') else digits)} {unit}"


def per_cent(ratio: float | None) -> str:
    """Return a ratio as signed per cent."""
    return "-" if ratio is None else f"{100 * ratio:+.1f} %"


def share(ratio: float) -> str:
    """Return a ratio in per cent; one digit of a small one, so that it is not shown as zero (a millionth is)."""
    return f"{100 * ratio:.1f} %" if ratio >= 0.005 or ratio < 1e-6 else f"{significant(100 * ratio, 1)} %"


def span(low: float, high: float, unit: str) -> str:
    """Return two quantities as a range, the unit once where it is the same."""
    first, second = shown(low, unit), shown(high, unit)
    same = first.split()[-1] == second.split()[-1]
    return f"{first.rsplit(' ', 1)[0] if same else first} to {second}"
