"""``--cache-from``, ``--cache-to`` and ``--cache-repo``: parsing references to remote caches, in buildx's syntax.

Keys of buildx that request what kanifold does anyway are accepted: entries are OCI image manifests, layers have the
build's compression, and failures are warnings. Other values are errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import msgspec

from executor.dockerfile.suggestions import hint
from executor.protocol import CacheExport, CacheInDirectory, CacheInImage, CacheInRegistry, CacheLocation, Compression
from executor.registry import reference
from orchestrator import fields
from platforms.errors import UsageError

_KEYS: Final = (
    "type", "ref", "mode", "compression", "compression-level", "force-compression", "oci-mediatypes", "image-manifest",
    "ignore-error", "registry.insecure",
)  # fmt: skip


class Cache(msgspec.Struct, frozen=True):
    """One ``--cache-from`` or ``--cache-to``, as it was given."""

    to: CacheLocation | CacheInImage
    every_stage: bool = False
    """Whether ``mode=max`` was given."""
    compression: str = ""
    level: int | None = None
    insecure: str = ""
    """The registry for which TLS is not verified; "" for none."""


def source(text: str, flag: str) -> Cache:
    """``--cache-from``: a cache to ask. Raises ``UsageError``."""
    return _read(text, flag, "src", inline=False)


def target(text: str, flag: str) -> Cache:
    """``--cache-to``: a cache to write. Raises ``UsageError``."""
    return _read(text, flag, "dest", inline=True)


def repository(ref: str, _flag: str) -> tuple[Cache, ...]:
    """``--cache-repo``: a cache that is asked and written, if there is a ``ref``. Raises ``UsageError``."""
    if not ref:
        return ()
    reference.parse(ref)
    return (Cache(CacheInRegistry(ref), every_stage=True),)


def locations(caches: Iterable[Cache]) -> tuple[CacheLocation, ...]:
    """Where the ``caches`` to ask are."""
    return tuple(each.to for each in caches if not isinstance(each.to, CacheInImage))


def exports(caches: Iterable[Cache]) -> tuple[CacheExport, ...]:
    """What is written to the ``caches``."""
    return tuple(CacheExport(each.to, each.every_stage) for each in caches)


def _read(text: str, flag: str, path_key: str, *, inline: bool) -> Cache:
    if "=" not in text:
        text = f"type=registry,ref={text}"
    values = fields.parse(text, flag, (*_KEYS, path_key))
    mode = values.get("mode", "min")
    if mode not in ("min", "max"):
        raise UsageError(f"{flag}: mode={mode!r} is neither min nor max")
    for key in ("oci-mediatypes", "image-manifest"):
        if not fields.truth(values, key, flag, default=True):
            raise UsageError(
                f"{flag}: {key}=false cannot be had", why="each entry of a cache is an OCI image manifest of its own"
            )
    fields.truth(values, "force-compression", flag, default=False)  # always so: layers have the build's compression
    if not fields.truth(values, "ignore-error", flag, default=True):
        raise UsageError(f"{flag}: ignore-error=false cannot be had", why="what is wrong with a cache is a warning")
    level = values.get("compression-level", "")
    if level and not level.isdigit():
        raise UsageError(f"{flag}: compression-level={level!r} is not a number")
    insecure = fields.truth(values, "registry.insecure", flag, default=False)
    to: CacheLocation | CacheInImage
    registry = ""
    match values.get("type", ""):
        case "registry":
            if "ref" not in values:
                raise UsageError(f"{flag}: type=registry needs ref=")
            to = CacheInRegistry(values["ref"])
            registry = reference.parse(values["ref"]).registry if insecure else ""
        case "local":
            if path_key not in values:
                raise UsageError(f"{flag}: type=local needs {path_key}=")
            to = CacheInDirectory(os.path.abspath(values[path_key]))
        case "inline" if inline:
            to = CacheInImage()
        case kind:
            raise UsageError(
                f"{flag}: type={kind!r} is not supported{hint(kind, ('registry', 'local', 'inline'))}",
                remedy="use registry, local or, for --cache-to, inline",
            )
    if isinstance(to, CacheInRegistry):
        reference.parse(to.name)
    return Cache(to, mode == "max", values.get("compression", ""), int(level) if level else None, registry)


def check(targets: Iterable[Cache], compression: Compression) -> None:
    """Refuse a cache to write that wants other layers than the image's: it holds those."""
    for each in targets:
        other = each.compression not in ("", compression.kind)
        if other or each.level not in (None, compression.level):
            raise UsageError(
                "--cache-to: a cache has the compression of the image",
                why=f"that is {compression.kind}, since its layers are the same",
                remedy="--compression, or compression= of an output, holds for both",
            )
