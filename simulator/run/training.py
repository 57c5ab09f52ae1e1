"""What a whole run is made of: steps, checkpoints, nodes. Numbers only; where they come from is the planner's business."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.files import BadInput

MODES = ("sync", "async")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The steps of a run and the nodes that it needs.

    `step_time_s` is the median prediction, `step_spread` the standard deviation of its logarithm: how far off the
    prediction may be, one draw for each run. A unit is the smallest number of whole nodes that holds whole replicas: what
    an elastic job loses or gains. Every `eval_every` steps (0: never) an evaluation takes `eval_s`.
    """

    num_steps: int
    step_time_s: float
    num_nodes: int
    gpus_per_node: int
    step_spread: float = 0.0
    unit_nodes: int = 1
    eval_every: int = 0
    eval_s: float = 0.0

    @property
    def num_gpus(self) -> int:
        """Return the accelerators that train; spares are not among them."""
        return self.num_nodes * self.gpus_per_node

    @property
    def num_units(self) -> int:
        """Return the units of a whole job."""
        return self.num_nodes // self.unit_nodes

    @property
    def undisturbed_s(self) -> float:
        """Return the time of the steps and evaluations alone."""
        evals = self.num_steps // self.eval_every if self.eval_every else 0
        return self.num_steps * self.step_time_s + evals * self.eval_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """When checkpoints are written and what they cost.

    Every `interval_steps` steps, and at the end. Training stands still for `stall_s`: the write where it is synchronous,
    the copy to host memory where it is not; then the write runs on for `write_s` beside training, and the next copy waits
    until it is done. A checkpoint counts once it is written. `load_s` is what reading it back takes at a restart. Of those
    that were written the newest `kept` are there (0: all).
    """

    interval_steps: int
    stall_s: float
    write_s: float = 0.0
    load_s: float = 0.0
    kept: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """What stands ready: spare nodes beside those that train, and whether a job without enough nodes goes on with fewer."""

    num_spares: int = 0
    elastic: bool = False


def checkpoint_costs(
    mode: str, bytes_: float, storage_bytes_per_s: float, copy_bytes_per_s: float, interval_steps: int
) -> Checkpoints:
    """Return checkpoints of so many bytes, written to and read from storage; copied to hosts first where asynchronous."""
    if mode not in MODES:
        raise BadInput(f"checkpoint: {mode!r} is not known; known are {', '.join(MODES)}")
    for name, rate in (("storage", storage_bytes_per_s), ("copy to host", copy_bytes_per_s)):
        if not rate > 0:
            raise BadInput(f"{name}: must be more than zero (is {rate:g} B/s); write it like '200GB/s'")
    write_s = bytes_ / storage_bytes_per_s
    if mode == "sync":
        return Checkpoints(interval_steps=interval_steps, stall_s=write_s, load_s=write_s)
    return Checkpoints(interval_steps=interval_steps, stall_s=bytes_ / copy_bytes_per_s, write_s=write_s, load_s=write_s)
