"""What a measurement depends on besides the machine's name: versions, driver, clocks, power."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

SMI_FIELDS = {
    "driver_version": "driver", "clocks.sm": "sm_clock", "clocks.max.sm": "sm_clock_max", "clocks.mem": "memory_clock",
    "power.draw": "power", "power.limit": "power_limit", "temperature.gpu": "temperature_c",
    "clocks_event_reasons.active": "clock_limits",
}
"""Fields that nvidia-smi is asked for, and what the profile calls them."""


def environment(device: str) -> dict[str, Any]:
    """Return versions and the device; on CUDA with driver, clocks and power as they are now, while it is warm."""
    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device != "cpu" else _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads_per_rank": torch.get_num_threads(),
    }
    if device == "cpu":
        clock = _cpu_field("cpu MHz")
        return found | ({"clock_mhz": float(clock)} if clock else {})
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    found |= {
        "compute_capability": f"{properties.major}.{properties.minor}", "num_sms": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    if torch.distributed.is_nccl_available():
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    uuid = getattr(properties, "uuid", None)
    return found | smi_figures(ask_smi(f"GPU-{uuid}" if uuid else "0"))


def ask_smi(gpu: str) -> str:
    """Return nvidia-smi's line of `SMI_FIELDS` for a GPU; empty where there is no nvidia-smi or it fails."""
    query = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "-i", gpu]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def smi_figures(line: str) -> dict[str, str]:
    """Return the figures of nvidia-smi's line by name, without those that the GPU does not tell."""
    values = [value.strip() for value in line.split(",")] if line else []
    if len(values) != len(SMI_FIELDS):
        return {}
    return {name: value for name, value in zip(SMI_FIELDS.values(), values, strict=True) if value[:1] not in ("", "[")}


def _cpu_name() -> str:
    return _cpu_field("model name") or platform.machine()


def _cpu_field(name: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
