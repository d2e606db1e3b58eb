"""Attack 52 (review): a store that others can look into, own, or lead elsewhere.

A directory that existed before with mode 0755 stayed readable, so any user of the machine ran set-user-id programs out
of snapshots and cache mounts, and read the layers of private images; and ``prune --all`` followed a link in the store.
Here every part is closed by itself, and what cannot be the user's alone is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Base, Kanifold

from executor.store.prune import prune
from executor.store.store import open_store
from platforms.errors import StoreError

PARTS = ("blobs", "blobs/sha256", "snapshots", "cache", "tmp", "tmp/partial", "leases", "locks")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have files of another user")


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def not_closed(root: Path) -> list[str]:
    """What others may do with the parts of the store, file systems of steps left out: their directory is closed."""
    found = []
    for above, directories, files in os.walk(root):
        if Path(above).name == "fs":
            directories.clear()
            continue
        for path in (Path(above), *(Path(above) / name for name in files)):
            mode = path.lstat().st_mode
            if path.name != "fs" and not stat.S_ISLNK(mode) and mode & 0o077:
                found.append(f"{path.relative_to(root)} {stat.S_IMODE(mode):o}")
    return found


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("who", ["kanifold", "kanifold_as_user", "kanifold_as_bare_user"])
def test_every_part_is_closed_by_itself_after_a_build(request: pytest.FixtureRequest, who: str, busybox: Base) -> None:
    kanifold: Kanifold = request.getfixturevalue(who)
    kanifold.folder("store").chmod(0o755)
    folder = kanifold.folder("context")
    (folder / "file").write_text("x")
    (folder / "Dockerfile").write_text(
        f"FROM {busybox.ref}\nRUN --mount=type=cache,target=/c cp /bin/busybox /c/su && chmod 4755 /c/su\n"
        "COPY file /file\nRUN cp /bin/busybox /su && chmod 4755 /su\n"
    )
    kanifold("build", folder, "-o", "type=oci,tar=false,dest=out")
    assert not_closed(kanifold.root) == []
    assert list((kanifold.root / "cache").glob("*/fs/su")), "the cache was used"
    assert list((kanifold.root / "blobs/sha256").iterdir()), "so were blobs"
    assert (kanifold.root / "index.db").exists()


def test_what_others_could_read_is_closed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    for part in PARTS:
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part).chmod(0o755)
    root.chmod(0o755)
    with open_store(str(root)) as store:
        store.index.read(lambda db: db.execute("SELECT 1").fetchone())
        (root / "index.db").resolve().chmod(0o644)
    with open_store(str(root)) as store:
        store.index.read(lambda db: db.execute("SELECT 1").fetchone())
        assert not_closed(root) == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_what_others_could_write_to_is_refused(tmp_path: Path, part: str, mode: int) -> None:
    open_store(str(tmp_path / "store")).close()
    (tmp_path / "store" / part).chmod(mode)
    with pytest.raises(StoreError, match=f"others may write to {part} in it") as caught:
        open_store(str(tmp_path / "store"))
    assert "KANIFOLD_ROOT" in caught.value.problem.remedy


@needs_root
@pytest.mark.parametrize("part", ["", *PARTS])
def test_what_is_another_users_is_refused(tmp_path: Path, part: str) -> None:
    open_store(str(tmp_path / "store")).close()
    os.chown(tmp_path / "store" / part, 4711, 4711)
    with pytest.raises(StoreError, match=f"{part or 'it'} belongs to user 4711"):
        open_store(str(tmp_path / "store"))


@pytest.mark.parametrize("part", PARTS)
def test_a_link_in_place_of_a_part_is_refused_and_left_alone(kanifold: Kanifold, tmp_path: Path, part: str) -> None:
    canary = tmp_path / "canary"
    (canary / "partial").mkdir(parents=True)
    (canary / "sha256").mkdir()
    (canary / "file").write_text("alive")
    with open_store(str(kanifold.root)):
        pass
    for below in ("sha256", "partial"):
        if part in ("blobs", "tmp") and (kanifold.root / part / below).exists():
            (kanifold.root / part / below).rmdir()
    (kanifold.root / part).rmdir() if not list((kanifold.root / part).iterdir()) else None
    for each in (kanifold.root / part).iterdir() if (kanifold.root / part).exists() else ():
        each.unlink()
    if (kanifold.root / part).exists():
        (kanifold.root / part).rmdir()
    (kanifold.root / part).symlink_to(canary)
    for command in (("prune", "--all"), ("du",)):
        done = kanifold.run(*command)
        assert done.code == 1, done.said
        assert f"{part} in it is a symbolic link" in done.said
    assert (canary / "file").read_text() == "alive"
    assert sorted(each.name for each in canary.iterdir()) == ["file", "partial", "sha256"]


def test_links_further_down_are_removed_and_not_followed(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "file").write_text("alive")
    root = tmp_path / "store"
    open_store(str(root)).close()
    for place in ("blobs/sha1", "snapshots/12", "cache/x", "tmp/y"):
        (root / place).symlink_to(canary)
    with open_store(str(root)) as store:
        prune(store, all=True)
    assert (canary / "file").read_text() == "alive"
    assert [
        place for place in ("blobs/sha1", "snapshots/12", "cache/x", "tmp/y") if os.path.lexists(root / place)
    ] == []


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_directory_that_others_write_to_and_that_holds_more_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/somebodys").touch()
    (tmp_path / "shared").chmod(mode)
    with pytest.raises(StoreError, match="it holds more than a store"):
        open_store(str(tmp_path / "shared"))
    assert (tmp_path / "shared").stat().st_mode & 0o777 == mode
    (tmp_path / "shared/somebodys").unlink()
    open_store(str(tmp_path / "shared")).close()
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o700


def test_a_directory_with_other_things_in_it_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").touch()
    (tmp_path / "home").chmod(0o755)
    open_store(str(tmp_path / "home")).close()
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o755
    assert [part for part in PARTS if (tmp_path / "home" / part).stat().st_mode & 0o777 != 0o700] == []


def test_the_index_is_a_file_of_the_users_own(tmp_path: Path) -> None:
    root = tmp_path / "store"

    def ask() -> None:
        with open_store(str(root)) as store:
            store.index.read(lambda db: db.execute("SELECT 1").fetchone())

    ask()
    index = (root / "index.db").resolve()
    index.chmod(0o666)
    with pytest.raises(StoreError, match="others may write to index-"):
        ask()
    index.rename(tmp_path / "elsewhere")
    index.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is not a file"):
        ask()


@pytest.mark.parametrize("name", ["reserve", "locks/gate"])
def test_files_are_not_made_through_links(tmp_path: Path, name: str) -> None:
    root = tmp_path / "store"
    open_store(str(root)).close()
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / "canary")
    (root / "leases").rmdir()  # so that the reserve is put by again
    with pytest.raises(StoreError), open_store(str(root)) as store:
        prune(store, all=True)
    assert not (tmp_path / "canary").exists()
