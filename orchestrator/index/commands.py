"""The commands ``kanifold index …``, ``kanifold copy`` and ``kanifold matrix``.

Options are named as buildx, crane, podman and skopeo name theirs; docs/indexes.md has the tables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click
from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from executor.image import mediatypes
from executor.image.digest import check_digest
from executor.registry import registry_settings
from orchestrator import options, project_file, values
from orchestrator.index import (
    annotating,
    editing,
    entries,
    inspection,
    names,
    publishing,
    source_arguments,
    summary,
    templates,
)
from orchestrator.index import matrix as matrices
from orchestrator.index.command_context import open_context
from orchestrator.index.editing import ImageCopyOptions, JoinOptions, PlannedImage, PlatformOverride, Source
from orchestrator.index.entries import Duplicate
from orchestrator.index.image_sources import named_root, open_source
from orchestrator.index.metadata import write_metadata
from orchestrator.index.names import ImageName, LayoutName
from orchestrator.index.publishing import CommandContext, Target
from orchestrator.index.source_arguments import RequestedSource
from orchestrator.options import choice, complete_files, switch, text, texts
from orchestrator.view import events
from orchestrator.view.display import open_display
from orchestrator.view.stdout import print_document, print_json, print_line
from platforms import parsing
from platforms.errors import ArchiveError, Problem, UsageError
from platforms.platform import ARCHITECTURES, SYSTEMS, Platform, architecture_name, satisfies, system_name

_MODES: Final = {
    "auto": "plain",
    "plain": "plain",
    "tty": "plain",
    "rawjson": "rawjson",
    "none": "quiet",
    "quiet": "quiet",
}


def _expected(text: str, flag: str) -> str:
    if text in ("", publishing.NONE):
        return text
    try:
        return check_digest(text)
    except ArchiveError as error:
        raise UsageError(f"{flag} {text[:200]}", why=str(error), remedy="give a digest, or none") from error


def _builder(name: str, flag: str) -> None:
    if name not in ("", "default"):
        raise UsageError(f"{flag} {name[:200]}: there are no builders to choose from", remedy="leave it out")


def _duplicate(text: str, _flag: str) -> Duplicate:
    match text:
        case "first" | "last" | "all":
            return text
        case _:
            return "refuse"


class IndexFlags(options.Flags):
    """The flags of these commands; each is a decorator."""

    tags = texts("-t", "--tag", metavar="IMAGE", help="Name for the result; may be given several times.")
    annotations = texts(
        "--annotation",
        metavar="[LEVEL:]KEY=VALUE",
        help="Annotate; LEVEL is index, manifest-descriptor, manifest-descriptor[PLATFORM] or index-descriptor.",
    )
    platforms = texts(
        "-p",
        "--platform",
        metavar="LIST",
        read=values.platforms,
        complete=options.complete_platforms,
        help="Keep these platforms alone, with their attestations.",
    )
    files = texts(
        "-f",
        "--file",
        metavar="FILE",
        complete=options.complete_files,
        help="A file with sources, one a line; or with a descriptor; or with what --metadata-file wrote.",
    )
    metadata = texts(
        "--metadata",
        metavar="PATH",
        complete=options.complete_files,
        help="What --metadata-file of builds wrote: a file, or a directory of files *.json.",
    )
    append = switch("--append", help="The first tag's index is the first source.")
    prefer_index = options.Flag[bool](
        ("--prefer-index",),
        options.as_given,
        type=click.BOOL,
        metavar="BOOL",
        is_flag=False,
        flag_value="true",
        default=True,
        help="Make an index of a single manifest too (default); false copies it.",
    )
    duplicate = choice(
        "--duplicate",
        among=("refuse", "first", "last", "all"),
        default="refuse",
        read=_duplicate,
        help="Which of two manifests for one platform counts (default: none, that is an error).",
    )
    flatten = switch(
        "--flatten/--no-flatten",
        default=True,
        help="Take the entries out of indexes (default), or list an index as one.",
    )
    media_type = choice(
        "--media-type",
        among=("auto", "oci", "docker"),
        default="auto",
        help="Of the index; auto is Docker's where all manifests are Docker's and nothing is annotated.",
    )
    os_name = text("--os", metavar="NAME", help="The operating system of the entries that are added or annotated.")
    arch = text("--arch", metavar="NAME", help="Their architecture.")
    variant = text("--variant", metavar="NAME", help="Their variant.")
    os_version = text("--os-version", metavar="VERSION", help="Their system's version.")
    os_features = texts("--os-features", metavar="LIST", read=values.split, help="Their system's features.")
    dry_run = switch("--dry-run", help="Print the index instead of pushing it.")
    metadata_file = text(
        "--metadata-file",
        metavar="FILE",
        read=values.writable,
        complete=options.complete_files,
        help="Write the result's digest, descriptor and names as JSON.",
    )
    expect = text(
        "--expect",
        metavar="DIGEST",
        read=_expected,
        help="What the tags mean before; none, if they are not to be there. Else nothing is changed.",
    )
    referrers = switch(
        "--referrers/--no-referrers",
        default=True,
        help="Copy signatures and whatever else refers to the image (default).",
    )
    nondistributable = switch(
        "--allow-nondistributable-artifacts", help="Copy foreign layers too, if the source has them."
    )
    progress = choice("--progress", among=tuple(_MODES), default="auto", help="What is told on stderr meanwhile.")
    builder = text("--builder", metavar="NAME", read=_builder, help="default: there are no other builders.")
    insecure = options.INSECURE
    mirrors = options.MIRRORS
    timeouts = options.TIMEOUT


def _settings(command: Any) -> Any:
    """Return ``command`` with the options about registries, and --debug."""
    for option in (options.TIMEOUT, options.MIRRORS, options.INSECURE, options.DEBUG):
        command = option(command)
    return command


def _written(command: Any) -> Any:
    """Return ``command`` with the options of all commands that write an image."""
    for option in (
        IndexFlags.progress,
        IndexFlags.nondistributable,
        IndexFlags.referrers,
        IndexFlags.metadata_file,
        IndexFlags.expect,
    ):
        command = option(command)
    return _settings(command)


@click.group(short_help="Join images into an index; look at one, change it.")
def index() -> None:
    """Join manifests and indexes into one index, look at it, change it.

    An IMAGE is

    \b
        REF, docker://REF               in a registry
        oci-layout://DIR[:TAG], oci:DIR in an OCI image layout
        oci-archive:FILE[:TAG]          in a tar file of one
        ./PATH, /PATH                   a layout or an archive, by what is there
    """


@index.command(short_help="Make one index of images.")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@IndexFlags.tags
@IndexFlags.files
@IndexFlags.metadata
@IndexFlags.append
@IndexFlags.annotations
@IndexFlags.platforms
@IndexFlags.prefer_index
@IndexFlags.duplicate
@IndexFlags.flatten
@IndexFlags.media_type
@IndexFlags.dry_run
@IndexFlags.builder
@_written
def create(sources: tuple[str, ...], **given: Any) -> None:
    """Make one index of all SOURCEs and name it with --tag.

    A SOURCE is an IMAGE; a digest in the only repository that is named; or a descriptor as JSON. Indexes are taken
    apart, and their attestations stay with their images. Of a single index a copy is made. With --metadata the index
    has the order of --platform (default: the platforms in kanifold.yaml), and all of these have to be there.
    """
    flags = IndexFlags(given)
    flags.builder  # noqa: B018 - which refuses all but one
    wanted = _inputs(flags, sources)
    targets = _targets(flags.tags, required=not flags.dry_run)
    if not wanted and not (flags.append and targets):
        raise UsageError("no sources", remedy="name images, or files with --file or --metadata")
    if flags.append and not targets:
        raise UsageError("--append needs --tag", why="it is the first tag's index that is appended to")
    planned_platforms = flags.platforms or (project_file.load().platforms if flags.metadata else ())
    join = JoinOptions(
        annotating.parse(flags.annotations),
        planned_platforms,
        bool(flags.metadata),
        flags.duplicate,
        {"auto": "", "oci": mediatypes.OCI_INDEX, "docker": mediatypes.DOCKER_INDEX}[flags.media_type],
        flags.prefer_index,
    )
    with _opened_to_write(flags, flags.progress) as context:
        base = targets[0] if flags.append else None
        standing = publishing.targets(context, targets, flags.expect, base)
        homes = source_arguments.homes(wanted, targets)
        found = editing.read_sources(context, wanted, homes, flatten=flags.flatten)
        for problem in (
            source_arguments.different_dockerfile(wanted),
            source_arguments.different_repositories(wanted, targets),
            *_unplanned(wanted, found, planned_platforms),
        ):
            if problem is not None:
                context.emit(events.WarningRaised(problem=problem))
        if flags.append:
            planned = editing.append(editing.read_base(context, standing[0]), found, join)
        else:
            planned = editing.create(found, join)
        _deliver(context, planned, standing, flags)


@index.command(short_help="Add images to an index.")
@click.argument("base", metavar="INDEX")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@click.option("-m", "--manifest", "manifests", metavar="SOURCE", multiple=True, help="A SOURCE (crane).")
@IndexFlags.tags
@IndexFlags.files
@IndexFlags.metadata
@IndexFlags.annotations
@IndexFlags.duplicate
@IndexFlags.flatten
@IndexFlags.os_name
@IndexFlags.arch
@IndexFlags.variant
@IndexFlags.os_version
@IndexFlags.os_features
@IndexFlags.dry_run
@_written
def add(
    base: str,
    sources: tuple[str, ...],
    manifests: tuple[str, ...],
    **given: Any,
) -> None:
    """Add the SOURCEs to INDEX, in its place or under --tag. Without LEVEL an annotation is for the new entries."""
    flags = IndexFlags(given)
    wanted = _inputs(flags, (*sources, *manifests))
    if not wanted:
        raise UsageError("no sources", remedy="kanifold index add INDEX SOURCE…")
    override = _override(flags)
    annotations = annotating.parse(flags.annotations, "manifest-descriptor")
    with _edited(base, flags) as (context, target, standing):
        homes = source_arguments.homes(wanted, (target.name,))
        found = editing.read_sources(context, wanted, homes, flatten=flags.flatten)
        own = editing.read_base(context, target)
        fresh = [editing.adjusted(each, annotations, override) for each in found]
        general = tuple(each for each in annotations if each.level != "manifest-descriptor")
        planned = editing.append(own, fresh, JoinOptions(general, duplicate=flags.duplicate))
        _deliver(context, planned, standing, flags)


@index.command(short_help="Take images out of an index.")
@click.argument("base", metavar="INDEX")
@click.argument("entry", metavar="DIGEST|PLATFORM...", nargs=-1, required=True)
@IndexFlags.tags
@IndexFlags.dry_run
@_written
def remove(base: str, entry: tuple[str, ...], **given: Any) -> None:
    """Take entries out of INDEX, by digest or platform, with their attestations; in its place or under --tag."""
    flags = IndexFlags(given)
    with _edited(base, flags) as (context, target, standing):
        own = editing.read_base(context, target)
        places = entries.chosen(own.entries, entry, parsing.parse)
        _deliver(context, editing.remove(own, places), standing, flags)


@index.command(short_help="Annotate an index, or entries of it.")
@click.argument("base", metavar="INDEX")
@click.argument("entry", metavar="[DIGEST|PLATFORM]...", nargs=-1)
@IndexFlags.tags
@IndexFlags.annotations
@IndexFlags.os_name
@IndexFlags.arch
@IndexFlags.variant
@IndexFlags.os_version
@IndexFlags.os_features
@IndexFlags.dry_run
@_written
def annotate(
    base: str,
    entry: tuple[str, ...],
    **given: Any,
) -> None:
    """Annotate INDEX, in its place or under --tag. With entries, by digest or platform, an annotation without LEVEL is
    theirs, and so are the other options."""
    flags = IndexFlags(given)
    override = _override(flags)
    annotations = annotating.parse(flags.annotations, "manifest-descriptor" if entry else "index")
    if not annotations and override == PlatformOverride():
        raise UsageError("nothing to annotate with", remedy="give --annotation KEY=VALUE")
    if override != PlatformOverride() and not entry:
        raise UsageError("--os, --arch and the like are for entries", remedy="name them, by digest or platform")
    with _edited(base, flags) as (context, target, standing):
        own = editing.read_base(context, target)
        places = entries.chosen(own.entries, entry, parsing.parse)
        planned = editing.annotate(own, places, JoinOptions(annotations, duplicate="all"), override)
        _deliver(context, planned, standing, flags)


@index.command(short_help="Show what an image consists of.")
@click.argument("image", metavar="IMAGE")
@click.option("--raw", is_flag=True, help="Print the index, or the manifest, byte by byte.")
@click.option(
    "--format",
    "template",
    metavar="FORMAT",
    default="",
    help="json, or a template as for buildx: {{json .Manifest}}, {{json .Image}}, {{.Manifest.Digest}}, …",
)
@click.option("-v", "--verbose", is_flag=True, help="Show each layer.")
@IndexFlags.referrers
@IndexFlags.builder
@_settings
def inspect(image: str, raw: bool, template: str, verbose: bool, **given: Any) -> None:
    """Show the platforms of IMAGE with their sizes, layers, annotations and attestations."""
    flags = IndexFlags(given)
    flags.builder  # noqa: B018 - which refuses all but one
    if raw and template:
        raise UsageError("--raw and --format are two ways to print one thing", remedy="give one of them")
    wanted = templates.parse(template) if template not in ("", "json") else ()
    name = names.parse(image)
    with _opened(flags, "auto") as context:
        source = open_source(name, context.client)
        if raw:
            print_document(source.root().data)
            return
        found = inspection.inspect(str(name), source, referrers=flags.referrers and not wanted)
        if template == "json":
            print_json(inspection.document(found))
        elif wanted:
            for line in templates.render(wanted, found).split("\n"):
                print_line(line)
        else:
            for line in inspection.table(found, layers=verbose):
                print_line(line)


@click.command(short_help="Copy an image between registries, layouts and archives.")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@IndexFlags.platforms
@click.option("-n", "--no-clobber", is_flag=True, help="Short for --expect none: TARGET is not to be there.")
@click.option("--all", is_flag=True, expose_value=False, help="Accepted from habit: all platforms are copied.")
@click.option("-q", "--quiet", is_flag=True, help="Short for --progress quiet.")
@_written
def copy(source: str, target: str, no_clobber: bool, quiet: bool, **given: Any) -> None:
    """Copy SOURCE to TARGET, byte by byte: all platforms, attestations, and what refers to them.

    Both are

    \b
        REF, docker://REF               in a registry
        oci-layout://DIR[:TAG], oci:DIR in an OCI image layout
        oci-archive:FILE[:TAG]          in a tar file of one
        ./PATH, /PATH                   a layout or an archive, by what is there
    """
    flags = IndexFlags(given)
    if no_clobber and flags.expect not in ("", publishing.NONE):
        raise UsageError("--no-clobber and --expect contradict each other")
    join = JoinOptions(platforms=flags.platforms, prefer_index=False)
    wanted = source_arguments.parse(source)
    with _opened_to_write(flags, "quiet" if quiet else flags.progress) as context:
        name = _tagged(names.parse_target(target), _tag_of(wanted))
        standing = publishing.targets(context, (name,), publishing.NONE if no_clobber else flags.expect)
        homes = source_arguments.homes((wanted,), (name,))
        planned = editing.create(editing.read_sources(context, (wanted,), homes), join)
        _write(context, planned, standing, flags)


@click.command(short_help="Print the jobs that build each platform where it is native.")
@click.argument("context", default=".")
@click.option(
    "--platform",
    "platforms",
    metavar="LIST",
    multiple=True,
    shell_complete=options.complete_platforms,
    help="The platforms of the image, in the order of its index (default: those in kanifold.yaml).",
)
@IndexFlags.tags
@click.option(
    "--runner",
    "runners",
    metavar="PLATFORM=LABEL",
    multiple=True,
    help=f"The runner for a platform (also in ${matrices.VARIABLE}, with commas, and in kanifold.yaml).",
)
@click.option(
    "--emulate-on",
    metavar="LABEL",
    default="",
    help="The runner for all others (default: that in kanifold.yaml, else linux/amd64's).",
)
@click.option(
    "--option", "options", metavar="WORD", multiple=True, help="A further word for each build: --option=--target=app."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "github", "gitlab"]),
    default="json",
    help="github: for strategy.matrix; gitlab: jobs of a child pipeline.",
)
@click.option(
    "--release",
    "release_file",
    metavar="FILE",
    default="",
    shell_complete=complete_files,
    help="The release file whose jobs are printed (default: kanifold.yaml, if it declares images).",
)
@click.option(
    "--level", metavar="NUMBER", type=click.IntRange(min=0), help="The jobs of this level of a release alone."
)
def matrix(
    context: str,
    platforms: tuple[str, ...],
    tags: tuple[str, ...],
    runners: tuple[str, ...],
    emulate_on: str,
    options: tuple[str, ...],
    form: str,
    release_file: str,
    level: int | None,
) -> None:
    """Print the jobs of a CI system that build CONTEXT for all platforms, and how they are joined.

    A platform for which there is a runner has a job of its own; all others are built in one job, emulated.

    Without CONTEXT, --platform and --tag, where kanifold.yaml declares images, the jobs are those of the release: one
    for each platform of each image. A job uses what jobs of lower levels have built.
    """
    project = project_file.load()
    if release_file or (project.images and (context, platforms, tags) == (".", (), ())):
        from orchestrator.release import release_matrix

        known = matrices.runners(runners, os.environ.get(matrices.VARIABLE, ""), project.runners)
        emulating = (emulate_on,) if emulate_on else project.emulate_on
        release_matrix.show(release_matrix.RunnerLabels(known, emulating), release_file, options, form, level)
        return
    wanted = parsing.parse_list(platforms) or project.platforms
    if not wanted:
        raise UsageError(
            "nothing says which platforms to build",
            remedy=f"give --platform LIST, or write `platforms` into {project_file.NAME}",
        )
    known = matrices.runners(runners, os.environ.get(matrices.VARIABLE, ""), project.runners)
    for each in tags:
        names.parse_target(each)
    emulating = (emulate_on,) if emulate_on else project.emulate_on
    found = matrices.Matrix(matrices.jobs(wanted, known, emulating), wanted, context, tags, options)
    if form == "json":
        print_json(matrices.document(found))
        return
    for line in (matrices.github(found) if form == "github" else matrices.gitlab(found)).split("\n"):
        print_line(line)


# -- what several have in common


@contextmanager
def _opened(flags: IndexFlags, progress: str) -> Iterator[CommandContext]:
    settings = registry_settings.with_flags(
        registry_settings.load_settings(), flags.insecure, flags.mirrors, flags.timeouts
    )
    with open_display(_MODES[progress]) as display, open_context(settings, display) as context:
        yield context


@contextmanager
def _opened_to_write(flags: IndexFlags, progress: str) -> Iterator[CommandContext]:
    flags.metadata_file  # noqa: B018 - which refuses a file that could not be written
    with _opened(flags, progress) as context:
        yield context


@contextmanager
def _edited(base: str, flags: IndexFlags) -> Iterator[tuple[CommandContext, Target, tuple[Target, ...]]]:
    """Open registries; yield the index ``base`` and the targets of the edited index: itself unless there are tags."""
    name = named_root(names.parse(base))
    targets = _targets(flags.tags, required=False)
    by_digest = name.digest if isinstance(name, LayoutName) else name.reference.digest
    if by_digest and not (targets or flags.dry_run):
        raise UsageError(
            f"{base[:200]} cannot be changed", why="a digest names what it is", remedy="name the result with -t"
        )
    with _opened_to_write(flags, flags.progress) as context:
        wanted = targets or (() if by_digest else (name,))
        standing = publishing.targets(context, wanted, flags.expect, name)
        own = next((each for each in standing if each.name == name), None)
        yield context, own or Target(name, by_digest or publishing.standing(context.client, name)), standing


def _deliver(context: CommandContext, planned: PlannedImage, standing: Sequence[Target], flags: IndexFlags) -> None:
    """Write ``planned`` to its targets and print its digest, or, for a dry run, print the document."""
    if flags.dry_run:
        print_document(planned.root.document.data + b"\n")
    else:
        _write(context, planned, standing, flags)


def _write(context: CommandContext, planned: PlannedImage, standing: Sequence[Target], flags: IndexFlags) -> None:
    """Write ``planned`` to its targets and print its digest."""
    editing.deliver(context, planned, standing, ImageCopyOptions(flags.referrers, flags.nondistributable))
    if flags.metadata_file:
        write_metadata(flags.metadata_file, planned, [each.name for each in standing])
    summary.append(planned, [each.name for each in standing], context.emit)
    print_line(planned.root.document.descriptor.digest)


def _inputs(flags: IndexFlags, words: Sequence[str]) -> list[RequestedSource]:
    """Return the sources: of files first, as in buildx, then of metadata, then of ``words``."""
    found = [each for path in flags.files for each in source_arguments.read(path)]
    found += [each for path in flags.metadata for each in source_arguments.read_metadata(path)]
    source_arguments.check_same_build(found)
    return found + [source_arguments.parse(word) for word in words]


def _unplanned(
    wanted: Sequence[RequestedSource], found: Sequence[Source], platforms: Sequence[Platform]
) -> Iterator[Problem]:
    """Yield a warning for each source that is left out as a whole, because none of ``platforms`` is in it."""
    for asked, source in zip(wanted, found, strict=True):
        there = [each.platform for each in source.entries if each.platform is not None]
        if platforms and there and not any(satisfies(one, each) for one in platforms for each in there):
            yield Problem(
                "PlatformMissing",
                f"{asked.text} is left out",
                why=f"it is for {', '.join(map(str, there))}, and the index is for {', '.join(map(str, platforms))}",
            )


def _targets(texts: Sequence[str], *, required: bool) -> tuple[ImageName, ...]:
    if required and not texts:
        raise UsageError(
            "nothing says what to call the index", remedy="name it with --tag REF, or print it with --dry-run"
        )
    return tuple(_tagged(names.parse_target(each), "latest") for each in texts)


def _tagged(name: ImageName, tag: str) -> ImageName:
    """Return ``name``; with ``tag`` if it is a layout without one."""
    return replace(name, tag=tag) if isinstance(name, LayoutName) and not name.tag else name


def _tag_of(given: RequestedSource) -> str:
    """Return the name of a copied image in a layout: its tag, else ``latest``."""
    for name in map(named_root, given.candidates):
        return (name.tag if isinstance(name, LayoutName) else name.reference.tag) or "latest"
    return "latest"


def _override(flags: IndexFlags) -> PlatformOverride:
    """Return the platform override of ``--os``, ``--arch`` etc. Raises ``UsageError`` for unknown names."""
    system = system_name(flags.os_name)
    architecture, usual = architecture_name(flags.arch, flags.variant)
    if system and system not in SYSTEMS:
        raise UsageError(f"--os {system[:200]}: there is no such system{hint(system, SYSTEMS)}")
    if architecture and architecture not in ARCHITECTURES:
        raise UsageError(
            f"--arch {architecture[:200]}: there is no such architecture{hint(architecture, ARCHITECTURES)}"
        )
    variant = usual if flags.arch else flags.variant
    return PlatformOverride(system, architecture, variant, flags.os_version, flags.os_features)
