"""Which model and how many tokens a budget is best spent on, and how large a batch may be: published laws in closed form.

C = 6 N D model FLOP, of N parameters (those that a token uses) and D tokens; attention between tokens is left out, as in the
laws' own fits. Minimising the loss E + A / N^alpha + B / D^beta for C gives N = G (C / 6)^(beta / (alpha + beta)) and
D = (C / 6) / N with G = (alpha A / (beta B))^(1 / (alpha + beta)) (Hoffmann et al. 2022, arXiv 2203.15556, equation 4).
Intervals: the delta method, in logarithms, on the fit's covariance. Arguments may be arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planner.economics import Band, lognormal
from profiles.model import ModelSpec
from profiles.ops import Num
from profiles.scaling import BatchLaw, LossLaw, batch_laws
from simulator.metrics import step_flop
from simulator.strategy import Strategy

FLOP_PER_PARAM_TOKEN = 6.0
"""Model FLOP for each parameter and token: forward 2, backward 4 (arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A model and its tokens: the loss by the law, and the FLOP of the best choice that reaches the same loss."""

    params: Num
    tokens: Num
    flop: Num
    loss: Band
    optimal_flop: Num

    @property
    def tokens_per_param(self) -> Num:
        """Return tokens for each parameter."""
        return self.tokens / self.params

    @property
    def excess(self) -> Num:
        """Return the compute that a better split of parameters and tokens would save, over what it needs."""
        return self.flop / self.optimal_flop - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimum:
    """The best choice for a budget, as percentiles; parameters and tokens move against each other where the law errs."""

    flop: Band
    params: Band
    tokens: Band
    tokens_per_param: Band
    loss: Band


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimit:
    """What a law says of the tokens of a step."""

    law: BatchLaw
    tokens: Band


def loss(law: LossLaw, params: Num, tokens: Num) -> Num:
    """Return the loss in nats a token."""
    return law.E + law.A / params**law.alpha + law.B / tokens**law.beta


def optimal_params(law: LossLaw, flop: Num) -> Num:
    """Return the parameters with the least loss for so much compute."""
    scale = (law.alpha * law.A / (law.beta * law.B)) ** (1.0 / (law.alpha + law.beta))
    return scale * (flop / FLOP_PER_PARAM_TOKEN) ** (law.beta / (law.alpha + law.beta))


def optimal_tokens(law: LossLaw, flop: Num) -> Num:
    """Return the tokens with the least loss for so much compute."""
    return flop / FLOP_PER_PARAM_TOKEN / optimal_params(law, flop)


def tokens_best_for(law: LossLaw, params: Num) -> Num:
    """Return the tokens at which so many parameters are optimal: where alpha A / N^alpha = beta B / D^beta."""
    return (law.beta * law.B * params**law.alpha / (law.alpha * law.A)) ** (1.0 / law.beta)


def params_best_for(law: LossLaw, tokens: Num) -> Num:
    """Return the parameters for which so many tokens are optimal."""
    return (law.alpha * law.A * tokens**law.beta / (law.beta * law.B)) ** (1.0 / law.alpha)


def flop_for(law: LossLaw, nats: Num) -> Num:
    """Return the least compute that reaches a loss above E; the inverse of the loss along the optimum.

    There alpha A / N^alpha = beta B / D^beta, so that A / N^alpha = (L - E) beta / (alpha + beta).
    """
    share = (nats - law.E) / (law.alpha + law.beta)
    params = (law.A / (share * law.beta)) ** (1.0 / law.alpha)
    tokens = (law.B / (share * law.alpha)) ** (1.0 / law.beta)
    return FLOP_PER_PARAM_TOKEN * params * tokens


def choice(law: LossLaw, params: Num, tokens: Num) -> Choice:
    """Return what a model of so many parameters and so many tokens comes to."""
    nats = loss(law, params, tokens)
    return Choice(params=params, tokens=tokens, flop=FLOP_PER_PARAM_TOKEN * params * tokens,
                  loss=lognormal(nats, loss_error(law, params, tokens) / nats), optimal_flop=flop_for(law, nats))


def optimum(law: LossLaw, flop: Num, flop_spread: Num = 0.0) -> Optimum:
    """Return the best choice for a compute known to a factor: `flop_spread` is the standard deviation of its logarithm."""
    params, tokens, error = optimal_params(law, flop), optimal_tokens(law, flop), split_error(law, flop)
    to_params = law.beta / (law.alpha + law.beta)
    nats = loss(law, params, tokens)
    # d ln L / d ln C along the optimum, by the envelope theorem
    slope = law.alpha * law.A / params**law.alpha * (1.0 - to_params) / nats
    return Optimum(
        flop=lognormal(flop, flop_spread),
        params=lognormal(params, np.hypot(error, to_params * flop_spread)),
        tokens=lognormal(tokens, np.hypot(error, (1.0 - to_params) * flop_spread)),
        tokens_per_param=lognormal(tokens / params, np.hypot(2.0 * error, (1.0 - 2.0 * to_params) * flop_spread)),
        loss=lognormal(nats, np.hypot(loss_error(law, params, tokens) / nats, slope * flop_spread)),
    )


def split_error(law: LossLaw, flop: Num) -> Num:
    """Return the standard deviation of ln N (and of ln D) at the optimum; 0 where the law has no covariance.

    d ln N = (d ln A - d ln B - (ln N - 1 / alpha) d alpha + (ln D - 1 / beta) d beta) / (alpha + beta).
    """
    log_n, log_d = np.log(optimal_params(law, flop)), np.log(optimal_tokens(law, flop))
    one = np.ones_like(log_n)
    gradient = [one, -one, 0.0 * one, 1.0 / law.alpha - log_n, log_d - 1.0 / law.beta]
    return _deviation(law, [g / (law.alpha + law.beta) for g in gradient])


def loss_error(law: LossLaw, params: Num, tokens: Num) -> Num:
    """Return the standard deviation of the loss in nats; at the optimum too, where it does not move with the split."""
    of_params, of_tokens = law.A / params**law.alpha, law.B / tokens**law.beta
    one = np.ones_like(np.log(of_params * of_tokens))
    return _deviation(law, [of_params * one, of_tokens * one, law.E * one, -of_params * np.log(params) * one,
                            -of_tokens * np.log(tokens) * one])


def _deviation(law: LossLaw, gradient: list[Num]) -> Num:
    """Return sqrt(g' S g) of a gradient in (ln A, ln B, ln E, alpha, beta)."""
    if law.covariance is None:
        return 0.0 * gradient[0]
    rows = np.stack([np.asarray(g, dtype=float) for g in gradient])
    return np.sqrt(np.einsum("i...,ij,j...->...", rows, np.array(law.covariance), rows))


def flop_per_token(model: ModelSpec, seq_len: int) -> float:
    """Return a model's FLOP for each token trained on, attention between the tokens of a sequence counted."""
    strategy = Strategy(seq_len=seq_len)
    return float(step_flop(model, strategy) / strategy.tokens_per_step)


def run_tokens(steps: Num, global_batch: Num, seq_len: Num) -> Num:
    """Return tokens = steps x sequences of a step x tokens of a sequence."""
    return steps * global_batch * seq_len


def batch_limits(tokens: Num, flop: Num, nats: Num) -> tuple[BatchLimit, ...]:
    """Return what each law of the catalogue says of the batch of a run with these tokens, FLOP and last loss."""
    of = {"tokens": tokens, "flop": flop, "loss": nats}
    return tuple(BatchLimit(law=law, tokens=batch_tokens(law, of[law.grows_with])) for law in batch_laws())


def batch_tokens(law: BatchLaw, x: Num) -> Band:
    """Return the tokens of a step by a law, with its percentiles where the law's errors are known."""
    middle, e = law.coefficient * (x / law.unit) ** law.exponent, law.error
    if e is None:
        return lognormal(middle, 0.0)
    return lognormal(middle, np.sqrt(e.residual**2 + e.at_centre**2 + (e.exponent * np.log(x / e.centre)) ** 2))


def noise_batch(limit: BatchLimit) -> Num:
    """Return the batch that needs twice the fewest tokens and steps (B_crit in `more_tokens`), from a law's critical batch.

    Steps are S (1 + B_crit / B), so those at B over linear scaling from B_0 are (B + B_crit) / (B_0 + B_crit) = overhead.
    NaN where the law's batch is no larger than linear scaling has it, and for laws of the best batch.
    """
    if limit.law.overhead is None:
        return math.nan
    noise = (limit.tokens.p50 - limit.law.overhead * limit.law.base) / (limit.law.overhead - 1.0)
    return np.where(noise > 0, noise, math.nan)[()]


def more_tokens(batch: Num, critical_batch: Num) -> Num:
    """Return the tokens that a batch needs over the fewest: 1 + B / B_crit (McCandlish et al. 2018, arXiv 1812.06162)."""
    return 1.0 + batch / critical_batch


def more_steps(batch: Num, critical_batch: Num) -> Num:
    """Return the steps that a batch needs over the fewest: 1 + B_crit / B (same)."""
    return 1.0 + critical_batch / batch


def batch_warnings(limits: tuple[BatchLimit, ...], batch: float) -> list[str]:
    """Return a sentence for each critical batch that the tokens of a step exceed."""
    return [
        f"a step of {batch / 1e6:.3g} M tokens exceeds the critical batch of {limit.tokens.p50 / 1e6:.3g} M "
        f"of law '{limit.law.name}' ({limit.law.means}); more of it buys little time and costs tokens"
        for limit in limits if limit.law.kind == "critical" and batch > limit.tokens.p50
    ]

