"""Megatron-LM's arguments: scripts are followed, models and layouts are those of the catalogue and of published runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from planner.readers import Reading, completed, read_config, software_of
from planner.readers.shell import launch_of
from profiles.families import load_model, num_params
from profiles.files import BadInput
from profiles.hardware import load_cluster
from profiles.model import FeedForward, ModelSpec
from reports.published import measured_peak_bytes, strategy_of
from reports.published_model import model_of
from reports.rows import Row, chosen, read_rows
from simulator.memory import peak_memory
from simulator.strategy import Strategy
from simulator.workload import build_workload

DEFAULTS = {"dp": None, "tp": 1, "cp": 1, "pp": 1, "global_batch": None, "sequence_parallel": True, "shard_group": 0}

LLAMA = """
--num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 --group-query-attention
--num-query-groups 8 --seq-length 8192 --max-position-embeddings 8192 --position-embedding-type rope --swiglu
--normalization RMSNorm --untie-embeddings-and-output-weights --disable-bias-linear --vocab-size 128256
--attention-dropout 0 --hidden-dropout 0 --micro-batch-size 2 --global-batch-size 128 --bf16 --lr 3e-4
--tensor-model-parallel-size 2 --pipeline-model-parallel-size 4 --sequence-parallel --use-distributed-optimizer
"""

SCRIPT = r"""#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=1
TP=2; PP=${PP_SIZE:-4}
NNODES=2
GPUS_PER_NODE=8
WORLD=$(($GPUS_PER_NODE*$NNODES))   # unused here
SIZE="8B"
if [[ $SIZE == "8B" && $TP -le 4 ]]; then
    HIDDEN=4096
    HEADS=32
elif [ "$SIZE" = "70B" ]; then
    HIDDEN=8192; HEADS=64
fi
case $SIZE in
    70B) FFN=28672 ;;
    8B|8b) FFN=14336 ;;
esac
if [ -n "${EXTRA_RECOMPUTE}" ]; then
    RECOMPUTE="--recompute-granularity full"
fi
LAUNCHER=(--nproc_per_node $GPUS_PER_NODE --nnodes $NNODES)
MODEL=(
    --num-layers 32 --hidden-size $HIDDEN --ffn-hidden-size ${FFN}   # of Llama 3
    --num-attention-heads $HEADS --group-query-attention --num-query-groups $((HEADS / 4))
#   --qk-layernorm
    "--seq-length 8192" --max-position-embeddings 8192 --position-embedding-type rope
    --swiglu --normalization RMSNorm --untie-embeddings-and-output-weights --disable-bias-linear --vocab-size=128256
)
MODEL+=(--attention-dropout 0 --hidden-dropout 0)
TRAIN="--micro-batch-size 2 --global-batch-size 128 \
       --bf16 --lr 3e-4"
torchrun ${LAUNCHER[@]} pretrain_gpt.py "${MODEL[@]}" $TRAIN $RECOMPUTE \
    --tensor-model-parallel-size=$TP \
    --pipeline-model-parallel-size ${PP} \
    --sequence-parallel --use_distributed_optimizer 2>&1 | tee log.txt
"""

AS_YAML = """
MODEL_ARGS:
  --num-layers: 32
  --hidden-size: 4096
  --ffn-hidden-size: 14336
  --num-attention-heads: 32
  --group-query-attention: true
  --num-query-groups: 8
  --seq-length: 8192
  --max-position-embeddings: 8192
  --position-embedding-type: rope
  --swiglu: true
  --normalization: RMSNorm
  --untie-embeddings-and-output-weights: true
  --disable-bias-linear: true
  --vocab-size: 128256
  --attention-dropout: 0.0
  --hidden-dropout: 0.0
  --micro-batch-size: 2
  --global-batch-size: 128
  --bf16: true
  --lr: 3e-4
  --tensor-model-parallel-size: 2
  --pipeline-model-parallel-size: 4
  --sequence-parallel: true
  --use-distributed-optimizer: true
