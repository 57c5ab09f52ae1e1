"""States in host memory: against published memory and times, and what must hold whatever the strategy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_cases import plan_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from replay_cases import CLUSTER, COST, MODEL, SPARSE, off

from executor.engine import refusal
from executor.exports import export_plan
from planner.plan import plan_from_prediction, read_plan, write_plan
from planner.predict import predict
from planner.question import Question, ask
from planner.readers import read_config, software_of
from planner.rules import illegal_reason
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import Cluster, load_cluster, with_num_gpus
from profiles.host import Host, copy_s, host_update_s
from profiles.model import ModelSpec
from simulator.estimate import estimate
from simulator.memory import peak_memory
from simulator.software import Software, load_software
from simulator.states import host_bytes, state_bytes
from simulator.strategy import OFFLOAD, Strategy
from simulator.workload import build_workload

ZERO = load_software("deepspeed-2022")
SOFTWARE = (ZERO, Software(), *map(load_software, ("megatron-lm-2025", "torchtitan-2025")))
BILLION = 1e9
GIB = 2.0**30
DGX_2 = Host(memory_bytes=1.5e12, memory_bytes_per_s=256e9, sources={})
"""Two Xeon 8168: twelve channels of DDR4-2666."""
V100 = replace(with_num_gpus(load_cluster("dgx-1-v100"), 1), host=DGX_2)


def gpt(num_layers: int, hidden: int) -> ModelSpec:
    """Return a GPT-2 of the shapes of arXiv 2101.06840, table 3."""
    base = load_model("gpt2")
    kind = base.kinds[0]
    layer: Any = replace(kind, mixer=replace(kind.mixer, num_heads=16, num_kv_heads=16, head_dim=hidden // 16),  # type: ignore[type-var]
                         ffn=replace(kind.ffn, hidden=4 * hidden))  # type: ignore[type-var]
    return replace(base, kinds=(layer,), pattern=(0,) * num_layers, hidden=hidden)


def fits(model: ModelSpec, **fields: Any) -> bool:
    strategy = Strategy(seq_len=1024, precision="fp16", recompute="full", software=ZERO, **fields)
    return bool(peak_memory(build_workload(model, strategy), V100.accelerator).fits)


def test_the_largest_models_on_one_v100_are_the_published_ones() -> None:
    """1.4 G parameters with all on the device, 13 G with offload (arXiv 2101.06840, section 6.2.1); 20 G are too many."""
    small, larger, large, too_large = gpt(40, 1536), gpt(20, 4096), gpt(65, 4096), gpt(80, 4608)
    assert fits(small) and not fits(larger)
    assert fits(larger, offload="optimizer") and fits(large, offload="optimizer")
    assert not fits(too_large, offload="optimizer")


@pytest.mark.parametrize(("billions", "seconds"), [(1, 0.22), (2, 0.51), (4, 1.03), (8, 2.41), (10, 2.57)])
def test_the_hosts_update_takes_what_was_measured(billions: float, seconds: float) -> None:
    """Adam on two Xeon 8168 (arXiv 2101.06840, table 4): 16 bytes a parameter read and 14 written."""
    assert float(host_update_s(V100, 30 * billions * BILLION)) == pytest.approx(seconds, rel=0.2)


@pytest.mark.parametrize(("zero", "on_device"), [(1, 2.0 + 2.0), (2, 2.0), (3, 2.0 / 8)])
def test_states_are_where_deepspeeds_own_estimators_have_them(zero: int, on_device: float) -> None:
    """Bytes of fp16 weights on the device, 16 a parameter on the hosts (deepspeed/runtime/zero/stage_1_and_2.py and stage3.py,
    estimate_zero*_model_states_mem_needs, without their factor for other buffers); ZeRO-1 has its fp16 gradients besides."""
    strategy = Strategy(dp=8, zero=zero, precision="fp16", seq_len=128, software=ZERO, offload="optimizer")
    assert sum(state_bytes(strategy, BILLION).values()) == pytest.approx(on_device * BILLION)
    model = gpt(20, 4096)
    params = 20 * (12 * 4096**2 + 13 * 4096) + (50257 + 1024) * 4096 + 2 * 4096
    assert float(host_bytes(model, strategy)) * 8 == pytest.approx(16 * params)


def test_a_pcie_switch_is_shared() -> None:
    dgx = load_cluster("dgx-a100:1")
    alone = with_num_gpus(dgx, 1)
    assert float(copy_s(dgx, 1e9)) == pytest.approx(2 * float(copy_s(alone, 1e9)))
    # 20 GiB of gradients and weights of 5 G parameters over PCIe 3.0: 12 to 13 GB/s are commonly measured
    assert 1.5 < float(copy_s(V100, 20e9)) < 1.75


@st.composite
def strategies(draw: st.DrawFn) -> Strategy:
    """Any way that a framework has, under any sharding; legal ones of 32 accelerators."""
    software = draw(st.sampled_from(SOFTWARE))
    way = draw(st.sampled_from(software.offloads.split(",")))
    pp, tp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 8]))
    dp = 32 // pp // tp
    share = 1.0 if software.offloads_with == "weights" else draw(st.sampled_from([0.01, 0.3, 1.0]))
    overlap = draw(st.sampled_from(["none", "parts", "backward"]))
    strategy = Strategy(
        dp=dp, tp=tp, pp=pp, zero=draw(st.integers(0, 3)), seq_len=1024, num_microbatches=draw(st.sampled_from([1, 2, 8])),
        recompute=draw(st.sampled_from(["none", "selective", "full"])), micro_batch=draw(st.sampled_from([1, 4])),
        precision=draw(st.sampled_from(["bf16", "fp32"])), offload=way, offload_share=share,
        software=replace(software, offload_overlap=overlap),
    )
    assume(illegal_reason(strategy, question_of(strategy)) is None)
    return strategy


def question_of(strategy: Strategy, cluster: Cluster = CLUSTER, model: ModelSpec = MODEL) -> Question:
    return ask(model, cluster, tokens=1e12, seq_len=strategy.seq_len, global_batch=int(strategy.global_batch),
               precision=strategy.precision, software=strategy.software)


@settings(max_examples=60)
@given(strategies(), st.sampled_from([MODEL, SPARSE]))
def test_offload_never_makes_a_step_shorter_nor_states_larger(strategy: Strategy, model: ModelSpec) -> None:
    """What the search's pruning stands on: in closed form, and played."""
    plain = replace(strategy, offload="none")
    times = [estimate(build_workload(model, s), COST).step_time_s for s in (plain, strategy)]
    assert times[1] >= times[0]
    gaps = [off(s, COST, model) for s in (plain, strategy)]
    assert times[1] / (1 + gaps[1]) >= times[0] / (1 + gaps[0]) * (1 - 1e-12)
    memory = [peak_memory(build_workload(model, s), CLUSTER.accelerator).parts_bytes for s in (plain, strategy)]
    for name in ("weights", "optimizer"):
        assert memory[1][name] <= memory[0][name]
    if strategy.offload != "moments" or strategy.software.moment_bytes:
        assert memory[1]["optimizer"] < memory[0]["optimizer"]


