"""What files are, for cache keys and for the names of layers: their content by digest, read once for each version."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from typing import cast

import msgspec
from msgspec.structs import replace

from executor.build import copying, keys
from executor.build.copying import Source
from executor.build.workshop import Copy, Workshop
from executor.rootfs.entry import Entry, Kind
from executor.store import faults, files, locks
from platforms.errors import ContextError


class Contents(msgspec.Struct, frozen=True):
    """What is in files, by their ``source``."""

    digests: dict[bytes, str]
    """SHA-256."""
    linked: dict[bytes, bytes]
    """Of hard links to a file that came before: that one's source."""


def content_key(workshop: Workshop, entries: Sequence[Entry]) -> tuple[keys.Part, ...]:
    """What ``entries`` are, content included and times left out: touching a file is not changing it."""
    found = contents(workshop, [each for each in entries if each.kind is Kind.FILE])
    paths = {entry.source: entry.path for entry in entries} if found.linked else {}
    return tuple(
        (
            entry.path,
            entry.kind.value,
            entry.mode,
            entry.uid,
            entry.gid,
            paths[found.linked[entry.source]] if entry.source in found.linked else entry.link,
            entry.device,
            entry.xattrs,
            found.digests.get(entry.source, ""),
        )
        for entry in entries
    )


def selection_key(workshop: Workshop, source: Source, exclude: tuple[str, ...] = ()) -> tuple[keys.Part, ...]:
    """What ``source`` names, but for what ``exclude`` leaves out, and what its matches are called.

    A wildcard may match a link, whose target is then copied under the link's name.
    """
    parts: list[keys.Part] = []
    try:
        for match in copying.matches(source):
            top = source.tree.entry(match.path)
            if top is not None:
                found = [each.entry for each in copying.reached(source, top, exclude)]
                if source.context:
                    found = [replace(each, xattrs=()) if each.xattrs else each for each in found]
                parts.append((match.name, content_key(workshop, found)))
    except OSError as error:
        raise _unreadable(os.fsdecode(error.filename or source.pattern), error) from error
    return tuple(parts)


def named(workshop: Workshop, entries: Iterable[Entry]) -> tuple[str, tuple[Entry, ...]]:
    """The name of the layer that ``entries`` make (equal names, equal bytes of the archive), and what to make it of.

    That is ``entries`` with our copies in the place of files that are still being written, a log of this build for one:
    such a file is for all of the job what it was when it was first read.
    """
    every = tuple(entries)
    digests = contents(workshop, [each for each in every if each.kind is Kind.FILE]).digests
    settled = tuple(_settled(workshop, each) for each in every) if workshop.copies else every
    name = keys.key(
        "layer",
        tuple(
            (
                entry.path,
                entry.kind.value,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime_ns // 1_000_000_000,
                entry.size,
                entry.link,
                entry.device,
                entry.xattrs,
                digests.get(original.source, ""),
            )
            for original, entry in zip(every, settled, strict=True)
        ),
        workshop.order.epoch,
    )
    return name, settled


def _settled(workshop: Workshop, entry: Entry) -> Entry:
    copy = workshop.copies.get(entry.source) if entry.kind is Kind.FILE else None
    return entry if copy is None else replace(entry, source=copy.path, size=copy.size)


