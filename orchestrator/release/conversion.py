"""Writing a release as ``kanifold.yaml``: what ``kanifold convert`` makes of bake files and Compose files.

Expressions, variables, matrices and inheritance were evaluated: the file says what they came to. It is read back before
it is written, so that it gives the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from orchestrator import yaml_settings
from orchestrator.release import release_file
from orchestrator.release.model import Fields, Release, ReleaseImage
from platforms.errors import UsageError

_TEXTS: Final = ("description", "dockerfile", "dockerfile_inline", "target", "network", "shm_size")
_LISTS: Final = ("platforms", "tags", "annotations", "no_cache_filter", "ulimits")
_PAIRS: Final = ("args", "contexts", "labels", "extra_hosts")
_ENTRIES: Final = ("secrets", "ssh", "cache_from", "cache_to", "outputs")
_SWITCHES: Final = ("pull", "no_cache")
_LOST: Final = ("attest", "entitlements", "call", "resources")
"""Fields that a release file has no keys for."""
_UNWRITTEN: Final = ("where", "matrix", "nodes", "tests", *_LOST)
"""Fields that are not compared: places, what bake files do not have, and what is said to be lost."""


class Converted(msgspec.Struct, frozen=True):
    """A release file, and what it could not take over: keys of images, and members of groups that are not there."""

    text: str
    lost: tuple[tuple[str, tuple[str, ...]], ...]


def convert(release: Release, file: str) -> Converted:
    """Return ``release`` as the text of ``file``. Raises ``UsageError`` if reading it would not give the same plan."""
    import yaml

    document: dict[str, Any] = {"images": {each.name: _image(each) for each in release.images}}
    known = {*(each.name for each in release.images), *(each.name for each in release.groups)}
    groups = {each.name: [name for name in each.members if name in known] for each in release.groups}
    if any(groups.values()):
        document["groups"] = {name: members for name, members in groups.items() if members}
    heading = f"# Made of {release.file} by kanifold convert.\n"
    text = heading + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    read = release_file.parsed(yaml_settings.parse(text.encode(), file), {}, {})
    for one, other in zip(release.images, read.images, strict=True):
        _compare(one, other)
    lost = [(each.name, keys) for each in release.images if (keys := _lost(each))]
    unknown = [(each.name, tuple(name for name in each.members if name not in known)) for each in release.groups]
    return Converted(text, (*lost, *((name, members) for name, members in unknown if members)))


def _lost(image: ReleaseImage) -> tuple[str, ...]:
    return tuple(name.replace("_", "-") for name in _LOST if getattr(image, name))


def _compare(one: ReleaseImage, other: ReleaseImage) -> None:
    """Raise ``UsageError`` if ``other``, which was read back, is another image than ``one``."""
    for name in ReleaseImage.__struct_fields__:
        if name in _UNWRITTEN:
            continue
        was, became = getattr(one, name), getattr(other, name)
        if name in _PAIRS:  # the time of a commit is added to arguments
            kept = {key: value for key, value in became if key in dict(was)}
            same = kept == dict(was) and (name == "args" or len(became) == len(was))
        elif name in _ENTRIES:
            same = [dict(each) for each in was] == [dict(each) for each in became]
        else:
            same = was == became
        if not same:
            raise UsageError(
                f"{one.name} cannot be written as an image of a release file",
                why=f"its {name.replace('_', '-')} would not stay what it is",
                remedy="build it from its own file: kanifold release -f FILE",
            )


def _image(image: ReleaseImage) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if image.context != ".":
        found["context"] = _escaped(image.context)
    for name in _TEXTS:
        if getattr(image, name):
            found[_key(name)] = _escaped(getattr(image, name))
    for name in _LISTS:
        if getattr(image, name):
            found[_key(name)] = list(map(_escaped, getattr(image, name)))
    for name in _PAIRS:
        pairs: Sequence[tuple[str, str | None]] = getattr(image, name)
        if pairs:
            found[_key(name)] = {key: _escaped(value or "") for key, value in pairs}
    for name in _ENTRIES:
        entries: Sequence[Fields] = getattr(image, name)
        if entries:
            found[_key(name)] = [{key: _escaped(value) for key, value in each} for each in entries]
    for name in _SWITCHES:
        if getattr(image, name) is not None:
            found[_key(name)] = getattr(image, name)
    return found


def _key(field: str) -> str:
    return field.replace("_", "-")


def _escaped(text: str) -> str:
    return text.replace("${", "$${")
