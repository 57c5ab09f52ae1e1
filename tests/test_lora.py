"""Low-rank adapters: torch's counters on a hand-written module, and what freezing must leave out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import SMALL

from planner.plan import plan_from_prediction, read_plan, write_plan
from planner.predict import predict, predict_replayed
from planner.question import ask
from planner.rules import illegal_reason
from profiles.collectives import Collective
from profiles.families import Shape, load_model, model_from_config, num_params
from profiles.files import BadInput
from profiles.hardware import load_cluster, with_num_gpus
from profiles.model import ModelSpec, SelfAttention
from profiles.ops import Kernel
from reports.published import Skipped, as_question
from reports.rows import Row, read_rows
from simulator.adapters import largest_rank, trained_items
from simulator.memory import peak_memory
from simulator.metrics import step_flop
from simulator.software import Software
from simulator.strategy import LORA_TARGETS, Strategy
from simulator.workload import PartWork, Work, build_workload

RANK, SEQ = 8, 32
SPEC = model_from_config(SMALL["llama"] | {"model_type": "llama"}, "small")
BIG = load_model("llama-2-70b")


def small_module(targets: str, fused: bool, *, inputs_need_gradients: bool, dtype: str = "float32") -> Any:
    """Return a llama-like module on the meta device: frozen, with adapters on the targets."""
    torch = pytest.importorskip("torch")
    nn, f = torch.nn, torch.nn.functional
    mixer, ffn = SPEC.kinds[0].mixer, SPEC.kinds[0].ffn
    assert isinstance(mixer, SelfAttention)
    heads, kv, d, h, wide = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, SPEC.hidden, ffn.hidden  # type: ignore[union-attr]

    class Adapted(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self, inp: int, out: int, rank: int) -> None:
            super().__init__()
            self.base = nn.Linear(inp, out, bias=False).requires_grad_(False)
            self.a = nn.Linear(inp, rank, bias=False) if rank else None
            self.b = nn.Linear(rank, out, bias=False) if rank else None

        def forward(self, x: Any) -> Any:
            if self.a is None:
                return self.base(x)
            return self.base(x) + 2.0 * self.b(self.a(torch.native_dropout(x, 0.1, True)[0]))

    class Layer(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            inner = RANK if targets == "all" else 0
            widths = [heads * d, kv * d, kv * d]
            self.widths = widths
            self.qkv = nn.ModuleList(Adapted(h, w, RANK) for w in ([sum(widths)] if fused else widths))
            self.o = Adapted(heads * d, h, RANK)
            self.up = nn.ModuleList(Adapted(h, w, inner) for w in ([2 * wide] if fused else [wide, wide]))
            self.down = Adapted(wide, h, inner)
            self.norms = nn.ParameterList(nn.Parameter(torch.ones(h), requires_grad=False) for _ in range(2))

        def forward(self, x: Any) -> Any:
            y = f.rms_norm(x, (h,), self.norms[0])
            q, k, v = torch.cat([p(y) for p in self.qkv], -1).split(self.widths, -1)
            q, k, v = (t.view(1, SEQ, -1, d).transpose(1, 2) for t in (q, k, v))
            k, v = (t.repeat_interleave(heads // kv, dim=1) for t in (k, v))
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
            x = x + self.o(y.transpose(1, 2).reshape(1, SEQ, heads * d))
            gate, up = torch.cat([p(f.rms_norm(x, (h,), self.norms[1])) for p in self.up], -1).chunk(2, -1)
            return x + self.down(f.silu(gate) * up)

    class Model(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(SPEC.vocab, h).requires_grad_(False)
            self.layers = nn.ModuleList(Layer() for _ in range(SPEC.num_layers))
            self.head = nn.Linear(h, SPEC.vocab, bias=False).requires_grad_(False)

        def forward(self, tokens: Any) -> Any:
            x = self.embed(tokens)
            x = x.requires_grad_() if inputs_need_gradients else x
            for layer in self.layers:
                x = layer(x)
            return self.head(f.rms_norm(x, (h,)))

    with torch.device("meta"):
        return Model().to(getattr(torch, dtype))


def counted_flop(targets: str, fused: bool, *, inputs_need_gradients: bool) -> float:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    module = small_module(targets, fused, inputs_need_gradients=inputs_need_gradients)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, SEQ, dtype=torch.long, device="meta")).sum().backward()
    return float(counter.get_total_flops())


def small_strategy(targets: str = "attention", fused: bool = False, rank: int = RANK, **fields: Any) -> Strategy:
    return Strategy(seq_len=SEQ, lora_rank=rank, lora_targets=targets, precision="fp32",
                    software=Software(fused_projections=fused), **fields)


def kernels(work: Work, pass_: str = "") -> list[Kernel]:
    return [k for k in work if isinstance(k, Kernel) and pass_ in ("", k.pass_)]


def model_flop(spec: ModelSpec, strategy: Strategy) -> float:
    parts = build_workload(spec, strategy).parts
    return sum(spec.times(p) * float(k.model_flop) for p, w in parts.items() for k in kernels(w.forward + w.backward))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("targets", LORA_TARGETS)
def test_flop_equal_torch(targets: str, fused: bool) -> None:
    """Matmuls of the scores are counted whole in both; gradients reach the first layer's input."""
    expected = counted_flop(targets, fused, inputs_need_gradients=True)
    strategy = small_strategy(targets, fused)
    assert model_flop(SPEC, strategy) == expected
    if not fused:
        assert step_flop(SPEC, strategy) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_the_first_layers_input_needs_no_gradient_which_is_left_out(fused: bool) -> None:
    """What torch saves where nothing below the first adapter trains: its maps' and its adapter's gradient of the input."""
    mixer = SPEC.kinds[0].mixer
    assert isinstance(mixer, SelfAttention)
    out = (mixer.num_heads + 2 * mixer.num_kv_heads) * mixer.head_dim
    first = 2 * SEQ * SPEC.hidden * (out + RANK * (1 if fused else 3))
    less = counted_flop("attention", fused, inputs_need_gradients=False)
    assert model_flop(SPEC, small_strategy("attention", fused)) - less == first


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("targets", LORA_TARGETS)
def test_trained_parameters_are_those_of_the_module(targets: str, fused: bool) -> None:
    module = small_module(targets, fused, inputs_need_gradients=True)
    parts = build_workload(SPEC, small_strategy(targets, fused)).parts
    trained = sum(SPEC.times(p) * float(w.trained_params) for p, w in parts.items())
    assert trained == sum(p.numel() for p in module.parameters() if p.requires_grad)
    held = sum(SPEC.times(p) * float(w.params) for p, w in parts.items())
    assert held == num_params(SPEC) + trained


