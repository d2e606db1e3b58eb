"""Layers unpacked on a real file system, judged by GNU tar and by overlayfs itself."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import raw_tar as raw

from executor.snapshotter import overlayfs, records
from executor.snapshotter.records import DeviceNumber, Record
from executor.snapshotter.unpack import Unpacked, UnpackLimits, extract, unpack, unpack_onto
from platforms.errors import ArchiveError, StoreError

LIMITS = UnpackLimits()
SECOND = 1_000_000_000
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners and devices")


def directory(name: bytes, **fields: object) -> bytes:
    return raw.header(name + b"/", raw.DIRECTORY, mode=0o755, **fields)  # type: ignore[arg-type]


def lay(target: Path, *parts: bytes) -> Unpacked:
    target.mkdir(exist_ok=True)
    return unpack(raw.stream(*parts), str(target), limits=LIMITS)


@contextmanager
def merged(tmp_path: Path, *layers: Path, writable: bool = False) -> Iterator[Path]:
    """The union of ``layers``, top first, as overlayfs sees it."""
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    upper = work = ""
    if writable:
        upper, work = str(tmp_path / "upper"), str(tmp_path / "work")
        os.mkdir(upper)
        os.mkdir(work)
    fd = overlayfs.mount_stack([str(each) for each in layers], str(empty), upper=upper, work=work)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def tree(top: Path) -> dict[str, object]:
    """What is below ``top``: files with their content, links with their text, directories with None."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = Path(folder) / name
            relative = str(path.relative_to(top))
            if path.is_symlink():
                found[relative] = ("->", os.readlink(path))
            elif path.is_dir():
                found[relative] = None
            else:
                found[relative] = path.read_bytes() if path.is_file() else stat.filemode(path.lstat().st_mode)
    return found


# -- one layer -------------------------------------------------------------------------------------------------------


@root_only
def test_the_tree_is_what_gnu_tar_makes_of_it(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("GNU tar is not installed")
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "file").write_bytes(os.urandom(700_000))
    (source / "deep" / "er" / ("long" * 50)).write_text("x")
    (source / "empty").touch()
    (source / "link").symlink_to("deep/file")
    os.link(source / "deep" / "file", source / "hard")
    os.mkfifo(source / "pipe")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (source / "suid").write_text("s")
    os.chown(source / "suid", 7, 8)
    os.chmod(source / "suid", 0o6751)
    os.chmod(source / "deep", 0o1777)
    os.chown(source / "deep", 9, 9)
    os.chown(source / "link", 3, 4, follow_symlinks=False)
    with (source / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"end")
    for number, name in enumerate(sorted(source.rglob("*"))):
        os.utime(name, ns=(0, (1_000_000 + number) * SECOND), follow_symlinks=False)
    for flags in (
        ["--format=gnu", "--sparse"],
        ["--format=posix", "--sparse"],
        ["--format=pax", "--sparse-version=0.1", "-S"],
    ):
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        archive = subprocess.run(["tar", *flags, "-C", source, "-cf", "-", "."], check=True, capture_output=True).stdout
        theirs.mkdir()
        subprocess.run(["tar", "-xpf", "-", "--numeric-owner", "-C", theirs], input=archive, check=True)
        ours.mkdir()
        result = unpack(io.BytesIO(archive), str(ours), limits=LIMITS)
        assert listing(ours) == listing(theirs)
        assert result.diff_id == "sha256:" + hashlib.sha256(archive).hexdigest()
        assert not result.needs_parents
        assert (ours / "sparse").stat().st_blocks < 1000, "a hole stays a hole"
        shutil.rmtree(ours)
        shutil.rmtree(theirs)


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    first: dict[int, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(top))
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            first.setdefault(status.st_ino, name),
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
    return found


def test_what_a_layer_occupies_is_known_without_looking(tmp_path: Path) -> None:
    parts = (
        directory(b"d"), raw.file(b"d/small", b"x"), raw.file(b"d/empty"), raw.file(b"d/large", bytes(4097)),
        raw.header(b"d/hard", raw.HARDLINK, link=b"d/large"), raw.header(b"d/link", raw.SYMLINK, link=b"small"),
    )  # fmt: skip
    assert lay(tmp_path / "lower", *parts).occupied == 4096 * (1 + 1 + 2)


