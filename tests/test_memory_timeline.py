"""Memory over time against the table's own count, the closed form of the peak, torch, and by hand."""

from __future__ import annotations

import gc
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from held_laws import most_held
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from live_storages import live_storages
from replay_cases import CLUSTER, COST, IN_LINE, MODEL, SPARSE, strategy_of

from headway import main
from profiles.cost import CostModel
from profiles.model import ModelSpec
from reports.memory_peaks import peaks_json, peaks_table
from simulator.condition import healthy, with_slow
from simulator.layout import stage_parts
from simulator.memory import peak_memory, rank_memory
from simulator.memory_timeline import MemoryTimeline, closed_form, memory_timeline
from simulator.part_bytes import part_bytes
from simulator.replay import play, rank_names, timeline_of
from simulator.schedules import SCHEDULES, Table, build_schedule, homes, parse_table, passes, rank_stages, stage_rank
from simulator.software import Software, load_software
from simulator.strategy import OFFLOAD, Strategy
from simulator.timeline import chrome_trace
from simulator.workload import Workload, build_workload

H100 = CLUSTER.accelerator
PLAIN = Software(name="plain", pipe_buffers=False, keeps_graph=False, late_gradients=False)
SOFTWARE = (Software(), Software(kernels="fused"), PLAIN, replace(PLAIN, name="keeps sent", keeps_sent=True),
            *map(load_software, ("internevo-2023", "megatron-deepspeed-2022", "megatron-lm-2024")))
KEPT = ("weights", "gradients", "optimizer", "buckets", "framework", "slack")
"""What may be there before a step and when it is done."""


def cut(model: ModelSpec, num_layers: int) -> ModelSpec:
    return replace(model, pattern=model.pattern[:num_layers])


