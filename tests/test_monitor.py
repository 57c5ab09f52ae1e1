"""Lines of progress, drift and its causes, goodput that adds up: by steps with round numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from test_executor_run import SPEC, STRATEGY

from executor.drift import drift
from executor.goodput import goodput
from executor.launch import check_launch
from executor.monitor import Monitor, interval_text
from executor.run import Expected, Job
from executor.told import Told
from profiles.files import BadInput

TWO = replace(STRATEGY, dp=2, num_microbatches=1)
PLANNED = {"forward": 1.0, "backward": 2.0, "optimizer": 0.2, "waiting": 0.1}


def told(forward_s: float = 1.0, backward_s: float = 2.0, **more: Any) -> Told:
    """Return a rank's step as planned, but for what is given."""
    data_s, waiting_s = more.pop("data_s", 0.0), more.pop("waiting_s", 0.1)
    plain: dict[str, Any] = {
        "leaves": 0.0, "loss": 5.0, "begun_at_s": 0.0, "step_time_s": forward_s + backward_s + 0.2 + data_s + waiting_s,
        "data_s": data_s, "forward_s": forward_s, "backward_s": backward_s, "dp_s": 0.0, "optimizer_s": 0.2,
        "first_sample": 0, "num_samples": 2, "crc32": 1, "memory_bytes": 2e9,
    }
    return Told(**plain | more)


@pytest.mark.parametrize(("ranks", "cause"), [
    ((told(), told()), None), ((told(1.1, 2.2), told(1.1, 2.2)), None),
    # who waits for a slow rank waits in backward, where gradients are summed
    ((told(1.0, 4.0), told(2.0, 3.0)), "slow rank"), ((told(1.0, 5.0), told(1.0, 5.0)), "communication"),
    ((told(2.0, 4.0), told(2.0, 4.0)), "kernel"), ((told(data_s=2.0), told()), "data"),
    ((told(waiting_s=2.0), told(waiting_s=2.0)), "communication"),
])
def test_drift_is_called_out_with_its_cause(ranks: tuple[Told, ...], cause: str | None) -> None:
    found = drift(SPEC, TWO, [ranks] * 3, PLANNED)
    assert (found and found.cause) == cause
    if found:
        assert found.ratio == pytest.approx(max(t.step_time_s for t in ranks) / 3.3)
        assert f"{found.ratio:.2f} times the plan's" in found.says
        assert cause != "slow rank" or "rank 1 takes 2.00 times" in found.says


def test_an_interval_and_where_it_is_written(tmp_path: Path) -> None:
    expected = Expected(step_time_s=3.3, seconds=PLANNED, peak_flop_per_s=1e9, usd_per_gpu_hour=3.6)
    job = Job(model=SPEC, strategy=TWO, out=str(tmp_path), num_steps=100, log_every=2, expected=expected,
              prometheus=str(tmp_path / "headway.prom"))
    monitor = Monitor(job)
    assert monitor.add(0, [told(), told(loss=6.0)]) == []
    (line,) = monitor.add(1, [told(loss=4.0), told(loss=math.nan)])
    assert (line["step"], line["loss"], line["memory_bytes"], line["predicted_step_time_s"]) == (2, 4.0, 2e9, 3.3)
    assert line["tokens_per_s"] == pytest.approx(4 * 32 / 3.3)
    assert line["usd_to_go"] == pytest.approx(line["eta_s"] * 2 * 3.6 / 3600)
    # 6 FLOP for each parameter and token, and attention's own
    weights = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 64 * 256
    attention = 2 * 12 * 32 * 64
    assert line["mfu"] == pytest.approx((6 * weights + attention) * 128 / 3.3 / 2e9, rel=0.01)
    text = (tmp_path / "headway.prom").read_text()
    assert "headway_loss 4.0\n" in text and "# TYPE headway_usd_to_go gauge\n" in text
    assert interval_text(line, 100).startswith("step 2/100, loss 4.0000, 38.8 tokens/s, MFU ")
    # drift is told once, and again when its cause is another
    slow = [told(2.0, 4.0)] * 2
    causes = [[more.get("cause") for more in monitor.add(step, slow)[1:]] for step in range(2, 6)]
    assert causes == [[], ["kernel"], [], []]


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    job = Job(model=SPEC, strategy=TWO, out=str(tmp_path / "run"), tensorboard=str(tmp_path))
    with pytest.raises(BadInput, match="pip install tensorboard"):
        check_launch(job)


def step(index: int, begun_at_s: float, step_time_s: float = 1.0, data_s: float = 0.1) -> dict[str, Any]:
    return {"at_s": begun_at_s + step_time_s, "step": index, "begun_at_s": begun_at_s, "step_time_s": step_time_s,
            "data_s": data_s}


def event(name: str, at_s: float, **facts: Any) -> dict[str, Any]:
    return {"event": name, "at_s": at_s, **facts}


def test_goodput_of_a_run_with_a_failure() -> None:
    lines = [
        event("launch", 100.0, attempt=0), event("ready", 104.0, step=0),
        step(0, 105.0), step(1, 106.0), event("checkpoint", 107.0, step=2, stall_s=0.5), step(2, 107.5), step(3, 108.5),
        event("failure", 112.0, attempt=0), event("launch", 113.0, attempt=1), event("ready", 118.0, step=2),
        step(2, 119.0), step(3, 120.0), event("checkpoint", 121.0, step=4, stall_s=0.5), event("end", 123.0, attempt=1),
    ]
    found = goodput(lines)
    assert found.as_dict() == pytest.approx({
        "training_s": 4 * 0.9, "data_s": 0.4, "checkpoint_s": 1.0, "wasted_s": 2.0, "restart_s": 3.5 + 6.0,
        "start_s": 5.0 + 1.5, "wall_s": 23.0, "goodput": 3.6 / 23.0,
    })
    # days later it goes on: what lies between is no part of it
    more = goodput([*lines, event("launch", 9000.0, attempt=0), event("ready", 9002.0, step=4), step(4, 9003.0),
                    event("left", 9004.0, step=5), event("end", 9005.0, attempt=0)])
    assert more.wall_s == pytest.approx(28.0) and more.restart_s == pytest.approx(9.5 + 3.0)


def test_goodput_without_a_launcher() -> None:
    found = goodput([event("ready", 10.0, step=0), step(0, 11.0), step(1, 12.0)])
    assert found.as_dict() == pytest.approx({"training_s": 1.8, "data_s": 0.2, "checkpoint_s": 0.0, "wasted_s": 0.0,
                                             "restart_s": 0.0, "start_s": 1.0, "wall_s": 3.0, "goodput": 0.6})


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.booleans()), min_size=1, max_size=6))
def test_terms_add_up_to_the_wall_clock_whatever_happens(attempts: list[tuple[int, int, bool]]) -> None:
    """Each attempt trains some steps and goes on some steps before where it was; every second is dealt once."""
    now, at, lines = 0.0, 0, []
    for index, (num, back, saves) in enumerate(attempts):
        at = max(0, at - back)
        lines += [event("launch", now, attempt=index), event("ready", now + 2, step=at)]
        now += 3.0
        for _ in range(num):
            lines.append(step(at, now))
            now, at = now + 1.25, at + 1
            if saves:
                lines.append(event("checkpoint", now, step=at, stall_s=0.5))
                now += 0.5
        now += 2.0
        lines.append(event("failure" if index + 1 < len(attempts) else "end", now, attempt=index))
        now += 1.0
    found = goodput(lines)
    assert found.wall_s == pytest.approx(lines[-1]["at_s"])
    assert min(found.as_dict().values()) >= 0