@root_only
def test_file_capabilities_survive_the_change_of_owner(tmp_path: Path) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    lay(
        tmp_path / "l",
        raw.pax((b"SCHILY.xattr.security.capability", capability), (b"SCHILY.xattr.user.note", b"hi")),
        raw.file(b"ping", b"x", uid=5, mode=0o4755),
    )
    path = tmp_path / "l" / "ping"
    assert os.getxattr(path, "security.capability") == capability
    assert os.getxattr(path, "user.note") == b"hi"
    assert stat.S_IMODE(path.stat().st_mode) == 0o4755


def test_times_of_directories_are_set_last(tmp_path: Path) -> None:
    lay(tmp_path / "l", directory(b"d", mtime=5), raw.file(b"d/f", b"x", mtime=6), directory(b"d/e", mtime=7))
    assert (tmp_path / "l/d").stat().st_mtime_ns == 5 * SECOND
    assert (tmp_path / "l/d/e").stat().st_mtime_ns == 7 * SECOND


def test_a_locked_directory_can_be_filled(tmp_path: Path) -> None:
    lay(tmp_path / "l", raw.header(b"d", raw.DIRECTORY, mode=0o500), raw.file(b"d/f", b"x"))
    assert stat.S_IMODE((tmp_path / "l/d").stat().st_mode) == 0o500
    assert (tmp_path / "l/d/f").read_bytes() == b"x"


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    lay(
        tmp_path / "l",
        raw.file(b"f", b"old"),
        raw.file(b"f", b"new"),
        directory(b"d"),
        raw.file(b"d/f", b"x"),
        raw.file(b"d", b"now a file"),
        raw.file(b"g", b"x"),
        directory(b"g"),
        raw.file(b"g/inside", b"y"),
        raw.header(b"s", raw.SYMLINK, link=b"g"),
        directory(b"s"),
        directory(b"kept"),
        raw.file(b"kept/f", b"z"),
        directory(b"kept"),
    )
    assert tree(tmp_path / "l") == {
        "f": b"new",
        "d": b"now a file",
        "g": None,
        "g/inside": b"y",
        "s": None,
        "kept": None,
        "kept/f": b"z",
    }


def test_links_inside_the_layer_are_followed_inside_the_layer(tmp_path: Path) -> None:
    lay(
        tmp_path / "l",
        directory(b"usr"),
        directory(b"usr/lib"),
        raw.header(b"lib", raw.SYMLINK, link=b"usr/lib"),
        raw.header(b"up", raw.SYMLINK, link=b"../../../../../usr"),
        raw.header(b"abs", raw.SYMLINK, link=b"/usr/./lib/../lib/"),
        raw.header(b"chain", raw.SYMLINK, link=b"abs/../lib"),
        raw.file(b"lib/one", b"1"),
        raw.file(b"up/lib/two", b"2"),
        raw.file(b"abs/three", b"3"),
        raw.file(b"chain/four", b"4"),
        raw.header(b"hard", raw.HARDLINK, link=b"chain/one"),
    )
    assert sorted(os.listdir(tmp_path / "l/usr/lib")) == ["four", "one", "three", "two"]
    assert (tmp_path / "l/hard").samefile(tmp_path / "l/usr/lib/one")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((raw.file(b"f", b"x"), raw.file(b"f/g", b"y")), id="file as parent"),
        pytest.param((raw.header(b"l", raw.SYMLINK, link=b"l"), raw.file(b"l/f")), id="loop"),
        pytest.param((directory(b"d"), raw.header(b"h", raw.HARDLINK, link=b"d")), id="hard link to directory"),
        pytest.param(
            (raw.header(b"x" * 100 + b"/" + b"y" * 100, prefix=b"z"), raw.long_name(b"n" * 256), raw.file(b"f")),
            id="name too long",
        ),
        pytest.param((raw.file(b".wh."),), id="deletion of nothing"),
        pytest.param((raw.file(b"d/.wh.."),), id="deletion of itself"),
        pytest.param((raw.file(b"d/.wh..."),), id="deletion of the parent"),
    ],
)
def test_what_cannot_be_unpacked_is_an_error_that_says_where(tmp_path: Path, parts: tuple[bytes, ...]) -> None:
    with pytest.raises(ArchiveError) as caught:
        lay(tmp_path / "l", *parts)
    assert caught.value.problem.why


def test_limits(tmp_path: Path) -> None:
    parts = (raw.file(b"a", bytes(600)), raw.file(b"b", bytes(400)))
    (tmp_path / "ok").mkdir()
    unpack(raw.stream(*parts), str(tmp_path / "ok"), limits=UnpackLimits(size=1000, entries=2))
    for number, limits in enumerate((UnpackLimits(size=999, entries=2), UnpackLimits(size=1000, entries=1))):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(ArchiveError, match="too large"):
            unpack(raw.stream(*parts), str(tmp_path / str(number)), limits=limits)


@root_only
def test_a_full_disk_is_the_stores_error(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", small], check=False).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        with pytest.raises(StoreError) as caught:
            unpack(raw.stream(raw.file(b"f", bytes(2 << 20))), str(small), limits=LIMITS)
        assert caught.value.problem.remedy
    finally:
        subprocess.run(["umount", small], check=True)


# -- deletions and unions --------------------------------------------------------------------------------------------


def lower(tmp_path: Path) -> Path:
    lay(
        tmp_path / "lower",
        directory(b"keep"),
        raw.file(b"keep/f", b"keep"),
        directory(b"hide"),
        raw.file(b"hide/old", b"old"),
        directory(b"hide/sub"),
        raw.file(b"hide/sub/old", b"old"),
        raw.file(b"gone", b"gone"),
        directory(b"gonedir"),
        raw.file(b"gonedir/f", b"gone"),
        raw.header(b"link", raw.SYMLINK, link=b"keep"),
    )
    return tmp_path / "lower"


CHANGES: dict[str, tuple[tuple[bytes, ...], dict[str, object]]] = {
    "deletions": (
        (raw.file(b".wh.gone"), raw.file(b".wh.gonedir"), directory(b"keep"), raw.file(b"keep/.wh.nothing")),
        {"keep": None, "keep/f": b"keep", "hide": None, "hide/old": b"old", "hide/sub": None, "hide/sub/old": b"old",
         "link": ("->", "keep")},
    ),
    "opaque": (
        (directory(b"hide"), raw.file(b"hide/new", b"new"), directory(b"hide/sub"), raw.file(b"hide/.wh..wh..opq")),
        {"keep": None, "keep/f": b"keep", "hide": None, "hide/new": b"new", "hide/sub": None, "gone": b"gone",
         "gonedir": None, "gonedir/f": b"gone", "link": ("->", "keep")},
    ),
    "deleted, then made anew": (
        (raw.file(b".wh.hide"), directory(b"hide"), raw.file(b"hide/new", b"new"), raw.file(b".wh.gone"),
         raw.file(b"gone", b"back")),
        {"keep": None, "keep/f": b"keep", "hide": None, "hide/new": b"new", "gone": b"back", "gonedir": None,
         "gonedir/f": b"gone", "link": ("->", "keep")},
    ),
    "made anew, then deleted below": (
        (directory(b"hide"), raw.file(b"hide/new", b"new"), raw.file(b"gone", b"back"), raw.file(b".wh.hide"),
         raw.file(b".wh.gone")),
        {"keep": None, "keep/f": b"keep", "hide": None, "hide/new": b"new", "gone": b"back", "gonedir": None,
         "gonedir/f": b"gone", "link": ("->", "keep")},
    ),
    "deleted, then a parent": (
        (raw.file(b".wh.hide"), raw.file(b"hide/new", b"new")),
        {"keep": None, "keep/f": b"keep", "hide": None, "hide/new": b"new", "gone": b"gone", "gonedir": None,
         "gonedir/f": b"gone", "link": ("->", "keep")},
    ),
    "a link below gives way to a directory": (
        (raw.file(b"link/new", b"new"),),
        {"keep": None, "keep/f": b"keep", "hide": None, "hide/old": b"old", "hide/sub": None, "hide/sub/old": b"old",
         "gone": b"gone", "gonedir": None, "gonedir/f": b"gone", "link": None, "link/new": b"new"},
    ),
    "a directory gives way to a file": (
        (raw.file(b"gonedir", b"file"),),
        {"keep": None, "keep/f": b"keep", "hide": None, "hide/old": b"old", "hide/sub": None, "hide/sub/old": b"old",
         "gone": b"gone", "gonedir": b"file", "link": ("->", "keep")},
    ),
}  # fmt: skip


@root_only
@pytest.mark.parametrize("case", CHANGES)
def test_a_layer_means_the_same_as_overlay_and_as_changes_to_a_tree(tmp_path: Path, case: str) -> None:
    parts, expected = CHANGES[case]
    below = lower(tmp_path)
    lay(tmp_path / "layer", *parts)
    with merged(tmp_path, tmp_path / "layer", below) as seen:
        assert tree(seen) == expected
    with merged(tmp_path, below, writable=True) as mounted:
        unpack_onto(raw.stream(*parts), str(mounted), limits=LIMITS)
        assert tree(mounted) == expected
    unpack_onto(raw.stream(*parts), str(below), limits=LIMITS)
    assert tree(below) == expected


@root_only
def test_a_deletion_of_nothing_cannot_be_seen(tmp_path: Path) -> None:
    """Overlayfs lists deletions in directories that only one layer has as names that cannot be opened."""
    lay(tmp_path / "l", directory(b"d"), raw.file(b"d/.wh.x"), raw.file(b"d/y"), raw.file(b".wh.top"))
    for layers in ((tmp_path / "l",), (tmp_path / "l", lower(tmp_path))):
        with merged(tmp_path, *layers) as seen:
            assert os.listdir(seen / "d") == ["y"]
            assert "top" not in os.listdir(seen)


@root_only
def test_what_aufs_left_behind_is_left_out(tmp_path: Path) -> None:
    lay(tmp_path / "l", directory(b".wh..wh.plnk"), raw.file(b".wh..wh.plnk/1.2", b"x"), raw.file(b".wh..wh.aufs"))
    assert tree(tmp_path / "l") == {}


@root_only
def test_a_layer_that_relies_on_those_below_says_so(tmp_path: Path) -> None:
    below = lower(tmp_path)
    os.chmod(below / "keep", 0o2750)
    os.chown(below / "keep", 3, 4)
    os.utime(below / "keep", ns=(0, 77 * SECOND))
    parts = (raw.file(b"keep/new", b"new"), raw.header(b"hard", raw.HARDLINK, link=b"keep/f"))
    result = lay(tmp_path / "layer", *parts)
    assert result.needs_parents
    assert result.implicit == (b"keep",)
    with merged(tmp_path, below, writable=True) as mounted:
        again = unpack_onto(raw.stream(*parts), str(mounted), limits=LIMITS)
        assert again.diff_id == result.diff_id
        assert (mounted / "hard").samefile(mounted / "keep/f")
        status = (mounted / "keep").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o2750, 3, 4)
        assert status.st_mtime_ns == 77 * SECOND, "a union of layers would show the lower directory's time"
        assert (mounted / "keep/new").stat().st_gid == 0, "not the set-group-id directory's group"


