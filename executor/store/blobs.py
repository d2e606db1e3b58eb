"""Blobs: files by the digest of their content.

A blob is written to a temporary file and hashed, renamed into ``blobs/``, and then gets a row in the index, from which
on it exists. A blob that is found is leased until the store is closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias, cast

import msgspec

from executor.image.digest import check_digest
from executor.store.faults import os_fault, translated
from executor.store.index import number
from executor.store.leases import flocked, lease_lock
from platforms.descriptors import write_all
from platforms.errors import ArchiveError, StoreError
from platforms.paths import below

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from executor.store.store import Store

_CHUNK: Final = 1 << 20
_TOGETHER: Final = 500
"""Number of blobs that are looked up or added in one transaction."""


class StoredBlob(msgspec.Struct, frozen=True):
    """A blob of the store. ``size`` in bytes."""

    digest: str
    size: int


def path(store: Store, digest: str) -> str:
    """Return the path of the blob ``digest``, whether it exists or not. Reading the file verifies nothing."""
    algorithm, _, encoded = check_digest(digest).partition(":")
    return below(store.root, "blobs", algorithm, encoded)


def find(store: Store, digest: str) -> StoredBlob | None:
    """Return the blob ``digest`` if the store has it; it is then leased and marked as used.

    A blob from an earlier boot that was never synced is hashed first.
    """
    place = path(store, digest)
    if _get_row(store, digest) is None:
        return None
    store.session.lease_until_closed(f"b{digest}")
    row = _get_row(store, digest)  # again: from now on it cannot be pruned
    if row is None:
        return None
    identity, size, boot, used = row
    try:
        whole = os.stat(place).st_size == size
    except OSError:
        whole = False
    if whole and boot not in (None, store.boot):
        whole = hash_file(place, digest) == digest
        if whole:
            store.index.write(lambda db: db.execute("UPDATE blobs SET boot=? WHERE id=?", (store.boot, identity)))
    if not whole:
        remove_damaged(store, digest, identity)
        return None
    store.touch("blobs", digest, used)
    return StoredBlob(digest, size)


def find_all(store: Store, digests: Sequence[str]) -> set[str]:
    """Return those of ``digests`` that the store has. They are leased and marked as used, as by ``find``."""
    found: set[str] = set()
    for start in range(0, len(digests), _TOGETHER):
        some = [each for each in dict.fromkeys(digests[start : start + _TOGETHER]) if each not in found]
        there = [*_get_rows(store, some)]
        store.session.lease(*(f"b{each}" for each in there))
        for digest, (_, size, boot, used) in _get_rows(store, there).items():  # from now on they cannot be pruned
            try:
                plain = boot in (None, store.boot) and os.stat(path(store, digest)).st_size == size
            except OSError:
                plain = False
            if plain:
                store.touch("blobs", digest, used)
            if plain or find(store, digest) is not None:
                found.add(digest)
    return found


def has(store: Store, digest: str) -> bool:
    """Whether the store has the blob ``digest``."""
    return find(store, digest) is not None


def size(store: Store, digest: str) -> int:
    """Return the size of the blob ``digest`` in bytes. Raises ``StoreError`` if there is none."""
    return _require(store, digest).size


def open(store: Store, digest: str) -> BinaryIO:  # noqa: A001
    """Open the blob ``digest`` for reading.

    Reading from start to end verifies it: the last part of a damaged blob is not returned; instead the blob is removed
    and ``StoreError`` raised. Seeking to the start begins again; after any other seek nothing is verified.
    """
    _require(store, digest)
    with translated(store.root, f"cannot read the blob {digest}"):
        return cast("BinaryIO", io.BufferedReader(_Verified(store, digest), _CHUNK))


def open_unverified(store: Store, digest: str) -> BinaryIO:
    """Open the blob ``digest`` for reading, for callers that verify another digest of what they make of it.

    If that fails, ``verify`` tells whether the blob is damaged.
    """
    _require(store, digest)
    with translated(store.root, f"cannot read the blob {digest}"):
        return io.FileIO(path(store, digest))


def verify(store: Store, digest: str) -> None:
    """Read the blob ``digest``; if it is damaged, remove it and raise ``StoreError``."""
    _require(store, digest)
    if hash_file(path(store, digest), digest) != digest:
        raise _damaged(store, digest)


def read(store: Store, digest: str, limit: int) -> bytes:
    """Return the content of the blob ``digest``, verified. Raises ``StoreError`` if it is longer than ``limit``
    bytes."""
    found = _require(store, digest)
    if found.size > limit:
        raise StoreError(f"the blob {digest} is too large", why=f"{found.size} bytes; the limit here is {limit}")
    with translated(store.root, f"cannot read the blob {digest}"), io.FileIO(path(store, digest)) as file:
        data = file.read(found.size + 1) or b""
    if hashlib.new(digest.partition(":")[0], data).hexdigest() != digest.partition(":")[2]:
        raise _damaged(store, digest)
    return data


def ingest(store: Store, digest: str | None = None) -> Ingest:
    """Return a context manager to write a new blob, from its beginning, and to ``commit`` it.

    ``digest``: the expected digest; None when it is not known in advance.
    """
    with translated(store.root, "cannot write a blob"):
        made = Ingest(store, check_digest(digest) if digest is not None else None)
    if made.resume_offset:
        made.restart()
    return made


def resume(store: Store, digest: str) -> Ingest:
    """As ``ingest``, but continues an interrupted attempt, if there is one (``Ingest.resume_offset``)."""
    with translated(store.root, "cannot write a blob"):
        return Ingest(store, check_digest(digest))


def adopt(store: Store, temporary: str, digest: str, size: int) -> StoredBlob:
    """Make the file ``temporary`` (of ``store.session.temporary()``) the blob ``digest``.

    ``digest`` was computed by the caller while writing; only ``size`` is checked.
    """
    with translated(store.root, f"cannot store the blob {digest}"):
        length = os.stat(temporary).st_size
        if length != size:
            raise StoreError(f"cannot store the blob {digest}", why=f"its file has {length} bytes instead of {size}")
        return _add(store, temporary, digest, size)


def adopt_all(store: Store, made: Sequence[tuple[str, StoredBlob]]) -> None:
    """As ``adopt``, for many small blobs: each with its file, whose size and digest the caller has determined."""
    now = store.clock()
    with translated(store.root, "cannot store blobs"):
        for start in range(0, len(made), _TOGETHER):
            some = made[start : start + _TOGETHER]
            store.session.lease(*(f"b{blob.digest}" for _, blob in some))
            rows = [(blob.digest, blob.size, store.boot, now, now) for _, blob in some]
            with flocked(lease_lock(store.root), exclusive=False):
                for temporary, blob in some:
                    os.rename(temporary, path(store, blob.digest))
                    os.chmod(path(store, blob.digest), 0o400)
                store.index.write(partial(_insert, rows))


def _insert(rows: Sequence[tuple[str, int, str, float, float]], db: sqlite3.Connection) -> None:
    db.executemany("INSERT OR REPLACE INTO blobs(digest, size, boot, created, used) VALUES(?, ?, ?, ?, ?)", rows)


class Ingest:
    """A blob that is being written. Not safe for threads.

    Leaving the context without ``commit`` leaves nothing, except for a part of a blob with a known digest, which
    ``resume`` continues.
    """

    def __init__(self, store: Store, digest: str | None) -> None:
        self._store = store
        self._expected = digest
        self._algorithm = digest.partition(":")[0] if digest is not None else "sha256"
        self._keep = False
        self._fd, self.path = self._open_partial(digest) if digest is not None else (-1, "")
        if self._fd < 0:
            self.path = store.session.temporary()
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._hash = hashlib.new(self._algorithm)
        self._hashed = 0
        try:
            self._catch_up()
        except BaseException:
            os.close(self._fd)
            raise
        self.resume_offset = self._hashed
        """Bytes that are present already; writing continues after them."""
        self.size = self._hashed
        """Bytes so far."""
        os.lseek(self._fd, 0, os.SEEK_END)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data``."""
        try:
            write_all(self._fd, data)
        except OSError as error:
            self._abandon()
            raise os_fault(self._store.root, f"cannot write the blob {self._expected or ''}".rstrip(), error) from error
        self._hash.update(data)
        self._hashed += len(data)
        self.size += len(data)
        return len(data)

    def fileno(self) -> int:
        """Return the file descriptor, positioned at the end. What is appended through it is hashed by ``commit``."""
        return self._fd

    def restart(self) -> None:
        """Discard what is present and start at 0, for a server that cannot resume."""
        with translated(self._store.root, "cannot write a blob"):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.new(self._algorithm)
        self._hashed = self.size = self.resume_offset = 0

    def commit(self) -> StoredBlob:
        """Verify the blob and add it to the store.

        Raises ``ArchiveError``, and keeps nothing, when the content does not match the digest. (If ``resume_offset``
        was not 0, the resumed part may be wrong: try once more from the start.)
        """
        what = f"cannot store the blob {self._expected or ''}".rstrip()
        try:
            self._catch_up()
            digest = f"{self._algorithm}:{self._hash.hexdigest()}"
            if self._expected not in (None, digest):
                self._abandon()
                raise ArchiveError(
                    f"the content of {self._expected} is not what its digest says",
                    why=f"{self._hashed} bytes were received, and their digest is {digest}",
                    remedy="try again; if it stays so, the sender or something on the way to it is broken",
                )
            blob = _add(self._store, self.path, digest, self._hashed)
        except (OSError, StoreError) as error:
            self._abandon()
            if isinstance(error, OSError):
                raise os_fault(self._store.root, what, error) from error
            raise
        self._keep = True
        return blob

    def close(self) -> None:
        """End the attempt. A part of a blob with a known digest is kept for ``resume``."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        partial = self._expected is not None and os.path.dirname(self.path) == _partial_directory(self._store)
        try:
            if not self._keep and not (partial and os.fstat(fd).st_size):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _catch_up(self) -> None:
        """Hash what is in the file and was not written by ``write``."""
        while data := os.pread(self._fd, _CHUNK, self._hashed):
            self._hash.update(data)
            self._hashed += len(data)
        self.size = self._hashed

    def _abandon(self) -> None:
        """Free the space."""
        self._keep = True
        with contextlib.suppress(OSError):
            os.unlink(self.path)
            os.ftruncate(self._fd, 0)

    def _open_partial(self, digest: str) -> tuple[int, str]:
        """Return the locked file of an interrupted download, or a new one; -1 when another process is writing it."""
        place = below(_partial_directory(self._store), digest.replace(":", "-"))
        while True:
            fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return -1, ""
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(place)):
                    return fd, place
            os.close(fd)  # committed or pruned between open and flock


class _Verified(io.RawIOBase):
    """A raw file that hashes what is read from a blob."""

    def __init__(self, store: Store, digest: str) -> None:
        self._store = store
        self._digest = digest
        self._fd = os.open(path(store, digest), os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._fd).st_size
        self._position = 0
        self._begin()

    def _begin(self) -> None:
        self._hash = hashlib.new(self._digest.partition(":")[0])
        self._hashed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = os.lseek(self._fd, offset, whence)
        if self._position == 0:
            self._begin()
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        done = os.readv(self._fd, [buffer])
        if self._hashed == self._position:
            self._hash.update(memoryview(buffer)[:done])
            self._hashed += done
            if (self._hashed >= self._size or not done) and self._digest.partition(":")[2] != self._hash.hexdigest():
                raise _damaged(self._store, self._digest)
        self._position += done
        return done

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


def hash_file(place: str, digest: str) -> str:
    """Return the digest of the file ``place``, by the algorithm of ``digest``; "" when it cannot be read."""
    algorithm = digest.partition(":")[0]
    total = hashlib.new(algorithm)
    try:
        with io.FileIO(place) as file:
            while data := file.read(_CHUNK):
                total.update(data)
    except OSError:
        return ""
    return f"{algorithm}:{total.hexdigest()}"


def remove_damaged(store: Store, digest: str, identity: int) -> None:
    """Remove the blob ``digest`` whose row ``identity`` was found damaged; not one that has replaced it."""
    with (
        translated(store.root, f"cannot remove the damaged blob {digest}"),
        flocked(lease_lock(store.root), exclusive=True),
    ):
        gone = store.index.write(lambda db: db.execute("DELETE FROM blobs WHERE id=?", (identity,)).rowcount)
        if gone:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path(store, digest))


def _add(store: Store, temporary: str, digest: str, size: int) -> StoredBlob:
    """Rename ``temporary`` to the blob ``digest`` and insert its row; an existing blob is kept."""
    place = path(store, digest)
    if find(store, digest) is not None:
        os.unlink(temporary)
        return StoredBlob(digest, size)
    store.session.lease_until_closed(f"b{digest}")
    now = store.clock()

    def write(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO blobs(digest, size, boot, created, used) VALUES(?, ?, ?, ?, ?)",
            (digest, size, store.boot, now, now),
        )

    with flocked(lease_lock(store.root), exclusive=False):
        try:
            os.rename(temporary, place)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)  # of another algorithm than sha256
            os.rename(temporary, place)
        os.chmod(place, 0o400)  # after the rename: a download that is interrupted before can be resumed
        store.index.write(write)
    return StoredBlob(digest, size)


_Row: TypeAlias = "tuple[int, int, str | None, float]"


def _get_row(store: Store, digest: str) -> _Row | None:
    def look(db: sqlite3.Connection) -> _Row | None:
        row = db.execute("SELECT id, size, boot, used FROM blobs WHERE digest=?", (digest,)).fetchone()
        return None if row is None else (row[0], row[1], row[2], number(row[3]))

    return store.index.read(look)


def _get_rows(store: Store, digests: Sequence[str]) -> dict[str, _Row]:
    """Return the rows of ``digests``, at most ``_TOGETHER``, that there are."""
    wanted = ",".join("?" * len(digests))

    def look(db: sqlite3.Connection) -> dict[str, _Row]:
        rows = db.execute(f"SELECT digest, id, size, boot, used FROM blobs WHERE digest IN ({wanted})", digests)
        return {row[0]: (row[1], row[2], row[3], number(row[4])) for row in rows}

    return store.index.read(look)


def _require(store: Store, digest: str) -> StoredBlob:
    found = find(store, digest)
    if found is None:
        raise StoreError(f"the store has no blob {digest}", remedy="build again: what is missing will be made anew")
    return found


def _damaged(store: Store, digest: str) -> StoreError:
    row = _get_row(store, digest)
    if row is not None:
        remove_damaged(store, digest, row[0])
    return StoreError(
        f"the blob {digest} was damaged in the store",
        why="its content does not match its digest: a failing disk, or something else has written to it",
        remedy="build again: the blob has been removed and will be made anew",
    )


def _partial_directory(store: Store) -> str:
    return os.path.join(store.root, "tmp/partial")