def test_adapters_of_the_mlperf_benchmark() -> None:
    """r (in + out) for one map of q, k and v together (8192 to 10240) and for the output projection, in 80 layers."""
    work = build_workload(BIG, Strategy(seq_len=8192, lora_rank=16, software=Software(fused_projections=True)))
    assert 80 * work.parts["layer"].trained_params == 80 * 16 * (8192 + 10240 + 2 * 8192) == 44_564_480


def test_a_frozen_map_keeps_nothing_and_its_adapter_what_torch_keeps() -> None:
    """Saved tensors of y = W x + s B A dropout(x) in bf16: the mask, the masked x and A's thin output."""
    torch = pytest.importorskip("torch")
    layer = small_module("attention", False, inputs_need_gradients=True, dtype="bfloat16").layers[0]
    weights = {id(p) for p in layer.parameters()}

    def saved(module: Any, wide: int) -> int:
        found: list[int] = []
        bases: list[Any] = []

        def pack(t: Any) -> Any:
            base = t._base if t._base is not None else t
            if id(base) not in weights and not any(base is b for b in bases):
                bases.append(base)
                found.append(t.numel() * t.element_size())
            return t

        x = torch.zeros(1, SEQ, wide, device="meta", dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            module(x)
        return sum(found)

    items = trained_items(SPEC, "layer", Shape(micro_batch=1, seq_len=SEQ), RANK, "attention")
    named = {i.name: i for i in items}
    assert saved(layer.o.base, layer.o.base.in_features) == 0 == named["attn.wo"].saved_bytes  # type: ignore[union-attr]
    assert saved(layer.down, layer.down.base.in_features) == 0 == named["ffn.w2"].saved_bytes  # type: ignore[union-attr]
    kept = sum(i.saved_bytes for i in items if not isinstance(i, Collective) and i.name.startswith("attn.wo"))
    assert saved(layer.o, layer.o.base.in_features) == kept


def whole(targets: str, **fields: Any) -> PartWork:
    return build_workload(BIG, Strategy(seq_len=8192, lora_rank=16, lora_targets=targets, **fields)).parts["layer"]


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from(LORA_TARGETS), st.booleans(), st.booleans())
def test_tensor_parallel_ranks_share_the_adapters(tp: int, targets: str, sequence_parallel: bool, fused: bool) -> None:
    software = Software(fused_projections=fused)
    one = whole(targets, software=software)
    part = whole(targets, tp=tp, sequence_parallel=sequence_parallel, software=software)
    assert part.trained_params * tp == pytest.approx(one.trained_params, rel=1e-12)
    for pass_ in ("F", "B", "W"):
        a, b = (sum(float(k.flop) for k in kernels(w.forward + w.backward, pass_)) for w in (part, one))
        assert a * tp == pytest.approx(b, rel=1e-12)


