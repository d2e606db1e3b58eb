"""What an overlay upper directory stands for: changes made through a real overlay mount, found again as entries."""

from __future__ import annotations

import io
import os
import shutil
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import raw_tar as raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tarwriter import canonical, write
from executor.snapshotter import overlayfs, records
from executor.snapshotter.diff import scan
from executor.snapshotter.materialise import materialise
from executor.snapshotter.records import DeviceNumber, Record, Stack
from executor.snapshotter.unpack import UnpackLimits, unpack
from platforms.errors import BuildError, EnvironmentUnfit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, owners and devices")

SECOND = 1_000_000_000


@dataclass
class Step:
    """A step's place: ``lower`` directories top first, the ``upper`` one, and what ``see`` shows."""

    top: Path
    lowers: list[Path]

    @property
    def upper(self) -> Path:
        return self.top / "upper"

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        for name in ("upper", "work", "empty"):
            (self.top / name).mkdir()
        fd = overlayfs.mount_stack(
            [str(each) for each in self.lowers],
            str(self.top / "empty"),
            upper=str(self.upper),
            work=str(self.top / "work"),
        )
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def changes(self) -> tuple[Entry, ...]:
        return tuple(scan(str(self.upper), [str(each) for each in self.lowers]))

    def said(self) -> list[tuple[str, str]]:
        return [(os.fsdecode(each.path), each.kind.name) for each in self.changes()]


@pytest.fixture
def step(tmp_path: Path) -> Step:
    """A step on top of a small base image of two layers, all of it from 2001."""
    bottom, middle = tmp_path / "bottom/fs", tmp_path / "middle/fs"  # beside each, its records
    (bottom / "etc").mkdir(parents=True)
    (bottom / "etc/passwd").write_text("root")
    (bottom / "etc/group").write_text("root")
    (bottom / "dir/sub").mkdir(parents=True)
    (bottom / "dir/a").write_text("a")
    (bottom / "dir/sub/b").write_text("b")
    (bottom / "hidden").write_text("x")
    (bottom / "link").symlink_to("etc")
    (middle / "etc").mkdir(parents=True)
    (middle / "etc/group").write_text("wheel")
    os.mknod(middle / "hidden", stat.S_IFCHR)
    for layer in (bottom, middle):
        for path in layer.rglob("*"):
            os.utime(path, ns=(0, 1_000_000_000 * SECOND), follow_symlinks=False)
    return Step(tmp_path, [middle, bottom])


def test_nothing_done_is_nothing_changed(step: Step) -> None:
    with step.mounted() as root:
        (root / "etc/passwd").read_text()
    assert step.changes() == ()


def test_new_files_come_with_their_parents(step: Step) -> None:
    with step.mounted() as root:
        (root / "etc/new").write_text("new")
        (root / "opt/app").mkdir(parents=True)
        (root / "opt/app/run").symlink_to("/bin/sh")
    assert step.said() == [
        ("etc", "DIRECTORY"),
        ("etc/new", "FILE"),
        ("opt", "DIRECTORY"),
        ("opt/app", "DIRECTORY"),
        ("opt/app/run", "SYMLINK"),
    ]
    new = step.changes()[1]
    assert (new.size, Path(os.fsdecode(new.source)).read_text()) == (3, "new")


def test_changes_of_content_and_of_metadata(step: Step) -> None:
    with step.mounted() as root:
        (root / "etc/passwd").write_text("toor")
        os.chmod(root / "etc/group", 0o600)
        os.chown(root / "link", 5, 6, follow_symlinks=False)
        os.setxattr(root / "dir/a", "user.note", b"x")
        os.chmod(root / "dir/sub", 0o700)
    assert step.said() == [
        ("dir", "DIRECTORY"),
        ("dir/a", "FILE"),
        ("dir/sub", "DIRECTORY"),
        ("etc", "DIRECTORY"),
        ("etc/group", "FILE"),
        ("etc/passwd", "FILE"),
        ("link", "SYMLINK"),
    ]
    found = {each.path: each for each in step.changes()}
    assert found[b"etc/group"].mode == 0o600
    assert (found[b"link"].uid, found[b"link"].gid, found[b"link"].link) == (5, 6, b"etc")
    assert found[b"dir/a"].xattrs == ((b"user.note", b"x"),)


