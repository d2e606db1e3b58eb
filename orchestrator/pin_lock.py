"""Files with the digests of external images: what ``kanifold pin --lock`` writes and ``kanifold build --pins`` reads.

They are JSON objects with a key that the metadata of builds has too (``--metadata-file``), so that a build can have the
images of another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

import msgspec

from executor.image.digest import check_digest
from executor.protocol import Pin
from platforms import decoding, regular
from platforms.errors import ArchiveError, StoreError, UsageError
from platforms.replacing import replacing

KEY: Final = "kanifold.pins"
"""The key: an object of digests by the names of images, as Dockerfiles write them."""
DOCKERFILE: Final = "kanifold.dockerfile"
"""The key of metadata files for the digest of the Dockerfile."""
_LIMIT: Final = 4 << 20
"""Bytes of such a file."""


def read(path: str) -> tuple[Pin, ...]:
    """The pins in the file ``path``. Raises ``UsageError``."""
    try:
        with regular.open_file(path) as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read the pins in {path}", why=error.strerror or str(error)) from error
    try:
        document = decoding.from_json(data) if len(data) <= _LIMIT else None
        found = document.get(KEY) if isinstance(document, dict) else None
        if not isinstance(found, dict):
            raise UsageError(f"{path} holds no pins", why=f"it is no JSON object with {KEY}")
        return tuple(Pin(name, check_digest(digest)) for name, digest in found.items())
    except (msgspec.DecodeError, ArchiveError) as error:
        raise UsageError(f"{path} holds no pins", why=str(error)) from error


def write(path: str, pins: Iterable[Pin]) -> None:
    """Write ``pins`` to the file ``path``. Raises ``StoreError``."""
    document = {KEY: {each.name: each.digest for each in pins}}
    try:
        with replacing(path) as file:
            file.write((json.dumps(document, indent=2) + "\n").encode())
    except OSError as error:
        raise StoreError(f"cannot write {path}", why=error.strerror or str(error)) from error
