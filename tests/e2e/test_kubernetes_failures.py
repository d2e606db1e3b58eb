"""What a cluster does to builds: each ends well or in a clear error, and nothing is left behind."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from cluster import until
from cluster_builds import Farm
from cluster_gate import Gate, building, ended
from programs import program

pytestmark = pytest.mark.slow


# -- the connection


def test_a_kubelet_is_killed_and_comes_back(farm: Farm, gate: Gate) -> None:
    with building(farm, gate) as process:
        farm.cluster.node("amd64").kill_kubelet()
        farm.cluster.node("amd64").start_kubelet()
        gate.open()
        status, said = ended(process)
    assert status == 0, said
    assert said.count("isfinished") == 1, "no output is lost or repeated"
    assert gate.begun == 1, "no step is run again"
    farm.assert_nothing_is_left()


def test_the_api_is_away_for_a_moment(farm: Farm, gate: Gate) -> None:
    with building(farm, gate) as process:
        farm.cluster.kill_api_server()
        farm.cluster.start_api_server()
        gate.open()
        status, said = ended(process)
    assert status == 0, said
    assert said.count("isfinished") == 1
    assert gate.begun == 1
    until(lambda: farm.cluster.request("GET", "/readyz")[0] == 200, what="the API is back")
    farm.assert_nothing_is_left()


def test_what_was_on_a_node_whose_kubelet_stays_away_is_built_on_another(farm: Farm, gate: Gate) -> None:
    node = farm.cluster.node("amd64")
    with building(farm, gate, wait="15s") as process:
        node.kill_kubelet()
        try:
            gate.wait(2)
            gate.open()
            status, said = ended(process)
        finally:
            node.start_kubelet()
    assert status == 0, said
    assert "emulated, farm/arm64" in said
    farm.assert_nothing_is_left()


# -- Pods


def test_an_evicted_pod_is_replaced(farm: Farm, gate: Gate) -> None:
    with building(farm, gate) as process:
        (pod,) = farm.pods()
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod["metadata"]["name"]}}
        path = f"/api/v1/namespaces/{farm.namespace}/pods/{pod['metadata']['name']}/eviction"
        assert farm.cluster.request("POST", path, eviction)[0] == 201
        gate.wait(2)
        gate.open()
        status, said = ended(process)
    assert status == 0, said
    assert "linux/amd64 is built again on farm/amd64" in said
    assert "evict" in said.lower()
    farm.assert_nothing_is_left()


def test_a_step_that_fills_the_memory_says_so(farm: Farm) -> None:
    done = farm.build("FROM {base}\nRUN tail /dev/zero\n", "--retry=0", memory_limit="200Mi")
    assert done.code != 0
    assert "memory" in done.err.rsplit("ERROR", 1)[1]
    farm.assert_nothing_is_left()


def test_a_deleted_namespace_is_an_error(farm: Farm, gate: Gate) -> None:
    with building(farm, gate) as process:
        farm.cluster.kubectl("delete", "namespace", farm.namespace, "--wait=false")
        status, said = ended(process)
    assert status != 0
    assert "namespace" in said.rsplit("ERROR", 1)[1]


# -- the orchestrator


def test_an_interrupted_build_deletes_its_jobs(farm: Farm, gate: Gate) -> None:
    with building(farm, gate) as process:
        process.send_signal(signal.SIGINT)
        status, _ = ended(process, 10)
        assert status == 130
        assert not [each for each in farm.jobs() if "deletionTimestamp" not in each["metadata"]]
    farm.assert_nothing_is_left()


def test_a_token_that_expires_is_replaced(farm: Farm, gate: Gate, tmp_path: Path) -> None:
    """By the program that the kubeconfig names."""
    user, tokens = bound(farm, tmp_path)
    with building(user, gate) as process:
        expire(farm, tokens)
        farm.cluster.kill_api_server()  # a stream that is open goes on without any token
        farm.cluster.start_api_server()
        gate.open()
        status, said = ended(process)
    assert status == 0, said
    assert gate.begun == 1
    farm.assert_nothing_is_left()


def test_a_token_that_has_expired_is_an_error(farm: Farm, tmp_path: Path) -> None:
    user, tokens = bound(farm, tmp_path)
    (tokens / "next").unlink()
    expire(farm, tokens)
    done = user.build("FROM scratch\nCOPY Dockerfile /\n", arch="amd64")
    assert done.code != 0
    assert "log in to the cluster again" in done.err


def bound(farm: Farm, folder: Path) -> tuple[Farm, Path]:
    """Return the farm for a user with a token that ends with a Secret, and the directory of this and the next token."""
    cluster, namespace = farm.cluster, farm.namespace
    who = f"--serviceaccount={namespace}:default"
    cluster.kubectl("create", "rolebinding", "-n", namespace, "all", "--clusterrole=admin", who)
    for name in ("now", "next"):
        cluster.kubectl("create", "secret", "generic", "-n", namespace, name)
        words = ("--bound-object-kind=Secret", f"--bound-object-name={name}")
        (folder / name).write_text(cluster.kubectl("create", "token", "-n", namespace, "default", *words).strip())
    version = "client.authentication.k8s.io/v1"
    credential = json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": {"token": "TOKEN"}})
    command = program(folder, "plugin", f"echo '{credential}' | sed \"s/TOKEN/$(cat '{folder}/now')/\"")
    plugin = {"apiVersion": version, "command": str(command), "interactiveMode": "Never"}
    configuration = {**cluster.client_configuration(""), "users": [{"name": "test", "user": {"exec": plugin}}]}
    return farm.as_user(configuration), folder


def expire(farm: Farm, tokens: Path) -> None:
    """Let the first token end, and have the next one printed, if there is one."""
    old = (tokens / "now").read_text()
    farm.cluster.kubectl("delete", "secret", "-n", farm.namespace, "now")
    path = f"/api/v1/namespaces/{farm.namespace}/pods"
    until(lambda: farm.cluster.request("GET", path, token=old)[0] == 401, what="the token has expired")
    if (tokens / "next").exists():
        (tokens / "next").rename(tokens / "now")
