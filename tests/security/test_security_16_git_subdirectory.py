"""Attack 16 (CVE-2026-33748): ``#ref:subdir`` leads out of the repository, by dots or by a link."""

from __future__ import annotations

from pathlib import Path

import pytest
from git_server import Repository, serving

from executor.context.git import checkout, resolve
from executor.context.gitreference import parse
from platforms.errors import ContextError


def get(url: str, directory: Path) -> str:
    directory.mkdir()
    reference = parse(url)
    assert reference is not None
    return checkout(reference, resolve(reference, str(directory)), str(directory)).path


@pytest.mark.parametrize(
    "subdir",
    ["first", "first/b/c", "a/second", "a/second/c", "a/b/third", "a/b/inside", "a/b/loop", "a/b/file", "a/b/file/x"],
)
def test_no_component_may_be_a_link(tmp_path: Path, subdir: str) -> None:
    canary = tmp_path / "canary"
    (canary / "b/c").mkdir(parents=True)
    (canary / "c").mkdir()
    repo = Repository.make(tmp_path / "served/x.git")
    repo.commit(
        {
            "first": f"-> {canary}",
            "a/second": f"-> {canary}",
            "a/b/third": f"-> {canary}",
            "a/b/inside": "-> ../../real",
            "a/b/loop": "-> loop",
            "a/b/file": "",
            "real/file": "",
        }
    )
    with serving(tmp_path / "served") as server, pytest.raises(ContextError, match="no directory"):
        get(f"{server.url}/x.git#:{subdir}", tmp_path / "out")


@pytest.mark.parametrize("dots", ["../../../../etc", "%2e%2e/%2e%2e/etc", "/etc", "etc/../../etc", "etc/.."])
@pytest.mark.parametrize("form", ["#:{}", "?subdir={}"])
def test_dots_end_at_the_root_of_the_repository(tmp_path: Path, dots: str, form: str) -> None:
    Repository.make(tmp_path / "served/x.git").commit({"etc/passwd": "its own"})
    with serving(tmp_path / "served") as server:
        path = Path(get(f"{server.url}/x.git{form.format(dots)}", tmp_path / "out"))
    assert path.is_relative_to(tmp_path / "out")
    assert [each.read_text() for each in path.rglob("passwd")] == ["its own"]
