"""The verbs: light to start, helped by example, completed, and kind to misspelt names."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import mistake
from typer.testing import CliRunner

import headway
import profiles
from profiles.files import BadInput, catalog_mapping, catalog_names
from reports.verbs import VERBS
from reports.verbs.style import names_of

ROOT = Path(profiles.__file__).resolve().parent.parent
HEAVY = ("torch", "matplotlib", "pandas", "scipy", "simpy")


@pytest.mark.parametrize("arguments", [["--help"], ["catalog"], ["catalog", "clusters"], ["catalog", "prices", "--json"]])
def test_help_and_catalogue_import_nothing_heavy(arguments: list[str]) -> None:
    code = ("import sys, headway\ntry:\n    headway.main(sys.argv[1:])\nexcept SystemExit as e:\n    assert not e.code\n"
            f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\nassert not loaded, loaded")
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_every_verb_starts_without_torch() -> None:
    """Planning works where torch is not installed: what needs it is imported by its own workers."""
    code = "import sys; sys.modules['torch'] = None; import headway\nfor v in headway.VERBS: headway.command(v)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_the_table_of_verbs_is_the_folder() -> None:
    folder = {p.stem for p in (ROOT / "reports" / "verbs").glob("*.py")} - {"__init__", "options", "style"}
    assert set(VERBS) == folder
    assert all(len(text) <= 62 and text.endswith((".", "?")) for text in VERBS.values())


@pytest.mark.parametrize("verb", VERBS)
def test_examples_of_help_parse(verb: str) -> None:
    command = headway.command(verb)
    text = command.epilog or ""
    shown = re.findall(r"^  headway (.*)$", text, flags=re.MULTILINE)
    assert shown and any(s.startswith(verb) for s in shown), f"{verb} --help has no example"
    for example in shown:
        name, *rest = shlex.split(example)
        with headway.command(name).make_context(name, rest) as context:
            assert context.params is not None


def test_help_shows_every_verb_and_where_to_go_on() -> None:
    out = CliRunner().invoke(headway.app, ["--help"]).output
    for verb, text in VERBS.items():
        assert verb in out and text in out, "cut off"
    assert "headway plan llama" in out and "--install-completion" in out


def test_version(run) -> None:  # type: ignore[no-untyped-def]
    result = run("--version")
    assert result.code == 0 and re.fullmatch(r"headway \d+\.\d+\.\d+\S*\n", result.out)


@pytest.mark.parametrize(("arguments", "meant"), [
    (("estmate", "llama-3-8b", "dgx-h100:1"), "Did you mean 'estimate'"),
    (("plan", "lama-3-70b", "dgx-h100:2", "--tokens", "1T"), "did you mean llama-3-70b"),
    (("plan", "gpt2", "dgx-h10:2", "--tokens", "1T"), "did you mean dgx-h100"),
    (("estimate", "gpt2", "dgx-h100:2", "--software", "megatron-lm-cor"), "did you mean megatron"),
    (("estimate", "gpt2", "dgx-h100:2", "--tpp", "2"), "--tpp"),
])
def test_misspelt_names_are_suggested(run, arguments, meant) -> None:  # type: ignore[no-untyped-def]
    mistake(run(*arguments), meant)


def test_a_name_like_none_points_to_the_catalogue() -> None:
    with pytest.raises(BadInput, match=r"'zzz'.*`headway catalog models`"):
        catalog_mapping("models", "zzz")


def test_names_are_completed() -> None:
    assert names_of("models")("llama-3-7") == [n for n in catalog_names("models") if n.startswith("llama-3-7")] != []
    done = CliRunner().invoke(headway.app, [], prog_name="headway", env={
        "_HEADWAY_COMPLETE": "complete_bash", "COMP_WORDS": "headway plan llama-3-7", "COMP_CWORD": "2",
    })
    assert "llama-3-70b" in done.output.split()


def test_verbs_unfold_options_that_they_share() -> None:
    options = importlib.import_module("reports.verbs.options")
    shared = set(options.StrategyOptions.__dataclass_fields__) | set(options.QuestionOptions.__dataclass_fields__)
    for verb in ("estimate", "fit"):
        assert shared <= {p.name for p in headway.command(verb).params}, verb


def test_a_plan_that_the_own_engine_cannot_run_says_so(run) -> None:  # type: ignore[no-untyped-def]
    """DeepSeek's attention is planned, and not built; another framework's plan is not the engine's matter."""
    values = ("pp=8", "ep=8", "cp=1", "tp=1", "recompute=full", "micro_batch=1", "order=tp-cp-dp-pp", "schedule=1F1B",
              "offload=none")
    asked = ["plan", "deepseek-v2", "dgx-h100:16", "--tokens", "1T", "--json"]
    asked += [word for value in values for word in ("--search", value)]
    own, theirs = run(*asked), run(*asked, "--software", "megatron-lm-2025")
    assert own.code == theirs.code == 0
    assert "warning: `headway run` cannot run this plan: " in own.err and "--runnable" in own.err
    assert "cannot run" not in theirs.err
