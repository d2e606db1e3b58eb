"""``kanifold index create``, ``add``, ``remove``, ``annotate`` and ``kanifold copy``.

Each makes a ``PlannedImage``: the root document to be written, and the sources of all content that it lists.
``deliver`` writes it to its targets.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
from msgspec.structs import replace

from executor.image import config as image
from executor.image import manifest as documents
from executor.image import mediatypes
from executor.image.manifest import Descriptor, Index, Manifest, PlatformSpec
from orchestrator.index import annotating, entries, manifest_graph, publishing, source_arguments
from orchestrator.index.annotating import Pairs
from orchestrator.index.destinations import CompleteImage
from orchestrator.index.entries import Duplicate, IndexEntry
from orchestrator.index.image_sources import Document, ImageSource, LayoutSource, open_source
from orchestrator.index.manifest_graph import SourcedDocument
from orchestrator.index.names import ImageName, LayoutName, RegistryName
from orchestrator.index.publishing import CommandContext, Target
from orchestrator.index.source_arguments import RequestedSource
from orchestrator.request import Annotation
from orchestrator.view import events
from platforms.errors import ArchiveError, PlatformMissing, Problem, UsageError
from platforms.platform import Platform, normalise, satisfies


class PlannedImage(msgspec.Struct, frozen=True):
    """An image to be written: its root document, and the source of each document that it lists, by digest."""

    root: SourcedDocument
    sources: dict[str, ImageSource]
    annotations: Pairs = ()
    """Annotations of the descriptor that points to the root."""


class JoinOptions(msgspec.Struct, frozen=True):
    """Options for joining sources into one index."""

    annotations: tuple[Annotation, ...] = ()
    platforms: tuple[Platform, ...] = ()
    """Platforms to keep; () for all."""
    in_order: bool = False
    """Whether the index has the order of ``platforms`` rather than that of its sources."""
    duplicate: Duplicate = "refuse"
    media_type: str = ""
    """Media type of the index; "" to derive it from the entries (``entries.encoded``)."""
    prefer_index: bool = True
    """Whether a single manifest becomes an index of one."""


class PlatformOverride(msgspec.Struct, frozen=True):
    """Replacements for fields of an entry's platform; "" and () leave them unchanged."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def apply(self, entry: IndexEntry) -> IndexEntry:
        """Return ``entry`` with the fields that are set."""
        own = entry.descriptor.platform or PlatformSpec("", "")
        spec = PlatformSpec(
            self.architecture or own.architecture,
            self.os or own.os,
            self.variant or own.variant,
            self.os_version or own.os_version,
            self.os_features or own.os_features,
        )
        return entry if spec == own else replace(entry, descriptor=replace(entry.descriptor, platform=spec))


class Source(msgspec.Struct, frozen=True):
    """A source that has been read, and what it adds to an index."""

    part: SourcedDocument
    entries: tuple[IndexEntry, ...]
    plain: bool = True
    """Whether the user overrides nothing of it."""


# -- reading


def read_sources(
    context: CommandContext, wanted: Sequence[RequestedSource], homes: Sequence[ImageName], *, flatten: bool = True
) -> list[Source]:
    """Read and verify the images of ``wanted``. Without ``flatten``, an index becomes one entry."""
    named = [(each, each.located(homes)) for each in wanted]
    with ThreadPoolExecutor(manifest_graph.AT_ONCE, "sources") as pool:
        found = list(pool.map(partial(_read_source, context), named))
    return found if flatten else [_whole(each) for each in found]


def _read_source(context: CommandContext, wanted: tuple[RequestedSource, ImageName]) -> Source:
    given, name = wanted
    source = open_source(name, context.client)
    part = SourcedDocument(source.root(), source)
    return Source(part, _entries(part, given), given.descriptor is None)


def _whole(source: Source) -> Source:
    """Return ``source`` as one entry, without a platform if it is an index."""
    document = source.part.document
    if isinstance(document.content, Manifest):
        return source
    return replace(source, entries=(IndexEntry(document.descriptor, source=source.part.source.name),), plain=False)


def read_base(context: CommandContext, target: Target) -> Source:
    """Read the index or manifest at the digest found for ``target``, from the registry itself, not a mirror."""
    if not target.standing:
        raise UsageError(f"{target.name} is not there", remedy="kanifold index create -t REF SOURCE… makes an index")
    name = source_arguments.at_digest(target.name, target.standing)
    source = open_source(name, context.client)
    if isinstance(name, RegistryName):
        found = context.client.find(name.reference)
        if found is None:
            raise ArchiveError(f"{target.name} has gone", why=f"{target.standing} was there a moment ago")
        part = SourcedDocument(Document(found[2], found[1], found[0]), source)
    else:
        part = SourcedDocument(source.root(), source)
    return Source(part, _entries(part, RequestedSource(str(target.name))))


