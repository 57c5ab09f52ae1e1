"""`headway data` from text to rates, what `simulate --data` makes of them, and training on shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zstandard")

from tests_support import tiny_profile

import headway
from executor.launch import launch
from executor.run import DATA, Job
from planner.plan import read_plan
from planner.predict import predict_replayed
from profiles.families.llama import llama_spec
from reports.data_command import with_data
from simulator.data_stall import DataProfile, load_seconds, write_data_profile
from simulator.strategy import Strategy

Capture = pytest.CaptureFixture[str]


def call(capsys: Capture, *arguments: object, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as stopped:
        headway.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert (stopped.value.code or 0) == code, err
    if code == 2:
        assert err.startswith("headway: ") and err.count("\n") == 1
        return err
    return json.loads(out) if "--json" in arguments else out


@pytest.fixture
def shards(tmp_path: Path, capsys: Capture) -> Path:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("".join(f"line {i} of a text\n" for i in range(3000)))
    (tmp_path / "text" / "b.pdf").write_text("left out")
    with pytest.raises(SystemExit):
        headway.main(["data", "prepare", str(tmp_path / "text"), "-o", str(tmp_path / "shards"), "--block-tokens", "4096",
                      "--shard-size", "1KiB"])
    assert "1 files that are no .txt or .jsonl were left out" in capsys.readouterr().err
    return tmp_path / "shards"


def test_prepare_info_and_check(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    size = (tmp_path / "text" / "a.txt").stat().st_size
    info = call(capsys, "data", "info", shards, "--seq-len", 64, "--json")
    assert info["num_tokens"] == size + 1 and info["num_samples"] == {"64": size // 64} and info["num_shards"] > 1
    assert info["stored_bytes"] == sum(p.stat().st_size for p in shards.glob("shard-*"))
    assert "samples of 2,048" in call(capsys, "data", "info", shards)
    assert call(capsys, "data", "check", shards, "--json") == {"ok": True, "num_blocks": info["num_blocks"], "faults": []}
    again = call(capsys, "data", "prepare", tmp_path / "text", "--out", tmp_path / "other", "--block-tokens", 4096,
                 "--shard-size", "1KiB", "--json")
    assert again["fingerprint"] == info["fingerprint"]


def test_check_names_a_damaged_block(shards: Path, capsys: Capture) -> None:
    path = shards / "shard-000001"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    assert "shard-000001: block 0: has the checksum" in call(capsys, "data", "check", shards, code=1)
    found = call(capsys, "data", "check", shards, "--json", code=1)
    assert not found["ok"] and len(found["faults"]) == 1


def test_bench_writes_rates_that_simulate_reads(shards: Path, tmp_path: Path, capsys: Capture) -> None:
    found = call(capsys, "data", "bench", shards, "--seq-len", 64, "--seconds", 0.3, "--throttle", "1MB/s", "--out",
                 tmp_path / "rates.yaml", "--json")
    assert len(found["stalls"]) >= 3 and found["storage_bytes_per_s"] < 1e6
    assert all(0 <= s[k] < 1 for s in found["stalls"] for k in ("predicted", "queued", "measured"))
    assert "measured" in call(capsys, "data", "bench", shards, "--seq-len", 64, "--seconds", 0.3, "--out", tmp_path / "r.yaml")
    plan = make_plan(tmp_path, capsys)
    plain = call(capsys, "simulate", plan, "--json")
    assert call(capsys, "simulate", plan, "--data", tmp_path / "rates.yaml", "--json")["step_time_s"] >= plain["step_time_s"]


def make_plan(tmp_path: Path, capsys: Capture) -> Path:
    call(capsys, "estimate", "bytes-5m", "local:2", "--profile", tiny_profile(tmp_path / "profile.csv"), "--tokens", "10M",
         "--seq-len", 256, "--global-batch", 8, "--micro-batch", 4, "--out", tmp_path / "plan.yaml")
    return tmp_path / "plan.yaml"


@pytest.mark.parametrize("storage", [500.0, 1e9])
def test_a_step_is_as_long_as_its_loading(tmp_path: Path, capsys: Capture, storage: float) -> None:
    """Two replicas of four sequences, each with a reader, on a machine whose storage they share."""
    plan = read_plan(make_plan(tmp_path, capsys))
    rates = DataProfile(storage_bytes_per_s=storage, memory_bytes_per_s=1e9, decompress_bytes_per_s=1e9,
                        prepare_tokens_per_s=1e9, num_tokens=10**9, token_bytes=1, block_tokens=1 << 18,
                        stored_bytes_per_token=0.25, window=64, depth=8, source="made up")
    path = write_data_profile(rates, tmp_path / "rates.yaml")
    plain = predict_replayed(plan.question, plan.strategy)[0]
    found = with_data(plain, plan, path)
    load_s = 4 * 256 * load_seconds(rates, 256, dp=2, sharing=2).total
    assert plan.strategy.dp == 2 and found.step_time_s == pytest.approx(max(load_s, plain.step_time_s))
    assert sum(found.breakdown_s.values()) == pytest.approx(found.step_time_s)
    assert found.breakdown_s["data"] == pytest.approx(max(0.0, load_s - plain.step_time_s))
    longer = found.step_time_s / plain.step_time_s
    assert longer == 1 if storage == 1e9 else longer > 1.1
    for name in ("days", "gpu_hours"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name) * longer)
    for name in ("tokens_per_s", "tokens_per_s_per_gpu", "mfu", "hfu"):
        assert getattr(found, name) == pytest.approx(getattr(plain, name) / longer)
    assert found.p10_s <= found.step_time_s <= found.p90_s and found.days_p10 <= found.days <= found.days_p90
    run = call(capsys, "simulate", tmp_path / "plan.yaml", "--data", path, "--run", "--runs", 5, "--json")
    assert run["undisturbed_days"] >= found.days * 0.999
    assert with_data(plain, plan, None) is plain


@pytest.mark.parametrize(("arguments", "says"), [
    (["data", "prepare", "none.txt"], "none.txt: no such file"), (["data", "prepare"], "texts"),
    (["data", "info", "."], "headway data prepare"), (["data", "bench", "SHARDS", "--seq-len", "0"], "seq_len"),
    (["data", "bench", "SHARDS", "--throttle", "20"], "throttle"), (["data", "bench", "SHARDS", "--throttle", "0MB/s"], "zero"),
    (["data", "prepare", "SHARDS/index.json"], "known by its name"), (["data", "info", "SHARDS", "--seq-len", "-3"], "seq_len"),
    (["data", "prepare", "SHARDS", "--tokenizer", "none.json"], "none.json"),
])
def test_mistakes_are_one_line(shards: Path, capsys: Capture, arguments: list[str], says: str) -> None:
    assert says in call(capsys, *(a.replace("SHARDS", str(shards)) for a in arguments), code=2)


@pytest.mark.distributed
def test_training_on_shards(shards: Path, tmp_path: Path) -> None:
    """One rank and two see the same samples: the first loss is the same, and later ones as rounding lets them be."""
    pytest.importorskip("torch")
    model = llama_spec(name="tiny", num_layers=2, hidden=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_hidden=128,
                       vocab=256, max_seq_len=64)
    strategy = Strategy(precision="fp32", seq_len=32, micro_batch=2, num_microbatches=2)
    job = Job(model=model, strategy=strategy, out=str(tmp_path / "one"), num_steps=5, data=str(shards))
    one = launch(job)
    two = launch(replace(job, strategy=replace(strategy, dp=2, num_microbatches=1), out=str(tmp_path / "two")))
    on = launch(replace(job, out=str(tmp_path / "on"), first_sample=4))
    assert two.losses == pytest.approx(one.losses, rel=1e-4) and one.losses[-1] < one.losses[0]
    assert on.losses[0] != pytest.approx(one.losses[0], rel=1e-4)
    assert (one.next_sample, two.next_sample, on.next_sample) == (20, 20, 24)
    waits = two.timeline[two.timeline["op"] == DATA]
    assert waits.groupby("rank").size().tolist() == [5, 5] and set(waits["stream"]) == {"host"}
    assert 0 < two.data_wait_s < two.step_time_s
