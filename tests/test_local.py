"""Costs of torch's engines in a measured table, who else used the processor, and `headway validate --local`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests_support import tiny_profile

from executor.engine import refusal
from headway import main
from profiles.collectives import Collective
from profiles.cost import CostModel, cost_model
from profiles.families import load_model, num_params
from profiles.families.llama import llama_spec
from profiles.files import BadInput
from profiles.hardware import cluster_from_table
from profiles.measure.others import MANY_CORES, Load, Usage, descendants, load_between, quieter, usage
from profiles.optimizer import AdamW
from profiles.tables import ENGINES, MeasuredTable, read_table, write_table
from reports.local import MIN_STEPS, Case, local_cases, quiet_step, validate_local
from reports.local_report import LocalAccuracy, local_json, local_report, local_tables, machine_line, read_local
from reports.page import markdown
from simulator.estimate import estimate
from simulator.software import Software
from simulator.strategy import Strategy
from simulator.workload import build_workload

MODEL = load_model("bytes-5m")
GATHER = Collective(name="x", kind="all_gather", axis="tp", bytes=2**16, group_size=2)


@pytest.fixture
def plain(tmp_path: Path) -> MeasuredTable:
    return read_table(tiny_profile(tmp_path / "profile.csv"))


def with_rows(table: MeasuredTable, rows: Sequence[dict[str, Any]]) -> MeasuredTable:
    common = {"pass": "", "dtype": "", "num_samples": 9, "group_size": 2}
    made = [common | {"p10_s": r["median_s"], "p90_s": r["median_s"]} | r for r in rows]
    return MeasuredTable(head=table.head, rows=pd.concat([table.rows, pd.DataFrame(made)], ignore_index=True))


def engine_collectives(seconds: float, engines: Sequence[str] = ("tp F", "tp B", "fsdp")) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "mode": mode, "bytes": size, "median_s": seconds + size / 1e9}
        for kind in ("all_gather", "reduce_scatter") for mode in engines for size in (2**10, 2**20, 2**24)
    ]


def engine_updates(fixed_s: float, engine: str) -> list[dict[str, Any]]:
    return [
        {"kind": "adamw", "mode": engine, "dtype": "fp32", "size_0": params, "median_s": fixed_s + 4e-9 * params}
        for params in (10_000, 100_000, 1_000_000)
    ]


def model_of(table: MeasuredTable) -> CostModel:
    return cost_model(cluster_from_table(table))


def step_s(table: MeasuredTable, **fields: Any) -> float:
    strategy = Strategy(precision="fp32", seq_len=256, micro_batch=2, software=Software(kernels="eager"), **fields)
    return float(estimate(build_workload(MODEL, strategy), model_of(table)).step_time_s)


def test_a_table_without_engines_prices_collectives_bare(plain: MeasuredTable) -> None:
    cost = model_of(plain)
    assert cost.collective(GATHER, 2).seconds == cost.collective(GATHER, 2, "fsdp").seconds
    assert cost.update(AdamW(name="x", params=1e5).kernels("U")[0], "tp") == cost.kernel(
        AdamW(name="x", params=1e5).kernels("U")[0]
    )
    assert not cost.gathers_with_copies


def test_each_pass_and_engine_has_its_own_collectives(plain: MeasuredTable) -> None:
    table = with_rows(plain, [
        {"kind": "all_gather", "mode": mode, "bytes": 2**16, "median_s": seconds}
        for mode, seconds in (("tp F", 1.0), ("tp B", 2.0), ("fsdp", 3.0))
    ])
    cost = model_of(table)
    mirrored = Collective(name="x", kind="reduce_scatter", axis="tp", bytes=2**16, group_size=2).backward()
    sharded = Collective(name="x", kind="all_gather", axis="shard", bytes=2**16, group_size=2)
    assert mirrored.kind == "all_gather" and mirrored.is_backward
    assert float(cost.collective(GATHER, 2).seconds) == pytest.approx(1.0)
    assert float(cost.collective(mirrored, 2).seconds) == pytest.approx(2.0)
    assert float(cost.collective(sharded, 2, "fsdp").seconds) == pytest.approx(3.0)
    assert float(cost.collective(sharded, 2).seconds) < 0.1


@pytest.mark.parametrize(("engines", "slower"), [(("tp F", "tp B"), {"tp": 2}), (("fsdp",), {"dp": 2, "zero": 3})])
def test_an_engine_slows_its_own_strategies_only(
    plain: MeasuredTable, engines: tuple[str, ...], slower: dict[str, int]
) -> None:
    quick, slow = (with_rows(plain, engine_collectives(s, engines)) for s in (1e-4, 2e-3))
    strategies: list[dict[str, Any]] = [{}, {"dp": 2}, {"tp": 2}, {"dp": 2, "zero": 3}, {"pp": 2, "num_microbatches": 4}]
    for fields in strategies:
        before, after = step_s(quick, **fields), step_s(slow, **fields)
        if fields == slower:
            assert after > before + 1e-3
        else:
            assert after == before


def test_tensor_parallelism_pays_its_collectives_once(plain: MeasuredTable) -> None:
    """Four of a layer's each way, with those of embedding and head, and nothing else moves."""
    quick, slow = (with_rows(plain, engine_collectives(s, ("tp F", "tp B"))) for s in (1e-3, 3e-3))
    num = 2 * (4 * MODEL.num_layers + 2)
    assert step_s(slow, tp=2) - step_s(quick, tp=2) == pytest.approx(num * 2e-3, rel=0.02)


