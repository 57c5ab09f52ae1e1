"""`--json` of every verb: stdout is one strict JSON document, with the keys that docs/json.md states."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from answers import answered, faults_of, strict
from command_line import Result, mistake
from test_reports import PLAIN, plan_of, run_of
from tests_support import tiny_profile

import headway
from executor.data.prepare import prepare
from executor.data.tokens import load_tokenizer
from executor.run import write_run
from planner.plan import write_plan
from planner.predict import predict_replayed
from profiles.tables import read_table
from reports import running
from reports.compare import compare_plan_run
from reports.formats import json_page
from reports.formats.answers import ANSWERS
from reports.local_report import read_local
from reports.quickstart import _figures
from reports.run_facts import Compared
from reports.verbs import VERBS
from reports.verbs import profile as profile_verb
from reports.verbs import run as run_verb
from reports.verbs import validate as validate_verb
from simulator.replay import rank_names
from simulator.timeline import write_trace

PAGE = Path(__file__).resolve().parent.parent / "docs" / "json.md"
PINNED = [word for axis in ("tp=1", "pp=1", "cp=1", "zero=1", "micro_batch=8", "recompute=none") for word in ("--search", axis)]
GPT2 = ("gpt2", "dgx-h100:1")
ROW = """id,source,year,software,model,n_layers,hidden,n_heads,n_kv_heads,ffn_hidden,vocab,gated_mlp,seq_len,gpu,n_gpus,tp,pp,\
zero_stage,micro_batch,global_batch,precision,recompute,step_time_s,attn_type
one,us,2026,torchtitan-2024,llama-3-8b,32,4096,32,8,14336,128256,1,8192,H100-80GB-SXM,8,1,1,3,1,8,bf16,selective,1.35,gqa
two,us,2026,torchtitan-2024,llama-3-8b,32,4096,32,8,14336,128256,1,8192,H300,8,1,1,3,1,8,bf16,selective,1.35,gqa
"""
Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def files_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two plans, a run of the first, a profile, text, measured rows and another framework's file."""
    folder = tmp_path_factory.mktemp("json")
    plan = plan_of(PLAIN)
    write_plan(plan, folder / "plan.yaml")
    write_plan(plan_of(replace(PLAIN, zero=3)), folder / "other.yaml")
    run = run_of(plan, 1.1, device="cpu")
    write_run(run, folder / "run")
    tiny_profile(folder / "profile.csv")
    (folder / "corpus.txt").write_text("to be or not to be " * 4000)
    (folder / "runs.csv").write_text(ROW)
    prepare([folder / "corpus.txt"], folder / "shards", load_tokenizer("bytes", None), workers=1)
    write_trace(folder / "trace.json", predict_replayed(plan.question, plan.strategy)[1], rank_names(plan.strategy))
    (folder / "ds.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
                                                "bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}))
    return folder


CHEAP: list[tuple[str, list[str], int]] = [
    ("catalog", ["catalog"], 0), ("catalog", ["catalog", "prices"], 0),
    ("size", ["size", "--cluster", "dgx-h100:1", "--budget", "20k"], 0), ("size", ["size", "--flop", "1e22"], 0),
    ("estimate", ["estimate", *GPT2, "--zero", "1", "--tokens", "1B"], 0),
    ("estimate", ["estimate", "llama-3-70b", "dgx-h100:1"], 1),
    ("estimate", ["estimate", "gpt2", "dgx-a100:1+dgx-h100:1", "--pp", "2"], 0),
    ("fit", ["fit", "DIR/plan.yaml"], 0), ("fit", ["fit", "llama-3-8b", "dgx-h100:1", "--zero", "1"], 1),
    ("fit", ["fit", "--from", "DIR/ds.json", "gpt2", "dgx-h100:1"], 0),
    ("plan", ["plan", *GPT2, "--tokens", "1B", *PINNED], 0),
    ("plan", ["plan", "llama-3.1-405b", "dgx-h100:1", "--tokens", "1T"], 1),
    ("plan with a goal", ["plan", *GPT2, "--tokens", "1B", "--deadline", "30d", "--counts", "8", *PINNED], 0),
    ("plan with a goal", ["plan", *GPT2, "--tokens", "900T", "--deadline", "1h", "--counts", "8", *PINNED], 1),
    ("simulate", ["simulate", "DIR/plan.yaml"], 0),
    ("simulate", ["simulate", "DIR/plan.yaml", "--slow-gpu", "1=1.2", "--jitter", "1%", "--steps", "3"], 0),
    ("simulate --run", ["simulate", "DIR/plan.yaml", "--run", "--runs", "3"], 0),
    ("simulate --run", ["simulate", "DIR/plan.yaml", "--run", "--runs", "3", "--start", "2027-01-15", "--fleet", "none"], 0),
    ("run --nodes", ["run", "DIR/plan.yaml", "--nodes", "torchrun", "--out", "job"], 0),
    ("export", ["export", "DIR/plan.yaml", "--to", "torchrun"], 0),
    ("export", ["export", "DIR/plan.yaml", "--to", "torchtitan"], 1),
    ("compare of two plans or runs", ["compare", "DIR/plan.yaml", "DIR/other.yaml"], 0),
    ("compare of two plans or runs", ["compare", "DIR/run", "DIR/run"], 0),
    ("compare of a plan and its run", ["compare", "DIR/plan.yaml", "DIR/run"], 0),
    ("compare of a plan and traces", ["compare", "DIR/plan.yaml", "DIR/trace.json"], 0),
    ("whatif", ["whatif", "DIR/plan.yaml", "--set", "network=100Gb/s,400Gb/s"], 0),
    ("whatif", ["whatif", "DIR/plan.yaml", "--tornado"], 0),
    ("report", ["report", "DIR/plan.yaml", "--summary"], 0),
    ("validate", ["validate", "DIR/runs.csv"], 0),
    ("validate --calibrate", ["validate", "DIR/runs.csv", "--calibrate", "cal"], 0),
    ("data prepare", ["data", "prepare", "DIR/corpus.txt", "-o", "shards"], 0),
    ("data check", ["data", "check", "DIR/shards"], 0),
    ("data info", ["data", "info", "DIR/shards", "--seq-len", "128"], 0),
    ("data bench", ["data", "bench", "DIR/shards", "--seq-len", "128", "--seconds", "0.1"], 0),
]


@pytest.mark.parametrize(("name", "arguments", "code"), CHEAP, ids=[f"{i} {name}" for i, (name, _, _) in enumerate(CHEAP)])
def test_stdout_is_one_document_with_the_keys_of_the_page(
    name: str, arguments: list[str], code: int, files_of: Path, run: Invoke,
) -> None:
    result = run(*(a.replace("DIR", str(files_of)) for a in arguments), "--json")
    assert result.code == code, result.err
    assert answered(result.out, name)
    assert "{" not in result.err and not result.err.startswith("Traceback")


def test_training_answers_as_the_page_says(files_of: Path, run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trains is left out: a run that was made up stands in its place."""
    made = run_of(plan_of(PLAIN), 1.1, device="cpu")
    made = replace(made, environment=made.environment | {"data": "f" * 64})
    monkeypatch.setattr(run_verb, "launch", lambda *a, **k: made)
    monkeypatch.setattr(running, "launch", lambda *a, **k: made)
    assert answered(run("run", str(files_of / "plan.yaml"), "--json").out, "run")["goodput"] == 0
    assert answered(run("run", str(files_of / "plan.yaml"), "--dry-run", "--json").out, "run --dry-run")["ranks"] == 8


def test_measuring_answers_as_the_page_says(files_of: Path, run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_table(files_of / "profile.csv")
    monkeypatch.setattr(profile_verb, "measure_machine", lambda **k: table)
    assert answered(run("profile", "--ranks", "1", "--json").out, "profile")["rows"] == len(table.rows)
    fact = Compared(id="P", what="w", published=1.0, predicted=1.0, low=None, high=2.0, unit="h", use="fitted", met=True,
                    source="s", note="")
    monkeypatch.setattr(validate_verb, "compare_facts", lambda tell: [fact])
    assert answered(run("validate", "--reliability", "--json").out, "validate --reliability")["facts"]


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not part of the wheel")
def test_runs_on_this_machine_answer_as_the_page_says(run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = replace(read_local(PAGE.parent / "accuracy" / "local.json"), warnings=("others used 0.30 cores",))
    monkeypatch.setattr(validate_verb, "validate_local", lambda *a, **k: recorded)
    result = run("validate", "--local", "--json")
    assert len(answered(result.out, "validate --local")["rows"]) == 16
    assert result.err == "headway: warning: others used 0.30 cores\n"


def test_the_tour_answers_as_the_page_says() -> None:
    plan = plan_of(PLAIN)
    made, found = run_of(plan, 1.1), SimpleNamespace(strategies_total=2, strategies_priced=1, rejected={"a rule": 1})
    figures = _figures(plan, found, plan, made, compare_plan_run(plan, made))  # type: ignore[arg-type]
    assert answered(json.dumps(figures), "quickstart")["local"]["final_loss"] == made.losses[-1]


def test_the_server_says_where_it_is(run: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    server = pytest.importorskip("reports.serve.server")
    monkeypatch.setattr(server, "serve", lambda sock, app: sock.close())
    assert answered(run("serve", "--port", "0", "--json").out, "serve")["url"].startswith("http://127.0.0.1:")


def commands() -> list[str]:
    """Return every verb, and every verb of a verb."""
    found = []
    for verb in VERBS:
        inner = getattr(headway.command(verb), "commands", {})
        found += [f"{verb} {name}" for name in inner] or [verb]
    return found


@pytest.mark.parametrize("command", commands())
def test_every_verb_takes_json_and_its_answer_is_on_the_page(command: str) -> None:
    verb, _, inner = command.partition(" ")
    made: Any = headway.command(verb)
    made = made.commands[inner] if inner else made
    assert any("--json" in option.opts for option in made.params)
    assert any(name == command or name.startswith(f"{command} ") for name in ANSWERS)


def test_answers_are_of_verbs_and_each_is_tested_here() -> None:
    assert all(any(name == c or name.startswith(f"{c} ") for c in commands()) for name in ANSWERS)
    told = Path(__file__).read_text()
    assert [name for name in ANSWERS if f'"{name}"' not in told] == []


MISTAKES = [
    ["catalog", "planets"], ["profile", "--device", "abacus"], ["estimate", "gpt2", "nowhere:1"], ["size"],
    ["plan", "gpt2", "dgx-h100:1", "--tokens", "lots"], ["plan", "gpt2", "dgx-h100:1", "--tokens", "1B", "--deadline", "soon"],
    ["fit", "gpt9", "dgx-h100:1"], ["simulate", "none.yaml"], ["simulate", "none.yaml", "--run"], ["run", "none.yaml"],
    ["export", "none.yaml", "--to", "torchtitan"], ["compare", "none.yaml", "none.yaml"], ["whatif", "none.yaml"],
    ["report", "none.yaml"], ["serve", "--port", "99999"], ["validate", "none.csv"], ["validate", "--local", "--cases", "99"],
    ["validate", "none.csv", "--reliability"], ["validate", "none.csv", "--calibrate", "c"], ["data", "prepare", "none.txt"],
    ["data", "check", "none"], ["data", "info", "none"], ["data", "bench", "none"], ["quickstart", "--steps", "1"],
    ["estimate", "gpt2"], ["estimate", "gpt2", "dgx-h100:1", "--tp", "two"], ["plan", "--nonsense"],
]


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_no_document(arguments: list[str], run: Invoke) -> None:
    mistake(run(*arguments, "--json"))


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not part of the wheel")
def test_the_page_is_what_the_models_say() -> None:
    text = json_page()
    assert PAGE.read_text() == text, "stale; run scripts/docs docs/json.md"
    headings = [line.partition(" ")[2].lower().replace(" ", "-") for line in text.splitlines() if line.startswith("##")]
    assert len(headings) == len(set(headings)) and set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(headings)
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert {name for kind in ANSWERS.values() for name in kind.model_fields} <= rows


def test_other_keys_types_and_numbers_are_found() -> None:
    good = {"path": None, "trace": None, "summary": ["fits"]}
    assert answered(json.dumps(good), "report") == good
    for bad in ({"path": None, "trace": None}, good | {"more": 1}, good | {"summary": "fits"}, good | {"path": 1}):
        assert faults_of(json.dumps(bad), "report"), bad
    group = {"by": "a", "key": "b", "n": 1, "mape": 0.1, "median": 0.1, "p90": 0.1, "bias": 0.1, "coverage": 1.0, "tau": None,
             "loso_mape": None}
    whole = {name: [] for name in ANSWERS["validate"].model_fields} | {"share_not_fitting": None}
    assert not faults_of(json.dumps(whole | {"groups": [group]}), "validate")
    assert faults_of(json.dumps(whole | {"groups": [group | {"more": 1}]}), "validate"), "keys within are held, too"
    for text in ('{"a": NaN}', '{"a": Infinity}', '{"a": 1} {"b": 2}', 'warning\n{"a": 1}', '{"a": 1, "a": 2}', "[1]"):
        with pytest.raises((AssertionError, ValueError)):
            strict(text)