def test_what_was_copied_up_and_is_as_before_is_left_out(step: Step) -> None:
    with step.mounted() as root:
        os.chmod(root / "etc/passwd", 0o600)
        os.chmod(root / "etc/passwd", 0o644)
        (root / "dir/a").write_text("a")
        os.utime(root / "dir/a", ns=(0, 1_000_000_000 * SECOND + 5))
        (root / "dir/temporary").touch()
        (root / "dir/temporary").unlink()
        os.utime(root / "dir/sub")
    assert (step.upper / "etc/passwd").exists(), "copied up"
    assert step.changes() == ()


def test_the_same_size_and_time_is_not_the_same_content(step: Step) -> None:
    with step.mounted() as root:
        (root / "dir/a").write_text("A")
        os.utime(root / "dir/a", ns=(0, 1_000_000_000 * SECOND))
    assert step.said() == [("dir", "DIRECTORY"), ("dir/a", "FILE")]


def test_deletions(step: Step) -> None:
    with step.mounted() as root:
        (root / "etc/passwd").unlink()
        shutil.rmtree(root / "dir")
        (root / "new").touch()
        (root / "new").unlink()
        assert not (root / "hidden").exists()
        (root / "hidden").touch()
        (root / "hidden").unlink()
    assert step.said() == [("dir", "WHITEOUT"), ("etc", "DIRECTORY"), ("etc/passwd", "WHITEOUT")]


def test_a_directory_made_anew_deletes_what_it_hides_and_keeps_what_is_as_before(step: Step) -> None:
    with step.mounted() as root:
        shutil.rmtree(root / "dir")
        (root / "dir/sub").mkdir(parents=True)
        (root / "dir/a").write_text("a")
        os.utime(root / "dir/a", ns=(0, 1_000_000_000 * SECOND))
        (root / "dir/new").write_text("n")
    assert os.getxattr(step.upper / "dir", "user.overlay.opaque") == b"y"
    assert step.said() == [
        ("dir", "DIRECTORY"),
        ("dir/new", "FILE"),
        ("dir/sub", "DIRECTORY"),
        ("dir/sub/b", "WHITEOUT"),
    ]


def test_kinds_that_replace_each_other(step: Step) -> None:
    with step.mounted() as root:
        (root / "etc/passwd").unlink()
        (root / "etc/passwd").mkdir()
        shutil.rmtree(root / "dir")
        (root / "dir").write_text("now a file")
        (root / "link").unlink()
        (root / "link").mkdir()
        (root / "link/x").touch()
    assert step.said() == [
        ("dir", "FILE"),
        ("etc", "DIRECTORY"),
        ("etc/passwd", "DIRECTORY"),
        ("link", "DIRECTORY"),
        ("link/x", "FILE"),
    ]


def test_hard_links_devices_fifos_and_sockets(step: Step) -> None:
    with step.mounted() as root:
        (root / "z").write_text("z")
        os.link(root / "z", root / "m")
        os.symlink("t", root / "s1")
        os.link(root / "s1", root / "s2", follow_symlinks=False)
        os.mkfifo(root / "pipe")
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        here = os.getcwd()
        os.chdir(root)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("socket")
        finally:
            os.chdir(here)
    assert step.said() == [
        ("m", "FILE"),
        ("null", "CHARACTER"),
        ("pipe", "FIFO"),
        ("s1", "SYMLINK"),
        ("s2", "HARDLINK"),
        ("z", "HARDLINK"),
    ]
    found = {each.path: each for each in step.changes()}
    assert found[b"null"].device == (1, 3)
    assert found[b"z"].link == b"m"
    assert canonical(step.changes()) == list(step.changes())


