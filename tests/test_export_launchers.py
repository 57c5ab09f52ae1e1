"""Exports that launch: each machine's torchrun gets the plan's numbers, and schemas of others hold what is written for them."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from export_cases import SOFTWARE, plan_of, run_with_stubs
from tests_support import tiny_profile

from executor.exports import EXPORTS, export_plan, write_export
from executor.exports.kubernetes import JOBSET, TRAINJOB
from executor.exports.skypilot import ACCELERATORS, TASK
from executor.run import job_from_dict, read_run
from planner.plan import Plan
from planner.question import ask
from profiles.families import load_model
from profiles.files import catalog_names
from profiles.hardware import load_cluster
from simulator.strategy import Strategy

LAUNCHERS = ("torchrun", "slurm", "kubernetes", "skypilot")
STUBS = {
    "torchrun": 'record "$@"', "python": 'record python "${@: -1}"',
    "scontrol": 'printf "first\\nsecond\\n"', "srun": 'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
}
"""Stand-ins: Slurm's srun runs its words on each of two machines, scontrol lists them."""


def two_machines() -> Plan:
    return plan_of(dp=4, tp=2, pp=2, zero=2, num_microbatches=4)


def torchrun_arguments(words: list[str]) -> Namespace:
    """Return what torch's own parser makes of torchrun's words."""
    pytest.importorskip("torch")
    from torch.distributed.run import get_args_parser

    return get_args_parser().parse_args(words)


def shell(plan: Plan, target: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Return a script with what a target runs on a machine, and the variables that it has there."""
    export = export_plan(plan, target)
    assert not export.refusals, export.refusals
    write_export(export, folder)
    script = folder / "script.sh"
    if target in ("torchrun", "slurm"):
        return folder / {"torchrun": "torchrun.sh", "slurm": "headway.sbatch"}[target], {
            "NODE_RANK": "1", "MASTER_ADDR": "first", "SLURM_JOB_NODELIST": "first,second"}
    if target == "skypilot":
        script.write_text(yaml.safe_load((folder / TASK).read_text())["run"])
        return script, {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "first\nsecond"}
    (replicated,) = yaml.safe_load((folder / JOBSET).read_text())["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    script.write_text(container["command"][2])
    given = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    assert given["MASTER_ADDR"] == "headway-node-0-0.headway"
    return script, given | {"NODE_RANK": "1", "MASTER_ADDR": "first"}


@pytest.mark.parametrize("target", LAUNCHERS)
def test_each_machine_starts_its_share_of_the_ranks(target: str, tmp_path: Path) -> None:
    plan = two_machines()
    script, variables = shell(plan, target, tmp_path)
    calls = run_with_stubs(script, tmp_path, STUBS, **variables)
    launches = [torchrun_arguments(words) for words in calls if words[0] != "python"]
    assert [a.node_rank for a in launches] == ([0, 1] if target == "slurm" else [1])
    for a in launches:
        assert (a.nnodes, a.nproc_per_node, a.master_addr, a.master_port) == ("2", "8", "first", 29500)
        assert a.module and a.training_script == "executor.train" and a.training_script_args == ["job.json"]
    job = job_from_dict(json.loads((tmp_path / "job.json").read_text()), "job.json")
    assert job.strategy == plan.strategy and job.model == plan.question.model and job.device == "cuda"
    assert [words for words in calls if words[0] == "python"] == ([] if target == "torchrun" else [["python", job.out]])


@pytest.mark.parametrize("target", LAUNCHERS)
def test_one_machine_needs_no_address(target: str, tmp_path: Path) -> None:
    script, variables = shell(plan_of(dp=4, zero=2, num_microbatches=4), target, tmp_path)
    stubs = STUBS | {"srun": '"$@"'}
    calls = run_with_stubs(script, tmp_path, stubs, **variables)
    (a,) = (torchrun_arguments(words) for words in calls if words[0] != "python")
    assert a.standalone and a.nproc_per_node == "4" and ["python", "run"] in calls


def test_a_rack_is_as_many_machines_as_it_has_hosts(tmp_path: Path) -> None:
    """An NVL72 rack is one node of links and 18 machines of 4 GPUs."""
    script, variables = shell(plan_of(cluster="gb200-nvl72", dp=72, zero=2, num_microbatches=1), "torchrun", tmp_path)
    (words,) = run_with_stubs(script, tmp_path, STUBS, **variables)
    a = torchrun_arguments(words)
    assert (a.nnodes, a.nproc_per_node) == ("18", "4")


@pytest.mark.parametrize("target", LAUNCHERS)
def test_what_the_engine_cannot_run_is_not_launched(target: str) -> None:
    export = export_plan(plan_of(dp=8, zero=3, num_microbatches=1, lora_rank=8), target)
    assert not export.files and export.refusals[0].startswith("strategy: lora_rank=8")


def test_the_batch_script_asks_slurm_for_the_machines() -> None:
    """Options as sbatch's manual has them (Slurm 25.05, slurm.schedmd.com/sbatch.html)."""
    text = export_plan(two_machines(), "slurm").files["headway.sbatch"]
    lines = text.splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert options == {"job-name": "headway", "nodes": "2", "ntasks-per-node": "1", "exclusive": "", "gpus-per-node": "8"}
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:]), "sbatch reads no option behind a command"