@settings(max_examples=30)
@given(strategies(), st.floats(1.0, 4.0))
def test_faster_hosts_and_links_never_make_it_slower(strategy: Strategy, times: float) -> None:
    assert CLUSTER.host is not None and CLUSTER.accelerator.host_link_bytes_per_s is not None
    link = replace(CLUSTER.accelerator, host_link_bytes_per_s=CLUSTER.accelerator.host_link_bytes_per_s * times)
    host = replace(CLUSTER.host, memory_bytes_per_s=CLUSTER.host.memory_bytes_per_s * times)
    better = replace(COST, cluster=replace(CLUSTER, accelerator=link, host=host))
    workload = build_workload(MODEL, strategy)
    assert estimate(workload, better).step_time_s <= estimate(workload, COST).step_time_s


@settings(max_examples=30)
@given(strategies())
def test_the_closed_form_is_as_near_to_the_replay_as_without(strategy: Strategy) -> None:
    assert abs(off(strategy)) <= abs(off(replace(strategy, offload="none"))) + 0.02


def test_a_batch_is_its_members() -> None:
    ways = np.array(list(OFFLOAD) * 2)
    batch = Strategy(dp=8, zero=np.array([1] * 4 + [3] * 4), seq_len=1024, offload=ways, offload_share=np.array([1.0, 0.5] * 4),
                     software=load_software("megatron-lm-2025"))
    workload = build_workload(MODEL, batch)
    steps, peaks = estimate(workload, COST).step_time_s, peak_memory(workload, CLUSTER.accelerator).peak_bytes
    for i in range(len(ways)):
        one = build_workload(MODEL, batch.pick(i))
        assert steps[i] == pytest.approx(float(estimate(one, COST).step_time_s), rel=1e-12)
        assert peaks[i] == pytest.approx(float(peak_memory(one, CLUSTER.accelerator).peak_bytes), rel=1e-12)


