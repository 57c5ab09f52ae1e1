"""The whole loop, small: plan a real model on a real cluster, then profile, plan, replay, train and compare here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from executor.engine import refusal
from executor.journal import read_journal
from executor.launch import launch
from executor.run import Job, Run
from planner.plan import Plan, plan_from_search, write_plan
from planner.predict import predict_replayed
from planner.question import Question, ask
from planner.search import Found, search
from planner.shapes import model_cases
from profiles import files
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import load_cluster
from profiles.measure import measure_machine
from profiles.measure.devices import num_devices
from profiles.tables import write_table
from reports.compare import Comparison, compare_plan_run, comparison_table
from reports.console import console, progress
from reports.page import write_page
from reports.plan_tables import prediction_table, rejected_table, runners_up_table
from simulator.replay import rank_names
from simulator.timeline import Timeline, write_trace

LARGE_MODEL, LARGE_CLUSTER, LARGE_TOKENS = "llama-3-8b", "dgx-h100:16", 15e12
SMALL_MODEL, SEQUENCES_PER_RANK, WARM_UP_STEPS = "bytes-5m", 8, 3


def quickstart(
    out: str | Path, *, seconds: float = 45.0, steps: int = 30, ranks: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Run every stage and return the figures; everything that is made lies under `out`."""
    num_ranks = num_devices("cpu") if ranks is None else ranks
    if num_ranks < 1:
        raise BadInput(f"ranks: must be at least 1 (is {num_ranks})")
    if not seconds > 0:
        raise BadInput(f"seconds: must be positive (is {seconds:g})")
    if steps <= WARM_UP_STEPS:
        raise BadInput(f"steps: must be more than the {WARM_UP_STEPS} of the warm-up (is {steps})")
    out = files.make_folder(out)

    def say(shown: object) -> None:
        if not quiet:
            console.print(shown, soft_wrap=True)

    say(f"[bold]1 of 2: planning for real[/]: {LARGE_MODEL} on {LARGE_CLUSTER} for 15T tokens")
    plan, found, _ = _plan_large(out / LARGE_MODEL)
    assert found.best is not None
    say(prediction_table(plan.prediction, plan.strategy, f"{LARGE_MODEL} on {LARGE_CLUSTER}"))
    say(runners_up_table(found.best, found.runners_up))
    say(rejected_table(found))
    say(f"[bold]2 of 2: the loop at home[/]: {SMALL_MODEL} on this machine, {num_ranks} ranks")
    local, run = _loop_at_home(out / "local", num_ranks, seconds, steps)
    comparison = compare_plan_run(local, run)
    say(prediction_table(local.prediction, local.strategy, f"{SMALL_MODEL} on this machine"))
    say(comparison_table(comparison))
    say(f"loss {run.losses[0]:.3f} -> {run.losses[-1]:.3f} in {steps} steps")
    for page in (out / LARGE_MODEL / "plan.html", out / "local" / "plan.html"):
        say(f"page: {page}")
    say(f"trace: {out / LARGE_MODEL / 'trace.json'} (open it at ui.perfetto.dev)")
    return _figures(plan, found, local, run, comparison)


def _plan_large(folder: Path) -> tuple[Plan, Found, Timeline]:
    with progress("planning") as advance:
        question = ask(
            load_model(LARGE_MODEL), load_cluster(LARGE_CLUSTER), tokens=LARGE_TOKENS, cluster_text=LARGE_CLUSTER
        )
        found = search(question, on_progress=lambda share: advance(0.8 * share, "pricing every strategy"))
        plan = plan_from_search(question, found)
        timeline = _write(plan, folder)
    return plan, found, timeline


def _write(plan: Plan, folder: Path, run: Run | None = None) -> Timeline:
    """Write plan, trace and page of a plan and return its replay."""
    _, timeline = predict_replayed(plan.question, plan.strategy)
    write_plan(plan, folder / "plan.yaml")
    write_trace(folder / "trace.json", timeline, rank_names(plan.strategy))
    write_page(plan, folder / "plan.html", run=run, trace="trace.json",
               journal=read_journal(run.job.out) if run else ())
    return timeline


def _loop_at_home(folder: Path, num_ranks: int, seconds: float, steps: int) -> tuple[Plan, Run]:
    model, batch = load_model(SMALL_MODEL), SEQUENCES_PER_RANK * num_ranks
    with progress("profiling") as advance:
        table = measure_machine(
            num_ranks=num_ranks, cases=model_cases(model, num_ranks, "cpu", global_batch=batch), seconds=seconds,
            folder=files.make_folder(folder), on_progress=lambda stage, share: advance(share, stage),
        )
    profile = write_table(table, folder / "profile.csv")
    with progress("planning at home") as advance:
        question = _local_question(profile, batch, steps)
        found = search(question, lambda s: refusal(s, model, "cpu"), lambda share: advance(share, ""))
        plan = plan_from_search(question, found, profile)
        _write(plan, folder)
    job = Job(model=model, strategy=plan.strategy, out=str(folder / "run"), num_steps=steps,
              num_warmup_steps=WARM_UP_STEPS, learning_rate=1e-3)
    with progress("training") as advance:
        run = launch(job, lambda e: advance((e["step"] + 1) / steps, f"loss {e['loss']:.3f}"))
    with progress("reporting"):
        _write(plan, folder, run)
    return plan, run


def _local_question(profile: Path, batch: int, steps: int) -> Question:
    model = load_model(SMALL_MODEL)
    cluster = load_cluster("local", profile)
    return ask(model, cluster, tokens=float(steps * batch * model.max_seq_len), cluster_text="local",
               seq_len=model.max_seq_len, global_batch=batch)


def _figures(plan: Plan, found: Found, local: Plan, run: Run, comparison: Comparison) -> dict[str, Any]:
    return {
        "plan": {"best": plan.prediction, "strategies_total": found.strategies_total,
                 "strategies_priced": found.strategies_priced, "rejected": found.rejected},
        "local": comparison.as_dict() | {
            "strategy": local.strategy.describe(), "first_loss": run.losses[0], "final_loss": run.losses[-1],
        },
    }
