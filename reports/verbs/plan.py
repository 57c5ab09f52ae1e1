"""`headway plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from executor.engine import refusal
from planner.plan import Plan, plan_from_search, write_plan
from planner.pools import Alone, parts_alone, pool_as_dict
from planner.question import Question
from planner.search import Refuse, search
from planner.space import AXES
from profiles import files
from profiles.files import BadInput
from profiles.hardware import Price
from reports.bill_tables import bill_tables, plan_bill
from reports.console import console, progress, screen_width, status
from reports.goal_tables import goal_figure, goal_json, goal_screen
from reports.goals_command import Asked, GoalOptions, answer_goal, exit_status, goal_options, spaces
from reports.page import brief, summary, write_page
from reports.plan_tables import plan_json, prediction_table, print_assumptions, rejected_table, runners_up_table, title_of
from reports.pool_tables import pool_tables
from reports.verbs.options import Model, QuestionOptions, Tokens, unfolded
from reports.verbs.style import Json, examples, names_of, print_json, verb_app
from simulator.software import TORCH

app = verb_app()

AXES_HELP = ("Search only these values of an axis, like tp=1,2,4; may be repeated. Axes: "
             + "; ".join(f"{name}: {what}" for name, what in AXES.items()) + ".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """Options that ask for more than the fastest strategy on all of one cluster."""

    deadline: Annotated[str | None, typer.Option(help="To end in so long, like 30d: the fewest accelerators that do.")] = None
    budget: Annotated[str | None, typer.Option(help="To cost at most so much, like 5M: the fastest that does.")] = None
    max_gpus: Annotated[int | None, typer.Option(help="At most so many accelerators, fewer if they are as fast.")] = None
    counts: Annotated[str | None, typer.Option(help="Accelerators to try, like 8,16. [nodes: 1, 2, 3, 4, 6, 8, ...]")] = None
    terms: Annotated[str | None, typer.Option(help="Terms to compare, like on-demand,spot. [all, with --clusters]")] = None
    failures: Annotated[str | None, typer.Option(help="Count failures: a fleet's name ('published') or a YAML. [none]")] = None
    preemptions_per_day: Annotated[float | None, typer.Option(help="How often a spot node is taken back. [10.5]")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What becomes of a plan: the file, whether the page goes beside it, and what is printed."""

    out: Path
    page: bool
    verbose: bool
    as_json: bool

    def check(self, goal: bool) -> None:
        """Raise `BadInput` where a file could not be written: before long work."""
        files.check_target(self.out)
        for suffix in ((".html", ".svg") if goal else (".html",)) if self.page else ():
            if self.out.suffix == suffix:
                raise BadInput(f"out: {self.out} would be overwritten by the page; name the plan file, like 'plan.yaml'")
            files.check_target(self.out.with_suffix(suffix))

    def write(self, plan: Plan) -> list[Path]:
        """Write the page if it is asked for; return what was written."""
        return [write_page(plan, self.out.with_suffix(".html"))] if self.page else []


POOL_SHARE = 0.7
"""Of the progress, what the search of a pool takes; the rest are those of its parts alone."""


