"""The command line: what it prints, the keys that scripts rely on, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import mistake
from tests_support import tiny_profile

LARGE = ("llama-3-8b", "dgx-h100:2")
ESTIMATE_KEYS = {"step_time_s", "p10_s", "p90_s", "tokens_per_s_per_gpu", "mfu", "hfu", "peak_memory_bytes", "fits",
                 "breakdown_s", "strategy"}
BREAKDOWN_KEYS = {"compute", "bubble", "exposed_tp", "exposed_pp", "exposed_dp", "exposed_cp", "exposed_ep", "optimizer",
                  "data", "other"}


def flat(text: str) -> str:
    """Return shown text without the lines of its tables."""
    return " ".join(text.replace("│", " ").split())


def test_unknown_model(run) -> None:  # type: ignore[no-untyped-def]
    mistake(run("plan", "llama-9", "dgx-h100:2", "--tokens", "1T"), "model", "'llama-9'", "llama-3-8b")


def test_unknown_cluster_and_accelerators_that_do_not_divide(run) -> None:  # type: ignore[no-untyped-def]
    mistake(run("plan", "gpt2", "dgx-h1000:2", "--tokens", "1T"), "cluster", "'dgx-h1000'", "dgx-h100")
    mistake(run("plan", *LARGE, "--tokens", "1T", "--gpus", "12"), "gpus: 12", "whole nodes of 8", "is 8")
    mistake(run("estimate", *LARGE, "--tp", "3"), "tp 3", "does not divide the 16 accelerators")
    mistake(run("estimate", *LARGE, "--dp", "2"), "dp 2", "= 2, the cluster has 16 accelerators")


def test_quantities(run) -> None:  # type: ignore[no-untyped-def]
    mistake(run("plan", *LARGE, "--tokens", "-1T"), "tokens", "'-1T'", "must not be negative")
    mistake(run("plan", *LARGE, "--tokens", "0"), "tokens", "more than zero")
    mistake(run("plan", *LARGE, "--tokens", "lots"), "tokens", "'lots'", "15T")
    mistake(run("plan", *LARGE, "--tokens", "1T", "--price", "2.5"), "price", "bare number", "USD/h")


def test_missing_and_malformed_files(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mistake(run("simulate", "none.yaml"), "none.yaml: no such file")
    (tmp_path / "bad.yaml").write_text("schema: [headway.plan/1\nx: 1")
    mistake(run("simulate", "bad.yaml"), "bad.yaml", "not YAML at line")
    mistake(run("plan", "mine.json", "dgx-h100:2", "--tokens", "1T"), "mine.json: no such file")
    (tmp_path / "cluster.yaml").write_text("name: x\naccelerator: h100-80gb\ngpus_per_node: 8\n")
    mistake(run("plan", "gpt2", "cluster.yaml", "--tokens", "1T"), "cluster.yaml: scale_up: is missing")
    (tmp_path / "cluster.yaml").write_text(CLUSTER.replace("450 GB/s", "450"))
    mistake(run("plan", "gpt2", "cluster.yaml", "--tokens", "1T"), "scale_up.bandwidth", "bare number")
    mistake(run("report", "none.yaml"), "none.yaml: no such file")
    mistake(run("compare", "none.yaml", "alike.yaml"), "none.yaml: no such file")


CLUSTER = """
name: mine
accelerator: h100-80gb
gpus_per_node: 8
scale_up: {name: NVLink, bandwidth: {value: 450 GB/s, source: me}}
scale_out: {name: IB, bandwidth: {value: 400 Gb/s, source: me}}
"""


def test_a_cluster_file_of_a_person(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    mine = run("estimate", "llama-3-8b", "cluster.yaml:2", "--zero", "3", "--json")
    theirs = run("estimate", *LARGE, "--zero", "3", "--json")
    assert mine.code == theirs.code == 0
    assert json.loads(mine.out)["step_time_s"] == json.loads(theirs.out)["step_time_s"]


def test_corrupted_profile(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tiny_profile(tmp_path / "profile.csv")
    text = path.read_text()
    path.write_text(text.replace("gemm,F,fp32,eager,256", "gemm,F,fp32,eager,wide", 1))
    mistake(run("plan", "bytes-5m", "local", "--tokens", "1M", "--profile", "profile.csv"), "line", "size_0", "'wide'")
    path.write_text(text[: len(text) // 2])
    assert run("plan", "bytes-5m", "local", "--tokens", "1M", "--profile", "profile.csv").code == 2
    path.write_text("rubbish")
    mistake(run("plan", "bytes-5m", "local", "--tokens", "1M", "--profile", "profile.csv"), "no profile file")
    mistake(run("plan", "bytes-5m", "local", "--tokens", "1M"), "--profile", "headway profile")


def test_unwritable_output_leaves_everything(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("precious")
    mistake(run("plan", "gpt2", "dgx-h100:1", "--tokens", "1B", "--out", "file/plan.yaml"), "file stands where a folder")
    mistake(run("plan", "gpt2", "dgx-h100:1", "--tokens", "1B", "--out", "."), "is a folder")
    assert (tmp_path / "file").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        mistake(run("plan", "gpt2", "dgx-h100:1", "--tokens", "1B", "--out", "closed/plan.yaml"), "cannot write in this folder")


def test_no_verb_writes_over_its_input_or_its_own_output(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mistake(run("plan", *LARGE, "--tokens", "1T", "--page", "--out", "x.html"), "x.html", "overwritten by the page")
    (tmp_path / "y.html").mkdir()
    (tmp_path / "y.yaml").write_text("precious")
    mistake(run("plan", *LARGE, "--tokens", "1T", "--page", "--out", "y.yaml"), "y.html", "is a folder")
    assert (tmp_path / "y.yaml").read_text() == "precious"
    run("estimate", *LARGE, "--zero", "3", "--out", "keep.yaml")
    kept = (tmp_path / "keep.yaml").read_bytes()
    mistake(run("report", "keep.yaml", "--out", "keep.yaml"), "keep.yaml is the plan that is read")
    mistake(run("simulate", "keep.yaml", "--trace", "keep.yaml"), "keep.yaml is the plan that is read")
    mistake(run("plan", *LARGE, "--tokens", "1T", "--out", "/dev/null"), "/dev/null", "no regular file")
    assert (tmp_path / "keep.yaml").read_bytes() == kept


def test_quickstart_checks_before_it_starts(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mistake(run("quickstart", "--ranks", "0"), "ranks: must be at least 1 (is 0)")
    mistake(run("quickstart", "--steps", "3"), "steps: must be more than the 3 of the warm-up (is 3)")
    mistake(run("quickstart", "--seconds", "0"), "seconds: must be positive")
    assert list(tmp_path.iterdir()) == []


def test_usage(run) -> None:  # type: ignore[no-untyped-def]
    mistake(run("plam"), "plam")
    mistake(run("plan", "gpt2", "--tokens", "1T"), "cluster")
    mistake(run("estimate", *LARGE, "--tp", "two"), "tp", "two")
    mistake(run("estimate", *LARGE, "--zero", "4"), "zero", "4")
    mistake(run("estimate", *LARGE, "--recompute", "some"), "recompute", "'some'", "selective")
    mistake(run("estimate", *LARGE, "--precision", "fp12"), "precision", "'fp12'", "bf16")
    mistake(run("catalog", "towns"), "'towns'", "models")
    assert "plan" in run("--help").out


def test_estimate_keys_and_status(run) -> None:  # type: ignore[no-untyped-def]
    result = run("estimate", *LARGE, "--zero", "3", "--json")
    assert result.code == 0 and result.err == ""
    data = json.loads(result.out)
    assert set(data) >= ESTIMATE_KEYS
    assert set(data["breakdown_s"]) == BREAKDOWN_KEYS
    assert sum(data["breakdown_s"].values()) == pytest.approx(data["step_time_s"], rel=1e-5)
    assert data["fits"] is True and data["p10_s"] < data["step_time_s"] < data["p90_s"]
    tight = run("estimate", *LARGE, "--json")
    assert tight.code == 1 and json.loads(tight.out)["fits"] is False


def test_plan_simulate_report_compare(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    result = run("plan", *LARGE, "--tokens", "1T", "--page", "--json")
    assert result.code == 0 and result.err == ""
    data = json.loads(result.out)
    assert set(data) >= {"best", "runners_up", "strategies_total", "strategies_priced", "rejected", "search_seconds"}
    assert set(data["best"]) >= ESTIMATE_KEYS | {"days", "gpu_hours", "usd"}
    assert {p.name for p in tmp_path.iterdir()} == {"plan.yaml", "plan.html"}
    simulated = run("simulate", "plan.yaml", "--trace", "trace.json", "--json")
    assert json.loads(simulated.out)["step_time_s"] == data["best"]["step_time_s"]
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert json.loads(run("report", "plan.yaml", "--out", "page.html", "--json").out)["path"] == "page.html"
    assert "llama-3-8b" in (tmp_path / "page.html").read_text()
    run("estimate", *LARGE, "--zero", "3", "--recompute", "full", "--tokens", "1T", "--out", "other.yaml")
    compared = run("compare", "plan.yaml", "other.yaml", "--json")
    assert compared.code == 0 and json.loads(compared.out)


def test_tables_for_people(run) -> None:  # type: ignore[no-untyped-def]
    brief = run("plan", *LARGE, "--tokens", "1T")
    assert brief.code == 0 and len(brief.out.splitlines()) <= 24 and max(map(len, brief.out.splitlines())) <= 80
    assert "headway report plan.yaml" in brief.out and brief.out.endswith("\nplan.yaml\n")
    assert brief.out.rpartition("plan.yaml\n")[0] == run("report", "plan.yaml", "--summary").out
    shown = run("plan", *LARGE, "--tokens", "1T", "--verbose")
    assert shown.code == 0 and shown.out.startswith(brief.out.rpartition("plan.yaml\n")[0])
    for word in ("step time", "tokens/s", "MFU", "days", "Considered", "Left out", "Assumed", "plan.yaml"):
        assert word in shown.out, word
    for kind, word in (("models", "llama-3-8b"), ("accelerators", "TFLOP/s"), ("clusters", "NVLink"), ("prices", "USD/h"),
                       ("software", "megatron-lm-2024"), ("fleets", "node-days")):
        assert word in run("catalog", kind).out
        assert json.loads(run("catalog", kind, "--json").out)[kind]
    # numbers stand under their own heads
    h100 = next(a for a in json.loads(run("catalog", "accelerators", "--json").out)["accelerators"]
                if a["accelerator"] == "h100-80gb")
    assert h100["peak bf16 (dense)"].endswith("TFLOP/s") and h100["power"] == "700 W"


MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "tie_word_embeddings": False,
}


def test_estimate_of_other_axes(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.json").write_text(json.dumps(MIXTRAL))
    experts = run("estimate", "mine.json", "dgx-h100:2", "--tp", "2", "--ep", "4", "--etp", "2", "--zero", "1",
                  "--imbalance", "1.5", "--json")
    assert experts.code == 0, experts.err
    data = json.loads(experts.out)
    assert {k: data["strategy"][k] for k in ("dp", "tp", "ep", "etp", "imbalance")} == \
        {"dp": 8, "tp": 2, "ep": 4, "etp": 2, "imbalance": 1.5}
    assert data["breakdown_s"]["exposed_ep"] > 0
    even = json.loads(run("estimate", "mine.json", "dgx-h100:2", "--tp", "2", "--ep", "4", "--etp", "2", "--zero", "1",
                          "--json").out)
    assert even["step_time_s"] < data["step_time_s"]
    mistake(run("estimate", "mine.json", "dgx-h100:2", "--ep", "3"), "ep 3 x etp 1 does not divide 8 experts")
    mistake(run("estimate", *LARGE, "--ep", "2"), "ep 2 x etp 1 does not divide 0 experts")
    split = run("estimate", *LARGE, "--cp", "4", "--context", "all_gather", "--zero", "3", "--shard-group", "8",
                "--recompute", "full", "--recompute-share", "0.5", "--json")
    assert split.code == 0, split.err
    data = json.loads(split.out)
    assert {k: data["strategy"][k] for k in ("dp", "cp", "context", "shard_group", "recompute_share")} == \
        {"dp": 4, "cp": 4, "context": "all_gather", "shard_group": 8, "recompute_share": 0.5}
    assert data["breakdown_s"]["exposed_cp"] > 0
    mistake(run("estimate", *LARGE, "--cp", "3"), "cp 3", "does not divide the 16 accelerators")
    mistake(run("estimate", *LARGE, "--context", "mail"), "context", "'mail'", "ring, all_gather, ulysses")
    mistake(run("estimate", *LARGE, "--imbalance", "0.5"), "imbalance", "0.5")
    mistake(run("estimate", *LARGE, "--recompute-share", "1.5"), "recompute_share", "1.5")


def test_estimate_of_chunks(run) -> None:  # type: ignore[no-untyped-def]
    result = run("estimate", *LARGE, "--pp", "4", "--tp", "4", "--chunks", "4", "--global-batch", "32", "--json",
                 "--out", "plan.yaml")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    assert (data["strategy"]["schedule"], data["strategy"]["chunks"]) == ("Interleaved1F1B", 4)
    whole = json.loads(run("estimate", *LARGE, "--pp", "4", "--tp", "4", "--global-batch", "32", "--json").out)
    assert whole["strategy"]["schedule"] == "1F1B"
    # (p - 1) / v passes of a rank stand still, not p - 1
    assert data["breakdown_s"]["bubble"] < whole["breakdown_s"]["bubble"] / 2
    replayed = json.loads(run("simulate", "plan.yaml", "--json").out)
    assert replayed["strategy"] == data["strategy"]
    mistake(run("estimate", *LARGE, "--pp", "4", "--chunks", "2", "--schedule", "1F1B"),
            "1F1B needs 1 chunk a rank (is 2)", "for this shape there are Interleaved1F1B")
    mistake(run("estimate", *LARGE, "--pp", "16", "--chunks", "2", "--global-batch", "33"),
            "33 do not divide into 2 rounds; use a multiple of the 16 pipeline ranks")
    mistake(run("estimate", *LARGE, "--pp", "16", "--chunks", "4"), "pp 16 x 4 chunks is more than 32 layers")


def test_estimate_with_software(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    split = ("--zero", "1", "--tp", "4", "--seq-len", "2048")
    theirs = run("estimate", *LARGE, *split, "--software", "megatron-lm-2022", "--json")
    assert theirs.code == 0, theirs.err
    data = json.loads(theirs.out)
    assert data["strategy"]["software"]["framework"].startswith("Megatron-LM")
    assert data["strategy"]["software"]["attention"] == "unfused"
    ours = json.loads(run("estimate", *LARGE, *split, "--json").out)
    # 5as/h = 80 bytes of scores beside 34 of an element of the stream (arXiv 2205.05198, table 2)
    assert data["memory_bytes"]["activations"] > 2 * ours["memory_bytes"]["activations"]
    assert "Megatron-LM" in run("estimate", *LARGE, *split, "--software", "megatron-lm-2022").out
    mistake(run("estimate", *LARGE, "--software", "megatron-1999"), "software: 'megatron-1999'", "did you mean megatron-lm-20")
    text = "framework: Mine\nyear: 2026\nkernels: fused\nattention: flash3\nsource: me\n"
    (tmp_path / "mine.yaml").write_text(text + "moment_bytes: 4\n")
    mine = json.loads(run("estimate", *LARGE, *split, "--software", "mine.yaml", "--json").out)
    assert mine["memory_bytes"]["optimizer"] == pytest.approx(ours["memory_bytes"]["optimizer"] / 2, rel=1e-6)
    (tmp_path / "mine.yaml").write_text(text + "speed: 9\n")
    mistake(run("estimate", *LARGE, "--software", "mine.yaml"), "mine.yaml: speed")
    (tmp_path / "mine.yaml").write_text(text.replace("flash3", "flash9"))
    mistake(run("estimate", *LARGE, "--software", "mine.yaml"), "mine.yaml: attention")
    mistake(run("estimate", *LARGE, "--software", "none.yaml"), "none.yaml: no such file")


def test_precisions(run) -> None:  # type: ignore[no-untyped-def]
    wide, narrow = (
        json.loads(run("estimate", *LARGE, "--zero", "3", "--precision", p, "--json").out) for p in ("bf16", "fp8")
    )
    assert narrow["step_time_s"] < wide["step_time_s"]
    assert narrow["strategy"]["precision"] == "fp8"


def test_nothing_fits_is_status_one(run) -> None:  # type: ignore[no-untyped-def]
    result = run("plan", "llama-3.1-405b", "dgx-h100:1", "--tokens", "1T", "--seq-len", "8192")
    assert result.code == 1
    assert "nothing fits" in result.err
    assert "usable on H100-SXM5-80GB" in flat(result.out)
    assert json.loads(run("plan", "llama-3.1-405b", "dgx-h100:1", "--tokens", "1T", "--json").out)["best"] is None


def test_a_plan_for_this_machine_from_its_profile(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tiny_profile(tmp_path / "profile.csv")
    result = run("plan", "bytes-5m", "local", "--tokens", "1M", "--global-batch", "8", "--profile", "profile.csv", "--json")
    assert result.code == 0, result.err
    best = json.loads(result.out)["best"]
    assert best["strategy"]["precision"] == "fp32" and best["usd"] is None
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("plan.yaml", "profile.csv"):
        (tmp_path / name).rename(moved / name)
    assert json.loads(run("simulate", "moved/plan.yaml", "--json").out)["step_time_s"] == best["step_time_s"]


def test_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "headway", "plan", "llama-9", "x", "--tokens", "1T"], cwd=tmp_path,
                          capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
