"""What passes wait for, and the check that a table is whole and can run."""

from __future__ import annotations

from profiles.files import BadInput
from simulator.schedules.actions import Action, Table, passes


def needs(action: Action, num_stages: int) -> list[Action]:
    """Return the results that an action waits for besides its place in the row, as `results` names them.

    F takes the output of the stage before; B and I the gradient of the stage after, and their own F; W its own I. An
    overlapped pair waits for what both of its passes need.
    """
    found: list[Action] = []
    for stage, pass_, microbatch, _ in passes(action):
        if pass_ == "W":
            found.append(Action(stage, "I", microbatch))
        elif pass_ != "F":
            found.append(Action(stage, "F", microbatch))
            if stage < num_stages - 1:
                found.append(Action(stage + 1, "I", microbatch))
        elif stage > 0:
            found.append(Action(stage - 1, "F", microbatch))
    return found


def results(action: Action) -> list[Action]:
    """Return what is there when an action is done: the outputs of an F; the gradient of inputs, named I, of a B or an I."""
    return [Action(a.stage, "F" if a.pass_ == "F" else "I", a.microbatch) for a in passes(action) if a.pass_ != "W"]


def homes(table: Table) -> dict[int, int]:
    """Return the rank of each stage of a table."""
    return {a.stage: rank for rank, row in enumerate(table) for slot in row for a in passes(slot)}


def sent_to(result: Action, home: dict[int, int]) -> int | None:
    """Return the rank to which a result is sent: that of the next stage for an output, of the one before for a gradient;
    None where it stays on its rank or is the model's end."""
    target = home.get(result.stage + 1 if result.pass_ == "F" else result.stage - 1)
    return None if target == home[result.stage] else target


def check_table(table: Table, num_stages: int, num_microbatches: int, origin: str = "schedule") -> None:
    """Refuse a table that misses or repeats a pass, that moves a stage between ranks, or that deadlocks."""
    where: dict[Action, int] = {}
    home: dict[int, tuple[int, Action]] = {}
    for rank, row in enumerate(table):
        for action in (a for slot in row for a in passes(slot)):
            if action in where:
                raise BadInput(f"{origin}: {action} stands twice, on rank {where[action]} and on rank {rank}")
            where[action] = rank
            at, first = home.setdefault(action.stage, (rank, action))
            if at != rank:
                raise BadInput(f"{origin}: stage {action.stage} stands on rank {at} ({first}) and on rank {rank} ({action}); "
                               "a stage has one rank")
    for stage in range(num_stages):
        for microbatch in range(num_microbatches):
            _check_passes(stage, microbatch, where, f"of {num_stages} stages and {num_microbatches} micro-batches", origin)
    for action in where:
        if action.stage >= num_stages or action.microbatch >= num_microbatches:
            raise BadInput(f"{origin}: {action} is outside {num_stages} stages and {num_microbatches} micro-batches")
    _check_progress(table, num_stages, where, origin)


def _check_passes(stage: int, microbatch: int, where: dict[Action, int], shape: str, origin: str) -> None:
    """Refuse other passes of a micro-batch through a stage than F and B, or F, I and W."""
    found = [q for q in "FBIW" if Action(stage, q, microbatch) in where]
    if found in (["F", "B"], ["F", "I", "W"]):
        return
    if "B" in found and ("I" in found or "W" in found):
        raise BadInput(f"{origin}: {stage}B{microbatch} and {stage}{found[-1]}{microbatch} both stand in the table; "
                       "a backward is whole (B) or split (I and W)")
    split = "I" in found or "W" in found
    lacks = next(q for q in ("FIW" if split else "FB") if q not in found)
    either = " (or its halves I and W)" if lacks == "B" else ""
    raise BadInput(f"{origin}: {stage}{lacks}{microbatch}{either} is missing {shape}")


def _check_progress(table: Table, num_stages: int, where: dict[Action, int], origin: str) -> None:
    """Refuse a table that deadlocks; the actions that wait, each for what stands behind the other, are named."""
    position, done = [0] * len(table), set[Action]()
    waiting: dict[Action, list[int]] = {}
    ready = list(range(len(table)))
    while ready:
        rank = ready.pop()
        row = table[rank]
        while position[rank] < len(row):
            action = row[position[rank]]
            lacking = next((n for n in needs(action, num_stages) if n not in done), None)
            if lacking is not None:
                waiting.setdefault(lacking, []).append(rank)
                break
            position[rank] += 1
            for result in results(action):
                done.add(result)
                ready += waiting.pop(result, [])
    blocked = {rank: lacking for lacking, ranks in waiting.items() for rank in ranks}
    if not blocked:
        return
    # follow who waits for whom: every rank that waits does so for another that waits, so the way closes
    way, rank = list[int](), min(blocked)
    while rank not in way:
        way.append(rank)
        rank = where[_written(blocked[rank], where)]
    ring = way[way.index(rank):]
    waits = [f"{table[r][position[r]]} on rank {r} waits for {_written(blocked[r], where)}" for r in ring[:2]]
    more = f", and so on round {len(ring)} ranks" if len(ring) > 2 else ""
    behind = ", which does not stand before it" if len(ring) == 1 else more
    raise BadInput(f"{origin}: deadlock: {' and '.join(waits)}{behind}")


def _written(result: Action, where: dict[Action, int]) -> Action:
    """Return the pass of the table that gives a result: the gradient of inputs comes of an I or of a B."""
    return result if result in where else result._replace(pass_="B")
