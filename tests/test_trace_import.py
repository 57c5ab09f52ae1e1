"""Traces of a PyTorch profiler as timelines: against steps whose numbers are known, and against counting ticks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_files import ADAM, ADD, BASE_NS, ENGINE, FLASH, GEMM, MAIN, Made, collective, gpu_step

from profiles.files import BadInput
from simulator.breakdown import breakdown
from simulator.strategy import Strategy
from simulator.timeline import COLUMNS, STREAMS, Timeline
from simulator.traces import read_trace
from simulator.traces.kineto import innermost
from simulator.traces.names import axis_of, collective_of, kind_of, scope_of


def read(tmp_path: Path, *made: Made, **how: Any) -> Timeline:
    return read_trace([m.write(tmp_path / f"rank{i}.json") for i, m in enumerate(made)], **how)


# ---- a step whose numbers are known


def test_a_step_of_a_gpu_is_what_its_device_did(tmp_path: Path) -> None:
    timeline = read(tmp_path, gpu_step(), step=5)
    assert tuple(timeline.rows.columns) == COLUMNS
    assert timeline.step_time_s == pytest.approx(110e-6), "from the end of the step before on the device to its own"
    rows = timeline.rows.assign(start=(timeline.rows["start_s"] * 1e6).round(3), end=(timeline.rows["end_s"] * 1e6).round(3))
    found = [tuple(r) for r in rows[["stream", "start", "end", "pass", "microbatch", "layer", "bytes"]].to_numpy().tolist()]
    assert found == [
        ("compute", 0, 10, "F", 0, -1, 0), ("compute", 10, 15, "F", 0, -1, 0), ("pp", 15, 20, "F", 0, -1, 2048),
        ("host", 20, 22, "F", 0, -1, 0), ("host", 22, 30, "", -1, -1, 0), ("compute", 30, 50, "B", 0, -1, 0),
        ("dp", 40, 65, "B", 0, 3, 8192), ("host", 65, 80, "", -1, -1, 0), ("compute", 80, 110, "U", -1, -1, 0),
    ]
    assert timeline.rows["op"].str.split(":").str[0].tolist() == [
        "gemm", "attention", "send", "copy", "nothing runs", "gemm", "reduce_scatter", "nothing runs", "optimizer"]
    assert set(timeline.rows["source"]) == {"profiler"} and set(timeline.rows["rank"]) == {0}


def test_where_its_time_went(tmp_path: Path) -> None:
    parts = breakdown(read(tmp_path, gpu_step(), step=5))
    expected = {"compute": 35, "optimizer": 30, "exposed_dp": 15, "bubble": 5, "other": 25}
    assert {k: round(1e6 * v, 3) for k, v in parts.items() if v} == expected


def test_ranks_keep_their_clocks(tmp_path: Path) -> None:
    late = gpu_step(rank=1)
    for event in late.events:
        event["ts"] += 7
    timeline = read(tmp_path, gpu_step(), late, step=5)
    assert timeline.step_time_s == pytest.approx(117e-6)
    assert timeline.rows.groupby("rank")["start_s"].min().tolist() == pytest.approx([0, 7e-6])
    same = timeline.rank(1).assign(rank=0, start_s=lambda r: r["start_s"] - 7e-6, end_s=lambda r: r["end_s"] - 7e-6)
    pd.testing.assert_frame_equal(same.reset_index(drop=True), timeline.rank(0).reset_index(drop=True))


def test_clocks_are_of_the_base_that_each_file_states(tmp_path: Path) -> None:
    other = gpu_step(rank=1)
    other.more = {"baseTimeNanoseconds": BASE_NS + 10**9}
    for event in other.events:
        event["ts"] -= 1e6
    assert read(tmp_path, gpu_step(), other, step=5).step_time_s == pytest.approx(110e-6)


def test_what_crosses_the_bounds_is_cut_there(tmp_path: Path) -> None:
    made = gpu_step()
    made.kernel("ncclDevKernel_AllGather", 11, 15, 8, 20, **collective("allgather", "mesh_dp", 8))  # the device is not free yet
    made.kernel(GEMM, 111, 125, 20, 7)  # of the next step
    rows = read(tmp_path, made, step=5).rows
    assert rows["start_s"].min() == 0 and rows["end_s"].max() == pytest.approx(110e-6)
    gather, late = rows[rows["op"] == "all_gather"].iloc[0], rows.iloc[-1]
    assert (gather["start_s"], gather["end_s"]) == pytest.approx((0, 3e-6))
    assert (late["start_s"], late["end_s"]) == pytest.approx((105e-6, 110e-6))


def test_operators_without_a_gpu_stop_where_they_call_a_collective(tmp_path: Path) -> None:
    made = Made(deviceProperties=[])
    made.step(1, 0, 100)
    made.span("cpu_op", "aten::linear", MAIN, 0, 20)
    made.span("cpu_op", "aten::addmm", MAIN, 2, 15)  # inside the one before
    made.span("cpu_op", "autograd::engine::evaluate_function: AddmmBackward0", MAIN, 20, 30)
    made.span("cpu_op", "_c10d_functional::wait_tensor", MAIN, 25, 10)
    made.span("cpu_op", "aten::copy_", ENGINE, 26, 5)  # gloo's own thread
    made.span("user_annotation", "gloo:all_reduce", ENGINE, 24, 8, **{"Input Dims": [[3, 5]], "Input type": ["float"]})
    made.span("user_annotation", "gloo:send", MAIN, 40, 55)
    made.span("user_annotation", "gloo:recv", MAIN, 60, 10)
    made.span("cpu_op", "aten::_fused_adamw_", MAIN, 80, 10)
    timeline = read(tmp_path, made)
    rows = timeline.rows.assign(start=(timeline.rows["start_s"] * 1e6).round(3), end=(timeline.rows["end_s"] * 1e6).round(3))
    assert [tuple(r) for r in rows[["stream", "start", "end", "pass", "bytes"]].to_numpy().tolist()] == [
        ("compute", 0, 20, "F", 0), ("compute", 20, 25, "B", 0), ("dp", 24, 32, "B", 60), ("host", 25, 35, "B", 0),
        ("compute", 35, 50, "B", 0), ("pp", 40, 95, "B", 0), ("host", 50, 60, "", 0), ("pp", 60, 70, "B", 0),
        ("host", 70, 80, "", 0), ("compute", 80, 90, "U", 0), ("host", 90, 100, "", 0),
    ]
    assert {k: round(1e6 * v, 3) for k, v in breakdown(timeline).items() if v} == {
        "compute": 40, "optimizer": 10, "exposed_dp": 7, "other": 33, "bubble": 10}


def test_the_step_of_median_length_is_read(tmp_path: Path) -> None:
    made = Made()
    for number, (ts, dur) in enumerate([(0, 50), (50, 30), (80, 20), (100, 40), (140, 1)]):
        made.step(number, ts, dur)
        if dur > 1:
            made.kernel(GEMM, ts + 1, ts + 2, dur / 2)
    assert read(tmp_path, made).step_time_s == pytest.approx(30e-6)
    assert read(tmp_path, made, step=3).step_time_s == pytest.approx(40e-6)


def test_kernels_of_a_graph_and_of_old_files_need_no_launch(tmp_path: Path) -> None:
    made = gpu_step()
    made.events = [e for e in made.events if e.get("cat") not in ("cuda_runtime", "ac2g")]
    parts = breakdown(read(tmp_path, made, step=5))
    assert parts["compute"] + parts["optimizer"] > 60e-6
    assert sum(parts.values()) == pytest.approx(read(tmp_path, made, step=5).step_time_s)


def test_a_gap_under_the_data_loader_is_data(tmp_path: Path) -> None:
    made = Made()
    made.step(1, 0, 100)
    made.note("enumerate(DataLoader)#_MultiProcessingDataLoaderIter.__next__", 0, 30)
    made.kernel(GEMM, 31, 32, 20)
    rows = read(tmp_path, made).rows
    assert rows[rows["stream"] == "host"]["op"].tolist() == ["data loading", "nothing runs"]


# ---- the same table, by counting ticks

streams = st.sampled_from(["compute", "dp", "tp", "pp"])
kernels = st.lists(st.tuples(streams, st.integers(0, 40), st.integers(1, 15)), max_size=10)


@settings(max_examples=60)
@given(kernels, st.integers(1, 60))
def test_breakdown_equals_counting_ticks(spans: list[tuple[str, int, int]], end: int) -> None:
    import tempfile

    made = Made()
    made.step(1, 0, end)
    made.kernel(GEMM, 0, 0, 1)
    groups = {"dp": ("allreduce", "mesh_dp"), "tp": ("allgather", "mesh_tp"), "pp": ("send", "mesh_pp")}
    spans = [s for s in spans if s[1] < end]
    for stream, ts, dur in spans:
        name, args = (ADD, {}) if stream == "compute" else ("ncclDevKernel_X", collective(*groups[stream], 8))
        made.kernel(name, ts, ts, dur, 7, **args)
    spans = [*spans, ("compute", 0, 1)]
    last = max(end, *(ts + dur for _, ts, dur in spans))
    ticks = [{stream for stream, ts, dur in spans if ts <= t < ts + dur} for t in range(last)]
    expected = {
        "compute": sum("compute" in t for t in ticks), "exposed_tp": sum("tp" in t and "compute" not in t for t in ticks),
        "exposed_dp": sum("dp" in t and not t & {"compute", "tp"} for t in ticks), "bubble": sum(t == {"pp"} for t in ticks),
        "other": sum(not t for t in ticks),
    }
    with tempfile.TemporaryDirectory() as folder:
        timeline = read(Path(folder), made)
    assert timeline.step_time_s == pytest.approx(last * 1e-6)
    assert {k: round(1e6 * v, 3) for k, v in breakdown(timeline).items() if v > 1e-12} == {
        k: v for k, v in expected.items() if v}


nested = st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=3), max_leaves=8)


@given(nested, st.lists(st.integers(-2, 40), max_size=12))
def test_innermost_is_the_latest_to_begin_around_a_time(tree: Any, at: list[int]) -> None:
    spans: list[tuple[int, int]] = []

    def lay(node: Any, start: int) -> int:
        place = len(spans)
        spans.append((0, 0))
        end = start + 1
        for child in node:
            end = lay(child, end) + 1
        spans[place] = start, end
        return end

    lay(tree, 0)
    expected = [max((i for i, (a, b) in enumerate(spans) if a <= t < b), default=-1) for t in at]
    assert innermost(np.array(spans), np.array(at, dtype=np.int64)).tolist() == expected


# ---- names


@pytest.mark.parametrize(("name", "kind"), [
    (GEMM, "gemm"), (FLASH, "attention"), (ADD, "pointwise"), (ADAM, "optimizer"), ("ampere_sgemm_128x64_nn", "gemm"),
    ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", "gemm"), ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
    ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128>", "gemm"),
    ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_3", "pointwise"), ("triton_poi_fused_add_cos_sin_0", "pointwise"),
    ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int)", "norm"),
    ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 10, true, false>(float*)", "softmax"),
    ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float, unsigned int, 2, 128, 1>(float*)", "copy"),
    ("Cijk_Alik_Bljk_SB_MT64x16x32_MI16x16x1_SN", "gemm"), ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
    ("aten::linear", "gemm"), ("autograd::engine::evaluate_function: AddmmBackward0", "gemm"),
    ("aten::_fused_adamw_", "optimizer"), ("aten::scaled_dot_product_attention", "attention"),
    ("aten::embedding", "embedding"), ("aten::mul", "pointwise"),
    ("aten::cross_entropy_loss", "loss"), ("aten::mean", "reduction"), ("something_new", "other"),
])
def test_kernels_and_operators_by_name(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(("description", "kind", "axis"), [
    ("mesh_tp", "all_reduce", "tp"), ("mesh_dp_shard_cp", "all_gather", "dp"), ("mesh_dp_replicate", "all_reduce", "dp"),
    ("mesh_cp", "send", "cp"), ("mesh_pp", "send", "pp"), ("mesh_ep", "all_to_all", "ep"), ("default_pg", "all_reduce", "dp"),
    ("default_pg", "send", "pp"), ("undefined", "all_to_all", "ep"), ("TENSOR_MODEL_PARALLEL_GROUP", "all_gather", "tp"),
    ("DATA_PARALLEL_GROUP_WITH_CP", "reduce_scatter", "dp"), ("EXPERT_DATA_PARALLEL_GROUP", "all_reduce", "dp"),
    ("EXPERT_MODEL_PARALLEL_GROUP", "all_to_all", "ep"), ("PIPELINE_MODEL_PARALLEL_GROUP", "send", "pp"),
    ("CONTEXT_PARALLEL_GROUP", "send", "cp"), ("EMBEDDING_GROUP", "all_reduce", "pp"), ("", "all_reduce", "dp"),
])
def test_groups_by_description(description: str, kind: str, axis: str) -> None:
    """Names of torch's meshes (torchtitan's among them) and of Megatron-Core's parallel_state.py."""
    assert axis_of(description, kind) == axis and axis in STREAMS


