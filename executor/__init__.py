"""Make it happen: torch model, parallelism, data, runs; `executor.launch.launch` starts a job in its own processes.

Only what the workers import needs torch.
"""
