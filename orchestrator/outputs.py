"""Destinations of a build: ``--output``, ``--push`` and ``--tag``, in the syntax of ``docker buildx build``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final, assert_never

import msgspec

from executor.dockerfile.suggestions import hint
from executor.protocol import CompressionKind
from platforms.errors import UsageError

DEFAULT_LAYOUT: Final = "oci-layout"
"""The directory of a build without a destination."""
DELETE: Final = "buildx.local.delete"
"""The permission (``--allow``) to delete the content of a directory outside of the current one; buildx's name."""


class ImageOptions(msgspec.Struct, frozen=True):
    """Options of outputs with images."""

    names: tuple[str, ...] = ()
    rewrite_timestamp: bool | None = None
    """Whether SOURCE_DATE_EPOCH is the upper bound of timestamps in layers; None for the default, true."""
    oci_media_types: bool = True
    compression: CompressionKind | None = None
    compression_level: int | None = None
    force_compression: bool = False
    annotations: tuple[tuple[str, str], ...] = ()
    """As written: ``annotation.KEY``, ``annotation-index.KEY``, ``annotation-manifest[PLATFORM].KEY``; and a value."""


class OciLayout(msgspec.Struct, frozen=True):
    """An OCI image layout in the directory ``dest``."""

    title: ClassVar = "OCI layout"
    dest: str
    image: ImageOptions = ImageOptions()


class OciArchive(msgspec.Struct, frozen=True):
    """An OCI image layout as the tar file ``dest``; ``-`` is stdout."""

    title: ClassVar = "OCI archive"
    dest: str
    image: ImageOptions = ImageOptions()


class DockerArchive(msgspec.Struct, frozen=True):
    """The tar file ``dest`` for ``docker load``; ``-`` is stdout."""

    title: ClassVar = "Docker archive"
    dest: str
    image: ImageOptions = ImageOptions()


class ImageStore(msgspec.Struct, frozen=True):
    """The image store of another program on this machine."""

    image: ImageOptions = ImageOptions()


class Push(msgspec.Struct, frozen=True):
    """The registries of the tags and of ``image.names``."""

    image: ImageOptions = ImageOptions()
    dangling: str = ""
    """A repository to which the result is pushed by digest only; "" for none."""
    insecure: bool = False
    """Whether TLS may be missing or not verified."""
    by_digest: bool = False
    """Whether no tag is set."""


class LocalDirectory(msgspec.Struct, frozen=True):
    """The files of the images in the directory ``dest``."""

    title: ClassVar = "directory"
    dest: str
    split: bool | None = None
    """Whether each platform has its own directory; None: if there are several platforms."""
    delete: bool = False
    """Whether the previous content of the directory is deleted."""


class LocalArchive(msgspec.Struct, frozen=True):
    """The files of the images as the tar file ``dest``; ``-`` is stdout."""

    title: ClassVar = "tar archive"
    dest: str


class CacheOnly(msgspec.Struct, frozen=True):
    """No destination."""


ImagesOutput = OciLayout | OciArchive | DockerArchive | ImageStore
"""Destinations on this machine for images with all blobs (``orchestrator.images``)."""
FilesOutput = LocalDirectory | LocalArchive
"""Destinations for the files of images (``orchestrator.file_output``)."""
Output = ImagesOutput | Push | FilesOutput | CacheOnly
"""One destination. ``title`` is the name of its format in messages."""


def image_options(output: Output) -> ImageOptions:
    """Return the image options of ``output``; the defaults if it has none."""
    match output:
        case OciLayout() | OciArchive() | DockerArchive() | ImageStore() | Push():
            return output.image
        case LocalDirectory() | LocalArchive() | CacheOnly():
            return ImageOptions()
        case _:
            assert_never(output)


def writes_stdout(output: Output) -> bool:
    """Whether it writes an archive to stdout."""
    match output:
        case OciArchive() | DockerArchive() | LocalArchive():
            return output.dest == "-"
        case OciLayout() | ImageStore() | Push() | LocalDirectory() | CacheOnly():
            return False
        case _:
            assert_never(output)


class _Given(msgspec.Struct, frozen=True):
    """The keys of ``--output`` besides ``type``."""

    values: Mapping[str, str]
    annotations: tuple[tuple[str, str], ...]
    push: bool
    """Whether ``--push`` was given too."""

    @property
    def dest(self) -> str:
        """A path, ``-`` for stdout, or "" if there is none."""
        return self.values.get("dest", "")

    def truth(self, key: str, default: bool) -> bool:
        """Return the boolean value of ``key``, or ``default``."""
        text = self.values.get(key)
        if text is None:
            return default
        if text.lower() in ("true", "1", "t", ""):
            return True
        if text.lower() in ("false", "0", "f"):
            return False
        raise UsageError(f"--output: {key}={text!r} is neither true nor false")


