"""The command line on pools of unlike accelerators: what each verb shows of them, and what no framework can be told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import headway
from executor.exports import EXPORTS, export_plan
from planner.inputs import put
from planner.plan import read_plan
from planner.predict import predict_replayed
from planner.scenario import scenario_of
from profiles.files import BadInput
from profiles.hardware import load_cluster

POOL = "dgx-a100:2+dgx-h100:2"
SHAPE = ("--tp", "4", "--pp", "4", "--layers", "5-5-12-10", "--zero", "1", "--seq-len", "4096", "--global-batch", "64")
NARROW = ("cp=1", "tp=4", "zero=1", "chunks=1", "schedule=1F1B", "context=ring", "order=tp-cp-dp-pp", "micro_batch=1",
          "recompute=none,full", "pp=1,2,4", "offload=none")
Command = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            headway.main(arguments)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(stopped.value.code or 0), json.loads(out) if "--json" in arguments else {"screen": out, "error": err}

    return run


def test_a_plan_on_a_pool_stands_beside_each_part_alone(command: Command, tmp_path: Path) -> None:
    search = [word for text in NARROW for word in ("--search", text)]
    given = ("--tokens", "300B", "--seq-len", "4096", "--global-batch", "64", *search)
    code, data = command("plan", "llama-3-8b", POOL, *given, "--page", "--json")
    page = (tmp_path / "plan.html").read_text()
    assert "Unlike accelerators" in page and "2 x DGX A100 80GB + 2 x DGX H100" in page
    best, pool = data["best"], data["pool"]
    assert code == 0 and best["strategy"]["pp"] > 1
    slow, fast = ([s for s in pool["stages"] if s["accelerator"].startswith(kind)] for kind in ("A100", "H100"))
    assert max(s["layers"] for s in slow) < min(s["layers"] for s in fast)
    assert sum(s["layers"] for s in pool["stages"]) == 32
    assert all(s["peak_memory_bytes"] <= s["usable_memory_bytes"] for s in pool["stages"])
    busy = [s["forward_s"] + s["backward_s"] for s in pool["stages"]]
    assert min(busy) > 0.85 * max(busy)
    whole, *alone = pool["considered"]
    assert [row["num_gpus"] for row in (whole, *alone)] == [32, 16, 16]
    assert whole["usd"] == pytest.approx(best["usd"], rel=1e-6)
    assert all(row["reason"].endswith("slower") and row["days"] > whole["days"] for row in alone)
    fast_alone = command("estimate", "llama-3-8b", "dgx-h100:2", "--tp", "4", "--zero", "1", *given[:6], "--json")[1]
    assert fast_alone["days"] >= 0.99 * alone[1]["days"]
    # HetHub (arXiv 2405.16256) measured at least 90 % of this bound on each of six pairs of unlike accelerators
    assert 0.9 < pool["share_of_parts_alone"] < 1.05
    steps = {kind["accelerator"]: kind["step_time_s"] for kind in pool["all_of_one_kind"]}
    assert steps["H100-SXM5-80GB"] < best["step_time_s"] < steps["A100-SXM4-80GB"]
    goal = command("plan", "llama-3-8b", "--clusters", f"dgx-a100:2,dgx-h100:2,{POOL}", "--deadline",
                   f"{best['days'] + 0.5}d", "--terms", "on-demand", *given, "--json")[1]
    assert goal["is_met"] and goal["chosen"]["cluster"] == POOL
    assert {r["cluster"]: r["reason"].endswith("days late") for r in goal["considered"]} == {
        "dgx-a100:2": True, "dgx-h100:2": True, POOL: False}


def test_each_verb_takes_a_plan_on_a_pool(command: Command, tmp_path: Path) -> None:
    code, data = command("estimate", "llama-3-8b", POOL, *SHAPE, "--out", "p.yaml", "--json")
    assert code == 0 and len(data["pool"]["stages"]) == 4 and "share_of_parts_alone" in data["pool"]
    screen = command("estimate", "llama-3-8b", POOL, *SHAPE)[1]["screen"]
    assert "Pipeline ranks by accelerator" in screen and "the slower part costs" in screen
    plan = read_plan("p.yaml")
    step = predict_replayed(plan.question, plan.strategy)[0].step_time_s
    code, data = command("simulate", "p.yaml", "--trace", "t.json", "--json")
    assert code == 0 and data["step_time_s"] == pytest.approx(step, rel=1e-6)
    shares = {p["rank"]: p["bytes"] / p["share_of_usable"] for p in data["peak_memory_by_rank"]}
    assert shares[0] == pytest.approx(load_cluster("dgx-a100").accelerator.memory_bytes)
    assert shares[24] == pytest.approx(load_cluster("dgx-h100").accelerator.memory_bytes)
    assert command("simulate", "p.yaml", "--run", "--runs", "5", "--json")[0] == 0
    code, data = command("fit", "p.yaml", "--json")
    assert code == 0 and data["largest_micro_batch"] > 1
    code, data = command("fit", "llama-3-70b", POOL, "--tp", "2", "--pp", "4", "--json")
    assert code == 1 and data["fewest_gpus"] is None and all(c["num_gpus"] == 32 for c in data["changes"])
    code, data = command("whatif", "p.yaml", "--set", "network=100Gb/s,400Gb/s", "--json")
    slow, fast = (row["step_time_s"] for row in data["sweeps"][0]["rows"])
    assert code == 0 and slow > fast
    assert command("report", "p.yaml")[0] == 0 and "Unlike accelerators" in (tmp_path / "p.html").read_text()
    assert command("compare", "p.yaml", "p.yaml", "--json")[0] == 0


def test_inputs_change_every_part_or_say_why_not(command: Command) -> None:
    command("estimate", "llama-3-8b", POOL, *SHAPE, "--out", "p.yaml", "--json")
    plan = read_plan("p.yaml")
    base = scenario_of(plan.question, plan.strategy)
    cluster = plan.question.cluster
    twice = put(base, "peak", 2 * cluster.accelerator.peak_flop_per_s["bf16"]).question.cluster
    assert [b.accelerator.peak_flop_per_s["bf16"] / a.accelerator.peak_flop_per_s["bf16"]
            for a, b in zip(cluster.parts, twice.parts, strict=True)] == pytest.approx([2, 2])
    wider = put(base, "network", 2 * cluster.scale_out.bytes_per_s).question.cluster
    assert wider.scale_out.bytes_per_s == pytest.approx(2 * cluster.scale_out.bytes_per_s)
    assert wider.parts[1].scale_out.bytes_per_s == pytest.approx(2 * cluster.parts[1].scale_out.bytes_per_s)
    assert [p.num_nodes for p in put(base, "num_gpus", 64).question.cluster.parts] == [4, 4]
    for name in ("matmul_time", "latency"):
        with pytest.raises(BadInput, match="each part of a pool has its own"):
            put(base, name, 1.5)


def test_exports_say_which_machines_are_which_or_refuse(command: Command) -> None:
    command("estimate", "llama-3-8b", POOL, *SHAPE, "--out", "p.yaml", "--json")
    plan = read_plan("p.yaml")
    for name in ("slurm", "kubernetes", "skypilot"):
        assert "ask for nodes of one kind" in export_plan(plan, name).refusals[0]
    made = export_plan(plan, "megatron")
    assert "Ettttt|ttttt|tttttttttttt|ttttttttttL" in "".join(made.files.values())
    assert any("node ranks 0 to 1 on DGX A100 80GB, 2 to 3 on DGX H100" in note for note in made.notes)
    raw = yaml.safe_load(Path("p.yaml").read_text())
    raw["question"] |= {"cluster": "dgx-h100:1+gb200-nvl72:1", "num_gpus": 80}
    raw["strategy"]["dp"] = 5
    Path("q.yaml").write_text(yaml.safe_dump(raw))
    assert all("hosts of 4 and 8 accelerators have no one launch line" in export_plan(read_plan("q.yaml"), name).refusals[-1]
               for name in EXPORTS)
