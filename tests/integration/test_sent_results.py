"""Results of a node with another disk: to the registry from there, to this machine once, and only what it lacks.

What the executor writes is recorded.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from oci_layout import read_image
from protocol_nodes import ROOT, Marked, build

from executor.protocol import BuildOptions
from executor.registry.reference import parse as reference
from orchestrator.nodes.command_node import CommandNode
from orchestrator.outputs import LocalDirectory, OciArchive, OciLayout, Output, Push
from orchestrator.request import BuildRequest
from platforms.parsing import parse

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="executors run on Linux")

SIZE = 2 << 20
MARGIN = 60_000
"""Bytes for everything but the layer."""


@dataclass
class Builder:
    place: Path
    mark: Marked

    def build(self, *outputs: Output, tag: str = "") -> int:
        """Build an image with a layer of ``SIZE`` bytes; returns how many bytes the executor wrote."""
        context = self.place / "context"
        context.mkdir(exist_ok=True)
        noise = b"".join(hashlib.sha512(b"%d" % each).digest() for each in range(SIZE // 64))
        (context / "noise").write_bytes(noise)
        (context / "Dockerfile").write_text("FROM scratch\nCOPY noise /\n")
        tags = (reference(tag),) if tag else ()
        options = BuildOptions(root=str(self.place / "here"))
        request = BuildRequest(
            str(context), platforms=(parse("linux/amd64"),), outputs=outputs, tags=tags, options=options
        )
        outside = 'record=$1 && shift && "$@" | tee -- "$record"'
        program = ("sh", "-c", outside, "sh", str(self.place / "said"), sys.executable, "-P", "-m", "executor")
        given = {"KANIFOLD_ROOT": str(self.place / "there"), "PYTHONPATH": str(ROOT), **self.mark.environment}
        build(request, CommandNode("elsewhere", program, tuple(given.items())))
        return (self.place / "said").stat().st_size

    def stored(self) -> list[int]:
        """The sizes of large blobs in the store of this machine."""
        sizes = [each.stat().st_size for each in (self.place / "here" / "blobs" / "sha256").iterdir()]
        return [each for each in sizes if each > SIZE]


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Builder]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    mark = Marked()
    yield Builder(tmp_path, mark)
    assert mark.wait_until_gone(3) == []


def test_blobs_go_from_the_node_to_the_registry(builder: Builder, registry: str) -> None:
    assert builder.build(Push(), tag=f"{registry}/sent-results:1") < MARGIN


def test_a_layout_is_written_while_it_is_received_and_once(builder: Builder) -> None:
    out = builder.place / "out"
    assert SIZE < builder.build(OciLayout(str(out))) < SIZE + MARGIN
    assert "noise" in read_image(out, "linux/amd64").tree
    assert builder.stored() == [], "the layer is on the disk of this machine twice"
    assert builder.build(OciLayout(str(out))) < MARGIN, "what the layout has is sent again"


def test_an_archive_is_sent_once_for_all_builds(builder: Builder) -> None:
    outputs = OciArchive(str(builder.place / "image.tar")), OciLayout(str(builder.place / "out"))
    assert SIZE < builder.build(*outputs) < SIZE + MARGIN
    assert len(builder.stored()) == 1
    assert builder.build(OciArchive(str(builder.place / "again.tar"))) < MARGIN


def test_files_are_written_while_they_are_received(builder: Builder) -> None:
    out = builder.place / "files"
    assert SIZE < builder.build(LocalDirectory(str(out))) < SIZE + MARGIN
    assert os.listdir(out) == ["noise"]
    assert builder.stored() == []
