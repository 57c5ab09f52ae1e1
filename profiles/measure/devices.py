"""How many ranks this machine can keep busy."""

from __future__ import annotations

import importlib.util
import os

from profiles.files import BadInput


def num_devices(device: str) -> int:
    """Return the cores that this process may use, or the GPUs that torch sees."""
    if device == "cpu":
        return len(os.sched_getaffinity(0))
    if device != "cuda":
        raise BadInput(f"device: must be cpu or cuda (is {device!r})")
    if importlib.util.find_spec("torch") is None:
        raise BadInput("device: cuda needs torch; pip install headway[torch]")
    import torch

    if torch.cuda.device_count() == 0:
        raise BadInput("device: cuda was asked for, and torch finds no GPU on this machine")
    return torch.cuda.device_count()
