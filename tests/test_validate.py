"""`validate`: reading published rows, leaving out impossible ones, and the arithmetic of accuracy."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from profiles import files
from profiles.cost import CostModel
from profiles.efficiency import load_efficiency
from profiles.files import BadInput
from profiles.hardware import Cluster
from profiles.model import Experts, LatentAttention, SelfAttention
from reports import accuracy as accuracy_module
from reports.accuracy import Accuracy, Outcome, changes, fitted_laws, group, groups_by, memory_group, outcome_of, predict_rows
from reports.accuracy_page import accuracy_report, rows_csv
from reports.accuracy_summary import read_summary
from reports.choice import kendall_tau, pooled_tau, sweeps_of
from reports.headline import TARGETS, headlines
from reports.page import html, markdown
from reports.published import Skipped, as_question, measured_step_s, strategy_of
from reports.published_machine import CLUSTERS, NAMED, cluster_of
from reports.published_model import model_of
from reports.published_software import FRAMEWORKS, SETTINGS, software_of
from reports.rows import Row, chosen, read_rows
from reports.validate_command import accuracy_json, accuracy_tables, read_before, validate
from simulator.software import Software, load_software

ROOT = Path(__file__).resolve().parent.parent
CELLS = {
    "id": "R1", "source": "torchtitan benchmarks", "year": "2024", "model": "llama3-8b", "n_layers": "32", "hidden": "4096",
    "n_heads": "32", "n_kv_heads": "8", "head_dim": "128", "ffn_hidden": "14336", "vocab": "128256", "gated_mlp": "1",
    "n_experts": "", "experts_topk": "", "moe_shared": "", "moe_ffn_hidden": "", "first_dense_layers": "", "mtp_layers": "",
    "attn_type": "gqa", "seq_len": "8192", "gpu": "H100-80GB-SXM", "gpus_per_node": "8", "interconnect": "", "n_gpus": "16",
    "tp": "2", "pp": "1", "vpp": "1", "cp": "1", "ep": "1", "dp": "8", "zero_stage": "3", "zero_detail": "",
    "sequence_parallel": "1", "micro_batch": "1", "global_batch": "16", "precision": "bf16", "precision_detail": "",
    "recompute": "full", "recompute_detail": "", "flash_attention": "1", "other_notes": "", "workload": "pretrain",
    "duplicate_of": "", "step_time_s": "1.9", "tokens_per_s_per_gpu": "", "peak_mem_gib_per_gpu": "", "peak_mem_kind": "",
    "trust": "A", "full_strategy": "1",
}


def row(**cells: Any) -> Row:
    changed = CELLS | {k: str(v) for k, v in cells.items()}
    return Row(id=changed["id"], cells=changed)


def table(path: Path, *rows: Row) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0].cells))
    writer.writeheader()
    writer.writerows(r.cells for r in rows)
    path.write_text(text.getvalue())
    return path


def run(**values: Any) -> Outcome:
    """Return an outcome that measured 10 s and is predicted 11 s, from 9 to 12."""
    return Outcome(**({
        "id": "R1", "source": "a", "model": "m", "family": "dense", "gpu": "H100-80GB-SXM", "num_gpus": 8, "precision": "bf16",
        "trust": "A", "full": True, "strategy": "one rank", "software": "torch", "set_key": "a | m", "tokens_per_step": 1e6,
        "measured_s": 10.0, "predicted_s": 11.0, "p10_s": 9.0, "p90_s": 12.0, "loso_s": None,
        "measured_tokens_per_s_per_gpu": 1e4, "tokens_per_s_per_gpu": 9e3, "measured_mfu": 0.4, "mfu": 0.36, "peak_kind": "",
        "measured_peak_bytes": None, "peak_bytes": 1e9, "fits": True, "breakdown_s": {"compute": 8.0, "bubble": 3.0},
    } | values))


def test_a_row_becomes_a_question_and_a_strategy() -> None:
    asked = as_question(row(cp=2, n_gpus=32, pp=1, precision="fp8-tensor-current", zero_detail="Megatron FSDP, shard group 8"))
    assert not isinstance(asked, Skipped)
    question, s = asked
    assert (question.model.num_layers, question.model.hidden, question.model.vocab) == (32, 4096, 128256 // 256 * 256)
    cluster = question.cluster
    assert (cluster.accelerator.name, cluster.gpus_per_node, cluster.num_nodes) == ("h100-80gb", 8, 4)
    assert (s.dp, s.tp, s.cp, s.pp, s.zero, s.shard_group, s.micro_batch, s.num_microbatches) == (8, 2, 2, 1, 3, 8, 1, 2)
    assert (s.precision, s.recompute, s.sequence_parallel, s.context, s.schedule) == ("fp8", "full", True, "all_gather", "1F1B")
    assert s.software.name == "torchtitan-2024"


def test_interleaved_stages_come_from_vpp() -> None:
    s = strategy_of(row(tp=1, pp=4, vpp=2, dp=4, sequence_parallel="", zero_stage=1, source="NeMo", micro_batch=1))
    assert (s.schedule, s.chunks, s.pp, s.num_microbatches, s.sequence_parallel) == ("Interleaved1F1B", 2, 4, 4, False)
    assert strategy_of(row(pp=1, vpp=4)).chunks == 1


def test_recomputation_of_some_layers_is_a_share() -> None:
    assert strategy_of(row(recompute="selective", recompute_detail="every other layer")).recompute_share == 0.5
    some = strategy_of(row(recompute_detail="block method, 5 layers only", pp=4, vpp=2, dp=2, tp=2))
    assert (some.recompute, some.recompute_share) == ("full", 5 / 4 if 5 / 4 < 1 else 1.0)
    assert strategy_of(row(recompute_detail="block method, 4 layers only")).recompute_share == 4 / 32


IMPOSSIBLE = [
    ({"duplicate_of": "R7"}, "repeats R7"),
    ({"workload": "dpo"}, "workload: dpo is not priced"),
    ({"step_time_s": ""}, "no measured step time or peak memory"),
    ({"other_notes": "activation CPU offload of 3 layers"}, "activations offloaded to the host are not priced"),
    ({"other_notes": "record 4; Muon + AdamW"}, "the Muon optimizer is not priced"),
    ({"recompute": "", "vocab": ""}, "missing: vocab, recompute"),
    ({"gated_mlp": ""}, "missing: gated_mlp"),
    ({"n_kv_heads": ""}, "missing: n_kv_heads"),
    ({"sequence_parallel": ""}, "missing: sequence_parallel"),
    ({"tp": 1, "pp": 2, "vpp": ""}, "missing: vpp"),
    ({"n_experts": 8}, "missing: experts_topk"),
    ({"dp": 4}, "layout: tp 2 x pp 1 x cp 1 x dp 4 = 8, the row has 16 GPUs"),
    ({"tp": 3, "dp": ""}, "layout: tp 3 x pp 1 x cp 1 = 3 does not divide 16 GPUs"),
    ({"tp": 16, "dp": 1, "n_heads": 24, "n_kv_heads": 24}, "layout: tp 16 does not divide 24 heads"),
    ({"global_batch": 20}, "batch: 20 sequences do not divide by dp x micro-batch = 8"),
    ({"tp": 1, "pp": 16, "dp": 1, "n_layers": 12}, "layout: pp 16 x 1 chunks is more than 12 layers"),
    ({"n_experts": 8, "experts_topk": 2, "moe_ffn_hidden": 512, "ep": 32}, "layout: ep 32 x expert tp 1 does not divide"),
    ({"step_time_s": "1900"}, "time: 1900 s a step would be an MFU of"),
    ({"step_time_s": "0.19"}, "time: 0.19 s a step would be an MFU of"),
    ({"tokens_per_s_per_gpu": "2000"}, "time: a step of 1.9 s and 2000 tokens/s a GPU, which make 4.096 s, disagree"),
    ({"peak_mem_gib_per_gpu": "97"}, "memory: 97 GiB do not fit a H100"),
    ({"gpu": "H300"}, "gpu: 'H300' has no reference cluster"),
    ({"n_gpus": 12, "tp": 1, "dp": 12, "global_batch": 24}, "gpus: 12 do not divide into whole nodes of 8"),
    ({"hidden": "4096x"}, "hidden: '4096x' is not a number"),
    ({"n_layers": "31.5"}, "n_layers: '31.5' is not a whole number"),
    ({"n_kv_heads": "5"}, "n_kv_heads: 5 key-value heads do not divide 32 heads"),
    ({"attn_type": "mla", "model": "nobody's"}, "attn_type: 'mla' needs the catalogue's model, and \"nobody's\" is not there"),
    ({"precision": "int7"}, "precision: 'int7' is not known; known are fp32, bf16"),
    ({"recompute": "some"}, "recompute: 'some' is not known; known are none, selective, full"),
    ({"gpu": "A100-80GB-SXM", "precision": "fp8"}, "precision: "),
]


@pytest.mark.parametrize(("cells", "reason"), IMPOSSIBLE, ids=[r[:40] for _, r in IMPOSSIBLE])
def test_an_impossible_row_says_why_and_is_left_out(cells: dict[str, Any], reason: str) -> None:
    left_out = outcome_of(row(**cells))
    assert isinstance(left_out, Skipped), "a number for an impossible row"
    assert left_out.id == "R1"
    assert reason in left_out.reason
    assert "\n" not in left_out.reason


@pytest.mark.parametrize(("cells", "name"), [
    ({"zero_stage": 3, "year": 2025}, "torchtitan-2025 (assumed)"), ({"zero_stage": 3, "year": 2023}, "fsdp-2022 (assumed)"),
    ({"zero_stage": 1, "year": 2024}, "megatron-lm-2024 (assumed)"),
    ({"zero_stage": "", "year": 2021}, "megatron-lm-2020 (assumed)"),
])
def test_a_framework_that_nothing_names_is_assumed_and_said_so(cells: dict[str, Any], name: str) -> None:
    assert software_of(row(source="a table", zero_detail="", other_notes="", **cells)).name == name


def test_the_row_that_the_others_change_is_possible() -> None:
    assert isinstance(outcome_of(row()), Outcome)


def test_measured_time_follows_from_throughput() -> None:
    assert measured_step_s(row(step_time_s="", tokens_per_s_per_gpu=4096)) == pytest.approx(16 * 8192 / (4096 * 16))
    assert measured_step_s(row(step_time_s="", iteration_time_s="3")) == 3


def test_models_follow_from_their_dimensions() -> None:
    llama = model_of(row(tp=8))
    assert (llama.norm, llama.tied_embeddings, llama.vocab % (128 * 8)) == ("rms_norm", False, 0)
    gpt = model_of(row(model="gpt 3.6b", gated_mlp=0, tp=1, vocab=50257, head_dim="", n_kv_heads=""))
    mixer = gpt.kinds[0].mixer
    assert isinstance(mixer, SelfAttention)
    assert (gpt.norm, gpt.tied_embeddings, gpt.learned_positions, gpt.vocab) == ("layer_norm", True, 8192, 50257)
    assert (mixer.num_kv_heads, mixer.head_dim, mixer.positions) == (32, 128, "learned")


def test_experts_begin_after_the_dense_layers() -> None:
    cells = {"n_experts": 16, "experts_topk": 2, "moe_ffn_hidden": 512, "moe_shared": 2}
    after_two = model_of(row(**cells, first_dense_layers=2))
    assert after_two.pattern == (0, 0, *(1,) * 30)
    ffn = after_two.kinds[1].ffn
    assert isinstance(ffn, Experts)
    assert (ffn.num_experts, ffn.top_k, ffn.hidden, ffn.shared_hidden) == (16, 2, 512, 1024)
    assert model_of(row(**cells)).pattern == (0,) * 32
    assert model_of(row(**cells, attn_type="gqa; MoE every 2nd layer")).pattern == (0, 1) * 16


def test_sliding_windows_alternate_with_whole_attention() -> None:
    model = model_of(row(attn_type="gqa, alternating 128-token sliding window"))
    windows = [model.kinds[i].mixer.window for i in model.pattern[:4]]  # type: ignore[union-attr]
    assert windows == [128, 0, 128, 0]


def test_latent_ranks_come_from_the_catalogue() -> None:
    cells = {"attn_type": "mla", "n_experts": 256, "experts_topk": 8, "moe_ffn_hidden": 2048, "first_dense_layers": 3}
    mixer = model_of(row(model="deepseek-v3 cut to 32 layers", n_heads=128, **cells)).kinds[1].mixer
    assert isinstance(mixer, LatentAttention)
    assert (mixer.kv_lora_rank, mixer.num_heads) == (512, 128)


@pytest.mark.parametrize(("cells", "node", "gbit_per_s"), [
    ({}, 8, 400),
    ({"interconnect": "NVLink in node; 4 x 100 Gb RoCE per node"}, 8, 50),
    ({"interconnect": "1600 Gbps RoCE per node"}, 8, 200),
    ({"interconnect": "2 Tb/s RoCE per node"}, 8, 250),
    ({"interconnect": "200 Gb/s HDR per GPU"}, 8, 200),
    ({"gpu": "A100-40GB-SXM"}, 8, 200),
    ({"gpu": "A100-40GB-SXM", "interconnect": "AWS p4d, 4 x 100 Gb/s EFA"}, 8, 50),
    ({"gpu": "A100-80GB-SXM", "interconnect": "NVLink in node; 4 Omni-Path links per node (Jean Zay)"}, 8, 50),
    ({"gpu": "GB200", "gpus_per_node": 4, "n_gpus": 256, "interconnect": "NVLink domain of 72 GPUs (NVL72)"}, 64, 400),
    ({"gpu": "GB200", "gpus_per_node": 4, "n_gpus": 256, "interconnect": "NVLink domain (32 GPUs per domain used)"}, 32, 400),
    ({"gpu": "GB200", "gpus_per_node": 4, "n_gpus": 8}, 8, 400),
    ({"gpu": "L40S", "gpus_per_node": 4}, 4, 50),
    ({"n_gpus": 2}, 2, 400),
])
def test_links_and_nodes_are_those_that_the_row_states(cells: dict[str, Any], node: int, gbit_per_s: float) -> None:
    cluster = cluster_of(row(**cells))
    assert cluster.num_gpus == int(row(**cells).cells["n_gpus"])
    assert cluster.gpus_per_node == node
    assert cluster.scale_out.bytes_per_s * 8e-9 == pytest.approx(gbit_per_s)


def test_every_named_machine_is_in_the_catalogue() -> None:
    known = files.catalog_names("clusters")
    assert {*CLUSTERS.values(), *(name for _, _, name in NAMED)} <= set(known)
    for gpu in CLUSTERS:
        assert cluster_of(row(gpu=gpu, n_gpus=8)).num_gpus == 8


def test_software_is_the_latest_that_is_not_younger_than_the_row() -> None:
    def name(**cells: Any) -> str:
        return software_of(row(**cells)).name

    assert name(source="SC21 Megatron weak scaling", year=2021) == "megatron-lm-2020"
    assert name(source="Megatron-LM tests", year=2030).startswith("megatron-lm-20")
    assert name(source="NVIDIA NeMo performance summary 24.07", year=2024) == "nemo-2024"
    assert name(source="MLPerf Training v3.0 gpt3", year=2019) == "mlperf-2023"
    assert name(source="a table", zero_detail="FSDP2") == "fsdp-2022"
    assert name(software="nanotron-2024") == "nanotron-2024"


def test_software_that_a_row_states_overrides_the_framework() -> None:
    plain = software_of(row())
    assert (plain.kernels, plain.tp_overlap, plain.attention) == ("eager", False, "flash2")
    told = software_of(row(other_notes="torch.compile + async TP; selective op AC", flash_attention=0))
    assert (told.kernels, told.tp_overlap, told.attention) == ("fused", True, "unfused")
    megatron = {"source": "Megatron-LM CI", "year": 2025}
    assert software_of(row(**megatron, vpp=2)).pp_overlap and not software_of(row(**megatron, vpp=1)).pp_overlap
    assert software_of(row(**megatron, vpp=2, other_notes="8 layers; no overlap of p2p")).pp_overlap is False
    assert software_of(row(precision_detail="bf16 weights and reduce, FSDP PURE")).reduce_bytes == 2
    graphs = {"source": "NVIDIA Megatron-Bridge 26.02", "year": 2026}
    assert software_of(row(**graphs)).host_launch_s > 0
    assert software_of(row(**graphs, recompute_detail="layernorm,moe_act")).selective == "pointwise"
    assert software_of(row(**graphs, recompute_detail="core_attn")).selective == "attention"
    assert software_of(row(**graphs, other_notes="MoE dispatcher hybridep; x")).sends_once
    assert software_of(row(**graphs, other_notes="CUDA graphs full_iteration []")).graphs == "all"
    assert software_of(row(**graphs, other_notes="x; CUDA graphs transformer_engine ['attn', 'moe_router']")).graphs == "dense"
    assert software_of(row(**graphs, other_notes="x; CUDA graphs transformer_engine ['moe_router']")).graphs == "router"
    assert software_of(row(**graphs, other_notes="EP overlap off")).ep_overlap is False
    assert software_of(row(**graphs, other_notes="plain EP overlap, search run")).ep_overlap is True
    assert software_of(row(source="vTrain", flash_attention=1)).attention == "flash2"


def test_every_framework_is_in_the_catalogue_with_its_source() -> None:
    names = files.catalog_names("software")
    for _, family in FRAMEWORKS:
        assert any(re.fullmatch(rf"{family}-\d{{4}}", n) for n in names), family
    for name in names:
        software = load_software(name)
        assert len(software.source) > 60, name
        assert re.search(rf"-{software.year}(\.\d\d)?$", name), name
    for column, _, stated in SETTINGS:
        assert column in CELLS
        assert set(stated) <= {f.name for f in fields(Software)}


def test_a_file_without_the_columns_is_one_clear_line(tmp_path: Path) -> None:
    for text, message in (
        ("id,model\nR1,m\n", r"lacks the columns n_layers, .*see docs/validate.md"),
        (",".join(c for c in CELLS if c != "gpu") + "\n", "lacks the column gpu;"),
        (",".join(c for c in CELLS if "time" not in c and "tokens" not in c and "peak" not in c) + "\n", "needs one measured"),
        (",".join(CELLS) + "\n", "holds a head and no rows"),
        (",".join(CELLS) + "\nR1,2\n", "line 2: not as many cells"),
    ):
        path = tmp_path / "runs.csv"
        path.write_text(text)
        with pytest.raises(BadInput, match=message):
            read_rows(path)
    with pytest.raises(BadInput, match="no such file"):
        read_rows(tmp_path / "none.csv")


def test_rows_are_chosen_by_glob_and_by_number() -> None:
    rows = [row(id="a", gpu="H100-80GB-SXM", n_gpus=8), row(id="b", gpu="H100-94GB-SXM", n_gpus=64),
            row(id="c", gpu="A100", n_gpus="")]
    assert [r.id for r in chosen(rows, ["gpu=H100*"])] == ["a", "b"]
    assert [r.id for r in chosen(rows, ["gpu=h100*", "n_gpus>=64"])] == ["b"]
    assert [r.id for r in chosen(rows, ["n_gpus < 64"])] == ["a"]
    assert [r.id for r in chosen(rows, ["n_gpus="])] == ["c"]
    for bad, message in (
        ("gpus=8", "where: 'gpus' is not a column; the file has id, source"), ("gpu", "is no condition"),
        ("n_gpus>=many", "'many' is not a number"), ("gpu=Z*", "leaves no rows"),
    ):
        with pytest.raises(BadInput, match=re.escape(message)):
            chosen(rows, [bad])


def test_group_figures_against_a_hand_count() -> None:
    runs = [run(predicted_s=12.0), run(predicted_s=9.0), run(predicted_s=10.0),
            run(predicted_s=14.0, p10_s=11.0, p90_s=15.0, loso_s=15.0)]
    g = group("by", "key", runs)
    # errors +20 %, -10 %, 0, +40 %
    assert (g.n, g.mape, g.bias) == (4, pytest.approx(0.175), pytest.approx(0.125))
    assert g.median == pytest.approx(0.15)
    assert g.p90 == pytest.approx(0.2 + 0.7 * 0.2)
    assert g.coverage == 0.75
    assert g.loso_mape == pytest.approx(0.5)
    assert [o.inside for o in runs] == [True, True, True, False]
    assert runs[0].dominant == "compute"
    assert runs[0].dominant_share == pytest.approx(8 / 12)


def test_groups_are_by_what_rows_share() -> None:
    runs = [run(num_gpus=8), run(num_gpus=9, gpu="GB200"), run(num_gpus=64, trust="B", full=False), run(num_gpus=4096)]
    assert {g.key: g.n for g in groups_by("gpus", runs)} == {"9 to 64": 2, "1 to 8": 1, "1025 and more": 1}
    assert [(g.key, g.n) for g in groups_by("accelerator", runs)] == [("H100-80GB-SXM", 3), ("GB200", 1)]
    assert {g.key for g in groups_by("trust", runs)} == {"A, full strategy", "B, strategy in part"}


def test_tau_against_a_hand_count() -> None:
    assert kendall_tau([1, 2, 3, 4], [1, 2, 3, 4]) == 1
    assert kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall_tau([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(4 / 6)
    assert kendall_tau([1, 1], [1, 2]) is None
    # ranks are compared within a set only, by time per token
    steps = ((1.0, 1.0, 1), (1.5, 2.5, 2), (1.2, 6.0, 4))
    a = [run(set_key="a", measured_s=m, predicted_s=p, tokens_per_step=t) for m, p, t in steps]
    b = [run(set_key="b", measured_s=m, predicted_s=100 + m) for m in (1.0, 2.0, 3.0)]
    assert pooled_tau([*a, *b]) == 0
    assert pooled_tau(a) is None


def test_regret_is_what_the_pick_takes_longer() -> None:
    layouts = [run(id=f"R{i}", strategy=f"s{i}", measured_s=m, predicted_s=p)
               for i, (m, p) in enumerate([(10.0, 12.0), (12.0, 11.0), (15.0, 16.0), (20.0, 21.0)])]
    [sweep] = sweeps_of(layouts)
    assert (sweep.n, sweep.regret, sweep.tau) == (4, pytest.approx(0.2), pytest.approx(4 / 6))
    assert sweep.picked == "R1: s1" and sweep.best == "R0: s0"
    # a layout that is predicted not to fit is not picked
    unfit = run(id="R1", strategy="s1", measured_s=12.0, predicted_s=11.0, fits=False)
    [careful] = sweeps_of([unfit, *layouts[:1], *layouts[2:]])
    assert careful.regret == 0
    assert not sweeps_of(layouts[:3])
    assert not sweeps_of([*layouts[:3], run(strategy="s3", tokens_per_step=2e6)])


def test_memory_is_grouped_by_its_counter() -> None:
    runs = [run(peak_kind="allocated", measured_peak_bytes=1e9, peak_bytes=1.1e9, measured_s=None),
            run(peak_kind="allocated", measured_peak_bytes=1e9, peak_bytes=0.7e9), run(fits=False)]
    m = memory_group("allocated", runs)
    assert (m.n, m.mape, m.bias) == (2, pytest.approx(0.2), pytest.approx(-0.1))
    whole = Accuracy(outcomes=tuple(runs), skipped=())
    assert whole.share_not_fitting == pytest.approx(1 / 3)
    assert len(whole.timed) == 2


def test_each_counter_sees_its_part_of_the_peak() -> None:
    def peak(kind: str) -> float:
        outcome = outcome_of(row(peak_mem_gib_per_gpu=50, peak_mem_kind=kind))
        assert isinstance(outcome, Outcome)
        return outcome.peak_bytes

    assert peak("allocated (rank 0)") == peak("peak active memory (GiB)") < peak("reserved") < peak("device memory")
    assert peak("GB as printed") == peak("device memory")


def test_headlines_stand_beside_their_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "dense, bf16 and fp16, A100 and H100, trust A, full strategy"
    monkeypatch.setitem(TARGETS, (name, "MAPE"), 0.11)
    monkeypatch.setitem(TARGETS, (name, "coverage of P10 to P90"), 1.01)
    found = headlines(Accuracy(outcomes=(run(), run(trust="B"), run(gpu="GB200"), run(family="experts")), skipped=()))
    dense = {h.figure: h for h in found if h.set == name}
    assert dense["MAPE"].n == 1
    assert dense["MAPE"].met is True
    assert dense["coverage of P10 to P90"].met is False
    assert dense["median"].met is None
    assert {h.set: h.n for h in found if h.figure == "MAPE"}["experts, FP8, FP4 or Blackwell"] == 2


def test_changes_compare_groups_of_both_sides() -> None:
    after = [group("source", "a", [run()]), group("source", "new", [run()])]
    [change] = changes([{"by": "source", "key": "a", "mape": 0.05}, {"by": "source", "key": "gone", "mape": 0.1}], after)
    assert (change.before, change.after) == (0.05, pytest.approx(0.1))
    assert change.worse(0.01) and not change.worse(0.06)


def slower_laws(row: Row, cluster: Cluster) -> CostModel:
    """Return laws of another accelerator, as if a source had been left out of the fit."""
    return CostModel(cluster=cluster, efficiency=load_efficiency("a100-80gb"))


def test_laws_without_the_row_source_stand_beside_the_fitted_ones() -> None:
    found = predict_rows([row()], laws=fitted_laws, loso=slower_laws)
    [outcome] = found.outcomes
    assert outcome.loso_s is not None and outcome.loso_s != outcome.predicted_s
    assert found.groups[0].loso_mape == pytest.approx(abs(outcome.loso_s / 1.9 - 1))
    assert "source left out" in html(accuracy_report(found, "x")) and "source left out" in markdown(accuracy_report(found, "x"))
    assert predict_rows([row()]).outcomes[0].loso_s is None


def test_two_processes_predict_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(id=str(i), micro_batch=1 + i % 2) for i in range(6)]
    one = predict_rows(rows)
    monkeypatch.setattr(accuracy_module, "FEW_ROWS", 2)
    done: list[float] = []
    assert predict_rows(rows, on_progress=done.append) == one
    assert done[-1] == 1 and done == sorted(done)


def test_validate_writes_page_rows_and_json(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv", row(id="a"), row(id="b", gpu="A100-80GB-SXM", step_time_s=5, zero_stage=1),
                 row(id="c", workload="dpo"), row(id="d", step_time_s="", peak_mem_gib_per_gpu=40, peak_mem_kind="allocated"))
    found = validate(path, [], tmp_path / "out")
    page = (tmp_path / "out" / "accuracy.html").read_text()
    assert page.count("<svg") == 4
    assert page.count("http://") == 2 * page.count("<svg"), "the page is self-contained: only the names of SVG"
    for text in ("Predicted against measured: runs.csv", "predicted over measured", "workload: dpo is not priced"):
        assert text in page
    written = (tmp_path / "out" / "accuracy.md").read_text()
    assert re.findall(r"^##+ (.*)$", written, re.MULTILINE) == re.findall(r"<h[23][^>]*>(.*?)</h[23]>", page)
    assert all(number in page for number in re.findall(r"[-+]?\d+\.\d %", written)), "both say the same"
    assert read_summary(tmp_path / "out" / "summary.json").num_timed == 2
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "rows.csv").read_text())))
    assert [r["id"] for r in lines] == ["a", "b", "d"]
    assert float(lines[0]["error"]) == pytest.approx(found.outcomes[0].error)
    assert sum(float(v) for k, v in lines[0].items() if k in ("compute_s", "exposed_tp_s", "exposed_dp_s")) > 0
    data = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert {"id", "measured_s", "predicted_s", "p10_s", "p90_s", "error"} <= set(data["rows"][0])
    assert [r["id"] for r in data["rows"]] == ["a", "b"]
    assert data["skipped"] == [{"id": "c", "reason": "workload: dpo is not priced"}]
    assert {"by", "key", "n", "mape", "median", "p90", "bias", "coverage"} <= set(data["groups"][0])
    assert [r["id"] for r in data["memory_rows"]] == ["d"]
    assert [m["key"] for m in data["memory"]] == ["allocated"]
    before = read_before(tmp_path / "out" / "accuracy.json")
    assert [t.title for t in accuracy_tables(found, before)][-1] == "MAPE before and after"
    with pytest.raises(BadInput, match="groups: is missing"):
        read_before(table(tmp_path / "x.json", row()) and files.write_text(tmp_path / "x.json", "{}"))


def test_a_file_of_left_out_rows_still_makes_a_page(tmp_path: Path) -> None:
    found = validate(table(tmp_path / "runs.csv", row(workload="dpo")), [], tmp_path)
    assert "Left out: 1 rows" in (tmp_path / "accuracy.html").read_text()
    assert rows_csv(found) == ""
    assert accuracy_json(found)["groups"] == []
    assert len(accuracy_tables(found)) == 1


def test_the_page_is_the_same_for_the_same_rows() -> None:
    found = predict_rows([row()])
    assert html(accuracy_report(found, "x")) == html(accuracy_report(found, "x"))


def test_the_example_of_the_manual_is_predicted(tmp_path: Path) -> None:
    block = re.search(r"```csv\n(.*?)```", (ROOT / "docs" / "validate.md").read_text(), re.DOTALL)
    assert block
    (tmp_path / "mine.csv").write_text(block[1])
    [outcome] = validate(tmp_path / "mine.csv").outcomes
    assert outcome.software == "torchtitan-2024"


def test_published_rows_are_read(shared: Path) -> None:
    rows = read_rows(shared / "published" / "runs.csv")
    asked = [as_question(r) for r in rows]
    left_out = [a for a in asked if isinstance(a, Skipped)]
    assert len(rows) == 949
    assert len(rows) - len(left_out) > 560
    assert sum(a.reason.startswith("missing: ") for a in left_out) > 200
    for a in left_out:
        assert re.match(r"(missing|layout|batch|time|memory|gpu|gpus|workload|software|attn_type|precision|repeats|no measured|"
                        r"activations|states|the Muon|an optimizer)", a.reason), a
    full = {r.id for r in rows if r.text("full_strategy") == "1" and measured_step_s(r) and not r.text("duplicate_of")}
    priced_not = re.compile("repeats|activations|states|the Muon|an optimizer|layout: ZeRO")
    assert not [a for a in left_out if a.id in full and not priced_not.match(a.reason)]


def test_published_rows_are_predicted(shared: Path) -> None:
    rows = chosen(read_rows(shared / "published" / "runs.csv"), ["trust=A", "gpu=A100-40GB-SXM"])
    found = predict_rows(rows)
    assert len(found.timed) > 50
    for outcome in found.timed:
        assert outcome.p10_s <= outcome.predicted_s <= outcome.p90_s
        assert sum(outcome.breakdown_s.values()) == pytest.approx(outcome.predicted_s)
        assert 0 < (outcome.measured_mfu or 0) < 1
    assert group("", "", found.timed).mape < 0.25
