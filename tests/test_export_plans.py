"""What holds for every export: nothing of a strategy is dropped, the same plan gives the same bytes, refusals say why."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from export_cases import plan_of, with_software

import headway
from executor.exports import EXPORTS, Export, export_plan, write_export
from planner.plan import write_plan
from profiles.files import BadInput
from simulator.schedules import SCHEDULES
from simulator.strategy import CONTEXT, PRECISIONS, Strategy

FRAMEWORKS = ("torchtitan", "megatron", "deepspeed", "accelerate")
PIPE: dict[str, Any] = {"dp": 8, "pp": 2, "zero": 0, "num_microbatches": 8}
SHARDED: dict[str, Any] = {"dp": 16, "zero": 3, "num_microbatches": 2}
MOE: dict[str, Any] = {"model": "qwen3-30b-a3b", "dp": 8, "tp": 2, "zero": 3, "num_microbatches": 2}
OFFLOADS = with_software(offloads="states,optimizer", offloads_with="states")
CASES: dict[str, list[dict[str, Any]]] = {
    "dp": [SHARDED, SHARDED | {"dp": 8, "num_microbatches": 4}],
    "tp": [SHARDED, SHARDED | {"dp": 8, "tp": 2, "sequence_parallel": False}],
    "cp": [SHARDED, *(SHARDED | {"dp": 8, "cp": 2, "context": c} for c in CONTEXT)],
    "pp": [SHARDED | {"zero": 2}, SHARDED | {"dp": 8, "pp": 2, "zero": 2, "num_microbatches": 4}],
    "ep": [MOE, MOE | {"ep": 4}],
    "etp": [MOE, MOE | {"etp": 2}],
    "zero": [SHARDED | {"zero": level} for level in range(4)],
    "shard_group": [SHARDED, SHARDED | {"shard_group": 4}, SHARDED | {"zero": 1}, SHARDED | {"zero": 1, "shard_group": 4},
                    SHARDED | {"zero": 2, "shard_group": 4}],
    "sequence_parallel": [SHARDED | {"dp": 8, "tp": 2, "sequence_parallel": s} for s in (True, False)],
    "recompute": [SHARDED | {"recompute": r} for r in ("none", "selective", "full")],
    "recompute_share": [SHARDED | {"recompute": r, "recompute_share": v} for r in ("selective", "full") for v in (1.0, 0.5)],
    "offload": [SHARDED | {"zero": level, "offload": o, "software": OFFLOADS} for level in (1, 3) for o in (
        "none", "optimizer", "states")],
    "offload_share": [SHARDED | {"zero": level, "offload": "optimizer", "offload_share": v, "software": OFFLOADS}
                      for level in (1, 3) for v in (1.0, 0.5)],
    "precision": [SHARDED | {"cluster": "dgx-b200", "precision": p} for p in PRECISIONS],
    "context": [SHARDED | {"dp": 8, "cp": 2, "context": c} for c in CONTEXT],
    "order": [PIPE | {"order": o} for o in ("", "tp-cp-pp-dp")],
    "schedule": [PIPE | {"schedule": name, "chunks": s.chunks or 2} for name, s in SCHEDULES.items()],
    "chunks": [PIPE | {"schedule": "Interleaved1F1B", "chunks": v} for v in (2, 4)],
    "layers": [PIPE | {"layers": text} for text in ("", "15-17")],
    "micro_batch": [SHARDED | {"micro_batch": m} for m in (1, 2)],
    "num_microbatches": [SHARDED | {"num_microbatches": m} for m in (1, 2)],
    "seq_len": [SHARDED | {"seq_len": length} for length in (2048, 4096)],
    "imbalance": [MOE | {"imbalance": i} for i in (1.0, 1.5)],
    "lora_rank": [SHARDED | {"lora_rank": r} for r in (0, 8, 16)],
    "lora_targets": [SHARDED | {"lora_rank": 8, "lora_targets": t} for t in ("attention", "all")],
    "software": [SHARDED | {"software": with_software(name=name)} for name in ("one", "two")],
}
"""Field -> strategies that differ in it, with what it needs beside it."""


def shown(export: Export) -> str:
    return json.dumps([dict(export.files), export.notes])


def test_every_field_of_a_strategy_has_cases() -> None:
    assert {f.name for f in fields(Strategy)} == set(CASES)


@pytest.mark.parametrize("target", EXPORTS)
@pytest.mark.parametrize("field", CASES)
def test_no_field_is_dropped(target: str, field: str) -> None:
    """Strategies that differ in a field give different files or notes, or are refused by name."""
    exports = [(case, export_plan(plan_of(**case), target)) for case in CASES[field]]
    accepted = [shown(e) for _, e in exports if not e.refusals]
    assert len(set(accepted)) == len(accepted)
    fine = [others(case, field) for case, e in exports if not e.refusals]
    for case, export in exports:
        if export.refusals and target in FRAMEWORKS and others(case, field) in fine:
            assert any(field in reason for reason in export.refusals), export.refusals


def others(case: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name != field}


@pytest.mark.parametrize("target", EXPORTS)
def test_every_target_takes_a_plain_plan(target: str) -> None:
    """A plan that shards gradients over dp alone is what all of them can do."""
    plan = plan_of(dp=16, zero=2, num_microbatches=2)
    export = export_plan(plan, target)
    assert export.files and not export.refusals
    assert export == export_plan(plan, target)
    assert any("learning rate" in note for note in export.notes)


@pytest.mark.parametrize("target", FRAMEWORKS)
def test_refusals_are_sentences_with_field_and_value(target: str) -> None:
    plan = plan_of(dp=4, cp=2, pp=2, zero=1, num_microbatches=8, schedule="ZBH1", context="ulysses", lora_rank=8,
                   recompute="full", recompute_share=0.3, order="pp-tp-cp-dp")
    export = export_plan(plan, target)
    assert not export.files and len(export.refusals) >= 3
    for sentence in export.refusals:
        assert "=" in sentence.split(":")[0] and "\n" not in sentence


def test_an_unknown_target_names_the_known_and_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"^to: 'megatorn' is not known; known are torchtitan, .*; did you mean 'megatron'\?$"):
        export_plan(plan_of(dp=8, num_microbatches=1), "megatorn")


def test_one_file_may_be_named_and_several_take_a_folder(tmp_path: Path) -> None:
    one, two = Export(files={"a.json": "{}\n"}), Export(files={"a.json": "{}\n", "b.sh": "exit\n"})
    assert write_export(one, tmp_path / "mine.json") == [tmp_path / "mine.json"]
    assert write_export(one, tmp_path / "mine.txt") == [tmp_path / "mine.txt"]
    assert write_export(one, tmp_path / "in") == [tmp_path / "in" / "a.json"]
    assert [p.name for p in write_export(two, tmp_path / "two.json")] == ["a.json", "b.sh"]
    with pytest.raises(BadInput, match=r"out: .*mine.json is a file, and a.json and b.sh need a folder"):
        write_export(two, tmp_path / "mine.json")


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        headway.main(list(words))
    return int(stop.value.code or 0)


def test_the_verb_writes_lists_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = write_plan(plan_of(dp=16, zero=2, num_microbatches=2), tmp_path / "plan.yaml")
    assert run("export", str(plan), "--to", "deepspeed", "-o", str(tmp_path / "ds.json"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(tmp_path / "ds.json")] and told["refusals"] == [] and told["notes"]
    first = (tmp_path / "ds.json").read_bytes()
    assert run("export", str(plan), "--to", "deepspeed", "-o", str(tmp_path / "ds.json")) == 0
    assert (tmp_path / "ds.json").read_bytes() == first
    assert "ds.json" in capsys.readouterr().out

    refused = write_plan(plan_of(dp=8, pp=2, num_microbatches=4), tmp_path / "pipe.yaml")
    assert run("export", str(refused), "--to", "deepspeed", "-o", str(tmp_path / "no.json"), "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [] and told["refusals"][0].startswith("pp=2") and not (tmp_path / "no.json").exists()
    assert run("export", str(refused), "--to", "deepspeed") == 1
    assert "pp=2" in capsys.readouterr().err

    assert run("export", str(plan), "--to", "deepsped") == 2
    assert "did you mean 'deepspeed'?" in capsys.readouterr().err
    assert run("export", str(plan), "--to", "deepspeed", "-o", str(plan)) == 2
    assert "plan.yaml" in capsys.readouterr().err
