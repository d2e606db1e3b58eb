"""Blobs: files named by the digest of their content.

A blob is written to a temporary file while it is being hashed, renamed into ``blobs/``, and then given a row in the
index; only then it exists. A blob found here is leased until the store is closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias, cast

import msgspec

from executor.image.digest import check_digest
from executor.store.faults import os_fault, translated
from executor.store.index import number
from executor.store.leases import flocked, gate
from platforms.descriptors import write_all
from platforms.errors import ArchiveError, StoreError
from platforms.paths import below

if TYPE_CHECKING:
    import sqlite3
    from types import TracebackType
    from typing import Self

    from executor.store.store import Store

_CHUNK: Final = 1 << 20


class Blob(msgspec.Struct, frozen=True):
    """A blob of the store. ``size`` in bytes."""

    digest: str
    size: int


def path(store: Store, digest: str) -> str:
    """Where the blob ``digest`` is, or would be. Reading it there verifies nothing."""
    algorithm, _, encoded = check_digest(digest).partition(":")
    return below(store.root, "blobs", algorithm, encoded)


def find(store: Store, digest: str) -> Blob | None:
    """The blob ``digest`` when the store has it, whole; it is then leased and counts as used.

    A blob of an earlier boot that was never settled is hashed first.
    """
    place = path(store, digest)
    if _row(store, digest) is None:
        return None
    store.session.keep(f"b{digest}")
    row = _row(store, digest)  # once more, now that it cannot be pruned any longer
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
    return Blob(digest, size)


def has(store: Store, digest: str) -> bool:
    """Whether the store has the blob ``digest``."""
    return find(store, digest) is not None


def size(store: Store, digest: str) -> int:
    """Bytes of the blob ``digest``; ``StoreError`` when it is not here."""
    return _demand(store, digest).size


def open(store: Store, digest: str) -> BinaryIO:  # noqa: A001
    """The blob ``digest`` to read from.

    Reading from the start to the end verifies it: the last piece of a damaged blob is not handed out, instead the
    blob is removed and ``StoreError`` raised. Seeking to the start begins anew; elsewhere, nothing is verified.
    """
    _demand(store, digest)
    with translated(store.root, f"cannot read the blob {digest}"):
        return cast("BinaryIO", io.BufferedReader(_Verified(store, digest), _CHUNK))


def open_unverified(store: Store, digest: str) -> BinaryIO:
    """The blob ``digest`` to read from, for those who hold what they make of it against another digest.

    When that is not what it should be, ``verify`` says whether it was the blob's fault.
    """
    _demand(store, digest)
    with translated(store.root, f"cannot read the blob {digest}"):
        return io.FileIO(path(store, digest))


def verify(store: Store, digest: str) -> None:
    """Read the blob ``digest``; one that is damaged is removed, and ``StoreError`` raised."""
    _demand(store, digest)
    if hash_file(path(store, digest), digest) != digest:
        raise _damaged(store, digest)


def read(store: Store, digest: str, limit: int) -> bytes:
    """The content of the blob ``digest``, verified; ``StoreError`` when it is longer than ``limit`` bytes."""
    found = _demand(store, digest)
    if found.size > limit:
        raise StoreError(f"the blob {digest} is too large", why=f"{found.size} bytes; the limit here is {limit}")
    with translated(store.root, f"cannot read the blob {digest}"), io.FileIO(path(store, digest)) as file:
        data = file.read(found.size + 1) or b""
    if hashlib.new(digest.partition(":")[0], data).hexdigest() != digest.partition(":")[2]:
        raise _damaged(store, digest)
    return data


def ingest(store: Store, digest: str | None = None) -> Ingest:
    """A new blob to be written from its beginning; use it as a context manager, and ``commit`` it.

    ``digest`` is what the content must hash to, None when that is not known beforehand.
    """
    with translated(store.root, "cannot write a blob"):
        made = Ingest(store, check_digest(digest) if digest is not None else None)
    if made.resume_offset:
        made.restart()
    return made


def resume(store: Store, digest: str) -> Ingest:
    """As ``ingest``, but an interrupted earlier attempt is gone on with (``Ingest.resume_offset``)."""
    with translated(store.root, "cannot write a blob"):
        return Ingest(store, check_digest(digest))


def adopt(store: Store, temporary: str, digest: str, size: int) -> Blob:
    """Make the file ``temporary`` (of ``store.session.temporary()``) the blob ``digest``.

    Whoever wrote it has computed ``digest`` on the way; only the ``size`` is checked here.
    """
    with translated(store.root, f"cannot store the blob {digest}"):
        length = os.stat(temporary).st_size
        if length != size:
            raise StoreError(f"cannot store the blob {digest}", why=f"its file has {length} bytes instead of {size}")
        return _place(store, temporary, digest, size)


class Ingest:
    """A blob in the making. Not safe for threads.

    Leaving the context without ``commit`` leaves nothing behind, except for a part of a blob whose digest is known,
    which ``resume`` goes on with.
    """

    def __init__(self, store: Store, digest: str | None) -> None:
        self._store = store
        self._expected = digest
        self._algorithm = digest.partition(":")[0] if digest is not None else "sha256"
        self._keep = False
        self._fd, self.path = self._take_partial(digest) if digest is not None else (-1, "")
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
        """Bytes that are here already: writing goes on after them."""
        self.size = self._hashed
        """Bytes so far."""
        os.lseek(self._fd, 0, os.SEEK_END)

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data``."""
        try:
            write_all(self._fd, data)
        except OSError as error:
            self._give_up()
            raise os_fault(self._store.root, f"cannot write the blob {self._expected or ''}".rstrip(), error) from error
        self._hash.update(data)
        self._hashed += len(data)
        self.size += len(data)
        return len(data)

    def fileno(self) -> int:
        """The file's descriptor, at its end. What is appended through it is hashed by ``commit``."""
        return self._fd

    def restart(self) -> None:
        """Throw away what is here and begin at 0, for a server that cannot resume."""
        with translated(self._store.root, "cannot write a blob"):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.new(self._algorithm)
        self._hashed = self.size = self.resume_offset = 0

    def commit(self) -> Blob:
        """Verify and keep the blob.

        Raises ``ArchiveError`` when the content is not what the digest says, and leaves nothing of it. (When
        ``resume_offset`` was not 0, the fault may lie in what was resumed: try once more from the start.)
        """
        what = f"cannot store the blob {self._expected or ''}".rstrip()
        try:
            self._catch_up()
            digest = f"{self._algorithm}:{self._hash.hexdigest()}"
            if self._expected not in (None, digest):
                self._give_up()
                raise ArchiveError(
                    f"the content of {self._expected} is not what its digest says",
                    why=f"{self._hashed} bytes were received, and their digest is {digest}",
                    remedy="try again; if it stays so, the sender or something on the way to it is broken",
                )
            blob = _place(self._store, self.path, digest, self._hashed)
        except (OSError, StoreError) as error:
            self._give_up()
            if isinstance(error, OSError):
                raise os_fault(self._store.root, what, error) from error
            raise
        self._keep = True
        return blob

    def close(self) -> None:
        """End the attempt. A part of a blob with a known digest stays for ``resume``."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        partial = self._expected is not None and os.path.dirname(self.path) == _partials(self._store)
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
        """Hash what is in the file and has not gone through ``write``."""
        while data := os.pread(self._fd, _CHUNK, self._hashed):
            self._hash.update(data)
            self._hashed += len(data)
        self.size = self._hashed

    def _give_up(self) -> None:
        """Give the space back."""
        self._keep = True
        with contextlib.suppress(OSError):
            os.unlink(self.path)
            os.ftruncate(self._fd, 0)

    def _take_partial(self, digest: str) -> tuple[int, str]:
        """The locked file of an interrupted download, or a new one; -1 when another process is at it right now."""
        place = below(_partials(self._store), digest.replace(":", "-"))
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
    """A blob's file that hashes what is read from it."""

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
    """The digest of the file ``place``, by the algorithm of ``digest``; "" when it cannot be read."""
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
    """Take the blob ``digest``, found damaged as the row ``identity``, out of the store; not its successor."""
    with translated(store.root, f"cannot remove the damaged blob {digest}"), flocked(gate(store.root), exclusive=True):
        gone = store.index.write(lambda db: db.execute("DELETE FROM blobs WHERE id=?", (identity,)).rowcount)
        if gone:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path(store, digest))


