"""Ending a rank."""

from __future__ import annotations

import os
import sys

import torch.distributed as dist


def leave_group() -> None:
    """Wait for all ranks, then leave; on gloo the process ends here.

    Taking gloo down aborts the process now and then ("terminate called without an active exception", torch 2.13.0,
    about one run in ten under tensor parallelism), after all work is done; so it is left to the system.
    """
    dist.barrier()
    if dist.get_backend() == "gloo":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    dist.destroy_process_group()
