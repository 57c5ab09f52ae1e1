"""What `headway fit` is asked, and what it shows: the verdict, the memory stack, the largest that fits, what would help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from planner.fit import MOST_GPUS, Change, Fit
from planner.plan import Plan, read_plan
from planner.readers import Reading, completed, read_config
from profiles.files import BadInput
from profiles.model import ModelSpec
from profiles.units import show, significant

BAR = 40
"""Columns of the longest bar of the memory stack."""
NUM_NAMED = 12
"""Ignored fields that the terminal names; --json has all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be fitted: a plan, or a model (a name, or the one that a file states) on a cluster, perhaps as a file says."""

    plan: Plan | None = None
    model: str | ModelSpec = ""
    cluster: str = ""
    reading: Reading | None = None

    def options(self, given: Iterable[str], values: Mapping[str, Any], num_gpus: int) -> dict[str, Any]:
        """Return all options: those `given` on the command line, what the file says, what is usual."""
        if self.reading is None:
            return dict(values)
        return completed(self.reading, {name: values[name] for name in given}, values, num_gpus)


def asked_of(names: Sequence[str], file: Path | None, given: Iterable[str]) -> Asked:
    """Return what arguments and `--from` ask: a plan alone; MODEL CLUSTER; or a file with CLUSTER, and MODEL where needed."""
    if len(names) > 2:
        raise BadInput(f"names: {names[2]!r} is one too many; write MODEL CLUSTER, a plan file, or --from FILE [MODEL] CLUSTER")
    if file is not None:
        reading = read_config(file, with_model=len(names) == 1)
        return Asked(model=names[0] if len(names) == 2 else _stated_model(reading), cluster=names[-1], reading=reading)
    if len(names) == 2:
        return Asked(model=names[0], cluster=names[1])
    if not names[0].endswith((".yaml", ".yml")):
        raise BadInput(f"names: {names[0]!r} is no plan file (.yaml); write MODEL CLUSTER, or --from FILE [MODEL] CLUSTER")
    extra = sorted(set(given) - {"as_json", "names"})
    if extra:
        raise BadInput(f"--{extra[0].replace('_', '-')}: a plan file states its own; edit {names[0]}")
    return Asked(plan=read_plan(names[0]))


def _stated_model(reading: Reading) -> ModelSpec:
    assert reading.model is not None
    return reading.model


def fit_json(fit: Fit, prediction: Mapping[str, Any], reading: Reading | None) -> dict[str, Any]:
    """Return what `fit --json` prints: the keys of `estimate`, the room, the largest that fits, what would help."""
    source = None if reading is None else {
        "framework": reading.framework, "ignored": list(reading.ignored), "unknown": list(reading.unknown),
        "notes": list(reading.notes),
    }
    return {
        **prediction, "room_bytes": fit.room_bytes, "largest_micro_batch": fit.largest_micro_batch,
        "largest_dividing_micro_batch": fit.largest_dividing_micro_batch, "largest_seq_len": fit.largest_seq_len,
        "changes": [_change_json(c) for c in fit.changes],
        "fewest_gpus": _change_json(fit.fewest_gpus) if fit.fewest_gpus else None, "source": source,
    }


def _change_json(change: Change) -> dict[str, Any]:
    data = change.as_dict()
    data["strategy"].pop("software")
    return data


def fit_screen(fit: Fit, title: str, reading: Reading | None) -> Group:
    """Return what the terminal shows."""
    shown: list[RenderableType] = [_stack(fit, title), Text("\n".join(_largest(fit)))]
    if not fit.prediction.fits:
        shown += _help(fit)
    if reading is not None:
        shown += _source(fit, reading)
    return Group(*shown)


def _stack(fit: Fit, title: str) -> Table:
    p, room = fit.prediction, fit.room_bytes
    verdict = f"fits, with {show(room, 'bytes')} of room" if p.fits else f"DOES NOT FIT: short by {show(-room, 'bytes')}"
    table = Table(title=f"{title}\n{p.strategy.describe()}\n{verdict}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    whole, done = max(p.peak_memory_bytes, p.usable_memory_bytes), 0.0
    for name, held in p.memory_bytes.items():
        begin, end = round(BAR * done / whole), round(BAR * (done + held) / whole)
        done += held
        table.add_row(name, show(held, "bytes"), f"{held / p.usable_memory_bytes:.1%}", " " * begin + "█" * (end - begin))
    edge = round(BAR * p.usable_memory_bytes / whole)
    table.add_row("fullest rank", show(p.peak_memory_bytes, "bytes"), f"{p.peak_memory_bytes / p.usable_memory_bytes:.1%}",
                  "─" * round(BAR * p.peak_memory_bytes / whole))
    table.add_row("usable", show(p.usable_memory_bytes, "bytes"), "", " " * (edge - 1) + "▏")
    table.add_row("step", show(p.step_time_s, "s"), "", f"{show(p.tokens_per_s, 'count')} tokens/s "
                  f"({significant(p.tokens_per_s_per_gpu, 4)} a GPU)")
    return table


def _largest(fit: Fit) -> list[str]:
    """Return in words the largest micro-batch and sequence that fit."""
    strategy, context = fit.prediction.strategy, fit.question.model.max_seq_len
    micro, dividing, longest = fit.largest_micro_batch, fit.largest_dividing_micro_batch, fit.largest_seq_len
    num = int(strategy.num_microbatches)
    at = f"at the same {num} micro-batches" if num > 1 else "in a step of one micro-batch"
    within = f"{dividing} of the same global batch of {fit.question.global_batch}" if dividing else \
        f"none of the same global batch of {fit.question.global_batch}"
    beyond = f"; the model's context is {context:,}" if longest > context else ""
    return [
        f"largest micro-batch: {micro} {at}, {within}" if micro else f"largest micro-batch: not even 1 {at}; {within}",
        f"longest sequence: {longest:,} tokens{beyond}" if longest else
        f"longest sequence: not even {fit.seq_len_step} tokens",
    ]


def _help(fit: Fit) -> list[RenderableType]:
    """Return what would make it fit, the cheapest first."""
    usable, num, fewest = fit.prediction.usable_memory_bytes, fit.question.cluster.num_gpus, fit.fewest_gpus
    shown: list[RenderableType] = []
    if fit.changes:
        table = Table(title="What would make it fit, the least time of accelerators for a token first", title_justify="left")
        for name in ("change", "GPUs", "memory", "room", "step", "tokens/s", "against now", "a GPU"):
            table.add_column(name, justify="left" if not table.columns else "right")
        for c in fit.changes:
            table.add_row(
                c.title, str(c.num_gpus), show(c.peak_memory_bytes, "bytes"), show(usable - c.peak_memory_bytes, "bytes"),
                show(c.step_time_s, "s"), show(c.tokens_per_s, "count"), f"{c.tokens_per_s_change:+.0%}",
                f"{c.tokens_per_s_per_gpu_change:+.0%}",
            )
        shown.append(table)
    else:
        shown.append(Text("No single change makes it fit, and no two."))
    if fewest is None:
        shown.append(Text(f"Nothing in this space makes it fit, on up to {MOST_GPUS:,} accelerators."))
        return shown
    beyond = f"Nothing in this space makes it fit on {num}. " if fewest.num_gpus > num else ""
    return [*shown, Text(
        f"{beyond}It needs at least {fewest.num_gpus} accelerators: {fewest.strategy.describe()}; "
        f"{show(fewest.peak_memory_bytes, 'bytes')}, a step in {show(fewest.step_time_s, 's')}"
    )]


def _source(fit: Fit, reading: Reading) -> list[RenderableType]:
    """Return what was made of another tool's file."""
    num = fit.question.cluster.num_gpus
    started = f"the file starts {reading.num_gpus} accelerators; {num} are priced" if reading.num_gpus not in (0, num) else ""
    lines = [f"Read as {reading.framework}.", *([started] if started else []), *reading.notes]
    if reading.ignored:
        more = f" and {len(reading.ignored) - NUM_NAMED} more" if len(reading.ignored) > NUM_NAMED else ""
        lines.append(f"Ignored, as it changes neither memory nor time: {', '.join(reading.ignored[:NUM_NAMED])}{more}")
    if reading.unknown:
        lines.append(f"Not known, and taken to change neither: {', '.join(reading.unknown)}")
    return [Text("\n".join(lines))]
