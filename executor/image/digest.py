"""Digests: ``algorithm:hex``, as the OCI image specification's descriptor.md defines them."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from platforms.errors import ArchiveError

_VALID: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


def check_digest(text: object) -> str:
    """Return ``text`` if it is a well-formed digest of a supported algorithm. Raises ``ArchiveError``.

    A digest becomes a path in the store and a part of URLs, so nothing else is accepted.
    """
    if isinstance(text, str) and _VALID.fullmatch(text):
        return text
    raise ArchiveError(f"not a digest: {str(text)[:100]!r}", why="a digest is sha256: or sha512: and lower-case hex")


def sha256(data: bytes) -> str:
    """Return the sha256 digest of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def chain_id(diff_ids: tuple[str, ...]) -> str:
    """Return the chain id of a stack of layers (image-spec config.md, "Layer ChainID"); "" for no layers."""
    chain = ""
    for diff_id in diff_ids:
        chain = sha256(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain
