"""``--set IMAGE.KEY[.NAME]=VALUE``: overriding what a release file says, in the syntax of ``docker buildx bake``.

The name of the image is a pattern with ``*``. A list that is set several times has all the values; ``+=`` adds to what
the file says. A value of a mapping is set by its name: ``web.args.VERSION=2``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from orchestrator.release.build_order import matching, refused
from orchestrator.release.model import Release, ReleaseImage
from orchestrator.release.release_file import flag_fields
from platforms.errors import UsageError


class Override(msgspec.Struct, frozen=True):
    """One ``--set``."""

    pattern: str
    key: str
    name: str
    """Of a value in a mapping; "" for others."""
    value: str
    adds: bool
    text: str
    """As written."""


_LISTS: Final[Mapping[str, str]] = {
    "tags": "tags",
    "platform": "platforms",
    "platforms": "platforms",
    "annotations": "annotations",
    "no-cache-filter": "no_cache_filter",
    "ulimits": "ulimits",
    "entitlements": "entitlements",
}
_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "output": ("outputs", "outputs"),
    "outputs": ("outputs", "outputs"),
    "cache-from": ("cache_from", "cache-from"),
    "cache-to": ("cache_to", "cache-to"),
    "secret": ("secrets", "secrets"),
    "secrets": ("secrets", "secrets"),
    "ssh": ("ssh", "ssh"),
    "attest": ("attest", "attest"),
}
"""The field of an image, and the kind of flag that its values are."""
_TEXTS: Final[Mapping[str, str]] = {
    "context": "context",
    "dockerfile": "dockerfile",
    "dockerfile-inline": "dockerfile_inline",
    "target": "target",
    "network": "network",
    "shm-size": "shm_size",
    "call": "call",
}
_SWITCHES: Final[Mapping[str, str]] = {"no-cache": "no_cache", "pull": "pull"}
_MAPPINGS: Final[Mapping[str, str]] = {
    "args": "args",
    "labels": "labels",
    "contexts": "contexts",
    "extra-hosts": "extra_hosts",
}
KEYS: Final = (*_LISTS, *_FIELDS, *_TEXTS, *_SWITCHES, *_MAPPINGS, "push", "load")
_TRUTH: Final = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


def parse(text: str, flag: str) -> Override:
    """Parse ``IMAGE.KEY[.NAME]=VALUE``, or with ``+=``."""
    head, equals, value = text.partition("=")
    adds = head.endswith("+")
    pattern, _, rest = head.removesuffix("+").partition(".")
    key, _, name = rest.partition(".")
    if not equals or not pattern or not key:
        raise UsageError(f"{flag} {text!r} is not IMAGE.KEY=VALUE", remedy="such as web.args.VERSION=2, *.platform=…")
    if key not in KEYS:
        raise UsageError(f"{flag} {text}: unknown key {key!r}{hint(key, KEYS)}", remedy=f"keys are {', '.join(KEYS)}")
    if (key in _MAPPINGS) != bool(name):
        how = f"{key}.NAME" if key in _MAPPINGS else key
        raise UsageError(f"{flag} {text}: the key is {how}")
    if adds and key not in (*_LISTS, *_FIELDS):
        raise UsageError(f"{flag} {text}: += adds to a list, and {key} is none")
    return Override(pattern, key, name, value, adds, text)


def apply(release: Release, overrides: Sequence[Override]) -> Release:
    """Return ``release`` with ``overrides``. Raises ``UsageError`` for one that matches no image."""
    images = {each.name: each for each in release.images}
    replaced: set[tuple[str, str]] = set()
    for each in overrides:
        names = matching(release.images, each.pattern)
        group = release.group(each.pattern)
        if not names and group is not None:  # of a matrix
            names = tuple(name for name in group.members if name in images)
        if not names:
            raise UsageError(
                f"--set {each.text}: no image is called {each.pattern}{hint(each.pattern, tuple(images))}",
                remedy=f"there are {', '.join(images)}",
            )
        for name in names:
            fresh = (name, each.key) not in replaced and not each.adds
            replaced.add((name, each.key))
            images[name] = _overridden(images[name], each, fresh=fresh)
    return replace(release, images=tuple(images.values()))


def _overridden(image: ReleaseImage, each: Override, *, fresh: bool) -> ReleaseImage:
    """Return ``image`` with the value of ``each``, which ``fresh``ly replaces a list or is added to it."""
    key, value = each.key, each.value
    if key in _LISTS:
        field = _LISTS[key]
        values = tuple(filter(None, value.split(","))) if field == "platforms" else (value,)
        return _with(image, field, (*(() if fresh else getattr(image, field)), *filter(None, values)))
    if key in _FIELDS:
        field, kind = _FIELDS[key]
        try:
            fields = (flag_fields(kind, value),) if value else ()
        except UsageError as error:
            raise refused(image, error) from error
        return _with(image, field, (*(() if fresh else getattr(image, field)), *fields))
    if key in _TEXTS:
        return _with(image, _TEXTS[key], value)
    if key in _MAPPINGS:
        field = _MAPPINGS[key]
        return _with(image, field, tuple({**dict(getattr(image, field)), each.name: value}.items()))
    if value.lower() not in _TRUTH:
        raise UsageError(f"--set {each.text}: {value!r} is neither true nor false")
    truth = _TRUTH[value.lower()]
    if key in _SWITCHES:
        return _with(image, _SWITCHES[key], truth)
    return _PUBLISHING[key](image, truth)


def _with(image: ReleaseImage, field: str, value: object) -> ReleaseImage:
    return replace(image, **{field: value})


def with_push(image: ReleaseImage, wanted: bool) -> ReleaseImage:
    """Return ``image`` with the output ``type=registry``, or without any that pushes."""
    if not wanted:
        return replace(image, outputs=tuple(each for each in image.outputs if not _pushes(dict(each))))
    if any(_pushes(dict(each)) for each in image.outputs):
        return image
    return replace(image, outputs=(*image.outputs, (("type", "registry"),)))


def _pushes(output: dict[str, str]) -> bool:
    return output.get("type") == "registry" or output.get("push", "").lower() == "true"


def with_load(image: ReleaseImage, wanted: bool) -> ReleaseImage:
    """Return ``image`` with the output ``type=docker``, which is loaded, or without any."""
    others = tuple(each for each in image.outputs if dict(each) != {"type": "docker"})
    return replace(image, outputs=(*others, (("type", "docker"),)) if wanted else others)


_PUBLISHING: Final[Mapping[str, Callable[[ReleaseImage, bool], ReleaseImage]]] = {"push": with_push, "load": with_load}
