"""SkyPilot: a task with the plan's machines, and the job that it runs.

Fields as in the task schema of skypilot 0.14.1 (sky/utils/schemas.py, get_task_schema); variables of the running task as in its
documentation (SKYPILOT_NODE_RANK, SKYPILOT_NODE_IPS); names of accelerators as `sky show-gpus` lists them.
"""

from __future__ import annotations

from typing import Any

from executor.exports.export import Export, hosts, yaml_text
from executor.exports.job import CORPUS, FILE, environment_of, job_notes, job_of, job_text, refusals_of, torchrun_words
from executor.run import Job
from planner.plan import Plan

TASK = "skypilot.yaml"
ACCELERATORS = {
    "a100-40gb": "A100", "a100-80gb": "A100-80GB", "a100-80gb-pcie": "A100-80GB", "h100-80gb": "H100", "h100-94gb": "H100",
    "h200-141gb": "H200", "b200-180gb": "B200", "b300-288gb": "B300", "gb200-186gb": "GB200", "l40s-48gb": "L40S",
    "v100-32gb": "V100-32GB", "mi300x-192gb": "MI300X", "rtx4090-24gb": "RTX4090", "rtxa6000-48gb": "RTXA6000",
}
"""Accelerator of the catalogue -> SkyPilot's name."""


def skypilot(plan: Plan, job: Job | None = None) -> Export:
    """Return the job of a plan, and the task that runs it."""
    accelerator = plan.question.cluster.accelerator
    refusals = tuple(refusals_of(plan))
    if accelerator.device == "cuda" and accelerator.name not in ACCELERATORS:
        refusals += (f"accelerator {accelerator.name}: SkyPilot offers none by that name; it has {', '.join(ACCELERATORS)}",)
    if refusals:
        return Export(refusals=refusals)
    notes = (f"start it in the folder of the two files: sky launch {TASK}",
             "cloud, region, disk and price are SkyPilot's to choose", *job_notes(plan, job))
    return Export(files={FILE: job_text(job or job_of(plan)) + "\n", TASK: yaml_text(_task(plan), notes)}, notes=notes)


def _task(plan: Plan) -> dict[str, Any]:
    machines, gpus = hosts(plan)
    accelerator = plan.question.cluster.accelerator
    task: dict[str, Any] = {"name": "headway", "workdir": ".", "num_nodes": machines}
    if accelerator.device == "cuda":
        task["resources"] = {"accelerators": f"{ACCELERATORS[accelerator.name]}:{gpus}"}
    if variables := environment_of(plan):
        task["envs"] = variables
    words = torchrun_words(plan, '"$SKYPILOT_NODE_RANK"', '"$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"')
    task["run"] = f"set -e\n{CORPUS}\n{' '.join(words)}\n"
    return task
