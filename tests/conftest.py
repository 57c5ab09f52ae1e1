"""Shared by the tests: where the reference files lie, the command line, and a quiet home for Hugging Face."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import Result
from hypothesis import HealthCheck, settings

import headway
from reports.verbs import style

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# machines here are shared and noisy: a deadline would be a timing assertion
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("default")

ROOT = Path(__file__).resolve().parent.parent


def _held_json(data: dict[str, Any]) -> None:
    """Print as verbs do, after what is printed was held to what docs/json.md says: in every test that asks a verb for JSON."""
    from answers import answered_by

    answered_by(sys._getframe(1).f_globals["__name__"].rpartition(".")[2], data)
    _PRINT_JSON(data)


_PRINT_JSON = style.print_json
style.print_json = _held_json


@pytest.fixture
def shared() -> Path:
    """Return the folder of published and measured reference files, or skip."""
    folder = ROOT.parent / "shared"
    if not (folder / "published" / "runs.csv").exists():
        pytest.skip("../shared with the reference files is absent")
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Return a function that runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            headway.main(arguments)
        out, err = capfd.readouterr()
        return Result(int(stopped.value.code or 0), out, err)

    return invoke
