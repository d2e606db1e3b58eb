"""Attack 64 (review): ``kanifold pin`` reads, quotes and writes what a link in a stranger's checkout leads to.

A build refuses a Dockerfile that is a link out of its context (attack 55); the command that edits Dockerfiles followed
it, printed the first line in its error, and waited for a FIFO without end.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Kanifold

SECRET = "machine example.com login joe password disclosed\n"


@pytest.mark.parametrize("flags", [(), ("--check",), ("--dry-run",), ("--update",)])
@pytest.mark.parametrize("asked", [".", "Dockerfile", "{}", "{}/Dockerfile", "sub", "sub/Dockerfile", "elsewhere"])
def test_links_out_are_not_followed(kanifold: Kanifold, tmp_path: Path, asked: str, flags: tuple[str, ...]) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/Dockerfile").write_text(SECRET)
    folder = kanifold.folder("checkout")
    (folder / "Dockerfile").symlink_to("../../secret/Dockerfile")
    (folder / "sub").symlink_to(tmp_path / "secret")
    where = folder
    if asked == "elsewhere":
        where, asked = kanifold.home, str(folder)
    done = kanifold.run("pin", *flags, asked.format(folder), cwd=where)
    assert (done.code, "disclosed" in done.said) == (1, False), done.said
    assert "leads out of" in done.said
    assert (tmp_path / "secret/Dockerfile").read_text() == SECRET


@pytest.mark.parametrize("asked", [".", "Dockerfile"])
def test_what_is_no_file_is_not_waited_for(kanifold: Kanifold, asked: str) -> None:
    folder = kanifold.folder("checkout")
    os.mkfifo(folder / "Dockerfile")
    done = kanifold.run("pin", "--check", asked, cwd=folder)
    assert done.code == 1, done.said
    assert "not a regular file but a FIFO" in done.said


def test_links_inside_and_files_that_were_named_are_what_they_were(kanifold: Kanifold, tmp_path: Path) -> None:
    folder = kanifold.folder("checkout")
    (folder / "common").mkdir()
    (folder / "common/Dockerfile").write_text("FROM scratch\n")
    (folder / "app").mkdir()
    (folder / "app/Dockerfile").symlink_to("../common/Dockerfile")
    (tmp_path / "mine").symlink_to(folder / "common/Dockerfile")
    for asked in ("app", "app/Dockerfile", str(folder / "app"), str(tmp_path / "mine")):
        done = kanifold.run("pin", "--check", asked, cwd=folder)
        assert done.code == 0, done.said
