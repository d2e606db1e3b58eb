"""Steps as data, and the little files that say what an ordinary user may do."""

from __future__ import annotations

import os
from pathlib import Path

from executor.sandbox import Bind, BindFd, SecretFile, Spec, Tmpfs, isolation
from executor.sandbox.spec import pack, unpack
from executor.sandbox.targets import Root
from executor.snapshotter.rootfs import Overlay
from executor.step_options import StepOptions


def test_a_spec_survives_the_way_to_another_process() -> None:
    mounts = (
        Bind("/a\udcff", "/b", readonly=True),
        BindFd(40, "/c"),
        Tmpfs("/t", 1 << 40, 0o700),
        SecretFile("/s", b"\x00\xff", 1, 2, 0o444),
        BindFd(41, "/d", readonly=True, inside="x"),
    )
    spec = Spec(
        Overlay(("/l1", "/l2"), "/upper", "/work"), ("a", "\udc80"), ("A=1",), "/w", 2**31, 5, (1, 2), "h", mounts,
        "none", True, b"\x00in", StepOptions((("n", "1.2.3.4"),), "host", shm_size=7, ulimits=(("nofile", 1, -1),)),
    )  # fmt: skip
    data, fds = pack(spec)
    assert fds == [40, 41]
    arrived = unpack(data, [50, 51])
    assert [mount.fd for mount in arrived.mounts if isinstance(mount, BindFd)] == [50, 51]
    assert unpack(data, [40, 41]) == spec


def test_subordinate_ranges(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    table.write_text("root:1:10\nme:100000:65536\n\n# me:1:1\n4294967:200000:5\nme:x:1\nme:7\nme:9:0\nmeme:1:1\n")
    me = isolation._name(4294967)
    assert me == "4294967"
    assert isolation._subordinate(str(table), 4294967) == [(200000, 5)]
    assert isolation._subordinate(str(tmp_path / "none"), 0) == []
    assert isolation._subordinate(str(table), 0) == [(1, 10)]


def test_places_are_found_without_leaving_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "up").symlink_to("../../outside")
    (root / "absolute").symlink_to("/a/b")
    (root / "chain").symlink_to("absolute/../../../../a")
    (root / "loop").symlink_to("loop")
    fd = os.open(root, os.O_PATH)
    tree = Root(fd, fd, 0)

    def where(target: str, *, directory: bool = True) -> str:
        found = tree.locate(target, directory=directory)
        try:
            return os.readlink(f"/proc/self/fd/{found}").removeprefix(str(root))
        finally:
            os.close(found)

    assert where("/absolute") == where("a//./b/") == "/a/b"
    assert where("/chain") == where("/../../a") == where("a/b/../../../a") == "/a"
    assert where("/up") == "/outside"
    assert where("/a/new/file", directory=False) == "/a/new/file"
    assert [path for path, _ in tree.made] == ["outside", "a/new", "a/new/file"]
    for target, error in (
        ("/loop", OSError),
        ("/a/new/file/x", NotADirectoryError),
        ("/a/new/file", NotADirectoryError),
    ):
        try:
            where(target)
        except error:
            continue
        raise AssertionError(target)
    assert list((tmp_path / "outside").iterdir()) == []
    os.close(fd)