@pytest.mark.parametrize(("name", "kind"), [
    ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "all_reduce"),
    ("ncclKernel_ReduceScatter_RING_LL_Sum_float(ncclDevComm*, unsigned long, ncclWork*)", "reduce_scatter"),
    ("_allgather_base", "all_gather"), ("allgather_into_tensor_coalesced", "all_gather"), ("nccl:all_to_all", "all_to_all"),
    ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", "send"), ("broadcast", "broadcast"),
    ("nccl:recv 1<-0", "recv"),
])
def test_collectives_by_name(name: str, kind: str) -> None:
    assert collective_of(name) == kind


@pytest.mark.parametrize(("name", "scope"), [
    ("PP:3F12", ("F", 12, -1)), ("PP:0B0", ("B", 0, -1)), ("PP:1I4", ("I", 4, -1)), ("PP:1W4", ("W", 4, -1)),
    ("PP:0SEND_F1", ("F", 1, -1)), ("PP:1RECV_B2", ("B", 2, -1)), ("Forward 3", ("F", 3, -1)), ("Backward 0", ("B", 0, -1)),
    ("## forward ##", ("F", -1, -1)), ("optimizer", ("U", -1, -1)), ("Optimizer.zero_grad#SGD.zero_grad", ("U", -1, -1)),
    ("FSDP::all_gather (layers.7)", ("", -1, 7)), ("FSDP::pre_backward (layers.7)", ("B", -1, 7)),
    ("FSDP::root_post_backward_callback", ("B", -1, -1)), ("DistributedDataParallel.forward", ("F", -1, -1)),
    ("stage 2 F0", ("F", 0, -1)), ("stage 1 W11", ("W", 11, -1)), ("optimizer U", ("U", -1, -1)), ("model B", ("", -1, -1)),
    ("reduce_gradients B", ("B", -1, -1)), ("ProfilerStep#3", ("", -1, -1)), ("forward_everything", ("", -1, -1)),
])
def test_annotations_by_name(name: str, scope: tuple[str, int, int]) -> None:
    assert scope_of(name) == scope