def test_a_complete_layer_relies_on_nothing(tmp_path: Path) -> None:
    result = lay(tmp_path / "l", raw.file(b"d/f", b"x"), directory(b"d"), raw.header(b"h", raw.HARDLINK, link=b"d/f"))
    assert not result.needs_parents
    assert result.implicit == ()


@root_only
def test_a_mark_that_hides_everything_is_for_the_caller(tmp_path: Path) -> None:
    parts = (raw.file(b".wh..wh..opq"), raw.file(b"new", b"x"))
    assert lay(tmp_path / "layer", *parts).needs_parents
    with merged(tmp_path, lower(tmp_path), writable=True) as mounted:
        unpack_onto(raw.stream(*parts), str(mounted), limits=LIMITS)
        assert tree(mounted) == {"new": b"x"}


# -- what would pass for a mark of ours or of overlayfs --------------------------------------------------------------


@root_only
def test_an_archive_cannot_forge_marks(tmp_path: Path) -> None:
    forged = [
        (b"user.overlay.opaque", b"y"),
        (b"user.overlay.redirect", b"/keep"),
        (b"trusted.overlay.opaque", b"y"),
        (b"user.overlay.whiteout", b""),
        (b"user.kanifold.stat", b"77:77"),
        (b"user.kanifold.device", b"c:1:1"),
    ]
    marks = [(b"SCHILY.xattr." + key, value) for key, value in forged]
    lay(
        tmp_path / "layer",
        raw.pax(*marks),
        directory(b"hide"),
        raw.pax(*marks),
        raw.file(b"keep/f", b"mine"),
        raw.header(b"gone", raw.CHARACTER, device=(0, 0), mode=0o640),
    )
    stored = {name for name in os.listxattr(tmp_path / "layer/hide") if name.startswith(("user.", "trusted."))}
    assert stored == {f"user.overlay.overlay.{name}" for name in ("opaque", "redirect", "whiteout")}
    assert records.read(str(tmp_path / "layer"))[b"gone"].device == DeviceNumber("c", 0, 0)
    with merged(tmp_path, tmp_path / "layer", lower(tmp_path)) as seen:
        assert (seen / "hide/old").read_bytes() == b"old", "not opaque"
        assert (seen / "gone").is_file(), "not deleted"
        assert (seen / "keep/f").read_bytes() == b"mine"


# -- unprivileged ----------------------------------------------------------------------------------------------------