def test_copies_of_fsdp_are_not_priced_twice(plain: MeasuredTable) -> None:
    """Where its collectives are measured with their copies, a step does not depend on what the copies take alone."""
    table = with_rows(plain, engine_collectives(1e-3, ("fsdp",)))
    assert model_of(table).gathers_with_copies
    slower_adds = table.rows.copy()
    is_add = (slower_adds["kind"] == "add") & (slower_adds["size_0"] * slower_adds["size_1"] > 512 * 704)
    assert is_add.any()
    slower_adds.loc[is_add, ["median_s", "p10_s", "p90_s"]] *= 1e3
    changed = step_s(MeasuredTable(head=table.head, rows=slower_adds), dp=2, zero=3)
    assert changed == pytest.approx(step_s(table, dp=2, zero=3), rel=0.05)
    bare = MeasuredTable(head=plain.head, rows=slower_adds[~slower_adds["mode"].isin(ENGINES)])
    assert step_s(bare, dp=2, zero=3) > 1.5 * step_s(plain, dp=2, zero=3)


def test_an_engine_adds_a_fixed_time_to_an_update(plain: MeasuredTable) -> None:
    kernels = [AdamW(name="x", params=p).kernels("U")[0] for p in (1e5, 1e6)]
    for fixed_s in (1e-3, 5e-3):
        cost = model_of(with_rows(plain, engine_updates(fixed_s, "tp")))
        added = [float(cost.update(k, "tp").seconds - cost.update(k).seconds) for k in kernels]
        assert added[0] == pytest.approx(added[1])
        assert 0.5 * fixed_s < added[0] <= fixed_s
        assert float(cost.update(kernels[0], "fsdp").seconds) == float(cost.update(kernels[0]).seconds)
    cheaper = model_of(with_rows(plain, engine_updates(0.0, "tp")))
    assert float(cheaper.update(kernels[0], "tp").seconds) == float(cheaper.update(kernels[0]).seconds)


@pytest.mark.parametrize(("engine", "slower"), [("tp", {"tp": 2}), ("fsdp", {"dp": 2, "zero": 3})])
def test_a_step_updates_what_its_engine_distributes(plain: MeasuredTable, engine: str, slower: dict[str, int]) -> None:
    """Each of a model's parts (its layers, embedding and head) pays the engine's fixed time once a step."""
    table = with_rows(plain, engine_updates(5e-3, engine))
    kernel = AdamW(name="x", params=1e5).kernels("U")[0]
    added_s = float(model_of(table).update(kernel, engine).seconds - model_of(table).update(kernel).seconds)
    assert step_s(table, **slower) - step_s(plain, **slower) == pytest.approx((MODEL.num_layers + 2) * added_s)
    for fields in ({}, {"dp": 2}):
        assert step_s(table, **fields) == step_s(plain, **fields)


def test_engine_rows_are_written_and_read(plain: MeasuredTable, tmp_path: Path) -> None:
    table = with_rows(plain, [*engine_collectives(1e-3), *engine_updates(1e-3, "fsdp")])
    back = read_table(write_table(table, tmp_path / "engines.csv"))
    assert step_s(back, tp=2) == pytest.approx(step_s(table, tp=2), rel=1e-6)
    assert len(back.select("all_gather", engine="tp F")) == 3
    assert not back.select("all_gather")["mode"].isin(ENGINES).any()


def test_a_batch_of_strategies_is_priced_as_its_members(plain: MeasuredTable) -> None:
    import numpy as np

    table = with_rows(plain, [*engine_collectives(1e-3), *engine_updates(2e-3, "tp"), *engine_updates(1e-3, "fsdp")])
    tp, dp, zero = np.array([1, 2, 1, 1]), np.array([2, 1, 2, 1]), np.array([0, 0, 3, 0])
    together = Strategy(tp=tp, dp=dp, zero=zero, precision="fp32", seq_len=256, micro_batch=2,
                        software=Software(kernels="eager"))
    steps = estimate(build_workload(MODEL, together), model_of(table)).step_time_s
    alone = [step_s(table, tp=int(t), dp=int(d), zero=int(z)) for t, d, z in zip(tp, dp, zero, strict=True)]
    assert steps == pytest.approx(alone)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30))
