"""OCI image layouts as directories (image-spec image-layout.md): written atomically, read as untrusted.

An existing layout is extended: blobs first, ``index.json`` last and by rename, under a lock on the directory (which is
released when its process dies). Readers see the old index or the new one, and all blobs of either are complete. A root
whose name (annotation ``org.opencontainers.image.ref.name``) exists already replaces the older one.

Blobs are not synced one by one: an output that is lost in a power failure is built again. A blob that exists already is
kept if its digest is right; it is read for that, unless ``DigestCache`` has the digest of this very file, unchanged
since and in this boot.

Other blobs share their blocks with the store's file where the file system supports it, and are copied by the kernel
elsewhere. They are never hard links: a user who edits a layout, which is theirs, would edit the store.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Final

import msgspec
from msgspec.structs import replace

from executor.image import mediatypes
from executor.image.digest import check_digest
from executor.image.manifest import MANIFEST_LIMIT, Descriptor, Index, Manifest, encode, parse
from platforms import decoding, regular, syscalls
from platforms.errors import ArchiveError, StoreError, printable
from platforms.paths import below

REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"
MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
"""The content of the file ``oci-layout``."""
_INCOMING: Final = ".incoming-"
_CHUNK: Final = 1 << 20
_SHARE: Final = 32 << 20
"""Bytes that the kernel copies at a time; in between, the build may be cancelled."""


class DigestCache(msgspec.Struct, frozen=True):
    """Digests of files, by their status (lstat(2))."""

    find: Callable[[os.stat_result], str]
    """Return the digest of the file with this status; "" if it is not known."""
    record: Callable[[Sequence[tuple[os.stat_result, str]]], None]


class BlobSource(msgspec.Struct, frozen=True):
    """A blob to write: ``open`` opens a binary file of its ``size`` bytes, whose digest is ``digest``."""

    digest: str
    size: int
    open: Callable[[], BinaryIO]
    """Opens it at its start. A file with a descriptor may be copied by the kernel; ``check`` is called in between."""
    check: Callable[[], None] = lambda: None
    """Raises to cancel."""


_Opener = Callable[[str], tuple[BinaryIO, int]]
"""Opens a file by its path within the layout; returns it and its size. Raises ``OSError``."""


class Layout(msgspec.Struct, frozen=True):
    """A layout that was opened for reading: the roots in ``index.json``, and access to the blobs."""

    path: str
    roots: tuple[Descriptor, ...]
    open_file: _Opener

    def find(self, name: str = "") -> Descriptor:
        """Return the root called ``name``, a tag or a digest; "" is the only root, else ``latest``.

        Raises ``ArchiveError``, which lists the existing names.
        """
        if not name and len(self.roots) == 1:
            return self.roots[0]
        wanted = name or "latest"
        for root in self.roots:
            if wanted == root.digest or wanted in names_of(root):
                return root
        known = sorted({each for root in self.roots for each in (*names_of(root)[:1], root.digest)})
        raise ArchiveError(
            f"no image called {wanted!r} in {self.path}",
            why="it holds " + printable(", ".join(known)) if known else "it is empty",
            remedy="name one of those" if known else "",
        )

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield the blob in chunks. Raises ``ArchiveError`` at the end if digest or size are wrong."""
        algorithm, _, expected = check_digest(descriptor.digest).partition(":")
        try:
            file, size = self.open_file(blob_path(descriptor.digest))
        except OSError as error:
            raise ArchiveError(
                f"{descriptor.digest} is missing in {self.path}", why=error.strerror or str(error)
            ) from error
        with file:
            if size != descriptor.size:
                raise ArchiveError(
                    f"{descriptor.digest} is damaged in {self.path}", why=f"{size} bytes instead of {descriptor.size}"
                )
            digest = hashlib.new(algorithm, usedforsecurity=False)
            left = size
            while data := file.read(min(_CHUNK, left)):
                left -= len(data)
                digest.update(data)
                yield data
        if left or digest.hexdigest() != expected:
            raise ArchiveError(f"{descriptor.digest} is damaged in {self.path}", why="its content has another digest")

    def read(self, descriptor: Descriptor, limit: int = MANIFEST_LIMIT) -> bytes:
        """Return the whole blob, verified. It may have at most ``limit`` bytes."""
        if descriptor.size > limit:
            raise ArchiveError(
                f"{descriptor.digest} is too large in {self.path}", why=f"{descriptor.size} bytes; {limit} are allowed"
            )
        return b"".join(self.chunks(descriptor))

    def manifest(self, descriptor: Descriptor) -> Manifest | Index:
        """Return the manifest or index that ``descriptor`` points to."""
        return parse(self.read(descriptor), descriptor.media_type)


