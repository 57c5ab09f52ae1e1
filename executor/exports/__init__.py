"""Exports: a plan in the words of the framework or launcher that runs it; what cannot be said there is refused.

One file a target, and one line here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from executor.exports.accelerate import accelerate
from executor.exports.deepspeed import deepspeed
from executor.exports.export import Export, pool_refusals
from executor.exports.kubernetes import kubernetes
from executor.exports.megatron import megatron
from executor.exports.skypilot import skypilot
from executor.exports.slurm import slurm
from executor.exports.torchrun import torchrun
from executor.exports.torchtitan import torchtitan
from executor.exports.write import write_export
from executor.run import Job
from planner.plan import Plan
from profiles.files import BadInput

__all__ = ["EXPORTS", "LAUNCHERS", "SUBMITTED", "Export", "export_plan", "write_export"]

EXPORTS: dict[str, Callable[[Plan], Export]] = {
    "torchtitan": torchtitan, "megatron": megatron, "deepspeed": deepspeed, "accelerate": accelerate, "torchrun": torchrun,
    "slurm": slurm, "kubernetes": kubernetes, "skypilot": skypilot,
}
"""Target -> what makes its files of a plan."""
LAUNCHERS: dict[str, Callable[[Plan, Job | None], Export]] = {"slurm": slurm, "kubernetes": kubernetes, "torchrun": torchrun}
"""Targets that start Headway's own engine on several machines, with a job of one's own."""
SUBMITTED: dict[str, tuple[str, ...]] = {
    "slurm": ("sbatch", "headway.sbatch"), "kubernetes": ("kubectl", "apply", "-f", "jobset.yaml"),
}
"""Launcher -> the words that submit its files, in their folder."""


def export_plan(plan: Plan, target: str) -> Export:
    """Return the files of a plan for a target, or why there are none."""
    if target not in EXPORTS:
        near = difflib.get_close_matches(target, EXPORTS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"to: {target!r} is not known; known are {', '.join(EXPORTS)}{meant}")
    if refusals := tuple(pool_refusals(plan, target)):
        return Export(refusals=refusals)
    return EXPORTS[target](plan)
