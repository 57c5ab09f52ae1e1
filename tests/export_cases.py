"""Plans for the tests of exports."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from planner.plan import Plan, plan_from_prediction
from planner.question import ask
from planner.rules import illegal_reason
from profiles.families import load_model
from profiles.hardware import load_cluster, with_num_gpus
from simulator.software import Software
from simulator.strategy import Strategy

SOFTWARE = Software(name="given", selective="alternate")


def plan_of(model: str = "llama-3-8b", cluster: str = "dgx-h100", **strategy: Any) -> Plan:
    """Return the plan of a legal strategy, on as many nodes as it needs."""
    s = Strategy(**({"seq_len": 4096, "software": SOFTWARE} | strategy))
    nodes = max(1, -(-int(s.world_size) // load_cluster(cluster).gpus_per_node))
    machine = with_num_gpus(load_cluster(f"{cluster}:{nodes}"), int(s.world_size))
    question = ask(load_model(model), machine, tokens=1e12, cluster_text=f"{cluster}:{nodes}", seq_len=s.seq_len,
                   global_batch=int(s.global_batch), precision=s.precision, software=s.software, lora_rank=s.lora_rank,
                   lora_targets=s.lora_targets)
    assert illegal_reason(s, question) is None, illegal_reason(s, question)
    unpredicted: Any = SimpleNamespace(strategy=s, as_dict=dict)
    return plan_from_prediction(question, unpredicted, None)


def with_software(**fields: Any) -> Software:
    """Return the tests' software with other fields."""
    return replace(SOFTWARE, **fields)


def run_with_stubs(script: Path, folder: Path, stubs: dict[str, str], **environment: str) -> list[list[str]]:
    """Run a script with stand-ins for programs, in bash; return the words that each call of 'recorded' got.

    A stub is the body of a bash script; `record NAME "$@"` in it notes the call.
    """
    bin_folder, log = folder / "bin", folder / "calls"
    bin_folder.mkdir()
    record = f'record() {{ printf "%s\\0" "$@" >> {log}; printf "\\n\\0" >> {log}; }}\n'
    for name, body in stubs.items():
        (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{record}{body}\n")
        (bin_folder / name).chmod(0o755)
    env = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}"} | environment
    subprocess.run(["bash", str(script)], check=True, env=env, cwd=folder)
    calls: list[list[str]] = [[]]
    for word in log.read_text().split("\0")[:-1]:
        if word == "\n":
            calls.append([])
        else:
            calls[-1].append(word)
    return calls[:-1]