def test_old_kernels_are_what_their_annotation_says(tmp_path: Path) -> None:
    made = Made()
    made.step(1, 0, 100)
    made.note("nccl:all_to_all", 10, 5)
    for launched in (12, 20):
        made.kernel("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", launched, launched + 10, 8, 20)
    rows = read(tmp_path, made).rows
    assert rows[rows["stream"] != "host"][["stream", "op"]].to_numpy().tolist() == [["ep", "all_to_all"], ["pp", "send"]]


@pytest.mark.parametrize(("ranks", "axis"), [("[0, 1]", "tp"), ("[0, 2]", "cp"), ("[0, 4]", "dp"), ("[0, 8]", "pp"),
                                             ("[0, 2, 4, 6]", "dp"), ("[0, 1, 8, 9]", "dp")])
def test_a_strategy_tells_the_axis_of_a_group_without_a_name(tmp_path: Path, ranks: str, axis: str) -> None:
    made = Made(world_size=16)
    made.step(1, 0, 100)
    made.kernel("ncclDevKernel_AllReduce", 1, 10, 8, 20, **collective("allreduce", "undefined", 8, ranks))
    strategy = Strategy(tp=2, cp=2, dp=2, pp=2)
    rows = read(tmp_path, made, strategy=strategy).rows
    assert rows[rows["op"] == "all_reduce"]["stream"].tolist() == [axis]


