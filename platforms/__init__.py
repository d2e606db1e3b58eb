"""What platforms are called, what this host can run, and how the rest is emulated. Knows no image and no build."""

from __future__ import annotations

from platforms import encoding as _encoding  # noqa: F401 - before anything else loads msgspec
from platforms.platform import Platform, candidates, normalise, satisfies, select

__all__ = ["Platform", "candidates", "normalise", "satisfies", "select"]
