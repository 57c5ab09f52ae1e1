"""Made-up profiler traces in the format that Kineto writes, for the tests that read them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

MAIN, ENGINE, PID = 4001, 4077, 4001
BASE_NS = 1_700_000_000_000_000_000
GEMM = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas"
FLASH = "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutlass::bfloat16_t>>(Flash_fwd_params)"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul> >"
ADAM = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<4>, FusedAdamMathFunctor<float> >"


def collective(name: str, description: str, elements: int, ranks: str = "[0, 1]", dtype: str = "BFloat16") -> dict[str, Any]:
    """Return the arguments that a NCCL kernel carries."""
    return {
        "Collective name": name, "In msg nelems": elements, "Out msg nelems": elements, "Group size": 2, "dtype": dtype,
        "In split size": "[]", "Out split size": "[]", "Process Group Name": "3", "Process Group Description": description,
        "Process Group Ranks": ranks,
    }


class Made:
    """A trace that is being made; times are in microseconds."""

    def __init__(self, rank: int = 0, world_size: int = 2, **more: Any) -> None:
        self.rank, self.world_size, self.more = rank, world_size, more
        self.events: list[dict[str, Any]] = []
        self._correlation = 0

    def span(self, category: str, name: str, tid: int, ts: float, dur: float, pid: int = PID, **args: Any) -> None:
        """Add a complete event."""
        place = {"pid": pid, "tid": tid, "ts": ts, "dur": dur}
        self.events.append({"ph": "X", "cat": category, "name": name, **place, "args": args})

    def step(self, number: int, ts: float, dur: float) -> None:
        """Add the mark of a step."""
        self.span("user_annotation", f"ProfilerStep#{number}", MAIN, ts, dur)

    def note(self, name: str, ts: float, dur: float, tid: int = MAIN) -> None:
        """Add an annotation."""
        self.span("user_annotation", name, tid, ts, dur)

    def kernel(self, name: str, launched: float, ts: float, dur: float, stream: int = 7, tid: int = MAIN,
               category: str = "kernel", **args: Any) -> None:
        """Add a kernel (or copy), its launch, and the arrow between the two."""
        self._correlation += 1
        n = self._correlation
        self.span("cuda_runtime", "cudaLaunchKernel", tid, launched, 1, cbid=211, correlation=n)
        self.events.append({"ph": "s", "id": n, "pid": PID, "tid": tid, "ts": launched, "cat": "ac2g", "name": "ac2g"})
        self.span(category, name, stream, ts, dur, pid=0, device=0, context=1, stream=stream, correlation=n, **args)
        self.events.append({"ph": "f", "id": n, "pid": 0, "tid": stream, "ts": ts, "cat": "ac2g", "name": "ac2g", "bp": "e"})

    def text(self) -> str:
        """Return the file's text."""
        head = {
            "schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H100 80GB HBM3"}],
            "distributedInfo": {"backend": "nccl", "rank": self.rank, "world_size": self.world_size, "pg_count": 1},
            "displayTimeUnit": "ms", "baseTimeNanoseconds": BASE_NS,
        } | self.more
        process = {"name": "process_name", "ph": "M", "ts": 0, "pid": PID, "tid": 0, "args": {"name": "python"}}
        last = {"name": "Record Window End", "ph": "i", "s": "g", "pid": "", "tid": "", "ts": 1}
        body = json.dumps([process, *self.events, last], indent=2)
        return json.dumps(head, indent=2)[:-2] + f',\n  "traceEvents": {body},\n  "traceName": "/tmp/trace.json"\n}}'

    def write(self, path: Path) -> Path:
        """Write the file, packed where the name ends in .gz."""
        data = self.text().encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path


def gpu_step(rank: int = 0) -> Made:
    """Return one step (10 to 110 us of the host, device until 130) of a rank of a pipeline with dp, after one before."""
    made = Made(rank)
    made.step(4, 0, 10)
    made.step(5, 10, 100)
    made.step(6, 110, 5)
    made.kernel(ADAM, 5, 12, 8)  # of the step before: the device is at it until 20
    made.note("PP:0F0", 10, 30)
    made.span("cpu_op", "aten::linear", MAIN, 12, 4)
    made.kernel(GEMM, 13, 20, 10)
    made.kernel(FLASH, 15, 30, 5)
    made.kernel("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", 38, 35, 5, 30,
                **collective("send", "mesh_pp", 1024))
    made.note("PP:0B0", 42, 50)
    made.span("cpu_op", "autograd::engine::evaluate_function: MmBackward0", ENGINE, 45, 30)
    made.note("FSDP::post_backward_reduce (layers.3)", 60, 5, ENGINE)
    made.kernel(GEMM, 46, 50, 20, tid=ENGINE)
    made.kernel("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 61, 60, 25, 20, ENGINE,
                **collective("_reduce_scatter_base", "mesh_dp_shard", 4096))
    made.note("Optimizer.step#AdamW.step", 93, 10)
    made.kernel(ADAM, 95, 100, 30)
    made.kernel("Memcpy HtoD (Pinned -> Device)", 11, 40, 2, 7, category="gpu_memcpy", bytes=4096)
    return made
