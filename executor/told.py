"""What a rank tells of a step; read where torch is not, too."""

from __future__ import annotations

from typing import NamedTuple


class Told(NamedTuple):
    """A rank's step: whether it was asked to leave, its mean loss (nan if it has none), seconds, samples, bytes.

    `forward_s` and `backward_s` are passes with what communicates inside, `dp_s` sums of gradients after them. A rank that
    is not the first of its dp share says `num_samples` 0.
    """

    leaves: float
    loss: float
    begun_at_s: float
    step_time_s: float
    data_s: float
    forward_s: float
    backward_s: float
    dp_s: float
    optimizer_s: float
    first_sample: float
    num_samples: float
    crc32: float
    memory_bytes: float
