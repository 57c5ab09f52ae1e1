"""What `headway simulate --run` does: a plan, a fleet and a few options become many runs, their money and their choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.economics import SECONDS_PER_DAY, gpu_hours, run_usd
from planner.plan import Plan
from profiles.files import BadInput
from profiles.reliability import Fleet, load_fleet
from profiles.storage import default_storage, host_copy
from profiles.units import parse, show
from simulator.run.interval_curve import IntervalCurve, best_interval, interval_curve, mttf_s
from simulator.run.monte_carlo import Case, check_case, simulate_runs
from simulator.run.outcome import Outcomes
from simulator.run.spares import SparePoint, best_spares, spare_curve
from simulator.run.states import checkpoint_bytes, writing_ranks
from simulator.run.training import Checkpoints, Reserve, Training, checkpoint_costs
from simulator.strategy import Strategy

AUTO = "auto"
EVAL_SHARE = 1.0 / 3.0
"""An evaluated batch over a step: forward only, where a step is that and a backward of twice its work."""
P10_TO_P90 = 2.5631
"""Standard deviations between the tenth and the ninetieth percentile of a normal distribution."""
Advance = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What is asked of a whole run, as people type it; `spares` None: the number that pays; `storage` None: by the GPU."""

    checkpoint_interval: str = AUTO
    checkpoint: str = "sync"
    keep: int | None = None
    storage: str | None = None
    spares: int | None = None
    fleet: str = "published"
    runs: int = 1000
    seed: int = 0
    elastic: bool = False
    eval_every: int = 1000
    eval_batches: int = 1
    start: str | None = None


def run_options(run: bool, **given: Any) -> RunOptions | None:
    """Return what is asked of a whole run, or None where none is asked for; options that are None were not given."""
    named = {k: v for k, v in given.items() if v is not None}
    if not run and named:
        raise BadInput(f"--{next(iter(named)).replace('_', '-')}: goes with --run only")
    return RunOptions(**named) if run else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """Many runs of a plan: what was simulated, what came of it, and the curves behind the two choices."""

    plan: Plan
    prediction: dict[str, Any]
    options: RunOptions
    case: Case
    checkpoint_bytes: float
    runs: Outcomes
    intervals: IntervalCurve
    spares: tuple[SparePoint, ...]
    assumptions: tuple[str, ...]

    @property
    def mttf_s(self) -> float:
        """Return the mean time to an unplanned interruption by the fleet's median rates."""
        return mttf_s(self.case.training, self.case.fleet)

    @property
    def num_gpus(self) -> int:
        """Return all accelerators that are held: those that train and those of the spare nodes."""
        t = self.case.training
        return (t.num_nodes + self.case.reserve.num_spares) * t.gpus_per_node

    @property
    def share_finished(self) -> float:
        """Return the share of the runs that came to their end."""
        return float(np.mean(self.runs.finished))


def exit_status(report: RunReport) -> int:
    """Return 0 where the run ends, 1 where most of the simulated ones do not."""
    return 0 if report.share_finished >= 0.5 else 1


def simulate_plan(plan: Plan, prediction: dict[str, Any], options: RunOptions, advance: Advance | None = None) -> RunReport:
    """Return many runs of a plan, whose step was predicted as given, from the first token to the last."""
    tell = advance or (lambda share, note: None)
    case, size, assumptions = run_case(plan, prediction, options)
    check_case(case)
    if options.spares is None:
        num = best_spares(case.training, fleet=case.fleet, elastic=options.elastic)
        case = replace(case, reserve=replace(case.reserve, num_spares=num))
    spares = spare_curve(case, options.runs, lambda share: tell(0.2 * share, "spares"))
    intervals = interval_curve(case, options.runs, lambda share: tell(0.2 + 0.2 * share, "checkpoint intervals"))
    runs = simulate_runs(case, options.runs, lambda share: tell(0.4 + 0.6 * share, f"{options.runs:,} runs"))
    return RunReport(plan=plan, prediction=prediction, options=options, case=case, checkpoint_bytes=size, runs=runs,
                     intervals=intervals, spares=spares, assumptions=assumptions)


