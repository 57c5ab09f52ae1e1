"""What verbs have in common: their options, the question and the strategy that the options ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from planner.plan import StrategyFile
from planner.question import Question, ask
from planner.rules import illegal_reason
from profiles import files
from profiles.families import load_model
from profiles.files import BadInput
from profiles.hardware import Cluster, Price, load_cluster, with_num_gpus
from profiles.model import ModelSpec
from profiles.units import parse
from reports.verbs.style import Json, names_of
from simulator.layout import check_order
from simulator.software import Software, load_software
from simulator.strategy import Strategy

__all__ = ["ClusterArg", "Json", "Model", "PlanArg", "QuestionOptions", "StrategyOptions", "Tokens", "refuse_own_input",
           "unfolded"]

Model = Annotated[str, typer.Argument(
    help="Catalogue name, a Hugging Face config.json, or a YAML with its keys.", autocompletion=names_of("models"),
)]
ClusterArg = Annotated[str, typer.Argument(
    help="Catalogue name and nodes ('dgx-h100:16'), several as a pool ('dgx-a100:8+dgx-h100:8'), a YAML, or 'local[:ranks]'.",
    autocompletion=names_of("clusters"),
)]
PlanArg = Annotated[Path, typer.Argument(help="A plan file, as `headway plan` writes it.")]
Tokens = Annotated[str, typer.Option(help="Token budget of the run, like 15T.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionOptions:
    """Options that belong to the question: on how much of a cluster, in what shape and precision, at what price."""

    gpus: Annotated[int | None, typer.Option(help="Use only that many accelerators of the cluster.")] = None
    seq_len: Annotated[int | None, typer.Option(
        help="Sequence length, tokens. [the model's context, at most 8192]"
    )] = None
    global_batch: Annotated[int | None, typer.Option(
        help="Sequences in a step, over all ranks. [about 4 Mi tokens]"
    )] = None
    precision: Annotated[str | None, typer.Option(
        help="bf16, fp16, fp32, or what linear maps compute in: fp8, fp8-block, mxfp8, nvfp4. [bf16 on GPUs, fp32 on CPU]"
    )] = None
    kernels: Annotated[str | None, typer.Option(
        help="eager, or fused (torch.compile). [fused on GPUs, eager on CPU]"
    )] = None
    software: Annotated[str | None, typer.Option(
        help="What trains: a name of `headway catalog software`, or a YAML. [Headway's own torch engine]",
        autocompletion=names_of("software"),
    )] = None
    lora_rank: Annotated[int, typer.Option(
        help="Fine-tune by low-rank adapters of this rank, all other weights frozen; 0: train all."
    )] = 0
    lora_targets: Annotated[str, typer.Option(help="Which linear maps adapters stand beside: attention or all.")] = "attention"
    price: Annotated[str | None, typer.Option(help="Override the price, like '2.20 USD/h' per GPU.")] = None
    profile: Annotated[Path | None, typer.Option(help="A profile file, for the cluster 'local'.")] = None

    def question(
        self, model: str | ModelSpec, cluster: str, tokens: str, price: str | Price | None = None,
        software: str | Software | None = None, machine: Cluster | None = None,
    ) -> Question:
        """Return what is asked of a model on a cluster; a price or software given here stand for the options'.

        A `machine` given here is what the cluster's text names.
        """
        machine = machine or load_cluster(cluster, self.profile)
        if self.gpus is not None:
            machine = with_num_gpus(machine, self.gpus)
        price, software = price or self.price, software or self.software
        given = price if not isinstance(price, str) else Price(
            usd_per_gpu_hour=parse(price, "usd_per_hour", "price"), term="given", provider="command line", date="now",
            source="--price",
        )
        return ask(
            load_model(model) if isinstance(model, str) else model, machine, tokens=parse(tokens, "count", "tokens"),
            cluster_text=cluster, seq_len=self.seq_len, global_batch=self.global_batch, precision=self.precision,
            kernels=self.kernels, price=given, lora_rank=self.lora_rank, lora_targets=self.lora_targets,
            software=load_software(software, self.precision or "") if isinstance(software, str) else software,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyOptions:
    """Options that are fields of a strategy; `dp` None is what the other degrees leave, `schedule` None what is usual."""

    dp: Annotated[int | None, typer.Option(help="Data-parallel degree. [what the others leave]")] = None
    tp: Annotated[int, typer.Option(help="Tensor-parallel degree.")] = 1
    sequence_parallel: Annotated[bool, typer.Option(help="Shard the residual stream over tp.")] = True
    cp: Annotated[int, typer.Option(help="Context-parallel degree.")] = 1
    context: Annotated[str, typer.Option(help="How keys reach other cp ranks: ring, all_gather or ulysses.")] = "ring"
    pp: Annotated[int, typer.Option(help="Pipeline-parallel degree.")] = 1
    order: Annotated[str, typer.Option(help="Axes on the machine, innermost first. [tp-cp-dp-pp]")] = ""
    chunks: Annotated[int, typer.Option(help="Chunks of layers a pipeline rank holds (interleaved).")] = 1
    layers: Annotated[str, typer.Option(help="Layers of each stage, like 7-8-8-7. [as the software splits them]")] = ""
    ep: Annotated[int, typer.Option(help="Expert-parallel degree.")] = 1
    etp: Annotated[int, typer.Option(help="Tensor-parallel degree inside an expert.")] = 1
    imbalance: Annotated[float, typer.Option(help="Tokens of the busiest expert rank over the mean.")] = 1.0
    zero: Annotated[int, typer.Option(help="ZeRO level, 0 to 3.")] = 0
    shard_group: Annotated[int, typer.Option(help="Ranks that share one copy of sharded state; 0: all of dp.")] = 0
    recompute: Annotated[str, typer.Option(help="none, selective or full.")] = "none"
    recompute_share: Annotated[float, typer.Option(help="Share of the layers that recompute.")] = 1.0
    offload: Annotated[str, typer.Option(
        help="What lies in host memory: none, moments, states (and main weights), or optimizer (which updates them there)."
    )] = "none"
    offload_share: Annotated[float, typer.Option(help="Share of these that lies there.")] = 1.0
    schedule: Annotated[str | None, typer.Option(
        help="1F1B, GPipe, Interleaved1F1B, LoopedBFS, ZBH1, InterleavedZeroBubble, ZBV or DualPipeV. [1F1B; "
        "Interleaved1F1B where there are chunks]"
    )] = None
    micro_batch: Annotated[int, typer.Option(help="Sequences in a micro-batch.")] = 1

    def strategy(self, question: Question) -> Strategy:
        """Return the strategy that is asked for, checked against the question."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dp"}
        given |= {
            "order": check_order(self.order), "schedule": self.schedule or ("1F1B" if self.chunks == 1 else "Interleaved1F1B"),
            "lora_rank": question.lora_rank, "lora_targets": question.lora_targets, "seq_len": question.seq_len,
            "precision": question.precision,
        }
        files.validate(StrategyFile, given if self.dp is None else given | {"dp": self.dp}, "strategy")
        num, others = question.cluster.num_gpus, self.tp * self.cp * self.pp
        if self.dp is None and num % others:
            raise BadInput(
                f"dp: tp {self.tp} x cp {self.cp} x pp {self.pp} = {others} does not divide the {num} accelerators"
            )
        dp = self.dp or num // others
        num_microbatches = max(1, question.global_batch // (dp * self.micro_batch))
        strategy = Strategy(dp=dp, num_microbatches=num_microbatches, software=question.software, **given)
        reason = illegal_reason(strategy, question)
        if reason:
            raise BadInput(f"strategy: {reason}")
        return strategy


def unfolded(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a verb whose parameters that are dataclasses of options have become those options, for typer to read."""
    hints, signature = get_type_hints(verb, include_extras=True), inspect.signature(verb)
    folded: dict[str, Any] = {name: hints[name] for name in signature.parameters if is_dataclass(hints[name])}
    parameters = []
    for name, parameter in signature.parameters.items():
        if name not in folded:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        options = get_type_hints(folded[name], include_extras=True)
        for field in fields(folded[name]):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default,
                                                annotation=options[field.name]))

    def command(**values: Any) -> None:
        packed = {name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in folded.items()}
        verb(**packed, **values)

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def refuse_own_input(given: Path, target: Path | None, option: str) -> None:
    """Raise `BadInput` where what is written would replace what is read."""
    if target is not None and target.resolve() == given.resolve():
        raise BadInput(f"{option}: {target} is the plan that is read; give another name")
