"""What the launchers start: Headway's own engine under torchrun on each machine, with the job in a file.

`headway run` starts the same worker, on one machine. A launcher's part is where the job file comes from, which machine this is
and where the first one is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from executor.engine import refusal
from executor.exports.export import hosts, num_steps, pool_notes
from executor.run import Job, job_as_dict
from planner.plan import Plan
from profiles.measure import CPU_ENVIRONMENT

FILE = "job.json"
PORT = 29500
CORPUS = "python -c 'import sys; from executor.data import write_stdlib; write_stdlib(sys.argv[1])' run"
"""Writes the training text that a job of this kind reads, as `headway run` does before it starts torchrun."""


def job_of(plan: Plan) -> Job:
    """Return the job that `headway run` makes of a plan without further options."""
    return Job(model=plan.question.model, strategy=plan.strategy, out="run", device=plan.question.cluster.accelerator.device)


def job_text(job: Job, indent: int | None = 2) -> str:
    """Return a job as the worker reads it."""
    return json.dumps(job_as_dict(job), indent=indent)


def refusals_of(plan: Plan) -> Iterator[str]:
    """Yield why the engine cannot run a plan, if it cannot."""
    if reason := refusal(plan.strategy, plan.question.model, plan.question.cluster.accelerator.device):
        yield f"strategy: {reason}"


def torchrun_words(plan: Plan, node_rank: str, address: str) -> list[str]:
    """Return torchrun's words on one machine; rank and address as the launcher writes them."""
    machines, gpus = hosts(plan)
    where = ["--standalone"] if machines == 1 else [
        "--nnodes", str(machines), "--node-rank", node_rank, "--master-addr", address, "--master-port", str(PORT)
    ]
    return ["torchrun", *where, "--nproc-per-node", str(gpus), "-m", "executor.train", FILE]


def environment_of(plan: Plan) -> dict[str, str]:
    """Return the variables that `headway run` sets for its workers, the path to this package apart."""
    return dict(CPU_ENVIRONMENT) if job_of(plan).device == "cpu" else {}


def job_notes(plan: Plan, job: Job | None) -> Iterator[str]:
    """Yield what the plan does not know of its job, unless that is given."""
    if job is None:
        yield from _unknown(plan, job_of(plan))
    yield from pool_notes(plan)
    yield "headway[torch] must be installed on every machine"
    yield "rank 0 writes the folder run, for `headway compare plan.yaml run`"


def _unknown(plan: Plan, job: Job) -> Iterator[str]:
    yield (f"steps ({job.num_steps}; the plan's tokens are {num_steps(plan)}), learning rate ({job.learning_rate:g}), data "
           f"({job.data}) "
           f"and seed ({job.seed}) are not in the plan: `headway run`'s own stand in the job, for you to edit")