def run_case(plan: Plan, prediction: dict[str, Any], options: RunOptions) -> tuple[Case, float, tuple[str, ...]]:
    """Return what is simulated, the bytes of a checkpoint, and what was assumed in words."""
    question, strategy = plan.question, plan.strategy
    fleet, said = load_fleet(options.fleet), []
    if options.start is not None:
        start_date(options.start)
    if options.runs < 1:
        raise BadInput(f"runs: must be at least 1 (is {options.runs})")
    training = _training(plan, prediction, options)
    size = checkpoint_bytes(question.model, strategy)
    if options.storage is None:
        rate = default_storage()
        storage = rate.bytes_per_s * training.num_gpus
        said.append(f"storage takes {show(storage, 'bytes_per_s')}, {show(rate.bytes_per_s, 'bytes_per_s')} a GPU (--storage)")
    else:
        storage = parse(options.storage, "bytes_per_s", "storage")
        if storage == 0:
            raise BadInput(f"storage: must be more than zero (is {options.storage!r}); write it like '200GB/s'")
    copy = host_copy(question.cluster.accelerator).bytes_per_s * writing_ranks(strategy)
    checkpoints = checkpoint_costs(options.checkpoint, size, storage, copy, 1)
    if options.keep is not None and options.keep < 1:
        raise BadInput(f"keep: must be at least 1 checkpoint (is {options.keep})")
    checkpoints = replace(checkpoints, interval_steps=_interval(options.checkpoint_interval, training, checkpoints, fleet),
                          kept=options.keep or 0)
    times = ", ".join(f"{k} {show(v, 's')}" for k, v in (
        ("detection", fleet.detection_s), ("restart", fleet.restart_s), ("repair", fleet.repair_s)) if v)
    said += [f"{times} as the fleet's file says"] if times else []
    if options.eval_every:
        batches = "one batch" if options.eval_batches == 1 else f"{options.eval_batches:,} batches"
        said.append(f"every {options.eval_every:,} steps {batches} evaluated, forward only (--eval-every)")
    case = Case(training=training, checkpoints=checkpoints, fleet=fleet, seed=options.seed,
                reserve=Reserve(num_spares=options.spares or 0, elastic=options.elastic))
    return case, size, tuple(said)


def _training(plan: Plan, prediction: dict[str, Any], options: RunOptions) -> Training:
    cluster, strategy = plan.question.cluster, plan.strategy
    for name, value in (("eval_every", options.eval_every), ("eval_batches", options.eval_batches)):
        if value < 0:
            raise BadInput(f"{name}: must not be negative (is {value})")
    host = min(cluster.gpus_per_host or cluster.gpus_per_node, cluster.gpus_per_node)
    step = float(prediction["step_time_s"])
    return Training(
        num_steps=math.ceil(plan.question.tokens / float(strategy.tokens_per_step)), step_time_s=step,
        step_spread=math.log(float(prediction["p90_s"]) / float(prediction["p10_s"])) / P10_TO_P90,
        num_nodes=cluster.num_gpus // host, gpus_per_node=host,
        unit_nodes=min(unit_gpus(strategy, host), cluster.num_gpus) // host,
        eval_every=options.eval_every, eval_s=options.eval_batches * step * EVAL_SHARE,
    )


