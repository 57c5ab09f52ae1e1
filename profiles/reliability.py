"""Fleets: how often what breaks, what it takes with it, how long it is noticed, restarted and repaired. Facts with sources.

No single rate fits: published rates run from 2 to 24 failures per 1,000 node-days, so a fleet is a file, its rates have a
spread, and each cause grows with what it belongs to: accelerators, nodes, domains of nodes (a rack, a switch), or the job.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from profiles import files
from profiles.files import BadInput
from profiles.units import parse

SCOPES = ("gpu", "node", "domain", "job")
"""What a rate can be per: an accelerator, a node, a group of nodes that fail together, or the job, whatever its size."""
_TIMES_S = {"hour": 3600.0, "day": 86400.0, "week": 604800.0, "month": 30.4375 * 86400.0, "year": 365.25 * 86400.0}
_RATE = re.compile(rf"^(\S+) per (?:(\S+) )?({'|'.join(SCOPES)})-({'|'.join(_TIMES_S)})s?$", re.IGNORECASE)
_RATE_EXAMPLE = "write it like '6.5 per 1000 node-days', '2e-5 per GPU-hour' or '54 per 54 job-days'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One cause of interruptions.

    `rate_per_s` for each of `scope`; `spread`: standard deviation of the rate's logarithm between fleets (None: it moves
    with the fleet's). `shape` of the Weibull distribution of the gaps between failures of the whole job (1: exponential;
    below 1 they come in bursts; mean gap 1 / rate). With an `early_share` the cause is early mortality instead: that share
    of the scope fails once, after an exponential time of mean `early_decay_s`. A failure takes `num_nodes` down; with
    probability `replaced` they go to repair, otherwise the processes start again on them. With `pause_s` training stands
    still for so long and nothing is lost (a data stall). With `unnoticed_s` it corrupts the training state in silence and is
    noticed so much later: what was trained since is lost. `detection_s` where it is not the fleet's.
    """

    name: str
    scope: str
    rate_per_s: float
    replaced: float
    source: str
    spread: float | None = None
    shape: float = 1.0
    early_share: float = 0.0
    early_decay_s: float = 0.0
    num_nodes: int = 1
    detection_s: float | None = None
    pause_s: float = 0.0
    unnoticed_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStop:
    """A stop that is announced: a checkpoint is written first, then the job is down for `lasts_s` and starts again."""

    name: str
    every_s: float
    lasts_s: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Causes, planned stops and times to recover.

    `detection_s`: from the failure until it is noticed and its node found; `restart_s`: from there until processes run
    again, without reading the checkpoint; `replacement_s`: what starting another node takes on top. Repair times are
    lognormal (Schroeder and Gibson, DSN 2006) with `repair_s` as median and `repair_spread` as standard deviation of the
    logarithm. `spread`: that of the rates, between fleets. `sources`: where each figure was read.
    """

    name: str
    title: str
    causes: tuple[Cause, ...]
    planned: tuple[PlannedStop, ...]
    detection_s: float
    restart_s: float
    replacement_s: float
    repair_s: float
    repair_spread: float
    spread: float
    sources: dict[str, str]

    def failures_per_s(self, num_gpus: int, num_nodes: int) -> float:
        """Return the steady rate of unplanned interruptions of a job; pauses and early mortality are not in it."""
        return sum(c.rate_per_s * members(c, num_gpus, num_nodes) for c in self.causes if not c.pause_s)

    def unnoticed_s(self, num_gpus: int, num_nodes: int) -> float:
        """Return for how long an unplanned interruption has gone unnoticed, mean over all of them."""
        rates = [(c.rate_per_s * members(c, num_gpus, num_nodes), c.unnoticed_s) for c in self.causes if not c.pause_s]
        return sum(rate * lag for rate, lag in rates) / (sum(rate for rate, _ in rates) or 1.0)

    def nodes_to_repair_per_s(self, num_gpus: int, num_nodes: int) -> float:
        """Return how many nodes of a job go to repair a second, early mortality left out."""
        return sum(
            c.rate_per_s * members(c, num_gpus, num_nodes) * c.replaced * min(c.num_nodes, num_nodes)
            for c in self.causes if not c.pause_s
        )

    def early_failures(self, num_gpus: int, num_nodes: int, over_s: float) -> float:
        """Return how many early failures a new job has in its first seconds: share x members x (1 - exp(-t / decay))."""
        return sum(
            c.early_share * members(c, num_gpus, num_nodes) * -math.expm1(-over_s / c.early_decay_s)
            for c in self.causes if c.early_share
        )

    def failing(self, factor: float) -> Fleet:
        """Return the fleet with all failures, early ones too, so many times as frequent; planned stops stay as they are."""
        causes = (replace(c, rate_per_s=c.rate_per_s * factor, early_share=c.early_share * factor) for c in self.causes)
        return replace(self, causes=tuple(causes))

    @property
    def mean_repair_s(self) -> float:
        """Return the mean of the lognormal repair time: median x exp(spread^2 / 2)."""
        return self.repair_s * math.exp(self.repair_spread**2 / 2)


def members(cause: Cause, num_gpus: int, num_nodes: int) -> float:
    """Return how many of a cause's scope a job has; the last domain may be a part of one."""
    return {"gpu": num_gpus, "node": num_nodes, "domain": num_nodes / cause.num_nodes, "job": 1.0}[cause.scope]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(ge=0, le=3)]