def test_capabilities_are_recorded_and_the_hosts_attributes_are_not(step: Step) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    with step.mounted() as root:
        (root / "ping").write_text("x")
        os.setxattr(root / "ping", "security.capability", capability)
        os.setxattr(root / "ping", "user.overlay.mine", b"1")
    (entry,) = step.changes()
    assert entry.xattrs == ((b"security.capability", capability), (b"user.overlay.mine", b"1"))


def test_recorded_owners_and_devices_are_taken_for_real_ones(step: Step) -> None:
    with step.mounted() as root:
        for name in ("f", "disk", "odd"):
            (root / name).touch()
        (root / "f").chmod(0o4755)
        (root / "odd").write_text("x")
        (root / "d").mkdir()
        (root / "l").symlink_to("f")
    disk = DeviceNumber("b", 8, 1)
    records.write(
        str(step.upper),
        [
            Record(b"f", 1000, 1001, capability=b"may"),
            Record(b"d", 5, 6),
            Record(b"disk", 0, 6, disk),
            Record(b"l", 7, 8),
            Record(b"odd", 0, 0, disk),
            Record(b"gone", 9, 9),
        ],
    )
    found = {each.path: each for each in step.changes()}
    assert (found[b"f"].uid, found[b"f"].gid, found[b"f"].mode) == (1000, 1001, 0o4755)
    assert found[b"f"].xattrs == ((b"security.capability", b"may"),)
    assert (found[b"d"].uid, found[b"d"].gid) == (5, 6)
    assert (found[b"disk"].kind, found[b"disk"].device, found[b"disk"].gid) == (Kind.BLOCK, (8, 1), 6)
    assert (found[b"l"].uid, found[b"l"].gid) == (7, 8)
    assert found[b"odd"].kind is Kind.FILE, "it has content"
    assert b"gone" not in found


def test_what_is_recorded_of_the_layers_below_counts_as_before(step: Step) -> None:
    """Of a layer that hides another's file, its own records count, and a missing one says that the kernel is right."""
    records.write(str(step.lowers[1]), [Record(b"etc/group", 3, 3), Record(b"etc/passwd", 4, 4), Record(b"link", 5, 5)])
    stack_below = Stack([str(each) for each in step.lowers])
    assert stack_below.of(b"etc/group") is None, "it is the upper one's"
    assert stack_below.of(b"etc/passwd") == Record(b"etc/passwd", 4, 4)
    with step.mounted() as root:
        for name in ("etc/group", "etc/passwd"):
            os.chown(root / name, 0, 0)
    records.write(str(step.upper), [Record(b"etc/passwd", 4, 4)])
    assert step.changes() == ()
    (step.top / "records").unlink()
    assert step.said() == [("etc", "DIRECTORY"), ("etc/passwd", "FILE")]


def test_records_are_carried_to_what_was_copied_up(step: Step) -> None:
    """Where ids are real nobody watches a step: what it only changed keeps what was recorded of it."""
    recorded = [Record(name, 99999, 99999) for name in (b"etc/passwd", b"dir", b"dir/a", b"dir/sub/b", b"link")]
    records.write(str(step.lowers[1]), recorded)
    with step.mounted() as root:
        (root / "etc/passwd").write_text("more")
        (root / "dir/new").touch()
        os.chown(root / "dir/a", 7, 8)
        (root / "dir/sub/b").unlink()
        (root / "dir/sub/b").touch()
    below = Stack([str(each) for each in step.lowers])
    assert set(records.carried(str(step.upper), below)) == {
        Record(b"etc/passwd", 99999, 99999),
        Record(b"dir", 99999, 99999),
        Record(b"dir/a", 7, 8),
    }


