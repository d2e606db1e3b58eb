"""Which images of a release are built, and in which order: those that were asked for, and what they depend on."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from executor.registry import reference
from orchestrator.release.model import DEFAULT_GROUP, MOST, Release, ReleaseImage
from platforms import host, parsing
from platforms.errors import KanifoldError, UsageError
from platforms.platform import Platform


class Only(msgspec.Struct, frozen=True):
    """``--only KEY=VALUE[,VALUE…]``: of all images, those whose ``platform`` or matrix value is one of these."""

    key: str
    values: tuple[str, ...]


class SelectedImages(msgspec.Struct, frozen=True):
    """The images to build."""

    images: tuple[ReleaseImage, ...]
    """Each after those that it depends on."""
    wanted: frozenset[str]
    """The names of those that were asked for. The others are built for them, and not published."""
    narrowed: bool = False
    """Whether some platforms of an image are left out."""


def only(text: str, flag: str) -> Only:
    """Parse ``KEY=VALUE[,VALUE…]``."""
    key, _, values = text.partition("=")
    found = tuple(filter(None, values.split(",")))
    if not key or not found:
        raise UsageError(f"{flag} {text!r} is not KEY=VALUE", remedy="such as platform=linux/arm64, or python=3.13")
    if key == "platform":
        found = tuple(map(str, parsing.parse_list([values])))
    return Only(key, found)


def platforms(image: ReleaseImage) -> tuple[Platform, ...]:
    """Return the platforms of ``image``. Raises ``UsageError``."""
    try:
        return parsing.parse_list(image.platforms) or (host.default_platform(),)
    except UsageError as error:
        raise refused(image, error) from error


def refused(image: ReleaseImage, error: KanifoldError) -> KanifoldError:
    """Return ``error`` as one about ``image``."""
    problem = error.problem
    return KanifoldError.of(replace(problem, what=f"{image.name}: {problem.what}", where=problem.where or image.where))


def select(release: Release, names: Sequence[str], filters: Sequence[Only]) -> SelectedImages:
    """Return the images ``names``, of groups and images, or by default the group ``default``, else all.

    Raises ``UsageError`` for an unknown name, for a filter that matches nothing, for a cycle of dependencies, and for
    two images with one tag.
    """
    chosen = names or (
        (DEFAULT_GROUP,) if release.group(DEFAULT_GROUP) else tuple(each.name for each in release.images)
    )
    if len(release.images) > MOST or len(release.groups) > MOST:
        raise UsageError(f"{release.file} is too large", why=f"it has more than {MOST} images or groups")
    wanted: dict[str, None] = {}
    for name in chosen:
        _collect(release, name, (), wanted)
    known = {each.name: each for each in release.images}
    kept = {name: known[name] for name in wanted if name in known}
    for each in filters:
        kept = _filtered(kept, each)
    ordered: dict[str, ReleaseImage] = {}
    for name in kept:
        _order(known | kept, name, (), ordered)
    found = _with_platforms(ordered, frozenset(kept))
    _check_tags([image for image in found if image.name in kept])
    for image in found:
        platforms(image)
    return SelectedImages(found, frozenset(kept), any(each.key == "platform" for each in filters))


def _collect(release: Release, name: str, above: tuple[str, ...], found: dict[str, None]) -> None:
    """Add the names of the images that ``name`` is or has to ``found``, and those of the groups."""
    if name in above:
        raise UsageError(f"{release.file}: the group {name} has itself as a member: {' -> '.join((*above, name))}")
    if name in found:
        return
    group = release.group(name)
    if group is None and release.image(name) is None:
        known = (*(each.name for each in release.groups), *(each.name for each in release.images))
        raise UsageError(
            f"{release.file} has neither an image nor a group {name}{hint(name, known)}",
            remedy=f"it has {', '.join(known)}",
        )
    for each in group.members if group is not None else ():
        _collect(release, each, (*above, name), found)
    found[name] = None


def _filtered(images: dict[str, ReleaseImage], each: Only) -> dict[str, ReleaseImage]:
    """Return the ``images`` that ``each`` keeps, with the platforms that it keeps."""
    if each.key == "platform":
        offered = dict.fromkeys(str(platform) for image in images.values() for platform in platforms(image))
    else:
        axes = dict.fromkeys(axis for image in images.values() for axis, _ in image.matrix)
        if each.key not in axes:
            raise UsageError(
                f"--only {each.key}=: no image has such an axis{hint(each.key, ('platform', *axes))}",
                remedy=f"there are {', '.join(('platform', *axes))}",
            )
        offered = dict.fromkeys(dict(image.matrix).get(each.key, "") for image in images.values())
    for value in each.values:
        if value not in offered:
            raise UsageError(
                f"--only {each.key}={value}: no image has it{hint(value, tuple(offered))}",
                remedy=f"there are {', '.join(filter(None, offered))}",
            )
    if each.key != "platform":
        return {name: image for name, image in images.items() if dict(image.matrix).get(each.key) in each.values}
    found = {}
    for name, image in images.items():
        left = tuple(str(platform) for platform in platforms(image) if str(platform) in each.values)
        if left:
            found[name] = narrowed(image, left)
    return found


def narrowed(image: ReleaseImage, kept: tuple[str, ...]) -> ReleaseImage:
    """Return ``image`` for the platforms ``kept`` alone, without annotations of others."""
    dropped = {str(each) for each in platforms(image)} - set(kept)
    annotations = tuple(
        each for each in image.annotations if not any(f"[{platform}]" in each.partition("=")[0] for platform in dropped)
    )
    return replace(image, platforms=kept, annotations=annotations)


def _order(images: dict[str, ReleaseImage], name: str, above: tuple[str, ...], found: dict[str, ReleaseImage]) -> None:
    """Add the image ``name`` to ``found``, after all that it depends on."""
    if name in found:
        return
    image = images[name]
    if name in above:
        cycle = " -> ".join((*above[above.index(name) :], name))
        raise UsageError(f"{name}: images depend on each other in a cycle", why=cycle, where=image.where)
    for each in image.depends_on:
        if each not in images:
            raise UsageError(
                f"{name} depends on {each}, which is no image of the release{hint(each, tuple(images))}",
                remedy=f"there are {', '.join(images)}",
                where=image.where,
            )
        _order(images, each, (*above, name), found)
    found[name] = image


def _with_platforms(ordered: dict[str, ReleaseImage], wanted: frozenset[str]) -> tuple[ReleaseImage, ...]:
    """Return ``ordered``; of images that are only built for others, the platforms that these need.

    Those are the platforms of the others and, for stages of it, this machine's, as far as the image has them.
    """
    found = dict(ordered)
    for name, image in reversed(ordered.items()):
        if name in wanted:
            continue
        users = [each for each in found.values() if name in each.depends_on]
        needed = {str(each) for user in users for each in platforms(user)} | {str(host.default_platform())}
        kept = tuple(str(each) for each in platforms(image) if str(each) in needed)
        found[name] = narrowed(image, kept) if kept else image
    return tuple(found.values())


def _check_tags(images: Sequence[ReleaseImage]) -> None:
    owners: dict[str, str] = {}
    for image in images:
        for text in image.tags:
            try:
                tag = str(reference.parse(text).completed())
            except UsageError as error:
                raise refused(image, error) from error
            owner = owners.setdefault(tag, image.name)
            if owner != image.name:
                raise UsageError(
                    f"two images have the tag {text}: {owner} and {image.name}",
                    remedy="give each a tag of its own, for example with a value of its matrix in it",
                    where=image.where,
                )


def matching(images: Sequence[ReleaseImage], pattern: str) -> tuple[str, ...]:
    """Return the names of ``images`` that match ``pattern``, which may have ``*``, ``?`` and ``[…]``."""
    return tuple(each.name for each in images if fnmatch.fnmatchcase(each.name, pattern))