def test_what_crosses_between_the_halves_of_an_adapter_is_thin() -> None:
    """Beside the map's own collectives: r wide between A and B, and the cut outputs behind those of a row-parallel map."""
    def sent(work: PartWork) -> dict[str, float]:
        return {c.name: float(c.bytes) for c in work.forward if isinstance(c, Collective) and np.all(c.group_size > 1)}

    base = sent(build_workload(BIG, Strategy(seq_len=8192, tp=4)).parts["layer"])
    more = {k: v for k, v in sent(whole("attention", tp=4)).items() if k not in base}
    tokens = 2 * 8192
    assert more == {f"attn.{n}.lora.gather": 16 * tokens for n in ("wq", "wk", "wv")} | {
        "attn.wo.lora.sum": 16 * tokens, "attn.wo.lora.to_tokens": tokens * 8192 / 4,
    }


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_only_adapters_are_reduced_and_updated_and_all_weights_gathered(zero: int) -> None:
    work = build_workload(BIG, Strategy(dp=8, zero=zero, lora_rank=16))
    layer, software = work.parts["layer"], work.strategy.software
    used = [c for c in layer.reduce if c.group_size > 1]
    assert [c.bytes for c in used] == [software.reduce_bytes * layer.trained_params]
    assert layer.update.size[0] == layer.trained_params / (8 if zero else 1)
    gathered = [c.bytes for c in layer.gather + layer.regather if c.group_size > 1]
    assert gathered == {0: [], 1: [2 * layer.trained_params]}.get(zero, [2 * layer.params])
    for part in ("embedding", "head"):
        frozen = work.parts[part]
        assert frozen.trained_params == 0 and frozen.params > 0
        assert not [c for c in frozen.reduce + frozen.regather if c.group_size > 1]
    assert work.parts["embedding"].backward == () and work.parts["embedding"].saved_none_bytes == 0
    assert not kernels(work.parts["head"].backward, "W") and kernels(work.parts["head"].backward, "B")


def test_a_tied_frozen_embedding_is_not_summed() -> None:
    tied = model_from_config(SMALL["gemma2"] | {"model_type": "gemma2"}, "tied")
    assert tied.tied_embeddings
    assert build_workload(tied, Strategy(pp=2, seq_len=64)).tie.group_size == 2
    assert build_workload(tied, Strategy(pp=2, seq_len=64, lora_rank=4)).tie.group_size == 1


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "nemotron_h", "qwen2_moe", "gpt_neox", "bloom", "falcon", "phi3"])
@pytest.mark.parametrize("targets", LORA_TARGETS)
def test_every_family_takes_adapters(name: str, targets: str) -> None:
    """No weight gradient but that of adapters; ranks of expert parallelism share the experts' adapters."""
    spec = model_from_config(SMALL[name] | {"model_type": name}, name)
    one = build_workload(spec, Strategy(seq_len=64, lora_rank=2, lora_targets=targets))
    for work in one.parts.values():
        assert all(2 in k.size[-3:] for k in kernels(work.backward, "W"))
        assert work.saved_full_bytes <= work.saved_none_bytes
    experts = [w.trained_expert_params for w in one.parts.values() if np.any(w.expert_params)]
    assert all((e > 0) == (targets == "all") for e in experts)
    if experts:
        two = build_workload(spec, Strategy(seq_len=64, dp=2, ep=2, lora_rank=2, lora_targets=targets))
        halves = [w.trained_expert_params for w in two.parts.values() if np.any(w.expert_params)]
        assert [2 * x for x in halves] == experts


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_repeats_adapters(recompute: str) -> None:
    def repeated(rank: int) -> float:
        work = build_workload(BIG, Strategy(seq_len=8192, lora_rank=rank, software=Software(early_stop=False))).parts["layer"]
        again = work.recompute_full if recompute == "full" else work.recompute_selective
        assert recompute == "selective" or again == work.forward
        return sum(float(k.moved_bytes) for k in kernels(again))

    assert repeated(16) > repeated(0)
    work = whole("attention")
    assert work.saved_full_bytes < work.saved_selective_bytes < work.saved_none_bytes


