"""The executor's module against `profiles/families`, `profiles/ops`, and the reference implementations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count  # noqa: E402

from executor.blocks import Fp8Linear  # noqa: E402
from executor.model import Stage, initial_weight, materialise, token_loss  # noqa: E402
from executor.parallel import build_stage, parallelise  # noqa: E402
from executor.pretrained import config_of  # noqa: E402
from profiles import kernels  # noqa: E402
from profiles.collectives import Collective  # noqa: E402
from profiles.families import Shape, all_params, num_params, part_items  # noqa: E402
from profiles.families.gpt2 import gpt2_spec  # noqa: E402
from profiles.families.llama import llama_spec  # noqa: E402
from profiles.model import Experts, ModelSpec  # noqa: E402
from profiles.ops import Op  # noqa: E402
from simulator.strategy import Strategy  # noqa: E402

SIZES: dict[str, int] = {"num_layers": 2, "hidden": 256, "num_heads": 8, "head_dim": 32, "vocab": 512, "max_seq_len": 128}
LLAMA = llama_spec(name="tiny-llama", num_kv_heads=2, ffn_hidden=512, **SIZES)
QWEN2 = llama_spec(name="tiny-qwen2", num_kv_heads=2, ffn_hidden=512, qkv_bias=True, tied_embeddings=True, **SIZES)
QWEN3 = replace(LLAMA, name="tiny-qwen3", family="qwen3", kinds=(replace(
    LLAMA.kinds[0], mixer=replace(LLAMA.kinds[0].mixer, qk_norm="head")),))
EXPERTS = replace(QWEN3.kinds[0], name="experts", ffn=Experts(num_experts=4, top_k=2, hidden=128))
MIXTRAL = replace(LLAMA, name="tiny-mixtral", family="mixtral", kinds=(replace(
    EXPERTS, name="layer", mixer=LLAMA.kinds[0].mixer),))
QWEN3_MOE = replace(QWEN3, name="tiny-qwen3-moe", family="qwen3_moe", pattern=(0, 1), kinds=(
    replace(QWEN3.kinds[0], name="dense"), EXPERTS))
GPT2 = gpt2_spec(name="tiny-gpt2", num_kv_heads=8, ffn_hidden=1024, **SIZES)
SPECS = pytest.mark.parametrize("spec", [LLAMA, QWEN2, QWEN3, GPT2], ids=lambda s: s.name)
ALL_SPECS = pytest.mark.parametrize("spec", [LLAMA, QWEN2, QWEN3, GPT2, MIXTRAL, QWEN3_MOE], ids=lambda s: s.name)
SHAPE = Shape(micro_batch=2, seq_len=128, dtype="fp32")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def on_meta(spec: ModelSpec, **options: Any) -> Stage:
    with torch.device("meta"):
        return Stage(spec, seq_len=SHAPE.seq_len, **options)


def ops(spec: ModelSpec, part: Any) -> list[Op]:
    return [item for item in part_items(spec, part, SHAPE) if not isinstance(item, Collective)]


@ALL_SPECS
def test_parameters_are_those_of_the_family(spec: ModelSpec) -> None:
    ours = {name: tuple(p.shape) for name, p in on_meta(spec).named_parameters()}
    assert ours == {p.name: p.shape for p in all_params(spec)}


@ALL_SPECS
def test_stages_together_have_the_parameters_of_the_whole(spec: ModelSpec) -> None:
    with torch.device("meta"):
        stages = [build_stage(spec, Strategy(pp=2, seq_len=64), rank) for rank in range(2)]
    names = [name for stage in stages for name, _ in stage.named_parameters()]
    extra = ["head.weight"] if spec.tied_embeddings else []
    assert sorted(names) == sorted([p.name for p in all_params(spec)] + extra)


@ALL_SPECS
def test_parameter_count_against_transformers(spec: ModelSpec) -> None:
    """By the configuration that we write; `tests/test_executor_weights.py` holds logits to it, too."""
    transformers = pytest.importorskip("transformers")
    config = {k: v for k, v in config_of(spec).items() if k != "architectures"}
    with torch.device("meta"):
        made = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        model = transformers.AutoModelForCausalLM.from_config(made)
    assert sum(p.numel() for p in model.parameters()) == num_params(spec)


@SPECS
def test_flop_against_torch_counter(spec: ModelSpec) -> None:
    stage = on_meta(spec)
    ids = torch.zeros(SHAPE.micro_batch, SHAPE.seq_len, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        token_loss(stage(ids), ids).backward()
    assert counter.get_total_flops() == model_flop(spec)


@pytest.mark.parametrize("spec", [MIXTRAL, QWEN3_MOE], ids=lambda s: s.name)
def test_flop_of_experts_against_torch_counter(spec: ModelSpec) -> None:
    """On the CPU, as the tokens of an expert are counted; torch's counter is told of the CPU's attention."""
    stage = Stage(spec, seq_len=SHAPE.seq_len)
    ids = torch.randint(spec.vocab, (SHAPE.micro_batch, SHAPE.seq_len))
    known = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
            lambda grad, q, k, v, *_, **__: 2 * sdpa_flop_count(q, k, v),  # model FLOP: scores made again are left out
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        token_loss(stage(ids), ids).backward()
    assert counter.get_total_flops() == model_flop(spec)


def model_flop(spec: ModelSpec) -> float:
    repeats = {"embedding": 1, "head": 1} | {kind.name: spec.times(kind.name) for kind in spec.kinds}
    return sum(
        num * kernel.model_flop
        for part, num in repeats.items() for op in ops(spec, part) for pass_ in "FBW" for kernel in op.kernels(pass_)
    )


@SPECS
def test_saved_bytes_against_autograd(spec: ModelSpec) -> None:
    """What one layer keeps for backward; the row statistics of norms are left out of the law, hence 1 %."""
    stage = Stage(spec, seq_len=SHAPE.seq_len)
    x_BSC = torch.randn(SHAPE.micro_batch, SHAPE.seq_len, spec.hidden, requires_grad=True)
    constants = {t.untyped_storage().data_ptr() for t in (*stage.parameters(), *stage.rotary)}
    saved: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        out = stage.layers["0"](x_BSC, *stage.rotary)  # held, so that no storage is freed and its address used again
    measured = sum(size for address, size in saved.items() if address not in constants)
    assert measured == pytest.approx(sum(op.saved_bytes for op in ops(spec, "layer")), rel=0.01)
    assert out.shape == x_BSC.shape


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = {"mm": "matmul", "addmm": "matmul"}.get(func.overloadpacket.__name__, func.overloadpacket.__name__)
        self.counts[kind] += 1
        return func(*args, **(kwargs or {}))


def calls_of_backward(spec: ModelSpec, recompute: str) -> Counter[str]:
    stage = Stage(replace(spec, pattern=(0,)), seq_len=32, recompute=recompute)
    x_BSC = torch.randn(1, 32, spec.hidden, requires_grad=True)
    rotary = tuple(t.detach() for t in stage.rotary)
    total = stage.layers["0"](x_BSC, *rotary).sum()
    with _Calls() as calls:
        total.backward()
    return calls.counts


@SPECS
def test_recomputation_repeats_what_it_says(spec: ModelSpec) -> None:
    """Selective repeats no matmul and no attention; full repeats all but the last matmul, whose output none needs."""
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    num_matmuls = 6 if spec.family == "gpt2" else 7
    none, selective, full = (calls_of_backward(spec, r) for r in ("none", "selective", "full"))
    assert (none["matmul"], none[attention]) == (2 * num_matmuls, 0)
    assert (selective["matmul"], selective[attention]) == (2 * num_matmuls, 0)
    assert (full["matmul"], full[attention]) == (3 * num_matmuls - 1, 1)
    assert sum(selective.values()) > sum(none.values())


@SPECS
def test_recomputation_leaves_gradients_bit_equal(spec: ModelSpec) -> None:
    ids = torch.randint(spec.vocab, (2, 32), generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in ("none", "selective", "full"):
        with torch.device("meta"):
            stage = Stage(spec, seq_len=32, recompute=recompute)
        materialise(stage, "cpu", seed=1)
        token_loss(stage(ids), ids).backward()
        gradients.append({name: p.grad for name, p in stage.named_parameters()})
    for other in gradients[1:]:
        assert all(torch.equal(gradients[0][name], other[name]) for name in gradients[0])


def test_initial_weights_follow_name_and_seed() -> None:
    weight = initial_weight("layers.0.attn.wq.weight", (64, 64), 0)
    assert torch.equal(weight, initial_weight("layers.0.attn.wq.weight", (64, 64), 0))
    assert not torch.equal(weight, initial_weight("layers.1.attn.wq.weight", (64, 64), 0))
    assert not torch.equal(weight, initial_weight("layers.0.attn.wq.weight", (64, 64), 1))
    assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(initial_weight("layers.0.attn_norm.weight", (8,), 0), torch.ones(8))
    assert torch.equal(initial_weight("layers.0.attn.wq.bias", (8,), 0), torch.zeros(8))


def test_a_tied_head_is_one_parameter_on_one_stage_and_equal_on_two() -> None:
    whole = on_meta(GPT2)
    materialise(whole, "cpu", seed=0)
    assert whole.head.weight is whole.embed.weight
    with torch.device("meta"):
        last = build_stage(GPT2, Strategy(pp=2, seq_len=64), 1)
    materialise(last, "cpu", seed=0)
    assert torch.equal(last.head.weight, whole.embed.weight)


def test_a_map_in_fp8_is_nearly_the_plain_one_and_not_it() -> None:
    """By the CPU's own `_scaled_mm`: 3 bits of fraction leave some per cent, as of gradients 2."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).bfloat16() for shape in ((2, 16, 64), (48, 64), (48,), (2, 16, 48))]
    results = []
    for apply in (kernels.linear_fp8, torch.nn.functional.linear):
        x, weight, bias = (t.clone().requires_grad_() for t in made[:3])
        out = apply(x, weight, bias)
        out.backward(made[3])
        results.append((out.detach(), x.grad, weight.grad, bias.grad))
    for narrow, plain, least in zip(*results, (1e-3, 1e-3, 1e-3, 0.0), strict=True):
        off = float((narrow - plain).abs().max() / plain.abs().max())
        assert least <= off < 0.1


def test_the_maps_of_layers_are_in_fp8_and_no_other(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = parallelise(QWEN2, Strategy(precision="fp8", seq_len=32), torch.device("cpu"), seed=0, learning_rate=1e-3)
        (stage,) = parallel.stages.values()
        narrow = [name for name, module in stage.named_modules() if isinstance(module, Fp8Linear)]
        assert narrow == [f"layers.{i}.{name}" for i in range(2) for name in
                          ("attn.wq", "attn.wk", "attn.wv", "attn.wo", "ffn.w1", "ffn.w3", "ffn.w2")]
    finally:
        torch.distributed.destroy_process_group()
