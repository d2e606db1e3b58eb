"""Where a build's result goes: ``--output``, ``--push`` and ``--tag``, as ``docker buildx build`` spells them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from executor.dockerfile.suggestions import hint
from platforms.errors import UsageError

_COMPRESSIONS: Final = ("gzip", "zstd", "uncompressed")
_OF_IMAGES: Final = (
    "name", "oci-mediatypes", "compression", "compression-level", "force-compression", "rewrite-timestamp",
    "oci-artifact", "buildinfo", "buildinfo-attrs",
)  # fmt: skip
_OF_REGISTRIES: Final = (
    *_OF_IMAGES, "push", "push-by-digest", "name-canonical", "registry.insecure", "unpack", "store",
    "dangling-name-prefix", "danging-name-empty-only",
)  # fmt: skip
_KEYS: Final = {
    "oci": (*_OF_IMAGES, "dest", "tar"),
    "docker": (*_OF_IMAGES, "dest"),
    "registry": _OF_REGISTRIES,
    "image": _OF_REGISTRIES,
    "local": ("dest", "platform-split", "mode"),
    "tar": ("dest",),
    "cacheonly": (),
}
"""What each type of output takes, besides ``type`` and annotations.

Without effect, as there is nothing that they could act upon: ``unpack``, ``store`` and ``name-canonical`` are about a
daemon's image store (BuildKit passes over them where it has none), ``oci-artifact`` about attestations, ``buildinfo``
and ``buildinfo-attrs`` about what BuildKit no longer writes.
"""
DEFAULT_LAYOUT: Final = "oci-layout"
"""The directory that a build without a destination writes."""
DELETE: Final = "buildx.local.delete"
"""The permission (``--allow``) to delete what is in a directory outside of the current one; named as buildx's."""


class Output(msgspec.Struct, frozen=True):
    """One destination.

    ``kind`` is ``oci`` (a layout), ``docker`` (an archive for ``docker load``), ``load`` (the image store of another
    program on this machine), ``registry``, ``local`` (a plain directory of the root file system), ``tar`` (the same as
    an archive) or ``cacheonly`` (nowhere).
    """

    kind: str
    dest: str = ""
    """A path; ``-`` is stdout."""
    archive: bool = False
    """For ``oci``: one tar file instead of a directory; what ``dest`` looks like, where ``tar=`` does not say."""
    split: bool | None = None
    """For ``local``: whether each platform has a directory of its own; None: where there are several platforms."""
    delete: bool = False
    """For ``local``: whether what was in the directory before is deleted."""
    names: tuple[str, ...] = ()
    dangling: str = ""
    """For ``registry``: a repository that gets the result by its digest alone; "" for none."""
    insecure: bool = False
    """For ``registry``: whether its registries may be spoken to without TLS, or with one that is not verified."""
    rewrite_timestamp: bool | None = None
    """Whether SOURCE_DATE_EPOCH bounds the times of files in layers; None, where nobody says, means that it does."""
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
        return self.kind in ("oci", "docker", "load")

    @property
    def holds_files(self) -> bool:
        """Whether it gets the files of the image rather than the image."""
        return self.kind in ("local", "tar")


def parse(text: str, *, push: bool = False) -> Output:
    """``type=oci,dest=out,…`` (CSV, as buildx reads it), or a bare path: a directory, or ``-`` for a tar stream.

    With ``push`` every ``type=image`` is pushed, as buildx's ``--push`` has it.
    """
    import csv

    try:
        fields = next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration) as error:
        raise UsageError(f"--output {text!r} is not a comma-separated list", why=str(error)) from error
    if len(fields) == 1 and "=" not in fields[0]:
        return Output("tar", "-") if fields[0] == "-" else Output("local", fields[0])
    values, annotations = _values(fields)
    kind = values.pop("type", "")
    if kind not in _KEYS:
        raise UsageError(
            f"--output: unknown type {kind!r}{hint(kind, _KEYS)}" if kind else "--output: type is missing",
            remedy=f"use one of {', '.join(_KEYS)}",
        )
    for key in values:
        if key not in _KEYS[kind]:
            raise UsageError(
                f"--output: unknown key {key!r} for type={kind}{hint(key, _KEYS[kind])}",
                remedy=f"type={kind} takes {', '.join(_KEYS[kind]) or 'no other key'}",
            )
    if annotations and "name" not in _KEYS[kind]:
        raise UsageError(f"--output: type={kind} holds no image to annotate")
    output = _output(kind, values, annotations, push=push)
    _check(output, kind)
    return output


def _values(fields: Sequence[str]) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    """The keys and values of ``fields``, and the annotations among them as they are written."""
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