class Case(NamedTuple):
    """A strategy and a model cut to so many layers."""

    strategy: Strategy
    model: ModelSpec
    num_layers: int

    def __repr__(self) -> str:
        return f"{self.model.name} of {self.num_layers} layers, {self.strategy.describe()}, {self.strategy.software.name}"

    @property
    def workload(self) -> Workload:
        return build_workload(cut(self.model, self.num_layers), self.strategy)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any schedule with its stages, on a dense model or one whose first layers are others than the rest."""
    name, p = draw(st.sampled_from(sorted(SCHEDULES))), draw(st.sampled_from([2, 3, 4]))
    v = SCHEDULES[name].chunks or draw(st.sampled_from([1, 2, 3]))
    m = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    assume(SCHEDULES[name].suits(p, m, v))
    if draw(st.integers(0, 5)) == 0:
        name, p, v = "1F1B", 1, 1
    strategy = Strategy(
        dp=8, pp=p, chunks=v, schedule=name, num_microbatches=m, zero=draw(st.integers(0, 3)), seq_len=1024,
        recompute=draw(st.sampled_from(["none", "selective", "full"])), software=draw(st.sampled_from(SOFTWARE)),
        recompute_share=draw(st.sampled_from([1.0, 0.5])), offload=draw(st.sampled_from(["none", *OFFLOAD])),
    )
    return Case(strategy, draw(st.sampled_from([MODEL, SPARSE])), draw(st.sampled_from([12, 15])))


def held_over_time(workload: Workload, cost: CostModel = COST, table: Table | None = None) -> MemoryTimeline:
    return memory_timeline(play(workload, cost, table=table), H100)


def levels(rows: pd.DataFrame, rank: int) -> pd.DataFrame:
    """Return what a rank holds at each time at which something changes, a column for each kind."""
    own = rows[rows["rank"] == rank]
    return own.pivot(index="time_s", columns="kind", values="bytes").sort_index().ffill().fillna(0.0)


def activations(table: pd.DataFrame) -> pd.Series[Any]:
    return table[[kind for kind in table if str(kind).startswith("activations")]].sum(axis=1)


def stage_bytes(workload: Workload, num_stages: int, field: str) -> list[float]:
    """Return what a micro-batch in each stage holds, each part rounded to whole bytes."""
    strategy = workload.strategy
    parts = stage_parts(workload.model, int(strategy.pp), num_stages // int(strategy.pp), strategy.software.layer_split)
    return [sum(num * round(float(getattr(part_bytes(workload, part), field))) for part, num in stage) for stage in parts]


def table_of(strategy: Strategy) -> Table:
    name = str(strategy.schedule) if strategy.pp > 1 else "1F1B"
    return build_schedule(name, int(strategy.pp), int(strategy.num_microbatches), int(strategy.chunks))


# ---- activations are what the table holds


@settings(max_examples=40)
@given(cases())
def test_activations_are_those_that_the_table_holds(case: Case) -> None:
    """The most over time, and what is there at the end of each action, counted in the table."""
    workload = case.workload
    step = play(workload, COST)
    memory, table = memory_timeline(step, H100), step.table
    whole, rest = (stage_bytes(workload, len(homes(table)), field) for field in ("saved", "deferred"))
    most = most_held(table, whole, rest)
    for place, rank in enumerate(step.ranks[0]):
        over_time = activations(levels(memory.rows, rank))
        assert over_time.max() == most[place]
        held = 0.0
        for span in (span for span in step.played[0].spans if span.rank == place):
            for stage, pass_, _, _ in passes(span.action):
                held += {"F": whole[stage], "B": -whole[stage], "I": rest[stage] - whole[stage], "W": -rest[stage]}[pass_]
            there = over_time[over_time.index <= span.end_s].iloc[-1]
            # the next action may begin at the same time
            follows = [s.start_s for s in step.played[0].spans if s.rank == place and s.start_s == span.end_s]
            assert there == held or follows


@settings(max_examples=40)
@given(cases(), st.booleans())
def test_all_that_comes_goes(case: Case, hides: bool) -> None:
    """No kind is ever below 0, and when the step is done only that is left which stays for good, as it was at the start."""
    step = play(case.workload, COST if hides else IN_LINE)
    memory, late = memory_timeline(step, H100), case.strategy.software.late_gradients
    assert (memory.rows["bytes"] >= 0).all()
    assert memory.step_time_s == pytest.approx(timeline_of(step).step_time_s, rel=1e-12)
    assert (memory.rows["time_s"] <= memory.step_time_s * (1 + 1e-12)).all()
    for (_, kind), own in memory.rows.groupby(["rank", "kind"]):
        stays = kind in KEPT and not (late and kind == "gradients")
        assert own["bytes"].iloc[-1] == (own["bytes"].iloc[0] if stays else 0)
        assert own["time_s"].iloc[0] == 0.0 or not stays
    for _, own in memory.rows.groupby("rank"):
        assert own["time_s"].is_monotonic_increasing
        assert not own.duplicated(["time_s", "kind"]).any()


# ---- the closed form


@settings(max_examples=120)
@given(cases(), st.booleans())
def test_the_peak_over_time_is_that_of_the_closed_form(case: Case, hides: bool) -> None:
    """To the byte, where nothing lies between stages. Of that the closed form counts all that torch's runtime sends in a step,
    and of others' one tensor for each neighbour and way (and of what they keep that of a pair still running). Where reductions
    run in line, no time is left between the last backward and the update, in which the last gradients are there, the update
    has not yet freed them, and the root of the model is still gathered."""
    strategy, cost = case.strategy, COST if hides else IN_LINE
    name, p, v, m = str(strategy.schedule), int(strategy.pp), int(strategy.chunks), int(strategy.num_microbatches)
    nothing = replace(case.workload, send=replace(case.workload.send, bytes=0.0))
    for workload, tensor in ((case.workload, float(case.workload.send.bytes)), (nothing, 0.0)):
        for rank, peak in enumerate(held_over_time(workload, cost).peaks):
            closed, found = rank_memory(workload, H100, rank), closed_form(peak.kinds)
            assert peak.bytes == sum(found.values())
            own = rank_stages(name, rank, p, v)
            away = sum(stage_rank(name, s + way, p) != rank for s in own for way in (-1, 1) if 0 <= s + way < p * v)
            most = away * m if strategy.software.pipe_buffers else min(2 * away, 4) + strategy.software.keeps_sent
            ends = [part for part, s in (("embedding", 0), ("head", p * v - 1)) if s in own]
            brief = (strategy.zero == 3 and not hides) * 2 * sum(float(workload.parts[part].params) for part in ends)
            frees = strategy.software.update_bytes > 0 and not hides
            brief += frees * max(float(part_bytes(workload, part).gradients) for part in workload.parts)
            missing = sum(float(num) for kind, num in closed.items() if kind != "slack") - peak.bytes + found["slack"]
            assert -1e3 <= missing <= most * tensor + brief + 1e3
            # a peak that may be another moment has its own slack: a share of what comes and goes, and what that and gradients
            # leave of what lived before
            dynamic = max(float(held["activations"] + held["transient"]) for held in (closed, found))
            off = sum(float(num) for num in closed.values()) - peak.bytes
            gathered = abs(float(closed["gathered"] - found["gathered"]))
            other = gathered + H100.allocator_slack * dynamic if missing > 1e3 else 0.0
            assert -other - 1e3 <= off <= max(missing, 0.0) + other + 1e3


@settings(max_examples=60)
@given(cases())
def test_the_peak_is_that_of_the_fullest_rank_of_every_schedule(case: Case) -> None:
    workload = case.workload
    each = [sum(float(v) for v in rank_memory(workload, H100, rank).values()) for rank in range(int(case.strategy.pp))]
    assert float(peak_memory(workload, H100).peak_bytes) == pytest.approx(max(each), rel=1e-12)


def test_a_stage_with_the_loss_holds_it_until_its_weight_gradients_are_made() -> None:
    """ZB-H1's last rank puts weight gradients off by p - 1: p losses wait there, and one of a whole backward (1F1B)."""
    def losses(schedule: str) -> float:
        workload = build_workload(MODEL, Strategy(pp=4, schedule=schedule, num_microbatches=8, seq_len=1024, software=PLAIN))
        less = replace(workload, parts=workload.parts | {"head": replace(workload.parts["head"], saved_none_bytes=0.0)})
        held, without = (activations(levels(held_over_time(w).rows, 3)).max() for w in (workload, less))
        closed, gone = (float(rank_memory(w, H100, 3)["activations"]) for w in (workload, less))
        saved = float(workload.parts["head"].saved_none_bytes)
        assert (closed - gone) / saved == pytest.approx((held - without) / saved)
        return round((held - without) / saved, 6)

    assert losses("1F1B") == 1
    assert losses("ZBH1") == 4


