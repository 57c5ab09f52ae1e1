"""Every command of the documents runs, and what stands below it is what it prints, numbers apart."""

from __future__ import annotations

import os
import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "docs"
STUDIES = sorted(p for p in (ROOT / "examples").glob("*.py") if p.stem != "told")
NUMBERS = re.compile(r"-?\d[\d.,]*(?: ?[numkMGTP](?=[ ,)│]|$))?")
LINES = re.compile(r"[─━═┌┬┐├┼┤└┴┘┏┳┓┡╇┩│┃▏-▏█▉▊▋▌▍▎]+")
VARIES = re.compile(r"^```console[^\n]*varies.*?^```$", flags=re.DOTALL | re.MULTILINE)


def script() -> ModuleType:
    """Return scripts/docs as a module."""
    spec = spec_from_loader("docs_script", SourceFileLoader("docs_script", str(SCRIPT)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents() -> list[Path]:
    """Return the documents that show commands."""
    return sorted(p for p in (ROOT / "docs").rglob("*.md") if "```console" in p.read_text())


def words(text: str) -> list[str]:
    """Return the words of a document: numbers are masked, as a new fit moves them; lines of tables and gaps are left out.

    Of blocks that vary from machine to machine only the commands count.
    """
    text = VARIES.sub(lambda block: "\n".join(line for line in block[0].splitlines() if line.startswith("$ ")), text)
    return re.sub(r"[\s#]+", " ", LINES.sub(" ", NUMBERS.sub("#", text))).split()


@pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of the wheel")
@pytest.mark.parametrize("path", documents(), ids=lambda p: p.stem)
def test_commands_print_what_the_document_shows(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "COLUMNS", "110")
    text = path.read_text()
    if "headway run" in text or "headway profile" in text:
        pytest.importorskip("torch")
    assert words(script().refreshed(text)) == words(text), f"stale; run scripts/docs {path.relative_to(ROOT)}"


@pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of the wheel")
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_studies_print_what_lies_beside_them(path: Path) -> None:
    """A new fit moves the predictions by a little; the words and what was published stay."""
    printed, golden = script().study(path), path.with_suffix(".txt").read_text()
    assert words(printed) == words(golden)
    for line, before in zip(printed.splitlines(), golden.splitlines(), strict=True):
        assert numbers(line) == pytest.approx(numbers(before), rel=0.1)


def numbers(line: str) -> list[float]:
    """Return the numbers of a line, but per cents and small differences."""
    found = [float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\d%.])", line)]
    return [n for n in found if abs(n) > 0.2]


@pytest.mark.skipif(not SCRIPT.exists(), reason="the scripts are not part of the wheel")
def test_the_script_writes_output_and_minds_the_status() -> None:
    docs, text = script(), "a\n```console lines=1 exit=1\n$ headway x\nold\n$ headway y\n```\nb\n```python\n$ z\n```\n"
    ran = docs.refreshed(text, lambda c: (1 if c == "headway y" else 0, f"{c}!\nmore"))
    assert ran == text.replace("old\n", "headway x!\n...\n").replace("$ headway y\n", "$ headway y\nheadway y!\n...\n")
    with pytest.raises(SystemExit, match="ended with 0, not 1"):
        docs.refreshed(text, lambda c: (0, ""))


def test_the_mask_keeps_words_and_drops_numbers() -> None:
    assert words("│ step 27.3 s (P10 25) │ 2.9 k │") == words("step  31 s (P10 7)\n3.1 M") != words("pass 27.3 s (P10 25) 2")