def _image(given: _Given, *, oci: bool = True) -> ImageOptions:
    """Return the image options; ``oci`` is the default for OCI media types."""
    oci = given.truth("oci-mediatypes", oci)
    if given.truth("oci-artifact", False) and not oci:
        raise UsageError("--output: oci-artifact=true and oci-mediatypes=false contradict each other")
    for key in ("unpack", "store", "name-canonical", "buildinfo"):
        given.truth(key, False)  # validated only
    compression, level = given.values.get("compression", ""), given.values.get("compression-level")
    known = tuple(CompressionKind)
    if compression and compression not in known:
        raise UsageError(
            f"--output: unknown compression {compression!r}{hint(compression, known)}",
            remedy=f"use one of {', '.join(known)}",
        )
    if level is not None and not level.lstrip("-").isdigit():
        raise UsageError(f"--output: compression-level={level!r} is not a number")
    return ImageOptions(
        names=tuple(each for each in given.values.get("name", "").split(",") if each),
        rewrite_timestamp=given.truth("rewrite-timestamp", True) if "rewrite-timestamp" in given.values else None,
        oci_media_types=oci,
        compression=CompressionKind(compression) if compression else None,
        compression_level=None if level is None else int(level),
        force_compression=given.truth("force-compression", False),
        annotations=given.annotations,
    )


def _oci(given: _Given) -> OciLayout | OciArchive:
    # In buildx, type=oci is a file unless tar=false; here the name decides.
    archive = given.truth("tar", given.dest == "-" or given.dest.endswith(".tar"))
    image = _image(given)
    return OciArchive(given.dest or "-", image) if archive else OciLayout(given.dest or DEFAULT_LAYOUT, image)


def _docker(given: _Given) -> DockerArchive | ImageStore:
    return DockerArchive(given.dest, _image(given, oci=False)) if given.dest else ImageStore(_image(given))


def _pushed_image(given: _Given) -> Push:
    if not (given.truth("push", False) or given.push):
        raise UsageError(
            "--output type=image without push=true keeps nothing",
            why="there is no daemon whose image store could hold it",
            remedy="add push=true or --push, --load it into a program that has such a store, or use type=oci,dest=DIR",
        )
    return _push(given)


def _registry(given: _Given) -> Push:
    if not given.truth("push", True):
        raise UsageError("--output type=registry,push=false is a contradiction", remedy="use type=oci,dest=DIRECTORY")
    return _push(given)


def _push(given: _Given) -> Push:
    image = _image(given)
    only_without_name = given.truth("danging-name-empty-only", False)
    return Push(
        image,
        dangling="" if image.names and only_without_name else given.values.get("dangling-name-prefix", ""),
        insecure=given.truth("registry.insecure", False),
        by_digest=given.truth("push-by-digest", False),
    )


def _local(given: _Given) -> LocalDirectory:
    mode = given.values.get("mode", "").strip().lower() or "copy"
    if mode not in ("copy", "delete"):
        raise UsageError(f"--output: mode={given.values['mode']!r} is neither copy nor delete")
    split = given.truth("platform-split", False) if "platform-split" in given.values else None
    if not given.dest:
        raise UsageError("--output type=local needs dest=PATH")
    if given.dest == "-":
        raise UsageError(
            "--output type=local,dest=-: a directory cannot be written to stdout", remedy="use type=tar,dest=-"
        )
    return LocalDirectory(given.dest, split, mode == "delete")


def _tar(given: _Given) -> LocalArchive:
    if not given.dest:
        raise UsageError("--output type=tar needs dest=PATH")
    return LocalArchive(given.dest)


class _Type(msgspec.Struct, frozen=True):
    """A value of ``type=``: its keys, apart from annotations, and what it makes."""

    make: Callable[[_Given], Output]
    keys: tuple[str, ...]


_OF_IMAGES: Final = (
    "name", "oci-mediatypes", "compression", "compression-level", "force-compression", "rewrite-timestamp",
    "oci-artifact", "buildinfo", "buildinfo-attrs",
)  # fmt: skip
_OF_REGISTRIES: Final = (
    *_OF_IMAGES, "push", "push-by-digest", "name-canonical", "registry.insecure", "unpack", "store",
    "dangling-name-prefix", "danging-name-empty-only",
)  # fmt: skip
_TYPES: Final = {
    "oci": _Type(_oci, (*_OF_IMAGES, "dest", "tar")),
    "docker": _Type(_docker, (*_OF_IMAGES, "dest")),
    "registry": _Type(_registry, _OF_REGISTRIES),
    "image": _Type(_pushed_image, _OF_REGISTRIES),
    "local": _Type(_local, ("dest", "platform-split", "mode")),
    "tar": _Type(_tar, ("dest",)),
    "cacheonly": _Type(lambda _: CacheOnly(), ()),
}
"""The types of outputs.

Without effect, as there is nothing that they could act upon: ``unpack``, ``store`` and ``name-canonical`` are about a
daemon's image store (BuildKit passes over them where it has none), ``oci-artifact`` about attestations, ``buildinfo``
and ``buildinfo-attrs`` about what BuildKit no longer writes.
"""


