"""What the profiler adds on a GPU, as far as a machine without one can tell: cases, copies, figures, refusals."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests_support import tiny_profile

from headway import main
from profiles.files import BadInput
from profiles.matmul import Gemm
from profiles.measure.grid import FP8, GEMMS, QUANTISE, default_kernels, whole
from profiles.ops import Kernel
from profiles.tables import read_table, write_table

torch = pytest.importorskip("torch")

from profiles.measure import environment, host  # noqa: E402
from profiles.measure.cases import case_of, num_pool_elements  # noqa: E402
from profiles.measure.rank import _runs  # noqa: E402
from profiles.measure.rounds import make_pools  # noqa: E402

LINE = "570.86.15, 1980 MHz, 1980 MHz, 2619 MHz, 412.33 W, 700.00 W, 61, 0x0000000000000000"
NARROW = Gemm(name="x", m=32, k=64, n=48, dtype="bf16", matmul=FP8)


def test_fp8_adds_matmuls_and_casts_and_nothing_else() -> None:
    added = {k.kind for k in default_kernels([FP8])} - {"adamw"}
    assert added == {"gemm", QUANTISE}
    narrow = [k for k in default_kernels(["bf16", FP8]) if k.dtype == FP8]
    assert {k.pass_ for k in narrow} == {"F", "B", "W"}
    assert len(narrow) == 3 * len(GEMMS)
    assert all(whole(k) == k for k in narrow)


@pytest.mark.parametrize("pass_", ["F", "B", "W"])
def test_an_fp8_matmul_has_the_shape_of_its_kernel(pass_: str) -> None:
    kernel = NARROW.kernels(pass_)[-1]  # type: ignore[arg-type]
    pool = make_pools([kernel], 1 << 14, "cpu")[FP8]
    assert pool.numel() >= num_pool_elements(kernel)
    case = case_of(kernel, pool)
    for made in case.call(case.prepare(3)):  # type: ignore[attr-defined]
        assert tuple(made.shape) == kernel.size[:2]
        assert torch.isfinite(made.float()).all()


def test_a_cast_leaves_both_layouts() -> None:
    kernel = next(k for k in NARROW.kernels("F") if k.kind == QUANTISE)
    case = case_of(kernel, make_pools([kernel], 1 << 14, "cpu")["bf16"])
    ((plain, turned),) = case.call(case.prepare(1))  # type: ignore[misc]
    assert plain.dtype == turned.dtype == torch.float8_e4m3fn
    assert tuple(plain.shape) == kernel.size and turned.is_contiguous()
    assert torch.equal(plain.float().t(), turned.float())


def test_fp8_needs_a_device_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _runs(FP8, "cpu") and _runs("fp16", "cpu")
    for capability, runs in (((8, 0), False), ((8, 9), True), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        assert _runs(FP8, "cuda") is runs


def test_clocks_power_and_driver_are_read_from_the_line_of_nvidia_smi() -> None:
    figures = environment.smi_figures(LINE)
    assert figures["driver"] == "570.86.15" and figures["sm_clock"] == "1980 MHz" and figures["power"] == "412.33 W"
    assert set(figures) == set(environment.SMI_FIELDS.values())


def test_what_the_gpu_does_not_tell_is_left_out() -> None:
    figures = environment.smi_figures(LINE.replace("412.33 W", "[N/A]"))
    assert "power" not in figures and figures["power_limit"] == "700.00 W"
    assert environment.smi_figures("") == {} == environment.smi_figures("No devices were found")


@pytest.mark.parametrize("failure", [FileNotFoundError(), subprocess.TimeoutExpired("nvidia-smi", 10),
                                     subprocess.CalledProcessError(9, "nvidia-smi")])
def test_a_machine_without_nvidia_smi_has_no_clocks(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment.ask_smi("0") == ""


def test_host_copies_are_timed_in_both_directions_until_they_are_done() -> None:
    waits: list[None] = []
    found = host.host_copy_seconds("cpu", wait=lambda: waits.append(None), sizes=(1 << 10, 1 << 12))
    assert set(found) == {(k, n) for k in ("host_to_device", "device_to_host") for n in (1 << 10, 1 << 12)}
    assert all(len(samples) == host.NUM_SAMPLES and min(samples) > 0 for samples in found.values())
    assert len(waits) == 2 * 4 * (host.NUM_SAMPLES + 1)


class _Graph:
    replayed = 0

    def replay(self) -> None:
        _Graph.replayed += 1


def test_launches_are_timed_one_by_one_and_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    monkeypatch.setattr(torch.cuda, "_sleep", launched.append, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph, raising=False)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    found = host.launch_seconds()
    assert set(found) == {"stream", "graph"}
    assert all(len(samples) == host.NUM_SAMPLES and min(samples) > 0 for samples in found.values())
    assert launched == [0] * (host.NUM_LAUNCHES * (host.NUM_SAMPLES + 2))
    assert _Graph.replayed == host.NUM_SAMPLES + 1


def test_a_table_holds_what_only_a_gpu_has(tmp_path: Path) -> None:
    path = tiny_profile(tmp_path / "profile.csv")
    table = read_table(path)
    row = dict.fromkeys(table.rows.columns, None) | {
        "kind": "launch", "mode": "graph", "pass": "", "dtype": "", "median_s": 2e-6, "p10_s": 1e-6, "p90_s": 3e-6,
        "num_samples": 12,
    }
    table.rows.loc[len(table.rows)] = row
    back = read_table(write_table(table, path)).rows
    assert back.iloc[-1]["kind"] == "launch" and back.iloc[-1]["mode"] == "graph" and len(back) == len(table.rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--device", "cuda", "--ranks", "1"]])
def test_profiling_a_gpu_that_is_not_there_is_one_line(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["profile", "--out", str(tmp_path / "gpu.csv"), *arguments])
    assert exit_.value.code == 2
    out, err = capfd.readouterr()
    assert not out and len(err.splitlines()) == 1 and "GPU" in err and not (tmp_path / "gpu.csv").exists()


def test_fp8_is_refused_on_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["profile", "--out", str(tmp_path / "x.csv"), "--ranks", "1", "--dtype", "fp8"])
    assert exit_.value.code == 2
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1 and "fp8" in err and "fp32, bf16, fp16" in err


def test_only_matmuls_and_casts_know_fp8() -> None:
    with pytest.raises(BadInput, match="fp8"):
        whole(Kernel(kind="gelu", pass_="F", dtype=FP8, size=(3, 3), read_bytes=1, written_bytes=1))
