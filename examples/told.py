"""What the retold runs have in common: a published run is predicted, and both stand side by side."""

from __future__ import annotations

from planner.predict import Prediction, predict
from planner.question import Question, ask
from profiles.families import load_model
from profiles.hardware import load_cluster
from simulator.software import load_software
from simulator.strategy import Strategy


def predicted(
    model: str, cluster: str, software: str, *, tokens: float, seq_len: int, global_batch: int, precision: str, **split: object,
) -> tuple[Question, Prediction]:
    """Return the question and the prediction of a run that is split as its report says."""
    question = ask(
        load_model(model), load_cluster(cluster), tokens=tokens, cluster_text=cluster, seq_len=seq_len,
        global_batch=global_batch, precision=precision, software=load_software(software, precision),
    )
    rows: dict[str, object] = {"dp": 1, "micro_batch": 1} | split
    strategy = Strategy(
        **rows, num_microbatches=global_batch // (int(str(rows["dp"])) * int(str(rows["micro_batch"]))),  # type: ignore[arg-type]
        seq_len=seq_len, precision=precision, software=question.software,
    )
    return question, predict(question, strategy)


def table(title: str, rows: list[tuple[str, float, float, str]]) -> None:
    """Print quantities: name, published, predicted, source."""
    print(title)
    print(f"{'quantity':<46} {'published':>11} {'predicted':>11} {'error':>8}  source")
    for name, published, found, source in rows:
        print(f"{name:<46} {published:>11,.4g} {found:>11,.4g} {found / published - 1:>+8.1%}  {source}")