SINGLE_ID = """
import sys
from executor.snapshotter.unpack import UnpackLimits, unpack
unpack(open(sys.argv[1], "rb"), sys.argv[2], limits=UnpackLimits())
"""


def test_what_a_single_mapped_id_cannot_have_is_recorded(tmp_path: Path) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    archive = tmp_path / "layer.tar"
    archive.write_bytes(
        raw.stream(
            raw.header(b"d", raw.DIRECTORY, mode=0o750, uid=5, gid=6),
            raw.file(b"d/f", b"x", uid=1000, gid=1001, mode=0o4755),
            raw.header(b"l", raw.SYMLINK, link=b"d", uid=7, gid=8),
            raw.header(b"null", raw.CHARACTER, device=(1, 3), mode=0o666, uid=0, gid=5),
            raw.header(b"disk", raw.BLOCK, device=(8, 1), mode=0o660),
            raw.header(b"gone/.wh.x"),
            raw.header(b"twin", raw.HARDLINK, link=b"d/f"),
            raw.file(b"mine", b"x", uid=1000),
            raw.file(b"mine", b"x"),
            raw.pax((b"SCHILY.xattr.security.capability", capability)),
            raw.file(b"ping", b"x"),
        ).getvalue()
    )
    top = tmp_path / "l" / "fs"
    top.mkdir(parents=True)
    inside = ["unshare", "--user", "--map-root-user", sys.executable, "-c", SINGLE_ID, str(archive), str(top)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run(inside, capture_output=True, text=True, check=False, env=environment)
    if "unshare" in ran.stderr:
        pytest.skip(f"no user namespaces here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    assert set(records.read(str(top)).values()) == {
        Record(b"d", 5, 6),
        Record(b"d/f", 1000, 1001),
        Record(b"l", 7, 8),
        Record(b"null", 0, 5, DeviceNumber("c", 1, 3)),
        Record(b"disk", 0, 0, DeviceNumber("b", 8, 1)),
        Record(b"twin", 1000, 1001),
    }
    assert stat.S_IMODE((top / "d/f").stat().st_mode) == 0o4755
    assert stat.S_ISREG((top / "disk").lstat().st_mode)
    whiteout = (top / "gone/x").lstat()
    assert stat.S_ISCHR(whiteout.st_mode)
    assert whiteout.st_rdev == 0
    found = os.getxattr(top / "ping", "security.capability")  # in the kernel's own form, with the namespace's root
    assert found[4:20] == capability[4:]


# -- archives that are no layers -------------------------------------------------------------------------------------


def test_an_archive_that_is_no_layer_keeps_names_that_look_like_deletions(tmp_path: Path) -> None:
    extract(raw.stream(raw.file(b".wh.x", b"1"), raw.file(b"d/.wh..wh..opq", b"2")), str(tmp_path), limits=LIMITS)
    assert tree(tmp_path) == {".wh.x": b"1", "d": None, "d/.wh..wh..opq": b"2"}


def test_an_archive_that_is_no_layer_cannot_link_below(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="hard link"):
        extract(raw.stream(raw.header(b"h", raw.HARDLINK, link=b"etc/passwd")), str(tmp_path), limits=LIMITS)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    lay(tmp_path / "good", raw.file(b"a/b/c/d", b"x"), raw.header(b"h", raw.HARDLINK, link=b"a/b/c/d"))
    with pytest.raises(ArchiveError):
        lay(tmp_path / "bad", raw.file(b"a/b/c/d", b"x"), raw.file(b"a/b/c/d/e", b"x"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_very_deep_trees(tmp_path: Path) -> None:
    deep = b"/".join([b"d"] * 1900)
    parts = (
        raw.long_name(deep + b"/f"),
        raw.file(b"f", b"1"),
        raw.long_name(deep[:1001] + b"/g"),
        raw.file(b"g", b"2"),
    )
    lay(tmp_path / "l", *parts, raw.file(b"d", b"flat"))
    assert tree(tmp_path / "l") == {"d": b"flat"}


def test_a_stream_need_not_seek_and_may_give_any_pieces(tmp_path: Path) -> None:
    data = raw.stream(raw.file(b"f", os.urandom(300_000)), raw.file(b"g", b"x")).getvalue()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = threading.Thread(target=lambda: (theirs.sendall(data), theirs.shutdown(socket.SHUT_WR)))
        writer.start()
        found = unpack(ours.makefile("rb", buffering=0), str(tmp_path), limits=LIMITS)
        writer.join()
    assert found.size == 300_001
