"""Torch's pipeline runtime with our tables, several stages in one process: what a split backward does and what is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from executor.parallel import build_stage, parallelise, table_of  # noqa: E402
from executor.pipeline import build_pipeline, run_step  # noqa: E402
from executor.record import Recorder  # noqa: E402
from profiles.families import all_params  # noqa: E402
from profiles.families.gpt2 import gpt2_spec  # noqa: E402
from profiles.families.llama import llama_spec  # noqa: E402
from profiles.model import ModelSpec  # noqa: E402
from simulator.layout import stage_parts  # noqa: E402
from simulator.schedules import SCHEDULES, Table, homes, parse_table, passes, rank_stages  # noqa: E402
from simulator.software import Software  # noqa: E402
from simulator.strategy import Strategy  # noqa: E402

SIZES: dict[str, int] = {"hidden": 64, "num_heads": 4, "head_dim": 16, "vocab": 256, "max_seq_len": 32}
LLAMA = llama_spec(name="llama", num_layers=3, num_kv_heads=2, ffn_hidden=128, **SIZES)
GPT2 = gpt2_spec(name="gpt2", num_layers=3, num_kv_heads=4, ffn_hidden=256, **SIZES)
LOOP = Strategy(precision="fp32", seq_len=32, num_microbatches=3)
CUT = replace(LOOP, chunks=3)
TABLES = {
    "whole": "0F0,1F0,2F0,2B0,1B0,0B0,0F1,1F1,2F1,2B1,1B1,0B1,0F2,1F2,2F2,2B2,1B2,0B2",
    "split": "0F0,1F0,2F0,2I0,1I0,0F1,0I0,1F1,2F1,2W0,2I1,1I1,0I1,1W1,2W1,0F2,1F2,0W1,2F2,1W0,2I2,0W0,1I2,2W2,0I2,1W2,0W2",
    "pairs": "0F0,1F0,2F0,0F1,2I0,1I0,(1F1;0B0)OVERLAP_F_B,2F1,2W0,(0F2;2B1)OVERLAP_F_B,1W0,1B1,(1F2;0B1)OVERLAP_F_B,2F2,2B2,"
             "1I2,1W2,0B2",
}
MATMULS, ATTENTION = ("mm", "addmm"), "_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Step(NamedTuple):
    """A step's loss and gradients, its recorded passes, and what it called."""

    results: dict[str, Any]
    passes: list[tuple[str, str, int]]
    calls: Counter[str]


def step(spec: ModelSpec, strategy: Strategy, table: Table | None = None, without: str = "") -> Step:
    parallel = parallelise(spec, strategy, torch.device("cpu"), seed=0, learning_rate=1e-3, table=table)
    recorder = Recorder(0, torch.device("cpu"))
    ids = torch.arange(strategy.num_microbatches * 33).reshape(-1, 33) * 7 % 256
    pipeline = build_pipeline(parallel, recorder)
    if pipeline is not None:
        actions = pipeline.pipeline_order_with_comms[0]
        actions[:] = [action for action in actions if str(action) != without]
    with recorder.step(), _Calls() as calls:
        loss = run_step(parallel, pipeline, (ids[:, :-1], ids[:, 1:]), recorder)
    gradients = {name: p.grad for stage in parallel.stages.values() for name, p in stage.named_parameters()}
    ran = [(row["op"], row["pass"], row["microbatch"]) for row in recorder.rows if row["microbatch"] >= 0]
    return Step({"loss": loss} | gradients, ran, calls.counts)


@pytest.mark.parametrize("spec", [LLAMA, GPT2], ids=lambda s: s.name)
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", TABLES)
def test_each_table_gives_the_gradients_of_the_plain_loop(name: str, recompute: str, spec: ModelSpec) -> None:
    mine = step(spec, replace(CUT, recompute=recompute), parse_table(TABLES[name])).results
    for key, value in step(spec, LOOP).results.items():
        torch.testing.assert_close(mine[key], value, atol=1e-7, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


def test_a_weight_gradient_that_is_left_out_is_seen() -> None:
    """Torch refuses a table without a W; where the runtime leaves it out, the comparison above sees it."""
    with pytest.raises(AssertionError, match="I and W must have equal counts"):
        step(LLAMA, CUT, parse_table(TABLES["split"].replace("1W0,", "")))
    whole, less = (step(LLAMA, CUT, parse_table(TABLES["split"]), without).results for without in ("", "1W0"))
    off = {name for name, value in whole.items() if not torch.allclose(less[name], value, atol=1e-7, rtol=1e-4)}
    assert off == {name for name in whole if name.startswith("layers.1.")}


@pytest.mark.parametrize("name", TABLES)
def test_each_pass_is_a_row_of_its_stage(name: str) -> None:
    """I is called B, as in a replay; a pair is its two passes; the loss is a part of the last stage's F."""
    expected = [(f"stage {a.stage}", a.pass_.replace("I", "B"), a.microbatch)
                for slot in parse_table(TABLES[name])[0] for a in passes(slot)]
    assert step(LLAMA, CUT, parse_table(TABLES[name])).passes == expected


def test_one_recomputation_serves_all_weights_of_a_stage() -> None:
    """Of a split backward I and W repeat each layer once; of the first stage W is all of it.

    A layer has 7 matmuls, and the last is never repeated.
    """
    table = parse_table(TABLES["split"])
    none, full = (step(LLAMA, replace(CUT, recompute=recompute), table).calls for recompute in ("none", "full"))
    repeats = LOOP.num_microbatches * (1 + 2 + 2)
    assert sum(full[op] - none[op] for op in MATMULS) == 6 * repeats
    assert full[ATTENTION] - none[ATTENTION] == repeats


@pytest.mark.parametrize("split", ["even", "late", "cost"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_stages_have_the_layers_of_the_layout(name: str, split: str) -> None:
    chunks = SCHEDULES[name].chunks or 3
    strategy = Strategy(pp=2, chunks=chunks, schedule=name, num_microbatches=4, software=Software(layer_split=split))
    spec = replace(LLAMA, pattern=(0,) * 7)
    stages = [build_stage(spec, strategy, index) for index in range(2 * chunks)]
    names = [n for stage in stages for n, _ in stage.named_parameters()]
    assert sorted(names) == sorted(p.name for p in all_params(spec))
    for stage, parts in zip(stages, stage_parts(spec, 2, chunks, split), strict=True):
        counts = dict(parts)
        assert len(stage.layers) == counts.get("layer", 0)
        assert (stage.is_first, stage.is_last) == ("embedding" in counts, "head" in counts)
    home = homes(table_of(strategy))
    for rank in range(2):
        assert [stage for stage in sorted(home) if home[stage] == rank] == rank_stages(name, rank, 2, chunks)
