"""Traces that torch's profiler really writes, on CPU with gloo: against the profiler's own sums and the schedule's table."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from torch.distributed.tensor.parallel import loss_parallel  # noqa: E402
from torch.profiler import ProfilerActivity, profile, schedule  # noqa: E402

from executor.parallel import parallelise  # noqa: E402
from executor.pipeline import build_pipeline, run_step  # noqa: E402
from executor.record import Recorder  # noqa: E402
from executor.train import update  # noqa: E402
from profiles.families.llama import llama_spec  # noqa: E402
from profiles.measure.leave import leave_group  # noqa: E402
from simulator.breakdown import breakdown  # noqa: E402
from simulator.schedules import build_schedule, format_table  # noqa: E402
from simulator.strategy import Strategy  # noqa: E402
from simulator.timeline import COLUMNS, Timeline, write_trace  # noqa: E402
from simulator.traces import read_trace  # noqa: E402

SPEC = llama_spec(
    name="tiny", num_layers=2, hidden=64, num_heads=4, num_kv_heads=2, head_dim=16, ffn_hidden=128, vocab=256, max_seq_len=32,
)
ONE = Strategy(precision="fp32", seq_len=32, micro_batch=2, num_microbatches=4)
CASES = {
    "ddp": replace(ONE, dp=2, num_microbatches=2), "fsdp": replace(ONE, dp=2, zero=3, num_microbatches=2),
    "tp": replace(ONE, tp=2), "pp": replace(ONE, pp=2),
}
STEPS = schedule(wait=1, warmup=1, active=1)


def _own_seconds(profiler: profile) -> float:
    """Return the sum of what operators spent in themselves, by torch's own account."""
    return sum(row.self_cpu_time_total for row in profiler.key_averages() if not row.is_user_annotation) / 1e6


