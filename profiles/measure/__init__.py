"""The profiler: measures this machine's kernels, collectives, memory and disk. Only its rank processes load torch."""

from profiles.measure.machine import CPU_ENVIRONMENT, measure_machine

__all__ = ["CPU_ENVIRONMENT", "measure_machine"]