# ---- files that are no such trace


def lines_of(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read_trace([path])
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


def _drop(what: Callable[[dict[str, Any]], bool]) -> Callable[[Made], None]:
    def damage(made: Made) -> None:
        made.events = [e for e in made.events if not what(e)]

    return damage


def _set(key: str, value: Any) -> Callable[[Made], None]:
    def damage(made: Made) -> None:
        next(e for e in made.events if e["name"] == FLASH)[key] = value

    return damage


@pytest.mark.parametrize(("damage", "says"), [
    (_drop(lambda e: "ProfilerStep" in e["name"]), "no ProfilerStep"),
    (_drop(lambda e: e.get("cat") in ("kernel", "gpu_memcpy")), "no kernels"),
    (_set("dur", -3), "dur: is -3"), (_set("dur", "long"), "dur: a number is needed (is 'long')"),
    (_set("ts", None), "ts: a number is needed"), (_set("ts", float("nan")), "ts: a number is needed"),
    (lambda made: made.events.append(7), "is 7, a mapping is needed"),  # type: ignore[arg-type,return-value]
    (lambda made: made.events.clear(), "no ProfilerStep"),
])
def test_a_trace_that_says_too_little_is_refused(tmp_path: Path, damage: Callable[[Made], None], says: str) -> None:
    made = gpu_step()
    damage(made)
    assert says in lines_of(made.write(tmp_path / "t.json"))


def test_a_step_without_work_is_refused(tmp_path: Path) -> None:
    made = Made(deviceProperties=[])
    made.step(1, 0, 10)
    assert "ProfilerStep#1 holds no kernel and no operator" in lines_of(made.write(tmp_path / "t.json"))
    with pytest.raises(BadInput, match=r"has no ProfilerStep#9; it has 4, 5, 6"):
        read(tmp_path, gpu_step(), step=9)


def test_cut_anywhere_is_refused_as_cut(tmp_path: Path) -> None:
    whole = gpu_step().text()
    for length in [*range(1, 400, 7), *range(400, len(whole.rstrip()) - 1, 331), len(whole) - 1]:
        (tmp_path / "t.json").write_text(whole[:length])
        assert "is cut: it ends after" in lines_of(tmp_path / "t.json"), length
    packed = gpu_step().write(tmp_path / "t.json.gz").read_bytes()
    for length in range(20, len(packed) - 1, 97):
        (tmp_path / "t.json.gz").write_bytes(packed[:length])
        assert "cut" in lines_of(tmp_path / "t.json.gz"), length


@pytest.mark.parametrize(("text", "says"), [
    ("", "is empty"), ("[]", "no trace"), ("rank,stream\n0,compute\n", "no trace"), ("{}", "no field traceEvents"),
    ('{"traceEvents": 3}', "Expecting '['"), ('{"traceEvents": [{"ph": "X"}, oops], "a": 1}', "not JSON at character 30"),
    ('{"traceEvents": [{"ph": "X"} {"ph": "X"}]}', "Expecting ','"), ('{"traceEvents": []} trailing', "no ProfilerStep"),
])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.json").write_text(text)
    assert says in lines_of(tmp_path / "t.json")


def test_paths_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "no such file" in lines_of(tmp_path / "absent.json")
    assert "is a folder" in lines_of(tmp_path)
    with pytest.raises(BadInput, match="no file is given"):
        read_trace([])


def test_ranks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is of rank 0, and so is"):
        read(tmp_path, gpu_step(), gpu_step())
    late = gpu_step(rank=1)
    for event in late.events:
        event["ts"] += 1e6
    with pytest.raises(BadInput, match=r"its step begins 1 s after another rank's"):
        read(tmp_path, gpu_step(), late)


def test_damaged_traces_of_our_own_are_refused(tmp_path: Path) -> None:
    head = {"displayTimeUnit": "ms", "otherData": {"producer": "headway", "step_time_s": 1.0}}
    (tmp_path / "t.json").write_text(json.dumps(head | {"traceEvents": [{"ph": "X", "ts": 0, "dur": 1, "name": "x"}]}))
    assert "event 0 is none of ours: 'args' is missing" in lines_of(tmp_path / "t.json")


# ---- reading in pieces


@given(st.integers(1, 60))
def test_pieces_of_any_size_read_the_same(piece: int) -> None:
    import tempfile

    from simulator.traces import events

    taken: list[Any] = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = gpu_step().write(Path(folder) / "t.json")
        patch.setattr(events, "PIECE", piece)
        fields = events.read_events(path, taken.append)
        whole = json.loads(path.read_text())
    assert taken == whole.pop("traceEvents") and fields == whole


def test_a_thread_of_the_engine_is_backward_without_annotations(tmp_path: Path) -> None:
    made = Made()
    made.step(1, 0, 100)
    made.kernel(GEMM, 5, 6, 4)
    made.span("cpu_op", "autograd::engine::evaluate_function: MmBackward0", ENGINE, 20, 20)
    made.span("cpu_op", "autograd::engine::evaluate_function: MmBackward0", ENGINE, 50, 10)
    made.kernel(GEMM, 25, 30, 4, tid=ENGINE)
    made.kernel(ADD, 30, 40, 4, tid=MAIN)  # the main thread beside the engine's: not backward
    made.kernel(ADAM, 70, 75, 4)
    rows = read(tmp_path, made).rows
    assert rows[rows["stream"] == "compute"]["pass"].tolist() == ["F", "B", "F", "U"]
