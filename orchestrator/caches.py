"""``--cache-from``, ``--cache-to`` and ``--cache-repo``: parsing references to remote caches, in buildx's syntax.

Keys of buildx that request what kanifold does anyway are accepted: entries are OCI image manifests, and layers have the
build's compression. Other values are errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from executor.protocol import (
    CacheBounds,
    CacheExport,
    CacheInDirectory,
    CacheInImage,
    CacheInRegistry,
    CacheLocation,
    Compression,
)
from executor.registry import reference
from orchestrator import fields
from platforms.errors import UsageError

_KEYS: Final = (
    "type", "ref", "mode", "compression", "compression-level", "force-compression", "oci-mediatypes", "image-manifest",
    "ignore-error", "registry.insecure",
)  # fmt: skip
_SERVICES: Final = ("s3", "azblob", "gha")


if TYPE_CHECKING:
    from orchestrator.cache_accounts import AccountSource


class Cache(msgspec.Struct, frozen=True):
    """One ``--cache-from`` or ``--cache-to``, as it was given."""

    to: CacheLocation | CacheInImage
    every_stage: bool = False
    """Whether ``mode=max`` was given."""
    compression: str = ""
    level: int | None = None
    insecure: str = ""
    """The registry for which TLS is not verified; "" for none."""
    account: AccountSource | None = None
    bounds: CacheBounds | None = None
    required: bool = False
    """Whether ``ignore-error=false`` was given."""


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
    return tuple(CacheExport(each.to, each.every_stage, each.bounds, each.required) for each in caches)


def accounts(caches: Iterable[Cache]) -> tuple[AccountSource, ...]:
    """Where the accounts of the ``caches`` come from, one for each cache: one that is given for reading is also for
    writing, and the reverse. Raises ``UsageError`` for a cache with two."""
    found: dict[str, AccountSource] = {}
    for each in caches:
        if each.account is None:
            continue
        other = found.setdefault(each.account.name, each.account)
        if other == each.account or not each.account.is_given:
            continue
        if other.is_given:
            raise UsageError(
                f"{each.account.name} has two accounts",
                why="--cache-from and --cache-to name the same cache with different ones",
                remedy="give both the same one",
            )
        found[each.account.name] = each.account
    return tuple(found.values())


def _read(text: str, flag: str, path_key: str, *, inline: bool) -> Cache:
    if "=" not in text:
        text = f"type=registry,ref={text}"
    kind = fields.first(text, "type")
    values = fields.parse(text, flag, (*_KEYS, *_more_keys(kind, path_key)))
    mode = values.get("mode", "min")
    if mode not in ("min", "max"):
        raise UsageError(f"{flag}: mode={mode!r} is neither min nor max")
    for key in ("oci-mediatypes", "image-manifest"):
        if not fields.truth(values, key, flag, default=True):
            raise UsageError(
                f"{flag}: {key}=false cannot be had", why="each entry of a cache is an OCI image manifest of its own"
            )
    fields.truth(values, "force-compression", flag, default=False)  # always so: layers have the build's compression
    required = not fields.truth(values, "ignore-error", flag, default=True)
    level = values.get("compression-level", "")
    if level and not level.isdigit():
        raise UsageError(f"{flag}: compression-level={level!r} is not a number")
    insecure = fields.truth(values, "registry.insecure", flag, default=False)
    made = _cache(kind, values, flag, path_key, inline=inline)
    return replace(
        made,
        every_stage=mode == "max",
        compression=values.get("compression", ""),
        level=int(level) if level else None,
        insecure=made.insecure if insecure else "",
        required=required,
    )


def _more_keys(kind: str, path_key: str) -> tuple[str, ...]:
    """Return the keys of a cache of type ``kind``, beside ``_KEYS``."""
    if kind not in _SERVICES:
        return (path_key, *(("max_age", "max_size") if kind == "local" else ()))
    from orchestrator import cache_services  # rarely needed

    return cache_services.KEYS[kind]


def _cache(kind: str, values: Mapping[str, str], flag: str, path_key: str, *, inline: bool) -> Cache:
    """Return the cache of type ``kind``, by the keys of that type alone."""
    match kind:
        case "registry":
            if "ref" not in values:
                raise UsageError(f"{flag}: type=registry needs ref=")
            return Cache(CacheInRegistry(values["ref"]), insecure=reference.parse(values["ref"]).registry)
        case "local":
            if path_key not in values:
                raise UsageError(f"{flag}: type=local needs {path_key}=")
            return Cache(CacheInDirectory(os.path.abspath(values[path_key])), bounds=_bounds(values, flag))
        case "inline" if inline:
            return Cache(CacheInImage())
        case "s3" | "azblob" | "gha":
            from orchestrator import cache_services

            found = cache_services.read(kind, values, flag)
            return Cache(found.to, account=found.account, bounds=found.bounds)
        case _:
            known = ("registry", "local", *_SERVICES, *(("inline",) if inline else ()))
            raise UsageError(
                f"{flag}: type={kind!r} is not supported{hint(kind, known)}", remedy=f"use one of {', '.join(known)}"
            )


def _bounds(values: Mapping[str, str], flag: str) -> CacheBounds | None:
    """Return the bounds of a cache in a directory, which has none unless they are given."""
    if not {"max_age", "max_size"} & values.keys():
        return None
    from orchestrator import cache_services

    return cache_services.bounds(values, flag, CacheBounds(1 << 62, 1 << 40))


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
