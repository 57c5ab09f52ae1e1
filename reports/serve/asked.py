"""What a page asks: fields with bounds, and the question that they make, by the path of the command line.

Models and clusters are names of the catalogue; nothing is read from a path that a request names. A `config.json` comes as
text. A changed network is a cluster file of its own, `cluster.yaml`, which is downloaded beside the plan.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from planner.question import Question, ask
from profiles import files
from profiles.families import load_model, model_from_text
from profiles.files import BadInput
from profiles.hardware import Cluster, cluster_from_mapping, load_cluster
from profiles.model import ModelSpec
from profiles.prices import default_price
from profiles.units import parse
from reports.verbs.options import QuestionOptions

MAX_CONFIG_BYTES = 2**18
MAX_GPUS = 131_072
MAX_TOKENS = 1e17
MAX_LAYERS = 1000
MAX_DIMENSION = 10_000_000
MIN_BYTES_PER_S, MAX_BYTES_PER_S = 1e6, 1e14
MAX_USD_PER_HOUR = 1e4
CLUSTER_FILE = "cluster.yaml"
USUAL_PRECISION = "bf16"
"""What accelerators of the catalogue train in where nothing is said."""
Text = Annotated[str, Field(max_length=40)]
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")]


class Asked(BaseModel):
    """One question of a page; what is not given is as the command line takes it. `failures`: times as many as published."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    model: Name
    cluster: Name
    gpus: int = Field(ge=1, le=MAX_GPUS)
    tokens: Text
    config: str | None = Field(default=None, max_length=MAX_CONFIG_BYTES)
    seq_len: int | None = Field(default=None, ge=1, le=2**24)
    global_batch: int | None = Field(default=None, ge=1, le=2**20)
    network: Text | None = None
    price: Text | None = None
    precision: Text | None = None
    failures: float = Field(default=1.0, ge=0, le=100)

    @property
    def searched(self) -> tuple[Any, ...]:
        """Return what a search depends on: the rest moves days and dollars only."""
        return (self.model, self.config, self.cluster, self.gpus, self.seq_len, self.global_batch, self.network,
                self.precision)


def question_of(asked: Asked) -> Question:
    """Return the question, as `headway plan` asks it; a mistake is a `BadInput` that names the field."""
    given = options_of(asked)
    return QuestionOptions(**{k: v for k, v in given.items() if k not in ("model", "cluster", "tokens")}).question(
        model_of(asked), given["cluster"], given["tokens"], machine=machine_of(asked))


@lru_cache(maxsize=32)
def model_of(asked: Asked) -> ModelSpec:
    """Return the model: of the catalogue, or of the config that came with the question."""
    if asked.config is None:
        return load_model(_known(asked.model, "models"))
    path = Path(asked.model)
    if path.suffix != ".json":
        raise BadInput(f"model: {asked.model!r} must end with .json where a config is given")
    _check_config(asked.config, asked.model)
    return model_from_text(asked.config, path)


def _known(name: str, kind: str) -> str:
    if name not in files.catalog_names(kind):
        raise BadInput(f"{kind.removesuffix('s')}: {name!r} is not in the catalogue; {files.meant(name, kind)}")
    return name


