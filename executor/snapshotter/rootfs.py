"""The root file system of a step as a value, made by snapshotters and interpreted by ``executor.sandbox.roots``.

Paths are absolute paths of this host.
"""

from __future__ import annotations

import msgspec


class Overlay(msgspec.Struct, frozen=True):
    """An overlay mount, which the step's process makes."""

    lower: tuple[str, ...]
    """The lower directories, TOP FIRST; may be empty. At most 500 (the kernel's limit is about that)."""
    upper: str
    """The upper directory: empty, and with the root directory's owner and mode. It receives the changes."""
    work: str
    """The work directory: empty, on the same file system as ``upper``; empty again afterwards."""


class Directory(msgspec.Struct, frozen=True):
    """A directory with all files, written in place."""

    path: str
    """The records beside it are those of all files (``records``)."""


Rootfs = Overlay | Directory

KINDS = (Overlay, Directory)
