"""Directories of ``RUN --mount=type=cache``: what a step leaves in one, later steps of the same id find.

Each is ``cache/<name>/fs``, where the name is a hash of the id: an id is a Dockerfile's text and never part of a path.
``cache/<name>/id`` tells the id and when the directory was made; its modification time is that of the last use. They
need no index: a lost index costs no compiler cache. ``cache/<name>/size`` has what it occupied (bytes of disk, in
decimal) when that was measured, which its modification time tells.
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

    from executor.store.locks import Held
    from executor.store.store import Store


class CacheMount(msgspec.Struct, frozen=True):
    """A cache directory; times in seconds since the epoch."""

    id: str
    path: str
    created: float
    last_used: float
    size: int = 0
    """Bytes of disk when it was ``measured``; 0 before."""
    measured: float = 0.0


@contextmanager
def held(
    store: Store,
    id: str,  # noqa: A002
    sharing: Literal["shared", "private", "locked"] = "shared",
    *,
    populate: Callable[[str], None] | None = None,
    cancel: Future[Any] | None = None,
) -> Iterator[str]:
    """The path of the cache directory ``id`` for the length of the block.

    ``sharing`` as the Dockerfile reference has it ("RUN --mount=type=cache"): ``shared`` by any number of users at
    once; ``private``: the first that nobody uses, ``id`` itself or a sibling of it; ``locked``: waited for, until
    ``cancel`` is done. A new directory is filled by ``populate``, which gets its path, before anybody else sees it.
    """
    with ExitStack() as stack:
        if sharing == "locked":
            stack.enter_context(lock(store, f"cache {id}", cancel=cancel))
        elif sharing == "private":
            id, mine = _first_free(store, id)  # noqa: A001
            stack.enter_context(mine)
        thing = lease(id)
        store.session.hold(thing)
        stack.callback(store.session.drop, thing)
        if not _is_made(store, id):
            with lock(store, f"make cache {id}", cancel=cancel):
                _make(store, id, populate)
        place = top(store, id)
        with translated(store.root, f"cannot use the cache directory {id!r}"):
            os.utime(os.path.join(place, "id"), (store.clock(), store.clock()))
        yield os.path.join(place, "fs")


def listed(store: Store) -> tuple[CacheMount, ...]:
    """All cache directories that can be found by their id."""
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
            mount = CacheMount(str(said["id"]), path, float(said["created"]), used, *_measured(path))
            if mount.path == top(store, mount.id):
                found.append(mount)
    return tuple(found)


def measure(store: Store, mount: CacheMount) -> int:
    """Bytes of disk that ``mount`` occupies, noted for whoever asks without looking."""
    size, now = disk_usage(mount.path), store.clock()
    with suppress(OSError):  # it may be gone by now, or the disk full
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


def lease(id: str) -> str:  # noqa: A002
    """What a lease calls the cache directory ``id``."""
    return f"c{_name(id)}"


def top(store: Store, id: str) -> str:  # noqa: A002
    """Where the cache directory ``id`` is, with what tells about it."""
    return below(store.root, "cache", _name(id))


def _name(id: str) -> str:  # noqa: A002
    return hashlib.sha256(id.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _is_made(store: Store, id: str) -> bool:  # noqa: A002
    return os.path.exists(os.path.join(top(store, id), "id"))


def _first_free(store: Store, id: str) -> tuple[str, Held]:  # noqa: A002
    number = 0
    while True:
        candidate = f"{id}#{number}" if number else id
        if (mine := try_lock(store, f"cache {candidate}")) is not None:
            return candidate, mine
        number += 1


def _make(store: Store, id: str, populate: Callable[[str], None] | None) -> None:  # noqa: A002
    with translated(store.root, f"cannot make the cache directory {id!r}"):
        if _is_made(store, id):
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
            if os.path.lexists(top(store, id)):
                os.rename(top(store, id), store.session.temporary())  # one without its id: garbage
            os.rename(draft, top(store, id))
    except BaseException:
        with translated(store.root, f"cannot delete {draft}"):
            remove_tree(draft)
        raise