def test_casts_for_a_narrow_type_write_one_layout() -> None:
    """The transposed copy is for the weight gradient."""
    def written(rank: int) -> float:
        work = build_workload(BIG, Strategy(seq_len=8192, precision="fp8", lora_rank=rank)).parts["layer"]
        return sum(float(k.written_bytes) for k in kernels(work.forward + work.backward) if k.kind == "quantise")

    assert written(16) * 2 == written(0) > 0


def test_model_flop_are_four_for_each_frozen_parameter() -> None:
    strategy, trained = Strategy(seq_len=8192, lora_rank=16), 65_536_000
    matmul = num_params(BIG) - 2 * 80 * 8192 - 8192 - BIG.vocab * BIG.hidden
    attention = 12 * 80 * 8192 * 8192
    assert step_flop(BIG, strategy) == pytest.approx((4 * matmul + 6 * trained + attention) * 8192, rel=1e-12)
    assert step_flop(BIG, replace(strategy, lora_rank=0)) == pytest.approx((6 * matmul + attention) * 8192, rel=1e-12)


@given(st.sampled_from([4, 16, 64, 256]), st.sampled_from(LORA_TARGETS), st.sampled_from([0, 1, 3]))
def test_a_step_lies_between_two_thirds_and_all_of_full_training(rank: int, targets: str, zero: int) -> None:
    cluster = load_cluster("dgx-h100:1")
    question = ask(load_model("llama-3.1-8b"), cluster, tokens=1e9, global_batch=8, lora_rank=rank, lora_targets=targets)
    strategy = Strategy(dp=8, zero=zero, seq_len=8192, lora_rank=rank, lora_targets=targets, software=question.software)
    found, all_ = (predict(question, s).step_time_s for s in (strategy, replace(strategy, lora_rank=0)))
    assert 0.6 * all_ < found < all_
    assert predict(question, replace(strategy, lora_rank=2 * rank)).step_time_s > found
    assert predict_replayed(question, strategy)[0].step_time_s == pytest.approx(found, rel=1e-9)


def test_the_largest_rank_is_the_narrowest_side() -> None:
    assert largest_rank(BIG, "attention") == largest_rank(BIG, "all") == 1024
    deepseek = load_model("deepseek-v3")
    assert largest_rank(deepseek, "attention") == largest_rank(deepseek, "all") == 512


@pytest.mark.parametrize(("fields", "says"), [
    ({"lora_rank": -1}, "lora_rank: must be from 0 .* to 1024, .*attention \\(is -1\\)"),
    ({"lora_rank": 1025}, "lora_rank: must be from 0 .* \\(is 1025\\)"),
    ({"lora_rank": 8, "lora_targets": "ffn"}, "lora_targets: 'ffn' is not known; known are attention, all"),
])
def test_adapters_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        ask(BIG, load_cluster("dgx-h100:1"), tokens=1e9, **fields)


def test_tensor_parallelism_divides_the_rank() -> None:
    question = ask(BIG, load_cluster("dgx-h100:1"), tokens=1e9, global_batch=8, lora_rank=6)
    strategy = Strategy(dp=2, tp=4, num_microbatches=4, seq_len=4096, lora_rank=6)
    assert illegal_reason(strategy, question) == "tp 4 does not divide the adapters' rank of 6"
    assert illegal_reason(replace(strategy, lora_rank=8), question) is None


def test_a_plan_file_keeps_the_adapters(tmp_path: Path) -> None:
    question = ask(BIG, with_num_gpus(load_cluster("dgx-h100:1"), 8), tokens=1e9, global_batch=8, lora_rank=16,
                   lora_targets="all")
    strategy = Strategy(tp=8, num_microbatches=8, seq_len=4096, lora_rank=16, lora_targets="all", software=question.software)
    assert "LoRA of rank 16 on all" in strategy.describe() and "LoRA" not in replace(strategy, lora_rank=0).describe()
    plan = plan_from_prediction(question, predict(question, strategy), None)
    assert plan.prediction["strategy"]["lora_rank"] == 16
    again = read_plan(write_plan(plan, tmp_path / "plan.yaml"))
    assert again.strategy == strategy and (again.question.lora_rank, again.question.lora_targets) == (16, "all")


CELLS = {
    "id": "X1", "source": "MLPerf Training v5.1 llama2_70b_lora", "year": "2025", "workload": "lora",
    "model": "llama2-70b LoRA (rank 16 fine-tuning)", "n_layers": "80", "hidden": "8192", "n_heads": "64", "n_kv_heads": "8",
    "ffn_hidden": "28672", "vocab": "32000", "gated_mlp": "1", "seq_len": "8192", "gpu": "B200-SXM", "n_gpus": "8", "tp": "1",
    "pp": "1", "cp": "1", "micro_batch": "1", "global_batch": "8", "precision": "fp8-tensor-delayed", "recompute": "none",
    "zero_stage": "1", "step_time_s": "1.5",
}


