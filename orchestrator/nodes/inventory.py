"""Nodes as the user has declared them."""

from __future__ import annotations

import msgspec

from platforms.platform import Platform


class NodeEntry(msgspec.Struct, frozen=True):
    """A declared node."""

    name: str
    """``[a-z0-9][a-z0-9._-]{0,62}``; ``local`` is this machine."""
    url: str
    """``ssh://[USER@]HOST[:PORT]``, or ``local``."""
    platforms: tuple[Platform, ...] = ()
    """The platforms to build on it; empty for what it says itself."""
    max_jobs: int = 0
    """How many jobs it runs at a time; 0 for as many as it has processors."""
    bootstrap: bool = True
    """Whether kanifold may be sent there if it is missing or of another version."""
    python: str = ""
    """The Python there, a path or a name on its PATH; "" for the first of a usable version."""
