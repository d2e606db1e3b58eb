"""Builds whose platforms are built by Jobs in a test's cluster (``cluster.py``)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import bases
import pytest
from cluster import Cluster, until
from conftest import Kanifold, Outcome, needs

EXECUTORS = "app.kubernetes.io/managed-by=kanifold"
"""Selects the Jobs of executors, and their Pods."""


@dataclass(frozen=True)
class Farm:
    """A namespace of the cluster as a node, and the command with a user's configuration for it."""

    cluster: Cluster
    namespace: str
    image: str
    kanifold: Kanifold
    base: str
    """An image with busybox, for amd64, arm64 and riscv64, in the cluster's registry."""

    def node(self, context: str = "test", **options: str) -> str:
        """Return the value of ``--node``, with the options of an address."""
        more = "".join(f"&{name.replace('_', '-')}={value}" for name, value in options.items())
        return f"farm=kubernetes://{context}/{self.namespace}?image={self.image}{more}"

    def words(self, dockerfile: str, name: str = "app", platforms: str = "linux/amd64", **options: str) -> list[str]:
        """Return the arguments of a build of ``dockerfile`` that is pushed as ``name``."""
        context = self.kanifold.home / "contexts" / name
        context.mkdir(parents=True, exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile.format(base=self.base))
        return [
            "build", str(context), "--platform", platforms, "--tag", self.name(name), "--push", "--progress=plain",
            "--node", self.node(**options),
        ]  # fmt: skip

    def name(self, name: str) -> str:
        """Return the image ``name`` of this namespace in the cluster's registry."""
        return f"{self.cluster.registry}/{self.namespace}/{name}:1"

    def build(self, dockerfile: str, *arguments: str, **options: str) -> Outcome:
        """Build, whatever comes of it."""
        return self.kanifold.run(*self.words(dockerfile, **options), *arguments)

    def start(self, dockerfile: str, *arguments: str, **options: str) -> subprocess.Popen[str]:
        """Start a build."""
        return self.kanifold.start(*self.words(dockerfile, **options), *arguments)

    def pods(self) -> list[dict[str, Any]]:
        """Return the Pods of executors."""
        found: list[dict[str, Any]] = self.cluster.get("pods", "-n", self.namespace, "-l", EXECUTORS)["items"]
        return found

    def jobs(self) -> list[dict[str, Any]]:
        """Return the Jobs of executors."""
        found: list[dict[str, Any]] = self.cluster.get("jobs", "-n", self.namespace, "-l", EXECUTORS)["items"]
        return found

    def assert_nothing_is_left(self) -> None:
        """The Jobs of builds are gone, with their Pods."""
        until(lambda: not self.jobs() and not self.pods(), 30, "Jobs and Pods are deleted")

    def as_user(self, configuration: Mapping[str, Any]) -> Farm:
        """Return this for a user with another kubeconfig."""
        path = self.kanifold.home / f"kubeconfig-{len(list(self.kanifold.home.glob('kubeconfig-*')))}"
        path.write_text(json.dumps(configuration))
        extra = {**self.kanifold.extra, "KUBECONFIG": str(path)}
        return replace(self, kanifold=replace(self.kanifold, extra=extra))


@pytest.fixture(scope="session")
def cluster_base(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an image with busybox in the cluster's registry."""
    needs("skopeo")
    layout = tmp_path_factory.mktemp("cluster-base") / "busybox"
    try:
        bases.make_layout("busybox", layout, ("linux/amd64", "linux/arm64", "linux/riscv64"))
    except bases.UnavailableError as problem:
        pytest.skip(f"no busybox base: {problem}")
    name = f"{cluster.registry}/base/busybox:1"
    copy = ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{name}"]
    subprocess.run(copy, check=True, capture_output=True, text=True)
    return name


def configured(kanifold: Kanifold, cluster: Cluster) -> Kanifold:
    """Return the command for a user of the cluster, whose registry has no TLS."""
    settings = kanifold.home / ".config" / "kanifold" / "registries.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'"{cluster.registry}": {{insecure: true}}\n')
    return replace(kanifold, extra={**kanifold.extra, "KUBECONFIG": str(cluster.kubeconfig)})


@pytest.fixture
def farm(kanifold: Kanifold, cluster: Cluster, namespace: str, executor_image: str, cluster_base: str) -> Farm:
    """A namespace of the cluster for one test's builds."""
    return Farm(cluster, namespace, executor_image, configured(kanifold, cluster), cluster_base)
