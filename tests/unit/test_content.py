"""Files are what they were: an edit between a key and the layer is noticed, a touch is none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from executor.build.content import unchanged
from executor.rootfs.entry import Entry, Kind
from executor.store import files
from platforms.errors import ContextError


def entry(path: Path) -> Entry:
    status = path.lstat()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = os.fsencode(path)
    return Entry(b"f", Kind.FILE, size=status.st_size, source=source, digest=digest, stamp=files.stamp(status))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "f").write_text("one")
    return tmp_path / "f"


def test_a_file_that_is_touched_is_unchanged(file: Path) -> None:
    before = entry(file)
    os.utime(file, ns=(1, 1))
    assert list(unchanged([before])) == [before]


def test_an_edit_is_noticed_when_the_file_has_been_read(file: Path) -> None:
    walk = unchanged([entry(file)])
    next(walk)
    file.write_text("two")
    with pytest.raises(ContextError, match="changed during the build"):
        next(walk)


def test_a_file_that_goes_is_noticed(file: Path) -> None:
    walk = unchanged([entry(file)])
    next(walk)
    file.unlink()
    with pytest.raises(ContextError, match="changed during the build"):
        next(walk)


def test_files_of_ours_are_not_looked_at_again(file: Path) -> None:
    ours = Entry(b"f", Kind.FILE, size=3, source=os.fsencode(file), digest="0" * 64)
    file.unlink()
    assert list(unchanged([ours])) == [ours]