def _entries(part: SourcedDocument, given: RequestedSource) -> tuple[IndexEntry, ...]:
    """Return the entries that the document of ``part`` adds to an index, with the descriptor fields ``given``."""
    document = part.document
    if isinstance(document.content, Index):
        manifest_graph.GraphLimits(given.text).announce(len(document.content.manifests))
        return entries.entries_of(document.content, document.data, given.text)
    wanted = given.descriptor
    descriptor = document.descriptor
    if wanted is not None:
        _check_given(wanted, descriptor, given.text)
        annotations = wanted.annotations
    else:
        annotations = ()
    spec = wanted.platform if wanted is not None else None
    if spec is None or not (spec.os and spec.architecture):
        spec = _completed(spec, _stated(document.content, part.source))
    return (IndexEntry(replace(descriptor, platform=spec, annotations=annotations), source=given.text),)


def _check_given(wanted: Descriptor, found: Descriptor, text: str) -> None:
    """Raise for a descriptor that contradicts the document that it points to."""
    if wanted.size not in (0, found.size) or wanted.media_type not in ("", found.media_type):
        raise UsageError(
            f"{text} is not what {found.digest} is",
            why=f"that is a {found.media_type} of {found.size} bytes",
            remedy="leave mediaType and size out",
        )


def _stated(manifest: Manifest, source: ImageSource) -> PlatformSpec | None:
    """Return the platform in an image's config; None for a manifest that is no image."""
    if manifest.config.media_type not in manifest_graph.CONFIGS:
        return None
    platform = image.parse(source.read(manifest.config, image.CONFIG_LIMIT)).platform
    return entries.spec_of(normalise(platform)) if platform.os and platform.architecture else None


def _completed(given: PlatformSpec | None, stated: PlatformSpec | None) -> PlatformSpec | None:
    """Return ``given`` with missing fields from ``stated``."""
    if given is None or stated is None:
        return given or stated
    if given.architecture:
        return replace(given, os=given.os or stated.os)
    variant = given.variant or stated.variant
    return replace(given, os=given.os or stated.os, architecture=stated.architecture, variant=variant)


# -- making


def create(sources: Sequence[Source], options: JoinOptions) -> PlannedImage:
    """Return one index of all ``sources``; for a single unchanged source, its own document."""
    of_root = annotating.of_level(options.annotations, "index-descriptor")
    only = sources[0]
    rewritten = any(each.level != "index-descriptor" for each in options.annotations) or not only.plain
    if len(sources) == 1 and not rewritten and options.media_type in ("", only.part.document.descriptor.media_type):
        if isinstance(only.part.document.content, Index):
            return _kept(only, options.platforms, of_root)
        if not options.prefer_index:
            _check_platform(only, options.platforms)
            return PlannedImage(only.part, {}, of_root)
    kept = only.part.document.content.annotations if len(sources) == 1 else ()
    return _drafted(sources, [entry for each in sources for entry in each.entries], options, kept)


def adjusted(source: Source, annotations: Sequence[Annotation], override: PlatformOverride) -> Source:
    """Return ``source`` with the annotations for the descriptors of its images."""
    fresh = [each if each.subject else override.apply(each) for each in source.entries]
    return replace(source, entries=annotating.described(fresh, annotations))


def append(base: Source, sources: Sequence[Source], options: JoinOptions) -> PlannedImage:
    """Return the index ``base`` with the entries of ``sources``; its annotations and media type are kept."""
    return _drafted(
        (base, *sources), [entry for each in (base, *sources) for entry in each.entries], options, *_own(base, options)
    )


def remove(base: Source, places: Set[int]) -> PlannedImage:
    """Return the index ``base`` without its entries at ``places`` and their attestations."""
    options = JoinOptions(duplicate="all")
    left = entries.without(base.entries, places)
    if not any(each.platform or not each.subject for each in left):
        raise UsageError("nothing would be left of the index", remedy="remove the image where it is kept")
    return _drafted((base,), left, options, *_own(base, options))


