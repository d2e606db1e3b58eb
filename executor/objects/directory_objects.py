"""Objects as files of a directory, on a shared disk or in the cache of a CI system."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from executor.objects.object_store import PIECE, StoredObject
from platforms import regular
from platforms.errors import CacheError
from platforms.paths import below, component


class DirectoryObjects:
    """The files below ``path``. Links may not lead out of it; what is written, touched, listed or removed is reached
    through none, as whoever can write there could have others' files removed."""

    def __init__(self, path: str) -> None:
        self._path = path

    def get(self, key: str, limit: int) -> tuple[bytes, StoredObject] | None:
        """Raises ``OSError`` if the directory itself does not exist."""
        try:
            with regular.open_below(self._path, _checked(key)) as file:
                data = file.read(limit + 1)
                found = _described(key, os.fstat(file.fileno()))
        except FileNotFoundError:
            if not os.path.isdir(self._path):
                raise
            return None
        if len(data) > limit:
            raise CacheError(f"{self._path} has something too large", why=f"{key} exceeds {limit} bytes")
        return data, found

    def find(self, key: str) -> StoredObject | None:
        try:
            with regular.open_below(self._path, _checked(key)) as file:
                return _described(key, os.fstat(file.fileno()))
        except FileNotFoundError:
            return None

    def stream(self, key: str, size: int, offset: int) -> Iterator[bytes]:
        with regular.open_below(self._path, _checked(key)) as file:
            file.seek(offset)
            while piece := file.read(PIECE):
                yield piece

    def put(self, key: str, content: Callable[[], Iterator[bytes]], size: int) -> None:
        path = below(self._path, *key.split("/"))
        self._make_directories(os.path.dirname(path))
        incoming = f"{path}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            with open(incoming, "xb") as file:
                for piece in content():
                    file.write(piece)
            os.replace(incoming, path)
        except BaseException:
            if os.path.exists(incoming):
                os.unlink(incoming)
            raise

    def touch(self, found: StoredObject) -> None:
        os.utime(self._file(found.key), follow_symlinks=False)

    def list(self, directory: str) -> Iterator[StoredObject]:
        with suppress(FileNotFoundError), os.scandir(self._directory(directory.split("/"))) as it:
            for each in it:
                key = f"{directory}/{each.name}"
                if each.is_dir(follow_symlinks=False):
                    yield from self.list(key)
                elif each.is_file(follow_symlinks=False):
                    yield _described(key, each.stat(follow_symlinks=False))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                os.unlink(self._file(key))

    def _make_directories(self, path: str) -> None:
        """Make ``path`` below the directory, without following links out of it."""
        os.makedirs(self._path, exist_ok=True)
        here = self._path
        for name in os.path.relpath(path, self._path).split("/"):
            here = below(here, name)
            with suppress(FileExistsError):
                os.mkdir(here)
            _require_own(here)

    def _file(self, key: str) -> str:
        """Return the path of ``key``. Raises ``OSError`` if a link leads there."""
        *words, name = key.split("/")
        return below(self._directory(words), name)

    def _directory(self, words: Sequence[str]) -> str:
        """Return the path of a directory. Raises ``OSError`` if it is a link, or one leads there."""
        here = self._path
        for each in words:
            here = below(here, each)
            _require_own(here)
        return here


def _require_own(path: str) -> None:
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a directory of its own", path)


def _checked(key: str) -> str:
    return "/".join(map(component, key.split("/")))


def _described(key: str, status: os.stat_result) -> StoredObject:
    return StoredObject(key, status.st_size, status.st_mtime)