def test_streamed_states_are_on_the_device_for_the_update() -> None:
    """They make room for activations only."""
    def peaks(**fields: Any) -> list[float]:
        strategy = Strategy(dp=8, zero=1, seq_len=1024, software=load_software("megatron-lm-2025"), **fields)
        found = (build_workload(MODEL, replace(strategy, offload=way)) for way in ("none", "states", "optimizer"))
        return [float(peak_memory(workload, CLUSTER.accelerator).peak_bytes) for workload in found]

    plain, streamed, hosted = peaks(recompute="full")
    assert streamed == pytest.approx(plain, rel=0.02) and hosted < 0.85 * plain
    plain, streamed, hosted = peaks(micro_batch=4)
    assert hosted <= streamed < 0.95 * plain


ILLEGAL = [
    ({"offload": "moments"}, "has optimizer"), ({"offload": "paged"}, "offload 'paged' is not known"),
    ({"offload": "optimizer", "offload_share": 0.0}, "above 0"), ({"offload": "optimizer", "zero": 0}, "ZeRO-1 shards"),
    ({"offload": "optimizer", "software": Software(offloads="")}, "has none"),
    ({"offload": "optimizer", "software": Software(), "zero": 3, "offload_share": 0.5}, "all or nothing"),
    ({"offload": "optimizer", "software": Software(), "zero": 1}, "ZeRO-2 shards"),
]


@pytest.mark.parametrize(("fields", "words"), ILLEGAL)
def test_what_cannot_be_offloaded_is_said(fields: dict[str, Any], words: str) -> None:
    strategy = Strategy(**({"dp": 32, "zero": 1, "seq_len": 1024, "software": ZERO} | fields))
    assert words in str(illegal_reason(strategy, question_of(strategy)))


def test_hosts_must_be_stated_and_large_enough() -> None:
    strategy = Strategy(dp=32, zero=1, seq_len=1024, software=ZERO, offload="optimizer")
    assert illegal_reason(strategy, question_of(strategy)) is None
    assert "states no host" in str(illegal_reason(strategy, question_of(strategy, replace(CLUSTER, host=None))))
    assert CLUSTER.host is not None
    small = replace(CLUSTER, host=replace(CLUSTER.host, memory_bytes=1e10))
    assert "host memory" in str(illegal_reason(strategy, question_of(strategy, small)))


def test_a_plan_file_keeps_it_and_the_engine_says_that_it_does_not_run_it(tmp_path: Path) -> None:
    strategy = Strategy(dp=32, zero=3, seq_len=1024, software=Software(kernels="fused"), offload="optimizer")
    question = replace(question_of(strategy), cluster_text="dgx-h100:4")
    plan = plan_from_prediction(question, predict(question, strategy), None)
    assert read_plan(write_plan(plan, tmp_path / "plan.yaml")).strategy == strategy
    assert "offload=optimizer" in str(refusal(strategy, MODEL, "cuda"))
    assert "offload optimizer" in strategy.describe()