"""

CLASSES = """
model: {num_layers: 32, hidden_size: 4096, ffn_hidden_size: 14336, num_attention_heads: 32, group_query_attention: true,
        num_query_groups: 8, seq_length: 8192, max_position_embeddings: 8192, position_embedding_type: rope,
        gated_linear_unit: true, normalization: RMSNorm, share_embeddings_and_output_weights: false, add_bias_linear: false,
        vocab_size: 128256, attention_dropout: 0.0, hidden_dropout: 0.0, tensor_model_parallel_size: 2,
        pipeline_model_parallel_size: 4, sequence_parallel: true, bf16: true, virtual_pipeline_model_parallel_size: null}
train: {micro_batch_size: 2, global_batch_size: 128}
optimizer: {lr: 3.0e-4, use_distributed_optimizer: true}
"""


def reading(text: str, tmp_path: Path, name: str = "run.txt", with_model: bool = True) -> Reading:
    (tmp_path / name).write_text(text)
    return read_config(tmp_path / name, with_model)


def same_run(a: Reading, b: Reading) -> None:
    assert a.options == b.options and a.changes == b.changes
    assert a.model is not None and b.model is not None
    assert replace(a.model, name="", source="") == replace(b.model, name="", source="")


@pytest.mark.parametrize(("text", "name"), [(SCRIPT, "train.sh"), (AS_YAML, "args.yaml"), (CLASSES, "bridge.yaml"),
                                            (LLAMA.replace(" 2 ", "=2 "), "list.txt")])
def test_all_ways_to_write_a_run_are_one_run(text: str, name: str, tmp_path: Path) -> None:
    plain = reading(LLAMA, tmp_path)
    same_run(reading(text, tmp_path, name), plain)
    assert plain.options | {"tp": 2, "pp": 4, "zero": 1, "micro_batch": 2, "global_batch": 128, "seq_len": 8192,
                            "precision": "bf16", "sequence_parallel": True} == plain.options
    assert plain.ignored == ("--lr",) and plain.unknown == ()


def test_a_script_says_how_many_it_starts_and_what_was_not_decided(tmp_path: Path) -> None:
    assert reading(SCRIPT, tmp_path, "train.sh").num_gpus == 16
    undecided = SCRIPT.replace('if [ -n "${EXTRA_RECOMPUTE}" ]', 'if [[ $MODE == deep ]]')
    found = reading(undecided, tmp_path, "train.sh")
    assert any("$MODE == deep" in note for note in found.notes)
    assert "recompute" not in found.options
    taken = SCRIPT.replace('if [ -n "${EXTRA_RECOMPUTE}" ]', 'if [ $((TP * 4)) -ge 8 ] || [ $SIZE != 8B ]')
    assert reading(taken, tmp_path, "train.sh").options["recompute"] == "full"


@pytest.mark.parametrize(("text", "words"), [
    ("A=1\nA=2\npython x.py --k $A", ["--k", "2"]),
    ("O='--a $B'\nB=3\npython x.py $O --b \"$B\"", ["--a", "$B", "--b", "3"]),
    ("A=5 B=6 python -u dir/x.py --k=${A}  # --no\n", ["--k=5"]),
    ("X=(1\n 2 # two\n)\npython x.py --k ${X[@]} && echo done", ["--k", "1", "2"]),
    ("N=${1:-7}\npython x.py --k $N --l $2", ["--k", "7", "--l", "$2"]),
    ("CMD=\"torchrun x.py --k 1\"\neval $CMD", ["--k", "1"]),
    ("if [ 1 -eq 2 ]; then\nK=1\nelse K=2; fi; python x.py --k $K", ["--k", "2"]),
    ("if [[ a == b ]]; then K=1; if true; then K=3; fi; else K=2; fi\npython x.py --k $K", ["--k", "2"]),
    ("--a 1 \\\n --b 2", ["--a", "1", "--b", "2"]),
    ("export ARGS=\" --a 1 \\\n --b 2\"", ["--a", "1", "--b", "2"]),
])
def test_shells_words(text: str, words: list[str]) -> None:
    assert list(launch_of(text).words) == words


EXPERTS = LLAMA + "--num-experts 8 --moe-router-topk 2 --expert-model-parallel-size 8 --moe-token-dispatcher-type alltoall "


def test_models_have_the_catalogues_parameters(tmp_path: Path) -> None:
    def params(text: str) -> int:
        model = reading(text, tmp_path).model
        assert model is not None
        return num_params(model)

    assert params(LLAMA) == num_params(load_model("llama-3-8b"))
    mixtral = EXPERTS.replace("128256", "32000")
    assert params(mixtral) == num_params(load_model("mixtral-8x7b"))
    # without a width: 8/3 of the hidden size where there is a gate, down to a multiple of 64
    narrow = reading(LLAMA.replace("--ffn-hidden-size 14336", ""), tmp_path).model
    assert narrow is not None and isinstance(narrow.kinds[0].ffn, FeedForward) and narrow.kinds[0].ffn.hidden == 10880
    gpt = ("--num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048 --max-position-embeddings 2048 "
           "--micro-batch-size 1 --fp16 --tensor-model-parallel-size 8 --vocab-size 51200")
    assert params(gpt) == num_params(load_model("gpt3-175b"))
    assert params(gpt.replace("--vocab-size 51200", "--merge-file m.txt")) == num_params(load_model("gpt3-175b"))
    # DeepSeek-V3 has a dense model's width in its first three layers
    latent = ("--num-layers 61 --hidden-size 7168 --ffn-hidden-size 18432 --num-attention-heads 128 --multi-latent-attention "
              "--q-lora-rank 1536 --kv-lora-rank 512 --qk-head-dim 128 --qk-pos-emb-head-dim 64 --v-head-dim 128 --swiglu "
              "--num-experts 256 --moe-router-topk 8 --moe-ffn-hidden-size 2048 --moe-shared-expert-intermediate-size 2048 "
              "--moe-layer-freq ([0]*3+[1]*58) --moe-router-enable-expert-bias --normalization RMSNorm --disable-bias-linear "
              "--position-embedding-type rope --untie-embeddings-and-output-weights --vocab-size 129280 --seq-length 4096 "
              "--max-position-embeddings 4096 --micro-batch-size 1 --bf16 --mtp-num-layers 1")
    assert params(latent) == num_params(load_model("deepseek-v3"))


@pytest.mark.parametrize(("added", "field", "value"), [
    ("--recompute-activations", "recompute", "selective"), ("--recompute-granularity full", "recompute", "full"),
    ("--recompute-granularity full --recompute-method block --recompute-num-layers 2", "recompute_share", 0.25),
    ("--num-layers-per-virtual-pipeline-stage 2", "chunks", 4), ("--num-virtual-stages-per-pipeline-rank 2", "chunks", 2),
    ("--num-virtual-stages-per-pipeline-rank 2", "schedule", "Interleaved1F1B"),
    ("--fp8-format hybrid", "precision", "fp8"), ("--fp8-format e4m3 --fp8-recipe blockwise", "precision", "fp8-block"),
    ("--fp8-format e4m3 --fp8-recipe mxfp8", "precision", "mxfp8"), ("--fp4-format e2m1", "precision", "nvfp4"),
    ("--context-parallel-size 2 --cp-comm-type a2a", "context", "ulysses"),
    ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params", "zero", 3),
    ("--decoder-first-pipeline-num-layers 7 --decoder-last-pipeline-num-layers 5", "layers", "7-10-10-5"),
    ("--use-tp-pp-dp-mapping", "order", "tp-cp-pp-dp"), ("--num-experts 8", "etp", 2),
])
def test_options(added: str, field: str, value: object, tmp_path: Path) -> None:
    assert reading(LLAMA + added, tmp_path).options[field] == value


@pytest.mark.parametrize(("added", "changes"), [
    ("--overlap-grad-reduce --overlap-param-gather", {"grad_reduce": True, "param_gather": True}),
    ("", {"grad_reduce": False, "param_gather": False, "dropout": False, "pp_overlap": False}),
    ("--grad-reduce-in-bf16", {"grad_bytes": 2.0, "reduce_bytes": 2.0}),
    ("--use-precision-aware-optimizer --exp-avg-dtype bf16 --exp-avg-sq-dtype bf16 --main-params-dtype fp16",
     {"master_bytes": 2.0, "moment_bytes": 4.0}),
    ("--hidden-dropout 0.1", {"dropout": True}), ("--attention-backend unfused", {"attention": "unfused"}),
    ("--recompute-granularity selective --recompute-modules core_attn mlp", {"repeats": "core_attn,mlp"}),
    ("--cuda-graph-impl local --cuda-graph-scope attn", {"graphs": "dense"}), ("--tp-comm-overlap", {"tp_overlap": True}),
])
def test_software(added: str, changes: dict[str, object], tmp_path: Path) -> None:
    found = reading(LLAMA + added, tmp_path)
    assert changes.items() <= found.changes.items()
    software = software_of(found, None, "bf16")
    assert all(getattr(software, name) == value for name, value in found.changes.items())


@pytest.mark.parametrize(("text", "parts"), [
    (LLAMA + "--cpu-offloading", ("--cpu-offloading", "offload", "take it out")),
    (LLAMA + "--optimizer muon", ("--optimizer", "muon", "adam")),
    (LLAMA + "--hybrid-override-pattern M-M", ("--hybrid-override-pattern", "name the model")),
    (LLAMA.replace("--vocab-size 128256", ""), ("--vocab-size", "not stated")),
    (LLAMA.replace("--hidden-size 4096", ""), ("--hidden-size", "missing")),
    (LLAMA.replace("size 2 ", "size $TP "), ("$TP", "not set")),
    (LLAMA + "--moe-layer-freq [1]*5 --num-experts 8", ("--moe-layer-freq", "32 layers")),
    (LLAMA + "--num-layers-per-virtual-pipeline-stage 3", ("--num-layers-per-virtual-pipeline-stage", "32")),
    (LLAMA + "--decoder-first-pipeline-num-layers 6", ("--decoder-first-pipeline-num-layers", "--layers")),
    (LLAMA.replace("--num-layers 32", "--num-layers many"), ("--num-layers", "'many'")),
    ("echo nothing here", ("no arguments of Megatron-LM",)),
])
def test_mistakes_are_one_line_that_names_the_argument(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(BadInput) as e:
        reading(text, tmp_path)
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


def test_the_model_need_not_be_stated_where_it_is_named(tmp_path: Path) -> None:
    text = LLAMA.replace("--vocab-size 128256", "").replace("--hidden-size 4096", "")
    found = reading(text, tmp_path, with_model=False)
    assert found.model is None and found.unknown == () and found.options["tp"] == 2


def arguments(row: Row) -> str:
    """Return a published row as arguments, by their meaning in Megatron-LM's manual."""
    gated, tp, vpp = row.flag("gated_mlp"), row.whole("tp") or 1, row.whole("vpp") or 1
    said = {
        "num-layers": "n_layers", "hidden-size": "hidden", "num-attention-heads": "n_heads", "seq-length": "seq_len",
        "max-position-embeddings": "seq_len", "padded-vocab-size": "vocab", "micro-batch-size": "micro_batch",
        "global-batch-size": "global_batch", "tensor-model-parallel-size": "tp", "pipeline-model-parallel-size": "pp",
        "context-parallel-size": "cp", "kv-channels": "head_dim", "ffn-hidden-size": "ffn_hidden",
    }
    words = [f"--{name} {row.text(column)}" for name, column in said.items() if row.text(column)]
    words.append(f"--group-query-attention --num-query-groups {row.text('n_kv_heads') or row.text('n_heads')}")
    words.append("--swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear "
                 "--untie-embeddings-and-output-weights" if gated else "")
    words += ["--bf16", "--fp8-format hybrid" if row.text("precision").startswith("fp8") else ""]
    words.append("--use-distributed-optimizer" if row.text("zero_stage") == "1" else "")
    words.append("--sequence-parallel" if row.flag("sequence_parallel") and tp > 1 else "")
    words.append(f"--num-virtual-stages-per-pipeline-rank {vpp}" if vpp > 1 else "")
    words.append({"none": "", "selective": "--recompute-activations", "full": "--recompute-granularity full"}[
        row.text("recompute")])
    return " ".join(words)