def _train(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for name, strategy in CASES.items():
        parallel = parallelise(SPEC, strategy, torch.device("cpu"), seed=0, learning_rate=1e-3)
        recorder = Recorder(rank, torch.device("cpu"))
        pipeline = build_pipeline(parallel, recorder)
        ids = torch.arange(strategy.micro_batch * strategy.num_microbatches * 33).reshape(-1, 33) % 256
        with loss_parallel() if strategy.tp > 1 else nullcontext(), profile(
            activities=[ProfilerActivity.CPU], record_shapes=True, schedule=STEPS
        ) as profiler:
            for _ in range(3):
                run_step(parallel, pipeline, (ids[:, :-1], ids[:, 1:]), recorder)
                update(parallel, recorder)
                profiler.step()
        profiler.export_chrome_trace(f"{folder}/{name}-{rank}.json{'.gz' if rank else ''}")
        dist.barrier()
    leave_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces")
    mp.spawn(_train, args=(str(path),), nprocs=2)
    return path


def read(folder: Path, name: str) -> Timeline:
    return read_trace([folder / f"{name}-0.json", folder / f"{name}-1.json.gz"], strategy=CASES[name])


def test_operators_add_up_to_the_profilers_own_account(tmp_path: Path) -> None:
    """Computation and calls on the training thread are all that the operators spent in themselves."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64)
    model = torch.nn.Sequential(torch.nn.Embedding(64, 32), layer, torch.nn.Linear(32, 64))
    optimizer = torch.optim.AdamW(model.parameters())
    with profile(activities=[ProfilerActivity.CPU], schedule=STEPS) as profiler:
        for _ in range(3):
            model(torch.arange(64).reshape(2, 32)).logsumexp(-1).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            profiler.step()
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    timeline = read_trace([tmp_path / "t.json"])
    rows = timeline.rows.assign(s=timeline.rows["end_s"] - timeline.rows["start_s"])
    assert rows[rows["stream"] == "compute"]["s"].sum() == pytest.approx(_own_seconds(profiler), rel=1e-3)
    assert rows["s"].sum() == pytest.approx(timeline.step_time_s, rel=1e-6), "one thread does one thing at a time, or nothing"
    kinds = set(rows["op"].str.split(":").str[0])
    assert {"gemm", "attention", "norm", "embedding", "loss", "nothing runs"} <= kinds
    assert set(rows["pass"]) == {"F", "B", "U", ""}
    passes = rows[rows["pass"] != ""].sort_values("start_s")["pass"]
    assert [pass_ for pass_, _ in groupby(passes)] == ["F", "B", "U"]


@pytest.mark.distributed
@pytest.mark.parametrize("name", list(CASES))
def test_all_of_a_step_is_accounted_for(folder: Path, name: str) -> None:
    timeline = read(folder, name)
    assert tuple(timeline.rows.columns) == COLUMNS and set(timeline.rows["rank"]) == {0, 1}
    assert (timeline.rows["end_s"] > timeline.rows["start_s"]).all() and timeline.rows["start_s"].min() >= 0
    assert timeline.rows["end_s"].max() == pytest.approx(timeline.step_time_s)
    parts = breakdown(timeline)
    assert sum(parts.values()) == pytest.approx(timeline.step_time_s) and min(parts.values()) >= -1e-9
    assert parts["compute"] > 0 and parts["optimizer"] > 0
    for rank in (0, 1):
        own = timeline.rank(rank)
        assert set(own[own["stream"] == "compute"]["pass"]) == {"F", "B", "U"}


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "stream", "ops"), [
    ("ddp", "dp", {"all_reduce"}), ("fsdp", "dp", {"all_gather", "all_reduce"}), ("tp", "tp", {"all_gather", "all_reduce"}),
    ("pp", "pp", {"send", "recv"}),
])
def test_collectives_are_on_their_axis(folder: Path, name: str, stream: str, ops: set[str]) -> None:
    rows = read(folder, name).rows
    found = rows[~rows["stream"].isin(["compute", "host"])]
    assert set(found["stream"]) == {stream} and set(found["op"]) == ops
    # with tp the mean of the loss is summed after the last backward
    assert set(found["pass"]) <= {"F", "B", *("U" if name == "tp" else "")} and (found["bytes"] > 0).any()
    assert breakdown(read(folder, name))[f"exposed_{stream}"] > 0 or stream == "pp"


@pytest.mark.distributed
def test_layers_are_those_that_fsdp_names(folder: Path) -> None:
    rows = read(folder, "fsdp").rows
    gathers = rows[(rows["stream"] == "dp") & (rows["op"] == "all_gather") & (rows["rank"] == 0)]
    assert set(gathers["layer"]) == {-1, 0, 1}


@pytest.mark.distributed
def test_a_pipeline_runs_the_table_that_is_simulated(folder: Path) -> None:
    rows = read(folder, "pp").rows
    rows = rows[(rows["stream"] == "compute") & (rows["microbatch"] >= 0)].sort_values("start_s")
    table = build_schedule("1F1B", 2, ONE.num_microbatches)
    for rank, actions in enumerate(table):
        own = rows[rows["rank"] == rank]
        seen = list(dict.fromkeys(zip(own["pass"], own["microbatch"], strict=True)))
        assert seen == [(a.pass_, a.microbatch) for a in actions], format_table(table)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ddp", "fsdp", "tp"])
def test_the_engine_names_its_actions(folder: Path, name: str) -> None:
    rows = read(folder, name).rows
    rows = rows[(rows["stream"] == "compute") & (rows["microbatch"] >= 0) & (rows["rank"] == 0)].sort_values("start_s")
    seen = list(dict.fromkeys(zip(rows["pass"], rows["microbatch"], strict=True)))
    assert seen == [(pass_, m) for m in range(CASES[name].num_microbatches) for pass_ in "FB"]


@pytest.mark.distributed
@pytest.mark.parametrize("name", list(CASES))
def test_what_was_read_can_be_written_and_read_again(folder: Path, tmp_path: Path, name: str) -> None:
    timeline = read(folder, name)
    again = read_trace([write_trace(tmp_path / "t.json.gz", timeline, {0: "rank 0", 1: "rank 1"})])
    assert len(again.rows) == len(timeline.rows)
    for part, value in breakdown(timeline).items():
        assert breakdown(again)[part] == pytest.approx(value, abs=1e-9 * len(again.rows))
