"""Objects in a directory that others can write to: links in it lead to nothing that is changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from executor.objects.directory_objects import DirectoryObjects
from executor.objects.object_store import StoredObject

KEY = "blobs/sha256/aa"


@pytest.mark.parametrize("link", ["blobs", "blobs/sha256"])
@pytest.mark.parametrize(
    "act",
    [
        lambda objects: objects.put(KEY, lambda: iter((b"mine",)), 4),
        lambda objects: objects.delete([KEY]),
        lambda objects: objects.touch(StoredObject(KEY, 6, 0.0)),
    ],
)
def test_what_a_link_leads_to_is_not_changed(
    act: Callable[[DirectoryObjects], None], link: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    file = elsewhere / os.path.relpath(KEY, link)
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    os.utime(file, (5, 5))
    place = tmp_path / "cache" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere)
    objects = DirectoryObjects(str(tmp_path / "cache"))
    with pytest.raises(NotADirectoryError):
        act(objects)
    assert (file.read_text(), file.stat().st_mtime) == ("theirs", 5)


def test_links_are_not_listed(tmp_path: Path) -> None:
    theirs = tmp_path / "elsewhere" / "sha256" / "aa"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    cache = tmp_path / "cache"
    (cache / "own" / "a").mkdir(parents=True)
    (cache / "own" / "a" / "file").touch()
    (cache / "own" / "link").symlink_to(theirs.parent)
    (cache / "own" / "alias").symlink_to(theirs)
    (cache / "blobs").symlink_to(theirs.parent.parent)
    objects = DirectoryObjects(str(cache))
    assert [each.key for each in objects.list("own")] == ["own/a/file"]
    assert list(objects.list("none")) == []
    with pytest.raises(NotADirectoryError):
        list(objects.list("blobs"))
