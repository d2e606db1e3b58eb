"""Directories of ``RUN --mount=type=cache``.

Each is ``cache/<name>/fs``, where the name is a hash of the id, which is text of a Dockerfile and never part of a path.
``cache/<name>/id`` has the id and the creation time; its mtime is the time of last use. ``cache/<name>/size`` has the
disk usage in bytes (decimal) when it was measured, which is its mtime. They are not in the index: losing that loses no
compiler cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Literal

import msgspec

from executor.store.faults import translated
from executor.store.locks import lock, try_lock
from executor.store.removal import disk_usage, remove_tree
from platforms import decoding
from platforms.paths import below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from typing import Any

    from executor.store.locks import Lock
    from executor.store.store import Store


class CacheDirectory(msgspec.Struct, frozen=True):
    """A cache directory; times in seconds since the epoch."""

    id: str
    path: str
    created: float
    last_used: float
    size: int = 0
    """Disk usage in bytes when it was ``measured``; 0 if never."""
    measured: float = 0.0


@contextmanager
def acquire(
    store: Store,
    id: str,  # noqa: A002
    sharing: Literal["shared", "private", "locked"] = "shared",
    *,
    populate: Callable[[str], None] | None = None,
    cancel: Future[Any] | None = None,
) -> Iterator[str]:
    """Yield the path of the cache directory ``id``, which is in use for the length of the block.

    ``sharing`` as in the Dockerfile reference, "RUN --mount=type=cache". ``shared``: by any number of users.
    ``private``: the first directory that nobody uses, ``id`` itself or a sibling. ``locked``: waits until the directory
    is free or ``cancel`` is done. A new directory is filled by ``populate``, which is called with its path, before it
    becomes visible.
    """
    with ExitStack() as stack:
        if sharing == "locked":
            stack.enter_context(lock(store, f"cache {id}", cancel=cancel))
        elif sharing == "private":
            id, mine = _first_free(store, id)  # noqa: A001
            stack.enter_context(mine)
        resource = lease_name(id)
        store.session.lease(resource)
        stack.callback(store.session.release, resource)
        if not _exists(store, id):
            with lock(store, f"make cache {id}", cancel=cancel):
                _make(store, id, populate)
        place = directory_of(store, id)
        with translated(store.root, f"cannot use the cache directory {id!r}"):
            os.utime(os.path.join(place, "id"), (store.clock(), store.clock()))
            if not os.path.lexists(os.path.join(place, "fs")):
                from executor.store import moved_directories

                moved_directories.bring_back_unused(os.path.join(place, "fs"))
        yield os.path.join(place, "fs")


def list_all(store: Store) -> tuple[CacheDirectory, ...]:
    """Return all cache directories."""
    found = []
    folder = os.path.join(store.root, "cache")
    for name in os.listdir(folder):
        path = below(folder, name)
        with (
            suppress(OSError, ValueError, KeyError, TypeError),
            open(os.path.join(path, "id"), encoding="utf-8") as file,
        ):
            said = decoding.from_loose_json(file.read())
            used = os.fstat(file.fileno()).st_mtime
            mount = CacheDirectory(str(said["id"]), path, float(said["created"]), used, *_measured(path))
            if mount.path == directory_of(store, mount.id):
                found.append(mount)
    return tuple(found)


def measure(store: Store, mount: CacheDirectory) -> int:
    """Return the disk usage of ``mount`` in bytes, and record it for ``list_all``."""
    size, now = disk_usage(mount.path), store.clock()
    with suppress(OSError):  # removed meanwhile, or the disk is full
        path, incoming = os.path.join(mount.path, "size"), store.session.temporary()
        with open(os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(str(size))
        os.utime(incoming, (now, now))
        os.rename(incoming, path)
    return size


def _measured(path: str) -> tuple[int, float]:
    with suppress(OSError, ValueError), open(os.path.join(path, "size"), encoding="ascii") as file:
        return int(file.read(20)), os.fstat(file.fileno()).st_mtime
    return 0, 0.0


def lease_name(id: str) -> str:  # noqa: A002
    """Return the name of the cache directory ``id`` in leases."""
    return f"c{_name(id)}"


def directory_of(store: Store, id: str) -> str:  # noqa: A002
    """Return the directory of the cache ``id``, which holds ``fs``, ``id`` and ``size``."""
    return below(store.root, "cache", _name(id))


def _name(id: str) -> str:  # noqa: A002
    return hashlib.sha256(id.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _exists(store: Store, id: str) -> bool:  # noqa: A002
    return os.path.exists(os.path.join(directory_of(store, id), "id"))


def _first_free(store: Store, id: str) -> tuple[str, Lock]:  # noqa: A002
    number = 0
    while True:
        candidate = f"{id}#{number}" if number else id
        if (mine := try_lock(store, f"cache {candidate}")) is not None:
            return candidate, mine
        number += 1


def _make(store: Store, id: str, populate: Callable[[str], None] | None) -> None:  # noqa: A002
    with translated(store.root, f"cannot make the cache directory {id!r}"):
        if _exists(store, id):
            return  # another process was faster
        draft = store.session.temporary()
        os.mkdir(draft, 0o700)
        os.mkdir(os.path.join(draft, "fs"))
        with open(os.path.join(draft, "id"), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump({"id": id, "created": store.clock()}, file)
    try:
        if populate is not None:
            populate(os.path.join(draft, "fs"))
        with translated(store.root, f"cannot make the cache directory {id!r}"):
            if os.path.lexists(directory_of(store, id)):
                os.rename(directory_of(store, id), store.session.temporary())  # one without its id: garbage
            os.rename(draft, directory_of(store, id))
    except BaseException:
        with translated(store.root, f"cannot delete {draft}"):
            remove_tree(draft)
        raise
