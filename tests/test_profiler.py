"""The profiler: a small measurement makes a whole table, files keep it, a case does the work that its kernel states."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from planner.shapes import kernels_of
from profiles.attention import Attention
from profiles.collectives import KINDS
from profiles.families import load_model
from profiles.families.gpt2 import gpt2_spec
from profiles.families.llama import llama_spec
from profiles.files import BadInput
from profiles.matmul import Gemm
from profiles.measure import measure_machine
from profiles.measure.grid import MEASURED, default_kernels, key, unique, whole
from profiles.model import Experts, FeedForward
from profiles.ops import Kernel
from profiles.pointwise import POINTWISE, Pointwise
from profiles.tables import HEAD_FIELDS, OTHER_KINDS, MeasuredTable, read_table, write_table

torch = pytest.importorskip("torch")

GEMM = Gemm(name="x", m=96, k=48, n=80, dtype="fp32")
CASES = (
    *(k for p in ("F", "B", "W") for k in GEMM.kernels(p)),
    *Attention(name="x", batch=2, heads=3, kv_heads=3, seq_len=40, head_dim=16, dtype="fp32").kernels("B"),
    *Pointwise(name="x", kind="rope", rows=66.0, cols=160 / 2, dtype="fp32").kernels("F"),
)


@pytest.fixture(scope="module")
def progress() -> list[tuple[str, float]]:
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def table(progress: list[tuple[str, float]], folder: Path) -> MeasuredTable:
    return measure_machine(
        num_ranks=2, cases=(*CASES, *CASES), seconds=2.0, name="tiny", folder=folder,
        on_progress=lambda stage, part: progress.append((stage, part)),
    )


@pytest.fixture
def written(table: MeasuredTable, tmp_path: Path) -> Path:
    return write_table(table, tmp_path / "profile.csv")


@pytest.mark.distributed
def test_every_kind_is_measured(table: MeasuredTable) -> None:
    found = {(k, p) for k, p in zip(table.rows["kind"], table.rows["pass"], strict=True) if p}
    assert found == {(k.kind, k.pass_) for k in default_kernels(["fp32"])}
    assert {k for k, _ in found} == set(MEASURED)
    assert set(table.rows["kind"]) == {*MEASURED, *KINDS, *OTHER_KINDS}
    assert set(table.rows.loc[table.rows["pass"] != "", "mode"]) == {"eager"}


@pytest.mark.distributed
def test_figures_are_positive_and_in_order(table: MeasuredTable) -> None:
    rows = table.rows
    assert (rows["p10_s"] > 0).all()
    assert (rows["p10_s"] <= rows["median_s"]).all()
    assert (rows["median_s"] <= rows["p90_s"]).all()
    assert (rows["num_samples"] >= 2).all()
    assert not rows.duplicated([c for c in rows.columns if not c.endswith("_s") and c != "num_samples"]).any()


@pytest.mark.distributed
def test_the_shapes_asked_for_are_measured(table: MeasuredTable) -> None:
    sizes = table.rows[["size_0", "size_1", "size_2", "size_3"]].itertuples(index=False)
    kinds = zip(table.rows["kind"], table.rows["pass"], table.rows["dtype"], strict=True)
    found = {(*k, tuple(int(n) for n in size if n == n)) for k, size in zip(kinds, sizes, strict=True)}
    assert {key(whole(k)) for k in CASES} <= found


@pytest.mark.distributed
def test_collectives_have_bytes_and_groups(table: MeasuredTable) -> None:
    for kind in KINDS:
        rows = table.select(kind)
        assert set(rows["group_size"]) == {2}
        assert rows["bytes"].min() == 1 << 10
        assert rows["bytes"].max() == 1 << 24
        assert rows["size_0"].isna().all()


@pytest.mark.distributed
def test_head(table: MeasuredTable, progress: list[tuple[str, float]], folder: Path) -> None:
    assert set(table.head) == set(HEAD_FIELDS)
    assert table.head["num_ranks"] == 2
    assert table.head["backend"] == "gloo"
    gemm = table.select("gemm")
    rates = 2 * gemm["size_0"] * gemm["size_1"] * gemm["size_2"] / gemm["median_s"]
    assert table.head["peak_flop_per_s"]["fp32"] == pytest.approx(rates.max(), rel=1e-5)
    assert 1e7 < table.head["framework_bytes"] < table.head["memory_bytes"]
    assert table.head["environment"]["torch"] == torch.__version__
    parts = [part for _, part in progress]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert not list(folder.iterdir())


@pytest.mark.distributed
def test_a_table_is_read_as_it_was_written(table: MeasuredTable, written: Path) -> None:
    back = read_table(written)
    assert back.head == table.head
    pd.testing.assert_frame_equal(back.rows, table.rows, check_exact=True)
    assert write_table(back, written.with_name("again.csv")).read_text() == written.read_text()


@pytest.mark.distributed
def test_one_rank_has_no_collectives(tmp_path: Path) -> None:
    alone = measure_machine(num_ranks=1, seconds=1.0, folder=tmp_path)
    assert set(alone.rows["kind"]) == {*MEASURED, *OTHER_KINDS}
    pd.testing.assert_frame_equal(read_table(write_table(alone, tmp_path / "a.csv")).rows, alone.rows, check_exact=True)


def _in_last_row(column: int, text: str) -> Callable[[list[str]], list[str]]:
    def corrupt(lines: list[str]) -> list[str]:
        values = lines[-1].split(",")
        return [*lines[:-1], ",".join([*values[:column], text, *values[column + 1 :]])]

    return corrupt


def _drop_column(lines: list[str]) -> list[str]:
    head = [line for line in lines if line.startswith("#")]
    return head + [line.rsplit(",", 2)[0] for line in lines[len(head) :]]


CORRUPTIONS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "not a number": (_in_last_row(10, "fast"), "median_s"),
    "negative": (_in_last_row(10, "-1"), "median_s"),
    "unknown kind": (_in_last_row(0, "tape_read"), "kind"),
    "missing column": (_drop_column, "p90_s"),
    "wrong schema": (lambda lines: [line.replace("headway.profile/", "headway.plan/") for line in lines], "schema"),
    "no rows": (lambda lines: [line for line in lines if line.startswith(("#", "kind"))], "no measured rows"),
    "empty": (lambda lines: [], "schema"),
}


@pytest.mark.distributed
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_profile_is_refused_in_one_line(name: str, written: Path) -> None:
    corrupt, named = CORRUPTIONS[name]
    lines = corrupt(written.read_text().splitlines())
    written.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput) as refused:
        read_table(written)
    message = str(refused.value)
    assert named in message
    assert "\n" not in message
    if name in ("not a number", "negative", "unknown kind"):
        assert f"line {len(lines)}" in message


@pytest.mark.parametrize("pass_", ["F", "B", "W"])
def test_a_gemm_case_does_the_flop_of_its_kernel(pass_: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from profiles.measure.cases import case_of

    (kernel,) = GEMM.kernels(pass_)  # type: ignore[arg-type]
    case = case_of(kernel, torch.randn(1 << 16))
    prepared = case.prepare(3)
    with FlopCounterMode(display=False) as counter:
        case.call(prepared)
    assert counter.get_total_flops() == 3 * kernel.flop


@pytest.mark.parametrize("pass_", ["F", "B", "W"])
def test_a_gemm_case_makes_the_matrix_of_its_kernel(pass_: str) -> None:
    from profiles.measure.cases import recipe_of

    (kernel,) = GEMM.kernels(pass_)  # type: ignore[arg-type]
    recipe = recipe_of(kernel, "cpu")
    tensors = [torch.randn(shape, requires_grad=True) for shape in recipe.shapes]
    made = recipe.apply(*tensors)
    if pass_ != "F":
        (made,) = torch.autograd.grad(made, tensors[recipe.wanted[0]], torch.ones_like(made))
    rows, cols, _ = kernel.size
    # torch keeps a weight and its gradient as [out, in]; the kernel states in x out
    assert tuple(made.shape[-2:]) == ((cols, rows) if pass_ == "W" else (rows, cols))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_kernel_of_the_grid_has_a_case(dtype: str) -> None:
    from profiles.measure.cases import DTYPES, case_of, num_pool_elements

    smallest = {(k.kind, k.pass_): k for k in reversed(default_kernels([dtype])) if k.dtype == dtype}
    pool = torch.randn(max(num_pool_elements(k) for k in smallest.values()), dtype=DTYPES[dtype])
    before = pool.clone()
    for kernel in smallest.values():
        case = case_of(kernel, pool)
        case.call(case.prepare(2))
    assert torch.equal(pool, before)


def test_what_is_measured_is_what_the_engine_runs() -> None:
    """Every kind of kernel of a Llama, of a GPT-2 and of a Mixtral, in every pass, and no other."""
    sizes = {"num_layers": 2, "hidden": 64, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "vocab": 256,
             "max_seq_len": 64, "ffn_hidden": 128}
    llama = llama_spec(name="l", **sizes)
    sparse = replace(llama, family="mixtral", kinds=(replace(llama.kinds[0], ffn=Experts(num_experts=4, top_k=2, hidden=64)),))
    needed = {
        (k.kind, k.pass_) for spec in (llama, gpt2_spec(name="g", **sizes), sparse)
        for k in kernels_of(spec, num_ranks=2, seq_len=64, global_batch=4, precision="fp32", kernels="eager")
    }
    measured = {(k.kind, k.pass_) for k in default_kernels(["fp32"])}
    assert needed <= measured
    assert {kind for kind, _ in needed} == set(MEASURED)
    assert {kind for kind, _ in POINTWISE} - set(MEASURED)


def test_a_model_that_the_engine_does_not_run_is_refused(tmp_path: Path) -> None:
    spec = load_model("bytes-5m")
    other = replace(spec, kinds=(replace(spec.kinds[0], ffn=FeedForward(hidden=64, activation="relu2")),))
    cases = kernels_of(other, num_ranks=1, seq_len=64, global_batch=1, precision="fp32", kernels="eager")
    with pytest.raises(BadInput, match=r"cases: relu2 .*: measured are gemm"):
        measure_machine(num_ranks=1, cases=cases, seconds=1.0, folder=tmp_path)


def test_the_grid_repeats_nothing() -> None:
    grid = default_kernels(["bf16", "fp32"], scale=4)
    assert unique(grid) == grid
    assert not unique(grid, but=grid)


@pytest.mark.parametrize(("wrong", "named"), [
    ({"num_ranks": 0}, "ranks"), ({"device": "tpu"}, "device"), ({"seconds": 0.0}, "seconds"),
    ({"dtypes": ["fp64"]}, "dtype"),
    ({"dtypes": ["fp8"]}, "dtype"),
    ({"cases": [Kernel(kind="gemm", pass_="F", dtype="fp32", size=(3, 3), read_bytes=1, written_bytes=1)]}, "gemm"),
    ({"cases": [Kernel(kind="conv", pass_="F", dtype="fp32", size=(3,), read_bytes=1, written_bytes=1)]}, "conv"),
    ({"cases": [Kernel(kind="gelu", pass_="F", dtype="fp8", size=(3, 3), read_bytes=1, written_bytes=1)]}, "fp8"),
])
def test_a_users_mistake_is_one_line(wrong: dict[str, object], named: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=named):
        measure_machine(**({"num_ranks": 1, "seconds": 1.0, "folder": tmp_path} | wrong))  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="0 GPUs found"):
        measure_machine(num_ranks=1, device="cuda", folder=tmp_path)


def test_without_torch_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install headway\[torch\]"):
        measure_machine(num_ranks=1)
