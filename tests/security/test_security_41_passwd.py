"""Attack 41 (CVE-2026-47262, CVE-2024-9676): /etc/passwd is a giant, a FIFO or a link, and whoever reads it hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from executor.rootfs.tree import open_directory
from executor.solver import users
from platforms.errors import BuildError

LINE = "who:x:7:7::/home:/bin/sh\n"
Trap = Literal["fifo", "link to a fifo", "giant", "endless", "directory", "loop", "device", "socket"]


def spring(trap: Trap, path: Path) -> None:
    match trap:
        case "fifo":
            os.mkfifo(path)
        case "link to a fifo":
            os.mkfifo(path.with_name("pipe"))
            path.symlink_to("pipe")
        case "giant":
            with path.open("w") as file:
                file.write(LINE)
                file.truncate(1 << 40)
        case "endless":
            path.symlink_to("/../../../dev/zero")
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "device":
            try:
                os.mknod(path, 0o20666, os.makedev(1, 5))
            except PermissionError:
                pytest.skip("needs root")
        case "socket":
            os.mknod(path, 0o140666)


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before, left = signal.signal(signal.SIGALRM, late), signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(left)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["passwd", "group"])
@pytest.mark.parametrize(
    "trap", ["fifo", "link to a fifo", "giant", "endless", "directory", "loop", "device", "socket"]
)
def test_a_file_that_is_none_does_not_hang(tmp_path: Path, trap: Trap, name: str) -> None:
    (tmp_path / "etc").mkdir()
    if name == "group":
        (tmp_path / "etc" / "passwd").write_text(LINE)
    spring(trap, tmp_path / "etc" / name)
    tree = open_directory(tmp_path)
    with at_most(5):
        # "endless" and "loop" end inside: there is no such file in the tree, or no file.
        with pytest.raises(BuildError):
            users.identity(tree, "who:staff" if name == "group" else "who")
        try:
            found = users.owner(tree, "1:staff" if name == "group" else "who")
        except BuildError:
            pass
        else:
            assert trap == "endless"
            assert found == ((1, 1) if name == "group" else (0, 0))
    tree.close()


def test_ten_mebibytes_are_read(tmp_path: Path) -> None:
    """BuildKit's limit, and not less."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(f"# {'x' * ((10 << 20) - len(LINE) - 3)}\n{LINE}")
    tree = open_directory(tmp_path)
    assert users.owner(tree, "who") == (7, 7)
    tree.close()
    (tmp_path / "etc" / "passwd").write_text(f"# {'x' * (10 << 20)}\n{LINE}")
    tree = open_directory(tmp_path)
    with pytest.raises(BuildError):
        users.owner(tree, "who")
    tree.close()