Source = Annotated[str, Field(min_length=1)]


class ShareFile(_Strict):
    """A share and its source."""

    value: Share
    source: Source


class SpreadFile(_Strict):
    """The standard deviation of a logarithm and its source."""

    value: Spread
    source: Source


class TimeFile(_Strict):
    """A time as people write it, and its source."""

    value: str = Field(description="like '5 min'")
    source: Source


class RepairFile(_Strict):
    """A lognormal repair time: median, standard deviation of the logarithm, source."""

    median: str = Field(description="like '6 h'")
    spread: Spread = Field(description="standard deviation of the logarithm")
    source: Source


class EarlyFile(_Strict):
    """Early mortality: which share of what fails early, and the mean time until it does."""

    share: Share
    of: str = Field(description="GPU or node")
    decay: str = Field(description="mean time until it fails, like '20d'")


class CauseFile(_Strict):
    """A cause as people write it: a rate, or early mortality."""

    cause: str = Field(description="its name, which no other has")
    source: Source
    rate: str | None = Field(
        default=None, description="a count over time of GPUs, nodes, domains or the job: '6.5 per 1000 node-days'")
    early: EarlyFile | None = Field(default=None, description="early mortality, in place of a rate")
    shape: Annotated[float, Field(gt=0.1, le=10, description="Weibull shape of the gaps; below 1 they come in bursts")] = 1.0
    spread: Spread | None = Field(default=None, description="of its own rate; absent: the fleet's")
    nodes: PositiveInt = Field(default=1, description="nodes that it takes down at once")
    replaced: Share | None = Field(default=None, description="absent: the fleet's")
    detection: str | None = Field(default=None, description="like '10 min'; absent: the fleet's")
    pause: str | None = Field(default=None, description="training stands still for so long and loses nothing, like '4 min'")
    unnoticed: str | None = Field(
        default=None, description="it corrupts the training state in silence for so long, like '2 h'; work since is lost")


class PlannedFile(_Strict):
    """A planned stop as people write it."""

    cause: str = Field(description="its name")
    every: str = Field(description="like '4w'")
    lasts: str = Field(description="like '6h'")
    source: Source


class FleetFile(_Strict):
    """A fleet file, as people write it."""

    name: str = Field(description="as it is shown")
    note: str = ""
    spread: SpreadFile | None = Field(default=None, description="how sure the rates are; absent: quite")
    replaced: ShareFile = Field(description="of the failures, how many take a node out")
    detection: TimeFile = Field(description="from a failure until it is noticed")
    restart: TimeFile = Field(description="until processes run again, without reading the checkpoint")
    replacement: TimeFile = Field(description="what another node's start takes on top")
    repair: RepairFile = Field(description="until a node is back")
    causes: list[CauseFile] = Field(default=[], description="what interrupts training unplanned")
    planned: list[PlannedFile] = Field(default=[], description="stops that are announced")


def load_fleet(text: str) -> Fleet:
    """Return a fleet by catalogue name or from a YAML file."""
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        return fleet_from(path.stem, files.validate(FleetFile, files.read_mapping(path), text), text)
    return _catalog_fleet(text)


@cache
def _catalog_fleet(name: str) -> Fleet:
    if name not in files.catalog_names("reliability"):
        raise BadInput(f"fleet: {name!r} is neither in the catalogue nor a YAML file; {files.meant(name, 'reliability')}")
    origin = f"reliability/{name}.yaml"
    return fleet_from(name, files.validate(FleetFile, files.catalog_mapping("reliability", name), origin), origin)


