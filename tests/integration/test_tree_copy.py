"""A root made of layers is their union, and its table is what a walk would find."""

from __future__ import annotations

import errno
import marshal
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from executor.rootfs.entry import Entry, Kind
from executor.snapshotter import changes, records, tree_copy
from executor.snapshotter.layers import Union
from executor.snapshotter.materialise import materialise
from platforms.errors import BuildError, StoreError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners and devices")

SECOND = 1_000_000_000


def directory(path: str, mode: int = 0o755, **more: Any) -> Entry:
    return Entry(path.encode(), Kind.DIRECTORY, mode, mtime_ns=SECOND, **more)


class Layers:
    """Layers, and a directory for a root."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._made: list[str] = []
        self.root = place / "root" / "fs"
        self.root.mkdir(parents=True)

    def file(self, path: str, text: str = "text", **more: Any) -> Entry:
        source = self._place / f"source-{text[:20]}"
        source.write_text(text)
        meta = {"mode": 0o644, "mtime_ns": SECOND, **more}
        return Entry(path.encode(), Kind.FILE, size=len(text), source=os.fsencode(source), **meta)

    def add(self, *entries: Entry) -> None:
        made = self._place / str(len(self._made)) / "fs"
        made.mkdir(parents=True)
        materialise(entries, str(made))
        self._made.insert(0, str(made))

    def union(self) -> Union:
        return Union(self._made, records.read)


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def unpacked(table: changes.Table) -> dict[bytes, dict[bytes, bytes]]:
    return {path: marshal.loads(row) for path, row in table.items()}


def content(root: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    """Mode, owner, time and content of everything below ``root``."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        text = b""
        if stat.S_ISREG(status.st_mode):
            text = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            text = os.fsencode(path.readlink())
        found[str(path.relative_to(root))] = status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, text
    return found


def whole(union: Union) -> dict[str, tuple[int, int, int, int, bytes]]:
    """The same of ``union``, read entry by entry."""
    found = {}
    waiting = [b""]
    while waiting:
        for each in union.entries(waiting.pop()):
            status = union.lstat(each.path)
            assert status is not None
            text = b""
            if each.kind is Kind.FILE:
                text = Path(os.fsdecode(each.source)).read_bytes()
            elif each.kind is Kind.SYMLINK:
                text = each.link
            elif each.kind is Kind.DIRECTORY:
                waiting.append(each.path)
            mode = stat.S_IFMT(status.st_mode) | each.mode
            found[os.fsdecode(each.path)] = mode, each.uid, each.gid, each.mtime_ns, text
    return found


def test_a_copy_is_the_union_of_the_layers(layers: Layers) -> None:
    layers.add(
        directory("a", 0o2750, uid=5, gid=6), layers.file("a/set", mode=0o6755, uid=7, gid=8),
        layers.file("a/none", mode=0), layers.file("a/empty", ""), layers.file("a/large", "l" * 200_000),
        layers.file("a/one", "linked"), Entry(b"a/two", Kind.HARDLINK, link=b"a/one"),
        Entry(b"a/link", Kind.SYMLINK, 0o777, uid=3, gid=4, mtime_ns=2 * SECOND, link=b"/etc/passwd"),
        directory("gone"), layers.file("gone/file"), directory("hidden"), layers.file("hidden/file"),
        layers.file("becomes-directory"), directory("becomes-file"), layers.file("becomes-file/x"),
        directory("empty", 0o700),
    )  # fmt: skip
    layers.add(
        directory("a", 0o755, uid=9), layers.file("a/new"), Entry(b"a/none", Kind.WHITEOUT),
        Entry(b"gone", Kind.WHITEOUT),
        directory("hidden"), Entry(b"hidden", Kind.OPAQUE), layers.file("hidden/new"),
        directory("becomes-directory"), layers.file("becomes-directory/x"), layers.file("becomes-file", "file"),
    )  # fmt: skip
    union = layers.union()
    copied = tree_copy.copy(union, str(layers.root))
    assert set(copied.left) <= {b"a", b"hidden"}  # directories with marks of overlayfs, whose metadata is set later
    later = dict.fromkeys(map(os.fsdecode, copied.left))
    assert content(layers.root) | later == whole(union) | later
    assert (layers.root / "a/one").stat().st_ino != (layers.root / "a/two").stat().st_ino
    changes.renew(copied.table, str(layers.root), copied.left)
    assert unpacked(copied.table) == unpacked(changes.scan(str(layers.root))[0])


