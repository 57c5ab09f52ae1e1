"""The grammar of schedule tables, which is torch's: `2F0` is stage 2, forward, micro-batch 0."""

from __future__ import annotations

import csv
import re
from typing import NamedTuple

from profiles.files import BadInput

OVERLAP = "OVERLAP_F_B"


class Action(NamedTuple):
    """One pass of one micro-batch through one stage: F forward, B backward, or its halves I (input gradient) and W
    (weight gradient).

    A forward and a backward that run as one, `(0F5;7B1)OVERLAP_F_B`, are one action of two `parts`, which belongs to no
    stage and no micro-batch (-1).
    """

    stage: int
    pass_: str
    microbatch: int
    parts: tuple[Action, ...] = ()

    def __str__(self) -> str:
        if self.parts:
            return f"({';'.join(str(a) for a in self.parts)}){self.pass_}"
        return f"{self.stage}{self.pass_}{self.microbatch}"


Table = list[list[Action]]
"""Per rank, its actions in order."""

_ACTION = re.compile(r"(\d+)([FBIW])(\d+)", re.ASCII)
_PAIR = re.compile(r"\(([^;()]+);([^;()]+)\)" + OVERLAP)
_COMMUNICATION = re.compile(r"\d+(UNSHARD|RESHARD|REDUCE_GRAD|(SEND|RECV)_[FB]\d+)", re.ASCII)


def overlap(forward: Action, backward: Action) -> Action:
    """Return a forward and a backward as one action."""
    return Action(-1, OVERLAP, -1, (forward, backward))


def passes(action: Action) -> tuple[Action, ...]:
    """Return the passes of an action: itself, or the two of an overlapped pair."""
    return action.parts or (action,)


def parse_action(text: str, origin: str = "schedule") -> Action:
    """Return the action that is written as in torch; `origin` is named in errors."""
    text = text.strip()
    if match := _PAIR.fullmatch(text):
        pair = overlap(parse_action(match[1], origin), parse_action(match[2], origin))
        if [a.pass_ for a in pair.parts] != ["F", "B"]:
            raise BadInput(f"{origin}: {text!r} overlaps other passes than a forward and a backward, like '(0F5;7B1){OVERLAP}'")
        return pair
    if match := _ACTION.fullmatch(text):
        return Action(int(match[1]), match[2], int(match[3]))
    raise BadInput(f"{origin}: {text!r} is not an action; write stage, pass (F, B, I or W) and micro-batch like '2F0'")


def format_table(table: Table) -> str:
    """Return a table as CSV, one rank a line: the form that torch's `_load_csv` reads."""
    return "".join(",".join(str(a) for a in row) + "\n" for row in table)


def parse_table(text: str, origin: str = "schedule") -> Table:
    """Return the table in CSV text, one rank a line.

    Empty cells (idle slots) are left out, and so are torch's communication actions, which its default dump has
    (SEND_F, RECV_F, SEND_B, RECV_B, UNSHARD, RESHARD, REDUCE_GRAD): what is sent and gathered follows from the passes.
    """
    return [
        [parse_action(cell, f"{origin}: line {line}, cell {i}") for i, cell in enumerate(cells, 1)
         if cell.strip() and not _COMMUNICATION.fullmatch(cell.strip())]
        for line, cells in enumerate(csv.reader(text.rstrip().splitlines()), 1)
    ]
