"""What `headway validate --local` does: predict steps on this machine, run them, and show how far off they are.

A designed list of small models and strategies goes through the same prediction and the same launch as any plan.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from executor.launch import launch
from executor.run import Job, Run
from planner.predict import Prediction, predict_replayed
from planner.question import ask
from planner.shapes import kernels_of_strategies
from profiles import files
from profiles.families.llama import llama_spec
from profiles.files import BadInput
from profiles.hardware import Accelerator, cluster_from_table
from profiles.measure import measure_machine
from profiles.measure.devices import num_devices
from profiles.measure.others import Load, Usage, descendants, load_between, quieter, usage
from profiles.model import ModelSpec
from profiles.tables import MeasuredTable, read_table, write_table
from reports.accuracy import Accuracy, Outcome
from reports.headline import LOCAL
from reports.local_report import LocalAccuracy, local_json, local_report, machine_of
from reports.validate_command import write_accuracy
from simulator.metrics import mfu
from simulator.software import Software
from simulator.strategy import Strategy

NUM_RANKS = 2
PROFILE_SECONDS = 100.0
WARM_UP_STEPS = 2
CASE_S, MIN_STEPS, MAX_STEPS = 8.0, 7, 30
"""About how long a case trains, and the fewest and most steps it is given for that, without its warm-up."""
PROFILE_SHARE = 0.25
"""Of the progress bar."""

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and a strategy to predict and to run."""

    name: str
    model: ModelSpec
    strategy: Strategy


def _model(millions: int, num_layers: int, hidden: int, ffn_hidden: int) -> ModelSpec:
    return llama_spec(
        name=f"bytes-{millions}m", num_layers=num_layers, hidden=hidden, num_heads=hidden // 64, num_kv_heads=hidden // 64,
        head_dim=64, ffn_hidden=ffn_hidden, vocab=256, max_seq_len=1024, source="a byte-level decoder for local runs",
    )


M5, M15, M40 = _model(5, 6, 256, 704), _model(15, 8, 384, 1024), _model(40, 8, 640, 1728)
M100, M150 = _model(100, 8, 1024, 2752), _model(150, 12, 1024, 2752)

DESIGN: tuple[tuple[ModelSpec, dict[str, Any]], ...] = (
    (M5, {"seq_len": 128, "micro_batch": 4}),
    (M5, {"seq_len": 256, "micro_batch": 4, "tp": 2}),
    (M5, {"seq_len": 256, "micro_batch": 1, "num_microbatches": 4, "pp": 2}),
    (M5, {"seq_len": 256, "micro_batch": 2, "dp": 2}),
    (M5, {"seq_len": 128, "micro_batch": 8, "dp": 2, "zero": 3}),
    (M15, {"seq_len": 512, "micro_batch": 1}),
    (M15, {"seq_len": 512, "micro_batch": 2, "tp": 2}),
    (M15, {"seq_len": 1024, "micro_batch": 1, "dp": 2}),
    (M15, {"seq_len": 256, "micro_batch": 2, "num_microbatches": 4, "pp": 2}),
    (M40, {"seq_len": 256, "micro_batch": 2, "dp": 2, "zero": 3}),
    (M40, {"seq_len": 512, "micro_batch": 1, "tp": 2}),
    (M40, {"seq_len": 128, "micro_batch": 2, "num_microbatches": 4, "pp": 2}),
    (M100, {"seq_len": 128, "micro_batch": 2, "dp": 2, "zero": 3}),
    (M150, {"seq_len": 128, "micro_batch": 1}),
    (M100, {"seq_len": 128, "micro_batch": 1, "num_microbatches": 4, "pp": 2}),
    (M100, {"seq_len": 256, "micro_batch": 1, "dp": 2}),
)
"""Every kind of parallelism on small and large models, the cheapest steps first."""


def local_cases(num: int | None = None) -> tuple[Case, ...]:
    """Return the designed cases, or the first of them."""
    if num is not None and not 1 <= num <= len(DESIGN):
        raise BadInput(f"cases: must be from 1 to {len(DESIGN)} (is {num})")
    software = Software(kernels="eager")
    cases = []
    for model, fields in DESIGN[:num]:
        strategy = Strategy(precision="fp32", software=software, **fields)
        cases.append(Case(name=f"{model.name}, {_short(strategy)}", model=model, strategy=strategy))
    return tuple(cases)


def _short(strategy: Strategy) -> str:
    kinds = ("tp=2" if strategy.tp > 1 else "", "1F1B pp=2" if strategy.pp > 1 else "",
             ("ZeRO-3 " if strategy.zero == 3 else "") + "dp=2" if strategy.dp > 1 else "")
    return f"{next(filter(None, kinds), 'alone')}, {strategy.micro_batch} x {strategy.num_microbatches} of {strategy.seq_len}"


