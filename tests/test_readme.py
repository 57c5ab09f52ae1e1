"""Every command of the README runs, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import headway

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"quickstart": ["--seconds", "2", "--steps", "5"], "profile": ["--seconds", "2"], "run": ["--steps", "5"]}
"""Options that make a long command short; everything else runs as it stands."""


def commands() -> list[str]:
    """Return the lines of all console blocks that start with `$ `."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_readme_has_commands() -> None:
    assert "./scripts/quickstart" in commands() and "./scripts/test" in commands()
    assert all(c.startswith(("headway ", "./scripts/")) for c in commands())


@pytest.mark.distributed
def test_every_headway_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    for command in [c for c in commands() if c.startswith("headway ")]:
        arguments = shlex.split(command, comments=True)[1:]
        with pytest.raises(SystemExit) as stopped:
            headway.main(arguments + QUICK.get(arguments[0], []))
        assert not stopped.value.code, command


@pytest.mark.distributed
def test_the_script_of_the_readme_runs(tmp_path: Path) -> None:
    """`./scripts/quickstart` as a person runs it, in the environment that `./scripts/test` made."""
    if not (ROOT / ".venv" / "installed").exists():
        pytest.skip("no .venv made by the scripts: this is not a run of ./scripts/test")
    out = tmp_path / "quickstart"
    subprocess.run(
        [ROOT / "scripts" / "quickstart", "--out", str(out), *QUICK["quickstart"], "--json"], check=True, cwd=ROOT,
        stdout=subprocess.DEVNULL, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    for name in ("llama-3-8b/plan.yaml", "llama-3-8b/plan.html", "llama-3-8b/trace.json", "local/profile.csv",
                 "local/plan.yaml", "local/plan.html", "local/trace.json", "local/run/run.json"):
        assert (out / name).stat().st_size > 0, name