@pytest.fixture
def unusual(layers: Layers) -> Layers:
    layers.add(
        directory("d", xattrs=((b"user.x", b"1"),)), layers.file("d/plain"),
        layers.file("d/x", xattrs=((b"user.x", b"1"),)), Entry(b"d/pipe", Kind.FIFO, 0o600, mtime_ns=SECOND),
        Entry(b"d/null", Kind.CHARACTER, device=(1, 3), mtime_ns=SECOND), layers.file("d/recorded"),
    )  # fmt: skip
    (top,) = layers.union().directories(b"")
    records.write(os.fsdecode(top), (records.Record(b"d/recorded", 70_000, 70_000),))
    return layers


def test_what_needs_more_than_a_copy_is_left(unusual: Layers) -> None:
    copied = tree_copy.copy(unusual.union(), str(unusual.root))
    assert copied.left == (b"d", b"d/null", b"d/pipe", b"d/recorded", b"d/x")
    assert os.listdir(unusual.root / "d") == ["plain"]


def test_an_owner_that_the_kernel_refuses_is_left(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    layers.add(
        directory("d", uid=1), layers.file("d/f", uid=1), layers.file("d/own"),
        Entry(b"d/l", Kind.SYMLINK, uid=1, link=b"f", mtime_ns=SECOND),
    )  # fmt: skip

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "not mapped")

    monkeypatch.setattr(os, "chown", refuse)
    assert tree_copy.copy(layers.union(), str(layers.root)).left == (b"d", b"d/f", b"d/l")


def test_only_a_part_is_copied_to_its_place(layers: Layers) -> None:
    layers.add(directory("a"), directory("a/b", 0o711), layers.file("a/b/c"), layers.file("a/d"))
    (layers.root / "a" / "b").mkdir(parents=True)
    copied = tree_copy.copy(layers.union(), str(layers.root), b"a/b")
    assert [*content(layers.root)] == ["a", "a/b", "a/b/c"]
    assert (layers.root / "a" / "b").stat().st_mode & 0o777 == 0o711
    assert [*copied.table] == [b"a/b"]


def test_a_link_in_the_root_is_not_followed(layers: Layers, tmp_path: Path) -> None:
    """Nobody else writes to a root that is being made; if anyone did, nothing would be written outside."""
    layers.add(directory("a"), layers.file("a/b"))
    (tmp_path / "outside").mkdir()
    (layers.root / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(Exception, match="File exists"):
        tree_copy.copy(layers.union(), str(layers.root))
    with pytest.raises(Exception, match="Not a directory"):
        tree_copy.copy(layers.union(), str(layers.root), b"a")
    assert not os.listdir(tmp_path / "outside")


def test_a_full_disk_is_told_with_the_file(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    layers.add(directory("a"), layers.file("a/b"))

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(StoreError, match="a/b"):
        tree_copy.copy(layers.union(), str(layers.root))


def test_a_layer_that_changes_meanwhile_is_an_error(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    layers.add(layers.file("a"))
    (top,) = layers.union().directories(b"")
    opened = os.listxattr

    def grow(file: int) -> list[str]:
        Path(os.fsdecode(top), "a").write_text("longer than it was")
        return opened(file)

    monkeypatch.setattr(os, "listxattr", grow)
    with pytest.raises(BuildError, match="changed while it was read"):
        tree_copy.copy(layers.union(), str(layers.root))