CONFIGS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "deepspeed": ("ds.json", '{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}, '
                  '"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}',
                  {"offload": "optimizer", "offload_share": 0.5}, {}),
    "deepspeed of old": ("ds.json", '{"train_batch_size": 32, "zero_optimization": {"stage": 2, "cpu_offload": true}}',
                         {"offload": "optimizer"}, {}),
    "megatron": ("run.sh", "torchrun pretrain_gpt.py --micro-batch-size 1 --seq-length 1024 --num-layers 2 "
                 "--use-distributed-optimizer --optimizer-cpu-offload --optimizer-offload-fraction 0.25 "
                 "--use-precision-aware-optimizer --overlap-cpu-optimizer-d2h-h2d",
                 {"offload": "optimizer", "offload_share": 0.25}, {"offload_overlap": "parts"}),
    "megatron, streamed": ("run.sh", "torchrun pretrain_gpt.py --micro-batch-size 1 --seq-length 1024 --num-layers 2 "
                           "--use-distributed-optimizer --offload-optimizer-states", {"offload": "states"}, {}),
    "torchtitan": ("run.toml", '[training]\nseq_len = 1024\nenable_cpu_offload = true\n[model]\nname = "llama3"\n'
                   'flavor = "8B"\n', {"offload": "optimizer"}, {}),
}


@pytest.mark.parametrize(("name", "text", "options", "changes"), CONFIGS.values(), ids=CONFIGS)
def test_other_tools_files_are_read(
    tmp_path: Path, name: str, text: str, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(text)
    reading = read_config(tmp_path / name, with_model=False)
    assert options.items() <= reading.options.items()
    software = software_of(reading, None, "bf16")
    assert all(getattr(software, field) == value for field, value in changes.items())
    assert reading.options["offload"] in software.offloads


@pytest.mark.parametrize("device", ["nvme", "weights"])
def test_what_is_offloaded_otherwise_is_refused(tmp_path: Path, device: str) -> None:
    which = {"nvme": '"offload_optimizer": {"device": "nvme"}', "weights": '"offload_param": {"device": "cpu"}'}[device]
    (tmp_path / "ds.json").write_text(f'{{"train_batch_size": 32, "zero_optimization": {{"stage": 3, {which}}}}}')
    with pytest.raises(BadInput, match="not priced"):
        read_config(tmp_path / "ds.json", with_model=False)


EXPORTS = [
    ("deepspeed", {"zero": 3, "software": ZERO, "offload_share": 0.5}, ('"offload_optimizer"', '"ratio": 0.5')),
    ("megatron", {"zero": 1, "software": load_software("megatron-lm-2025")}, ("--optimizer-cpu-offload",
                                                                              "--optimizer-offload-fraction 1.0")),
    ("accelerate", {"zero": 3}, ("fsdp_offload_params: true",)), ("torchtitan", {"zero": 3}, ("enable_cpu_offload=True",)),
]


@pytest.mark.parametrize(("target", "fields", "words"), EXPORTS)
def test_exports_say_it(target: str, fields: dict[str, Any], words: tuple[str, ...]) -> None:
    case = {"dp": 8, "num_microbatches": 1, "offload": "optimizer"} | fields
    text = "".join(export_plan(plan_of(**case), target).files.values())
    assert all(word in text for word in words), text
    plain = "".join(export_plan(plan_of(**(case | {"offload": "none", "offload_share": 1.0})), target).files.values())
    assert not any(word in plain for word in words)


@pytest.mark.parametrize("target", ["deepspeed", "accelerate", "torchtitan"])
def test_exports_refuse_what_a_framework_cannot_say(target: str) -> None:
    plan = plan_of(dp=8, num_microbatches=1, zero=1, offload="states", software=load_software("megatron-lm-2025"))
    assert any("offload=states" in reason for reason in export_plan(plan, target).refusals)
    assert export_plan(plan, "megatron").files
