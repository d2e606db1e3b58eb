"""``kanifold pin``: writing the current digests of external images into Dockerfiles.

The digest is that of the index, so that the Dockerfile builds for every platform. An image that is pinned is compared
with its tag: it may be current, the tag may have moved, or the digest may be the manifest of a single platform, which
is what is often copied by hand and which other platforms cannot be built from.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import stat
from collections.abc import Sequence
from enum import Enum
from typing import BinaryIO, Final

import msgspec
from msgspec.structs import replace

from executor.dockerfile import parse
from executor.dockerfile.pinning import ImageReference, image_references, rewritten
from executor.dockerfile.stages import Dockerfile
from executor.image.manifest import Descriptor, Index
from executor.image.mediatypes import INDEXES
from executor.protocol import Pin
from executor.registry import auth, reference
from executor.registry.reference import Reference
from executor.registry.registry_settings import RegistrySettings
from orchestrator import pin_lock, registries
from orchestrator.plan import NAMES
from orchestrator.registries import Registry
from orchestrator.view.stdout import print_line
from orchestrator.view.untrusted import clean_line
from platforms import regular
from platforms.errors import DockerfileError, KanifoldError, StoreError, UsageError
from platforms.paths import below
from platforms.replacing import replacing

_AT_ONCE: Final = 8
_TEXT_LIMIT: Final = 16 << 20
"""Maximum size of a Dockerfile in bytes, as for a build."""


class PinState(Enum):
    """The state of an external image."""

    CURRENT = "current"
    """Its digest is that of its tag."""
    UNPINNED = "not pinned"
    MOVED = "moved on"
    """Its tag has another digest now."""
    ONE_PLATFORM = "pinned to one platform"
    """Its digest is a manifest, and its tag is an index."""
    VARIABLE = "left alone"
    """Its name depends on build arguments."""


class ImageFinding(msgspec.Struct, frozen=True):
    """An external image and what its registry says about it."""

    image: ImageReference
    state: PinState
    digest: str = ""
    """The digest of the tag; "" for VARIABLE."""
    note: str = ""


class _ReadDockerfile(msgspec.Struct, frozen=True):
    path: str
    data: bytes
    dockerfile: Dockerfile
    references: tuple[ImageReference, ...]


class ExaminedDockerfile(msgspec.Struct, frozen=True):
    """A Dockerfile with a finding for each external image."""

    file: _ReadDockerfile
    findings: tuple[ImageFinding, ...]


NEW: Final = frozenset({PinState.UNPINNED})
UPDATED: Final = frozenset({PinState.UNPINNED, PinState.MOVED, PinState.ONE_PLATFORM})
"""The states that ``--update`` rewrites."""


def examine(paths: Sequence[str], settings: RegistrySettings) -> list[ExaminedDockerfile]:
    """Return the findings for the Dockerfiles ``paths``; a directory stands for the Dockerfile in it.

    Raises ``KanifoldError`` for a file that cannot be read and an image that cannot be resolved.
    """
    files = _read(paths)
    return [ExaminedDockerfile(file, found) for file, found in zip(files, _findings(files, settings), strict=True)]


def check(found: Sequence[ExaminedDockerfile]) -> int:
    """Print a line for each image; returns 1 unless all are pinned and current.

    An image whose name depends on build arguments is printed and not counted.
    """
    for each in found:
        for finding in each.findings:
            print_line(_line(each.file.path, finding, finding.state.value))
    good = (PinState.CURRENT, PinState.VARIABLE)
    return 0 if all(finding.state in good for each in found for finding in each.findings) else 1


def edit(found: Sequence[ExaminedDockerfile], states: frozenset[PinState]) -> list[bytes]:
    """Return each file with its images in ``states`` pinned to the digests of their tags. Raises
    ``DockerfileError``."""
    contents: list[bytes] = []
    for each in found:
        names = {finding.image: _pinned(finding) for finding in each.findings if finding.state in states}
        contents.append(rewritten(each.file.data, each.file.dockerfile, names) if names else each.file.data)
    return contents


def write(found: Sequence[ExaminedDockerfile], contents: Sequence[bytes], states: frozenset[PinState]) -> None:
    """Replace the files by ``contents``, and print a line for each image. Raises ``StoreError``."""
    for each, data in zip(found, contents, strict=True):
        if data != each.file.data:
            _write(each.file.path, data)
        for finding in each.findings:
            done = _DONE[finding.state] if finding.state in states else finding.state.value
            print_line(_line(each.file.path, finding, done))


def lock(path: str, found: Sequence[ExaminedDockerfile]) -> None:
    """Write the digests of images that are not pinned to the file ``path``; print a line for each image.

    Raises ``StoreError``.
    """
    pinned = [each for file in found for each in file.findings if each.state in NEW]
    pin_lock.write(path, (Pin(each.image.name, each.digest) for each in pinned))
    for file in found:
        for each in file.findings:
            print_line(_line(file.file.path, each, "locked to" if each.state in NEW else each.state.value))


def show(found: Sequence[ExaminedDockerfile], contents: Sequence[bytes]) -> None:
    """Print what ``write`` would change, as a unified diff."""
    for each, data in zip(found, contents, strict=True):
        before, after = (text.decode("utf-8", "replace").splitlines() for text in (each.file.data, data))
        for line in difflib.unified_diff(before, after, each.file.path, each.file.path, lineterm=""):
            print_line(line)


_DONE: Final = {PinState.UNPINNED: "pinned to", PinState.MOVED: "renewed to", PinState.ONE_PLATFORM: "renewed to"}
"""Characters of a line of a diff: a line of a Dockerfile has no more."""


def _read(paths: Sequence[str]) -> list[_ReadDockerfile]:
    found: list[_ReadDockerfile] = []
    for path, directory in dict(map(_file, paths or (".",))).items():
        try:
            with _opened(path, directory) as stream:
                data = stream.read(_TEXT_LIMIT + 1)
        except OSError as error:
            raise DockerfileError(f"cannot read the Dockerfile {path}", why=error.strerror or str(error)) from error
        dockerfile = parse(data, path)
        found.append(_ReadDockerfile(path, data, dockerfile, image_references(dockerfile)))
    return found


def _opened(path: str, directory: str) -> BinaryIO:
    """Open the Dockerfile ``path`` for reading, without following links of others.

    Links may lead anywhere in the current directory if ``path`` is in it, else in ``directory``. A file elsewhere that
    was named itself (``directory`` is "") is the user's choice, with all links.
    """
    for top in filter(None, (os.getcwd(), directory)):
        inside = os.path.relpath(path, top)
        if inside.partition("/")[0] != os.pardir:
            return regular.open_below(top, inside)
    return regular.open_file(path)


def _file(path: str) -> tuple[str, str]:
    """Return ``path``, or the Dockerfile in it if it is a directory; and that directory, else ""."""
    if not os.path.isdir(path):
        return path, ""
    for name in NAMES:
        if os.path.lexists(below(path, name)):
            return os.path.normpath(below(path, name)), path
    raise UsageError(f"there is no {NAMES[0]} in {path}", remedy="name the files: kanifold pin FILE…")


def _findings(files: Sequence[_ReadDockerfile], settings: RegistrySettings) -> list[tuple[ImageFinding, ...]]:
    """Return the findings for each reference of each file. Every image is requested once."""
    names = tuple(dict.fromkeys(each.name for file in files for each in file.references if not each.has_variables))
    by_name = {each.name: each for file in reversed(files) for each in reversed(file.references)}
    registry = registries.direct(settings, auth.docker_keychain())
    try:
        looked = dict(zip(names, asyncio.run(_resolve_all(registry, [by_name[name] for name in names])), strict=True))
    finally:
        registry.close()
    return [
        tuple(
            ImageFinding(each, PinState.VARIABLE, note="its name depends on build arguments")
            if each.has_variables
            else replace(looked[each.name], image=each)
            for each in file.references
        )
        for file in files
    ]


async def _resolve_all(registry: Registry, wanted: Sequence[ImageReference]) -> list[ImageFinding]:
    from asyncio_pool import AioPool

    pool = AioPool(size=_AT_ONCE)
    return list(await asyncio.gather(*[pool.spawn_n(asyncio.to_thread(_resolve, registry, each)) for each in wanted]))


def _resolve(registry: Registry, image: ImageReference) -> ImageFinding:
    """Return the finding for ``image``. Raises ``KanifoldError`` with its location."""
    try:
        parsed = reference.parse(image.name)
        now = registry.resolve(replace(parsed, digest="").completed())
        if not parsed.digest:
            return ImageFinding(image, PinState.UNPINNED, now.digest, _only_platform(now))
        if parsed.digest == now.digest:
            return ImageFinding(image, PinState.CURRENT, now.digest, _only_platform(now))
        pinned = registry.manifest(replace(parsed, tag=""))[0]
        if isinstance(pinned, Index) or now.media_type not in INDEXES:
            return ImageFinding(image, PinState.MOVED, now.digest)
        return ImageFinding(image, PinState.ONE_PLATFORM, now.digest, _platform_of_pin(registry, parsed, now))
    except KanifoldError as error:
        raise KanifoldError.of(replace(error.problem, where=error.problem.where or image.where)) from error


def _only_platform(now: Descriptor) -> str:
    """Return a note about a tag that is ``now``, a single manifest; "" for an index."""
    return "" if now.media_type in INDEXES else "its tag names an image for one platform, not an index"


def _platform_of_pin(registry: Registry, pinned: Reference, now: Descriptor) -> str:
    index = registry.manifest(replace(pinned, tag="", digest=now.digest))[0]
    listed = index.manifests if isinstance(index, Index) else ()
    platform = next((each.platform for each in listed if each.digest == pinned.digest), None)
    if platform is None:
        return "the manifest of one platform, of another release: other platforms cannot be built from it"
    name = "/".join(filter(None, (platform.os, platform.architecture, platform.variant)))
    return f"the manifest for {name} alone: other platforms cannot be built from it"


def _pinned(finding: ImageFinding) -> str:
    """Return the name as written, with the digest of its tag."""
    return f"{finding.image.name.partition('@')[0]}@{finding.digest}"


def _line(path: str, finding: ImageFinding, state: str) -> str:
    digest = "" if finding.state is PinState.CURRENT else finding.digest
    note = f"({finding.note})" if finding.note else ""
    words = " ".join(filter(None, (state, digest, note)))
    return clean_line(f"{path}:{finding.image.where.line}: {finding.image.name}: {words}")


def _write(path: str, data: bytes) -> None:
    """Replace the file that ``path`` leads to atomically; its mode is kept."""
    target = os.path.realpath(path)
    try:
        mode = stat.S_IMODE(os.stat(target).st_mode)
        with replacing(target) as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
    except OSError as error:
        raise StoreError(f"cannot write {path}", why=error.strerror or str(error)) from error
