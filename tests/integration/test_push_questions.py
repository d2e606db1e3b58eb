"""What a registry is asked when an image goes where one like it was sent before."""

from __future__ import annotations

from pathlib import Path

from conftest import Kanifold
from registry_server import Asked, MemoryRegistry, Said, Served


class World:
    """A context whose last step copies a file, built for one platform and pushed."""

    def __init__(self, kanifold: Kanifold, folder: Path, host: str) -> None:
        self.kanifold, self.folder, self.host = kanifold, folder, host
        folder.mkdir()
        (folder / "Dockerfile").write_text(
            f"FROM {host}/busybox\nRUN echo 1 > /1\nRUN echo 2 > /2\nRUN echo 3 > /3\nCOPY file /\n"
        )

    def build(self, content: str) -> str:
        (self.folder / "file").write_text(content)
        words = ("--platform", "linux/amd64", "--push", "-t", f"{self.host}/app:1")
        return self.kanifold("build", self.folder, *words).out.strip()


def layers_asked_for(served: Served) -> list[Asked]:
    return [each for each in served.seen("HEAD", "/blobs/") if "/app/" in each.path]


def test_the_manifest_that_was_sent_last_vouches_for_its_layers(
    kanifold: Kanifold, tmp_path: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, served = server
    world = World(kanifold, tmp_path / "context", served.host)
    first = world.build("one")
    served.asked.clear()
    second = world.build("two")
    assert second != first
    assert layers_asked_for(served) == []
    assert len(served.seen("HEAD", f"/app/manifests/{first}")) == 1
    assert registry.manifests["app", "1"] == registry.manifests["app", second]


def test_a_registry_that_lost_the_manifest_is_asked_for_every_layer(
    kanifold: Kanifold, tmp_path: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, served = server
    world = World(kanifold, tmp_path / "context", served.host)
    world.build("one")
    registry.manifests = {key: each for key, each in registry.manifests.items() if key[0] != "app"}
    registry.blobs = {key: each for key, each in registry.blobs.items() if key[0] != "app"}
    served.asked.clear()
    digest = world.build("two")
    assert layers_asked_for(served) != []
    assert registry.manifests["app", "1"] == registry.manifests["app", digest]


def test_a_registry_that_has_the_manifest_and_lost_a_layer_is_given_that(
    kanifold: Kanifold, tmp_path: Path, server: tuple[MemoryRegistry, Served]
) -> None:
    registry, served = server
    world = World(kanifold, tmp_path / "context", served.host)
    world.build("one")
    lost = next(key for key in registry.blobs if key[0] == "busybox" and ("app", key[1]) in registry.blobs)
    data = registry.blobs.pop(("app", lost[1]))

    def knows_its_blobs(asked: Asked) -> object:
        if asked.method == "PUT" and "/app/manifests/" in asked.path and ("app", lost[1]) not in registry.blobs:
            return Said(400, {}, b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}')
        return ...

    registry.fault = knows_its_blobs
    digest = world.build("two")
    assert registry.blobs["app", lost[1]] == data
    assert registry.manifests["app", "1"] == registry.manifests["app", digest]
