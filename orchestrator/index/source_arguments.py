"""The sources of ``kanifold index create`` and ``index add``: arguments, files, metadata of builds.

A source is the name of an image (``names``), a digest, or a descriptor as JSON, whose platform and annotations override
those of the image. A digest or descriptor alone is read from the only repository or layout that the other sources and
the targets name. Files (``-f``) hold one source a line, one descriptor, or what a build wrote with
``--metadata-file``, kanifold's or buildx's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from executor.image import manifest as documents
from executor.image import mediatypes
from executor.image.digest import check_digest
from executor.image.manifest import Descriptor, Index
from orchestrator import ci_run, pin_lock
from orchestrator.index import names
from orchestrator.index.names import ImageName, LayoutName, RegistryName
from platforms import decoding, regular
from platforms.errors import ArchiveError, BuildError, Problem, UsageError, printable
from platforms.paths import below

FILE_LIMIT: Final = 4 << 20
"""Maximum size of a file with sources in bytes."""
FILES: Final = 1000
"""Maximum number of files in a directory with metadata."""
DIGEST: Final = "containerimage.digest"
DESCRIPTOR: Final = "containerimage.descriptor"
NAME: Final = "image.name"
_NAMED: Final = 3
"""Maximum number of repositories that a warning names."""


class RequestedSource(msgspec.Struct, frozen=True):
    """One requested source."""

    text: str
    """Its name in errors."""
    candidates: tuple[ImageName, ...] = ()
    """Possible locations, all equal; () if only a digest was given."""
    digest: str = ""
    descriptor: Descriptor | None = None
    """Overrides of the image's own descriptor; media type and size may be "" and 0."""
    pins: tuple[tuple[str, str], ...] = ()
    """The external images that it was built from, with digests, according to its build's metadata."""
    dockerfile: str = ""
    """The digest of the Dockerfile that it was built from, according to the same."""
    run: str = ""
    """The run of a CI system that it was built in, according to the same."""

    def located(self, homes: Sequence[ImageName]) -> ImageName:
        """Return the image; for a digest alone, in the only one of ``homes``. Raises ``UsageError`` if ambiguous."""
        if self.candidates:
            near = [each for each in self.candidates if home_of(each) in homes]
            return (near or list(self.candidates))[0]
        if len(homes) != 1:
            raise UsageError(
                f"nothing says where {self.text[:200]!r} is",
                why=f"{len(homes)} repositories or layouts are named" if homes else "no repository is named",
                remedy="write REPOSITORY@DIGEST",
            )
        return at_digest(homes[0], self.digest)


def home_of(name: ImageName) -> ImageName:
    """Return the repository or layout of ``name``."""
    if isinstance(name, RegistryName):
        return RegistryName(name.reference.repository_only())
    return LayoutName(name.path, archive=name.archive)


def at_digest(name: ImageName, digest: str) -> ImageName:
    """Return the image ``digest`` of the repository or layout of ``name``."""
    if isinstance(name, RegistryName):
        return RegistryName(name.reference.repository_only().with_digest(digest))
    return LayoutName(name.path, digest=digest, archive=name.archive)


def homes(inputs: Iterable[RequestedSource], targets: Iterable[ImageName]) -> tuple[ImageName, ...]:
    """Return the repositories and layouts of ``targets`` and ``inputs``, each once."""
    named = (each for source in inputs for each in source.candidates[:1])
    return tuple(dict.fromkeys(map(home_of, (*targets, *named))))


def check_same_build(wanted: Iterable[RequestedSource]) -> None:
    """Raise ``BuildError`` for images of different runs of a CI system, or whose builds resolved one name to different
    images."""
    images = tuple(wanted)
    _check_runs(images)
    known: dict[str, tuple[str, RequestedSource]] = {}
    for each in images:
        for name, digest in each.pins:
            other, first = known.setdefault(name, (digest, each))
            if other != digest:
                raise BuildError(
                    f"the images were not built from the same {name}",
                    why=f"{first.text} from {other}, {each.text} from {digest}",
                    remedy="its tag moved between the builds: pin it (kanifold pin) and build again; "
                    "or name the images by digest instead of by their builds' metadata",
                )


def _check_runs(images: Iterable[RequestedSource]) -> None:
    first: RequestedSource | None = None
    for each in images:
        if not each.run:
            continue
        first = first or each
        if each.run != first.run:
            raise BuildError(
                "the images were not built in the same run",
                why=f"{first.text} in {printable(first.run)}, {each.text} in {printable(each.run)}",
                remedy="remove the metadata of other runs before the jobs write theirs; or name the images by digest "
                "instead of by their builds' metadata",
            )


def different_dockerfile(wanted: Iterable[RequestedSource]) -> Problem | None:
    """Return the warning that images were built from different Dockerfiles; None if they were not."""
    images = [each for each in wanted if each.dockerfile]
    other = next((each for each in images if each.dockerfile != images[0].dockerfile), None)
    if other is None:
        return None
    return Problem(
        "BuildError",
        "the images were not built from the same Dockerfile",
        why=f"{images[0].text} from {images[0].dockerfile}, {other.text} from {other.dockerfile}",
    )