def split_location(location: str) -> tuple[str, str]:
    """Split ``PATH[:TAG][@DIGEST]`` into the path and the name of an image ("": the only one, or latest)."""
    path, at, digest = location.partition("@")
    if at:
        return path.rpartition(":")[0] if not os.path.exists(path) and ":" in path else path, digest
    if os.path.exists(path) or ":" not in path:
        return path, ""
    head, _, tag = path.rpartition(":")
    return head, tag


def names_of(root: Descriptor) -> tuple[str, ...]:
    """Return the names of a root: its annotations, and the tags in them."""
    found: list[str] = []
    annotations = dict(root.annotations)
    for key in (REF_NAME, CONTAINERD_NAME):
        name = annotations.get(key, "")
        if name:
            found += [name, name.rpartition("/")[2].rpartition(":")[2]]
    return tuple(dict.fromkeys(found))


def nameless(root: Descriptor) -> Descriptor:
    """Return ``root`` without the annotations that are names (``names_of``)."""
    kept = tuple(each for each in root.annotations if each[0] not in (REF_NAME, CONTAINERD_NAME))
    return replace(root, annotations=kept)


def is_unfinished(directory: str) -> bool:
    """Whether ``directory`` is what a writer leaves that died before the first ``index.json``; also if it is empty."""
    return all(name in ("oci-layout", "blobs") or name.startswith(_INCOMING) for name in os.listdir(directory))


def blob_path(digest: str) -> str:
    """Return the path of the blob ``digest`` within a layout."""
    return "blobs/" + check_digest(digest).replace(":", "/")


def is_file_of(name: str) -> bool:
    """Whether ``name`` is the path of a file that every layout has, or of a blob, within a layout."""
    folder, _, digest = name.partition("/")
    if folder != "blobs":
        return name in ("oci-layout", "index.json")
    try:
        return blob_path(digest.replace("/", ":", 1)) == name
    except ArchiveError:
        return False


