"""What `headway size` does: a budget, a model or tokens become the others, by a published scaling law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from planner.economics import Band, days_of, gpu_hours, hours_for, hours_of_flop, lognormal, spread_between, training_flop
from planner.question import DEFAULT_MAX_SEQ_LEN
from planner.sizing import (
    BatchLimit,
    Choice,
    Optimum,
    batch_limits,
    batch_warnings,
    choice,
    flop_per_token,
    optimum,
    params_best_for,
    run_tokens,
    tokens_best_for,
)
from profiles import files
from profiles.families import load_model, num_active_params
from profiles.files import BadInput
from profiles.hardware import Cluster, Price, load_cluster, with_num_gpus
from profiles.laws import peak_flop_per_s
from profiles.model import ModelSpec
from profiles.prices import default_price
from profiles.scaling import LossLaw, loss_law
from profiles.units import UNITS, parse
from reports.verbs.style import names_of
from simulator.strategy import MATMUL_TYPES

MFU, MFU_P10, MFU_P90 = 0.40, 0.30, 0.50
GOODPUT = 0.90
NEAREST = 6
"""Models of the catalogue that are shown beside the optimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOptions:
    """What is asked, as people type it."""

    cluster: Annotated[str | None, typer.Option(
        help="Catalogue name and nodes ('dgx-h100:16') or a YAML.", autocompletion=names_of("clusters"),
    )] = None
    budget: Annotated[str | None, typer.Option(help="Dollars for the accelerators, like 2M.")] = None
    days: Annotated[float | None, typer.Option(help="Days on the cluster.")] = None
    flop: Annotated[float | None, typer.Option(help="Model FLOP, like 1e24, where no cluster is to say them.")] = None
    model: Annotated[str | None, typer.Option(
        help="A model that is fixed: how many tokens it gets.", autocompletion=names_of("models"),
    )] = None
    tokens: Annotated[str | None, typer.Option(help="Tokens that are fixed, like 15T.")] = None
    steps: Annotated[int | None, typer.Option(help="Steps; with --global-batch and --seq-len they are tokens.")] = None
    global_batch: Annotated[int | None, typer.Option(help="Sequences in a step, held against the critical batch.")] = None
    seq_len: Annotated[int | None, typer.Option(help="Sequence length, tokens. [the model's context, at most 8192]")] = None
    mfu: Annotated[float | None, typer.Option(help="Model FLOP utilization that is reached. [0.4, P10 0.3, P90 0.5]")] = None
    goodput: Annotated[float | None, typer.Option(help="Share of the time that makes new steps. [0.9]")] = None
    gpus: Annotated[int | None, typer.Option(help="Use only that many accelerators of the cluster.")] = None
    precision: Annotated[str, typer.Option(help="What linear maps compute in, for the peak.")] = "bf16"
    price: Annotated[str | None, typer.Option(help="Override the price, like '2.20 USD/h' per GPU.")] = None
    law: Annotated[str | None, typer.Option(
        help="Scaling law: besiroglu-2024 or hoffmann-2022. [besiroglu-2024]"
    )] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the compute runs on, and the accelerator-hours that it takes: on so many days, for so many dollars."""

    cluster: Cluster
    price: Price | None
    gpu_hours: Band
    days: Band
    usd: Band | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedChoice:
    """A model of the catalogue with the tokens that the compute buys it, by its own FLOP for each token."""

    name: str
    choice: Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeReport:
    """The answer: the best split of the compute, the choice that was asked for, models near the best, limits of the batch."""

    law: LossLaw
    machine: Machine | None
    flop: float
    best: Optimum
    asked: NamedChoice | None
    models: tuple[NamedChoice, ...]
    limits: tuple[BatchLimit, ...]
    batch_tokens: float | None
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]

    @property
    def tokens(self) -> float:
        """Return the tokens of the run: those of the choice that was asked for, or the best."""
        return float(self.asked.choice.tokens if self.asked else self.best.tokens.p50)


def size(options: SizeOptions) -> SizeReport:
    """Return the answer to what is asked."""
    law = loss_law(options.law)
    said: list[str] = []
    _check(options)
    model = load_model(options.model) if options.model else None
    seq_len = _seq_len(options, model, said)
    tokens = _tokens(options, seq_len)
    rate = _Rate.of(options, said)
    hours = rate.hours(options) if rate else None
    flop = options.flop if rate is None or hours is None else rate.flop(hours)
    if flop is None and model is None and tokens is None:
        raise BadInput("size: nothing to go by; give --flop, or --cluster with --budget or --days, or --model, --tokens or "
                       "--steps")
    asked = _asked(law, flop, model, tokens, seq_len)
    warnings = _over_budget(asked, flop, model, seq_len)
    needed = flop if flop is not None else _flop_of(asked, model, seq_len)
    # hours that are given buy an uncertain compute, and compute that is given takes uncertain hours
    spread = rate.spread if rate is not None else 0.0
    best = optimum(law, needed, spread if hours is not None else 0.0)
    reached = asked.choice if asked else choice(law, best.params.p50, best.tokens.p50)
    limits = batch_limits(reached.tokens, needed, reached.loss.p50)
    batch = None if options.global_batch is None else float(options.global_batch * seq_len)
    return SizeReport(
        law=law, flop=needed, best=best, asked=asked, machine=rate.machine(needed, 0.0 if hours else spread) if rate else None,
        models=_nearest(law, needed, float(best.params.p50), options.seq_len), limits=limits, batch_tokens=batch,
        warnings=(*warnings, *(batch_warnings(limits, batch) if batch else ())), assumptions=(*said, *_law_words(law)),
    )


def _check(options: SizeOptions) -> None:
    for name in ("days", "flop", "steps", "global_batch", "seq_len", "gpus", "mfu", "goodput"):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise BadInput(f"{name}: must be more than zero (is {value:g})")
    for name in ("mfu", "goodput"):
        if (getattr(options, name) or 0.0) > 1:
            raise BadInput(f"{name}: is a ratio, at most 1 (is {getattr(options, name):g}); write it like 0.4")
    if options.flop is not None and (options.budget is not None or options.days is not None):
        raise BadInput("flop: goes without --budget and --days, which are compute already")
    if options.cluster is None:
        for name in ("budget", "days", "gpus", "mfu", "goodput", "price"):
            if getattr(options, name) is not None:
                raise BadInput(f"{name}: needs --cluster, like dgx-h100:16")
    if options.tokens is not None and options.steps is not None:
        raise BadInput("tokens: goes without --steps, which with --global-batch and --seq-len are tokens already")
    if options.steps is not None and options.global_batch is None:
        raise BadInput("steps: needs --global-batch, the sequences of a step")
    if options.precision not in MATMUL_TYPES:
        raise BadInput(f"precision: {options.precision!r} is not known; known are {', '.join(MATMUL_TYPES)}")


def _seq_len(options: SizeOptions, model: ModelSpec | None, said: list[str]) -> int:
    if options.seq_len is not None:
        if model is not None and options.seq_len > model.max_seq_len:
            raise BadInput(f"seq_len: must be from 1 to the model's context of {model.max_seq_len} (is {options.seq_len})")
        return options.seq_len
    length = DEFAULT_MAX_SEQ_LEN if model is None else min(model.max_seq_len, DEFAULT_MAX_SEQ_LEN)
    said.append(f"sequences of {length} tokens (--seq-len)")
    return length


def _tokens(options: SizeOptions, seq_len: int) -> float | None:
    if options.steps is not None:
        assert options.global_batch is not None
        return float(run_tokens(options.steps, options.global_batch, seq_len))
    if options.tokens is None:
        return None
    tokens = parse(options.tokens, "count", "tokens")
    if tokens == 0:
        raise BadInput(f"tokens: must be more than zero (is {options.tokens!r}); write it like '15T'")
    return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rate:
    """A cluster, its price, and the model FLOP of an accelerator-hour on it; `spread` of that figure's logarithm."""

    cluster: Cluster
    price: Price | None
    peak_flop_per_s: float
    mfu: float
    goodput: float
    spread: float

    @classmethod
    def of(cls, options: SizeOptions, said: list[str]) -> _Rate | None:
        if options.cluster is None:
            return None
        cluster = load_cluster(options.cluster)
        cluster = cluster if options.gpus is None else with_num_gpus(cluster, options.gpus)
        price = default_price(cluster.accelerator)
        if options.price is not None:
            price = Price(usd_per_gpu_hour=parse(options.price, "usd_per_hour", "price"), term="given",
                          provider="command line", date="now", source="--price")
        if price is not None:
            said.append(f"{price.usd_per_gpu_hour:g} USD per GPU-hour, {price.term}, {price.provider}, as of {price.date} "
                        f"({price.source})")
        if options.mfu is None:
            said.append(f"MFU {MFU:g}, P10 {MFU_P10:g} and P90 {MFU_P90:g} (--mfu): Llama 3 reports 0.38 to 0.43 on up to "
                        "16,384 H100 (arXiv 2407.21783, table 4), MegaScale 0.55 (arXiv 2402.15627); `headway plan` predicts "
                        "it")
        if options.goodput is None:
            said.append(f"goodput {GOODPUT:g} (--goodput): Llama 3 reports more than 0.9 (arXiv 2407.21783, section 3.3.4); "
                        "`headway simulate --run` predicts it")
        dtype = next(filter(None, reversed(MATMUL_TYPES[options.precision])))
        return cls(cluster=cluster, price=price, peak_flop_per_s=peak_flop_per_s(cluster.accelerator, dtype),
                   mfu=options.mfu or MFU, goodput=options.goodput or GOODPUT,
                   spread=0.0 if options.mfu else spread_between(MFU_P10, MFU_P90))

    def hours(self, options: SizeOptions) -> float | None:
        """Return the accelerator-hours that the budget and the days leave, the fewer of both; None where neither is given."""
        found = [] if options.days is None else [float(gpu_hours(options.days, self.cluster.num_gpus))]
        if options.budget is not None:
            if self.price is None or self.price.usd_per_gpu_hour == 0:
                raise BadInput(f"budget: no price known of {self.cluster.accelerator.title}; give one with --price, "
                               "like '2.20 USD/h'")
            found.append(float(hours_for(_dollars(options.budget), self.price)))
        return min(found, default=None)

    def flop(self, hours: float) -> float:
        return float(training_flop(hours, self.peak_flop_per_s, self.mfu, self.goodput))

    def machine(self, flop: float, spread: float) -> Machine:
        hours = lognormal(float(hours_of_flop(flop, self.peak_flop_per_s, self.mfu, self.goodput)), spread)
        return Machine(cluster=self.cluster, price=self.price, gpu_hours=hours,
                       usd=hours.times(self.price.usd_per_gpu_hour) if self.price else None,
                       days=hours.map(lambda h: days_of(h, self.cluster.num_gpus)))


