"""Sends an image's file system as an archive, for the outputs ``type=local`` and ``type=tar``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.conversation import Conversation
from executor.rootfs import moment, tarwriter
from executor.rootfs.entry import Entry, Kind, hard_link
from executor.rootfs.tree import Tree
from executor.solver.lifetime import Cancellation
from platforms.errors import BuildError


class Sender(msgspec.Struct, frozen=True):
    """Sends file systems to the orchestrator."""

    conversation: Conversation
    cancellation: Cancellation
    epoch: int | None
    """SOURCE_DATE_EPOCH, seconds."""

    def send(self, tree: Tree, prefix: str) -> None:
        """Send ``tree``, in the directory ``prefix`` unless that is "" (``protocol.FilesRequest``)."""
        try:
            tarwriter.write_open(entries(tree, os.fsencode(prefix), self.epoch), self._piece)
        except OSError as error:
            raise BuildError("cannot read the image's files", why=error.strerror or str(error)) from error
        self.conversation.send(protocol.Piece())

    def _piece(self, block: bytes | memoryview) -> None:
        self.cancellation.check()
        self.conversation.send(protocol.Piece(len(block)), block)


def entries(tree: Tree, prefix: bytes = b"", epoch: int | None = None) -> Iterator[Entry]:
    """All that is in ``tree``, one entry at a time, in the directory ``prefix``.

    With ``epoch`` (SOURCE_DATE_EPOCH, seconds) that is the time of everything, as it is in BuildKit's exporters.
    """
    above = prefix + b"/" if prefix else b""
    linked: dict[tuple[int, int], bytes] = {}
    if prefix:
        yield Entry(prefix, Kind.DIRECTORY, mode=0o755, mtime_ns=moment.nanoseconds(epoch))
    waiting = [tree.entries(b"")]
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
            continue
        path = entry.path
        name = above + path
        if entry.inode != (0, 0):
            first = linked.setdefault(entry.inode, name)
            if first != name:
                entry = hard_link(entry, name, first)
        if epoch is not None:
            entry = replace(entry, mtime_ns=epoch * 1_000_000_000)
        yield replace(entry, path=name)
        if entry.kind is Kind.DIRECTORY:
            waiting.append(tree.entries(path))
