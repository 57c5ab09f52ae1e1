"""The plan: the question, the choice, what is predicted, who came next and why the others lost. A YAML file.

Everything needed to replay, run and audit it stands in the file; numbers are SI, their unit ends their name.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from planner.embedded import is_page, plan_in_page
from planner.predict import Prediction
from planner.question import Question, ask
from planner.rules import illegal_reason
from planner.search import Found
from planner.space import axes_texts
from profiles import files
from profiles.calibration import load_calibration
from profiles.efficiency import load_efficiency
from profiles.families import model_from_mapping
from profiles.files import BadInput
from profiles.hardware import Cluster, Price, load_cluster, with_num_gpus
from simulator.layout import check_order
from simulator.schedules import SCHEDULES
from simulator.software import software_from
from simulator.strategy import CONTEXT, LORA_TARGETS, OFFLOAD, PRECISIONS, RECOMPUTE, Strategy

SCHEMA = "headway.plan/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan; predictions are mappings in the keys of `Prediction`, as they stand in the file."""

    question: Question
    strategy: Strategy
    profile: Path | None
    prediction: dict[str, Any]
    runners_up: tuple[dict[str, Any], ...]
    strategies_total: int
    strategies_priced: int
    rejected: dict[str, int]
    rejected_examples: tuple[dict[str, Any], ...]
    searched: dict[str, list[str]]
    inputs: dict[str, str]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StrategyFile(_Strict):
    """A strategy in a plan file; people edit it."""

    dp: PositiveInt = Field(default=1, description="data-parallel degree")
    tp: PositiveInt = Field(default=1, description="tensor-parallel degree")
    cp: PositiveInt = Field(default=1, description="context-parallel degree")
    pp: PositiveInt = Field(default=1, description="pipeline stages of ranks; dp x tp x cp x pp are all accelerators")
    ep: PositiveInt = Field(default=1, description="expert-parallel degree, over the ranks of dp, cp and tp")
    etp: PositiveInt = Field(default=1, description="tensor-parallel degree inside an expert")
    zero: int = Field(default=0, ge=0, le=3, description="shards optimizer states (1), gradients too (2), weights too (3)")
    shard_group: int = Field(default=0, ge=0, description="ranks that share one copy; 0: all of dp x cp")
    sequence_parallel: bool = Field(default=True, description="the residual stream is sharded over tp")
    recompute: str = Field(default="none", description=f"what backward repeats: {', '.join(RECOMPUTE)}")
    recompute_share: float = Field(default=1.0, ge=0, le=1, description="share of the layers that do so")
    offload: str = Field(default="none", description=f"what lies in host memory: {', '.join(OFFLOAD)}")
    offload_share: float = Field(default=1.0, gt=0, le=1, description="share of it that lies there")
    precision: str = Field(default="bf16", description=f"what is computed in: {', '.join(PRECISIONS)}")
    context: str = Field(default="ring", description=f"how keys reach other cp ranks: {', '.join(CONTEXT)}")
    order: str = Field(default="", description="axes on the machine, innermost first; empty: 'tp-cp-dp-pp'")
    imbalance: float = Field(default=1.0, ge=1, description="tokens of the fullest expert rank over the mean")
    lora_rank: int = Field(default=0, ge=0, description="rank of the adapters that are trained; 0: all weights are")
    lora_targets: str = Field(default="attention", description=f"maps that have adapters: {', '.join(LORA_TARGETS)}")
    software: Any = Field(default="torch", description="torch (Headway's engine), a name of the catalogue, or its fields")
    schedule: str = Field(default="1F1B", description=f"of the pipeline: {', '.join(SCHEDULES)}")
    chunks: PositiveInt = Field(default=1, description="stages that each pipeline rank holds")
    layers: str = Field(default="", pattern=r"^(\d+(-\d+)*)?$",
                        description="layers of each stage, like '7-8-8-7'; empty: as the software splits them")
    micro_batch: PositiveInt = Field(default=1, description="sequences of a micro-batch")
    num_microbatches: PositiveInt = Field(default=1, description="micro-batches of a step, for each of dp")
    seq_len: PositiveInt = Field(description="tokens of a sequence")

    @field_validator("order")
    @classmethod
    def _axes(cls, value: str) -> str:
        return check_order(value)

    @field_validator("recompute", "offload", "precision", "context", "schedule", "lora_targets")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        known = {"recompute": RECOMPUTE, "offload": OFFLOAD, "precision": PRECISIONS, "context": CONTEXT,
                 "schedule": tuple(SCHEDULES), "lora_targets": LORA_TARGETS}
        if value not in known[info.field_name]:
            raise ValueError(f"must be one of {', '.join(known[info.field_name])}")
        return value


