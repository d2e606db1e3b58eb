"""Files are what they were: an edit between a key and the layer is noticed, a touch is none."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from executor.context.directory import open_context
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree, TreeOptions
from executor.solver import statwalk
from executor.solver.content import Contents, MatchedSource, SelectionDigest, unchanged
from executor.solver.copying import CopyOptions, CopySource
from executor.solver.lazy import Lazy, ready
from executor.solver.lifetime import Cancellation
from executor.solver.sources import ContextPaths
from executor.store import stat_cache
from executor.store.store import Store, open_store
from platforms.errors import ContextError


def entry(path: Path) -> Entry:
    status = path.lstat()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = os.fsencode(path)
    return Entry(
        b"f", Kind.FILE, size=status.st_size, source=source, digest=digest, stamp=stat_cache.stat_signature(status)
    )


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


# -- what one job of a build finds out for all --


def a_job_of(build: str, store: Store) -> Contents:
    return Contents(store, store.root, cast("Any", None), Cancellation(), build, None)


def selected(name: str, *, live: bool = False) -> Lazy[MatchedSource]:
    nothing = cast("Any", ())
    return ready(MatchedSource(nothing, nothing, ready(name), live, Tree(-1, b"", TreeOptions())))


def looked(name: str = "") -> Lazy[statwalk.StatWalk]:
    nothing = cast("Any", ())
    return ready(statwalk.StatWalk(nothing, nothing, name, stat_cache.now(), Tree(-1, b"", TreeOptions())))


def never() -> Any:
    raise AssertionError("looked through again")


def test_a_context_is_looked_through_by_one_job_of_a_build(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        assert a_job_of("b", store).shared_digest("COPY . /", looked(), selected("found")).name == "found"
        assert a_job_of("b", store).shared_digest("COPY . /", Lazy(never), Lazy(never)).name == "found"


@pytest.mark.parametrize(
    ("build", "what"),
    [("other", "COPY . /"), ("b", "COPY f /"), ("", "COPY . /"), ("b", "")],
    ids=["another build", "other files", "no build", "files of its own"],
)
def test_what_others_have_found_out_about_something_else_does_not_count(tmp_path: Path, build: str, what: str) -> None:
    with open_store(str(tmp_path)) as store:
        a_job_of("b", store).shared_digest("COPY . /", looked(), selected("found"))
        assert a_job_of(build, store).shared_digest(what, looked(), selected("own")).name == "own"


def test_files_that_are_being_written_are_something_else_for_each_job(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        assert (
            a_job_of("b", store).shared_digest("COPY . /", looked(), selected("at first", live=True)).name == "at first"
        )
        assert a_job_of("b", store).shared_digest("COPY . /", looked(), selected("then")).name == "then"


def test_a_job_that_finds_something_else_than_was_agreed_on_says_so() -> None:
    source = SimpleNamespace(include=(), required=False)
    paths = cast("Any", SimpleNamespace(source=lambda: source, pattern="f"))
    reading = cast("Any", SimpleNamespace(selected=selected("now"), agreed=ready(SelectionDigest("before"))))
    part = ContextPaths(paths, reading, False, cast("Any", None))
    with pytest.raises(ContextError, match='"f" changed during the build'):
        part.copy_to(cast("Any", None), "/", CopyOptions())


# -- what looks as it did once before --


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store")) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A context that was finished long ago, as far as a test can make it so: what is asked says that it is later."""
    made = tmp_path / "context"
    (made / "d").mkdir(parents=True)
    (made / "d" / "f").write_text("one")
    (made / "link").symlink_to("d/f")
    return made


class Job:
    """One build's looks at a folder."""

    def __init__(self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, *, later: float = 3600.0) -> None:
        moment = time.time_ns() + int(later * 1e9)
        monkeypatch.setattr(stat_cache, "now", lambda: moment)
        directory = tempfile.mkdtemp(dir=store.root)
        self.read = False
        background = ThreadPoolExecutor(1)
        contents = Contents(store, directory, background, Cancellation(), directory, None)
        tree = open_context(str(folder), "")
        source = CopySource(tree, "/", wildcards=False, context=True)
        looked = Lazy(lambda: statwalk.walk(directory, source, (), lambda: None))

        def reading() -> MatchedSource:
            self.read = True
            return contents.selected(looked())

        self.agreed = contents.shared_digest("COPY . /", looked, Lazy(reading))
        self.name = self.agreed.name
        tree.close()
        background.shutdown()


def test_a_folder_that_looks_as_before_is_not_gone_through(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Job(store, folder, monkeypatch)
    second = Job(store, folder, monkeypatch)
    assert (first.read, second.read) == (True, False)
    assert second.agreed == first.agreed
    assert second.agreed.signature


def edit(folder: Path) -> None:
    (folder / "d" / "f").write_text("two")


def edit_and_put_the_time_back(folder: Path) -> None:
    before = (folder / "d" / "f").stat()
    edit(folder)
    os.utime(folder / "d" / "f", ns=(before.st_atime_ns, before.st_mtime_ns))


def add(folder: Path) -> None:
    (folder / "d" / "g").write_text("")


def link_elsewhere(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("d/g")


@pytest.mark.parametrize(
    "change",
    [
        edit, edit_and_put_the_time_back, add, link_elsewhere,
        lambda folder: (folder / "d" / "f").chmod(0o600),
        lambda folder: (folder / "d").chmod(0o700),
        lambda folder: (folder / "d" / "f").rename(folder / "d" / "g"),
        lambda folder: (folder / "d" / "f").unlink(),
        lambda folder: (folder / "e").hardlink_to(folder / "d" / "f"),
    ],
    ids=["content", "content, same time", "a file more", "link", "mode", "mode of a directory", "name", "a file less",
         "hard link"],
)  # fmt: skip
def test_a_folder_that_is_another_is_gone_through(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    first = Job(store, folder, monkeypatch)
    change(folder)
    second = Job(store, folder, monkeypatch)
    assert second.read
    assert second.name != first.name


def test_a_folder_in_which_something_was_changed_just_now_may_look_the_same_and_be_another(
    store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not Job(store, folder, monkeypatch, later=0.0).agreed.signature
    assert Job(store, folder, monkeypatch).read