@pytest.mark.parametrize("name", ["user.kanifold.stat", "user.kanifold.device", "trusted.overlay.opaque"])
def test_attributes_that_a_step_can_set_are_no_records(step: Step, name: str) -> None:
    with step.mounted() as root:
        os.setxattr(root / "etc/passwd", name, b"0:0:4755")
        os.setxattr(root / "dir", name, b"y")
    found = step.changes()
    assert [(each.path, each.kind, each.uid, each.xattrs) for each in found if each.kind is not Kind.DIRECTORY] == []


def test_a_redirected_directory_is_refused(step: Step) -> None:
    with step.mounted() as root:
        (root / "etc/new").touch()
    os.setxattr(step.upper / "etc", "user.overlay.redirect", b"/dir")
    with pytest.raises(EnvironmentUnfit) as caught:
        step.changes()
    assert "redirect_dir" in caught.value.problem.remedy


def test_names_that_are_no_text(step: Step) -> None:
    with step.mounted() as root:
        (root / os.fsdecode(b"\xff\xfe\n")).touch()
    assert [each.path for each in step.changes()] == [b"\xff\xfe\n"]


# -- there and back -------------------------------------------------------------------------------------------------


def archive(entries: tuple[Entry, ...] | list[Entry]) -> bytes:
    out = bytearray()
    write(entries, out.extend)
    return bytes(out)


NAME = st.sampled_from([b"a", b"b", b"c c", b"\xff", "ü".encode()])
PATH = st.lists(NAME, min_size=1, max_size=4).map(b"/".join)
META = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "uid": st.integers(0, 70_000),
        "gid": st.integers(0, 70_000),
        "mtime_ns": st.integers(0, 4_000_000_000).map(lambda seconds: seconds * SECOND),
    }
)
CHANGE = st.tuples(
    PATH, st.sampled_from([Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.FIFO, Kind.BLOCK, Kind.WHITEOUT]), META
)


def plan(changes: list[tuple[bytes, Kind, dict[str, int]]], content: Path) -> list[Entry]:
    """Entries that make sense together: every parent is a directory, some files are hard links."""
    content.write_bytes(b"content")
    found: dict[bytes, Entry] = {}
    for path, kind, meta in changes:
        parents = [path[:at] for at, byte in enumerate(path) if byte == 0x2F]
        if any(each in found and found[each].kind is not Kind.DIRECTORY for each in parents) or path in found:
            continue
        for each in parents:
            found.setdefault(each, Entry(each, Kind.DIRECTORY, **meta))  # type: ignore[arg-type]
        if kind is Kind.WHITEOUT:
            found[path] = Entry(path, kind, mode=0)
            continue
        entry = Entry(
            path,
            kind,
            **({**meta, "mode": 0o777} if kind is Kind.SYMLINK else meta),  # type: ignore[arg-type]
            size=7 if kind is Kind.FILE else 0,
            link=b"some/where" if kind is Kind.SYMLINK else b"",
            device=(8, 1) if kind is Kind.BLOCK else (0, 0),
            source=os.fsencode(content) if kind is Kind.FILE else b"",
            xattrs=((b"user.x", b"1"),) if kind is Kind.FILE and meta["mode"] & 1 else (),
        )
        files = [each for each in found.values() if each.kind is Kind.FILE]
        if entry.kind is Kind.FILE and files and meta["uid"] % 3 == 0:
            entry = Entry(path, Kind.HARDLINK, link=files[0].path)
        found[path] = entry
    return canonical(found.values())


def everything(entries: list[Entry], top: Path) -> None:
    """A lower directory in which all that ``entries`` delete exists."""
    for each in entries:
        if each.kind is Kind.WHITEOUT:
            (top / os.fsdecode(each.path)).parent.mkdir(parents=True, exist_ok=True)
            (top / os.fsdecode(each.path)).touch()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHANGE, max_size=8))