def unit_gpus(strategy: Strategy, gpus_per_node: int) -> int:
    """Return the smallest number of accelerators that is whole nodes and whole replicas: what an elastic job can lose."""
    replica = int(strategy.tp * strategy.cp * strategy.pp)
    # experts lie over several replicas of the dense layers
    spread = max(1, int(strategy.ep * strategy.etp) // int(strategy.tp * strategy.cp))
    return math.lcm(replica * spread, gpus_per_node)


def _interval(text: str, training: Training, checkpoints: Checkpoints, fleet: Fleet) -> int:
    if text == AUTO:
        return best_interval(training, checkpoints, fleet)
    wanted = parse(text, "s", "checkpoint_interval")
    if wanted == 0:
        raise BadInput("checkpoint_interval: must be more than zero (is 0); write it like '30min', or 'auto'")
    if wanted > training.undisturbed_s:
        raise BadInput(f"checkpoint_interval: {text!r} is longer than the run itself ({show(training.undisturbed_s, 's')} "
                       "undisturbed); give a shorter one, or 'auto'")
    return max(1, round(wanted / training.step_time_s))


def start_date(text: str) -> date:
    """Return the first day of a run, as people write it."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadInput(f"start: {text!r} is not a date; write it like '2027-01-15'") from None


def quantiles(report: RunReport) -> dict[str, dict[str, float | None]]:
    """Return P10, P50 and P90 of days, accelerator-hours and dollars; None where so many runs did not come to their end."""
    days = _percentiles(report.runs.elapsed_s / SECONDS_PER_DAY, report.runs.finished)
    hours = {k: None if v is None else float(gpu_hours(v, report.num_gpus)) for k, v in days.items()}
    usd = {k: None if v is None else run_usd(v, report.plan.question.price) for k, v in hours.items()}
    return {"days": days, "gpu_hours": hours, "usd": {k: None if v is None else float(v) for k, v in usd.items()}}


def _percentiles(values: NDArray[np.float64], finished: NDArray[np.bool_]) -> dict[str, float | None]:
    whole = bool(finished.all())
    open_ended = np.where(finished, values, np.inf)
    found = np.percentile(open_ended, (10, 50, 90), method="linear" if whole else "higher").tolist()
    return {k: v if math.isfinite(v) else None for k, v in zip(("p10", "p50", "p90"), found, strict=True)}


def end_dates(report: RunReport) -> dict[str, str | None] | None:
    """Return the last day of the run at P10, P50 and P90, or None where no first day is given."""
    if report.options.start is None:
        return None
    first = start_date(report.options.start)
    return {k: None if v is None else (first + timedelta(days=math.ceil(v))).isoformat()
            for k, v in quantiles(report)["days"].items()}


def interruptions(report: RunReport) -> dict[str, float]:
    """Return how often each cause struck in a mean run, unplanned ones first, then planned stops; the most frequent first."""
    fleet, runs = report.case.fleet, report.runs
    found = [(c.name, float(runs.strikes[:, i].mean())) for i, c in enumerate(fleet.causes)]
    planned = [(p.name, float(runs.stops[:, i].mean())) for i, p in enumerate(fleet.planned)]
    return dict(sorted(found, key=lambda x: -x[1]) + planned)


def run_json(report: RunReport) -> dict[str, Any]:
    """Return what `simulate --run --json` prints: the step's prediction, and the run's own keys."""
    t, c, r, runs = report.case.training, report.case.checkpoints, report.case.reserve, report.runs
    found, by_cause, low_high = quantiles(report), interruptions(report), np.percentile(runs.goodputs, (10, 90)).tolist()
    planned = [p.name for p in report.case.fleet.planned]
    unplanned = sum(v for k, v in by_cause.items() if k not in planned)
    data = {k: v for k, v in report.prediction.items() if k not in ("days_p10", "days_p90")}
    return data | {
        "undisturbed_days": t.undisturbed_s / SECONDS_PER_DAY, **found,
        "usd": found["usd"] if report.plan.question.price else None, "end_dates": end_dates(report),
        "goodput": runs.goodput, "goodput_p10": low_high[0], "goodput_p90": low_high[1],
        "time_shares": runs.shares, "interruptions": {
            "unplanned": unplanned, "planned": sum(by_cause[p] for p in planned), "by_cause": by_cause,
            "mean_time_to_failure_s": report.mttf_s if math.isfinite(report.mttf_s) else None,
        },
        "checkpoint_interval_s": c.interval_steps * t.step_time_s, "checkpoint_interval_steps": c.interval_steps,
        "checkpoint_bytes": report.checkpoint_bytes, "checkpoint_stall_s": c.stall_s, "checkpoint_write_s": c.write_s,
        "checkpoint_curve": _curve_json(report.intervals), "spares": r.num_spares,
        "spares_curve": [{"spares": p.num_spares, "days": p.days, "gpu_hours": p.gpu_hours, "waiting": p.waiting}
                         for p in report.spares],
        "fleet": report.case.fleet.name, "fleet_sources": report.case.fleet.sources, "elastic": r.elastic,
        "runs": len(runs.elapsed_s), "seed": report.case.seed, "share_finished": report.share_finished,
        "assumptions": list(report.assumptions),
    }


def _curve_json(curve: IntervalCurve) -> dict[str, Any]:
    def shown(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "young_s": shown(curve.young_s), "daly_s": shown(curve.daly_s), "exact_s": shown(curve.exact_s),
        "points": [{"interval_steps": p.interval_steps, "interval_s": p.interval_s, "goodput": p.goodput,
                    "expected_goodput": p.expected_goodput} for p in curve.points],
    }
