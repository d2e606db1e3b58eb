"""The root file system of a step as a value: made by a snapshotter, put together by the sandbox, nobody else's matter.

Paths are absolute ones of this host.
"""

from __future__ import annotations

import msgspec


class Overlay(msgspec.Struct, frozen=True):
    """An overlay mount that is still to be made."""

    lower: tuple[str, ...]
    """The lower directories, TOP FIRST; may be empty. At most 500 (the kernel's limit is about that)."""
    upper: str
    """The upper directory: empty, and with the root directory's owner and mode. It gets what the step changes."""
    work: str
    """The work directory: empty, on the same file system as ``upper``; empty again afterwards."""


class Directory(msgspec.Struct, frozen=True):
    """A directory that holds all files, which is written to in place."""

    path: str
    """Beside it is recorded what the kernel refused to set on any of them (``records``)."""


Rootfs = Overlay | Directory

KINDS = (Overlay, Directory)