def read_layout(path: str) -> Layout:
    """Open the layout in the directory ``path``. Raises ``ArchiveError`` if there is none."""

    def open_file(name: str) -> tuple[BinaryIO, int]:
        # O_NONBLOCK: a FIFO in place of a file must not keep us waiting.
        fd = os.open(below(path, *name.split("/")), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(f"{name} is not a regular file")
        return os.fdopen(fd, "rb"), status.st_size

    return open_layout(path, open_file)


def open_layout(path: str, open_file: _Opener) -> Layout:
    """Open the layout whose files ``open_file`` opens. ``path``: its name in errors."""

    def read(name: str) -> bytes:
        try:
            file, _ = open_file(name)
        except OSError as error:
            raise ArchiveError(
                f"{path} is not an OCI image layout", why=f"{name}: {error.strerror or error}"
            ) from error
        with file:
            return file.read(MANIFEST_LIMIT + 1)

    try:
        version = decoding.from_json(read("oci-layout"))["imageLayoutVersion"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ArchiveError(f"{path} is not an OCI image layout", why="oci-layout has no imageLayoutVersion") from error
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise ArchiveError(f"cannot read the image layout {path}", why=f"its version is {version!r}, not 1")
    index = parse(read("index.json"), mediatypes.OCI_INDEX)
    if not isinstance(index, Index):
        raise ArchiveError(f"cannot read the image layout {path}", why="index.json is not an index")
    return Layout(path, index.manifests, open_file)


def write_layout(
    directory: str, roots: Iterable[Descriptor], blobs: Iterable[BlobSource], digests: DigestCache | None = None
) -> None:
    """Add ``blobs``, then ``roots``, to the layout in ``directory``, which is created if it does not exist.

    With ``digests``, blobs whose digest it has are not read.

    Raises ``StoreError`` if the disk is full or fails, or a blob is not what its descriptor says; ``ArchiveError`` if
    the existing index cannot be extended. A directory that was created is removed then.
    """
    with disk_errors(directory):
        new = not os.path.lexists(directory)
        os.makedirs(directory, exist_ok=True)
        with _locked(directory):
            try:
                _replace(directory, "oci-layout", MARKER)
                _make_directory(directory, "blobs")
                _make_directory(os.path.join(directory, "blobs"), "sha256")
                _sweep(directory)
                found = [_write_blob(directory, blob, digests) for blob in blobs]
                _replace(directory, "index.json", _extended(directory, tuple(roots)))
                if digests is not None:
                    digests.record([each for each in found if each is not None])
            except BaseException:
                if new:
                    shutil.rmtree(directory, ignore_errors=True)
                raise


def index_json(roots: Iterable[Descriptor]) -> bytes:
    """Return the ``index.json`` of a new layout with ``roots``."""
    return encode(Index(mediatypes.OCI_INDEX, tuple(roots)))


def verified(blob: BlobSource) -> Iterator[bytes]:
    """Yield the content of ``blob`` in chunks. Raises ``StoreError`` at the end if digest or size are wrong."""
    algorithm, _, expected = check_digest(blob.digest).partition(":")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    size = 0
    with blob.open() as file:
        while data := file.read(_CHUNK):
            size += len(data)
            digest.update(data)
            if size > blob.size:
                break
            yield data
    if size != blob.size or digest.hexdigest() != expected:
        raise StoreError(
            f"the local copy of {blob.digest} is damaged",
            why=f"it has {size} bytes, {blob.size} belong there" if size != blob.size else "its digest is another",
            remedy="build again, with --no-cache if need be",
        )


def _extended(directory: str, roots: tuple[Descriptor, ...]) -> bytes:
    """Return the directory's index with ``roots`` added. Other entries are kept unchanged, with unknown fields."""
    path = os.path.join(directory, "index.json")
    document: dict[str, Any] = decoding.from_json(index_json(roots))
    try:
        with regular.open_file(path, follow=False) as file:
            data = file.read(MANIFEST_LIMIT + 1)
    except FileNotFoundError:
        return index_json(roots)
    parse(data, mediatypes.OCI_INDEX)
    old: dict[str, Any] = decoding.from_json(data)
    names = {dict(root.annotations).get(REF_NAME, "") for root in roots} - {""}
    unnamed = {root.digest for root in roots if not dict(root.annotations).get(REF_NAME)}

    def stays(entry: dict[str, Any]) -> bool:
        name = (entry.get("annotations") or {}).get(REF_NAME, "")
        return name not in names if name else entry.get("digest") not in unnamed

    old["manifests"] = [entry for entry in old["manifests"] if stays(entry)] + document["manifests"]
    return json.dumps(old, separators=(",", ":"), ensure_ascii=False).encode()


def _write_blob(directory: str, blob: BlobSource, digests: DigestCache | None) -> tuple[os.stat_result, str] | None:
    """Write ``blob`` to ``directory`` unless it is there. Returns the status and digest of the file, if it was read or
    written."""
    path = below(directory, *blob_path(blob.digest).split("/"))
    with contextlib.suppress(OSError):
        there = os.lstat(path)
        if stat.S_ISREG(there.st_mode) and there.st_size == blob.size:
            if digests is not None and digests.find(there) == blob.digest:
                return None
            if _digest_of(path, blob.digest) == blob.digest:
                return there, blob.digest
    _make_directory(os.path.join(directory, "blobs"), blob.digest.partition(":")[0])
    incoming = below(os.path.dirname(path), f"{_INCOMING}{uuid.uuid4().hex}")
    try:
        if not _copied(blob, incoming):
            with open(incoming, "wb") as file:
                for data in verified(blob):
                    file.write(data)
        written = os.lstat(incoming)
        os.replace(incoming, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(incoming)
        raise
    there = os.lstat(path)
    same = (there.st_ino, there.st_mtime_ns, there.st_size) == (written.st_ino, written.st_mtime_ns, written.st_size)
    return (there, blob.digest) if same else None


def _copied(blob: BlobSource, path: str) -> bool:
    """Copy ``blob`` to the new file ``path`` within the kernel; return whether that succeeded and the digest is
    right."""
    if sys.platform != "linux":
        return False
    with blob.open() as source, open(path, "xb") as file:
        try:
            descriptor = source.fileno()
        except OSError:
            return False
        if os.fstat(descriptor).st_size != blob.size:
            return False
        if not syscalls.share_content(descriptor, file.fileno()):
            left, offset = blob.size, 0
            while left:
                blob.check()
                try:
                    done = os.copy_file_range(descriptor, file.fileno(), min(left, _SHARE), offset)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                        raise
                    return False
                if not done:
                    return False
                left, offset = left - done, offset + done
    blob.check()
    return _digest_of(path, blob.digest) == blob.digest


def _digest_of(path: str, like: str) -> str:
    """Return the digest of the file ``path`` by the algorithm of ``like``. Links are not followed."""
    algorithm = like.partition(":")[0]
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb", 0) as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _replace(directory: str, name: str, data: bytes) -> None:
    """Replace the file ``name`` atomically, and durably."""
    incoming = below(directory, f"{_INCOMING}{name}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(incoming)  # what a writer that died has left, or a link that somebody has put there
    with open(incoming, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(incoming, below(directory, name))


def _make_directory(directory: str, name: str) -> None:
    """Create ``name`` in ``directory`` if it does not exist. Raises ``OSError`` for a link, which might lead out."""
    path = below(directory, name)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a directory of its own", path)


def _sweep(directory: str) -> None:
    """Remove temporary files of writers that have died; the lock excludes living ones."""
    for algorithm in os.listdir(os.path.join(directory, "blobs")):
        parent = below(directory, "blobs", algorithm)
        for name in os.listdir(parent) if stat.S_ISDIR(os.lstat(parent).st_mode) else ():
            if name.startswith(_INCOMING):
                os.unlink(below(parent, name))


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    import fcntl

    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Translate ``OSError`` of writing an image to ``path`` to ``StoreError``."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write the image to {path}",
            why=error.strerror or str(error),
            remedy="check that the place exists, may be written to and has space",
        ) from error
