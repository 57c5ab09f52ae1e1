"""The house: imports only point to rooms above, and torch stays where it is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import profiles

# not the command line's: an editable installation has a copy of it
ROOT = Path(profiles.__file__).resolve().parent.parent
ROOMS = ("profiles", "simulator", "planner", "executor", "reports")
MAY_IMPORT_TORCH = ("executor/", "profiles/kernels.py", "profiles/measure/")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_only_point_up_the_table(room: str) -> None:
    below = {*ROOMS[ROOMS.index(room) + 1 :], "headway"}
    found = list((ROOT / room).rglob("*.py"))
    assert found, ROOT
    for path in found:
        assert not imports(path) & below, f"{path} imports a room below its own"


def test_torch_is_imported_only_by_executor_and_measuring_modules() -> None:
    for path in [ROOT / "headway.py", *(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))]:
        name = str(path.relative_to(ROOT))
        if not name.startswith(MAY_IMPORT_TORCH):
            assert "torch" not in imports(path), name


def test_planning_starts_without_torch() -> None:
    """Importing the command line must not import torch: planning works where it is not installed."""
    code = "import sys; sys.modules['torch'] = None; import headway"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_for_leftovers(room: str) -> None:
    banned = {"core", "common", "utils", "base", "helpers", "misc"}
    assert not {p.stem for p in (ROOT / room).rglob("*")} & banned
