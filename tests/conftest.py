"""Shared by the tests: where the reference files lie, and a quiet home for Hugging Face."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# machines here are shared and noisy: a deadline would be a timing assertion
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("default")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def shared() -> Path:
    """Return the folder of published and measured reference files, or skip."""
    folder = ROOT.parent / "shared"
    if not (folder / "published" / "runs.csv").exists():
        pytest.skip("../shared with the reference files is absent")
    return folder
