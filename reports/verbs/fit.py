"""`headway fit`."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import typer

from planner.fit import fit as fit_strategy
from planner.plan import plan_from_prediction
from planner.readers import software_of
from profiles.hardware import load_cluster
from reports.console import console
from reports.fit_command import asked_of, fit_json, fit_screen
from reports.plan_tables import print_assumptions, title_of
from reports.verbs.options import QuestionOptions, StrategyOptions, Tokens, unfolded
from reports.verbs.style import Json, examples, print_json, verb_app

app = verb_app()


@app.command(epilog=examples(
    "fit llama-3-70b dgx-h100:1 --tp 8", "fit plan.yaml", "fit --from pretrain.sh dgx-a100:16",
    "fit --from ds_config.json llama-3-8b dgx-a100:1",
))
@unfolded
def fit(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(
        metavar="MODEL CLUSTER | PLAN", help="A model and a cluster, or a plan file; with --from a cluster, and a model before "
        "it where the file states none."
    )],
    strategy: StrategyOptions,
    about: QuestionOptions,
    from_: Annotated[Path | None, typer.Option(
        "--from", help="A run that you have: Megatron-LM's script or arguments (.sh, .txt, .yaml), torchtitan's .toml, "
        "DeepSpeed's .json."
    )] = None,
    tokens: Tokens = "1T",
    as_json: Json = False,
) -> None:
    """Say whether a run fits, with how much room, and what would make it fit. Exit status 1 if it does not."""
    given = [name for name in ctx.params if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")]
    asked = asked_of(names, from_, given)
    if asked.plan is not None:
        question, chosen = asked.plan.question, asked.plan.strategy
    else:
        values = asked.options(given, ctx.params, about.gpus or load_cluster(asked.cluster, about.profile).num_gpus)
        about = replace(about, **{f.name: values[f.name] for f in fields(about)})
        made = software_of(asked.reading, about.software, about.precision or "") if asked.reading else None
        question = about.question(asked.model, asked.cluster, tokens, software=made)
        chosen = replace(strategy, **{f.name: values[f.name] for f in fields(strategy)}).strategy(question)
    found = fit_strategy(question, chosen)
    if as_json:
        plan = plan_from_prediction(question, found.prediction, asked.plan.profile if asked.plan else about.profile)
        print_json(fit_json(found, plan.prediction, asked.reading))
    else:
        console.print(fit_screen(found, title_of(question), asked.reading))
        print_assumptions(question)
    raise typer.Exit(0 if found.prediction.fits else 1)
