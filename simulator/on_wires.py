"""Actions of one pipeline on its wires: what may meet other transfers takes as long as it then takes, all else as laid out."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import simpy

from simulator.coupling import BACKWARD, FORWARD, Coupling
from simulator.inside import Inside, Piece, Program, Span, slow_piece, slowed_s
from simulator.networks import Flow, Wires, through
from simulator.schedules import Action

Running = Generator[Any, Any, float]


class Queued(NamedTuple):
    """A reduction that is ready at a time, and the action that made it."""

    at_s: float
    piece: Piece
    action: Action
    start_s: float


class OnWires:
    """Plays the actions of a pipeline's ranks: `reduced_s` is when each rank has reduced the last gradients."""

    def __init__(self, env: simpy.Environment, num_ranks: int, coupling: Coupling | None) -> None:
        self._played: dict[Action, Inside] = {}
        self._last_s: dict[Action, float] = {}
        self._ways: dict[tuple[int, int], tuple[int, int] | None] = {}
        self.reduced_s = [0.0] * num_ranks
        self._env, self._coupling = env, coupling
        self._wires = Wires(env, coupling.routes, coupling.rivals) if coupling else None
        self._before: list[simpy.Event | None] = [None] * num_ranks
        self._late: list[list[Queued]] = [[] for _ in range(num_ranks)]

    def send(self, place: int, target: int, seconds: float, at_s: float) -> Flow:
        """Return what goes from one place to another, from now on; what goes to no neighbour meets nobody."""
        if (place, target) not in self._ways:
            ways = {(place - 1) % len(self.reduced_s): BACKWARD, (place + 1) % len(self.reduced_s): FORWARD}
            self._ways[place, target] = self._found(place, ways.get(target, ""), "", "")
        return self._flow(self._ways[place, target], seconds, at_s)

    def holds_up(self, place: int, inside: Inside) -> bool:
        """Return whether something that an action waits for may meet another transfer."""
        program = inside.program
        return self._coupling is not None and any(
            piece.seconds > 0 and self._find(place, program, piece)
            for turn in program.turns for piece in (*turn.in_line, *turn.beside))

    def insides(self) -> dict[Action, Inside]:
        """Return what each action did."""
        return self._played | {a: self._played[a]._replace(tail_s=max(0.0, reduced_s - self._played[a].busy_s))
                               for a, reduced_s in self._last_s.items()}

    def act(self, place: int, action: Action, inside: Inside, start_s: float, late: bool) -> Running:
        """Play an action from `start_s` on and return its end; its reductions queue behind it, or (`late`) behind the step's
        last action."""
        spans: list[Span] = []
        self._played[action] = inside._replace(spans=spans)
        if self.holds_up(place, inside):
            end_s = yield from self._play(place, action, inside.program, start_s, late)
            self._played[action] = self._played[action]._replace(busy_s=end_s - start_s)
        else:
            spans.extend(inside.spans)
            end_s = start_s + inside.busy_s
            self._queue(place, [Queued(start_s + at, piece, action, start_s) for at, piece in inside.behind], late)
        yield self._env.timeout(max(0.0, end_s - self._env.now))
        return end_s

    def end_row(self, place: int, end_s: float) -> None:
        """Reduce what has waited for the last action of a rank."""
        self._queue(place, [queued._replace(at_s=end_s) for queued in self._late[place]], late=False)

    def _play(self, place: int, action: Action, program: Program, start_s: float, late: bool) -> Running:
        """Play a program turn by turn, by the rules of `inside.lay_out`."""
        now, spans = start_s, self._played[action].spans
        for turn in program.turns:
            beside = self._env.process(self._run(place, program, turn.beside, now, start_s, spans)) if turn.beside else None
            end = yield from self._run(place, program, turn.in_line, now, start_s, spans)
            beside_end = now if beside is None else (yield beside)
            slowed = slow_piece(turn.unit, slowed_s(program, now, end, beside_end))
            if slowed.seconds > 0:
                spans.append(slowed.span(program.pass_, end - start_s, end - start_s + slowed.seconds))
            now = max(end + slowed.seconds, beside_end)
            self._queue(place, [Queued(now, piece, action, start_s) for piece in turn.behind if piece.seconds > 0], late)
        return now

    def _run(
        self, place: int, program: Program, pieces: list[Piece], now: float, start_s: float, spans: list[Span]
    ) -> Running:
        for piece in pieces:
            if piece.seconds > 0:
                flow = yield from self._pass(place, program, piece, now)
                spans.append(piece.span(program.pass_, flow.begin_s - start_s, flow.end_s - start_s))
                now = flow.end_s
        return now

    def _queue(self, place: int, queued: list[Queued], late: bool) -> None:
        if late:
            self._late[place] += queued
        elif queued:
            self._before[place] = self._env.process(self._reduce(place, queued, self._before[place]))

    def _reduce(self, place: int, queued: list[Queued], before: simpy.Event | None) -> Generator[Any, Any, None]:
        """Reduce what is queued, behind what was queued before."""
        if before is not None and not before.processed:
            yield before
        for at_s, piece, action, start_s in queued:
            inside = self._played[action]
            flow = yield from self._pass(place, inside.program, piece, max(at_s, self.reduced_s[place]))
            inside.spans.append(piece.span(inside.program.pass_, flow.begin_s - start_s, flow.end_s - start_s))
            self.reduced_s[place] = flow.end_s
            self._last_s[action] = flow.end_s - start_s

    def _pass(self, place: int, program: Program, piece: Piece, at_s: float) -> Generator[Any, Any, Flow]:
        """Return a piece's way from `at_s` on, when it is done; what meets nobody is as good as done at once."""
        found = self._find(place, program, piece)
        if found is None:
            return Flow(at_s, piece.seconds)
        yield self._env.timeout(max(0.0, at_s - self._env.now))
        flow = self._flow(found, piece.seconds, at_s)
        yield from through(self._env, flow)
        return flow

    def _flow(self, found: tuple[int, int] | None, seconds: float, at_s: float) -> Flow:
        return Flow(at_s, seconds) if found is None or self._wires is None else self._wires.start(*found, seconds, at_s)

    def _find(self, place: int, program: Program, piece: Piece) -> tuple[int, int] | None:
        what = piece.what if piece.stream == "dp" else "F" if program.pass_ == "F" else "B"
        return self._found(place, piece.stream, what, piece.unit.part)

    def _found(self, place: int, lane: str, what: str, part: str) -> tuple[int, int] | None:
        return None if self._coupling is None else self._coupling.find(lane, what, part, place)
