"""A cluster with registries that ask for a password, which a Secret of the namespace has."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bases
import pytest
from cluster_builds import Farm
from cluster_images import made
from registry_server import Asked, MemoryRegistry, Said, Served, served

pytestmark = pytest.mark.slow

HERE, THERE = "here:one", "there:two"
"""User and password of whoever builds, and of the Secret."""
DOCKERFILE = "FROM {base}\nRUN arch >/arch\nCOPY Dockerfile /\n"


@dataclass(frozen=True)
class Private:
    """A registry for which one has to log in."""

    server: Served
    registry: MemoryRegistry
    farm: Farm

    @property
    def name(self) -> str:
        return self.server.host

    def users(self, method: str, part: str) -> set[str]:
        """Return who has made requests."""
        return {user(each) for each in self.server.seen(method, part) if user(each)}

    def secret(self, name: str, login: str) -> None:
        """Make a Secret with the password of ``login``."""
        document = {"auths": {self.name: {"auth": base64.b64encode(login.encode()).decode()}}}
        self.farm.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": self.farm.namespace},
                "type": "kubernetes.io/dockerconfigjson",
                "stringData": {".dockerconfigjson": json.dumps(document)},
            }
        )

    def words(self, **options: str) -> list[str]:
        """Return the arguments of a build with base and image in this registry."""
        found = self.farm.words(DOCKERFILE.replace("{base}", f"{self.name}/base:latest"), **options)
        return [each.replace(self.farm.name("app"), f"{self.name}/app:1") for each in found]


def user(asked: Asked) -> str:
    """Return the login that a request was made with; "" for none."""
    kind, _, rest = asked.headers.get("authorization", "").partition(" ")
    return base64.b64decode(rest).decode() if kind == "Basic" else ""


def refused(asked: Asked) -> Any:
    return ... if user(asked) in (HERE, THERE) else Said(401, {"WWW-Authenticate": 'Basic realm="test"'})


@pytest.fixture
def private(farm: Farm, tmp_path: Path) -> Iterator[Private]:
    registry = MemoryRegistry(refused)
    with served(registry, farm.cluster.registry.partition(":")[0]) as server:
        layout = tmp_path / "busybox"
        bases.make_layout("busybox", layout, ("linux/amd64", "linux/arm64"))
        registry.add_layout("base", layout)
        home = farm.kanifold.home
        settings = home / ".config" / "kanifold" / "registries.yaml"
        settings.write_text(f'"{server.host}": {{insecure: true}}\n')
        login = {"auths": {server.host: {"auth": base64.b64encode(HERE.encode()).decode()}}}
        (home / ".docker").mkdir(exist_ok=True)
        (home / ".docker" / "config.json").write_text(json.dumps(login))
        yield Private(server, registry, farm)


@pytest.mark.parametrize("profile", ["baseline", "restricted"])
def test_pods_pull_and_push_with_the_password_of_a_secret(private: Private, profile: str) -> None:
    private.secret("pushes", THERE)
    done = private.farm.kanifold.run(*private.words(registry_secret="pushes", profile=profile))
    assert done.code == 0, done.said
    assert THERE in private.users("GET", "/v2/base/blobs/")
    assert private.users("PUT", "/v2/app/blobs/") == {THERE}
    assert private.users("PUT", "/v2/app/manifests/1") == {HERE}, "the tag is set by who builds"
    private.farm.assert_nothing_is_left()


def test_without_a_secret_pods_are_lent_the_password_of_the_build(private: Private) -> None:
    done = private.farm.kanifold.run(*private.words())
    assert done.code == 0, done.said
    assert private.users("PUT", "/v2/app/blobs/") == {HERE}


def test_a_wrong_password_in_the_secret_is_named(private: Private) -> None:
    private.secret("pushes", "there:wrong")
    done = private.farm.kanifold.run(*private.words(registry_secret="pushes"))
    assert done.code == 1
    assert private.name in done.err and "401" in done.err
    private.farm.assert_nothing_is_left()


def test_a_large_context_goes_by_way_of_the_registry(private: Private) -> None:
    private.secret("pushes", THERE)
    options = {"context_repository": f"{private.name}/contexts", "context_limit": "1", "registry_secret": "pushes"}
    done = private.farm.kanifold.run(*private.words(platforms="linux/amd64,linux/arm64", **options))
    assert done.code == 0, done.said
    assert "ContextArtifact" not in done.err
    assert len(private.server.seen("PUT", "/v2/contexts/manifests/")) == 1
    assert private.users("PUT", "/v2/contexts/") == {HERE}
    assert private.users("GET", "/v2/contexts/blobs/") == {THERE}
    assert not [each for each, _ in private.registry.manifests if each == "contexts"]


def test_the_image_of_executors_is_pulled_with_image_pull_secrets(private: Private) -> None:
    layout = made() / "kanifold"
    private.registry.add_layout("kanifold", layout)
    for node in private.farm.cluster.nodes:
        hosts = node.folder / "hosts" / private.name
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'[host."http://{private.name}"]\ncapabilities = ["pull", "resolve"]\n')
    words = private.words()
    place = words.index("--node") + 1
    image = f"image={private.name}/kanifold:latest"
    words[place] = words[place].replace(f"image={private.farm.image}", image)
    without = private.farm.kanifold.run(*words, "--retry=0")
    assert without.code == 3, without.said
    assert "the image cannot be pulled" in without.err and "image-pull-secrets=" in without.err
    private.secret("pulls", THERE)
    words[place] += "&image-pull-secrets=pulls"
    done = private.farm.kanifold.run(*words)
    assert done.code == 0, done.said
    private.farm.assert_nothing_is_left()
