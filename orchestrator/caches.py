"""``--cache-from``, ``--cache-to`` and ``--cache-repo``: parsing references to remote caches, in buildx's syntax.

Keys of buildx that request what kanifold does anyway are accepted: entries are OCI image manifests, layers have the
build's compression, and failures are warnings. Other values are errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from executor.dockerfile.suggestions import hint
from executor.protocol import CacheExport, CacheInDirectory, CacheInImage, CacheInRegistry, CacheLocation, Compression
from executor.registry import reference
from orchestrator import fields
from platforms.errors import UsageError


def _cache_repo(ref: str) -> tuple[str, ...]:
    return (f"type=registry,ref={ref},mode=max",) if ref else ()


_KEYS: Final = (
    "type", "ref", "mode", "compression", "compression-level", "force-compression", "oci-mediatypes", "image-manifest",
    "ignore-error", "registry.insecure",
)  # fmt: skip


class Cache(msgspec.Struct, frozen=True):
    """One ``--cache-from`` or ``--cache-to``, as it was given."""

    to: CacheLocation | CacheInImage
    flag: str
    every_stage: bool = False
    """Whether ``mode=max`` was given."""
    compression: str = ""
    level: int | None = None
    insecure: str = ""
    """The registry for which TLS is not verified; "" for none."""


def parse(flags: Mapping[str, Any]) -> tuple[Cache, ...]:
    """Return the caches in ``flags``. Raises ``UsageError``."""
    whole = _cache_repo(flags["cache_repo"])
    return tuple(
        _cache(text, flag, path_key)
        for flag, path_key, texts in (
            ("--cache-from", "src", (*flags["cache_from"], *whole)),
            ("--cache-to", "dest", (*flags["cache_to"], *whole)),
        )
        for text in texts
    )


def sources(caches: Iterable[Cache]) -> tuple[CacheLocation, ...]:
    """Return the caches to import from."""
    return tuple(each.to for each in caches if each.flag == "--cache-from" and not isinstance(each.to, CacheInImage))


def exports(caches: Iterable[Cache]) -> tuple[CacheExport, ...]:
    """Return the caches to export to."""
    return tuple(CacheExport(each.to, each.every_stage) for each in caches if each.flag == "--cache-to")


def _cache(text: str, flag: str, path_key: str) -> Cache:
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
        case "inline" if flag == "--cache-to":
            to = CacheInImage()
        case kind:
            raise UsageError(
                f"{flag}: type={kind!r} is not supported{hint(kind, ('registry', 'local', 'inline'))}",
                remedy="use registry, local or, for --cache-to, inline",
            )
    if isinstance(to, CacheInRegistry):
        reference.parse(to.name)
    return Cache(to, flag, mode == "max", values.get("compression", ""), int(level) if level else None, registry)


def check(caches: Iterable[Cache], compression: Compression) -> None:
    """Raise ``UsageError`` for a cache with another compression than the image, whose layers it contains."""
    for each in caches:
        if each.flag != "--cache-to":
            continue
        other = each.compression not in ("", compression.kind)
        if other or each.level not in (None, compression.level):
            raise UsageError(
                f"{each.flag}: a cache has the compression of the image",
                why=f"that is {compression.kind}, since its layers are the same",
                remedy="--compression, or compression= of an output, holds for both",
            )