TRAINER = {"image", "numNodes", "numProcPerNode", "command", "args", "env", "resourcesPerNode"}
"""Fields of a TrainJob's trainer (trainer.kubeflow.org/v1alpha1, kubeflow/trainer@8c0f5059 charts/kubeflow-trainer/crds)."""


def test_manifests_ask_kubernetes_for_the_machines() -> None:
    files = export_plan(two_machines(), "kubernetes").files
    jobset, trainjob = (yaml.safe_load(files[name]) for name in (JOBSET, TRAINJOB))
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (2, 2, "Indexed")
    assert job["template"]["spec"]["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    trainer = trainjob["spec"]["trainer"]
    assert set(trainer) <= TRAINER and (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainjob["spec"]["runtimeRef"] == {"name": "torch-distributed"}
    amd = yaml.safe_load(export_plan(plan_of(cluster="mi300x-node", dp=8, num_microbatches=1), "kubernetes").files[TRAINJOB])
    assert amd["spec"]["trainer"]["resourcesPerNode"] == {"limits": {"amd.com/gpu": 8}}


@pytest.mark.parametrize(("file", "kind"), [(JOBSET, "JobsetV1alpha2JobSet"), (TRAINJOB, "TrainerV1alpha1TrainJob")])
def test_manifests_are_of_their_published_schemas(file: str, kind: str) -> None:
    """Kubeflow publishes both schemas as classes; what they do not know would be missing afterwards."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    manifest = yaml.safe_load(export_plan(two_machines(), "kubernetes").files[file])
    assert_within(manifest, getattr(models, kind).from_dict(manifest).to_dict())


def assert_within(ours: Any, read: Any) -> None:
    """Assert that all of ours was read; defaults may have come to it."""
    if isinstance(ours, dict):
        for name, value in ours.items():
            assert name in read, name
            assert_within(value, read[name])
    elif isinstance(ours, list):
        assert len(ours) == len(read)
        for mine, other in zip(ours, read, strict=True):
            assert_within(mine, other)
    else:
        assert ours == read


TASK_FIELDS = {"name", "workdir", "num_nodes", "resources", "envs", "run"}
"""Fields of a SkyPilot task that exports use (skypilot 0.14.1, sky/utils/schemas.py, get_task_schema)."""


def test_tasks_ask_skypilot_for_the_machines() -> None:
    text = export_plan(two_machines(), "skypilot").files[TASK]
    task = yaml.safe_load(text)
    assert set(task) <= TASK_FIELDS and task["num_nodes"] == 2 and task["resources"] == {"accelerators": "H100:8"}
    assert set(ACCELERATORS) <= set(catalog_names("accelerators"))
    refused = export_plan(plan_of(cluster="a800-roce400", dp=8, num_microbatches=1), "skypilot").refusals
    assert refused and "a800-80gb" in refused[0]


def test_skypilot_reads_its_task() -> None:
    sky = pytest.importorskip("sky")
    task = sky.Task.from_yaml_config(yaml.safe_load(export_plan(two_machines(), "skypilot").files[TASK]))
    (resources,) = task.resources
    assert task.num_nodes == 2 and resources.accelerators == {"H100": 8}


@pytest.mark.distributed
def test_the_exported_script_trains(tmp_path: Path) -> None:
    """On this machine, for real: the script alone, in its folder, leaves a run that can be read."""
    pytest.importorskip("torch")
    cluster = load_cluster("local:2", tiny_profile(tmp_path / "profile.csv"))
    strategy = Strategy(dp=2, seq_len=64, num_microbatches=2, precision="fp32", software=replace(SOFTWARE, name="torch"))
    question = ask(load_model("bytes-5m"), cluster, tokens=1e6, seq_len=64, global_batch=4, precision="fp32",
                   software=strategy.software)
    plan = replace(two_machines(), question=question, strategy=strategy)
    folder = tmp_path / "export"
    write_export(export_plan(plan, "torchrun"), folder)
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(job | {"num_steps": 3, "num_warmup_steps": 1}))
    root = Path(sys.modules["executor"].__file__ or "").resolve().parent.parent
    stubs = {name: f'PYTHONPATH={root} exec {sys.executable} {module} "$@"'
             for name, module in (("python", ""), ("torchrun", "-m torch.distributed.run"))}
    os.environ.pop("OMP_NUM_THREADS", None)
    (folder / "calls").write_text("")
    run_with_stubs(folder / "torchrun.sh", folder, stubs)
    run = read_run(folder / "run")
    assert len(run.losses) == 3 and run.job.strategy == strategy


def test_every_export_has_its_tests() -> None:
    assert set(EXPORTS) - set(LAUNCHERS) == {"torchtitan", "megatron", "deepspeed", "accelerate"}
