"""DeepSeek-V3 (2024): 671 billion parameters, 37 active, on 2,048 H800 in FP8, by DeepSeek's own framework.

The software (`headway catalog software`, hai-llm-2024) is what the report says of it; no figure was fitted on the run.
DualPipe is stood in for by DualPipeV, whose stages fold back instead of running both ways.
"""

from __future__ import annotations

from told import predicted, table

PAPER = "arXiv 2412.19437, table 1"
HOURS_A_TRILLION = 180e3
"""H800-hours for a trillion tokens (section 1)."""


def main() -> None:
    """Print what was published beside what is predicted."""
    tokens, batch, gpus = 14.8e12, 15360, 2048
    _, run = predicted(
        "deepseek-v3", "h800-ib:256", "hai-llm-2024", tokens=tokens, seq_len=4096, global_batch=batch, precision="fp8-block",
        dp=128, pp=16, ep=64, zero=1, schedule="DualPipeV", chunks=2, recompute="selective",
    )
    hours = run.days * 24 * gpus
    step = HOURS_A_TRILLION * 3600 / gpus * batch * 4096 / 1e12
    table("DeepSeek-V3, 2,048 H800: pp=16 ep=64 dp=128, ZeRO-1, 15,360 sequences of 4,096", [
        ("step, s (from hours a trillion tokens)", step, run.step_time_s, "section 1: 180 k hours a trillion"),
        ("M H800-hours of 14.8 T tokens", 2.664, hours / 1e6, PAPER),
        ("days", 2.664e6 / 24 / gpus, run.days, PAPER),
        ("M USD at 2 USD an hour", 5.328, 2 * hours / 1e6, PAPER),
    ])
    print(f"\nMemory: {run.peak_memory_bytes / 2**30:.1f} of {run.usable_memory_bytes / 2**30:.1f} GiB.")


if __name__ == "__main__":
    main()
