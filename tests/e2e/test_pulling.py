"""Base layers on their way here: unpacked while they come, and kept only when every byte was right."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from registry_server import Asked, MemoryRegistry, Said, Served, served

if TYPE_CHECKING:
    from conftest import Base, Kanifold

Context = Callable[[Mapping[str, str | bytes]], Path]
LAYER = 100_000
"""Bytes that a layer of the bases has at least, and no config or manifest."""


@dataclass
class World:
    """A registry whose answers to requests for the base's one large layer are ``send``'s."""

    server: Served
    ref: str
    send: list[Callable[[bytes], Said]] = field(default_factory=list)
    """For each request in its turn; then it answers honestly."""


@contextmanager
def registry_of(base: Base) -> Iterator[World]:
    world: World

    def answer(asked: Asked) -> object:
        data = registry.blobs.get(("base", asked.path.rpartition("/")[2]), b"")
        if asked.method != "GET" or len(data) < LAYER:
            return ...
        return world.send.pop(0)(data) if world.send else ...

    registry = MemoryRegistry(answer)
    registry.add_layout("base", base.layout)
    with served(registry) as server:
        world = World(server, f"{server.host}/base")
        yield world


def damaged(data: bytes) -> Said:
    """As long as it should be, and no archive from the middle on."""
    return Said(200, {}, data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def unpacked(kanifold: Kanifold, name: str) -> list[Path]:
    """The files called ``name`` in directories of the store."""
    return list((kanifold.root / "snapshots").rglob(name)) if (kanifold.root / "snapshots").is_dir() else []


def test_a_layer_is_unpacked_while_it_is_downloaded(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    seen = []

    def slowly(data: bytes) -> Said:
        def pieces() -> Iterator[bytes]:
            yield data[: len(data) // 2]
            end = time.monotonic() + 20
            while not unpacked(kanifold, "busybox") and time.monotonic() < end:
                os.sched_yield()
            seen.extend(unpacked(kanifold, "busybox"))
            yield data[len(data) // 2 :]

        return Said(200, {}, stream=pieces(), length=len(data))

    with registry_of(busybox) as world:
        world.send = [slowly]
        kanifold("build", context({"Dockerfile": f"FROM {world.ref}\nRUN true\n"}))
    assert seen, "the first half of the layer was here, and none of its files"


def test_a_layer_that_a_mirror_sends_wrong_is_taken_from_the_registry(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    with registry_of(busybox) as mirror, registry_of(busybox) as world:
        mirror.send = [damaged]
        folder = context({"Dockerfile": f"FROM {world.ref}\nRUN test $(wc -c < /bin/busybox) -gt 1000000\n"})
        kanifold("build", folder, "--registry-mirror", f"{world.server.host}={mirror.server.host}")
        assert mirror.send == []
        assert len(world.server.seen("GET", "/blobs/")) == 1, "only the layer was missing"


def test_a_layer_that_breaks_off_is_gone_on_with_where_it_broke(
    kanifold: Kanifold, busybox: Base, context: Context
) -> None:
    with registry_of(busybox) as world:
        world.send = [lambda data: Said(200, {}, data, cut=len(data) // 2)]
        folder = context({"Dockerfile": f"FROM {world.ref}\nRUN test $(wc -c < /bin/busybox) -gt 1000000\n"})
        kanifold("build", folder)
        assert any("range" in each.headers for each in world.server.seen("GET", "/blobs/"))


@pytest.mark.parametrize(
    ("send", "words"),
    [
        (damaged, ("cannot pull", "sent something else", "its digest is")),
        (lambda _: Said(404), ("cannot pull", "404")),
    ],
    ids=["wrong bytes", "not there"],
)
def test_a_layer_that_does_not_come_whole_is_the_registrys_fault_and_leaves_nothing(
    kanifold: Kanifold, busybox: Base, context: Context, send: Callable[[bytes], Said], words: tuple[str, ...]
) -> None:
    with registry_of(busybox) as world:
        world.send = [send]
        outcome = kanifold.run("build", context({"Dockerfile": f"FROM {world.ref}\nRUN true\n"}))
        assert outcome.code == 1
        assert "Traceback" not in outcome.said, outcome.said
        assert "archive" not in outcome.err, "what could be made of the bytes is of no account"
        for word in words:
            assert word in outcome.err, outcome.err
        assert unpacked(kanifold, "busybox") == []
        assert [each for each in (kanifold.root / "tmp").rglob("*") if each.is_file()] == []
        kanifold("build", context({"Dockerfile": f"FROM {world.ref}\nRUN true\n"}))