def test_packing_unpacking_scanning_and_packing_keeps_the_digest(
    tmp_path: Path, changes: list[tuple[bytes, Kind, dict[str, int]]]
) -> None:
    here = Path(tempfile.mkdtemp(dir=tmp_path))
    for name in ("one/fs", "two/fs", "lower"):
        (here / name).mkdir(parents=True)
    entries = plan(changes, here / "content")
    everything(entries, here / "lower")
    first = archive(entries)
    unpack(io.BytesIO(first), str(here / "one/fs"), limits=UnpackLimits())
    materialise(entries, str(here / "two/fs"))
    for way in ("one", "two"):
        found = tuple(scan(str(here / way / "fs"), [str(here / "lower")]))
        assert [replace(each, source=b"") for each in found] == [replace(each, source=b"") for each in entries]
        assert archive(found) == first
    shutil.rmtree(here)


# -- entries to a directory ------------------------------------------------------------------------------------------


def test_files_are_copied_exactly_holes_included(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.seek(3_000_000)
        file.write(b"middle")
        file.truncate(9_000_000)
    big, small = tmp_path / "big", tmp_path / "small"
    big.write_bytes(os.urandom(2_000_000))
    small.write_bytes(b"tiny")
    sources = {b"sparse": sparse, b"dir/big": big, b"small": small}
    entries = [
        Entry(name, Kind.FILE, 0o4755, 3, 4, 5 * SECOND + 6, path.stat().st_size, source=os.fsencode(path))
        for name, path in sources.items()
    ]
    entries.append(Entry(b"hard", Kind.HARDLINK, link=b"small"))
    (tmp_path / "out").mkdir()
    materialise(entries, str(tmp_path / "out"))
    for name, path in sources.items():
        made = tmp_path / "out" / os.fsdecode(name)
        status = made.stat()
        assert made.read_bytes() == path.read_bytes()
        assert (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns) == (0o104755, 3, 4, 5 * SECOND + 6)
    assert (tmp_path / "out/sparse").stat().st_blocks == sparse.stat().st_blocks
    assert (tmp_path / "out/hard").samefile(tmp_path / "out/small")


@pytest.mark.parametrize("size", [4, 100_000])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_source_that_changed_is_an_error(tmp_path: Path, size: int, change: int) -> None:
    source = tmp_path / "f"
    source.write_bytes(bytes(size + change))
    (tmp_path / "out").mkdir()
    with pytest.raises(BuildError, match="changed while it was read"):
        materialise([Entry(b"f", Kind.FILE, size=size, source=os.fsencode(source))], str(tmp_path / "out"))


def test_a_source_that_is_gone_or_a_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("gone", "link"):
        with pytest.raises(BuildError):
            materialise([Entry(b"f", Kind.FILE, size=1, source=os.fsencode(tmp_path / name))], str(tmp_path / "out"))


def test_a_hard_link_to_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="hard link"):
        materialise([Entry(b"f", Kind.HARDLINK, link=b"nothing")], str(tmp_path))


def test_unpacked_layers_and_scanned_ones_agree(step: Step) -> None:
    """The layer of a step, unpacked elsewhere, changes the same."""
    with step.mounted() as root:
        shutil.rmtree(root / "dir")
        (root / "dir").mkdir()
        (root / "dir/n").write_text("n")
        (root / "etc/passwd").unlink()
        (root / "hidden").write_text("back")
        os.chown(root / "etc/group", 9, 9)
        before = raw.fingerprint(root)
    (step.top / "elsewhere").mkdir()
    unpack(io.BytesIO(archive(step.changes())), str(step.top / "elsewhere"), limits=UnpackLimits())
    assert scan(str(step.top / "elsewhere"), [str(each) for each in step.lowers]) != ()
    again = Step(step.top / "again", [step.top / "elsewhere", *step.lowers])
    again.top.mkdir()
    with again.mounted() as root:
        after = raw.fingerprint(root)

    def comparable(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
        return {name.split("/", 5)[-1]: (*each[:3], each[7]) for name, each in found.items() if name.count("/") > 4}

    assert comparable(after) == comparable(before)