def test_published_runs_are_read_as_they_are_validated(shared: Path, tmp_path: Path) -> None:
    """Rows of Megatron's family, written as arguments, give the layout and the parameters that `validate` prices."""
    checked = 0
    for row in chosen(read_rows(shared / "published" / "runs.csv"), ["source=*Megatron*"]):
        dense = row.text("attn_type") in ("mha", "gqa") and (row.whole("n_experts") or 1) == 1
        if row.text("full_strategy") != "1" or not dense or row.text("precision") not in ("bf16", "fp8") or \
                (row.whole("zero_stage") or 0) > 1 or row.text("recompute_detail"):
            continue
        found, expected, model = reading(arguments(row), tmp_path), strategy_of(row), model_of(row)
        values = completed(found, {}, DEFAULTS, row.whole("n_gpus") or 1)
        for name in ("tp", "pp", "cp", "zero", "chunks", "micro_batch", "seq_len", "precision"):
            assert values[name] == getattr(expected, name), (row.id, name)
        assert values["global_batch"] == expected.global_batch, row.id
        assert found.model is not None
        if row.whole("vocab") == model.vocab and not model.tied_embeddings:
            assert num_params(found.model) == pytest.approx(num_params(model), rel=1e-4), row.id
        checked += 1
    assert checked >= 8


