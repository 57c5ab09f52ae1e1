"""`headway estimate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.plan import plan_from_prediction, write_plan
from planner.pools import pool_as_dict
from planner.predict import predict
from reports.bill_tables import bill_tables, plan_bill
from reports.console import console
from reports.plan_tables import prediction_table, print_assumptions, title_of
from reports.pool_tables import pool_tables
from reports.verbs.options import ClusterArg, Model, QuestionOptions, StrategyOptions, Tokens, unfolded
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples(
    "estimate llama-3-70b dgx-h100:8 --tp 8 --pp 2 --zero 1 --tokens 2T",
    "estimate mixtral-8x7b dgx-a100:4 --ep 8 --pp 2 --zero 1 --recompute selective --json",
))
@unfolded
def estimate(
    model: Model,
    cluster: ClusterArg,
    strategy: StrategyOptions,
    about: QuestionOptions,
    tokens: Tokens = "1T",
    out: Annotated[Path | None, typer.Option(help="Write the strategy as a plan file, too.")] = None,
    as_json: Json = False,
) -> None:
    """Price one given strategy: step time, memory, days, dollars. Exit status 1 if it does not fit."""
    question = about.question(model, cluster, tokens)
    prediction = predict(question, strategy.strategy(question))
    plan = plan_from_prediction(question, prediction, about.profile)
    if out is not None:
        write_plan(plan, out)
    paid = plan_bill(plan)
    pool = pool_as_dict(question, prediction) if question.cluster.parts else {}
    if as_json:
        print_json(plan.prediction | {"bill": paid.as_dict()} | ({"pool": pool} if pool else {}))
    else:
        console.print(prediction_table(plan.prediction, prediction.strategy, title_of(question)))
        if pool:
            console.print(*pool_tables(pool), sep="\n")
        console.print(*bill_tables(paid), sep="\n")
        print_assumptions(question, paid.assumptions)
    raise typer.Exit(0 if prediction.fits else 1)
