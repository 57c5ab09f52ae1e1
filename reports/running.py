"""What `headway run` adds to a launch: what the plan says of the job, what is told of its progress, its end in numbers."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import replace
from typing import Any

from rich.table import Table

from executor.data import FAKE
from executor.exports import LAUNCHERS, SUBMITTED, write_export
from executor.goodput import Goodput
from executor.journal import Line
from executor.launch import launch
from executor.monitor import interval_text
from executor.run import Expected, Job, Run
from planner.plan import Plan
from planner.predict import predict_replayed
from profiles.cost import peak_flop_per_s
from profiles.files import BadInput
from profiles.units import show
from reports.measured import predicted_seconds


def expected_of(plan: Plan) -> Expected:
    """Return what a plan says of its steps, in the terms that ranks measure."""
    prediction, timeline = predict_replayed(plan.question, plan.strategy)
    seconds = predicted_seconds(prediction.breakdown_s, timeline, plan.strategy, dp_apart=False)
    strategy, price = plan.strategy, plan.question.price
    return Expected(
        step_time_s=float(prediction.step_time_s), seconds={term: float(s) for term, s in seconds.items()},
        peak_flop_per_s=float(peak_flop_per_s(plan.question.cluster.accelerator, strategy.matmul or strategy.dtype)),
        usd_per_gpu_hour=None if price is None else float(price.usd_per_gpu_hour),
    )


def event_text(line: Line, num_steps: int) -> str | None:
    """Return an event of a run as people read it, or None where it is of no interest to them."""
    match line["event"]:
        case "interval":
            return interval_text(line, num_steps)
        case "ready":
            return f"goes on after step {line['step']}, from {line['checkpoint']}" if line.get("checkpoint") else None
        case "drift":
            return f"drift, likely cause {line['cause']}: {line['says']}"
        case "failure":
            return f"attempt {line['attempt']} failed: {line['reason']}"
        case "refit":
            return f"{line['ranks']} ranks are left; goes on with {line['strategy']}"
        case "damaged":
            return f"not used: {line['reason']}"
        case "checkpoint_failed":
            return f"checkpoint after step {line['step']} failed, training goes on: {line['reason']}"
        case _:
            return None


def terms_of(spent: Goodput) -> dict[str, float]:
    """Return where a run's time went: seconds by what they are called."""
    return {"training": spent.training_s, "data": spent.data_s, "checkpoints": spent.checkpoint_s, "restarts": spent.restart_s,
            "wasted steps": spent.wasted_s, "start and end": spent.start_s}


def goodput_text(spent: Goodput) -> str:
    """Return where a run's time went, in a line."""
    return f"goodput {spent.ratio:.1%} of {show(spent.wall_s, 's')}: " + ", ".join(
        f"{name} {show(seconds, 's')}" for name, seconds in terms_of(spent).items() if seconds)


def dry_run(job: Job) -> Run:
    """Start every rank of a job, build its mesh and model, and run one step on bytes by chance; nothing is kept."""
    with tempfile.TemporaryDirectory(prefix="headway-dry-run-") as folder:
        return launch(replace(
            job, out=folder, data=FAKE, fingerprint="", num_steps=1, num_warmup_steps=0, checkpoint_every=0, resume="",
            log_every=0, prometheus="", tensorboard="", save_weights="",
        ))


def dry_run_json(run: Run) -> dict[str, Any]:
    """Return what a dry run found for JSON."""
    return {"ranks": int(run.job.strategy.world_size), "strategy": run.job.strategy.describe(), "loss": run.losses[0],
            "first_step_s": run.step_times_s[0], "peak_memory_bytes": list(run.peak_memory_bytes),
            "environment": run.environment}


def dry_run_table(run: Run) -> Table:
    """Return what a dry run found, rank by rank."""
    table = Table(title=f"Dry run: {run.job.strategy.describe()}; loss {run.losses[0]:.3f} on bytes by chance, "
                        f"first step {show(run.step_times_s[0], 's')}", title_justify="left")
    for name in ("rank", "memory before", "peak memory"):
        table.add_column(name, justify="right")
    for rank, (idle, peak) in enumerate(zip(run.idle_memory_bytes, run.peak_memory_bytes, strict=True)):
        table.add_row(str(rank), show(idle, "bytes"), show(peak, "bytes"))
    return table


def on_nodes(plan: Plan, job: Job, launcher: str, *, submit: bool) -> list[str]:
    """Write a job for several machines into its folder, and submit it if asked; return what was done, in lines."""
    if launcher not in LAUNCHERS:
        raise BadInput(f"nodes: {launcher!r} is not known; known are {', '.join(LAUNCHERS)}")
    if submit and launcher not in SUBMITTED:
        raise BadInput(f"submit: {launcher} has nothing to submit to; start its script on each machine")
    exported = LAUNCHERS[launcher](plan, replace(job, out="run"))
    if exported.refusals:
        raise BadInput(exported.refusals[0])
    done = [str(path) for path in write_export(exported, job.out)] + [f"- {note}" for note in exported.notes]
    if not submit:
        return done
    words = SUBMITTED[launcher]
    if shutil.which(words[0]) is None:
        raise BadInput(f"submit: {words[0]} is not installed here; the files are in {job.out}")
    ended = subprocess.run(words, cwd=job.out, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BadInput(f"submit: {' '.join(words)} ended with status {ended.returncode}: {ended.stderr.strip()}")
    return [*done, ended.stdout.strip()]


def data_place(text: str) -> tuple[int, str]:
    """Return the samples that were trained before and the fingerprint of the data ('' if not given): 'N' or 'N:FINGERPRINT'."""
    number, _, fingerprint = text.partition(":")
    if not number.isdigit() or not all(c in "0123456789abcdef" for c in fingerprint):
        raise BadInput(f"first_sample: {text!r} is no number of samples; write it like '96', or '96:0f3a' with the fingerprint "
                       "of the data")
    return int(number), fingerprint


def default_restarts(asked: int | None, checkpoint_every: int) -> int:
    """Return how often training is restarted: three times where there are checkpoints to go on from."""
    if asked is not None and asked < 0:
        raise BadInput(f"max_restarts: must not be negative (is {asked})")
    return asked if asked is not None else 3 if checkpoint_every else 0
