"""The cluster that tests have is one: its nodes, what pods reach, and how it ends."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import cluster as clusters
import pytest
from cluster import BUSYBOX, Cluster, until


def job(name: str, architecture: str, script: str) -> dict[str, Any]:
    """A Job that runs a shell's script on a node of ``architecture``."""
    container = {"name": "main", "image": BUSYBOX, "command": ["sh", "-euc", script]}
    spec = {"restartPolicy": "Never", "nodeSelector": {"kubernetes.io/arch": architecture}, "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": {"spec": spec}},
    }


def start(cluster: Cluster, namespace: str, *jobs: dict[str, Any]) -> None:
    """Create Jobs and wait until their pods are started."""
    for each in jobs:
        cluster.kubectl("create", "-n", namespace, "-f", "-", text=json.dumps(each))

    def started() -> bool:
        pods = cluster.get("pods", "-n", namespace)["items"]
        return len(pods) == len(jobs) and all(each["status"]["phase"] != "Pending" for each in pods)

    until(started, what="all pods are started")


@pytest.mark.slow
def test_pods_of_both_nodes_reach_the_registry_and_the_api(cluster: Cluster, namespace: str) -> None:
    script = f"wget -qO- http://{cluster.registry}/v2/; wget --no-check-certificate -qO- https://$KUBERNETES_SERVICE_HOST/version"
    start(cluster, namespace, *(job(each, each, script) for each in clusters.ARCHITECTURES))
    for architecture in clusters.ARCHITECTURES:
        cluster.kubectl("wait", "-n", namespace, "--for=condition=complete", f"job/{architecture}", "--timeout=60s")
        assert "gitVersion" in cluster.kubectl("logs", "-n", namespace, f"job/{architecture}")
        (pod,) = cluster.get("pods", "-n", namespace, "-l", f"job-name={architecture}")["items"]
        assert pod["spec"]["nodeName"] == architecture


@pytest.mark.slow
def test_a_kubelet_can_be_killed_and_started_again(cluster: Cluster, namespace: str) -> None:
    node = cluster.node("arm64")
    start(cluster, namespace, job("long", "arm64", "sleep 1000"))
    assert any("sleep 1000" in line for line in node.processes().values())
    node.kill_kubelet()
    assert any("sleep 1000" in line for line in node.processes().values())
    node.start_kubelet()
    cluster.kubectl("delete", "-n", namespace, "job/long", "--wait=false")
    until(lambda: not any("sleep 1000" in line for line in node.processes().values()), what="the pod ends")
    assert cluster.get("node", "arm64")["metadata"]["labels"]["kubernetes.io/arch"] == "arm64"


@pytest.mark.slow
def test_nothing_of_a_cluster_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another one, which may run."""
    try:
        clusters.check()
    except clusters.UnavailableError as reason:
        pytest.skip(f"no cluster: {reason}")
    monkeypatch.delenv("KANIFOLD_CLUSTER", raising=False)
    with clusters.running() as made:
        start(made, "default", job("left", "amd64", "sleep 1000"))
        folder, address = made.folder, made.address(1)
        groups = [group for node in made.nodes for group in clusters._control_groups(made.control_group(node))]
        assert groups and all(group.exists() for group in groups)
    assert not folder.exists()
    assert not [group for group in groups if group.exists()]
    assert str(folder) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in Path("/proc/mounts").read_text()
    assert address not in subprocess.run(["ip", "addr"], capture_output=True, text=True, check=True).stdout
