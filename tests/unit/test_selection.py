"""Which manifest is taken for a platform, out of indexes that may hold indexes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from executor.image import mediatypes, selection
from executor.image.config import ImageConfig
from executor.image.config import encode as encode_config
from executor.image.digest import sha256
from executor.image.manifest import Descriptor, Index, Manifest, PlatformSpec, describe
from platforms.errors import ArchiveError, PlatformMissing
from platforms.parsing import parse

AMD64, ARM64 = PlatformSpec("amd64", "linux"), PlatformSpec("arm64", "linux")


class World:
    """Documents by digest, and which of them were read."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.opened: list[str] = []

    def read(self, descriptor: Descriptor) -> bytes:
        self.opened.append(descriptor.digest)
        return self.content[descriptor.digest]

    def image(self, platform: str, stated: PlatformSpec | None) -> Descriptor:
        """An image whose config says ``platform``; its descriptor says what is ``stated``."""
        data = encode_config(ImageConfig(platform=parse(platform)))
        config = Descriptor(mediatypes.OCI_CONFIG, sha256(data), len(data))
        descriptor, document = describe(Manifest(mediatypes.OCI_MANIFEST, config, ()), stated)
        self.content |= {config.digest: data, descriptor.digest: document}
        return descriptor

    def index(self, entries: Sequence[Descriptor], stated: PlatformSpec | None = None) -> Descriptor:
        descriptor, data = describe(Index(mediatypes.OCI_INDEX, tuple(entries)), stated)
        self.content[descriptor.digest] = data
        return descriptor

    def find(self, entries: Sequence[Descriptor], platform: str) -> str:
        """The digest of what is found in an index of ``entries``."""
        root = Index(mediatypes.OCI_INDEX, tuple(entries))
        return selection.find("app", root, parse(platform), self.read)[0].digest


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("stated", [None, AMD64])
def test_an_index_in_an_index_is_opened(world: World, stated: PlatformSpec | None) -> None:
    wanted = world.image("linux/amd64", AMD64)
    nested = world.index([world.image("linux/arm64", ARM64), wanted], stated)
    assert world.find([nested], "linux/amd64") == wanted.digest
    deeper = world.index([nested], stated)
    assert world.find([deeper], "linux/amd64") == wanted.digest


def test_what_says_its_platform_comes_before_what_does_not(world: World) -> None:
    wanted = world.image("linux/amd64", AMD64)
    other = world.index([world.image("linux/amd64", PlatformSpec("amd64", "linux", os_version="1"))])
    assert world.find([other, wanted], "linux/amd64") == wanted.digest
    assert other.digest not in world.opened


def test_the_best_of_several_nested_indexes_is_taken(world: World) -> None:
    wanted = world.image("linux/amd64", AMD64)
    fallback = world.index([world.image("linux/386", PlatformSpec("386", "linux"))])
    assert world.find([fallback, world.index([wanted])], "linux/amd64") == wanted.digest


def test_an_index_that_promised_a_platform_and_lacks_it_is_passed_over(world: World) -> None:
    wanted = world.image("linux/amd64", AMD64)
    empty = world.index([world.image("linux/arm64", ARM64)], AMD64)
    assert world.find([empty, wanted], "linux/amd64") == wanted.digest


def test_a_manifest_without_a_platform_is_known_by_its_config(world: World) -> None:
    wanted = world.image("linux/amd64", None)
    assert world.find([world.image("linux/arm64", None), wanted], "linux/amd64") == wanted.digest


def test_what_there_is_is_listed_when_nothing_fits(world: World) -> None:
    nested = world.index([world.image("linux/arm64", ARM64)])
    with pytest.raises(PlatformMissing) as caught:
        world.find([nested, world.image("linux/s390x", None)], "linux/amd64")
    assert caught.value.problem.why == "it has linux/arm64, linux/s390x"


def test_indexes_are_not_followed_without_end(world: World) -> None:
    nested = world.image("linux/amd64", AMD64)
    for _ in range(selection.DEPTH + 1):
        nested = world.index([nested])
    with pytest.raises(ArchiveError, match="without end"):
        world.find([nested], "linux/amd64")
    many = [world.index([world.image("linux/arm64", PlatformSpec("arm64", "linux", str(each)))]) for each in range(100)]
    world.opened.clear()
    with pytest.raises(ArchiveError, match="without end"):
        world.find(many, "linux/amd64")
    assert len(world.opened) <= selection.DOCUMENTS


def test_an_index_that_lists_itself_ends(world: World) -> None:
    itself = Descriptor(mediatypes.OCI_INDEX, "sha256:" + "0" * 64, 1)
    world.content[itself.digest] = describe(Index(mediatypes.OCI_INDEX, (itself,)))[1]
    with pytest.raises(PlatformMissing):
        world.find([itself], "linux/amd64")
    assert len(world.opened) == 1
