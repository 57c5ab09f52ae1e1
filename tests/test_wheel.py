"""What the wheel holds; run where a wheel was unpacked (`HEADWAY_WHEEL`), beside the tests of what a person calls."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

ROOMS = ("profiles", "simulator", "planner", "executor", "reports")
WHEEL, CHECKOUT = os.environ.get("HEADWAY_WHEEL"), os.environ.get("HEADWAY_CHECKOUT")
pytestmark = pytest.mark.skipif(not (WHEEL and CHECKOUT), reason="not a wheel's test run")


def files(root: str | None) -> set[str]:
    """Return every file of the rooms and the command line, but what Python makes of them."""
    assert root is not None
    found = {p.relative_to(root) for room in ROOMS for p in (Path(root) / room).rglob("*") if p.is_file()}
    return {str(p) for p in found if "__pycache__" not in p.parts} | {"headway.py"}


def test_no_sub_package_and_no_data_file_is_forgotten() -> None:
    assert files(WHEEL) == files(CHECKOUT) and len(files(WHEEL)) > 300


def test_every_module_is_the_wheels_and_imports() -> None:
    for name in sorted(f for f in files(WHEEL) if f.endswith(".py")):
        module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        assert str(module.__file__).startswith(str(WHEEL)), name