def test_the_quieter_half_is_kept_at_least(others: list[float]) -> None:
    kept = quieter(list(range(len(others))), others)
    assert 2 * len(kept) >= len(others)
    assert all(i in kept for i, cores in enumerate(others) if cores <= MANY_CORES)
    assert max(others[i] for i in kept) <= min((c for i, c in enumerate(others) if i not in kept), default=9.0)


def test_measuring_goes_on_until_there_are_quiet_samples_or_patience_ends() -> None:
    pytest.importorskip("torch")
    from profiles.measure.rounds import goes_on

    quiet, loud = [[0.0] * 4], [[0.0] * 4, [0.0, 1.0, 1.0, 1.0]]
    assert goes_on(1, 2, 9.0, 1.0, quiet)
    assert goes_on(2, 2, 1.0, 2.0, quiet) and not goes_on(2, 2, 1.9, 2.0, quiet)
    assert goes_on(2, 2, 1.9, 2.0, loud) and not goes_on(2, 2, 4.9, 2.0, loud)
    assert not goes_on(2, 2, 1.9, 2.0, ())


def test_what_others_use_is_what_is_busy_and_not_ours() -> None:
    start = Usage(at_s=10.0, busy_s=100.0, own_s=5.0, load_average=1.5)
    end = Usage(at_s=14.0, busy_s=107.0, own_s=8.0, load_average=9.0)
    assert load_between(start, end) == Load(average=1.5, cores_of_others=1.0)
    assert load_between(start, end).disturbed and not Load(average=9.0, cores_of_others=0.0).disturbed
    unknown = Usage(at_s=14.0, busy_s=None, own_s=8.0, load_average=0.0)
    assert load_between(start, unknown).cores_of_others is None and not load_between(start, unknown).disturbed


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_a_childs_processor_seconds_are_ours() -> None:
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        assert child.pid in descendants() and os.getpid() not in descendants()
        assert usage([child.pid]).own_s - usage().own_s > 0.25
        child.stdin.write("\n")
    assert usage([child.pid]).busy_s is not None  # one that has ended does no harm


def _ends(others: Sequence[float]) -> list[Usage]:
    busy = 0.0
    ends = [Usage(at_s=0.0, busy_s=0.0, own_s=0.0, load_average=0.0)]
    for i, cores in enumerate(others, start=1):
        busy += cores + 1.0
        ends.append(Usage(at_s=float(i), busy_s=busy, own_s=float(i), load_average=0.0))
    return ends


def test_a_case_is_measured_by_its_quiet_steps() -> None:
    times = (9.0, 9.0, 1.0, 5.0, 1.2, 5.0)
    run: Any = SimpleNamespace(
        job=SimpleNamespace(num_warmup_steps=2), measured_step_times_s=times[2:], step_time_s=3.1,
    )
    assert quiet_step(run, _ends([0.0, 0.0, 1.0, 0.1, 1.0])) == (1.1, 0.05)
    assert quiet_step(run, _ends([0.0] * 5)) == (3.1, 0.0)
    assert quiet_step(run, [])[1] is None


def test_cases_cover_sizes_and_parallelism_cheapest_first() -> None:
    cases = local_cases()
    assert len(cases) >= 12 and local_cases(5) == cases[:5]
    sizes = [num_params(c.model) / 1e6 for c in cases]
    assert min(sizes) < 6 and 140 < max(sizes) < 160
    assert {c.strategy.seq_len for c in cases} >= {128, 1024} and {c.strategy.micro_batch for c in cases} >= {1, 8}
    kinds = {(c.strategy.dp, c.strategy.tp, c.strategy.pp, c.strategy.zero) for c in cases}
    assert kinds == {(1, 1, 1, 0), (2, 1, 1, 0), (2, 1, 1, 3), (1, 2, 1, 0), (1, 1, 2, 0)}
    assert all(refusal(c.strategy, c.model, "cpu") is None for c in cases)
    assert len({c.name for c in cases}) == len(cases)
    firsts = [sizes.index(s) for s in sorted(set(sizes))][:4]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize(("arguments", "says"), [
    (["--local", "--cases", "0"], "cases: must be from 1 to"), (["--local", "--cases", "99"], "is 99"),
    (["--cases", "3"], "--cases: goes with --local only"), (["--profile", "p.csv"], "--profile: goes with --local only"),
    (["runs.csv", "--local"], "RUNS: does not go with --local"), (["--local", "--leave-out"], "--leave-out"),
    (["--local", "--profile", "none.csv"], "none.csv"),
])
def test_mistakes_are_one_line(arguments: list[str], says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["validate", "--out", str(tmp_path / "out"), *arguments])
    assert exit_.value.code == 2
    out, err = capfd.readouterr()
    assert not out and len(err.splitlines()) == 1 and says in err


