"""Entries are data: frozen, comparable, and their kinds cover what a file system holds."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from executor.rootfs.entry import KIND_OF_MODE, Entry, Kind


def test_an_entry_cannot_be_changed() -> None:
    entry = Entry(b"etc/passwd", Kind.FILE)
    with pytest.raises(AttributeError):
        entry.path = b"etc/shadow"  # type: ignore[misc]


def test_equal_entries_are_one_key() -> None:
    one = Entry(b"a", Kind.SYMLINK, link=b"b", xattrs=((b"user.x", b"1"),))
    other = replace(one)
    assert {one: 1}[other] == 1
    assert one != replace(one, link=b"c")


def test_a_kind_for_everything_but_sockets(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "socket"))
        found = {each.name: KIND_OF_MODE.get(stat.S_IFMT(each.lstat().st_mode)) for each in tmp_path.iterdir()}
    assert found == {"file": Kind.FILE, "link": Kind.SYMLINK, "fifo": Kind.FIFO, "socket": None}
    assert KIND_OF_MODE[stat.S_IFMT(tmp_path.stat().st_mode)] is Kind.DIRECTORY
    assert KIND_OF_MODE[stat.S_IFMT(os.stat("/dev/null").st_mode)] is Kind.CHARACTER