def fleet_from(name: str, file: FleetFile, origin: str) -> Fleet:
    """Return the fleet that a checked file states; `origin` is named in errors."""
    names = [c.cause for c in file.causes] + [p.cause for p in file.planned]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise BadInput(f"{origin}: causes: {twice!r} stands there twice; give each cause its own name")
    times = {k: getattr(file, k) for k in ("detection", "restart", "replacement")}
    return Fleet(
        name=name, title=file.name,
        causes=tuple(_cause(c, file.replaced.value, f"{origin}: causes.{c.cause}") for c in file.causes),
        planned=tuple(_planned(p, f"{origin}: planned.{p.cause}") for p in file.planned),
        detection_s=parse(file.detection.value, "s", f"{origin}: detection"),
        restart_s=parse(file.restart.value, "s", f"{origin}: restart"),
        replacement_s=parse(file.replacement.value, "s", f"{origin}: replacement"),
        repair_s=parse(file.repair.median, "s", f"{origin}: repair.median"), repair_spread=file.repair.spread,
        spread=file.spread.value if file.spread else 0.0,
        sources={k: t.source for k, t in times.items()} | {"repair": file.repair.source, "replaced": file.replaced.source}
        | ({"spread": file.spread.source} if file.spread else {}) | {c.cause: c.source for c in file.causes}
        | {p.cause: p.source for p in file.planned},
    )


def _cause(file: CauseFile, replaced: float, origin: str) -> Cause:
    if (file.rate is None) == (file.early is None):
        raise BadInput(f"{origin}: needs either a rate or early mortality; {_RATE_EXAMPLE}")
    scope, rate, share, decay = "job", 0.0, 0.0, 0.0
    if file.rate is not None:
        rate, scope = parse_rate(file.rate, f"{origin}.rate")
    if file.early is not None:
        scope, share = file.early.of.lower(), file.early.share
        decay = _positive_time(file.early.decay, f"{origin}.early.decay")
        if scope not in SCOPES[:2]:
            raise BadInput(f"{origin}.early.of: must be one of {', '.join(SCOPES[:2])} (is {file.early.of!r})")
    if scope == "domain" and file.nodes == 1:
        raise BadInput(f"{origin}.nodes: a domain holds several nodes; say how many, like 'nodes: 2'")
    if file.pause is not None and file.unnoticed is not None:
        raise BadInput(f"{origin}.unnoticed: a pause loses nothing, so nothing of it can go unnoticed; give one of the two")
    return Cause(
        name=file.cause, scope=scope, rate_per_s=rate, source=file.source, spread=file.spread, shape=file.shape,
        early_share=share, early_decay_s=decay, num_nodes=file.nodes,
        replaced=replaced if file.replaced is None else file.replaced,
        detection_s=None if file.detection is None else parse(file.detection, "s", f"{origin}.detection"),
        pause_s=0.0 if file.pause is None else _positive_time(file.pause, f"{origin}.pause"),
        unnoticed_s=0.0 if file.unnoticed is None else _positive_time(file.unnoticed, f"{origin}.unnoticed"),
    )


def _planned(file: PlannedFile, origin: str) -> PlannedStop:
    return PlannedStop(name=file.cause, every_s=_positive_time(file.every, f"{origin}.every"),
                       lasts_s=parse(file.lasts, "s", f"{origin}.lasts"), source=file.source)


def _positive_time(text: str, field: str) -> float:
    value = parse(text, "s", field)
    if value == 0:
        raise BadInput(f"{field}: must be more than zero (is {text!r})")
    return value


def parse_rate(text: str, field: str = "rate") -> tuple[float, str]:
    """Return failures per second and what they are per, from text such as '6.5 per 1000 node-days'."""
    match = _RATE.match(text.strip())
    if not match:
        raise BadInput(f"{field}: {text!r} is not a rate; {_RATE_EXAMPLE}")
    try:
        number, over = float(match[1]), float(match[2] or 1)
    except ValueError:
        raise BadInput(f"{field}: {text!r} is not a rate; {_RATE_EXAMPLE}") from None
    if not (math.isfinite(number) and math.isfinite(over)) or number < 0 or over <= 0:
        raise BadInput(f"{field}: {text!r} must be a count of at least 0 over more than 0 {match[3]}-{match[4]}s")
    return number / (over * _TIMES_S[match[4].lower()]), match[3].lower()
