"""A worker that does to itself what machines do to workers: `python -m faulty JOB.json`, faults in $FAULTS as JSON.

Each fault is {"attempt", "rank", "step", "kind"}: it strikes in that step of that attempt, before the update.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from executor import train
from executor.vitals import ATTEMPT

UPDATE, SAVE = train.update, train.Checkpointer.save
done = {"steps": 0}


def mine(kind: str | None = None, step: int | None = None) -> dict[str, Any] | None:
    """Return the fault of this rank in this attempt, if it is of that kind and step."""
    for fault in json.loads(os.environ.get("FAULTS", "[]")):
        at = (fault["attempt"], fault["rank"]) == (int(os.environ[ATTEMPT]), int(os.environ["RANK"]))
        if at and kind in (None, fault["kind"]) and step in (None, fault["step"]):
            return dict(fault)
    return None


def update(parallel: Any, recorder: Any) -> None:
    if fault := mine(step=done["steps"]):
        strike(str(fault["kind"]))
    done["steps"] += 1
    time.sleep(float(os.environ.get("SLOW_S", "0")))
    UPDATE(parallel, recorder)


def strike(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "error":
        raise ValueError("a fault of the software")
    elif kind == "hang":
        dist.barrier()  # the others do not come
    elif kind == "memory":
        torch.empty(1 << 50)
    elif kind == "disk":
        # writing past this size fails, as on a full disk: in the midst of a file
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    elif kind == "disk again":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


if __name__ == "__main__":
    train.update = update
    train.main(sys.argv[1])