def annotate(base: Source, places: Set[int], options: JoinOptions, override: PlatformOverride) -> PlannedImage:
    """Return the index ``base`` annotated; with ``places``, only the descriptors of these entries are."""
    marked = [
        override.apply(annotating.described([each], options.annotations)[0]) if at in places else each
        for at, each in enumerate(base.entries)
    ]
    if places:
        general = tuple(each for each in options.annotations if each.level != "manifest-descriptor")
        options = replace(options, annotations=general)
    return _drafted((base,), marked, options, *_own(base, options))


def _own(base: Source, options: JoinOptions) -> tuple[Pairs, str]:
    """Return the annotations and the media type that an index keeps when it is edited."""
    content = base.part.document.content
    if not isinstance(content, Index):
        return (), options.media_type
    return content.annotations, content.media_type if content.media_type == mediatypes.OCI_INDEX else ""


def _drafted(
    sources: Sequence[Source], listed: Sequence[IndexEntry], options: JoinOptions, own: Pairs = (), media_type: str = ""
) -> PlannedImage:
    """Return the index of ``listed``, filtered and annotated by ``options``, which override ``own`` annotations."""
    found = entries.filtered(entries.joined(listed, options.duplicate), options.platforms)
    found = entries.ordered(found, options.platforms) if options.in_order and options.platforms else found
    found = annotating.described(found, options.annotations)
    pairs = annotating.together(own, annotating.of_level(options.annotations, "index"))
    descriptor, data = entries.encoded(found, pairs, options.media_type or media_type)
    places = {entry.descriptor.digest: each.part.source for each in reversed(sources) for entry in each.entries}
    root = Document(descriptor, data, documents.parse(data, descriptor.media_type))
    return PlannedImage(
        SourcedDocument(root, sources[0].part.source),
        places,
        annotating.of_level(options.annotations, "index-descriptor"),
    )


def _kept(source: Source, platforms: Sequence[Platform], of_root: Pairs) -> PlannedImage:
    """Return the index ``source`` unchanged, unless ``platforms`` exclude entries."""
    if entries.filtered(source.entries, platforms) == source.entries:
        return PlannedImage(source.part, {}, of_root)
    options = JoinOptions(platforms=tuple(platforms), duplicate="all")
    content = source.part.document.content
    made = _drafted((source,), source.entries, options, content.annotations, content.media_type)
    return replace(made, annotations=of_root)


def _check_platform(source: Source, platforms: Sequence[Platform]) -> None:
    own = source.entries[0].platform
    if platforms and (own is None or not any(satisfies(each, own) for each in platforms)):
        raise PlatformMissing(
            f"{source.part.source.name} is for {own or 'no platform'}",
            why=f"{', '.join(map(str, platforms))} was asked for",
        )


# -- delivering


class ImageCopyOptions(msgspec.Struct, frozen=True):
    """What is copied with an image."""

    referrers: bool = True
    nondistributable: bool = False


def deliver(
    context: CommandContext, planned: PlannedImage, wanted: Sequence[Target], options: ImageCopyOptions
) -> None:
    """Write ``planned`` to all of ``wanted``, or to none."""
    for each in wanted:
        _check_archive(each.name, planned)
    repositories = publishing.repositories(wanted)
    near = {str(each.repository) for each in (*planned.sources.values(), planned.root.source)}
    moves = near != {str(each) for each in repositories} or any(isinstance(each.name, LayoutName) for each in wanted)
    contents = manifest_graph.collect(
        planned.root,
        planned.sources,
        referrers=options.referrers and moves,
        nondistributable=options.nondistributable,
    )
    for layer in contents.left_out:
        why = f"its media type is {layer.media_type}"
        remedy = "to copy it all the same: --allow-nondistributable-artifacts"
        problem = Problem("Nondistributable", f"{layer.digest} is not copied: it is not to be pushed", why, remedy)
        context.emit(events.WarningRaised(problem=problem, rule="Nondistributable"))
    publishing.publish(context, CompleteImage(planned.root.document, contents, planned.annotations), wanted)


def _check_archive(name: ImageName, planned: PlannedImage) -> None:
    """Raise for replacing an archive that is a source and has other images too."""
    if not isinstance(name, LayoutName) or not name.archive:
        return
    for source in (*planned.sources.values(), planned.root.source):
        if isinstance(source, LayoutSource) and source.is_at(name.path) and source.has_others():
            raise UsageError(
                f"cannot edit {name}",
                why="the archive holds other images, which would be gone: an archive is replaced as a whole",
                remedy="write to another file with -t, or use a layout in a directory",
            )