def test_a_published_row_names_its_rank() -> None:
    found = as_question(Row(id="X1", cells=CELLS))
    assert not isinstance(found, Skipped)
    question, strategy = found
    assert strategy.lora_rank == question.lora_rank == 16 and strategy.lora_targets == "attention"
    assert not strategy.software.dropout
    unnamed = as_question(Row(id="X1", cells=CELLS | {"model": "llama2-70b"}))
    assert isinstance(unnamed, Skipped) and "rank <number>" in unnamed.reason
    trained = as_question(Row(id="X1", cells=CELLS | {"workload": "finetune", "model": "llama2-70b"}))
    assert not isinstance(trained, Skipped) and trained[1].lora_rank == 0


def test_published_runs_are_predicted_where_they_state_enough(shared: Path) -> None:
    rows = [r for r in read_rows(shared / "published" / "runs.csv") if r.text("workload") == "lora"]
    found = [as_question(r) for r in rows]
    assert all(f.reason.startswith("missing: ") for f in found if isinstance(f, Skipped))
    errors = [
        math.log(predict(*f).step_time_s / float(r.text("step_time_s")))
        for r, f in zip(rows, found, strict=True) if not isinstance(f, Skipped)
    ]
    assert len(errors) >= 14
    assert abs(float(np.median(errors))) < 0.10 and max(map(abs, errors)) < 0.40


def test_software_may_hold_frozen_weights_and_inputs_of_activations_narrow() -> None:
    """FP8: a byte for each frozen weight of a layer, none less for embedding and head; half of what an activation keeps."""
    cluster, strategy = load_cluster("dgx-h100:1"), Strategy(dp=8, seq_len=8192, precision="fp8", lora_rank=16)

    def held(software: Software, precision: str = "fp8") -> dict[str, float]:
        workload = build_workload(BIG, replace(strategy, precision=precision, software=software))
        return {k: float(v) for k, v in peak_memory(workload, cluster.accelerator).parts_bytes.items()}

    plain, narrow = held(Software()), held(Software(frozen_bytes=1.0))
    layers = num_params(BIG) - 2 * BIG.vocab * BIG.hidden - BIG.hidden
    assert plain["weights"] - narrow["weights"] == layers
    assert held(Software(frozen_bytes=1.0), "bf16")["weights"] == plain["weights"]
    kept = held(Software(narrow_activations=True, kernels="fused")), held(Software(kernels="fused"))
    assert kept[1]["activations"] - kept[0]["activations"] == 80 * 8192 * 2 * 28672
    trained = 80 * build_workload(BIG, strategy).parts["layer"].trained_params
    assert plain["optimizer"] == 8 * trained
    assert plain["weights"] == 2 * (num_params(BIG) + trained) + 4 * trained


@given(st.sampled_from([0, 1, 2, 3]), st.sampled_from([1, 2, 8]), st.sampled_from(LORA_TARGETS))
def test_adapters_need_less_memory_for_states_than_training_all(zero: int, tp: int, targets: str) -> None:
    def states(rank: int) -> float:
        strategy = Strategy(dp=8 // tp if tp < 8 else 2, tp=tp, zero=zero, seq_len=1024, lora_rank=rank, lora_targets=targets)
        parts = peak_memory(build_workload(BIG, strategy), load_cluster("dgx-h100:1").accelerator).parts_bytes
        return float(parts["weights"] + parts["gradients"] + parts["optimizer"])

    assert states(16) < states(32) < states(0) * 0.75


def test_adapters_share_buckets_that_whole_layers_fill() -> None:
    """44.6 M elements are two buckets of Megatron's, so 72 of 80 layers share one; FSDP sums each layer; others are as ever."""
    fused = Software(fused_projections=True)
    layer = build_workload(BIG, Strategy(dp=8, lora_rank=16, software=fused)).parts["layer"]
    assert layer.bucket == pytest.approx(40e6 / (44_564_480 / 80))
    assert build_workload(BIG, Strategy(dp=64, cp=8, seq_len=8192, lora_rank=16, software=fused)).parts["layer"].bucket == 80
    assert build_workload(BIG, Strategy(dp=8, zero=3, lora_rank=16)).parts["layer"].bucket == 1
    assert all(w.bucket == 1 for w in build_workload(BIG, Strategy(dp=8)).parts.values())
