"""torchrun: the job as a file, and a script with the line that starts it on each machine.

Options as in torch 2.13 (torch/distributed/run.py).
"""

from __future__ import annotations

from executor.exports.export import Export, comments, hosts
from executor.exports.job import CORPUS, FILE, environment_of, job_notes, job_of, job_text, refusals_of, torchrun_words
from executor.run import Job
from planner.plan import Plan

SCRIPT = "torchrun.sh"


def torchrun(plan: Plan, job: Job | None = None) -> Export:
    """Return the job of a plan, and the script that each machine runs."""
    if refusals := tuple(refusals_of(plan)):
        return Export(refusals=refusals)
    machines, _ = hosts(plan)
    each = (f"run it on each of {machines} machines, with NODE_RANK (0 to {machines - 1}) and MASTER_ADDR (the first) set, "
            "in a folder that they share",) if machines > 1 else ()
    notes = (*each, *job_notes(plan, job))
    lines = [
        "#!/usr/bin/env bash", comments(notes) + "set -euo pipefail", 'cd "$(dirname "$0")"',
        *(f"export {name}={value}" for name, value in environment_of(plan).items()),
        CORPUS if machines == 1 else f'[ "$NODE_RANK" != 0 ] || {CORPUS}',
        "exec " + " ".join(torchrun_words(plan, '"$NODE_RANK"', '"$MASTER_ADDR"')),
    ]
    return Export(files={FILE: job_text(job or job_of(plan)) + "\n", SCRIPT: "\n".join(lines) + "\n"}, notes=notes)
