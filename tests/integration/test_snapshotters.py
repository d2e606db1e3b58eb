"""Both snapshotters give the same snapshots and the same views for the same changes, whichever way a root was made."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Base, Kanifold, Outcome
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from oci_layout import image_manifests

from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree
from executor.snapshotter import kinds, materialise, records
from executor.snapshotter.kinds import snapshotter
from executor.snapshotter.overlayfs import mount_stack
from executor.snapshotter.records import DeviceNumber, Record
from executor.snapshotter.rootfs import Overlay
from executor.snapshotter.snapshotter import ActiveRoot, Parents, Snapshotter
from executor.store import faults, snapshots
from executor.store.snapshots import Snapshot
from executor.store.store import Store, open_store
from platforms.errors import BuildError, StoreError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, owners and devices")

SECOND = 1_000_000_000
KINDS = ("overlay", "plain")


@dataclass
class Bench:
    """A store, with a snapshotter of each kind."""

    store: Store
    place: Path

    def new(self, kind: Any) -> Snapshotter:
        return snapshotter(kind, self.store, tempfile.mkdtemp(dir=self.place), 1 << 32)

    def layer(self, name: str, *entries: Entry) -> Snapshot:
        return materialise.write(self.store, entries, keys=(name,))

    def file(self, path: str, text: str, **more: Any) -> Entry:
        source = Path(tempfile.mkstemp(dir=self.place)[1])
        source.write_text(text)
        meta = {"mode": 0o644, "mtime_ns": SECOND, **more}
        return Entry(path.encode(), Kind.FILE, size=len(text), source=os.fsencode(source), **meta)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with opened(tmp_path) as found:
        yield found


@contextmanager
def opened(place: Path) -> Iterator[Bench]:
    with open_store(str(place / "store")) as store:
        yield Bench(store, place)


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path.encode(), Kind.DIRECTORY, mode, mtime_ns=SECOND)


def base(bench: Bench) -> tuple[Snapshot, ...]:
    """Two layers with all kinds of things, of which the second deletes some of the first."""
    first = bench.layer(
        "first",
        directory("a"), bench.file("a/b", "one"), bench.file("a/c", "two", uid=5, gid=6),
        directory("a/d", 0o2770), bench.file("a/d/b", "deep"), directory("b"), bench.file("b/a", "linked"),
        Entry(b"b/b", Kind.HARDLINK, link=b"b/a"), Entry(b"c", Kind.SYMLINK, 0o777, link=b"a/b", mtime_ns=SECOND),
        directory("d"), bench.file("d/a", "gone"), directory("d/b"), bench.file("d/b/c", "gone too"),
    )  # fmt: skip
    second = bench.layer(
        "second",
        directory("a"), Entry(b"a/d", Kind.WHITEOUT, mode=0), directory("d"), Entry(b"d/b", Kind.WHITEOUT, mode=0),
        bench.file("d/d", "new", xattrs=((b"user.x", b"1"),)), Entry(b"d/p", Kind.FIFO, 0o600, mtime_ns=SECOND),
        Entry(b"d/n", Kind.CHARACTER, 0o600, device=(1, 3), mtime_ns=SECOND),
    )  # fmt: skip
    return first, second


@contextmanager
def writing(active: ActiveRoot, empty: Path) -> Iterator[Path]:
    """Where a step would write."""
    rootfs = active.rootfs
    if not isinstance(rootfs, Overlay):
        yield Path(rootfs.path)
        return
    fd = mount_stack(rootfs.lower, str(empty), upper=rootfs.upper, work=rootfs.work)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def step(bench: Bench, made: Snapshotter, parents: Parents, name: str, *changes: Callable[[Path], object]) -> Snapshot:
    """The snapshot of ``changes``, each of which is done in the root of a step on ``parents``."""
    active = made.prepare(parents)
    (bench.place / "empty").mkdir(exist_ok=True)
    with writing(active, bench.place / "empty") as root:
        for each in changes:
            each(root)
    return made.commit(active, keys=(name,))


def told(entries: Iterator[Entry]) -> list[Entry]:
    """``entries`` with their content in place of the file that has it."""
    return [
        replace(each, source=Path(os.fsdecode(each.source)).read_bytes() if each.source else b"") for each in entries
    ]


def seen(tree: Tree) -> list[Entry]:
    """All that is in ``tree``, but for which names are of one file: an overlay forgets that where one was touched."""
    found: list[Entry] = []
    waiting = [b""]
    while waiting:
        for each in tree.entries(waiting.pop()):
            if each.kind is Kind.DIRECTORY:
                waiting.append(each.path)
            found.append(replace(each, inode=(0, 0)))
    return told(iter(sorted(found, key=lambda each: each.path)))


# -- the same changes ------------------------------------------------------------------------------------------------


NAMES = st.lists(st.sampled_from("abcd"), min_size=1, max_size=3).map("/".join)
CHANGES = st.tuples(
    st.sampled_from(
        [
            "write",
            "rewrite",
            "remove",
            "mkdir",
            "again",
            "symlink",
            "chmod",
            "chown",
            "touch",
            "link",
            "mark",
            "hide",
            "node",
        ]
    ),
    NAMES,
    NAMES,
    st.integers(0, 3),
)


def change(root: Path, kind: str, one: str, other: str, number: int) -> None:
    """Do something to the path ``one``, if it can be done; times come out the same each time."""
    path = root / one
    if any(each.is_symlink() or not each.is_dir() for each in path.parents if root in each.parents):
        return
    before = path.lstat() if os.path.lexists(path) else None
    above = path.parent.lstat().st_mtime_ns
    with contextlib.suppress(OSError):
        _change(path, kind, root / other, number, before)
    when = before.st_mtime_ns if before is not None and kind == "rewrite" else (number + 2) * SECOND
    if os.path.lexists(path):
        os.utime(path, ns=(when, when), follow_symlinks=False)
    os.utime(path.parent, ns=(above, above))


def _change(path: Path, kind: str, other: Path, number: int, before: os.stat_result | None) -> None:
    is_file = before is not None and stat.S_ISREG(before.st_mode)
    match kind:
        case "write" if is_file or before is None:
            path.write_text(f"text {number}")
        case "rewrite" if before is not None and is_file:
            text = path.read_bytes()
            path.unlink()
            path.write_bytes(text)
            os.chown(path, before.st_uid, before.st_gid)
            path.chmod(stat.S_IMODE(before.st_mode))
        case "remove":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        case "mkdir":
            path.mkdir()
        case "again":
            shutil.rmtree(path)
            path.mkdir()
        case "symlink":
            path.symlink_to("a/b")
        case "chmod" if not path.is_symlink():
            path.chmod(0o700 + number)
        case "chown":
            os.chown(path, number, 7, follow_symlinks=False)
        case "link" if not other.is_dir():
            os.link(other, path, follow_symlinks=False)
        case "mark":
            os.setxattr(path, "user.overlay.mine", b"%d" % number, follow_symlinks=False)
        case "hide":
            os.setxattr(path, "user.kanifold.x", b"", follow_symlinks=False)
        case "node":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, number + 3))


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(CHANGES, max_size=6), min_size=1, max_size=3))
def test_the_same_changes_are_the_same_snapshots(tmp_path: Path, steps: list[list[tuple[str, str, str, int]]]) -> None:
    place = Path(tempfile.mkdtemp(dir=tmp_path))
    with opened(place) as bench:
        bottom = base(bench)
        results = []
        for kind in KINDS:
            made, parents, found = bench.new(kind), bottom, []
            for number, changes in enumerate(steps):
                doings = [lambda root, each=each: change(root, *each) for each in changes]
                snapshot = step(bench, made, parents, f"{kind} {number}", *doings)
                found.append((told(made.diff(snapshot, parents)), seen(made.view((*parents, snapshot)))))
                parents = (*parents, snapshot)
            results.append(found)
            # What was written to in place is what would be made anew, and each reads what the other has written.
            other = bench.new("plain")
            assert seen(other.view(parents)) == found[-1][1]
            if kind == "plain":
                again = other.prepare(parents).rootfs
                here = made.prepare(parents).rootfs
                assert listing(Path(again.path)) == listing(Path(here.path))  # type: ignore[union-attr]
            made.close()
        overlay, plain = results
        for number, (one, other) in enumerate(zip(*results, strict=True)):
            assert [each for each in other[0] if each not in one[0]] == [], f"the changes of step {number}"
            assert [each for each in other[1] if each not in one[1]] == [], f"what is seen after step {number}"
        assert plain == overlay
    shutil.rmtree(place)


def listing(root: Path) -> list[tuple[Any, ...]]:
    """All that is in the directory ``root``."""
    found: list[tuple[Any, ...]] = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else os.readlink(path) if path.is_symlink() else b""
        times = None if stat.S_ISDIR(status.st_mode) else status.st_mtime
        name = path.relative_to(root)
        found.append(
            (
                name,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                times,
                content,
                status.st_nlink if not stat.S_ISDIR(status.st_mode) else 0,
            )
        )
    return found


# -- the plain one ---------------------------------------------------------------------------------------------------


def root_of(active: ActiveRoot) -> Path:
    return Path(active.rootfs.path)  # type: ignore[union-attr]


def test_a_root_is_written_to_by_one_step_after_the_other(bench: Bench) -> None:
    plain = bench.new("plain")
    parents = base(bench)
    first = plain.prepare(parents)
    (root_of(first) / "mine").touch()
    made = plain.commit(first, keys=("made",))
    copied = bench.layer("copied", bench.file("copy", "of a COPY"), Entry(b"b", Kind.WHITEOUT, mode=0))
    second = plain.prepare((*parents, made, copied))
    assert root_of(second) == root_of(first)
    assert sorted(each.name for each in root_of(second).iterdir()) == ["a", "c", "copy", "d", "mine"]


def test_roots_that_are_in_use_or_further_on_are_nobody_elses(bench: Bench) -> None:
    plain = bench.new("plain")
    parents = base(bench)
    one, other = plain.prepare(parents), plain.prepare(parents)
    assert root_of(one) != root_of(other)
    (root_of(one) / "mine").touch()
    plain.commit(one, keys=("one",))
    earlier = plain.prepare(parents)
    assert root_of(earlier) != root_of(one)
    assert not (root_of(earlier) / "mine").exists()


def test_stages_with_the_same_parent_run_side_by_side(bench: Bench) -> None:
    plain = bench.new("plain")
    parents = base(bench)
    errors: list[BaseException] = []

    def stage(name: str) -> None:
        try:
            below = parents
            for number in range(5):
                active = plain.prepare(below)
                (root_of(active) / f"{name}{number}").write_text(name)
                made = plain.commit(active, keys=(f"{name}{number}",))
                changed = [each.path.decode() for each in plain.diff(made, below)]
                assert changed == [f"{name}{number}"]
                below = (*below, made)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=stage, args=(name,)) for name in ("x", "y", "z")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_change_at_once_of_the_same_length_and_time_is_found(bench: Bench) -> None:
    """However fast: with the same inode, size and mtime, only the ctime tells, and its clock ticks slowly."""
    plain = bench.new("plain")
    below = base(bench)
    for number in range(20):
        active = plain.prepare(below)
        path = root_of(active) / "a" / "b"
        with path.open("r+b") as file:
            file.write(b"%03d" % number)
        os.utime(path, ns=(SECOND, SECOND))
        made = plain.commit(active, keys=(f"step {number}",))
        assert [each.path for each in plain.diff(made, below)] == [b"a", b"a/b"]
        below = (*below, made)


def test_a_file_that_a_step_links_to_another_place_is_a_file_of_its_own_afterwards(bench: Bench) -> None:
    """In a chroot a step can link its files to a cache directory, and the next one that has the cache write to them."""
    made = bench.new("plain")
    first, second = base(bench)
    outside = bench.place / "cache"
    outside.mkdir()

    def link(root: Path) -> None:
        (root / "new").write_text("new")
        (root / "new2").hardlink_to(root / "new")
        for name in ("a/b", "c", "d/p", "new"):  # a file, a link and a pipe of the layers, and a file of the step
            os.link(root / name, outside / Path(name).name, follow_symlinks=False)

    linked = step(bench, made, (first, second), "linked", link)
    for name in ("b", "new"):
        (outside / name).write_text("changed")
    parents = (first, second, linked)
    active = made.prepare(parents)
    root = Path(active.rootfs.path)  # type: ignore[union-attr]
    assert [(root / name).read_text() for name in ("a/b", "new", "new2")] == ["one", "new", "new"]
    assert {(root / name).lstat().st_nlink for name in ("a/b", "c", "d/p", "new", "new2")} == {1}
    again = made.commit(active, keys=("again",))
    assert told(made.diff(again, parents)) == []
    assert os.listdir(root.parent) == ["fs"]


def test_what_is_given_up_leaves_nothing(bench: Bench) -> None:
    plain = bench.new("plain")
    active = plain.prepare(base(bench))
    place = root_of(active).parent
    (root_of(active) / "mine").touch()
    plain.remove(active)
    assert not place.exists()
    assert not Path(active.snapshot.fs).exists()


def test_the_root_directory_is_as_every_step_finds_it(bench: Bench) -> None:
    plain = bench.new("plain")
    parents = base(bench)
    active = plain.prepare(parents)
    root_of(active).chmod(0o700)
    os.chown(root_of(active), 5, 5)
    os.setxattr(root_of(active), "user.x", b"1")
    made = plain.commit(active, keys=("made",))
    assert list(plain.diff(made, parents)) == []
    again = root_of(plain.prepare((*parents, made)))
    assert (again.stat().st_mode & 0o7777, again.stat().st_uid, os.listxattr(again)) == (0o755, 0, [])


def test_an_access_control_list_of_the_root_directory_is_not_inherited_by_the_next_step(bench: Bench) -> None:
    entries = ((1, 7), (4, 0), (32, 0))  # user::rwx, group::---, other::--- (linux/posix_acl_xattr.h)
    default = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, mode, 0xFFFFFFFF) for tag, mode in entries)
    plain = bench.new("plain")
    parents = base(bench)
    try:
        made = step(bench, plain, parents, "one", lambda root: os.setxattr(root, "system.posix_acl_default", default))
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")
    parents = (*parents, made)
    (new,) = plain.diff(step(bench, plain, parents, "two", lambda root: (root / "new").touch()), parents)
    assert new.mode == 0o644


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_through_a_mapping_is_a_change(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    """tmpfs does not move a file's times for it when the page was read before."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place, opened(Path(place)) as bench:
        made = bench.new(kind)
        below = base(bench)
        try:
            (_, changed) = made.diff(step(bench, made, below, "mapped", _write_mapped), below)
        finally:
            made.close()
        assert (changed.path, Path(os.fsdecode(changed.source)).read_text()) == (b"a/b", "One")


