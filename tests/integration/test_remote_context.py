"""Contexts for an executor that does not share our disk: what the ignore file lets through, in bounded memory."""

from __future__ import annotations

import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from oci_layout import read_image
from protocol_nodes import Marked, build, remote

from orchestrator.outputs import LocalDirectory, OciLayout, Output
from orchestrator.request import BuildRequest
from platforms.parsing import parse


@pytest.fixture
def mark() -> Iterator[Marked]:
    mark = Marked()
    yield mark
    assert mark.wait_until_gone(3) == [], "a process is left"


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANIFOLD_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    return folder


def asked(context: Path, *outputs: Output) -> BuildRequest:
    return BuildRequest(context=str(context), platforms=(parse("linux/amd64"),), outputs=outputs)


def test_the_ignore_file_says_what_is_sent(tmp_path: Path, context: Path, mark: Marked) -> None:
    (context / ".dockerignore").write_text("secret\nlogs/*\n!logs/kept\n")
    (context / "secret").write_text("not for others")
    (context / "logs").mkdir()
    (context / "logs" / "dropped").write_text("")
    (context / "logs" / "kept").write_text("kept")
    (context / "run").write_text("#!/bin/sh\n")
    (context / "run").chmod(0o755)
    (context / "link").symlink_to("run")
    out = tmp_path / "out"
    build(asked(context, OciLayout(str(out))), remote(tmp_path / "elsewhere", mark))
    seen = read_image(out, "linux/amd64")
    assert set(seen.tree) >= {"run", "link", "logs/kept", "Dockerfile"}
    assert not {"secret", "logs/dropped"} & set(seen.tree)
    assert seen.text("/logs/kept") == "kept"
    sent = [path for path in (tmp_path / "elsewhere").rglob("*") if path.name == "secret"]
    assert sent == []


def test_a_large_context_is_not_held_in_memory(tmp_path: Path, context: Path, mark: Marked) -> None:
    size = 256 << 20
    with (context / "large").open("wb") as file:
        file.truncate(size)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY small /\n")
    (context / "small").write_text("small")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    build(asked(context, OciLayout(str(tmp_path / "out"))), remote(tmp_path / "elsewhere", mark))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < size / 4
    assert [each.name for each in (tmp_path / "elsewhere" / "tmp").iterdir()] == ["partial"]


def test_files_come_back_from_elsewhere(tmp_path: Path, context: Path, mark: Marked) -> None:
    (context / "f").write_text("content")
    (context / "f").chmod(0o640)
    build(asked(context, LocalDirectory(str(tmp_path / "out"))), remote(tmp_path / "elsewhere", mark))
    assert (tmp_path / "out" / "f").read_text() == "content"
    assert stat.S_IMODE((tmp_path / "out" / "f").stat().st_mode) == 0o640