def _dollars(text: str) -> float:
    """Return dollars from '2M' as from '2 MUSD'."""
    with_unit = any(text.rstrip().endswith(unit) for unit in UNITS["usd"])
    usd = parse(text, "usd" if with_unit else "count", "budget")
    if usd == 0:
        raise BadInput(f"budget: must be more than zero (is {text!r}); write it like '2M' or '2 MUSD'")
    return usd


def _asked(
    law: LossLaw, flop: float | None, model: ModelSpec | None, tokens: float | None, seq_len: int
) -> NamedChoice | None:
    """Return the choice that what is given leaves, or None where only the compute is."""
    if model is not None:
        params = float(num_active_params(model))
        if tokens is None:
            tokens = float(tokens_best_for(law, params)) if flop is None else flop / flop_per_token(model, seq_len)
        return NamedChoice(name=model.name, choice=choice(law, params, tokens))
    if tokens is None:
        return None
    params = float(params_best_for(law, tokens)) if flop is None else flop / (6.0 * tokens)
    return NamedChoice(name="these tokens", choice=choice(law, params, tokens))


def _flop_of(asked: NamedChoice | None, model: ModelSpec | None, seq_len: int) -> float:
    assert asked is not None
    return float(asked.choice.flop if model is None else asked.choice.tokens * flop_per_token(model, seq_len))