def _write_mapped(root: Path) -> None:
    with (root / "a" / "b").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:1] == b"o"
        mapped[:1] = b"O"


SINGLE_ID = """
import io, sys
from pathlib import Path
import raw_tar as raw
import test_snapshotters as tests
from executor.rootfs.entry import Entry, Kind
from executor.snapshotter.unpack import UnpackLimits, layer_entry
with tests.opened(Path(sys.argv[1])) as bench:
    made = bench.new(sys.argv[2])
    theirs = {"mtime_ns": tests.SECOND, "uid": 1000, "gid": 1000}
    below = bench.layer(
        "below",
        *(Entry(name, Kind.DIRECTORY, 0o755, **theirs) for name in (b"d", b"e")),
        *(bench.file(name, "text", uid=1000, gid=1000) for name in ("d/f", "d/g", "d/h")),
    )
    active = made.prepare((below,))
    parts = raw.header(b"d", raw.DIRECTORY), raw.file(b"d/f", b"new"), raw.header(b"l", raw.HARDLINK, link=b"d/g")
    made.apply(active, raw.stream(*parts), UnpackLimits(), layer_entry)
    after = (below, made.commit(active, keys=("applied",)))
    print(*(f"{each.path.decode()}={each.uid}" for each in tests.seen(made.view(after))))
    made.close()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_owners_that_a_layer_gives_hold_where_there_is_one_id(tmp_path: Path, kind: str) -> None:
    """What is recorded of the layers below goes for what this one leaves alone, and for its links to their files."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", SINGLE_ID, str(tmp_path), kind]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if "unshare" in ran.stderr:
        pytest.skip(f"no user namespaces here: {ran.stderr.strip()}")
    assert ran.stdout.split() == ["d=0", "d/f=0", "d/g=1000", "d/h=1000", "e=1000", "l=1000"], ran.stderr


