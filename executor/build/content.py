"""What files are, for cache keys and for the names of layers: their content by digest, read once for each version."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

from executor.build import copying, keys
from executor.build.copying import Source
from executor.build.workshop import Workshop
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree
from executor.store import files
from platforms.errors import ContextError


def content_key(workshop: Workshop, entries: Sequence[Entry]) -> tuple[keys.Part, ...]:
    """What ``entries`` are, content included and times left out: touching a file is not changing it."""
    digests = file_digests(workshop, [each for each in entries if each.kind is Kind.FILE])
    return tuple(
        (
            entry.path,
            entry.kind.value,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.link,
            entry.device,
            entry.xattrs,
            digests.get(entry.source, ""),
        )
        for entry in entries
    )


def layer_name(workshop: Workshop, entries: Sequence[Entry]) -> str:
    """The name of the layer that ``entries`` make: equal names, equal bytes of the archive."""
    digests = file_digests(workshop, [each for each in entries if each.kind is Kind.FILE])
    return keys.key(
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
                digests.get(entry.source, ""),
            )
            for entry in entries
        ),
        workshop.order.epoch,
    )


def file_digests(workshop: Workshop, entries: Iterable[Entry]) -> dict[bytes, str]:
    """The SHA-256 of each entry's content by its ``source``: read once, and again only when a file's status changed."""
    found: dict[bytes, str] = {}
    asked: list[tuple[bytes, bytes]] = []
    sources: list[bytes] = []
    read_at = files.now()
    for entry in entries:
        status = os.lstat(entry.source)
        stamp = files.stamp(status)
        known = workshop.digests.get(stamp)
        if known is not None:
            found[entry.source] = known
        else:
            sources.append(entry.source)
            asked.append((b"%d:%d" % (status.st_dev, status.st_ino), stamp))
    rows: list[tuple[bytes, bytes, str]] = []
    for source, (name, stamp), digest in zip(sources, asked, files.get(workshop.store, asked), strict=True):
        content = digest
        if content is None:
            workshop.check()
            content = _digest_of(source)
            rows.append((name, stamp, content))
        found[source] = workshop.digests[stamp] = content
    if rows:
        files.put(workshop.store, rows, read_at=read_at)
    return found


def _digest_of(path: bytes) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(os.fsdecode(path), error) from error


def _unreadable(path: str, error: OSError) -> ContextError:
    why = os.strerror(error.errno) if error.errno else str(error)
    return ContextError(f"cannot read {path}", why=why, remedy="make it readable, or leave it out with .dockerignore")


def selected(source: Source) -> tuple[Entry, ...]:
    """Everything that ``source`` names, with paths from the tree's root: what its content key is taken over."""
    found: list[Entry] = []
    try:
        for match in copying.matches(source):
            entry = source.tree.entry(match.path)
            if entry is not None:
                _walk(source.tree, entry, found)
    except OSError as error:
        raise _unreadable(os.fsdecode(error.filename or source.pattern), error) from error
    return tuple(found)


def _walk(tree: Tree, entry: Entry, found: list[Entry]) -> None:
    found.append(entry)
    if entry.kind is Kind.DIRECTORY:
        for below in tree.entries(entry.path):
            _walk(tree, below, found)
