"""What files are, for cache keys and for the names of layers: their content by digest, read once for each version."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from executor.build import copying, keys
from executor.build.copying import Source
from executor.build.workshop import Workshop
from executor.rootfs.entry import Entry, Kind
from executor.store import files
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
    for match in copying.matches(source):
        top = source.tree.entry(match.path)
        if top is not None:
            found = [each.entry for each in copying.reached(source, top, exclude)]
            if source.context:
                found = [replace(each, xattrs=()) if each.xattrs else each for each in found]
            parts.append((match.name, content_key(workshop, found)))
    return tuple(parts)


def layer_name(workshop: Workshop, entries: Sequence[Entry]) -> str:
    """The name of the layer that ``entries`` make: equal names, equal bytes of the archive."""
    digests = contents(workshop, [each for each in entries if each.kind is Kind.FILE]).digests
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


def contents(workshop: Workshop, entries: Iterable[Entry]) -> Contents:
    """What is in the files ``entries``: read once, and again only when a file's status changed.

    Raises ``ContextError`` for a file whose content is another than earlier in this job.
    """
    found: dict[bytes, str] = {}
    linked: dict[bytes, bytes] = {}
    first: dict[tuple[int, int], bytes] = {}
    asked: list[tuple[bytes, bytes]] = []
    sources: list[bytes] = []
    read_at = files.now()
    for entry in entries:
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
    for source, content in found.items():
        if workshop.contents.setdefault(source, content) != content:
            raise ContextError(f"{os.fsdecode(source)} changed during the build", remedy="build again")
    return Contents(found, linked)


def unchanged(workshop: Workshop, entries: Iterable[Entry]) -> None:
    """Raise ``ContextError`` when a file of ``entries`` is no longer what this job's keys and names say that it is.

    To be called after the files were read for good: else a file that is edited while it is built, and put back later,
    would be found in the cache with the edit.
    """
    contents(workshop, [each for each in entries if each.kind is Kind.FILE and each.source in workshop.contents])


def _digest_of(path: bytes) -> str:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ContextError(f"cannot read {os.fsdecode(path)}", why=error.strerror or str(error)) from error
