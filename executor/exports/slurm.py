"""Slurm: the job as a file, and a batch script for `sbatch`.

Options and variables as in Slurm 25.05 (slurm.schedmd.com/sbatch.html, srun.html).
"""

from __future__ import annotations

from executor.exports.export import Export, comments, hosts
from executor.exports.job import CORPUS, FILE, environment_of, job_notes, job_of, job_text, refusals_of, torchrun_words
from executor.run import Job
from planner.plan import Plan

SCRIPT = "headway.sbatch"


def slurm(plan: Plan, job: Job | None = None) -> Export:
    """Return the job of a plan, and the batch script that runs it."""
    if refusals := tuple(refusals_of(plan)):
        return Export(refusals=refusals)
    machines, gpus = hosts(plan)
    notes = ("submit it in the folder of the two files, which the machines must share: sbatch " + SCRIPT,
             "account, partition, time and container are not in the plan; add them here or to sbatch's line",
             *job_notes(plan, job))
    options = {"job-name": "headway", "nodes": machines, "ntasks-per-node": 1, "exclusive": None}
    if plan.question.cluster.accelerator.device == "cuda":
        options["gpus-per-node"] = gpus
    words = " ".join(torchrun_words(plan, "$SLURM_NODEID", "$MASTER_ADDR"))
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH --{name}" + ("" if value is None else f"={value}") for name, value in options.items()),
        comments(notes) + "set -euo pipefail",
        *(f"export {name}={value}" for name, value in environment_of(plan).items()),
        'read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")', "export MASTER_ADDR", CORPUS,
        # SLURM_NODEID is known to the task on a machine only, so the line is read there
        f"srun bash -c '{words}'",
    ]
    return Export(files={FILE: job_text(job or job_of(plan)) + "\n", SCRIPT: "\n".join(lines) + "\n"}, notes=notes)
