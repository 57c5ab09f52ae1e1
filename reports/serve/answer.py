"""What the page's worker computes: an answer, the same run on other numbers of accelerators, the whole plan, the sliders.

All answers are by a brief search, so that they come while a slider moves; the plan that is downloaded is searched whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planner.counts import Sized, searched
from planner.goals import front, runs
from planner.offers import Cases, Offer, Point, point
from planner.plan import plan_from_prediction, plan_from_search, write_plan
from planner.predict import Prediction, with_run_of
from planner.question import Question, ask
from planner.search import search
from planner.space import brief_space, whole_space
from profiles import files
from profiles.files import BadInput
from profiles.hardware import with_num_gpus
from profiles.units import UNITS, parse, significant
from reports.run_command import RunOptions, run_case
from reports.serve import parts
from reports.serve.asked import (
    CLUSTER_FILE,
    USUAL_PRECISION,
    Asked,
    cluster_text,
    command_of,
    machine_of,
    model_of,
    own_network,
    question_of,
)
from simulator.run.interval_curve import best_interval
from simulator.run.monte_carlo import Case
from simulator.strategy import MATMUL_TYPES, PRECISIONS

Tell = Callable[[float], None]
FLEET, UNDISTURBED = "published", "none"
NUM_REPLAYED = 1
"""Strategies that are replayed of a brief search, which the closed form ranks: a replay of many micro-batches takes as long as
pricing all."""
SIZES = (0.25, 0.5, 2.0, 4.0)
"""Numbers of accelerators beside the one that is asked for, over it."""
MOST_GPUS = 16_384
"""Accelerators up to which the slider goes."""
TOKENS = tuple(f"{digit}{unit}" for unit in ("B", "0B", "00B", "T", "0T") for digit in (1, 2, 5))
NETWORKS = tuple(f"{rate} Gb/s" for rate in (25, 50, 100, 200, 400, 800, 1600, 3200))
PRICES = (0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0)
FAILURES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SHORTEST = 256


def sized_for(asked: Asked, known: Sized | None, *, tell: Tell) -> Sized:
    """Return the best strategy of a brief search; of one that is known already, with days and dollars of this question."""
    question = question_of(asked)
    if known is None:
        return searched(question, None, brief_space, tell, NUM_REPLAYED)
    found = known.found
    best = found.best and with_run_of(found.best, question)
    others = tuple(with_run_of(p, question) for p in found.runners_up)
    return replace(known, question=question, found=replace(found, question=question, best=best, runners_up=others))


def answer(asked: Asked, known: Sized | None, *, tell: Tell) -> tuple[dict[str, Any], Sized]:
    """Return what the page shows of a question, as JSON and pieces of HTML, and what was searched for it."""
    sized = sized_for(asked, known, tell=tell)
    here, found = point_of(asked, sized), sized.found
    prediction = sized.prediction
    return {
        "prediction": prediction.as_dict() if prediction else None,
        "strategy": prediction.strategy.describe() if prediction else None,
        "bill": here.bill.as_dict() if here.bill else None, "reason": here.reason,
        "strategies_total": found.strategies_total, "strategies_priced": found.strategies_priced,
        "command": command_of(asked), "html": parts.of_answer(here, sized.question),
    }, sized


def point_of(asked: Asked, sized: Sized) -> Point:
    """Return what the run takes with a strategy, failures as frequent as was asked for."""
    offer = Offer(cluster=sized.question.cluster_text, price=sized.question.price)
    return point(offer, sized, cases_of(asked.failures))


def cases_of(failures: float) -> Cases:
    """Return the whole run of a prediction, with so many times the published failures."""
    def case(question: Question, prediction: Prediction) -> Case:
        plan = plan_from_prediction(question, prediction, None)
        made = run_case(plan, prediction.as_dict(), RunOptions(fleet=FLEET if failures else UNDISTURBED))[0]
        fleet = made.fleet.failing(failures)
        interval = best_interval(made.training, made.checkpoints, fleet)
        return replace(made, fleet=fleet, checkpoints=replace(made.checkpoints, interval_steps=interval))

    return case


def counts_of(asked: Asked, batch: int) -> tuple[Asked, ...]:
    """Return the question on other numbers of its accelerators, at the same global batch, where these can be had."""
    found = []
    for size in SIZES:
        there = asked.model_copy(update={"gpus": round(asked.gpus * size), "global_batch": batch})
        try:
            if there.gpus >= 1 and there.gpus == asked.gpus * size:
                with_num_gpus(machine_of(there), there.gpus)
                found.append(there)
        except BadInput:
            # no whole nodes
            continue
    return tuple(found)


def sizes(asked: Asked, others: Sequence[tuple[Asked, Sized]], own: Sized, *, tell: Tell) -> dict[str, Any]:
    """Return days and dollars on every number of accelerators that was searched, and which of them none beats."""
    points = sorted((point_of(a, s) for a, s in [(asked, own), *others]), key=lambda p: p.num_gpus)
    best = front(points)
    rows = [{
        "num_gpus": p.num_gpus, "days": p.days.as_dict() if p.days else None, "usd": p.usd.as_dict() if p.usd else None,
        "strategy": p.sized.prediction.strategy.describe() if p.sized.prediction else None, "reason": p.reason,
        "is_front": p in best, "is_chosen": p.num_gpus == asked.gpus,
    } for p in points]
    return {"points": rows, "html": parts.of_sizes([p for p in points if runs(p)], best, asked.gpus)}


def whole_plan(asked: Asked, *, tell: Tell) -> dict[str, Any]:
    """Return the files of the plan, byte for byte as `headway plan` writes them, after a search of all strategies."""
    question = question_of(asked)
    found = search(question, None, tell, whole_space(question))
    if found.best is None:
        raise BadInput(f"nothing fits: no strategy of {found.strategies_total:,} does")
    with tempfile.TemporaryDirectory() as folder:
        text = files.read_text(write_plan(plan_from_search(found.question, found), Path(folder) / "plan.yaml"))
    written = {"plan.yaml": text}
    if own_network(asked) is not None:
        written[CLUSTER_FILE] = cluster_text(asked)
    if asked.config is not None:
        written[asked.model] = asked.config
    return {"files": written, "step_time_s": found.best.step_time_s, "strategy": found.best.strategy.describe(),
            "strategies_total": found.strategies_total, "command": command_of(asked)}


def controls(asked: Asked, *, tell: Tell) -> dict[str, Any]:
    """Return the values of every slider for a model and a cluster, and which are theirs where nothing is changed."""
    model, cluster = model_of(asked), machine_of(asked.model_copy(update={"gpus": MOST_GPUS, "network": None}))
    peaks = cluster.accelerator.peak_flop_per_s
    known = [name for name in PRECISIONS if all(dtype in peaks for dtype in filter(None, MATMUL_TYPES[name]))]
    precision = next(name for name in (USUAL_PRECISION, "fp16", *known) if name in known)
    question = ask(model, cluster, tokens=1.0, precision=precision)
    price, node = question.price, cluster.gpus_per_node
    own_rate = f"{significant(cluster.scale_out.bytes_per_s / UNITS['bytes_per_s']['Gb/s'], 6).replace(',', '')} Gb/s"
    own_price = f"{price.usd_per_gpu_hour:g} USD/h" if price else ""
    prices = [f"{usd:g} USD/h" for usd in PRICES]
    lengths = {length for i in range(24) if SHORTEST <= (length := 2**i) <= model.max_seq_len} | {question.seq_len}
    return {
        "values": {
            "gpus": _counts(node, cluster.gpus_per_host or node), "tokens": list(TOKENS),
            "seq_len": sorted(lengths), "network": _with(list(NETWORKS), own_rate, "bytes_per_s"),
            "price": _with(prices, own_price, "usd_per_hour") if price else prices, "failures": list(FAILURES),
        },
        "precisions": known,
        "own": {"seq_len": question.seq_len, "network": own_rate, "price": own_price, "precision": precision},
        "notes": {
            "network": f"between nodes; its own: {own_rate}, {cluster.scale_out.name}",
            "price": f"{own_price}: {price.term}, {price.provider}, {price.date}" if price else "no price known",
            "gpus": f"nodes of {node} x {cluster.accelerator.title}", "failures": "times as many as published fleets had",
        },
    }


def _counts(node: int, host: int) -> list[int]:
    """Return parts of a node, and whole nodes."""
    inside = [n for n in range(1, node) if node % n == 0 and (n <= host or n % host == 0)]
    outside = [node * n for i in range(12) for n in (2**i, 3 * 2 ** (i - 1) if i else 0) if 0 < n * node <= MOST_GPUS]
    return sorted({*inside, *outside})


def _with(texts: list[str], own: str, dimension: str) -> list[str]:
    """Return quantities in rising order with one's own among them."""
    value = parse(own, dimension)
    return sorted([*(t for t in texts if parse(t, dimension) != value), own], key=lambda t: parse(t, dimension))