def _output(kind: str, values: dict[str, str], annotations: tuple[tuple[str, str], ...], *, push: bool) -> Output:
    dest = values.get("dest", "")
    is_file = dest == "-" or dest.endswith(".tar")  # with buildx, type=oci is a file unless tar=false says otherwise
    names = tuple(each for each in values.get("name", "").split(",") if each)
    oci = _flag(values, "oci-mediatypes", kind != "docker" or not dest)
    if _flag(values, "oci-artifact", False) and not oci:
        raise UsageError("--output: oci-artifact=true and oci-mediatypes=false contradict each other")
    for key in ("unpack", "store", "name-canonical", "buildinfo"):
        _flag(values, key, False)  # which is to be one
    pushed = _flag(values, "push", kind == "registry") or (push and kind == "image")
    if kind == "image" and not pushed:
        raise UsageError(
            "--output type=image without push=true keeps nothing",
            why="there is no daemon whose image store could hold it",
            remedy="add push=true or --push, --load it into a program that has such a store, or use type=oci,dest=DIR",
        )
    if kind == "registry" and not pushed:
        raise UsageError("--output type=registry,push=false is a contradiction", remedy="use type=oci,dest=DIRECTORY")
    if kind == "image":
        kind = "registry"
    elif kind == "docker" and not dest:
        kind = "load"
    prefix = values.get("dangling-name-prefix", "")
    return Output(
        kind=kind,
        dest=dest,
        archive=_flag(values, "tar", is_file) if kind == "oci" else kind == "docker",
        split=_flag(values, "platform-split", False) if "platform-split" in values else None,
        delete=_mode(values.get("mode", "")) == "delete",
        names=names,
        dangling="" if names and _flag(values, "danging-name-empty-only", False) else prefix,
        insecure=_flag(values, "registry.insecure", False),
        rewrite_timestamp=_flag(values, "rewrite-timestamp", True) if "rewrite-timestamp" in values else None,
        oci_media_types=oci,
        compression=values.get("compression", ""),
        compression_level=_number(values, "compression-level"),
        force_compression=_flag(values, "force-compression", False),
        push_by_digest=_flag(values, "push-by-digest", False),
        annotations=annotations,
    )


def _check(output: Output, kind: str) -> None:
    if output.compression and output.compression not in _COMPRESSIONS:
        raise UsageError(
            f"--output: unknown compression {output.compression!r}{hint(output.compression, _COMPRESSIONS)}",
            remedy=f"use one of {', '.join(_COMPRESSIONS)}",
        )
    if output.holds_files and not output.dest:
        raise UsageError(f"--output type={kind} needs dest=PATH")
    if kind == "local" and output.dest == "-":
        raise UsageError(
            "--output type=local,dest=-: a directory cannot be written to stdout", remedy="use type=tar,dest=-"
        )


def gather(
    texts: Sequence[str], *, push: bool, tags: Sequence[str], load: bool = False, may_delete: bool = False
) -> tuple[Output, ...]:
    """All destinations of a build: those named, ``--push``'s registry, ``--load``'s program, or the default layout.

    None for ``type=cacheonly``. ``may_delete`` is the permission that ``mode=delete`` needs outside of the current
    directory.
    """
    outputs = [parse(text, push=push) for text in texts]
    if push and not any(each.kind == "registry" for each in outputs):
        outputs.append(Output("registry"))
    if load and not any(each.kind == "load" for each in outputs):
        outputs.append(Output("load", oci_media_types=all(each.oci_media_types for each in outputs)))
    if not outputs:
        outputs.append(Output("oci", DEFAULT_LAYOUT))
    outputs = [each for each in outputs if each.kind != "cacheonly"]
    for each in outputs:
        if each.kind == "registry" and not (each.names or tags or each.dangling):
            raise UsageError("nothing says where to push to", remedy="name the image with --tag REF")
        _check_place(each)
        if each.delete and not may_delete:
            _check_deletion(each)
    if sum(each.writes_stdout for each in outputs) > 1:
        raise UsageError("--output: two outputs cannot share stdout")
    return tuple(outputs)


def _check_deletion(output: Output) -> None:
    """Refuse to empty a directory that is not below the current one, as buildx does, unless it is permitted."""
    here, there = os.path.realpath("."), os.path.realpath(output.dest)
    if there == here or os.path.commonpath((here, there)) != here:
        raise UsageError(
            f"--output type=local,mode=delete: {output.dest} is not below the current directory",
            why="whatever else is in it would be deleted",
            remedy=f"if that is meant: --allow {DELETE}",
        )


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
    if output.kind not in ("registry", "load", "cacheonly") and not output.writes_stdout:
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


def _mode(text: str) -> str:
    mode = text.strip().lower() or "copy"
    if mode not in ("copy", "delete"):
        raise UsageError(f"--output: mode={text!r} is neither copy nor delete")
    return mode


def _flag(values: Mapping[str, str], key: str, default: bool) -> bool:
    text = values.get(key)
    if text is None:
        return default
    if text.lower() in ("true", "1", "t", ""):
        return True
    if text.lower() in ("false", "0", "f"):
        return False
    raise UsageError(f"--output: {key}={text!r} is neither true nor false")


def _number(values: Mapping[str, str], key: str) -> int | None:
    text = values.get(key)
    if text is None:
        return None
    if not text.lstrip("-").isdigit():
        raise UsageError(f"--output: {key}={text!r} is not a number")
    return int(text)
