"""Llama 3 405B (2024): 16,384 H100 over RoCE, three stages of its training, and 54 days of failures."""

from __future__ import annotations

from told import predicted, table

from planner.plan import plan_from_prediction
from planner.predict import Prediction
from planner.question import Question
from reports.run_command import RunOptions, interruptions, simulate_plan

PAPER = "arXiv 2407.21783, table 4"
PEAK = 989.4
"""TFLOP/s of an H100 in bf16."""


def tflops(question: Question, run: Prediction) -> float:
    """Return TFLOP/s for an accelerator as the paper counts them: causal attention's unused half is no work."""
    model, tokens = question.model, question.seq_len
    hidden = 128 * 128
    attention, weights = 6 * model.num_layers * hidden * tokens, 6 * 405.8e9
    return run.mfu * PEAK * (weights + attention) / (weights + 2 * attention)


def main() -> None:
    """Print what was published beside what is predicted."""
    shape = {"tp": 8, "pp": 16, "zero": 2, "schedule": "Interleaved1F1B", "chunks": 8}
    model, software = "llama-3.1-405b", "megatron-lm-2024"
    first = predicted(model, "h100-roce3200:1024", software, tokens=15.6e12, seq_len=8192, global_batch=2048,
                      precision="bf16", dp=64, **shape)
    second = predicted(model, "h100-roce3200:2048", software, tokens=15.6e12, seq_len=8192, global_batch=2048,
                       precision="bf16", dp=128, **shape)
    long = predicted(model, "h100-roce3200:2048", software, tokens=0.8e12, seq_len=131072, global_batch=128,
                     precision="bf16", dp=8, cp=16, context="all_gather", **shape)
    plan = plan_from_prediction(second[0], second[1], None)
    whole = simulate_plan(plan, plan.prediction, RunOptions(fleet="llama-3-405b", runs=20, spares=32))
    days, simulated_days = second[1].days / whole.runs.goodput, float(whole.runs.elapsed_s.mean()) / 86400
    table("Llama 3 405B, H100-80GB: tp=8 pp=16, ZeRO-2; 8 chunks a stage are assumed (the paper names none)", [
        ("TFLOP/s, 8,192 GPUs, 8k tokens", 430, tflops(*first), PAPER),
        ("TFLOP/s, 16,384 GPUs, 8k tokens", 400, tflops(*second), PAPER),
        ("TFLOP/s, 16,384 GPUs, 131k tokens, cp=16", 380, tflops(*long), PAPER),
        ("interruptions a day", 466 / 54, sum(interruptions(whole).values()) / simulated_days, "section 3.3.4, table 5"),
        ("effective training time (published: above)", 0.90, whole.runs.goodput, "section 3.3.4"),
        ("M H100-hours of 15.6 T tokens", 30.84, days * 24 * 16384 / 1e6, "model card: all stages, smaller batches at first"),
    ])
    print(f"\nMemory of the 8k stage on 16,384 GPUs: {second[1].peak_memory_bytes / 2**30:.1f} of "
          f"{second[1].usable_memory_bytes / 2**30:.1f} GiB. The paper trains without recomputation and frees early what\n"
          "backward of the pipeline no longer needs (section 3.3.2), which the software that stands in for it does not.")


if __name__ == "__main__":
    main()
