"""Names of images as users write them: a reference to a registry, an OCI image layout, or an archive of one.

registry.example.com/app:1, docker://…      a registry (docker://, docker-image:// as skopeo and buildx write it)
oci-layout://DIR[:TAG][@DIGEST], oci:DIR    a layout in a directory
oci-archive:FILE[:TAG][@DIGEST]             a layout in a tar file
./DIR, /DIR, ./FILE.tar                     either, by what is there; what is not there yet, by its name
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from executor.image.digest import check_digest
from executor.registry import reference
from executor.registry.reference import Reference
from platforms.errors import ArchiveError, UsageError

_IN_REGISTRY: Final = ("docker://", "docker-image://")
_IN_DIRECTORY: Final = ("oci-layout://", "oci-layout:", "oci://", "oci:")
_IN_FILE: Final = ("oci-archive://", "oci-archive:")
_ELSEWHERE: Final = ("docker-daemon:", "containers-storage:", "docker-archive:", "dir:", "ostree:", "sif:", "tarball:")
"""Transports of containers/image that hold no OCI layout."""


class RegistryName(msgspec.Struct, frozen=True):
    """An image in a registry, by tag or digest."""

    reference: Reference

    def __str__(self) -> str:
        return self.reference.familiar()


class LayoutName(msgspec.Struct, frozen=True):
    """An image in an OCI layout. ``tag`` and ``digest`` are "" when the text had none."""

    path: str
    tag: str = ""
    digest: str = ""
    archive: bool = False
    """Whether ``path`` is a tar file rather than a directory."""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{'oci-archive:' if self.archive else 'oci-layout://'}{self.path}{tag}{digest}"


ImageName = RegistryName | LayoutName


def parse(text: str) -> ImageName:
    """Parse the name of an image to be read. Raises ``UsageError``."""
    for transport in _ELSEWHERE:
        if text.startswith(transport):
            raise UsageError(
                f"cannot use {text[:200]!r}",
                why=f"{transport} is not a registry, an OCI layout or an archive of one",
                remedy="use REF, oci-layout://DIR[:TAG] or oci-archive:FILE[:TAG]",
            )
    for transport in _IN_REGISTRY:
        if text.startswith(transport):
            return RegistryName(reference.parse(text.removeprefix(transport)).completed())
    for transport in (*_IN_DIRECTORY, *_IN_FILE):
        if text.startswith(transport):
            return _layout(text.removeprefix(transport), archive=transport in _IN_FILE)
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        found = _layout(text, archive=False)
        return LayoutName(found.path, found.tag, found.digest, _is_archive(found.path))
    return RegistryName(reference.parse(text).completed())


def parse_target(text: str) -> ImageName:
    """Parse the name of an image to be written. Raises ``UsageError``, also for one with a digest."""
    name = parse(text)
    if name.reference.digest if isinstance(name, RegistryName) else name.digest:
        raise UsageError(
            f"cannot write to {text[:200]!r}", why="its digest is what its content comes to", remedy="name a tag"
        )
    return name


def _layout(text: str, *, archive: bool) -> LayoutName:
    """Split ``PATH[:TAG][@DIGEST]``; a path that exists as written has neither."""
    if not text:
        raise UsageError("an image layout has no path", remedy="write oci-layout://DIR[:TAG]")
    if os.path.lexists(text):
        return LayoutName(text, archive=archive)
    path, at, digest = text.rpartition("@")
    if at and digest.startswith(("sha256:", "sha512:")):
        try:
            check_digest(digest)
        except ArchiveError as error:
            raise UsageError(f"invalid image name {text[:200]!r}", why=str(error)) from error
    else:
        path, digest = text, ""
    tag = ""
    if path.rfind(":") > path.rfind("/") and not os.path.lexists(path):
        path, _, tag = path.rpartition(":")
        reference.Reference("localhost", "image").with_tag(tag)
    if not path:
        raise UsageError(f"invalid image name {text[:200]!r}", why="it has no path")
    return LayoutName(path, tag, digest, archive)


def _is_archive(path: str) -> bool:
    return os.path.isfile(path) or (path.endswith(".tar") and not os.path.isdir(path))