def test_a_users_own_table() -> None:
    """Two chunks in a V, forwards first; the second micro-batch's weight gradients at the very end."""
    table = parse_table("0F0,0F1,3F0,3F1,3B0,0B0,3I1,0I1,3W1,0W1\n1F0,1F1,2F0,2F1,2B0,1B0,2I1,1I1,1W1,2W1\n")
    strategy = Strategy(dp=4, pp=2, chunks=2, schedule="ZBV", num_microbatches=2, seq_len=1024, zero=1)
    workload = build_workload(MODEL, strategy)
    memory = held_over_time(workload, table=table)
    whole, rest = (stage_bytes(workload, 4, field) for field in ("saved", "deferred"))
    for rank, peak in enumerate(memory.peaks):
        own = activations(levels(memory.rows, peak.rank))
        assert own.max() == most_held(table, whole, rest)[rank]
        closed = rank_memory(workload, H100, rank, table)
        missing = sum(float(v) for k, v in closed.items() if k != "slack") - peak.bytes + peak.kinds["slack"]
        assert 0 <= round(missing / float(workload.send.bytes)) <= 4
        assert missing == pytest.approx(round(missing / float(workload.send.bytes)) * float(workload.send.bytes), abs=1e3)


# ---- by hand


def test_two_stages_by_hand() -> None:
    """1F1B on two ranks, two micro-batches: the first rank holds 1, 2, 1, 0, and sends two tensors."""
    workload = build_workload(cut(MODEL, 8), strategy_of(0, 2, 1, "1F1B", 2, "none", software=PLAIN))
    step = play(workload, COST)
    memory = memory_timeline(step, H100)
    whole = stage_bytes(workload, 2, "saved")
    for place, rank in enumerate(step.ranks[0]):
        own = levels(memory.rows, rank)
        at_end = [own[own.index <= s.end_s].iloc[-1] for s in step.played[0].spans if s.rank == place]
        counts = [row["activations"] / whole[place] for row in at_end]
        assert counts[-1] == 0
        assert max(activations(own)) == (2 if place == 0 else 1) * whole[place]
        assert set(own["weights"]) == {float(own["weights"].iloc[0])} and (own["gradients"] > 0).all()
        # received in front of a backward (rank 0) or a forward, sent behind the other
        assert own["between stages"].max() <= 2 * float(workload.send.bytes)
    peak = memory.peaks[0]
    assert (peak.action, peak.microbatches) == ("0B0", {0: [0, 1]})
    assert peak.kinds["activations"] == 2 * whole[0]
    span = next(s for s in step.played[0].spans if s.rank == 0 and str(s.action) == "0B0")
    assert span.start_s <= peak.time_s < span.end_s and peak.part == "layer 3"