@app.command(epilog=examples(
    "plan llama-3-70b dgx-h100:16 --tokens 2T", "plan llama-3-8b dgx-h100:32 --tokens 1T --deadline 14d",
    "plan llama-3-8b dgx-h100:32 --tokens 1T --budget 200k --odds p90 --failures published",
    "plan llama-3-8b --clusters dgx-h100:4,dgx-a100:8 --terms on-demand,spot --tokens 300B",
    "plan gpt2 local --profile here.csv --tokens 10M",
))
@unfolded
def plan(
    model: Model,
    goals: Goals,
    about: QuestionOptions,
    tokens: Tokens,
    cluster: Annotated[str | None, typer.Argument(
        help="Catalogue name and nodes ('dgx-h100:16'), several as a pool ('dgx-a100:8+dgx-h100:8'), a YAML, or "
        "'local[:ranks]'. [--clusters]", show_default=False,
        autocompletion=names_of("clusters"),
    )] = None,
    clusters: Annotated[str | None, typer.Option(help="Machines to compare, like dgx-h100:16,p5:8.")] = None,
    odds: Annotated[str | None, typer.Option(help="Percentile to meet deadline and budget: p10, p50 or p90. [p50]")] = None,
    axis: Annotated[list[str] | None, typer.Option("--search", help=AXES_HELP)] = None,
    runnable: Annotated[bool, typer.Option(help="Only strategies that `headway run` can run. [on for 'local']")] = False,
    out: Annotated[Path, typer.Option(help="The plan file to write.")] = Path("plan.yaml"),
    page: Annotated[bool, typer.Option("--page", help="Write the page (.html) beside the plan, and a goal's figure (.svg); "
                                       "`headway report` makes the page, too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all tables below the summary: the bill, prices by "
                                          "term, what was considered, what was left out and why, what was assumed.")] = False,
    as_json: Json = False,
) -> None:
    """Choose the strategy, with a deadline or a budget also how many accelerators, of several machines also which: price all,
    replay the best, write the plan. Exit status 1 if nothing fits or no plan meets the goal."""
    options = goal_options(cluster, clusters, axis or (), odds, about.price, **asdict(goals))
    shown = Shown(out=out, page=page, verbose=verbose, as_json=as_json)
    shown.check(goal=options is not None)

    def question_of(name: str, price: str | Price | None, length: int | None, batch: int | None) -> Question:
        shaped = replace(about, seq_len=length or about.seq_len, global_batch=batch or about.global_batch, price=None)
        return shaped.question(model, name, tokens, price)

    def refuse_of(question: Question) -> Refuse | None:
        device = question.cluster.accelerator.device
        engine_only = runnable or question.cluster.table is not None
        return (lambda s: refusal(s, question.model, device)) if engine_only else None

    if options is not None:
        _plan_for_goal(options, Asked(question=question_of, refuse=refuse_of, profile=about.profile), shown)
    assert cluster is not None
    question = about.question(model, cluster, tokens)
    whole, alone = spaces(axis or ())[1], tuple[Alone, ...]()
    with progress("searching strategies") as advance:
        share = POOL_SHARE if question.cluster.parts else 1.0
        found = search(question, refuse_of(question), lambda x: advance(share * x, ""), whole(question))
        if question.cluster.parts:
            alone = parts_alone(found.question, refuse_of(question), whole,
                                lambda x: advance(share + (1 - share) * x, "its parts alone"))
    if found.best is None:
        if as_json:
            print_json(plan_json(None, found) | {"bill": None})
        else:
            console.print(rejected_table(found))
        status.print(f"headway: nothing fits: no strategy of {found.strategies_total:,} does", soft_wrap=True)
        raise typer.Exit(1)
    plan_ = plan_from_search(found.question, found, about.profile)
    write_plan(plan_, out)
    pages = shown.write(plan_)
    paid = plan_bill(plan_)
    pool = pool_as_dict(found.question, found.best, alone) if question.cluster.parts else {}
    if as_json:
        print_json(plan_json(plan_, found) | {"bill": paid.as_dict()} | ({"pool": pool} if pool else {}))
        _warn_of_refusal(plan_)
        return
    print(summary(brief(plan_), out, screen_width()))
    if verbose:
        console.print(prediction_table(plan_.prediction, plan_.strategy, title_of(question)))
        if pool:
            console.print(*pool_tables(pool), sep="\n")
        console.print(*bill_tables(paid), sep="\n")
        console.print(runners_up_table(found.best, found.runners_up))
        console.print(rejected_table(found))
        print_assumptions(question, paid.assumptions)
    console.print(", ".join(map(str, (out, *pages))), soft_wrap=True)
    _warn_of_refusal(plan_)


def _plan_for_goal(options: GoalOptions, asked: Asked, shown: Shown) -> NoReturn:
    with progress("searching counts and strategies") as advance:
        answer = answer_goal(options, asked, advance)
    written = []
    if answer.plan is not None:
        written = [write_plan(answer.plan, shown.out), *shown.write(answer.plan)]
    if shown.page and (figure := goal_figure(answer)):
        written.append(files.write_text(shown.out.with_suffix(".svg"), figure))
    if shown.as_json:
        print_json(goal_json(answer))
    else:
        console.print(goal_screen(answer, title_of(answer.plan.question) if answer.plan else "", shown.verbose))
        console.print(", ".join(map(str, written)), soft_wrap=True)
    if reason := answer.considered.binding or ("" if answer.plan else "nothing fits on any of these"):
        status.print(f"headway: {reason}", soft_wrap=True)
    if answer.plan is not None:
        _warn_of_refusal(answer.plan)
    raise typer.Exit(exit_status(answer))


def _warn_of_refusal(plan: Plan) -> None:
    """Say why Headway's own engine cannot run a plan that is made for it."""
    strategy, question = plan.strategy, plan.question
    why = refusal(strategy, question.model, question.cluster.accelerator.device)
    if why is not None and strategy.software.name == TORCH.name:
        status.print(f"headway: warning: `headway run` cannot run this plan: {why}; --runnable searches what it can, "
                     "--software names what else trains", soft_wrap=True, highlight=False, markup=False)