class PriceFile(_Strict):
    """A price in a plan file."""

    usd_per_gpu_hour: float = Field(ge=0)
    term: str = Field(description="on-demand, reserved, spot, ...")
    provider: str
    date: str = Field(description="as of when")
    source: str


class QuestionFile(_Strict):
    """The question in a plan file."""

    model: dict[str, Any] = Field(description="the model, spelled out, as in a model file")
    cluster: str = Field(description="as on the command line, like 'dgx-h100:16', or a cluster file")
    num_gpus: PositiveInt = Field(description="accelerators that are used of it")
    profile: str | None = Field(default=None, description="the profile file of a 'local' cluster, relative to the plan")
    tokens: float = Field(gt=0, description="to train on")
    price: PriceFile | None = Field(default=None, description="absent: no dollars are shown")
    assumptions: list[str] = Field(default=[], description="what was assumed, in sentences")


class PlanFile(BaseModel):
    """A plan file; unknown keys beside these are kept out."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    schema_: Literal["headway.plan/1"] = Field(alias="schema")
    question: QuestionFile = Field(description="what was asked")
    strategy: StrategyFile = Field(description="what was chosen; edit it and simulate again")
    prediction: dict[str, Any] = Field(description="what was predicted of it, in the keys of `estimate --json`")
    runners_up: list[dict[str, Any]] = Field(default=[], description="the next best, with their predictions")
    strategies_total: int = Field(default=0, description="combinations in the space")
    strategies_priced: int = Field(default=0, description="of these, legal ones")
    rejected: dict[str, int] = Field(default={}, description="how many each rule left out")
    rejected_examples: list[dict[str, Any]] = Field(default=[], description="some of them, each with the reason")
    searched: dict[str, list[str]] = Field(default={}, description="the values of each axis that was searched")
    inputs: dict[str, str] = Field(default={}, description="SHA-256 of model, cluster, laws and profile")


def plan_from_search(question: Question, found: Found, profile: str | Path | None = None) -> Plan:
    """Return the plan of a search that found something; of the question, its batch and precision are those of the best."""
    assert found.best is not None
    question = replace(question, global_batch=found.question.global_batch, precision=found.question.precision)
    return plan_from_prediction(
        question, found.best, profile, searched=axes_texts(found.axes), runners_up=tuple(_summary(p) for p in found.runners_up),
        strategies_total=found.strategies_total, strategies_priced=found.strategies_priced, rejected=found.rejected,
        rejected_examples=tuple(r.as_dict() for r in found.rejected_examples),
    )


def plan_from_prediction(
    question: Question, prediction: Prediction, profile: str | Path | None, **search_results: Any
) -> Plan:
    """Return the plan of one strategy that was given."""
    empty: dict[str, Any] = {"runners_up": (), "strategies_total": 1, "strategies_priced": 1, "rejected": {},
                             "rejected_examples": (), "searched": {}}
    return Plan(
        question=question, strategy=prediction.strategy, profile=Path(profile).resolve() if profile else None,
        prediction=_summary(prediction), inputs=_hashes(question, profile), **(empty | search_results),
    )


def _summary(prediction: Prediction) -> dict[str, Any]:
    data: dict[str, Any] = _rounded(prediction.as_dict())
    # as given, not rounded: it is compared with the plan's own
    return data | {"strategy": json.loads(json.dumps(asdict(prediction.strategy)))}


def _rounded(value: Any) -> Any:
    """Return numbers with seven significant digits, so that a file shows figures and not arithmetic noise."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return value


