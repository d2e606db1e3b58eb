"""A release as data: its images and groups, whichever file they were read from.

Templates, matrices, inheritance and overrides were applied by the reader: every value is final, except paths, which are
relative to ``Release.directory``. Values have the forms of a bake file, so that each reader of files makes the same.
"""

from __future__ import annotations

from typing import Final

import msgspec

from platforms.errors import Location

MOST: Final = 400
"""Maximum number of images of a release, and of groups."""
IMAGE_CONTEXT: Final = "target:"
"""Begins the value of a named context that is another image of the release: ``target:NAME``."""
DEFAULT_GROUP: Final = "default"
"""The group that is built if nothing is named."""

Pairs = tuple[tuple[str, str], ...]
Fields = Pairs
"""``key=value,key=value`` of a flag (an output, a cache, a secret), by key and in the order as written."""


class ImageTest(msgspec.Struct, frozen=True):
    """A test of an image, done for each platform. Exactly one of ``run``, ``command`` and ``script`` is given."""

    name: str
    run: str = ""
    """A line for the image's shell."""
    command: tuple[str, ...] = ()
    """A program of the image, and its arguments."""
    script: tuple[str, ...] = ()
    """A program of this machine, and its arguments."""
    network: bool = False
    """Whether a command in the image has a network."""
    timeout: float = 600.0
    """In seconds."""
    platforms: tuple[str, ...] = ()
    """The platforms for which it is done; () for all."""
    where: Location | None = None
    """Where it is declared, for errors."""


class ReleaseImage(msgspec.Struct, frozen=True):
    """An image of a release: one Dockerfile, built for some platforms.

    ``None`` stands for what was not said, where that is not the same as an empty value or false.
    """

    name: str
    description: str = ""
    context: str = "."
    """A directory, or what ``kanifold build`` takes for one; ``target:NAME`` for the files of another image."""
    dockerfile: str = ""
    """Its path in the context; "" for the default name."""
    dockerfile_inline: str | None = None
    target: str | None = None
    platforms: tuple[str, ...] = ()
    """As written; () for this host's."""
    args: tuple[tuple[str, str | None], ...] = ()
    """None takes the value of the environment."""
    contexts: Pairs = ()
    """Named contexts; ``target:NAME`` for another image, which is built before."""
    tags: tuple[str, ...] = ()
    labels: tuple[tuple[str, str | None], ...] = ()
    annotations: tuple[str, ...] = ()
    """``[LEVEL:]KEY=VALUE``, as ``--annotation`` takes them."""
    secrets: tuple[Fields, ...] = ()
    ssh: tuple[Fields, ...] = ()
    """With the keys ``id`` and ``paths``."""
    cache_from: tuple[Fields, ...] = ()
    cache_to: tuple[Fields, ...] = ()
    outputs: tuple[Fields, ...] = ()
    attest: tuple[Fields, ...] = ()
    no_cache: bool | None = None
    no_cache_filter: tuple[str, ...] = ()
    pull: bool | None = None
    network: str | None = None
    shm_size: str | None = None
    ulimits: tuple[str, ...] = ()
    resources: Fields = ()
    """Limits of each step: ``memory``, ``cpu-quota`` and the like."""
    extra_hosts: tuple[tuple[str, str | None], ...] = ()
    entitlements: tuple[str, ...] = ()
    call: str | None = None
    nodes: tuple[str, ...] | None = None
    """The names of the nodes that it may be built on; None for those of the command line."""
    tests: tuple[ImageTest, ...] = ()
    matrix: Pairs = ()
    """The values of its matrix, by axis."""
    where: Location | None = None
    """Where it is declared, for errors."""

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The names of the images that it is built from, each once."""
        places = (self.context, *(value for _, value in self.contexts))
        found = (each.removeprefix(IMAGE_CONTEXT) for each in places if each.startswith(IMAGE_CONTEXT))
        return tuple(dict.fromkeys(found))


class Group(msgspec.Struct, frozen=True):
    """Images under one name."""

    name: str
    members: tuple[str, ...]
    """Names of images and of other groups."""
    description: str = ""


class Release(msgspec.Struct, frozen=True):
    """The images and groups that a file declares."""

    file: str
    """Its path, for messages."""
    directory: str
    """The directory that paths are relative to."""
    images: tuple[ReleaseImage, ...]
    groups: tuple[Group, ...] = ()

    def image(self, name: str) -> ReleaseImage | None:
        """Return the image ``name``."""
        return next((each for each in self.images if each.name == name), None)

    def group(self, name: str) -> Group | None:
        """Return the group ``name``."""
        return next((each for each in self.groups if each.name == name), None)
