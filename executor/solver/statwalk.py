"""Walks the files that source arguments of COPY and ADD match, with lstat(2). No file is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from itertools import islice
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.protocol import ContextPattern
from executor.rootfs.entry import Entry, Kind
from executor.rootfs.tree import Tree
from executor.solver import copying
from executor.solver.copying import CopySource, Match, WalkEntry, normal_path
from executor.store import stat_cache
from executor.store.spool import SpooledList
from platforms.errors import ContextError

TOGETHER: Final = 2000
"""Files that are walked, looked up, read and recorded in one batch."""


def source_of(tree: Tree, text: str, *, parents: bool, context: bool) -> CopySource:
    """Return the source argument ``text`` for ``tree``. ``context``: whether that is a build context."""
    if not parents:
        return CopySource(tree, normal_path("/", text), context=context)
    pivot, dot, below = text.partition("/./")
    if not dot:
        pivot, below = "/", text
    pattern = normal_path("/", below)
    required = not copying.has_wildcards(pivot) and not copying.has_wildcards(pattern)
    return CopySource(tree, normal_path("/", pivot), include=(pattern.lstrip("/"),), required=required, context=context)


class MatchedPath(msgspec.Struct, frozen=True, array_like=True):
    """A match of a source, with what is at its path, and the number of entries that are copied for it."""

    match: Match
    top: Entry
    count: int


class StatWalk(msgspec.Struct, frozen=True):
    """The files that a source matches, with their lstat(2) results."""

    chosen: SpooledList[MatchedPath]
    reached: SpooledList[WalkEntry]
    signature: str
    """The SHA-256 (hex) of every status; "" where a status says nothing about the content."""
    at: int
    """When it began, ``files.now()``."""
    tree: Tree


# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_CHOSEN: Final[msgspec.msgpack.Decoder[list[MatchedPath]]] = msgspec.msgpack.Decoder(list[MatchedPath])
REACHED: Final[msgspec.msgpack.Decoder[list[WalkEntry]]] = msgspec.msgpack.Decoder(list[WalkEntry])


def walk(directory: str, source: CopySource, exclude: tuple[str, ...], check: Callable[[], None]) -> StatWalk:
    """Walk the files that ``source`` matches, without those that match ``exclude``.

    Large results are kept in a file in ``directory``. ``check`` raises an exception on cancellation. Raises
    ``ContextError`` for files that cannot be read.
    """
    chosen, found = SpooledList(_CHOSEN, directory), SpooledList(REACHED, directory)
    digest = hashlib.sha256()
    telling = True
    at = stat_cache.now()
    source.tree.expect(pattern_of(source, exclude))
    try:
        for match in copying.matches(source):
            top = copying.top_of(source, match)
            count = len(found)
            entries = copying.walk_entries(source, top, exclude)
            while some := list(islice(entries, TOGETHER)):
                check()
                if source.context:
                    some = [_bare(each) if each.entry.xattrs else each for each in some]
                digest.update(msgspec.msgpack.encode(some))
                telling = telling and all(each.entry.stamp or each.entry.kind is not Kind.FILE for each in some)
                for each in some:
                    found.append(each)
            row = MatchedPath(match, top, len(found) - count)
            digest.update(msgspec.msgpack.encode(row))
            chosen.append(row)
    except OSError as error:
        raise unreadable(os.fsdecode(error.filename or source.pattern), error) from error
    return StatWalk(chosen, found, digest.hexdigest() if telling else "", at, source.tree)


def pattern_of(source: CopySource, exclude: tuple[str, ...]) -> ContextPattern:
    """Return what is looked up in the tree of ``source``."""
    include, excluded = tuple(map(_bytes, source.include)), tuple(map(_bytes, exclude))
    return ContextPattern(_bytes(source.pattern), source.wildcards, include, excluded)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _bare(found: WalkEntry) -> WalkEntry:
    """Return ``found`` without extended attributes, which are ignored in a context."""
    return replace(found, entry=replace(found.entry, xattrs=()))


def unreadable(path: str, error: OSError) -> ContextError:
    """Return the ``ContextError`` for ``error`` at ``path``."""
    why = os.strerror(error.errno) if error.errno else str(error)
    return ContextError(f"cannot read {path}", why=why, remedy="make it readable, or leave it out with .dockerignore")
