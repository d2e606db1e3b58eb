"""Where a build's result goes: ``--output``, ``--push`` and ``--tag``, as ``docker buildx build`` spells them."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from platforms.errors import UsageError

_TYPES: Final = ("oci", "registry", "image", "docker", "local", "tar")
_COMPRESSIONS: Final = ("gzip", "zstd", "uncompressed")
DEFAULT_LAYOUT: Final = "oci-layout"
"""The directory that a build without a destination writes."""


class Output(msgspec.Struct, frozen=True):
    """One destination.

    ``kind`` is ``oci`` (a layout), ``docker`` (an archive for ``docker load``), ``registry``, ``local`` (a plain
    directory of the root file system) or ``tar`` (the same as an archive).
    """

    kind: str
    dest: str = ""
    """A path; ``-`` is stdout."""
    archive: bool = False
    """For ``oci``: one tar file instead of a directory; what ``dest`` looks like, where ``tar=`` does not say."""
    split: bool | None = None
    """For ``local``: whether each platform has a directory of its own; None: where there are several platforms."""
    names: tuple[str, ...] = ()
    oci_media_types: bool = True
    compression: str = ""
    compression_level: int | None = None
    force_compression: bool = False
    push_by_digest: bool = False
    annotations: tuple[tuple[str, str], ...] = ()
    """As written: ``annotation.KEY``, ``annotation-index.KEY``, ``annotation-manifest[PLATFORM].KEY``; and a value."""

    @property
    def writes_stdout(self) -> bool:
        """Whether it is an archive on stdout."""
        return (self.archive or self.kind == "tar") and self.dest in ("", "-")

    @property
    def holds_images(self) -> bool:
        """Whether it is a local place for images, with all their blobs."""
        return self.kind in ("oci", "docker")

    @property
    def holds_files(self) -> bool:
        """Whether it gets the files of the image rather than the image."""
        return self.kind in ("local", "tar")


def parse(text: str) -> Output:
    """``type=oci,dest=out,…`` (CSV, as buildx reads it), or a bare path: a directory, or ``-`` for a tar stream."""
    try:
        fields = next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration) as error:
        raise UsageError(f"--output {text!r} is not a comma-separated list", why=str(error)) from error
    if len(fields) == 1 and "=" not in fields[0]:
        return Output("tar", "-") if fields[0] == "-" else Output("local", fields[0])
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
    kind = values.pop("type", "")
    if kind not in _TYPES:
        raise UsageError(
            f"--output: unknown type {kind!r}" if kind else "--output: type is missing",
            remedy=f"use one of {', '.join(_TYPES)}",
        )
    push = _flag(values, "push", kind == "registry")
    name = values.pop("name", "")
    dest = values.pop("dest", "")
    is_file = dest == "-" or dest.endswith(".tar")  # with buildx, type=oci is a file unless tar=false says otherwise
    output = Output(
        kind="registry" if kind in ("registry", "image") else kind,
        dest=dest,
        archive=_flag(values, "tar", is_file) if kind == "oci" else kind == "docker",
        split=_flag(values, "platform-split", False) if kind == "local" and "platform-split" in values else None,
        names=tuple(each for each in name.split(",") if each),
        oci_media_types=_flag(values, "oci-mediatypes", kind != "docker"),
        compression=values.pop("compression", ""),
        compression_level=_number(values, "compression-level"),
        force_compression=_flag(values, "force-compression", False),
        push_by_digest=_flag(values, "push-by-digest", False),
        annotations=tuple(annotations),
    )
    _flag(values, "name-canonical", False)
    if values:
        raise UsageError(f"--output: unknown key {sorted(values)[0]!r} for type={kind}")
    if output.compression and output.compression not in _COMPRESSIONS:
        raise UsageError(
            f"--output: unknown compression {output.compression!r}", remedy=f"use one of {', '.join(_COMPRESSIONS)}"
        )
    if kind == "image" and not push:
        raise UsageError(
            "--output type=image without push=true keeps nothing",
            why="there is no daemon whose image store could hold it",
            remedy="add push=true, or use type=oci,dest=DIRECTORY",
        )
    if kind == "registry" and not push:
        raise UsageError("--output type=registry,push=false is a contradiction", remedy="use type=oci,dest=DIRECTORY")
    if output.holds_files and not output.dest:
        raise UsageError(f"--output type={kind} needs dest=PATH")
    if kind == "local" and output.dest == "-":
        raise UsageError(
            "--output type=local,dest=-: a directory cannot be written to stdout", remedy="use type=tar,dest=-"
        )
    return output


def gather(texts: Sequence[str], *, push: bool, tags: Sequence[str]) -> tuple[Output, ...]:
    """All destinations of a build: those named, ``--push``'s registry, or the default layout when there is none."""
    outputs = [parse(text) for text in texts]
    if push and not any(each.kind == "registry" for each in outputs):
        outputs.append(Output("registry"))
    if not outputs:
        outputs.append(Output("oci", DEFAULT_LAYOUT))
    for each in outputs:
        if each.kind == "registry" and not (each.names or tags):
            raise UsageError("nothing says where to push to", remedy="name the image with --tag REF")
        _check_place(each)
    if sum(each.writes_stdout for each in outputs) > 1:
        raise UsageError("--output: two outputs cannot share stdout")
    return tuple(outputs)


def _check_place(output: Output) -> None:
    """Refuse a destination that could not be written in the end, before anything is built."""
    if output.writes_stdout and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError(
            f"--output type={output.kind}: refusing to write an archive to a terminal",
            remedy="name a file with dest=FILE, or redirect stdout",
        )
    is_directory = os.path.isdir(output.dest)
    if output.kind == "local" and os.path.exists(output.dest) and not is_directory:
        raise UsageError(f"--output type=local: {output.dest} is not a directory")
    if (output.kind == "tar" or output.archive) and is_directory:
        raise UsageError(f"--output type={output.kind}: {output.dest} is a directory", remedy="name a file")
    if output.kind != "registry" and not output.writes_stdout:
        _check_writable(output)


def _check_writable(output: Output) -> None:
    place = os.path.abspath(output.dest)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if os.path.isfile(place):
        place = os.path.dirname(place)  # a file is replaced, not overwritten
    if not os.access(place, os.W_OK):
        raise UsageError(
            f"--output type={output.kind}: cannot write to {output.dest}",
            why=f"{place} is not writable for this user",
            remedy="name another place with dest=",
        )


def _flag(values: dict[str, str], key: str, default: bool) -> bool:
    text = values.pop(key, None)
    if text is None:
        return default
    if text.lower() in ("true", "1", "t", ""):
        return True
    if text.lower() in ("false", "0", "f"):
        return False
    raise UsageError(f"--output: {key}={text!r} is neither true nor false")


def _number(values: dict[str, str], key: str) -> int | None:
    text = values.pop(key, None)
    if text is None:
        return None
    if not text.lstrip("-").isdigit():
        raise UsageError(f"--output: {key}={text!r} is not a number")
    return int(text)
