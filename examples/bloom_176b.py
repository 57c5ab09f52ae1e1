"""BLOOM-176B (2022): 384 A100 of Jean Zay, 366 billion tokens, 3.5 months, as Megatron-DeepSpeed ran it."""

from __future__ import annotations

from told import predicted, table

from planner.economics import accelerator_kwh, carbon_t
from planner.plan import plan_from_prediction
from profiles.power import carbon_kg_per_kwh
from reports.run_command import RunOptions, simulate_plan

HOURS = 1_082_990
"""A100-hours of the training (Luccioni et al., arXiv 2211.02001, table 1)."""


def main() -> None:
    """Print what was published beside what is predicted."""
    question, run = predicted(
        "bloom-176b", "jean-zay-a100:48", "megatron-deepspeed-2022", tokens=366e9, seq_len=2048, global_batch=2048,
        precision="bf16", dp=8, tp=4, pp=12, zero=1, micro_batch=2, recompute="full",
    )
    plan = plan_from_prediction(question, run, None)
    whole = simulate_plan(plan, plan.prediction, RunOptions(fleet="bloom-176b", runs=20, spares=1, storage="40GB/s"))
    hours = run.days * 24 * question.cluster.num_gpus / whole.runs.goodput
    kwh = accelerator_kwh(hours, 400.0)
    log = "bigscience-workshop/bigscience train/tr11-176B-ml"
    table("BLOOM-176B, 384 A100-80GB: dp=8 tp=4 pp=12, ZeRO-1, full recomputation, micro-batch 2", [
        ("step, s", 104.7, run.step_time_s, f"{log} (main log)"),
        ("thousand A100-hours of 366 G tokens", HOURS / 1e3, hours / 1e3, "arXiv 2211.02001, its tests and pauses in it"),
        ("energy of the accelerators, MWh", 433.196, kwh / 1e3, "arXiv 2211.02001, table 3: its hours at 400 W"),
        ("carbon of that energy, t CO2e", 24.69, carbon_t(kwh, carbon_kg_per_kwh("jean-zay").value),
         "arXiv 2211.02001, table 3"),
    ])


if __name__ == "__main__":
    main()