def _hashes(question: Question, profile: str | Path | None) -> dict[str, str]:
    inputs: dict[str, Any] = {"model": asdict(question.model), "cluster": _as_mapping(question.cluster)}
    if question.cluster.table is None:
        kinds = [part.accelerator for part in question.cluster.kinds]
        inputs["efficiency"] = _one_or_all([load_efficiency(kind.laws).model_dump() for kind in kinds])
        inputs["calibration"] = _one_or_all([load_calibration(kind.name).model_dump() for kind in kinds])
    hashes = {name: _sha256(json.dumps(v, sort_keys=True, default=str).encode()) for name, v in inputs.items()}
    if profile is not None:
        hashes["profile"] = _sha256(files.read_text(profile).encode())
    return hashes


def _as_mapping(cluster: Cluster) -> dict[str, Any]:
    """Return a cluster without its table; those that are no pool have no parts."""
    values = {f.name: getattr(cluster, f.name) for f in fields(cluster) if f.name not in ("table", "parts")}
    accelerator = {name: value for name, value in asdict(cluster.accelerator).items() if name != "parts"}
    more = {"parts": [_as_mapping(part) for part in cluster.parts]} if cluster.parts else {}
    return values | {"accelerator": accelerator} | more


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_plan(plan: Plan, path: str | Path) -> Path:
    """Write a plan file; the profile is named relative to it, so that a folder can be moved."""
    question, path = plan.question, Path(path)
    data = {
        "schema": SCHEMA,
        "question": {
            "model": asdict(question.model), "cluster": question.cluster_text, "num_gpus": question.cluster.num_gpus,
            "profile": os.path.relpath(plan.profile, path.resolve().parent) if plan.profile else None,
            "tokens": question.tokens,
            "price": asdict(question.price) if question.price else None, "assumptions": list(question.assumptions),
        },
        "strategy": asdict(plan.strategy),
        "prediction": plan.prediction,
        "runners_up": list(plan.runners_up),
        "strategies_total": plan.strategies_total, "strategies_priced": plan.strategies_priced,
        "rejected": plan.rejected, "rejected_examples": list(plan.rejected_examples),
        "searched": plan.searched, "inputs": plan.inputs,
    }
    return files.write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))


def read_plan(path: str | Path) -> Plan:
    """Read a plan file, or a page with one; a strategy that a person made illegal is a `BadInput` with the rule's sentence."""
    path = Path(path)
    raw = plan_in_page(path) if is_page(path) else files.read_mapping(path)
    if raw.get("schema") != SCHEMA:
        raise BadInput(f"{path}: schema: is {raw.get('schema')!r}; a plan file starts with 'schema: {SCHEMA}'")
    file = files.validate(PlanFile, raw, str(path))
    q = file.question
    software = software_from(file.strategy.software, f"{path}: strategy")
    strategy = Strategy(**(file.strategy.model_dump() | {"software": software}))
    profile = (path.parent / q.profile).resolve() if q.profile else None
    cluster = with_num_gpus(load_cluster(q.cluster, profile), q.num_gpus)
    question = ask(
        model_from_mapping(q.model, f"{path}: question.model"), cluster, tokens=q.tokens, cluster_text=q.cluster,
        seq_len=strategy.seq_len, global_batch=strategy.global_batch, precision=strategy.precision, software=strategy.software,
        lora_rank=strategy.lora_rank, lora_targets=strategy.lora_targets,
        price=Price(**q.price.model_dump()) if q.price else None,
    )
    question = replace(question, assumptions=tuple(q.assumptions), price=question.price if q.price else None)
    reason = illegal_reason(strategy, question)
    if reason:
        raise BadInput(f"{path}: strategy: {reason}")
    return Plan(
        question=question, strategy=strategy, profile=profile, prediction=file.prediction,
        runners_up=tuple(file.runners_up), strategies_total=file.strategies_total,
        strategies_priced=file.strategies_priced, rejected=file.rejected,
        rejected_examples=tuple(file.rejected_examples), searched=file.searched, inputs=file.inputs,
    )
