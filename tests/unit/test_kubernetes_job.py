"""The Job of an executor, as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.nodes.kubernetes import job_manifest
from orchestrator.nodes.kubernetes.address import parse
from orchestrator.nodes.kubernetes.job_manifest import JobTemplate, Owner, manifest
from platforms.errors import UsageError


def job(options: str = "", patch: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    address = parse(f"kubernetes://c/n?image=r.example.com/k:1{options}")
    return manifest(JobTemplate(address, more.pop("build", "b"), patch or {}, **more), "arm64", 0).body


def pod(options: str = "", patch: dict[str, Any] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = job(options, patch)["spec"]["template"]["spec"]
    return found


def test_the_usual_job() -> None:
    made = job()
    assert (made["apiVersion"], made["kind"]) == ("batch/v1", "Job")
    assert made["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "kanifold"
    spec = made["spec"]
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (0, 300)
    assert spec["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "executor"
    inner = spec["template"]["spec"]
    assert inner["nodeSelector"] == {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}
    assert inner["restartPolicy"] == "Never"
    assert inner["activeDeadlineSeconds"] == 3600
    assert spec["activeDeadlineSeconds"] > 3600, "a Job's time runs while it waits for a place"
    assert inner["automountServiceAccountToken"] is False
    (container,) = inner["containers"]
    assert container["image"] == "r.example.com/k:1"
    assert "resources" not in container


def test_names_are_those_of_the_same_job_and_no_other() -> None:
    name = job()["metadata"]["name"]
    assert name == job()["metadata"]["name"]
    assert name.startswith("kanifold-")
    assert name.endswith("-arm64-0")
    assert len(name) + len("-12345") <= 63, "the name of its Pod is a label's value"
    others = [job("&cpu=1"), job(build="another"), job(patch={"spec": {"hostNetwork": True}})]
    assert len({name, *(each["metadata"]["name"] for each in others)}) == 4


def test_options_become_fields() -> None:
    made = pod(
        "&service-account=sa&image-pull-secrets=p&registry-secret=creds&store=cache-{arch}&cpu=1&memory-limit=2Gi"
        "&node-selector=pool=x&tolerations=a=b:NoSchedule,c&image-pull-policy=Never"
    )
    assert made["serviceAccountName"] == "sa"
    assert made["automountServiceAccountToken"] is True, "workload identity is the Pod's"
    assert made["imagePullSecrets"] == [{"name": "p"}]
    assert made["nodeSelector"]["pool"] == "x"
    assert made["tolerations"] == [
        {"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"},
        {"key": "c", "operator": "Exists"},
    ]
    (container,) = made["containers"]
    assert container["resources"] == {"requests": {"cpu": "1"}, "limits": {"memory": "2Gi"}}
    assert container["imagePullPolicy"] == "Never"
    volumes = {each["name"]: each for each in made["volumes"]}
    assert volumes["store"]["persistentVolumeClaim"] == {"claimName": "cache-arm64"}
    assert volumes["registry-credentials"]["secret"]["secretName"] == "creds"
    assert {"name": "DOCKER_CONFIG", "value": "/etc/kanifold/docker"} in container["env"]
    assert {"name": "KANIFOLD_OWN_CREDENTIALS", "value": "1"} in container["env"]


def test_the_profile_restricted_is_what_pod_security_asks_for() -> None:
    made = pod("&profile=restricted")
    (container,) = made["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(set(each) - {"name"} <= {"emptyDir", "secret", "persistentVolumeClaim"} for each in made["volumes"])


def test_other_profiles() -> None:
    assert "securityContext" not in pod("&profile=baseline")
    userns = pod("&profile=userns")
    assert userns["hostUsers"] is False
    assert userns["containers"][0]["securityContext"] == {"capabilities": {"add": ["SYS_ADMIN"]}}
    assert pod("&profile=unconfined")["securityContext"]["seccompProfile"] == {"type": "Unconfined"}


def test_jobs_of_an_orchestrator_in_the_cluster_go_with_its_pod() -> None:
    (owner,) = job(owner=Owner("ci-1", "u-1"))["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "v1", "kind": "Pod", "name": "ci-1", "uid": "u-1"}


def test_a_pod_template_is_merged(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(
        "metadata: {annotations: {team: a}}\n"
        "spec:\n  priorityClassName: low\n  containers:\n  - name: executor\n    env: [{name: HTTPS_PROXY, value: p}]\n"
    )
    made = job(patch=dict(job_manifest.read_patch(str(path))))["spec"]["template"]
    assert made["metadata"]["annotations"] == {"team": "a"}
    assert made["metadata"]["labels"], "ours stay"
    assert made["spec"]["priorityClassName"] == "low"
    (container,) = made["spec"]["containers"]
    assert container["env"][-1] == {"name": "HTTPS_PROXY", "value": "p"}
    assert container["env"][0]["name"] == "HOME"


@pytest.mark.parametrize(
    "text", ["[", "- a", "spec: {}\nstatus: {}", "kind: 1\nfoo: 2", "template: 5", "spec: " + "[" * 3000, "{1: 2}"]
)
def test_a_file_that_is_no_template(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        job_manifest.read_patch(str(path))


def test_values_of_a_template_are_those_of_json(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text("metadata: {annotations: {since: 2020-01-01}}")
    assert job_manifest.read_patch(str(path)) == {"metadata": {"annotations": {"since": "2020-01-01"}}}


def test_a_patch_that_cannot_be_applied_names_its_place() -> None:
    with pytest.raises(UsageError) as refused:
        job(patch={"spec": {"containers": [{"image": "x"}]}})
    assert "spec.containers: each entry needs name" in refused.value.problem.why
