"""Whole builds against registries that are as particular as real ones."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from registry_server import MemoryRegistry, Said, served

if TYPE_CHECKING:
    from conftest import Base, Kanifold

Context = Callable[[Mapping[str, str | bytes]], Path]
INDEX = "application/vnd.oci.image.index.v1+json"


def test_a_build_that_published_half_of_its_tags_is_run_again_to_its_end(kanifold: Kanifold, context: Context) -> None:
    registry = MemoryRegistry()
    registry.immutable = True
    folder = context({"Dockerfile": "FROM scratch\nCOPY file /\n", "file": "content"})
    with served(registry) as server:
        names = [f"{server.host}/app:{each}" for each in ("one", "two")]
        arguments = ("build", folder, "-t", names[0], "-t", names[1], "--push", "--platform", "linux/amd64,linux/arm64")
        registry.fault = lambda asked: Said(403) if asked.method == "PUT" and asked.path.endswith("/two") else ...
        assert kanifold.run(*arguments).code == 1
        assert ("app", "one") in registry.manifests
        assert ("app", "two") not in registry.manifests
        registry.fault = None
        kanifold(*arguments)
        assert registry.manifests["app", "one"] == registry.manifests["app", "two"]
        (folder / "file").write_text("other")
        outcome = kanifold.run(*arguments)
    assert outcome.code == 1
    assert "immutable" in outcome.err
    assert "choose another" in outcome.err


def test_a_registry_that_stalls_is_named_and_given_up_when_the_user_says(kanifold: Kanifold, context: Context) -> None:
    over = threading.Event()
    with served(lambda _: over.wait(60) and None) as server:
        folder = context({"Dockerfile": f"FROM {server.host}/base\n"})
        outcome = kanifold.run("build", folder, "--registry-timeout", "6s", "--progress", "plain")
        over.set()
    assert outcome.code == 1
    assert re.search(rf"waiting for {server.host} \(\d.\ds\): resolve {server.host}/base:latest", outcome.err)
    assert f"cannot resolve {server.host}/base:latest" in outcome.err
    assert len(server.asked) == 1


def test_pinning_gives_a_registry_that_stalls_up_when_the_user_says(kanifold: Kanifold, context: Context) -> None:
    over = threading.Event()
    with served(lambda _: over.wait(60) and None) as server:
        folder = context({"Dockerfile": f"FROM {server.host}/base\n"})
        outcome = kanifold.run("pin", folder, "--check", "--registry-timeout", f"{server.host}=0.2s")
        over.set()
    assert outcome.code == 1
    assert len(server.asked) == 1


def test_a_base_may_be_an_index_in_an_index(kanifold: Kanifold, busybox: Base, context: Context) -> None:
    registry = MemoryRegistry()
    registry.add_layout("base", busybox.layout)
    media_type, inner = registry.manifests["base", "latest"]
    entry = {"mediaType": media_type, "digest": registry.add_manifest("base", "inner", media_type, inner)}
    outer = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry | {"size": len(inner)}]}
    registry.add_manifest("base", "outer", INDEX, json.dumps(outer).encode())
    with served(registry) as server:
        kanifold("build", context({"Dockerfile": f"FROM {server.host}/base:outer\nRUN test -x /bin/busybox\n"}))