def different_repositories(wanted: Iterable[RequestedSource], targets: Iterable[ImageName]) -> Problem | None:
    """Return the warning that some images were built for a repository of ``targets`` and others for none of them.

    None if all were, or none: that is a copy to another place.
    """
    own = {home_of(each) for each in targets}
    images = [each for each in wanted if each.candidates and each.dockerfile]
    others = [each for each in images if own.isdisjoint(map(home_of, each.candidates))]
    if not others or len(others) == len(images):
        return None
    return Problem(
        "BuildError",
        f"{others[0].text} was built for another image",
        why=f"its build names {', '.join(str(home_of(each)) for each in others[0].candidates[:_NAMED])}",
        remedy="keep the metadata of several images in directories of their own",
    )


def parse(text: str) -> RequestedSource:
    """Parse an argument. Raises ``UsageError``."""
    word = text.strip()
    if word.startswith("{"):
        return _of_json(word, word[:80])
    if word.startswith(("sha256:", "sha512:")) and "@" not in word:
        return RequestedSource(word, digest=_digest(word))
    return RequestedSource(word, (names.parse(word),))


def read(path: str) -> tuple[RequestedSource, ...]:
    """Return the sources in the file ``path``. Raises ``UsageError``, also when there are none."""
    text = _text(path).strip()
    if text.startswith("{"):
        return (_of_json(text, path),)
    found = tuple(parse(line) for line in text.splitlines() if line.strip())
    if not found:
        raise UsageError(f"{path} names no source", why="it is empty")
    return found


def read_metadata(path: str) -> tuple[RequestedSource, ...]:
    """Return the sources in the metadata file ``path``, or in ``*.json`` of the directory ``path``, by name."""
    if not os.path.isdir(path):
        return (_of_metadata(_object(_text(path), path), path),)
    try:
        files = sorted(each for each in os.listdir(path) if each.endswith(".json"))
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error
    if not files or len(files) > FILES:
        raise UsageError(
            f"{path} holds no metadata of builds",
            why=f"it has {len(files)} files *.json" if files else "it has no file *.json",
            remedy="name a file that --metadata-file wrote, or a directory of such files",
        )
    return tuple(_of_metadata(_object(_text(each), each), each) for each in (below(path, name) for name in files))


def _of_json(text: str, name: str) -> RequestedSource:
    document = _object(text, name)
    if DIGEST in document or DESCRIPTOR in document:
        return _of_metadata(document, name)
    if "schemaVersion" in document:
        raise UsageError(
            f"{name} is a manifest or an index",
            why="a descriptor was expected, which points to one",
            remedy="name the image instead",
        )
    if "digest" not in document:
        raise UsageError(f"{name} is neither a descriptor nor a build's metadata", why="it has no digest")
    descriptor = _descriptor(document, name)
    return RequestedSource(name, digest=descriptor.digest, descriptor=descriptor)


def _descriptor(document: dict[str, Any], name: str) -> Descriptor:
    """Return the descriptor ``document``; media type and size are "" and 0 if they are missing."""
    stated = {"mediaType": mediatypes.OCI_MANIFEST, "size": 0, **document}
    around = {"schemaVersion": 2, "mediaType": mediatypes.OCI_INDEX, "manifests": [stated]}
    try:
        index = documents.parse(msgspec.json.encode(around))
    except ArchiveError as error:
        raise UsageError(f"{name} is not a descriptor", why=str(error)) from error
    assert isinstance(index, Index)
    return replace(index.manifests[0], media_type=str(document.get("mediaType", "")))


def _of_metadata(document: dict[str, Any], name: str) -> RequestedSource:
    descriptor = document.get(DESCRIPTOR)
    described = descriptor.get("digest", "") if isinstance(descriptor, dict) else ""
    digest = document.get(DIGEST) or described
    if described and described != digest:
        raise UsageError(
            f"{name} names two images",
            why=f"{DIGEST} is {str(digest)[:200]}, and {DESCRIPTOR} is of {str(described)[:200]}",
        )
    if not digest:
        raise UsageError(f"{name} is no metadata of a build", why=f"it has neither {DIGEST} nor {DESCRIPTOR}")
    found = _digest(str(digest))
    images = document.get(NAME, "")
    written = [each.strip() for each in images.split(",")] if isinstance(images, str) else []
    places = tuple(at_digest(names.parse(each), found) for each in written if each)
    pins = document.get(pin_lock.KEY)
    stated = pins.items() if isinstance(pins, dict) else ()
    return RequestedSource(
        f"{name} ({found})",
        places,
        found,
        pins=tuple((key, str(value)) for key, value in stated),
        dockerfile=printable(str(document.get(pin_lock.DOCKERFILE, ""))),
        run=str(document.get(ci_run.KEY, "")),
    )


def _digest(text: str) -> str:
    try:
        return check_digest(text)
    except ArchiveError as error:
        raise UsageError(f"{text[:200]!r} is not a digest", why=error.problem.why) from error


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        document = decoding.from_json(text)
    except msgspec.DecodeError as error:
        raise UsageError(f"{name} cannot be read", why=str(error)) from error
    if not isinstance(document, dict):
        raise UsageError(f"{name} is not a JSON object")
    return document


def _text(path: str) -> str:
    try:
        with regular.open_file(path) as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}", why=error.strerror or str(error)) from error
    if len(data) > FILE_LIMIT:
        raise UsageError(f"{path} is too large", why=f"it has more than {FILE_LIMIT} bytes")
    return data.decode(errors="replace")