MEMORY_TESTS = """
--num-layers 32 --hidden-size 4096 --num-attention-heads 32 --group-query-attention --num-query-groups 8
--untie-embeddings-and-output-weights --global-batch-size 8 --seq-length 8192 --max-position-embeddings 8192
--tokenizer-type NullTokenizer --vocab-size 131073 --transformer-impl transformer_engine --use-distributed-optimizer
--overlap-grad-reduce --overlap-param-gather --no-gradient-accumulation-fusion --bf16
"""
"""What Megatron-LM's two memory tests of a 7B model have in common (tests/functional_tests/test_cases/gpt, 2026)."""


@pytest.mark.parametrize(("own", "id_"), [
    ("--micro-batch-size 1 --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 1", "R1528"),
    ("--micro-batch-size 2 --tensor-model-parallel-size 4", "R1529"),
])
def test_memory_of_megatrons_own_tests(own: str, id_: str, shared: Path, tmp_path: Path) -> None:
    """Arguments of tests whose allocated peak is published: within 4 per cent of it."""
    row = next(r for r in read_rows(shared / "published" / "runs.csv") if r.id == id_)
    found = reading(MEMORY_TESTS + own, tmp_path)
    values = completed(found, {}, DEFAULTS, 8)
    names = ("tp", "pp", "zero", "sequence_parallel", "chunks", "schedule", "micro_batch", "seq_len", "precision")
    dp = 8 // (values["tp"] * values["pp"])
    strategy = Strategy(dp=dp, num_microbatches=8 // dp // values["micro_batch"], software=software_of(found, None, "bf16"),
                        **{name: values[name] for name in names})
    assert isinstance(found.model, ModelSpec)
    parts = peak_memory(build_workload(found.model, strategy), load_cluster("dgx-h100:1").accelerator).parts_bytes
    # what the allocator holds: neither the driver's share nor what it reserves beyond
    allocated = sum(float(v) for name, v in parts.items() if name not in ("framework", "slack"))
    assert allocated == pytest.approx(measured_peak_bytes(row), rel=0.04)
