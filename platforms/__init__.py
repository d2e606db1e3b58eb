"""Names of platforms, what this host can run natively or by emulation, system calls, and the errors of all packages."""

from __future__ import annotations

from platforms.loading import without

# msgspec takes from typing_extensions, where that is installed, what typing has had since Python 3.11, and loading it
# takes about as long as msgspec itself. So this comes before anything else that loads msgspec.
with without("typing_extensions"):
    import msgspec as _  # noqa: F401

from platforms.platform import Platform, candidates, extended, normalise, satisfies, select

__all__ = ["Platform", "candidates", "extended", "normalise", "satisfies", "select"]