def _over_budget(asked: NamedChoice | None, flop: float | None, model: ModelSpec | None, seq_len: int) -> list[str]:
    if asked is None or flop is None or _flop_of(asked, model, seq_len) <= flop * (1 + 1e-9):
        return []
    return [f"{asked.name} on so many tokens takes {_flop_of(asked, model, seq_len):.3g} FLOP; there are {flop:.3g}"]


def _nearest(law: LossLaw, flop: float, params: float, seq_len: int | None) -> tuple[NamedChoice, ...]:
    models = [load_model(name) for name in files.catalog_names("models")]
    by_distance = sorted(models, key=lambda m: abs(np.log(num_active_params(m) / params)))[:NEAREST]
    found = []
    for m in sorted(by_distance, key=num_active_params):
        length = min(m.max_seq_len, seq_len or DEFAULT_MAX_SEQ_LEN)
        found.append(NamedChoice(
            name=m.name, choice=choice(law, float(num_active_params(m)), flop / flop_per_token(m, length))
        ))
    return tuple(found)


def _law_words(law: LossLaw) -> list[str]:
    errors = law.standard_errors
    values = ", ".join(f"{n} {getattr(law, n):g}" + (f" +- {errors[n]:g}" if n in errors else "")
                       for n in ("A", "B", "E", "alpha", "beta"))
    return [
        f"law '{law.name}', loss = E + A / N^alpha + B / D^beta: {values}; fitted on {law.fitted_on} ({law.source})",
        "intervals: delta method on the covariance of the fit" + ("" if law.covariance else " (none is known)") + " and on the "
        "MFU; how far the law carries beyond its models, or to other data, is not in them",
        "the optimum's compute is 6 N D, N being the parameters that a token uses, as in the law's own fit on dense models; "
        "tokens of a named model are by its own FLOP, attention counted; 'over a best split' compares 6 N D",
    ]
