"""docs/kubernetes.md, followed word by word: from a cluster to an image, and a build in the cluster."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cluster_images
import pytest
from cluster import Cluster, until
from cluster_builds import configured
from conftest import Kanifold, Reader
from programs import program

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = "registry.example.com"
NAMESPACE = "builds"
"""The namespace of the page."""
POD = "/spec/jobTemplate/spec/template/spec"
CONTAINER = f"{POD}/containers/0"

pytestmark = pytest.mark.slow


def commands(heading: str) -> list[str]:
    """Return the commands below a heading of the page."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    section = re.split(r"^## ", text.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    return [line.strip() for line in section.splitlines() if line.startswith("    ")]


@dataclass(frozen=True)
class Reading:
    """A reader of the page at a shell, in a clone."""

    cluster: Cluster
    clone: Path
    environment: Mapping[str, str]

    def follow(self, command: str) -> str:
        """Run a command as it is there, but for the registry's name; return what it prints."""
        done = subprocess.run(
            ["bash", "-euc", command.replace(REGISTRY, self.cluster.registry)],
            cwd=self.clone, env=self.environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def reading(cluster: Cluster, cluster_base: str, kanifold: Kanifold, tmp_path: Path) -> Iterator[Reading]:
    """kanifold is installed, and ``ci/image`` has been run once, as that takes minutes."""
    clone = tmp_path / "clone"
    clone.mkdir()
    programs = program(tmp_path / "bin", "pipx", 'test "$*" = "install kanifold[kubernetes]"').parent
    (programs / "kanifold").symlink_to(kanifold.command[0])
    program(clone / "ci", "image", f'mkdir "$1" && cp -r "{cluster_images.made()}"/* "$1"')
    for each in ("examples", "ci/kustomize"):
        (clone / each).symlink_to(ROOT / each)
    hub = f"{cluster.registry}/hub/library/busybox:latest"
    copy = ["skopeo", "copy", "--quiet", "--all", "--src-tls-verify=false", "--dest-tls-verify=false"]
    subprocess.run([*copy, f"docker://{cluster_base}", f"docker://{hub}"], check=True, capture_output=True)
    user = configured(kanifold, cluster)
    with (user.home / ".config" / "kanifold" / "registries.yaml").open("a") as settings:
        settings.write(f"docker.io:\n  mirrors: [http://{cluster.registry}/hub]\n")
    path = f"{programs}:{cluster.folder / 'bin'}:{os.environ['PATH']}"
    yield Reading(cluster, clone, user.environment(PATH=path))
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")


def test_the_first_section_ends_with_a_published_image(reading: Reading, read: Reader) -> None:
    said = [reading.follow(each) for each in commands("From a cluster to an image for two platforms")]
    checked, built, shown = said[-3:]
    assert "farm/amd64" in checked and "farm/arm64" in checked
    assert built.split()[0] in shown
    for each in ("linux/amd64", "linux/arm64"):
        assert f"Hello from {each}" in read(f"{reading.cluster.registry}/hello:1", each).text("srv/index.txt")
    until(lambda: not reading.cluster.get("jobs,pods", "-n", NAMESPACE)["items"], 30, "Jobs and Pods are deleted")


def test_a_build_is_run_in_the_cluster(reading: Reading, orchestrator_image: str, read: Reader) -> None:
    """By the CronJob, whose context and images are those of the test."""
    cluster = reading.cluster
    copying, applying, starting = commands("Running in the cluster")
    for each in ("ci/image out", f"kanifold copy oci-layout://out/kanifold {REGISTRY}/kanifold:1", copying):
        reading.follow(each)
    cluster.kubectl("create", "namespace", NAMESPACE)
    levels = ("pod-security.kubernetes.io/enforce=baseline", "pod-security.kubernetes.io/warn=restricted")
    cluster.kubectl("label", "namespace", NAMESPACE, *levels)
    files = {
        "Dockerfile": f"FROM {cluster.registry}/base/busybox:1\nARG TARGETARCH\nRUN echo $TARGETARCH >/arch\n",
        "registries.yaml": f'"{cluster.registry}": {{insecure: true}}\n',
    }
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "files", "namespace": NAMESPACE}}
    cluster.apply({**config, "data": files})
    assert "Warning" not in reading.follow(applying)
    spec = cluster.get("cronjob", "kanifold", "-n", NAMESPACE)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    words = [each.replace(REGISTRY, cluster.registry) for each in spec["containers"][0]["args"]]
    words[words.index("https://github.com/org/app.git#main")] = "/files"
    settings = {"name": "KANIFOLD_REGISTRIES", "value": "/files/registries.yaml"}
    patch = [
        {"op": "replace", "path": f"{CONTAINER}/image", "value": orchestrator_image},
        {"op": "replace", "path": f"{CONTAINER}/args", "value": words},
        {"op": "add", "path": f"{CONTAINER}/volumeMounts/-", "value": {"name": "files", "mountPath": "/files"}},
        {"op": "add", "path": f"{POD}/volumes/-", "value": {"name": "files", "configMap": {"name": "files"}}},
        {"op": "add", "path": f"{CONTAINER}/env/-", "value": settings},
    ]
    cluster.kubectl("patch", "cronjob", "kanifold", "-n", NAMESPACE, "--type=json", "-p", json.dumps(patch))
    reading.follow(starting)

    def finished() -> bool:
        status = cluster.get("job", "now", "-n", NAMESPACE)["status"]
        assert not status.get("failed"), cluster.kubectl("logs", "-n", NAMESPACE, "job/now")
        return bool(status.get("succeeded"))

    until(finished, 180, "the build in the cluster")
    for each in ("amd64", "arm64"):
        assert read(f"{cluster.registry}/app:1", f"linux/{each}").text("arch").strip() == each
    until(lambda: [each["metadata"]["name"] for each in cluster.get("jobs", "-n", NAMESPACE)["items"]] == ["now"])
