"""Actions and tables: the grammar, and the check that a table can run."""

from __future__ import annotations

import re
from typing import NamedTuple

from profiles.files import BadInput


class Action(NamedTuple):
    """One pass of one micro-batch through one stage, written `2F0`: stage 2, forward, micro-batch 0."""

    stage: int
    pass_: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.pass_}{self.microbatch}"


Table = list[list[Action]]
"""Per rank, its actions in order."""

_ACTION = re.compile(r"^(\d+)([FBIW])(\d+)$")


def parse_action(text: str) -> Action:
    """Return the action that is written as in torch: F forward, B backward, I input gradient, W weight gradient."""
    match = _ACTION.match(text.strip())
    if not match:
        raise BadInput(f"schedule: {text!r} is not an action; write stage, pass and micro-batch like '2F0'")
    return Action(int(match[1]), match[2], int(match[3]))


def format_table(table: Table) -> str:
    """Return a table as CSV, one rank a line: the form that torch's `_load_csv` reads."""
    return "".join(",".join(str(a) for a in row) + "\n" for row in table)


def parse_table(text: str) -> Table:
    """Return the table in CSV text; empty cells are idle slots and are left out."""
    rows = [line.split(",") for line in text.splitlines() if line.strip()]
    return [[parse_action(cell) for cell in row if cell.strip()] for row in rows]


def check_table(table: Table, num_stages: int, num_microbatches: int) -> None:
    """Refuse a table that misses or repeats an action, or that deadlocks (the two actions that wait are named)."""
    where: dict[Action, int] = {}
    for rank, row in enumerate(table):
        for action in row:
            if action in where:
                raise BadInput(f"schedule: {action} stands twice, on rank {where[action]} and on rank {rank}")
            where[action] = rank
    for stage in range(num_stages):
        for microbatch in range(num_microbatches):
            for pass_ in "FB":
                if Action(stage, pass_, microbatch) not in where:
                    raise BadInput(f"schedule: {Action(stage, pass_, microbatch)} is missing")
    extra = [a for a in where if a.stage >= num_stages or a.microbatch >= num_microbatches]
    if extra:
        raise BadInput(
            f"schedule: {extra[0]} is outside {num_stages} stages and {num_microbatches} micro-batches"
        )
    _check_progress(table, num_stages)


def needs(action: Action, num_stages: int) -> list[Action]:
    """Return what an action waits for besides its place in the row: its neighbour's F or B, and its own F."""
    stage, pass_, microbatch = action
    if pass_ == "F":
        return [Action(stage - 1, "F", microbatch)] if stage > 0 else []
    own = [Action(stage, "F", microbatch)]
    return own + ([Action(stage + 1, "B", microbatch)] if stage < num_stages - 1 else [])


def _check_progress(table: Table, num_stages: int) -> None:
    position, done = [0] * len(table), set[Action]()
    progressed = True
    while progressed:
        progressed = False
        for rank, row in enumerate(table):
            while position[rank] < len(row) and all(n in done for n in needs(row[position[rank]], num_stages)):
                done.add(row[position[rank]])
                position[rank] += 1
                progressed = True
    stuck = [row[i] for row, i in zip(table, position, strict=True) if i < len(row)]
    if stuck:
        waits = next(n for n in needs(stuck[0], num_stages) if n not in done)
        raise BadInput(f"schedule: deadlock: {stuck[0]} waits for {waits}, which never comes")
