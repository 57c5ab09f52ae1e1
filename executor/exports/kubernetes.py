"""Kubernetes: a JobSet, and a Kubeflow TrainJob; each runs the plan's job, which it carries along.

JobSet v1alpha2 (kubernetes-sigs/jobset@08dfbdfd, config/components/crd) and TrainJob v1alpha1 with the runtime
torch-distributed (kubeflow/trainer@8c0f5059, manifests/base; PyPI kubeflow-trainer-api 2.3.0), which sets PET_* for torchrun.
"""

from __future__ import annotations

from typing import Any

from executor.exports.export import Export, hosts, yaml_text
from executor.exports.job import CORPUS, FILE, PORT, environment_of, job_notes, job_of, job_text, refusals_of, torchrun_words
from executor.run import Job
from planner.plan import Plan

JOBSET, TRAINJOB = "jobset.yaml", "trainjob.yaml"
NAME, GROUP = "headway", "node"
IMAGE = "headway"
RESOURCES = {"mi": "amd.com/gpu"}
"""First letters of an accelerator's name -> its resource; nvidia.com/gpu for others that run CUDA."""


def kubernetes(plan: Plan, job: Job | None = None) -> Export:
    """Return a JobSet and a TrainJob of a plan; either one runs it."""
    if refusals := tuple(refusals_of(plan)):
        return Export(refusals=refusals)
    notes = (
        f"{JOBSET} needs the JobSet controller, {TRAINJOB} the Kubeflow trainer with its runtime torch-distributed; apply one",
        f"image {IMAGE!r} stands for one with headway[torch]; it, volumes, queue and memory are not in the plan",
        *job_notes(plan, job),
    )
    job = job or job_of(plan)
    files = {JOBSET: yaml_text(_jobset(plan, job), notes), TRAINJOB: yaml_text(_trainjob(plan, job), notes)}
    return Export(files=files, notes=notes)


def _resources(plan: Plan) -> dict[str, Any]:
    accelerator = plan.question.cluster.accelerator
    if accelerator.device != "cuda":
        return {}
    name = next((resource for start, resource in RESOURCES.items() if accelerator.name.startswith(start)), "nvidia.com/gpu")
    return {"limits": {name: hosts(plan)[1]}}


def _command(torchrun: list[str]) -> list[str]:
    script = f"set -e\nprintf %s \"$HEADWAY_JOB\" > {FILE}\n{CORPUS}\nexec {' '.join(torchrun)}\n"
    return ["bash", "-c", script]


def _environment(plan: Plan, job: Job) -> list[dict[str, Any]]:
    variables = {"HEADWAY_JOB": job_text(job, indent=None), **environment_of(plan)}
    return [{"name": name, "value": value} for name, value in variables.items()]


def _jobset(plan: Plan, job: Job) -> dict[str, Any]:
    machines, _ = hosts(plan)
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    container = {
        "name": GROUP, "image": IMAGE,
        "command": _command(torchrun_words(plan, '"$NODE_RANK"', '"$MASTER_ADDR"')),
        "env": [*_environment(plan, job), {"name": "NODE_RANK", "valueFrom": index},
                {"name": "MASTER_ADDR", "value": f"{NAME}-{GROUP}-0-0.{NAME}"}],
        "ports": [{"containerPort": PORT}],
    } | ({"resources": _resources(plan)} if _resources(plan) else {})
    pods = {"parallelism": machines, "completions": machines, "completionMode": "Indexed", "backoffLimit": 0,
           "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": NAME},
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": NAME},
            "replicatedJobs": [{"name": GROUP, "replicas": 1, "template": {"spec": pods}}],
        },
    }


def _trainjob(plan: Plan, job: Job) -> dict[str, Any]:
    machines, gpus = hosts(plan)
    trainer = {
        "image": IMAGE, "numNodes": machines, "numProcPerNode": gpus,
        # machines, their processes and the first one's address reach torchrun through the runtime's variables
        "command": _command(["torchrun", "-m", "executor.train", FILE]), "env": _environment(plan, job),
    } | ({"resourcesPerNode": _resources(plan)} if _resources(plan) else {})
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": {"name": NAME},
        "spec": {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer},
    }