def _check_config(text: str, name: str) -> None:
    """Refuse numbers that no model has, before anything is made of them."""
    def check(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                check(v, str(k))
        elif isinstance(value, list):
            if len(value) > MAX_LAYERS:
                raise BadInput(f"{name}: {key}: has {len(value):,} entries; at most {MAX_LAYERS:,} are read")
            for v in value:
                check(v, key)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            most = MAX_LAYERS if re.search(r"layers?(_block)?(_num)?$", key) else MAX_DIMENSION
            if not (math.isfinite(value) and abs(value) <= most):
                raise BadInput(f"{name}: {key}: must be at most {most:,} (is {str(value)[:40]})")

    try:
        check(files.parse_mapping(text, name), "config")
    except (RecursionError, ValueError) as e:
        raise e if isinstance(e, BadInput) else BadInput(f"{name}: cannot be read ({type(e).__name__})") from None


@lru_cache(maxsize=256)
def machine_of(asked: Asked) -> Cluster:
    """Return the cluster with as many nodes as the accelerators need, its network as it was asked for."""
    _, nodes = _nodes(asked)
    if own_network(asked) is None:
        return load_cluster(f"{asked.cluster}:{nodes}")
    return cluster_from_mapping(files.parse_mapping(cluster_text(asked), CLUSTER_FILE), Path(CLUSTER_FILE).stem, CLUSTER_FILE,
                                nodes)


def _nodes(asked: Asked) -> tuple[int, int]:
    """Return the accelerators of a node, and the nodes that are needed."""
    node = int(files.catalog_mapping("clusters", _known(asked.cluster, "clusters"))["gpus_per_node"])
    return node, -(-asked.gpus // node)


def own_network(asked: Asked) -> float | None:
    """Return the bytes per second between nodes that were asked for, or None where they are the cluster's own."""
    if asked.network is None:
        return None
    rate = parse(asked.network, "bytes_per_s", "network")
    if not MIN_BYTES_PER_S <= rate <= MAX_BYTES_PER_S:
        raise BadInput(f"network: must be from 8 Mb/s to 800 Tb/s a GPU (is {asked.network!r})")
    own = load_cluster(_known(asked.cluster, "clusters")).scale_out.bytes_per_s
    return None if math.isclose(rate, own, rel_tol=1e-6) else rate


def cluster_text(asked: Asked) -> str:
    """Return the file of the cluster with its network changed."""
    data = files.catalog_mapping("clusters", _known(asked.cluster, "clusters"))
    wire = {**data["scale_out"], "bandwidth": {"value": asked.network, "source": "given in the page of headway serve"}}
    text: str = yaml.safe_dump({**data, "scale_out": wire}, sort_keys=False, allow_unicode=True, width=120)
    return text


def options_of(asked: Asked) -> dict[str, Any]:
    """Return the options of `headway plan` that ask this; those that it would take anyway are left out."""
    node, nodes = _nodes(asked)
    tokens = parse(asked.tokens, "count", "tokens")
    if not 0 < tokens <= MAX_TOKENS:
        raise BadInput(f"tokens: must be more than zero and at most 100000T (is {asked.tokens!r})")
    changed = own_network(asked) is not None
    found: dict[str, Any] = {"model": asked.model, "tokens": asked.tokens,
                             "cluster": f"{CLUSTER_FILE if changed else asked.cluster}:{nodes}"}
    if asked.gpus != node * nodes:
        found["gpus"] = asked.gpus
    machine = machine_of(asked)
    usual = ask(model_of(asked), machine, tokens=1, precision=asked.precision)
    if asked.precision is not None and asked.precision != USUAL_PRECISION:
        found["precision"] = asked.precision
    if asked.seq_len is not None and asked.seq_len != usual.seq_len:
        found["seq_len"] = asked.seq_len
    if asked.global_batch is not None:
        found["global_batch"] = asked.global_batch
    if asked.price is not None:
        usd, known = parse(asked.price, "usd_per_hour", "price"), default_price(machine.accelerator)
        if usd > MAX_USD_PER_HOUR:
            raise BadInput(f"price: must be at most {MAX_USD_PER_HOUR:,.0f} USD/h (is {asked.price!r})")
        if known is None or not math.isclose(known.usd_per_gpu_hour, usd, rel_tol=1e-6):
            found["price"] = asked.price
    return found


def command_of(asked: Asked) -> str:
    """Return the command line that makes the same plan."""
    given = options_of(asked)
    words = [given.pop("model"), given.pop("cluster")]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return "headway plan " + " ".join(map(shlex.quote, words))


def asked_from(body: bytes, needs: Mapping[str, Any] | None = None) -> Asked:
    """Return what a request's body asks, checked field by field; `needs` are fields that it need not have."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput("body: is not JSON") from None
    if not isinstance(data, dict):
        raise BadInput("body: must be a JSON object")
    return files.validate(Asked, {**(needs or {}), **data}, "question")