def test_an_owner_that_is_recorded_goes_with_its_file(bench: Bench) -> None:
    """As where no owner can be set: the layer's directory says root, and the records beside it say whose it is."""
    layer = bench.layer("recorded", directory("v"), bench.file("v/f", "text"), bench.file("v/d", ""))
    kept = (Record(b"v/f", 5, 6), Record(b"v/d", device=DeviceNumber("c", 1, 3)))
    records.write(layer.fs, kept)
    plain = bench.new("plain")
    entry = plain.view((layer,)).entry(b"v/f")
    assert entry is not None
    assert (entry.uid, entry.gid) == (5, 6)
    active = plain.prepare((layer,))
    assert stat.S_ISCHR((root_of(active) / "v" / "d").lstat().st_mode)  # root can make it
    assert (root_of(active) / "v" / "f").stat().st_uid == 5


@pytest.mark.parametrize(
    ("record", "root"),
    [
        (Record(b"v/f", 5, 6), "plain"),
        (Record(b"v/f", mode=0o400), "plain"),
        (Record(b"v/f", 70_000, 5), "overlay"),
        (Record(b"v/f", device=DeviceNumber("c", 1, 3)), "overlay"),
    ],
)
def test_a_layer_is_mounted_unless_steps_would_see_what_another_mode_could_not_set(
    bench: Bench, record: Record, root: str
) -> None:
    below, recorded = (
        bench.layer("below", directory("u")),
        bench.layer("recorded", directory("v"), bench.file("v/f", "")),
    )
    records.write(recorded.fs, (record,))
    made = snapshotter("overlay", bench.store, tempfile.mkdtemp(dir=bench.place), 65_536)
    for parents, expected in (((below,), "overlay"), ((below, recorded), root)):
        active = made.prepare(parents)
        assert isinstance(active.rootfs, Overlay) == (expected == "overlay")
        made.add_mount_points(active, SECOND)
        after = made.commit(active, keys=(f"{len(parents)}",))
        assert [each.path for each in made.diff(after, parents)] == [b"dev", b"proc", b"sys"]
    with made.mounted((below, recorded), "/v/f", readonly=True) as mount:
        seen = os.fstat(mount.fd)
        assert (seen.st_uid == record.uid) == (root == "plain" or not record.uid)
    made.close()


