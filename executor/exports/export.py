"""What an export is, and the facts of a plan that several targets need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from planner.plan import Plan
from simulator.layout import order_of
from simulator.strategy import Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The files of an export by name, what they leave to the user (`notes`), and why there are none (`refusals`)."""

    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


def hosts(plan: Plan) -> tuple[int, int]:
    """Return the machines that the plan runs on, and the accelerators of each; a machine is what one system runs on."""
    cluster = plan.question.cluster
    gpus = math.gcd(cluster.gpus_per_node, cluster.gpus_per_host or cluster.gpus_per_node)
    return cluster.num_gpus // gpus, gpus


ONE_KIND = ("slurm", "kubernetes", "skypilot")
"""Launchers whose files ask for so many nodes of one kind."""


def pool_refusals(plan: Plan, target: str) -> Iterator[str]:
    """Yield why a target cannot say what a pool of unlike machines is, if it cannot."""
    cluster = plan.question.cluster
    if not cluster.parts:
        return
    if target in ONE_KIND:
        yield (f"cluster {cluster.machines}: the files for {target} ask for nodes of one kind, and do not order those of two; "
               "export to torchrun, and start its script on each machine in the order of the ranks")
    sizes = sorted({part.gpus_per_host or part.gpus_per_node for part in cluster.parts})
    if len(sizes) > 1:
        yield f"cluster {cluster.machines}: hosts of {' and '.join(map(str, sizes))} accelerators have no one launch line"


def pool_notes(plan: Plan) -> Iterator[str]:
    """Yield which machines of a pool have which ranks: that decides which stage stands on which accelerator."""
    parts, begin = plan.question.cluster.parts, 0
    said = []
    for part in parts:
        num = part.num_gpus // (part.gpus_per_host or part.gpus_per_node)
        said.append(f"{begin} to {begin + num - 1} on {part.title}" if num > 1 else f"{begin} on {part.title}")
        begin += num
    if said:
        yield f"unlike machines: start node ranks {', '.join(said)}; pipeline stages were laid out for that order"


def num_steps(plan: Plan) -> int:
    """Return the steps in which the plan's tokens are trained."""
    return math.ceil(plan.question.tokens / float(plan.strategy.tokens_per_step))


def laid_out(strategy: Strategy, order: str) -> bool:
    """Return whether the ranks of a strategy lie as in an order of axes, innermost first; axes of one rank do not count."""
    def real(axes: tuple[str, ...]) -> list[str]:
        return [a for a in axes if getattr(strategy, a) > 1]

    return real(order_of(strategy)) == real(tuple(order.split("-")))


def notes_of(plan: Plan, framework: str) -> Iterator[str]:
    """Yield what holds for every framework: what the plan does not know, and what it assumes and no setting makes."""
    s = plan.strategy
    yield from pool_notes(plan)
    yield ("learning rate and its schedule, the optimizer's betas and weight decay, tokenizer, data and checkpoints are not in "
           f"the plan: {framework}'s defaults stand")
    yield f"the plan's times and bytes are those of software {s.software.name!r} ({s.software.framework}, {s.software.year})"
    if s.imbalance != 1:
        yield f"imbalance={s.imbalance} is what the plan assumes of the router; no setting makes it"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, for people to read."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def yaml_text(data: Mapping[str, Any], notes: tuple[str, ...] = ()) -> str:
    """Return a mapping as YAML in its own order, with notes in front."""
    return comments(notes) + yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120)


def comments(lines: Mapping[str, str] | tuple[str, ...], mark: str = "#") -> str:
    """Return lines as comments of a file."""
    return "".join(f"{mark} {line}\n" for line in lines)