@pytest.mark.parametrize("narrow", [False, True])
def test_late_gradients_appear_in_the_first_backward_and_go_with_the_update(narrow: bool) -> None:
    software = Software(grad_bytes=2, reduce_bytes=2, update_bytes=14) if narrow else Software()
    workload = build_workload(cut(MODEL, 8), Strategy(num_microbatches=3, seq_len=1024, software=software))
    step = play(workload, COST)
    own = levels(memory_timeline(step, H100).rows, 0)["gradients"]
    first = next(span for span in step.played[0].spans if str(span.action) == "0B0")
    assert (own[own.index <= first.start_s] == 0).all()
    rising = own[(own.index >= first.start_s) & (own.index <= first.end_s)]
    # none, the head, eight layers; the embedding's is there to be filled when the last layer is done
    assert rising.is_monotonic_increasing and rising.nunique() == 10
    update = [s for s in step.played[0].updates[0] if s.stream == "compute"]
    begin_s, end_s = step.ready_s[0] + update[0].start_s, step.ready_s[0] + update[0].end_s
    assert (own[(own.index >= first.end_s) & (own.index < begin_s)] == own.max()).all()
    assert (own[own.index >= (begin_s if narrow else end_s)] == 0).all()
    assert own.max() == pytest.approx((2 if narrow else 4) * sum(
        float(workload.parts[p].params) * n for p, n in (("embedding", 1), ("layer", 8), ("head", 1))), rel=1e-9)


def test_weights_are_gathered_one_layer_ahead() -> None:
    """ZeRO-3 holds embedding and head for the step, beside them no more than two layers, and nothing when it is done."""
    workload = build_workload(cut(MODEL, 8), Strategy(dp=8, zero=3, num_microbatches=2, seq_len=1024))
    own = levels(held_over_time(workload).rows, 0)["gathered weights"]
    roots, layer = (2 * float(sum(workload.parts[p].params for p in some)) for some in (("embedding", "head"), ("layer",)))
    assert set((own - roots) / layer) <= {-roots / layer, 0.0, 1.0, 2.0}
    assert own.max() == roots + 2 * layer and own.iloc[-1] == 0


def test_torchs_runtime_keeps_what_it_sends_and_others_do_not() -> None:
    m = 4
    for software, most in ((Software(), 4 * m), (PLAIN, 3), (replace(PLAIN, keeps_sent=True), 3 + 3)):
        workload = build_workload(MODEL, Strategy(pp=4, num_microbatches=m, seq_len=1024, software=software))
        own = levels(held_over_time(workload).rows, 1)["between stages"] / float(workload.send.bytes)
        assert own.max() <= most
        assert own.iloc[-1] == 0
        if software.pipe_buffers:
            # buffers to receive into are there from the start
            assert own.iloc[0] == 2 * m and own.max() == most


def test_ranks_of_slow_replicas_hold_the_same_at_other_times() -> None:
    workload = build_workload(MODEL, Strategy(dp=8, pp=4, num_microbatches=8, seq_len=1024))
    step = play(workload, COST, with_slow(healthy(32), {5: 1.5}, {}, 8))
    memory = memory_timeline(step, H100)
    assert [peak.rank for peak in memory.peaks] == [rank for ranks in step.ranks for rank in ranks]
    for place in range(4):
        one, other = (activations(levels(memory.rows, ranks[place])) for ranks in step.ranks)
        assert one.max() == other.max()
        assert one.tolist() != other.tolist() or one.index.tolist() != other.index.tolist()


# ---- torch