def test_a_full_disk_is_told_and_roots_that_nobody_uses_go_first(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=18m", "none", place], check=True)
    try:
        with opened(place) as bench:
            plain = bench.new("plain")
            big = bench.file("big", "")
            with open(big.source, "wb") as file:
                file.write(os.urandom(4 << 20))
            layer = bench.layer("big", replace(big, size=4 << 20))
            free = plain.prepare((layer,))
            plain.commit(free, keys=("nothing",))
            held = [plain.prepare((layer,)), plain.prepare((layer,))]  # with the free one there is no room for a third
            assert root_of(held[0]).exists()
            with pytest.raises(StoreError) as caught:
                plain.prepare((layer,))
            assert faults.is_full(caught.value)
            for each in held:
                plain.remove(each)
            active = plain.prepare((layer,))
            with pytest.raises(OSError, match="No space"), (root_of(active) / "more").open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
            with pytest.raises(StoreError) as caught:
                plain.commit(active, keys=("more",))
            assert faults.is_full(caught.value)
            plain.remove(active)
            assert snapshots.find(bench.store, "more") is None
    finally:
        subprocess.run(["umount", "-l", place], check=True)


# -- file systems that take no overlays ------------------------------------------------------------------------------


def test_a_store_on_an_overlay_gives_the_same_snapshots(tmp_path: Path) -> None:
    """There no overlay can be mounted to write to, and no device 0/0 made that would mark a deletion."""
    for name in ("lower", "upper", "work", "merged", "other"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", tmp_path / "merged"], check=True)
    changes = [
        ("remove", "a/b", "", 0), ("again", "d", "", 0), ("write", "d/a", "", 1), ("remove", "b", "", 0),
        ("write", "b", "", 1), ("chmod", "a/c", "", 2),
    ]  # fmt: skip
    doings = [lambda root, each=each: change(root, *each) for each in changes]
    try:
        with opened(tmp_path / "merged") as there, opened(tmp_path / "other") as here:
            with pytest.raises(OSError, match="Operation not permitted"):
                os.mknod(there.place / "mark", stat.S_IFCHR, 0)
            found = []
            for bench in (there, here):
                made, bottom = bench.new("plain"), base(bench)
                snapshot = step(bench, made, bottom, "changed", *doings)
                found.append(
                    (seen(made.view(bottom)), told(made.diff(snapshot, bottom)), seen(made.view((*bottom, snapshot))))
                )
            assert found[0] == found[1]
            assert [each.kind for each in found[0][1] if each.path == b"a/b"] == [Kind.WHITEOUT]
    finally:
        subprocess.run(["umount", "-l", tmp_path / "merged"], check=True)


def test_a_build_in_such_a_store(kanifold: Kanifold, busybox: Base, tmp_path: Path) -> None:
    for name in ("context", "lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "context" / "Dockerfile").write_text(
        f"FROM {busybox.ref} AS one\nRUN rm /bin/awk && echo 1 > /one\n"
        "RUN --mount=type=cache,target=/c touch /c/x /two && ln /two /name\n"
        f"FROM {busybox.ref}\nRUN --mount=from=one,target=/m cat /m/one > /three; rm /bin/sh\n"
        "COPY --from=one /two /name /\n"
    )
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", tmp_path / "merged"], check=True)
    try:
        store = ("--root", tmp_path / "merged" / "store")

        def build(out: str, *arguments: str | Path, **environment: str) -> Outcome:
            dest = f"type=oci,tar=false,dest={tmp_path / out}"
            told = ("build", tmp_path / "context", "--platform", "linux/amd64", "-o", dest, *arguments)
            return kanifold.run(*told, SOURCE_DATE_EPOCH="1", **environment)

        refused = build("refused", *store, "--snapshotter", "overlay")
        assert refused.code == 3
        assert "--snapshotter plain" in refused.said
        assert build("auto", *store).code == 0
        assert build("plain", KANIFOLD_SNAPSHOTTER="plain").code == 0
        assert build("overlay", "--snapshotter", "overlay", "--no-cache", KANIFOLD_SNAPSHOTTER="plain").code == 0
        outs = ("auto", "plain", "overlay")
        assert len({image_manifests(tmp_path / out)["linux/amd64"]["digest"] for out in outs}) == 1
        assert build("none", KANIFOLD_SNAPSHOTTER="plane").code == 2
    finally:
        subprocess.run(["umount", "-l", tmp_path / "merged"], check=True)


def test_deletions_by_attribute_are_deletions_to_overlayfs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a store can be moved to a file system that takes overlays."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "")

    first = base(bench)[0]
    with monkeypatch.context() as patched:
        patched.setattr(os, "mknod", refused)
        second = bench.layer(
            "deleting",
            directory("a"), Entry(b"a/b", Kind.WHITEOUT, mode=0), Entry(b"a/d", Kind.WHITEOUT, mode=0),
            directory("b"), Entry(b"b/a", Kind.WHITEOUT, mode=0), Entry(b"b", Kind.OPAQUE), bench.file("b/new", "n"),
            Entry(b"c", Kind.WHITEOUT, mode=0), directory("d"), Entry(b"d/a", Kind.WHITEOUT, mode=0),
            bench.file("d/a", "back"), Entry(b"d/b", Kind.WHITEOUT, mode=0), directory("d/b"), bench.file("d/b/x", "x"),
        )  # fmt: skip
    there = [b"a", b"a/c", b"b", b"b/new", b"d", b"d/a", b"d/b", b"d/b/x"]
    for kind in KINDS:
        assert [each.path for each in seen(bench.new(kind).view((first, second)))] == there
    told_of = [(each.path, each.kind) for each in bench.new("plain").diff(second, (first,))]
    assert [path for path, kind in told_of if kind is Kind.WHITEOUT] == [b"a/b", b"a/d", b"b/a", b"b/b", b"c", b"d/b/c"]


def test_a_file_system_that_is_not_known_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lower", "upper", "work", "merged", "plain"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(kinds.syscalls, "file_system_type", lambda _: 1)
    assert kinds.fitting(str(tmp_path / "plain")) == "overlay"
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", tmp_path / "merged"], check=True)
    try:
        assert kinds.fitting(str(tmp_path / "merged")) == "plain"
    finally:
        subprocess.run(["umount", "-l", tmp_path / "merged"], check=True)


@pytest.mark.parametrize("kind", [0x01021994, 1], ids=["tmpfs", "unknown"])
def test_a_file_system_without_attributes_of_users_takes_no_overlays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    """So is tmpfs before Linux 6.6: a directory of a lower layer cannot be removed there."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(kinds.syscalls, "file_system_type", lambda _: kind)
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    assert kinds.fitting(str(tmp_path / "with")) == "overlay"
    monkeypatch.setattr(kinds.os, "setxattr", refuse)
    assert kinds.fitting(str(tmp_path / "without")) == "plain"


# -- mounts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_mounted_is_what_is_there(bench: Bench, kind: str) -> None:
    made = bench.new(kind)
    parents = base(bench)
    with made.mounted(parents, "/", readonly=True) as shown:
        assert sorted(os.listdir(f"/proc/self/fd/{shown.fd}")) == ["a", "b", "c", "d"]
        assert sorted(os.listdir(f"/proc/self/fd/{shown.fd}/d")) == ["a", "d", "n", "p"]
    with made.mounted(parents, "/c", readonly=True) as shown:  # a link to a file
        assert Path(f"/proc/self/fd/{shown.fd}").read_text() == "one"
    with made.mounted(parents, "b", readonly=False) as shown:
        Path(f"/proc/self/fd/{shown.fd}/mine").touch()
    with made.mounted(parents, "b", readonly=False) as shown:
        assert sorted(os.listdir(f"/proc/self/fd/{shown.fd}")) == ["a", "b"]
    with (
        pytest.raises(BuildError, match="mount source /a/d does not exist"),
        made.mounted(parents, "/a/d", readonly=True),
    ):
        pass


def test_a_part_of_layers_is_mounted_on_older_kernels(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.15 nothing is cloned of a mount that is not attached."""
    clone, move, attached = kinds.syscalls.open_tree, kinds.syscalls.move_mount, list[str]()

    def refuse(directory: int, path: str, flags: int) -> int:
        if not path and not attached:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return clone(directory, path, flags)

    def attach(source: int, path: str, directory: int, target: str, flags: int) -> None:
        move(source, path, directory, target, flags)
        attached.append(target)

    monkeypatch.setattr(kinds.syscalls, "open_tree", refuse)
    monkeypatch.setattr(kinds.syscalls, "move_mount", attach)
    with bench.new("overlay").mounted(base(bench), "/c", readonly=True) as shown:
        assert Path(f"/proc/self/fd/{shown.fd}").read_text() == "one"
    assert [os.path.exists(each) for each in attached] == [False]


def test_a_socket_is_left_out(bench: Bench) -> None:
    plain = bench.new("plain")
    parents = base(bench)
    made = step(bench, plain, parents, "socket", lambda root: os.mknod(root / "s", stat.S_IFSOCK | 0o600))
    assert list(plain.diff(made, parents)) == []
    gone = step(bench, plain, (*parents, made), "gone", lambda root: (root / "s").unlink())
    assert list(plain.diff(gone, (*parents, made))) == []