def _place(store: Store, temporary: str, digest: str, size: int) -> Blob:
    """Rename ``temporary`` to the blob ``digest`` and give it its row; one that is here already stays."""
    place = path(store, digest)
    if find(store, digest) is not None:
        os.unlink(temporary)
        return Blob(digest, size)
    store.session.keep(f"b{digest}")
    now = store.clock()

    def write(db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT OR REPLACE INTO blobs(digest, size, boot, created, used) VALUES(?, ?, ?, ?, ?)",
            (digest, size, store.boot, now, now),
        )

    with flocked(gate(store.root), exclusive=False):
        try:
            os.rename(temporary, place)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)  # sha512 is rare, its directory made when needed
            os.rename(temporary, place)
        os.chmod(place, 0o400)  # not before: who dies here leaves a download that can be resumed
        store.index.write(write)
    return Blob(digest, size)


_Row: TypeAlias = "tuple[int, int, str | None, float]"


def _row(store: Store, digest: str) -> _Row | None:
    def look(db: sqlite3.Connection) -> _Row | None:
        row = db.execute("SELECT id, size, boot, used FROM blobs WHERE digest=?", (digest,)).fetchone()
        return None if row is None else (row[0], row[1], row[2], number(row[3]))

    return store.index.read(look)


def _demand(store: Store, digest: str) -> Blob:
    found = find(store, digest)
    if found is None:
        raise StoreError(f"the store has no blob {digest}", remedy="build again: what is missing will be made anew")
    return found


def _damaged(store: Store, digest: str) -> StoreError:
    row = _row(store, digest)
    if row is not None:
        remove_damaged(store, digest, row[0])
    return StoreError(
        f"the blob {digest} was damaged in the store",
        why="its content does not match its digest: a failing disk, or something else has written to it",
        remedy="build again: the blob has been removed and will be made anew",
    )


def _partials(store: Store) -> str:
    return os.path.join(store.root, "tmp/partial")