def test_a_profile_of_one_rank_is_refused_where_two_are_needed(tmp_path: Path) -> None:
    profile = tiny_profile(tmp_path / "profile.csv", num_ranks=1)
    with pytest.raises(BadInput, match=r"local:2: .*was measured with 1 ranks busy"):
        validate_local(tmp_path / "out", profile=profile, num_cases=2, cases=local_cases()[1:2])


TINY = llama_spec(name="tiny", num_layers=2, hidden=128, num_heads=2, num_kv_heads=2, head_dim=64, ffn_hidden=256,
                  vocab=256, max_seq_len=64)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalAccuracy, Path, list[tuple[float, str]]]:
    pytest.importorskip("torch")
    out, told = tmp_path_factory.mktemp("local"), []
    shape: dict[str, Any] = {"precision": "fp32", "seq_len": 64, "micro_batch": 2, "software": Software(kernels="eager")}
    cases = [Case(name=name, model=TINY, strategy=Strategy(**shape, **fields))
             for name, fields in (("alone", {}), ("tp", {"tp": 2}))]
    result = validate_local(out, cases=cases, seconds=0.5, on_progress=lambda share, note: told.append((share, note)))
    return result, out, told


@pytest.mark.distributed
def test_two_cases_are_profiled_predicted_and_run(ran: tuple[LocalAccuracy, Path, list[tuple[float, str]]]) -> None:
    result, out, told = ran
    alone, split = result.accuracy.outcomes
    assert alone.measured_s and split.measured_s and alone.predicted_s > 0 and split.predicted_s > 0
    assert alone.num_gpus == 1 and split.num_gpus == 2 and split.breakdown_s["exposed_tp"] > 0
    assert alone.measured_peak_bytes and alone.peak_kind == "resident"
    for name in ("accuracy.html", "accuracy.md", "rows.csv", "accuracy.json", "profile.csv", "runs/01/run.json",
                 "runs/02/run.json"):
        assert (out / name).exists()
    assert json.loads((out / "runs/02/run.json").read_text())["job"]["num_steps"] >= MIN_STEPS
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1.0


@pytest.mark.distributed
def test_the_table_says_what_was_reached(ran: tuple[LocalAccuracy, Path, list[tuple[float, str]]]) -> None:
    result, out, _ = ran
    cases, short = local_tables(result)
    assert cases.row_count == 2 and short.row_count >= 4
    data = local_json(result)
    assert json.loads((out / "accuracy.json").read_text()) == json.loads(json.dumps(data))
    worst = next(h for h in data["headline"] if h["set"] == "this machine" and h["figure"] == "worst")
    assert worst["reached"] == max(abs(o.error or 0.0) for o in result.accuracy.outcomes) and worst["target"] == 0.2
    assert len(data["loads"]) == 2


@pytest.mark.distributed
def test_the_record_of_the_runs_is_read_back_with_its_machine(ran: tuple[LocalAccuracy, Path, list[tuple[float, str]]]) -> None:
    result, out, _ = ran
    back = read_local(out / "accuracy.json")
    assert local_json(back) == local_json(result)
    page, line = (out / "accuracy.md").read_text(), machine_line(result.machine)
    assert line in page and str(result.machine["date"]) in line and f"{result.machine['cores']} cores" in line
    assert page == markdown(local_report(back))


def test_a_record_of_other_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "accuracy.json").write_text('{"rows": []}')
    with pytest.raises(BadInput, match=r"accuracy.json: 'loads' is missing; give the accuracy.json that"):
        read_local(tmp_path / "accuracy.json")


@pytest.mark.distributed
def test_engines_are_measured_and_read(ran: tuple[LocalAccuracy, Path, list[tuple[float, str]]]) -> None:
    table = read_table(ran[1] / "profile.csv")
    assert set(table.rows.loc[table.rows["mode"].isin(ENGINES), "mode"]) == set(ENGINES)
    for kind in ("all_gather", "reduce_scatter"):
        for engine in ("tp F", "tp B", "fsdp"):
            rows = table.select(kind, engine=engine)
            assert len(rows) >= 3 and (rows["median_s"] > 0).all() and set(rows["group_size"]) == {2}
