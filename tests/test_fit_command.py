"""`headway fit`: what it prints, its exit status, its keys, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import mistake

FITS = ("llama-3-8b", "dgx-h100:1", "--zero", "3")
SHORT = ("llama-3-70b", "dgx-h100:8", "--tp", "8", "--pp", "2")
TOML = """
[model]
name = "llama3"
flavor = "8B"
[training]
local_batch_size = 1
seq_len = 8192
[parallelism]
tensor_parallel_degree = 2
[activation_checkpoint]
mode = "full"
"""


def test_yes_and_no(run) -> None:  # type: ignore[no-untyped-def]
    yes, no = run("fit", *FITS), run("fit", *SHORT)
    assert (yes.code, no.code) == (0, 1)
    assert "fits, with" in yes.out and "longest sequence: " in yes.out and "would make it fit" not in yes.out
    for words in ("DOES NOT FIT: short by", "ZeRO 0 -> 3", "would make it fit", "at least 2 accelerators", "optimizer"):
        assert words in no.out, no.out


def test_json_has_the_keys_of_estimate_and_its_own(run) -> None:  # type: ignore[no-untyped-def]
    estimated, fitted = run("estimate", *SHORT, "--json"), run("fit", *SHORT, "--json")
    before, found = json.loads(estimated.out), json.loads(fitted.out)
    assert estimated.code == fitted.code == 1
    # what a run costs is no matter of fitting
    assert before.pop("bill") and before == {key: found[key] for key in before}
    assert found["room_bytes"] == pytest.approx(found["usable_memory_bytes"] - found["peak_memory_bytes"])
    assert found["changes"][0].keys() >= {
        "title", "strategy", "num_gpus", "peak_memory_bytes", "step_time_s", "tokens_per_s", "tokens_per_s_change",
        "tokens_per_s_per_gpu_change"}
    # two hold the weights, the host the optimizer's states
    fewest = found["fewest_gpus"]
    assert fewest["num_gpus"] == 2 and fewest["strategy"]["offload"] != "none" and found["source"] is None
    assert {"largest_micro_batch", "largest_dividing_micro_batch", "largest_seq_len"} <= found.keys()


def test_a_plan_file(run) -> None:  # type: ignore[no-untyped-def]
    run("estimate", *FITS, "--out", "plan.yaml")
    again, plain = run("fit", "plan.yaml", "--json"), run("fit", *FITS, "--json")
    assert again.code == plain.code == 0
    a, b = json.loads(again.out), json.loads(plain.out)
    assert a["peak_memory_bytes"] == b["peak_memory_bytes"] and a["largest_seq_len"] == b["largest_seq_len"]
    mistake(run("fit", "plan.yaml", "--tp", "2"), "--tp", "plan.yaml")


def test_runs_that_people_have(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "train.toml").write_text(TOML)
    found = json.loads(run("fit", "--from", "train.toml", "dgx-h100:1", "--json").out)
    assert (found["strategy"]["tp"], found["strategy"]["dp"], found["strategy"]["zero"]) == (2, 4, 3)
    assert found["strategy"]["software"]["framework"] == "torchtitan" and found["source"]["framework"] == "torchtitan"
    # what is given goes before the file
    given = json.loads(run("fit", "--from", "train.toml", "dgx-h100:1", "--tp", "1", "--recompute", "none", "--json").out)
    assert (given["strategy"]["tp"], given["strategy"]["dp"], given["strategy"]["recompute"]) == (1, 8, "none")
    other = json.loads(run("fit", "--from", "train.toml", "llama-3-70b", "dgx-h100:8", "--json").out)
    assert other["peak_memory_bytes"] > found["peak_memory_bytes"]
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}))
    mistake(run("fit", "--from", "ds.json", "llama-3-8b", "dgx-h100:1"), "micro_batch", "--micro-batch")
    mistake(run("fit", "--from", "ds.json", "dgx-h100:1"), "ds.json", "which model")
    deep = run("fit", "--from", "ds.json", "llama-3-8b", "dgx-h100:1", "--micro-batch", "1", "--global-batch", "8")
    assert deep.code in (0, 1) and "Read as DeepSpeed." in deep.out


def test_the_file_says_how_many_it_starts(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = ("--num-layers 4 --hidden-size 256 --num-attention-heads 4 --seq-length 512 --max-position-embeddings 512 "
                 "--vocab-size 512 --micro-batch-size 1 --global-batch-size 16 --bf16")
    (tmp_path / "go.sh").write_text(f"torchrun --nproc_per_node=4 --nnodes 1 pretrain_gpt.py {arguments}\n")
    shown = run("fit", "--from", "go.sh", "dgx-h100:1")
    assert shown.code == 0 and "the file starts 4 accelerators; 8 are priced" in shown.out


def test_mistakes(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mistake(run("fit", "llama-3-8b"), "names", "MODEL CLUSTER")
    mistake(run("fit", "llama-3-8b", "dgx-h100:1", "more"), "'more'", "one too many")
    mistake(run("fit", "none.yaml"), "none.yaml: no such file")
    mistake(run("fit", "--from", "none.toml", "dgx-h100:1"), "none.toml: no such file")
    (tmp_path / "x.ini").write_text("")
    mistake(run("fit", "--from", "x.ini", "dgx-h100:1"), "x.ini", ".toml")
    mistake(run("fit", *SHORT, "--micro-batch", "3"), "strategy", "does not divide")
    mistake(run("fit", "llama-3-8b", "dgx-h100:1", "--tp", "3"), "tp 3", "does not divide the 8")
    (tmp_path / "train.toml").write_text(TOML.replace("= 2", "= 3"))
    mistake(run("fit", "--from", "train.toml", "dgx-h100:1"), "tp 3", "does not divide the 8")