def parse(text: str, *, push: bool = False) -> Output:
    """Parse ``type=oci,dest=out,…`` (CSV, as in buildx), or a bare path: a directory, or ``-`` for a tar stream.

    With ``push`` every ``type=image`` is pushed, as with buildx's ``--push``.
    """
    import csv

    try:
        fields = next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration) as error:
        raise UsageError(f"--output {text!r} is not a comma-separated list", why=str(error)) from error
    if len(fields) == 1 and "=" not in fields[0]:
        return LocalArchive("-") if fields[0] == "-" else LocalDirectory(fields[0])
    values, annotations = _values(fields)
    word = values.pop("type", "")
    if word not in _TYPES:
        raise UsageError(
            f"--output: unknown type {word!r}{hint(word, _TYPES)}" if word else "--output: type is missing",
            remedy=f"use one of {', '.join(_TYPES)}",
        )
    kind = _TYPES[word]
    for key in values:
        if key not in kind.keys:
            raise UsageError(
                f"--output: unknown key {key!r} for type={word}{hint(key, kind.keys)}",
                remedy=f"type={word} takes {', '.join(kind.keys) or 'no other key'}",
            )
    if annotations and "name" not in kind.keys:
        raise UsageError(f"--output: type={word} holds no image to annotate")
    return kind.make(_Given(values, annotations, push))


def _values(fields: Sequence[str]) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """Return the keys and values of ``fields``, and the annotations as written."""
    values: dict[str, str] = {}
    annotations: list[tuple[str, str]] = []
    for each in fields:
        written, equals, value = each.partition("=")
        key = written.strip().lower()
        if not equals:
            raise UsageError(f"--output: {each!r} is not key=value")
        if key.startswith("annotation"):
            annotations.append((written.strip(), value))
            continue
        if key in values:
            raise UsageError(f"--output: {key!r} is there twice")
        values[key] = value
    return values, tuple(annotations)


def gather(
    texts: Sequence[str], *, push: bool, tags: Sequence[str], load: bool = False, may_delete: bool = False
) -> tuple[Output, ...]:
    """Return all destinations of a build: those given, the registry of ``--push``, the program of ``--load``, or the
    default layout.

    None for ``type=cacheonly``. ``may_delete`` is the permission for ``mode=delete`` outside of the current directory.
    """
    outputs = [parse(text, push=push) for text in texts]
    if push and not any(isinstance(each, Push) for each in outputs):
        outputs.append(Push())
    if load and not any(isinstance(each, ImageStore) for each in outputs):
        oci = all(image_options(each).oci_media_types for each in outputs)
        outputs.append(ImageStore(ImageOptions(oci_media_types=oci)))
    if not outputs:
        outputs.append(OciLayout(DEFAULT_LAYOUT))
    outputs = [each for each in outputs if not isinstance(each, CacheOnly)]
    for each in outputs:
        _check(each, tags, may_delete=may_delete)
    if sum(map(writes_stdout, outputs)) > 1:
        raise UsageError("--output: two outputs cannot share stdout")
    return tuple(outputs)


def _check(output: Output, tags: Sequence[str], *, may_delete: bool) -> None:
    """Raise for a destination that could not be written, before anything is built."""
    match output:
        case Push():
            if not (output.image.names or tags or output.dangling):
                raise UsageError("nothing says where to push to", remedy="name the image with --tag REF")
        case LocalDirectory():
            if os.path.exists(output.dest) and not os.path.isdir(output.dest):
                raise UsageError(f"--output type=local: {output.dest} is not a directory")
            _check_writable(output)
            if output.delete and not may_delete:
                _check_deletion(output)
        case OciLayout():
            _check_writable(output)
        case OciArchive() | DockerArchive() | LocalArchive():
            _check_file(output)
        case ImageStore() | CacheOnly():
            pass
        case _:
            assert_never(output)


def _check_file(output: OciArchive | DockerArchive | LocalArchive) -> None:
    if writes_stdout(output):
        if sys.stdout is not None and sys.stdout.isatty():
            raise UsageError(
                f"--output: refusing to write the {output.title} to a terminal",
                remedy="name a file with dest=FILE, or redirect stdout",
            )
    elif os.path.isdir(output.dest):
        raise UsageError(f"--output: the {output.title} {output.dest} is a directory", remedy="name a file")
    else:
        _check_writable(output)


def _check_deletion(output: LocalDirectory) -> None:
    """Raise for deleting in a directory that is not below the current one, as buildx does, unless it is permitted."""
    here, there = os.path.realpath("."), os.path.realpath(output.dest)
    if there == here or os.path.commonpath((here, there)) != here:
        raise UsageError(
            f"--output type=local,mode=delete: {output.dest} is not below the current directory",
            why="whatever else is in it would be deleted",
            remedy=f"if that is meant: --allow {DELETE}",
        )


def _check_writable(output: OciLayout | OciArchive | DockerArchive | FilesOutput) -> None:
    folder = os.path.abspath(output.dest)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if os.path.isfile(folder):
        folder = os.path.dirname(folder)  # a file is replaced, not overwritten
    if not os.access(folder, os.W_OK):
        raise UsageError(
            f"--output: cannot write to the {output.title} {output.dest}",
            why=f"{folder} is not writable for this user",
            remedy="name another place with dest=",
        )
