"""The inputs of a prediction that a what-if can change: how each is read and put, its unit, and its plausible range.

An input reads one figure of a scenario, in SI, and returns another scenario in which that figure is another; what follows
from it (dp of the degrees, micro-batches of the batch) follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from planner.rules import num_experts
from planner.scenario import RunInputs, Scenario, on_cluster, settled, sized
from profiles.calibration import catalogue
from profiles.files import BadInput
from profiles.hardware import Cluster, pool
from profiles.prices import offers
from profiles.storage import default_storage
from simulator.estimate import P90_Z
from simulator.layout import check_order
from simulator.run.training import MODES
from simulator.schedules import SCHEDULES
from simulator.software import Software, software_from
from simulator.strategy import CONTEXT, MATMUL_TYPES, OFFLOAD, PRECISIONS, RECOMPUTE, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Plausible:
    """The low and the high value that an input may well have (as factors on what it is, or as they stand), and why."""

    low: Any
    high: Any
    source: str
    is_factor: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input.

    `dimension`: one of `profiles.units`, or ratio, whole, word or flag; `unit` in which it is shown. `words` are the values
    of a word that are known beforehand. `axis`: what of the search's space it fixes; `searched`: whether a search sees it.
    `by_law`: costs that were measured do not know it; `of_kind`: each part of a pool has its own.
    `above`: less than that makes no sense.
    """

    title: str
    dimension: str
    read: Callable[[Scenario], Any]
    write: Callable[[Scenario, Any], Scenario]
    unit: str = ""
    words: tuple[str, ...] = ()
    axis: str = ""
    searched: bool = False
    by_law: bool = False
    of_kind: bool = False
    above: float = 0.0
    plausible: Callable[[Scenario], Plausible | None] = lambda scenario: None

    @property
    def is_continuous(self) -> bool:
        """Return whether any value in between makes sense."""
        return self.dimension not in ("whole", "word", "flag")


def put(scenario: Scenario, name: str, value: Any) -> Scenario:
    """Return the scenario with one input changed; the very same one where the input has that value already."""
    given = INPUTS[name]
    if given.by_law and scenario.question.cluster.table is not None:
        raise BadInput(f"{name}: costs of this cluster were measured, and do not follow from it; change what was not measured")
    if given.of_kind and scenario.question.cluster.parts:
        raise BadInput(f"{name}: each part of a pool has its own; change it in the files of one part")
    return scenario if given.read(scenario) == value else given.write(scenario, value)


def _everywhere(cluster: Cluster, changed: Callable[[Cluster], Cluster]) -> Cluster:
    """Return a changed cluster; of a pool each part is, and the wire between them as one is."""
    if not cluster.parts:
        return changed(cluster)
    return pool([changed(part) for part in cluster.parts], changed(cluster).scale_out)


def _factors(low: float, high: float, source: str) -> Callable[[Scenario], Plausible]:
    return lambda scenario: Plausible(low=low, high=high, source=source)


def _between(low: Any, high: Any, source: str) -> Callable[[Scenario], Plausible]:
    return lambda scenario: Plausible(low=low, high=high, source=source, is_factor=False)


def _link(which: str, title: str, unit: str, plausible: Callable[[Scenario], Plausible]) -> Input:
    def write(scenario: Scenario, value: float) -> Scenario:
        times = value / getattr(scenario.question.cluster, which).bytes_per_s

        def changed(cluster: Cluster) -> Cluster:
            rate = times * getattr(cluster, which).bytes_per_s if scenario.question.cluster.parts else value
            link: Any = replace(getattr(cluster, which), bytes_per_s=rate, source="what if")
            return replace(cluster, **{which: link})

        return on_cluster(scenario, _everywhere(scenario.question.cluster, changed))

    return Input(title=title, dimension="bytes_per_s", unit=unit, write=write, plausible=plausible, searched=True, by_law=True,
                 read=lambda s: getattr(s.question.cluster, which).bytes_per_s)


def _hop_s(scenario: Scenario) -> float:
    laws = scenario.cost.efficiency
    return 0.0 if laws is None else laws.scale_out.send_fixed_s


def _with_latency(scenario: Scenario, value: float) -> Scenario:
    cluster = scenario.question.cluster
    link = replace(cluster.scale_out, latency_s=value - _hop_s(scenario))
    return on_cluster(scenario, replace(cluster, scale_out=link))


