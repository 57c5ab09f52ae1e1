"""How often to write checkpoints: Young's and Daly's formulas, and the exact optimum that both approximate.

Throughout, `stall_s` is what a checkpoint holds up training (delta), `mttf_s` the mean time between exponential failures
(M), `restart_s` what each costs before training goes on (R), and an interval the training time between two checkpoints
(tau). Failures may strike at any time, in checkpoints and restarts too. Arguments may be arrays.
"""

from __future__ import annotations

import numpy as np

from profiles.ops import Num


def young_s(stall_s: Num, mttf_s: Num) -> Num:
    """Return sqrt(2 delta M), the first-order optimum (Young, CACM 17(9), 1974)."""
    return np.sqrt(2.0 * stall_s * mttf_s)


def daly_s(stall_s: Num, mttf_s: Num) -> Num:
    """Return the higher-order optimum (Daly, FGCS 22(3), 2006, equation 37).

    sqrt(2 delta M) [1 + sqrt(delta / 2M) / 3 + (delta / 2M) / 9] - delta where delta < 2M, M elsewhere.
    """
    ratio = stall_s / (2.0 * mttf_s)
    series = young_s(stall_s, mttf_s) * (1.0 + np.sqrt(ratio) / 3.0 + ratio / 9.0) - stall_s
    return np.where(ratio < 1.0, series, mttf_s) if np.ndim(ratio) else (series if ratio < 1.0 else mttf_s)


def expected_s(work_s: Num, interval_s: Num, stall_s: Num, restart_s: Num, mttf_s: Num) -> Num:
    """Return the mean time to finish work_s, cut into whole intervals (Daly 2006, equation 20, which is exact).

    E = M exp(R/M) (exp((tau + delta)/M) - 1) work / tau.
    """
    # expm1(x) exp(y) overflows for hopeless intervals; those are infinitely long for any purpose
    with np.errstate(over="ignore"):
        return mttf_s * np.exp(restart_s / mttf_s) * np.expm1((interval_s + stall_s) / mttf_s) * work_s / interval_s


def best_s(stall_s: float, mttf_s: float) -> float:
    """Return the interval that minimises `expected_s`: the root of (1 - tau/M) exp(tau/M) = exp(-delta/M).

    The restart does not move it. Newton's steps from tau = M go down to the root, because 1 - (1 - x) exp(x) is convex.
    """
    if stall_s <= 0:
        return 0.0
    # for short stalls both sides are near 1, where 1 - (1 - x) exp(x) = x^2/2 + x^3/3 + x^4/8 + ... is what counts
    target, x = -np.expm1(-stall_s / mttf_s), 1.0
    for _ in range(200):
        step = (_lost(x) - target) / (x * np.exp(x))
        x -= step
        if abs(step) < 1e-14 * x:
            break
    return float(x * mttf_s)


def _lost(x: float) -> float:
    """Return 1 - (1 - x) exp(x) without the cancellation near 0: the sum of x^n (n - 1) / n!."""
    if x > 0.1:
        return float(1.0 - (1.0 - x) * np.exp(x))
    total, term = 0.0, x
    for n in range(2, 16):
        term *= x / n
        total += (n - 1) * term
    return total