def contents(workshop: Workshop, entries: Iterable[Entry]) -> Contents:
    """What is in the files ``entries``: read once, and again only when a file's status changed.

    Raises ``ContextError`` for a file whose content is another than earlier in this job.
    """
    found: dict[bytes, str] = {}
    linked: dict[bytes, bytes] = {}
    first: dict[tuple[int, int], bytes] = {}
    asked: list[tuple[bytes, bytes]] = []
    sources: list[bytes] = []
    for entry in entries:
        copy = workshop.copies.get(entry.source)
        if copy is not None:
            found[entry.source] = copy.digest
            continue
        status = os.lstat(entry.source)
        if status.st_nlink > 1:
            earlier = first.setdefault((status.st_dev, status.st_ino), entry.source)
            if earlier != entry.source:
                linked[entry.source] = earlier
        stamp = files.stamp(status)
        known = workshop.digests.get(stamp)
        if known is not None:
            found[entry.source] = known
        else:
            sources.append(entry.source)
            asked.append((b"%d:%d" % (status.st_dev, status.st_ino), stamp))
    if asked:
        for source, (_, stamp), digest in zip(sources, asked, _known(workshop, sources, asked), strict=True):
            found[source] = digest
            if source not in workshop.copies:
                workshop.digests[stamp] = digest
    for source, content in found.items():
        if workshop.contents.setdefault(source, content) != content:
            raise ContextError(f"{os.fsdecode(source)} changed during the build", remedy="build again")
    return Contents(found, linked)


def _known(workshop: Workshop, sources: list[bytes], asked: list[tuple[bytes, bytes]]) -> list[str]:
    """The digests of ``sources``. Jobs that ask for the same at the same moment read it once."""
    known = files.get(workshop.store, asked)
    missing = [number for number, digest in enumerate(known) if digest is None]
    if missing:
        name = keys.key("files", tuple(asked[number] for number in missing))
        with locks.lock(workshop.store, f"digests {name}", cancel=workshop.cancelled):
            again = files.get(workshop.store, [asked[number] for number in missing])
            for number, digest in zip(missing, again, strict=True):
                known[number] = digest
            _read(workshop, sources, asked, known)
    return cast("list[str]", known)


def _read(workshop: Workshop, sources: list[bytes], asked: list[tuple[bytes, bytes]], known: list[str | None]) -> None:
    """Fill the gaps in ``known``, and remember them."""
    read_at = files.now()
    rows: list[tuple[bytes, bytes, str]] = []
    for number, (name, stamp) in enumerate(asked):
        if known[number] is None:
            workshop.check()
            if files.is_young(stamp, read_at) and _is_live(workshop, sources[number]):
                copy = workshop.copies[sources[number]] = _copy(workshop, sources[number])
                known[number] = copy.digest
            else:
                digest = known[number] = _digest_of(sources[number])
                rows.append((name, stamp, digest))
    if rows:
        files.put(workshop.store, rows, read_at=read_at)


def _is_live(workshop: Workshop, source: bytes) -> bool:
    """Whether people and their programs may be at work on ``source``: it is in a directory of theirs.

    Not of hard links, which would not be recognised in copies.
    """
    ours = (b"/proc/self/fd/", os.fsencode(workshop.store.root) + b"/")
    return not source.startswith(ours) and os.lstat(source).st_nlink == 1


def _copy(workshop: Workshop, source: bytes) -> Copy:
    digest = hashlib.sha256()
    size = 0
    with faults.translated(workshop.store.root, "cannot copy a file that is being written"):
        fd, path = tempfile.mkstemp(dir=os.fsencode(workshop.directory))
        with open(fd, "wb") as file, _opened(source) as content:
            while block := content.read(1 << 20):
                digest.update(block)
                size += file.write(block)
        workshop.digests[files.stamp(os.lstat(path))] = digest.hexdigest()
    return Copy(path, size, digest.hexdigest())


def unchanged(workshop: Workshop, entries: Iterable[Entry]) -> None:
    """Raise ``ContextError`` when a file of ``entries`` is no longer what this job's keys and names say that it is.

    To be called after the files were read for good: else a file that is edited while it is built, and put back later,
    would be found in the cache with the edit.
    """
    contents(workshop, [each for each in entries if each.kind is Kind.FILE and each.source in workshop.contents])


def _digest_of(path: bytes) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: bytes) -> Iterator[BufferedReader]:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(os.fsdecode(path), error) from error


def _unreadable(path: str, error: OSError) -> ContextError:
    why = os.strerror(error.errno) if error.errno else str(error)
    return ContextError(f"cannot read {path}", why=why, remedy="make it readable, or leave it out with .dockerignore")