def _device(field: str, title: str, dimension: str, unit: str, **more: Any) -> Input:
    def write(scenario: Scenario, value: Any) -> Scenario:
        times = value / getattr(scenario.question.cluster.accelerator, field)

        def changed(cluster: Cluster) -> Cluster:
            own = times * getattr(cluster.accelerator, field) if scenario.question.cluster.parts else value
            return replace(cluster, accelerator=replace(cluster.accelerator, **{field: own}))

        return on_cluster(scenario, _everywhere(scenario.question.cluster, changed))

    return Input(title=title, dimension=dimension, unit=unit, write=write, searched=True,
                 read=lambda s: getattr(s.question.cluster.accelerator, field), **more)


def _peak_dtype(scenario: Scenario) -> str:
    return next(filter(None, reversed(MATMUL_TYPES[scenario.strategy.precision])))


def _with_peak(scenario: Scenario, value: float) -> Scenario:
    cluster, dtype = scenario.question.cluster, _peak_dtype(scenario)
    peaks = cluster.accelerator.peak_flop_per_s

    def changed(cluster: Cluster) -> Cluster:
        own = cluster.accelerator.peak_flop_per_s
        scaled = {d: value if peak == peaks[dtype] else peak * value / peaks[dtype] for d, peak in own.items()}
        return replace(cluster, accelerator=replace(cluster.accelerator, peak_flop_per_s=scaled))

    return on_cluster(scenario, _everywhere(cluster, changed))


def _with_price(scenario: Scenario, value: float) -> Scenario:
    price = scenario.question.price
    if price is None:
        raise BadInput("price: none is known of this accelerator; make the plan with --price, like '2.20 USD/h'")
    return replace(scenario, question=replace(scenario.question, price=replace(price, usd_per_gpu_hour=value)))


def _offered(scenario: Scenario) -> Plausible | None:
    known = sorted(offers(scenario.question.cluster.accelerator), key=lambda p: p.usd_per_gpu_hour)
    if not known or scenario.question.price is None:
        return None
    ends = [f"{p.provider}, {p.term}, {p.date}" for p in (known[0], known[-1])]
    return Plausible(low=known[0].usd_per_gpu_hour, high=known[-1].usd_per_gpu_hour, is_factor=False,
                     source=f"the catalogue's lowest ({ends[0]}) and highest ({ends[1]})")


def _fitted(field: str, title: str, dimension: str = "ratio") -> Input:
    """Return a number of the calibration; plausible is what lies between those fitted on the catalogue's accelerators."""
    def plausible(scenario: Scenario) -> Plausible | None:
        if scenario.question.cluster.table is not None:
            return None
        known = [float(getattr(c, field)) for c in catalogue().values()]
        return Plausible(low=min(known), high=max(known), is_factor=False,
                         source=f"the lowest and highest fitted on {', '.join(catalogue())} (headway validate)")

    return Input(title=title, dimension=dimension, by_law=True, of_kind=True, plausible=plausible,
                 read=lambda s: float(getattr(s.calibration, field)),
                 write=lambda s, value: replace(s, calibration=s.calibration.model_copy(update={field: value})))


def _unexplained(scenario: Scenario) -> Plausible | None:
    c = scenario.calibration
    wide = math.exp(P90_Z * c.spread)
    return None if not c.spread else Plausible(
        low=1 / wide, high=wide,
        source=f"P10 and P90 of what the fit leaves of {c.num_rows} published steps (headway validate)")


def _asked(field: str, title: str, dimension: str, **more: Any) -> Input:
    """Return an input that question and strategy both state, or the question alone."""
    def write(scenario: Scenario, value: Any) -> Scenario:
        question = replace(scenario.question, **{field: value})
        both = field in {f.name for f in fields(Strategy)}
        strategy = replace(scenario.strategy, **{field: value}) if both else scenario.strategy
        return settled(replace(scenario, question=question, strategy=strategy))

    return Input(title=title, dimension=dimension, write=write, searched=True,
                 read=lambda s: getattr(s.question, field), **more)


