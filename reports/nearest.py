"""The published runs nearest to a plan, each predicted as the plan is: what a reader may hold the plan's figures against."""

from __future__ import annotations

import math
from functools import cache

from planner.question import Question
from profiles import files
from profiles.families import num_active_params
from reports.accuracy import Outcome, family_of, outcome_of
from reports.published import as_question, measured_step_s
from reports.rows import Row, read_rows
from simulator.strategy import Strategy

NUM_NEAREST = 5
MOST_ALIKE = 2
"""Runs of one model by one source on one accelerator: more of them say the same again."""
Asked = tuple[Question, Strategy]
UNLIKE = 1.0
"""What another precision or kind of model counts for: as much as e times the parameters."""


def nearest(question: Question, strategy: Strategy, num: int = NUM_NEAREST) -> tuple[Outcome, ...]:
    """Return the shipped published runs with a measured step that are nearest to a plan, predicted, the nearest first."""
    found: list[Outcome] = []
    own = question, strategy
    for row, _ in sorted(_shipped(), key=lambda pair: (distance(own, pair[1]), pair[0].id)):
        if len(found) == num:
            break
        outcome = outcome_of(row)
        if isinstance(outcome, Outcome) and sum(_alike(outcome, other) for other in found) < MOST_ALIKE:
            found.append(outcome)
    return tuple(found)


def _alike(one: Outcome, other: Outcome) -> bool:
    return (one.source, one.model, one.gpu) == (other.source, other.model, other.gpu)


def distance(one: Asked, other: Asked) -> float:
    """Return how unlike two questions with their strategies are: in size, accelerators and their peak, kind and type.

    sqrt(ln(params)^2 + ln(accelerators)^2 / 4 + (2 ln(peak bf16))^2 + unlike^2): four times the accelerators count as twice
    the parameters; an accelerator of twice the peak as four times the parameters.
    """
    terms = (
        math.log(num_active_params(one[0].model) / num_active_params(other[0].model)),
        0.5 * math.log(one[0].cluster.num_gpus / other[0].cluster.num_gpus),
        2.0 * math.log(_peak(one[0]) / _peak(other[0])),
        UNLIKE * (family_of(*one) != family_of(*other)),
        UNLIKE * (one[0].precision != other[0].precision),
    )
    return math.hypot(*terms)


def _peak(question: Question) -> float:
    peaks = question.cluster.accelerator.peak_flop_per_s
    return peaks.get("bf16") or max(peaks.values())


@cache
def _shipped() -> tuple[tuple[Row, Asked], ...]:
    """Return the catalogue's runs that have a measured step and can be asked, with their questions."""
    found = []
    for row in read_rows(files.catalog_path("published_runs.csv")):
        asked = as_question(row)
        if isinstance(asked, tuple) and measured_step_s(row) is not None:
            found.append((row, asked))
    return tuple(found)
