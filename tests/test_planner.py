"""The planner: its winner against brute force, its rules, its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.economics import gpu_hours, run_days
from planner.plan import plan_from_prediction, plan_from_search, read_plan, write_plan
from planner.predict import predict, predict_replayed
from planner.question import Question, ask
from planner.rules import MEMORY_RULE, RULES, first_broken, illegal_reason, same_as_another
from planner.search import NUM_REPLAYED, NUM_RUNNERS_UP, Found, search
from planner.space import Axes, axes_texts, blocks, brief_space, divisors, flat, narrowed, whole_space
from profiles.cost import cost_model
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import Cluster, load_cluster, with_num_gpus
from profiles.model import Experts, ModelSpec
from simulator.estimate import estimate
from simulator.memory import peak_memory
from simulator.schedules import SCHEDULES
from simulator.software import Software, load_software
from simulator.strategy import Strategy
from simulator.workload import build_workload

MODEL = load_model("llama-3-8b")
SPARSE = replace(
    MODEL, name="sparse", kinds=(
        replace(MODEL.kinds[0], name="dense"),
        replace(MODEL.kinds[0], name="sparse", ffn=Experts(num_experts=8, top_k=2, hidden=14336, shared_hidden=2048)),
    ), pattern=(0, 0, 1, 1),
)
"""Four layers of Llama 3 8B, two of them with experts."""


def question(cluster: Cluster, batch: int = 64, seq_len: int = 4096, model: ModelSpec = MODEL) -> Question:
    return ask(model, cluster, tokens=1e12, seq_len=seq_len, global_batch=batch)


def found(cluster: Cluster, batch: int = 64) -> Found:
    asked = question(cluster, batch)
    return search(asked, axes=brief_space(asked))


def everything(asked: Question, axes: Axes) -> list[Strategy]:
    """Return a space as batches, one for each block, pipe and way to offload."""
    return [
        replace(flat(block.grid, block.shape, np.nonzero(np.ones(block.shape))), schedule=pipe.schedule, chunks=pipe.chunks,
                layers=pipe.layers, offload=way, offload_share=share)
        for block in blocks(asked, axes) for pipe in block.pipes for way, share in block.offloads
    ]


def legal_ones(asked: Question, axes: Axes) -> list[Strategy]:
    pools = ((batch, np.flatnonzero(first_broken(batch, asked) < 0)) for batch in everything(asked, axes))
    return [batch.pick(int(i)) for batch, where in pools for i in where]


def more_memory(cluster: Cluster, times: float) -> Cluster:
    accelerator = replace(cluster.accelerator, memory_bytes=cluster.accelerator.memory_bytes * times)
    return replace(cluster, accelerator=accelerator)


@pytest.mark.parametrize(("name", "gpus", "batch", "model"), [
    ("dgx-h100:1", 8, 32, MODEL), ("dgx-a100:1", 8, 16, MODEL), ("dgx-b200:1", 4, 8, MODEL), ("dgx-h100:1", 4, 8, SPARSE),
])
def test_the_winner_is_the_best_of_a_brute_force_replay(name: str, gpus: int, batch: int, model: ModelSpec) -> None:
    q = question(with_num_gpus(load_cluster(name), gpus), batch, model=model)
    axes = brief_space(q) | {
        "schedule": tuple(SCHEDULES), "chunks": (1, 2), "fewer": ((0, 0), (0, 1)), "recompute": (("none", 1.0), ("full", 0.5)),
        "zero": ((0, 0), (1, 0), (3, 0)), "micro_batch": (1, 4), "cp": (1,),
    }
    best = search(q, axes=axes).best
    assert best is not None
    pools = [batch.pick(np.flatnonzero(first_broken(batch, q) < 0)) for batch in everything(q, axes)]
    fits = [np.broadcast_to(peak_memory(build_workload(model, pool), q.cluster.accelerator).fits, (len(pool),)) if pool.tp.size
            else [] for pool in pools]
    fitting = [pool.pick(int(i)) for pool, some in zip(pools, fits, strict=True) for i in np.flatnonzero(some)]
    assert len(fitting) > NUM_REPLAYED
    brute = min(predict_replayed(q, s)[0].step_time_s for s in fitting)
    assert best.step_time_s == pytest.approx(brute, rel=1e-12)


def test_what_is_left_out_is_the_same_as_another() -> None:
    cluster = load_cluster("dgx-h100:4")
    q = question(cluster, 64)
    axes = narrowed(whole_space(q), ["tp=1,4", "pp=1,2", "cp=1", "zero=1,3,1:8", "recompute=none", "micro_batch=1",
                                     "schedule=1F1B", "fewer=0/0", "context=ring"], q)
    left_out: dict[tuple[object, ...], set[float]] = {}
    kept: dict[tuple[object, ...], set[float]] = {}
    for one in legal_ones(q, axes):
        key = one.tp, one.pp, one.dp, one.zero
        same = first_broken(one, q, same_as_another(axes["order"]))[0] >= 0
        (left_out if same else kept).setdefault(key, set()).add(round(predict(q, one).step_time_s, 9))
    assert left_out
    for key, times in left_out.items():
        assert times <= kept[key]
    assert any(len(times) > 2 for times in kept.values())


def test_the_chosen_plan_beats_every_plan_it_lists() -> None:
    result = found(load_cluster("dgx-h100:4"), 256)
    assert result.best is not None and len(result.runners_up) == NUM_RUNNERS_UP
    times = [result.best.step_time_s, *(p.step_time_s for p in result.runners_up)]
    assert times == sorted(times)
    assert all(p.fits for p in (result.best, *result.runners_up))


def test_every_strategy_is_accounted_for() -> None:
    result = found(load_cluster("dgx-h100:2"))
    illegal = sum(n for rule, n in result.rejected.items() if rule != MEMORY_RULE)
    assert result.strategies_total == result.strategies_priced + illegal
    assert 0 < len(result.rejected_examples) <= 20
    for example in result.rejected_examples:
        assert example.reason and any(c.isdigit() for c in example.reason)
        if example.rule in {rule.name for rule in RULES}:
            assert illegal_reason(example.strategy, question(load_cluster("dgx-h100:2"))) == example.reason


@settings(max_examples=8)
@given(st.floats(1.0, 8.0), st.sampled_from(["dgx-h100:1", "dgx-a100:2"]))
def test_more_memory_never_rejects_more(times: float, name: str) -> None:
    cluster = load_cluster(name)
    small, large = found(cluster, 16), found(more_memory(cluster, times), 16)
    assert large.rejected.get(MEMORY_RULE, 0) <= small.rejected.get(MEMORY_RULE, 0)
    if small.best and large.best:
        assert large.best.step_time_s <= small.best.step_time_s * (1 + 1e-12)


@settings(max_examples=8)
@given(st.floats(1.0, 8.0))
def test_more_bandwidth_never_makes_the_best_plan_slower(times: float) -> None:
    cluster = load_cluster("dgx-h100:2")
    faster = replace(cluster, scale_out=replace(cluster.scale_out, bytes_per_s=cluster.scale_out.bytes_per_s * times))
    slow, quick = found(cluster, 32).best, found(faster, 32).best
    assert slow is not None and quick is not None
    assert quick.step_time_s <= slow.step_time_s * (1 + 1e-12)


def test_nothing_fits_where_memory_is_tiny() -> None:
    result = found(more_memory(load_cluster("dgx-h100:1"), 0.02))
    assert result.best is None
    assert result.rejected[MEMORY_RULE] == result.strategies_priced
    assert "usable on H100-SXM5-80GB" in result.rejected_examples[0].reason


def test_an_engine_that_refuses_is_heard() -> None:
    q = question(load_cluster("dgx-h100:1"))
    result = search(q, refuse=lambda s: "no tensors across ranks" if s.tp > 1 else None, axes=brief_space(q))
    assert result.best is not None and result.best.strategy.tp == 1
    assert result.rejected["the engine runs it"] > 0


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (Strategy(dp=3), "= 3, the cluster has 8 accelerators"),
        (Strategy(dp=1, tp=8, micro_batch=3), "dp 1 x micro-batch 3 = 3 does not divide the global batch of 64"),
        (Strategy(dp=1, pp=8, zero=2), "ZeRO-2 has nothing to shard over: dp x cp is 1"),
        (Strategy(dp=4, cp=4), "dp 4 x tp 1 x cp 4 x pp 1 = 16, the cluster has 8 accelerators"),
        (Strategy(dp=2, cp=4, seq_len=4100), "cp 4: the sequence of 4100 does not divide into 8 pieces"),
        (Strategy(dp=8, ep=2), "ep 2 x etp 1 does not divide 0 experts"),
        (Strategy(pp=8, chunks=2), "1F1B needs 1 chunk a rank (is 2); for this shape there are Interleaved1F1B, LoopedBFS"),
        (Strategy(dp=8, chunks=2, schedule="Interleaved1F1B"), "2 chunks a stage need pp of 2 or more (is 1)"),
        (Strategy(pp=8, chunks=2, schedule="Interleaved1F1B", num_microbatches=17),
         "Interleaved1F1B needs micro-batches in rounds of one size: 17 do not divide into 2 rounds; use a multiple of the 8"),
        (Strategy(pp=8, chunks=8, schedule="Interleaved1F1B", num_microbatches=8),
         "pp 8 x 8 chunks is more than 32 layers"),
        (Strategy(tp=8, seq_len=4100), "tp 8 does not divide the sequence of 4100"),
    ],
)
def test_an_illegal_strategy_says_why(strategy: Strategy, sentence: str) -> None:
    if strategy.seq_len == Strategy().seq_len:
        strategy = replace(strategy, seq_len=4096)
    reason = illegal_reason(strategy, question(load_cluster("dgx-h100:1")))
    assert reason is not None and sentence in reason


@pytest.mark.parametrize("strategy", [
    Strategy(dp=2, cp=4), Strategy(cp=8, zero=2), Strategy(dp=2, cp=4, context="ulysses"),
    Strategy(dp=8, zero=3, shard_group=4),
    Strategy(pp=8, chunks=4, schedule="Interleaved1F1B", num_microbatches=64), Strategy(tp=8, sequence_parallel=False),
    # 34 virtual stages: the embedding and the head have one each (arXiv 2407.21783, section 3.3.2)
    Strategy(dp=4, pp=2, chunks=17, schedule="Interleaved1F1B", num_microbatches=16),
])
def test_what_the_rules_let_pass(strategy: Strategy) -> None:
    assert illegal_reason(replace(strategy, seq_len=4096), question(load_cluster("dgx-h100:1"))) is None


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (Strategy(dp=8, ep=8), None), (Strategy(dp=2, tp=2, cp=2, ep=8), None), (Strategy(tp=4, dp=2, ep=4, etp=2), None),
        (Strategy(dp=4, pp=2, ep=4), None),
        # the pipeline's ranks hold other layers: experts cannot lie over them
        (Strategy(dp=4, pp=2, ep=8), "ep 8 x etp 1 does not divide 8 experts and tp x cp x dp = 4 ranks"),
        (Strategy(dp=8, ep=8, etp=2), "ep 8 x etp 2 does not divide 8 experts and tp x cp x dp = 8 ranks"),
        (Strategy(dp=8, ep=3), "ep 3 x etp 1 does not divide 8 experts"),
    ],
)
def test_experts_lie_over_the_ranks_of_a_stage(strategy: Strategy, sentence: str | None) -> None:
    reason = illegal_reason(replace(strategy, seq_len=4096), question(load_cluster("dgx-h100:1"), model=SPARSE))
    assert reason == sentence if sentence is None else reason is not None and sentence in reason


def test_the_space_of_a_mixture_of_experts_has_every_ep() -> None:
    cluster = load_cluster("dgx-h100:2")
    q = question(cluster, model=SPARSE)
    axes, plain = brief_space(q), brief_space(question(cluster))
    assert axes["ep"] == (1, 2, 4, 8) and plain["ep"] == (1,) == plain["etp"]
    pool = legal_ones(q, axes)
    assert {s.ep for s in pool} == {1, 2, 4, 8}
    assert all(s.dp * s.tp * s.cp % s.ep == 0 for s in pool)
    best = search(q, axes=axes).best
    assert best is not None and best.strategy.ep > 1


@pytest.mark.parametrize("model", [MODEL, SPARSE], ids=lambda m: m.name)
def test_rules_agree_on_batches_and_members(model: ModelSpec) -> None:
    q = question(load_cluster("dgx-h100:1"), model=model)
    asked_of = 0
    axes = whole_space(q) | {"order": ("", "dp-tp-cp-pp"), "micro_batch": (1, 4, 64)}
    for batch in everything(q, axes)[:: 17 if model is MODEL else 31]:
        broken = first_broken(batch, q)
        for i in range(0, len(batch), 97):
            reason = illegal_reason(batch.pick(i), q)
            assert (reason is None) == (broken[i] < 0)
            asked_of += 1
            if reason is not None:
                assert reason == RULES[int(broken[i])].reason(batch.pick(i), q)
    assert asked_of > 100


@pytest.mark.parametrize("model", [MODEL, SPARSE], ids=lambda m: m.name)
def test_rules_agree_on_grids_and_batches(model: ModelSpec) -> None:
    q = question(load_cluster("dgx-h100:2"), model=model)
    for block in list(blocks(q, whole_space(q) | {"order": ("", "cp-tp-dp-pp")}))[::3]:
        rows = flat(block.grid, block.shape, np.nonzero(np.ones(block.shape)))
        assert (first_broken(block.grid, q, shape=block.shape).ravel() == first_broken(rows, q)).all()


@pytest.mark.parametrize(("given_", "message"), [
    ("tq=1", "search: 'tq' is no axis"), ("tp", "search: 'tp' names no values"), ("tp=two", "search: tp: 'two' is no value of"),
    ("schedule=2F2B", "search: schedule '2F2B' is not known"), ("recompute=half", "search: recompute 'half' is not known"),
    ("order=tp-dp", "order: 'tp-dp' must name each of"),
])
def test_an_axis_that_cannot_be_searched(given_: str, message: str) -> None:
    q = question(load_cluster("dgx-h100:1"))
    with pytest.raises(BadInput) as e:
        narrowed(whole_space(q), [given_], q)
    assert str(e.value).startswith(message)


@pytest.mark.parametrize("model", [MODEL, SPARSE], ids=lambda m: m.name)
def test_a_space_reads_back_from_its_texts(model: ModelSpec) -> None:
    q = question(load_cluster("dgx-h100:2"), model=model)
    texts = [f"{name}={','.join(values)}" for name, values in axes_texts(whole_space(q)).items()]
    assert narrowed(brief_space(q), texts, q) == whole_space(q)


def test_a_space_can_be_narrowed() -> None:
    q = question(load_cluster("dgx-h100:2"))
    axes = narrowed(whole_space(q), ["zero=1,3:8", "recompute=full:0.5", "fewer=1/1", "order=tp-cp-dp-pp,dp-tp-cp-pp",
                                     "global_batch=32,48"], q)
    assert axes["zero"] == ((1, 0), (3, 8)) and axes["recompute"] == (("full", 0.5),) and axes["fewer"] == ((1, 1),)
    assert axes["order"] == ("", "dp-tp-cp-pp") and 3 in axes["micro_batch"]
    best = search(q, axes=axes | {"cp": (1,), "schedule": ("1F1B",)})
    assert best.best is not None and best.question.global_batch in (32, 48)
    assert best.best.strategy.global_batch == best.question.global_batch
    batches = {p.strategy.global_batch for p in best.runners_up}
    assert batches <= {32, 48}


@given(st.integers(1, 5000))
def test_divisors(n: int) -> None:
    assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]


def test_days_and_hours() -> None:
    """1e12 tokens at 1e6 tokens a step and 1 s a step are 1e6 s: 11.57 days."""
    days = run_days(1e12, 1e6, 1.0)
    assert days == pytest.approx(1e6 / 86400)
    assert gpu_hours(days, 128) == pytest.approx(days * 24 * 128)


def test_a_cluster_without_price_plans_and_says_so() -> None:
    cluster = load_cluster("dgx-h100:1")
    unknown = replace(cluster, accelerator=replace(cluster.accelerator, name="mine"))
    best = search(question(unknown), axes=brief_space(question(unknown))).best
    assert best is not None and best.usd is None and best.gpu_hours > 0


def test_a_plan_file_reads_back_and_repeats_byte_for_byte(tmp_path: Path) -> None:
    q = question(load_cluster("dgx-h100:1"))
    named = replace(q, cluster_text="dgx-h100:1")
    first, again = (write_plan(plan_from_search(named, search(q, axes=brief_space(q))), tmp_path / f"{name}.yaml")
                    for name in "ab")
    assert first.read_bytes() == again.read_bytes()
    plan = read_plan(first)
    assert write_plan(plan, tmp_path / "c.yaml").read_bytes() == first.read_bytes()
    again = predict_replayed(plan.question, plan.strategy)[0]
    assert again.step_time_s == pytest.approx(plan.prediction["step_time_s"], rel=1e-6)


UNUSUAL = Strategy(
    dp=8, tp=1, cp=2, pp=2, ep=4, etp=2, zero=2, shard_group=4, sequence_parallel=False, recompute="full",
    recompute_share=0.5, precision="fp8-block", context="all_gather", schedule="Interleaved1F1B", chunks=2, micro_batch=2,
    num_microbatches=2, seq_len=2048, imbalance=1.25,
    software=Software(name="mine", framework="Mine", year=2025, kernels="fused", attention="flash2", dropout=True,
                      host_launch_s=4e-6, grad_bytes=2.0, moment_bytes=4.0, selective="attention", keeps_gathered=False),
)


def test_an_unusual_plan_reads_back_whole(tmp_path: Path) -> None:
    """Nested blocks, a pattern of layers, and software with fields of its own."""
    asked = ask(SPARSE, load_cluster("dgx-h100:4"), tokens=1e12, cluster_text="dgx-h100:4", seq_len=2048, global_batch=32,
                precision="fp8-block", software=UNUSUAL.software)
    first = write_plan(plan_from_prediction(asked, predict(asked, UNUSUAL), None), tmp_path / "a.yaml")
    plan = read_plan(first)
    assert plan.strategy == UNUSUAL and plan.question.model == SPARSE and plan.question == asked
    assert write_plan(plan, tmp_path / "b.yaml").read_bytes() == first.read_bytes()
    assert predict(plan.question, plan.strategy) == predict(asked, UNUSUAL)


def test_a_plan_may_name_its_software(plan_text: str, tmp_path: Path) -> None:
    data = yaml.safe_load(plan_text)
    own = Software(name="given", kernels="fused", moment_bytes=4)
    for given_, expected in (("megatron-lm-2024", load_software("megatron-lm-2024")),
                             ({"kernels": "fused", "moment_bytes": 4}, own)):
        data["strategy"]["software"] = given_
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(data))
        plan = read_plan(tmp_path / "plan.yaml")
        assert plan.strategy.software == plan.question.software == expected


def test_given_kernels_replace_those_of_the_software() -> None:
    software = load_software("megatron-lm-2024")
    assert software.kernels == "fused"
    asked = ask(MODEL, load_cluster("dgx-h100"), tokens=1e12, software=software, kernels="eager")
    assert asked.software == replace(software, kernels="eager")


@pytest.fixture(scope="module")
def plan_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    q = replace(question(load_cluster("dgx-h100:1")), cluster_text="dgx-h100:1")
    found_ = search(q, axes=brief_space(q))
    return write_plan(plan_from_search(q, found_), tmp_path_factory.mktemp("plan") / "a.yaml").read_text()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("strategy", "software", "speed"), 1, "strategy: software.speed: is not known"),
        (("strategy", "software", "attention"), "flash9", "strategy: software: attention: Input should be"),
        (("strategy", "software"), "megatron-1999", "software: 'megatron-1999' is neither in the catalogue"),
        (("strategy", "software"), [1], "strategy: software: must be a catalogue name or a mapping (is [1])"),
        (("strategy", "context"), "mail", "strategy.context: must be one of ring, all_gather, ulysses"),
        (("strategy", "imbalance"), 0.5, "strategy.imbalance: Input should be greater than or equal to 1"),
        (("strategy", "chunks"), 2, "2 chunks a stage need"),
        (("strategy", "schedule"), "ZBX", "strategy.schedule: must be one of 1F1B, GPipe, Interleaved1F1B"),
        (("strategy", "precision"), "fp12", "strategy.precision: must be one of"),
        (("question", "model", "pattern"), [0, 7], "pattern: must name a kind of layer by its index"),
        (("question", "model", "kinds", 0, "ffn", "hidden"), 0, "hidden: must be a whole number of at least 1"),
        (("question", "model", "kinds", 0, "ffn", "activation"), "tanh", "activation: 'tanh' is not known"),
        (("question", "model", "kinds", 0, "mixer", "num_kv_heads"), 3, "3 key-value heads do not divide 32 heads"),
        (("question", "model", "speed"), 1, "question.model.speed: is not a field"),
        (("strategy", "dp"), 3, "strategy: dp 3 x tp"),
        (("strategy", "zero"), 7, "strategy.zero: Input should be less than or equal to 3"),
        (("strategy", "recompute"), "some", "strategy.recompute: must be one of none, selective, full"),
        (("strategy", "speed"), 1, "strategy.speed: Extra inputs are not permitted"),
        (("question", "tokens"), -1, "question.tokens: Input should be greater than 0"),
        (("question", "model", "hidden"), 0, "hidden: must be a whole number of at least 1"),
        (("question", "model", "family"), "x", "family: 'x' is not known"),
        (("question", "cluster"), "dgx-x", "cluster: 'dgx-x' is neither in the catalogue"),
        (("schema",), "headway.plan/9", "schema: is 'headway.plan/9'"),
    ],
)
def test_a_plan_that_a_person_broke(
    plan_text: str, tmp_path: Path, path: tuple[str | int, ...], value: object, message: str
) -> None:
    file, data = tmp_path / "a.yaml", yaml.safe_load(plan_text)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(BadInput) as caught:
        read_plan(file)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"tokens": 0.0}, "tokens: must be more than zero"), ({"seq_len": 9999}, "seq_len: must be from 1 to"),
        ({"seq_len": 0}, "seq_len: must be from 1 to"), ({"global_batch": 0}, "global_batch: must be at least 1"),
    ],
)
def test_a_question_that_is_none(given_: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ask(MODEL, load_cluster("dgx-h100:1"), **({"tokens": 1e12} | given_))  # type: ignore[arg-type]


def test_regret_where_a_space_is_too_large_to_replay() -> None:
    """Of the strategies that fit, the hundred that closed form puts first and a hundred others are replayed."""
    q = question(load_cluster("dgx-h100:2"), 64)
    axes = brief_space(q) | {"schedule": tuple(SCHEDULES), "micro_batch": (1, 2, 4)}
    result = search(q, axes=axes)
    assert result.best is not None and result.strategies_priced > 1000
    pools = [batch.pick(np.flatnonzero(first_broken(batch, q) < 0)) for batch in everything(q, axes)]
    priced: list[tuple[float, Strategy]] = []
    for pool in pools:
        if pool.tp.size:
            workload = build_workload(MODEL, pool)
            fits = np.broadcast_to(peak_memory(workload, q.cluster.accelerator).fits, (len(pool),))
            seconds = np.broadcast_to(estimate(workload, cost_model(q.cluster)).step_time_s, (len(pool),))
            priced += [(float(seconds[i]), pool.pick(int(i))) for i in np.flatnonzero(fits)]
    priced.sort(key=lambda pair: pair[0])
    rest = priced[100 :: max(1, len(priced) // 100)]
    best = min(predict_replayed(q, s)[0].step_time_s for _, s in [*priced[:100], *rest])
    assert result.best.step_time_s <= best * (1 + 1e-12)