def _chosen(field: str, title: str, dimension: str = "whole", axis: str = "", **more: Any) -> Input:
    """Return a field of the strategy; `axis` of the search, where it has one."""
    def write(scenario: Scenario, value: Any) -> Scenario:
        changed: dict[str, Any] = {field: check_order(value) if field == "order" else value}
        if field in ("pp", "chunks"):
            changed["layers"] = ""
        if field == "chunks" and scenario.strategy.schedule in ("1F1B", "Interleaved1F1B"):
            changed["schedule"] = "1F1B" if value == 1 else "Interleaved1F1B"
        return settled(replace(scenario, strategy=replace(scenario.strategy, **changed)))

    least = 1.0 if dimension == "whole" and field not in ("zero", "shard_group") else 0.0
    return Input(title=title, dimension=dimension, write=write, axis=axis, searched=bool(axis),
                 read=lambda s: getattr(s.strategy, field), **({"above": least} | more))


def _with_dp(scenario: Scenario, value: int) -> Scenario:
    s = scenario.strategy
    return on_cluster(scenario, sized(scenario.question.cluster, value * int(s.tp * s.cp * s.pp)))


def _of_software(field: str, default: Any) -> Input:
    def write(scenario: Scenario, value: Any) -> Scenario:
        software = software_from(asdict(scenario.strategy.software) | {field: value}, field)
        return replace(scenario, question=replace(scenario.question, software=software),
                       strategy=replace(scenario.strategy, software=software))

    dimension = {bool: "flag", str: "word"}.get(type(default), "s" if field.endswith("_s") else "ratio")
    ranges = dict.fromkeys(OVERLAPS, (False, True, "off or on")) | {"kernels": ("eager", "fused", "compiled or not")}

    def plausible(scenario: Scenario) -> Plausible | None:
        # a measured machine runs the software that it was measured with
        if field not in ranges or scenario.question.cluster.table is not None:
            return None
        low, high, source = ranges[field]
        return Plausible(low=low, high=high, source=source, is_factor=False)

    return Input(title=SOFTWARE_TITLES.get(field, "software: " + field.replace("_", " ")), dimension=dimension,
                 write=write, searched=True, read=lambda s: getattr(s.strategy.software, field),
                 plausible=plausible)


def _at_run(field: str, title: str, dimension: str, read: Callable[[Scenario], Any] | None = None, **more: Any) -> Input:
    def plain(scenario: Scenario) -> Any:
        return getattr(_run(scenario), field)

    return Input(title=title, dimension=dimension, read=read or plain, **more,
                 write=lambda s, value: replace(s, run=replace(_run(s), **{field: value})))


def _run(scenario: Scenario) -> RunInputs:
    assert scenario.run is not None
    return scenario.run


def _storage(scenario: Scenario) -> float:
    given = _run(scenario).storage_bytes_per_s
    return given if given is not None else default_storage().bytes_per_s * scenario.question.cluster.num_gpus


def _spread_of_rates(scenario: Scenario) -> Plausible | None:
    fleet = _run(scenario).fleet
    wide = math.exp(P90_Z * fleet.spread)
    return None if not fleet.spread else Plausible(low=1 / wide, high=wide, source=(
        f"P10 and P90 of fleet '{fleet.name}': {fleet.sources['spread'].split(':')[0]}"))


def _with_restart(scenario: Scenario, value: float) -> Scenario:
    run = _run(scenario)
    fleet, now = run.fleet, run.fleet.detection_s + run.fleet.restart_s
    if not now:
        return replace(scenario, run=replace(run, fleet=replace(fleet, restart_s=value)))
    scaled = replace(fleet, detection_s=fleet.detection_s * value / now, restart_s=fleet.restart_s * value / now)
    return replace(scenario, run=replace(run, fleet=scaled))


OVERLAPS = ("grad_reduce", "param_gather", "tp_backward", "tp_overlap", "pp_overlap", "ep_overlap", "fused_accumulation")
SOFTWARE_TITLES = {
    "kernels": "pointwise kernels", "attention": "attention kernel",
    "grad_reduce": "gradient sums beside backward", "param_gather": "weight gathers beside forward",
    "tp_backward": "tp collectives beside weight gradients", "tp_overlap": "tp collectives beside their matmuls",
    "pp_overlap": "pipeline sends beside passes", "ep_overlap": "token exchange beside another micro-batch",
    "fused_accumulation": "gradients added up inside the matmul",
}