def test_torch_keeps_its_graph_and_output_gradients_between_the_halves() -> None:
    """Live storages behind `stage_backward_input`, of a stage without embedding and head."""
    torch = pytest.importorskip("torch")
    from torch.distributed.pipelining._backward import stage_backward_input

    from executor.model import materialise
    from executor.parallel import build_stage

    kind = MODEL.kinds[0]
    small = replace(MODEL, hidden=256, vocab=512, max_seq_len=256, pattern=(0,) * 6, kinds=(replace(
        kind, mixer=replace(kind.mixer, num_heads=4, num_kv_heads=2, head_dim=64), ffn=replace(kind.ffn, hidden=768)),))
    for recompute in ("none", "full"):
        strategy = Strategy(pp=3, schedule="ZBH1", seq_len=256, precision="fp32", recompute=recompute)
        stage = build_stage(small, strategy, 1)
        materialise(stage, torch.device("cpu"), 0)
        x = torch.randn(1, 256, 256, requires_grad=True)
        with live_storages() as live:
            stage(x)
            gc.collect()
            before = live.bytes
            out = stage(x)
            # what is received is counted between stages, and so is what is sent
            given = torch.randn_like(out)
            groups = stage_backward_input([out], [given], [x], iter(stage.parameters()))
            gc.collect()
            kept = live.bytes - before - out.nbytes - given.nbytes
        layer = part_bytes(build_workload(small, strategy), "layer")
        assert kept == pytest.approx(2 * float(layer.deferred), rel=0.05)
        assert float(layer.deferred) > 1.5 * float(layer.saved)
        del groups, out


# ---- for people


def test_counters_of_the_trace_are_the_levels() -> None:
    strategy = strategy_of(1, 4, 2, "Interleaved1F1B", 8, "none", chunks=2)
    step = play(build_workload(MODEL, strategy), COST)
    memory = memory_timeline(step, H100)
    events = json.loads(chrome_trace(timeline_of(step), rank_names(strategy), memory.rows))["traceEvents"]
    counters = [e for e in events if e["ph"] == "C"]
    changes = memory.rows.groupby("rank")["time_s"].nunique()
    assert Counter(e["pid"] for e in counters) == changes.to_dict()
    assert {kind for e in counters for kind in e["args"]} == set(memory.rows["kind"])
    for peak in memory.peaks:
        assert max(sum(e["args"].values()) for e in counters if e["pid"] == peak.rank) == peak.bytes


def test_peaks_are_told_in_a_table_and_in_json() -> None:
    strategy = Strategy(pp=4, chunks=2, schedule="Interleaved1F1B", num_microbatches=8, seq_len=1024, dp=4)
    memory = held_over_time(build_workload(MODEL, strategy))
    usable = dict.fromkeys(rank_names(strategy), H100.memory_bytes)
    table = peaks_table(memory, rank_names(strategy), usable)
    assert table.row_count == 4
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["rank"] == list(rank_names(strategy).values())
    assert all("activations" in str(holds) and "of chunk" not in str(holds) for holds in cells["what holds it"])
    for told, share, at, peak in zip(json.loads(json.dumps(peaks_json(memory, usable))), cells["of usable"],
                                     cells["in"], memory.peaks, strict=True):
        assert told["bytes"] == sum(told["kinds"].values()) == peak.bytes
        assert share == f"{told['share_of_usable']:.1%}" == f"{peak.bytes / H100.memory_bytes:.1%}"
        assert 0 < told["share_of_step"] == told["time_s"] / memory.step_time_s < 1
        assert at == f"{told['action']}, {told['part']}"
        held = {int(stage): some for stage, some in told["microbatches"].items()}
        assert held == peak.microbatches and all(0 <= m < 8 for some in held.values() for m in some)


def test_the_command_line_tells_peaks_and_writes_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, trace = str(tmp_path / "plan.yaml"), tmp_path / "trace.json"
    main_exits(["estimate", "gpt2-medium", "dgx-h100:1", "--tp", "2", "--pp", "2", "--global-batch", "16", "--out", plan])
    capsys.readouterr()
    main_exits(["simulate", plan, "--json", "--trace", str(trace)])
    told = json.loads(capsys.readouterr().out)
    peaks = told["peak_memory_by_rank"]
    assert [peak["rank"] for peak in peaks] == [0, 4]
    # torch's runtime is counted with all that it sends in a step
    assert 0.9 * told["peak_memory_bytes"] <= max(peak["bytes"] for peak in peaks) <= told["peak_memory_bytes"] * (1 + 1e-6)
    counters = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "C"]
    for peak in peaks:
        assert max(sum(e["args"].values()) for e in counters if e["pid"] == peak["rank"]) == peak["bytes"]
    main_exits(["simulate", plan])
    assert "Peak memory by rank" in capsys.readouterr().out


def main_exits(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
