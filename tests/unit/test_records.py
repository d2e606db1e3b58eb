"""What is kept beside a directory of what the kernel refuses, and walking one of any shape."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from executor.rootfs.entry import Entry, Kind
from executor.rootfs.walker import remove
from executor.snapshotter import records
from executor.snapshotter.overlay import Overlays
from executor.snapshotter.records import DeviceNumber, Record, Stack
from executor.store.store import open_store

NAMES_OF_ALL_KINDS = (b"plain", b"\xff\xfe\n", "é/ü".encode(), b'"quoted"')


def test_what_is_written_is_read(tmp_path: Path) -> None:
    said = [Record(name, 33, 42, DeviceNumber("b", 8, 1), b"\0\1") for name in NAMES_OF_ALL_KINDS]
    (tmp_path / "fs").mkdir()
    records.write(str(tmp_path / "fs"), said)
    assert list(records.read(str(tmp_path / "fs")).values()) == said
    assert os.listdir(tmp_path / "fs") == []


def test_nothing_recorded_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "fs").mkdir()
    records.write(str(tmp_path / "fs"), [])
    assert (os.listdir(tmp_path), records.read(str(tmp_path / "fs"))) == (["fs"], {})


def test_a_layer_that_has_a_path_decides_about_it(tmp_path: Path) -> None:
    layers = [str(tmp_path / name / "fs") for name in ("top", "middle", "bottom")]
    for layer, names in zip(layers, (["a"], ["a", "b"], ["a", "b", "c"]), strict=True):
        for name in names:
            (Path(layer) / "d" / name).mkdir(parents=True)
    (tmp_path / "top/fs/link").symlink_to("d")
    (tmp_path / "bottom/fs/link").mkdir()
    records.write(layers[1], [Record(b"d/a", 1, 1), Record(b"d/b", 2, 2)])
    records.write(layers[2], [Record(b"d/c", 3, 3), Record(b"d/b", 4, 4), Record(b"link/a", 5, 5)])
    stack = Stack(layers)
    found = {path: stack.of(path) for path in (b"d/a", b"d/b", b"d/c", b"d/none")}
    assert {path: record and record.uid for path, record in found.items()} == {
        b"d/a": None, b"d/b": 2, b"d/c": 3, b"d/none": None,
    }  # fmt: skip
    assert not Stack(layers[:1])


def test_attributes_that_look_like_ours_mean_nothing() -> None:
    forged = (b"user.kanifold.device", b"b:8:0"), (b"user.kanifold.stat", b"0:0:4755"), (b"user.mine", b"x")
    entry = Entry(b"f", Kind.FILE, 0o755, 1000, 1000, xattrs=forged)
    assert records.applied(entry, None) == Entry(b"f", Kind.FILE, 0o755, 1000, 1000, xattrs=((b"user.mine", b"x"),))


def test_a_directory_is_walked_however_deep_it_is(tmp_path: Path) -> None:
    """Deeper than Python's stack, and than a process may have descriptors; links are not followed."""
    depth = 1500
    top = os.open(tmp_path, os.O_RDONLY)
    at = os.dup(top)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        os.symlink("/", "l", dir_fd=at)
        deeper = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(at)
    try:
        found = [path for path, _, _ in records.walked(str(tmp_path))]
    finally:
        remove(top, b"d")
        os.close(top)
    assert len(found) == 2 * depth
    assert b"/".join([b"d"] * depth) in found


def test_a_job_reads_what_is_beside_a_directory_once_however_many_steps_stand_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def counted(directory: str) -> records.Records:
        asked.append(directory)
        return {}

    monkeypatch.setattr(records, "read", counted)
    with open_store(str(tmp_path / "store")) as store:
        snapshotter = Overlays(store, str(tmp_path))
    layers = [str(tmp_path / str(number)) for number in range(30)]
    for height in range(1, len(layers) + 1):
        records.Stack(layers[:height], snapshotter.recorded)
    assert asked == layers


@pytest.mark.parametrize(
    ("on_disk", "recorded", "meant"),
    [
        (0o400, 0o000, 0o000),
        (0o700, 0o500, 0o500),
        (0o4511, 0o4111, 0o4111),
        (0o644, 0o000, 0o644),
        (0o600, None, 0o600),
    ],
)
def test_permissions_that_locked_the_user_out_hold_until_a_step_changes_them(
    on_disk: int, recorded: int | None, meant: int
) -> None:
    found = records.applied(Entry(b"a", Kind.FILE, on_disk), Record(b"a", mode=recorded))
    assert found.mode == meant