def validate_local(
    out: Path, *, profile: Path | None = None, num_cases: int | None = None, seconds: float = PROFILE_SECONDS,
    on_progress: Progress | None = None, cases: Sequence[Case] | None = None,
) -> LocalAccuracy:
    """Return predicted against measured on this machine; page, rows, figures, profile and runs lie in `out`."""
    cases = local_cases(num_cases) if cases is None else cases
    out = files.make_folder(out)
    tell = on_progress or (lambda share, note: None)
    warnings = []
    if profile is None:
        if num_devices("cpu") < NUM_RANKS:
            raise BadInput(f"local: two ranks need {NUM_RANKS} cores, and this process may use {num_devices('cpu')}")
        table = _measure(cases, out, seconds, lambda share, note: tell(PROFILE_SHARE * share, note))
        begin = PROFILE_SHARE
    else:
        table, begin = read_table(profile), 0.0
    others = table.head["environment"].get("cores_of_others")
    if others is not None and Load(average=0.0, cores_of_others=others).disturbed:
        warnings.append(f"others used {others:.2f} cores while this machine was profiled: its times are too long")
    outcomes, loads = [], []
    for index, case in enumerate(cases):
        def running(done: float, index: int = index, case: Case = case) -> None:
            tell(begin + (1 - begin) * (index + done) / len(cases), case.name)

        outcome, load = run_case(case, table, out / "runs" / f"{index + 1:02}", running)
        outcomes.append(outcome)
        loads.append(load)
        if load.disturbed:
            warnings.append(f"{case.name}: others used {load.cores_of_others:.2f} cores while it ran")
    result = LocalAccuracy(accuracy=Accuracy(outcomes=tuple(outcomes), skipped=()), loads=tuple(loads),
                           warnings=tuple(warnings), machine=machine_of(table))
    write_accuracy(result.accuracy, local_report(result), local_json(result), out)
    return result


def _measure(cases: Sequence[Case], out: Path, seconds: float, on_progress: Progress) -> MeasuredTable:
    kernels = kernels_of_strategies((c.model, c.strategy) for c in cases)
    table = measure_machine(
        num_ranks=NUM_RANKS, cases=kernels, seconds=seconds, folder=out,
        on_progress=lambda stage, share: on_progress(share, f"profiling: {stage}"),
    )
    write_table(table, out / "profile.csv")
    return table


def run_case(
    case: Case, table: MeasuredTable, folder: Path, on_progress: Callable[[float], None]
) -> tuple[Outcome, Load]:
    """Return what a case measured beside what is predicted for it, and who else used the processor."""
    strategy = case.strategy
    # the profile was measured with every rank busy, so a strategy of one rank gets two of them: the other half idles
    cluster = cluster_from_table(table, int(strategy.world_size))
    question = ask(case.model, cluster, tokens=1e9, seq_len=strategy.seq_len, global_batch=int(strategy.global_batch),
                   precision=strategy.precision, software=strategy.software)
    prediction, _ = predict_replayed(question, strategy)
    num_steps = WARM_UP_STEPS + min(MAX_STEPS, max(MIN_STEPS, math.ceil(CASE_S / prediction.step_time_s)))
    job = Job(model=case.model, strategy=strategy, out=str(folder), num_steps=num_steps, num_warmup_steps=WARM_UP_STEPS)
    workers: list[int] = []
    ends: list[Usage] = []

    def on_step(event: dict[str, Any]) -> None:
        workers[:] = workers or descendants()
        ends.append(usage(workers))
        on_progress((event["step"] + 1) / num_steps)

    on_progress(0.0)
    average = os.getloadavg()[0]
    run = launch(job, on_step)
    step_time_s, others = quiet_step(run, ends)
    return (outcome_of_case(case, prediction, run, step_time_s, cluster.accelerator),
            Load(average=round(average, 2), cores_of_others=others))


def quiet_step(run: Run, ends: Sequence[Usage]) -> tuple[float, float | None]:
    """Return the median of the measured steps that others disturbed least, and the cores that others used meanwhile.

    `ends` are the moments in which the steps ended, from the first on.
    """
    spans = list(pairwise(ends))[run.job.num_warmup_steps - 1 :]
    loads = [load_between(*span).cores_of_others for span in spans]
    others = [cores for cores in loads if cores is not None]
    times = run.measured_step_times_s
    if len(others) != len(times):
        return run.step_time_s, None
    kept = quieter(list(zip(times, others, strict=True)), others)
    return median(seconds for seconds, _ in kept), round(fmean(cores for _, cores in kept), 2)


def outcome_of_case(
    case: Case, prediction: Prediction, run: Run, step_time_s: float, accelerator: Accelerator
) -> Outcome:
    """Return a run and its step's time beside its prediction as the row of an accuracy."""
    strategy, ranks = case.strategy, int(case.strategy.world_size)
    return Outcome(
        id=case.name, source=LOCAL, model=case.model.name, family="dense", gpu=accelerator.title, num_gpus=ranks,
        precision=strategy.precision, trust="A", full=True, strategy=strategy.describe(), software=strategy.software.name,
        set_key=case.name, tokens_per_step=float(strategy.tokens_per_step), measured_s=step_time_s,
        predicted_s=prediction.step_time_s, p10_s=prediction.p10_s, p90_s=prediction.p90_s, loso_s=None,
        measured_tokens_per_s_per_gpu=float(strategy.tokens_per_step) / step_time_s / ranks,
        tokens_per_s_per_gpu=prediction.tokens_per_s_per_gpu,
        measured_mfu=float(mfu(case.model, strategy, step_time_s, accelerator)), mfu=prediction.mfu,
        peak_kind="resident", measured_peak_bytes=float(max(run.peak_memory_bytes)),
        peak_bytes=prediction.peak_memory_bytes, fits=prediction.fits, breakdown_s=prediction.breakdown_s,
    )
