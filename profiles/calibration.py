"""Calibration: how training runs differ from kernels timed alone, by accelerator. Fitted on published runs.

Kernels in training run slower than in a loop of their own (power limits, caches, other streams), communication slows
the computation that it runs beside, and ranks wait for the slowest. These few numbers are fitted on measured steps;
all else is fitted on measured kernels and collectives (`efficiency.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from profiles import files
from profiles.ops import Num

NUMBERS = ("matmul", "attention", "memory", "scale_up", "scale_out", "beside", "wait", "experts", "eager",
           "maturing", "casts", "pipelined")
"""The fitted numbers, in the order of a parameter vector."""


class Calibration(BaseModel):
    """Factors on seconds (1: as measured alone), and what overlap and waiting cost.

    `matmul`, `attention`, `memory`: seconds of kernels; `scale_up`, `scale_out`: of collectives inside and between
    nodes; `beside`: seconds added to computation for each second of communication beside it; `wait`: share of the step
    added for each doubling of the number of nodes; `experts`: seconds of routing, permutation and grouped matmuls, on top of
    `matmul` and `memory`; `eager`: of pointwise kernels that
    are not fused, on top of `memory`; `maturing`: share that matmuls and attention take more with software of an
    accelerator's first year, half as much with each year that follows; `casts`: seconds of casts to
    narrow types, which fused kernels do while they write anyway; `pipelined`: share of
    tensor-parallel communication that stays exposed where it is cut up and runs beside its own matmul (Chang et al.,
    FLUX, arXiv 2406.06858, figures 10 to 12, leave about a third).

    Standard deviations of the logarithm: `spread` of what is left in every step, `expert_spread` of the work of experts
    and of recurrences (routing, grouped matmuls, exchange, scans), `comm_spread` of other exposed communication.
    `like` names the calibration of a sibling, from which few rows of its own move it; `num_rows` measured steps from
    `num_sources` sources were fitted on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    accelerators: tuple[str, ...] = ()
    like: str = ""
    matmul: Num = 1.0
    attention: Num = 1.0
    memory: Num = 1.0
    scale_up: Num = 1.0
    scale_out: Num = 1.0
    beside: Num = 0.0
    wait: Num = 0.0
    experts: Num = 1.0
    eager: Num = 1.0
    maturing: Num = 0.0
    casts: Num = 1.0
    pipelined: Num = 0.35
    spread: Annotated[float, Field(ge=0, lt=1)] = 0.0
    expert_spread: Annotated[float, Field(ge=0, lt=2)] = 0.0
    comm_spread: Annotated[float, Field(ge=0, lt=2)] = 0.0
    num_rows: int = 0
    num_sources: int = 0
    source: str = "none: kernels as timed alone"


NONE = Calibration()
"""No calibration: what was measured on the machine itself holds."""


@cache
def catalogue() -> dict[str, Calibration]:
    """Return the calibrations of the catalogue by name."""
    return {
        name: files.validate(Calibration, files.catalog_mapping("calibration", name), f"calibration/{name}.yaml")
        for name in files.catalog_names("calibration")
    }


def worst(parts: Sequence[Calibration]) -> Calibration:
    """Return what holds for a step of several accelerators together: overlap and waiting as where they cost most.

    Factors on kernels and collectives are each accelerator's own, and 1 here.
    """
    shared = ("beside", "wait", "pipelined", "spread", "expert_spread", "comm_spread")
    return Calibration(accelerators=tuple(name for part in parts for name in part.accelerators),
                       num_rows=max(part.num_rows for part in parts), num_sources=max(part.num_sources for part in parts),
                       source="; ".join(dict.fromkeys(part.source for part in parts)),
                       **{name: max(getattr(part, name) for part in parts) for name in shared})


def load_calibration(accelerator: str) -> Calibration:
    """Return the fitted numbers of a catalogue accelerator; one without published runs has none."""
    return next((c for c in catalogue().values() if accelerator in c.accelerators), NONE)