MACHINE: dict[str, Input] = {
    "num_gpus": Input(
        title="accelerators", dimension="whole", above=1.0, searched=True, read=lambda s: s.question.cluster.num_gpus,
        write=lambda s, n: on_cluster(s, sized(s.question.cluster, n))),
    "nodes": Input(
        title="nodes", dimension="whole", above=1.0, searched=True, read=lambda s: s.question.cluster.num_nodes,
        write=lambda s, n: on_cluster(s, sized(s.question.cluster, n * s.question.cluster.gpus_per_node))),
    "network": _link("scale_out", "network between nodes, a GPU", "Gb/s", _factors(
        0.5, 2, "assumption: one generation of NICs less or more (200, 400 and 800 Gb/s: ConnectX-6, 7 and 8)")),
    "scale_up": _link("scale_up", "network inside a node, a GPU", "GB/s", _factors(
        2 / 3, 2, "assumption: one generation of NVLink less or more (600, 900 and 1800 GB/s both ways: A100, H100, B200)")),
    "latency": Input(
        title="latency of a message between nodes", dimension="s", searched=True, by_law=True, of_kind=True,
        write=_with_latency,
        read=lambda s: _hop_s(s) + s.question.cluster.scale_out.latency_s, plausible=_factors(
            0.5, 2.1, "assumption: half; and as a tree's hop is longer on AWS p4de (170 us) than on InfiniBand (80 us)")),
    "peak": Input(
        title="peak of matmuls", dimension="flop_per_s", unit="TFLOP/s", searched=True, by_law=True, write=_with_peak,
        read=lambda s: s.question.cluster.accelerator.peak_flop_per_s[_peak_dtype(s)], plausible=_factors(
            0.92, 1.08, "GPUs of one kind vary by 8 % on average (arXiv 2208.11035)")),
    "memory_bandwidth": _device("memory_bytes_per_s", "memory bandwidth", "bytes_per_s", "GB/s", by_law=True,
                                plausible=_factors(0.92, 1.08, "assumption: as for the peak")),
    "memory": _device("memory_bytes", "usable memory", "bytes", "GiB"),
    "slow_rank": Input(
        title="slowest rank's computing time over the others'", dimension="ratio", above=1.0, read=lambda s: s.slow_rank,
        write=lambda s, value: replace(s, slow_rank=value), plausible=_between(
            1.0, 1.22, "GPUs of one kind vary by at most 22 % (arXiv 2208.11035)")),
    "slow_node": Input(
        title="slowest node's communication time over the others'", dimension="ratio", above=1.0, read=lambda s: s.slow_node,
        write=lambda s, value: replace(s, slow_node=value),
        plausible=_between(1.0, 2.0, "assumption: half of a node's NICs are lost")),
    "speed_spread": Input(
        title="spread of the ranks' speeds for good", dimension="ratio", read=lambda s: s.speed_spread,
        write=lambda s, value: replace(s, speed_spread=value)),
    "jitter": Input(
        title="spread of each rank's speed from step to step", dimension="ratio", read=lambda s: s.jitter,
        write=lambda s, value: replace(s, jitter=value), plausible=_between(0.0, 0.01, "assumption: up to 1 %")),
    "step": Input(
        title="step time beyond what laws explain", dimension="ratio", read=lambda s: s.step,
        write=lambda s, value: replace(s, step=value), plausible=_unexplained),
}
CALIBRATED: dict[str, Input] = {
    "matmul_time": _fitted("matmul", "matmuls in training over matmuls alone"),
    "attention_time": _fitted("attention", "attention in training over attention alone"),
    "memory_time": _fitted("memory", "pointwise kernels in training over those alone"),
    "scale_up_time": _fitted("scale_up", "collectives inside a node in training over those alone"),
    "scale_out_time": _fitted("scale_out", "collectives between nodes in training over those alone"),
    "experts_time": _fitted("experts", "experts in training over their kernels alone"),
    "beside": _fitted("beside", "what a second of communication slows the computation beside it"),
    "wait": _fitted("wait", "share of the step waited for each doubling of the nodes"),
    "pipelined": _fitted("pipelined", "share of tp communication exposed where it is pipelined with its matmul"),
}
ASKED: dict[str, Input] = {
    "tokens": _asked("tokens", "tokens of the run", "count"),
    "seq_len": _asked("seq_len", "tokens of a sequence", "whole", above=1.0),
    "global_batch": _asked("global_batch", "sequences of a step", "whole", above=1.0),
    "precision": _asked("precision", "precision", "word", words=PRECISIONS),
    "price": Input(title="price of a GPU-hour", dimension="usd_per_hour", searched=True, write=_with_price, plausible=_offered,
                   read=lambda s: s.question.price.usd_per_gpu_hour if s.question.price else None),
}
CHOSEN: dict[str, Input] = {
    "tp": _chosen("tp", "tensor-parallel degree", axis="tp"),
    "cp": _chosen("cp", "context-parallel degree", axis="cp"),
    "pp": _chosen("pp", "pipeline-parallel degree", axis="pp"),
    "dp": Input(title="data-parallel degree (the number of accelerators follows)", dimension="whole", above=1.0,
                write=_with_dp, read=lambda s: int(s.strategy.dp)),
    "ep": _chosen("ep", "expert-parallel degree", axis="ep"),
    "etp": _chosen("etp", "tensor-parallel degree inside an expert", axis="etp"),
    "zero": _chosen("zero", "ZeRO level", axis="zero"),
    "shard_group": _chosen("shard_group", "ranks that share one copy of sharded state"),
    "sequence_parallel": _chosen("sequence_parallel", "sequence parallelism", "flag"),
    "recompute": _chosen("recompute", "recomputation", "word", axis="recompute", words=RECOMPUTE),
    "recompute_share": _chosen("recompute_share", "share of the layers that recompute", "ratio"),
    "offload": _chosen("offload", "optimizer's states in host memory", "word", axis="offload", words=OFFLOAD),
    "offload_share": _chosen("offload_share", "share of these that is there", "ratio"),
    "micro_batch": _chosen("micro_batch", "sequences of a micro-batch", axis="micro_batch"),
    "chunks": _chosen("chunks", "chunks of layers a pipeline rank", axis="chunks"),
    "schedule": _chosen("schedule", "pipeline schedule", "word", axis="schedule", words=tuple(SCHEDULES)),
    "context": _chosen("context", "how keys reach other cp ranks", "word", axis="context", words=CONTEXT),
    "order": _chosen("order", "axes on the machine, innermost first", "word", axis="order"),
    "imbalance": _chosen("imbalance", "tokens of the busiest expert rank over the mean", "ratio", above=1.0,
                         plausible=lambda s: Plausible(low=1.0, high=1.3, is_factor=False, source="assumption: up to 30 %")
                         if num_experts(s.question.model) else None),
}
SOFTWARE: dict[str, Input] = {
    f.name: _of_software(f.name, f.default) for f in fields(Software) if f.name not in ("name", "framework", "year", "source")
}
RUN: dict[str, Input] = {
    "failure_rate": _at_run("failure_rate", "failures over those of the fleet's file", "ratio", plausible=_spread_of_rates),
    "restart": Input(
        title="noticing a failure and starting again", dimension="s", write=_with_restart,
        read=lambda s: _run(s).fleet.detection_s + _run(s).fleet.restart_s,
        plausible=_factors(0.5, 2, "assumption: half or twice as long")),
    "storage": _at_run(
        "storage_bytes_per_s", "rate at which checkpoints are written, all together", "bytes_per_s", read=_storage, unit="GB/s",
        plausible=_factors(0.8, 1.5, "0.08 to 0.15 GB/s a GPU where 0.1 is taken: SKT, BLOOM (storage.yaml)")),
    "checkpoint_interval": _at_run(
        "interval_s", "time between checkpoints", "s", plausible=_factors(0.5, 2, "assumption: half or twice the best"),
        read=lambda s: _run(s).interval_s or _run(s).best_interval_s),
    "checkpoint": _at_run("checkpoint", "checkpoints hold training up (sync) or not (async)", "word", words=MODES,
                          plausible=_between(*MODES, "one or the other")),
}
INPUTS: dict[str, Input] = MACHINE | CALIBRATED | ASKED | CHOSEN | SOFTWARE | RUN
"""Name on the command line -> input; several at once are put in this order."""
