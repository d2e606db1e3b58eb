"""Attack 44 (GHSA-g2h8-426c-7976, CVE-2026-15792): a peer writes past the destination, or panics whoever asked it.

That lies about manifests, digests, sizes and platforms are found out is ``tests/integration/test_protocol_liars.py``;
here an executor is asked for files, which go to a directory of the user's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from protocol_nodes import Marked, build, liar

from orchestrator.outputs import LocalDirectory, OciLayout, Output
from orchestrator.request import BuildRequest
from platforms.errors import KanifoldError
from platforms.parsing import parse


@pytest.fixture
def mark() -> Iterator[Marked]:
    mark = Marked()
    yield mark
    assert mark.wait_until_gone(3) == [], "a process is left"


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("archive", ["name", "symlink", "root", "hard link", "half", "junk"])
def test_files_go_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: Marked, archive: str, existing: bool
) -> None:
    monkeypatch.setenv("KANIFOLD_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / "place"
    out = place / "deep" / "out"
    (out if existing else out.parent).mkdir(parents=True)
    for folder in (place, place / "deep"):
        (folder / "kept").write_text("kept")
        (folder / "kept").chmod(0o600)
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\n")

    def request(output: Output) -> BuildRequest:
        return BuildRequest(context=str(context), platforms=(parse("linux/amd64"),), outputs=(output,))

    node = liar("files_elsewhere", mark, archive)
    try:
        build(request(LocalDirectory(str(out))), node)
    except KanifoldError:
        assert out.exists() is existing
    found = {path for path in place.rglob("*") if out not in (path, *path.parents)}
    assert found == {place / "kept", place / "deep", place / "deep" / "kept"}
    for folder in (place, place / "deep"):
        assert (folder / "kept").read_text() == "kept"
        assert (folder / "kept").stat().st_mode & 0o777 == 0o600
        assert (folder / "kept").stat().st_nlink == 1
    # The orchestrator lives, and so does the store.
    build(request(OciLayout(str(tmp_path / "honest"))), liar("honest", mark))
