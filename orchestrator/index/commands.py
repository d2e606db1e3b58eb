"""The commands ``kanifold index …``, ``kanifold copy`` and ``kanifold matrix``.

Options are named as buildx, crane, podman and skopeo name theirs; docs/indexes.md has the tables.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click
from msgspec.structs import replace

from executor.dockerfile.suggestions import hint
from executor.image import mediatypes
from executor.image.digest import check_digest
from executor.registry import registry_settings
from orchestrator.index import annotating, editing, entries, inspection, names, publishing, source_arguments, templates
from orchestrator.index import matrix as matrices
from orchestrator.index.command_context import open_context
from orchestrator.index.editing import CopyOptions, JoinOptions, PlannedImage, PlatformOverride
from orchestrator.index.image_sources import named_root, open_source
from orchestrator.index.metadata import write_metadata
from orchestrator.index.names import ImageName, LayoutName
from orchestrator.index.publishing import CommandContext, Target
from orchestrator.index.source_arguments import RequestedSource
from orchestrator.options import DEBUG, INSECURE, MIRRORS, TIMEOUT, complete_files, complete_platforms
from orchestrator.values import writable
from orchestrator.view.display import open_display
from orchestrator.view.stdout import print_document, print_json, print_line
from platforms import parsing
from platforms.errors import ArchiveError, UsageError
from platforms.platform import ARCHITECTURES, SYSTEMS, architecture_name, system_name

_MODES: Final = {
    "auto": "plain",
    "plain": "plain",
    "tty": "plain",
    "rawjson": "rawjson",
    "none": "quiet",
    "quiet": "quiet",
}

_TAGS = click.option(
    "-t", "--tag", "tags", metavar="IMAGE", multiple=True, help="Name for the result; may be given several times."
)
_ANNOTATIONS = click.option(
    "--annotation",
    "annotations",
    metavar="[LEVEL:]KEY=VALUE",
    multiple=True,
    help="Annotate; LEVEL is index, manifest-descriptor, manifest-descriptor[PLATFORM] or index-descriptor.",
)
_PLATFORMS = click.option(
    "-p",
    "--platform",
    "platforms",
    metavar="LIST",
    multiple=True,
    shell_complete=complete_platforms,
    help="Keep these platforms alone, with their attestations.",
)
_FILES = click.option(
    "-f",
    "--file",
    "files",
    metavar="FILE",
    multiple=True,
    shell_complete=complete_files,
    help="A file with sources, one a line; or with a descriptor; or with what --metadata-file wrote.",
)
_METADATA = click.option(
    "--metadata",
    metavar="PATH",
    multiple=True,
    shell_complete=complete_files,
    help="What --metadata-file of builds wrote: a file, or a directory of files *.json.",
)
_DUPLICATE = click.option(
    "--duplicate",
    type=click.Choice(["refuse", "first", "last", "all"]),
    default="refuse",
    help="Which of two manifests for one platform counts (default: none, that is an error).",
)
_FLATTEN = click.option(
    "--flatten/--no-flatten", default=True, help="Take the entries out of indexes (default), or list an index as one."
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Print the index instead of pushing it.")
_METADATA_FILE = click.option(
    "--metadata-file",
    metavar="FILE",
    default="",
    shell_complete=complete_files,
    help="Write the result's digest, descriptor and names as JSON.",
)
_EXPECT = click.option(
    "--expect",
    metavar="DIGEST",
    default="",
    help="What the tags mean before; none, if they are not to be there. Else nothing is changed.",
)
_REFERRERS = click.option(
    "--referrers/--no-referrers", default=True, help="Copy signatures and whatever else refers to the image (default)."
)
_NONDISTRIBUTABLE = click.option(
    "--allow-nondistributable-artifacts",
    "nondistributable",
    is_flag=True,
    help="Copy foreign layers too, if the source has them.",
)
_PROGRESS = click.option(
    "--progress", type=click.Choice(list(_MODES)), default="auto", help="What is told on stderr meanwhile."
)
_BUILDER = click.option("--builder", metavar="NAME", default="", help="default: there are no other builders.")


def _settings(command: Any) -> Any:
    """``command`` with the options about registries, and --debug."""
    for option in (TIMEOUT, MIRRORS, INSECURE, DEBUG):
        command = option(command)
    return command


def _written(command: Any) -> Any:
    """``command`` with the options of all that write an image."""
    for option in (_PROGRESS, _NONDISTRIBUTABLE, _REFERRERS, _METADATA_FILE, _EXPECT):
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
@_TAGS
@_FILES
@_METADATA
@click.option("--append", is_flag=True, help="The first tag's index is the first source.")
@_ANNOTATIONS
@_PLATFORMS
@click.option(
    "--prefer-index",
    type=click.BOOL,
    metavar="BOOL",
    is_flag=False,
    flag_value="true",
    default=True,
    help="Make an index of a single manifest too (default); false copies it.",
)
@_DUPLICATE
@_FLATTEN
@click.option(
    "--media-type",
    type=click.Choice(["auto", "oci", "docker"]),
    default="auto",
    help="Of the index; auto is Docker's where all manifests are Docker's and nothing is annotated.",
)
@_DRY_RUN
@_BUILDER
@_written
def create(**flags: Any) -> None:
    """Make one index of all SOURCEs and name it with --tag.

    A SOURCE is an IMAGE; a digest in the only repository that is named; or a descriptor as JSON. Indexes are taken
    apart, and their attestations stay with their images. Of a single index a copy is made. With --metadata the index
    has the order of --platform.
    """
    _check_builder(flags["builder"])
    wanted = _inputs(flags)
    targets = _targets(flags["tags"], required=not flags["dry_run"])
    if not wanted and not (flags["append"] and targets):
        raise UsageError("no sources", remedy="name images, or files with --file or --metadata")
    if flags["append"] and not targets:
        raise UsageError("--append needs --tag", why="it is the first tag's index that is appended to")
    options = JoinOptions(
        annotating.parse(flags["annotations"]),
        parsing.parse_list(flags["platforms"]),
        bool(flags["metadata"]),
        flags["duplicate"],
        {"auto": "", "oci": mediatypes.OCI_INDEX, "docker": mediatypes.DOCKER_INDEX}[flags["media_type"]],
        flags["prefer_index"],
    )
    with _opened(flags) as context:
        base = targets[0] if flags["append"] else None
        standing = publishing.targets(context, targets, _expected(flags["expect"]), base)
        homes = source_arguments.homes(wanted, targets)
        sources = editing.read_sources(context, wanted, homes, flatten=flags["flatten"])
        if flags["append"]:
            planned = editing.append(editing.read_base(context, standing[0]), sources, options)
        else:
            planned = editing.create(sources, options)
        _deliver(context, planned, standing, flags)


@index.command(short_help="Add images to an index.")
@click.argument("base", metavar="INDEX")
@click.argument("sources", metavar="[SOURCE]...", nargs=-1)
@click.option("-m", "--manifest", "manifests", metavar="SOURCE", multiple=True, help="A SOURCE (crane).")
@_TAGS
@_FILES
@_METADATA
@_ANNOTATIONS
@_DUPLICATE
@_FLATTEN
@click.option("--os", "os_name", metavar="NAME", default="", help="The operating system of the new entries.")
@click.option("--arch", metavar="NAME", default="", help="The architecture of the new entries.")
@click.option("--variant", metavar="NAME", default="", help="The variant of the new entries.")
@click.option("--os-version", metavar="VERSION", default="", help="The system's version of the new entries.")
@click.option("--os-features", metavar="LIST", multiple=True, help="The system's features of the new entries.")
@_DRY_RUN
@_written
def add(base: str, sources: tuple[str, ...], manifests: tuple[str, ...], **flags: Any) -> None:
    """Add the SOURCEs to INDEX, in its place or under --tag. Without LEVEL an annotation is for the new entries."""
    wanted = _inputs({**flags, "sources": (*sources, *manifests)})
    if not wanted:
        raise UsageError("no sources", remedy="kanifold index add INDEX SOURCE…")
    override = _override(flags)
    annotations = annotating.parse(flags["annotations"], "manifest-descriptor")
    with _edited(base, flags) as (context, target, standing):
        homes = source_arguments.homes(wanted, (target.name,))
        found = editing.read_sources(context, wanted, homes, flatten=flags["flatten"])
        own = editing.read_base(context, target)
        fresh = [editing.adjusted(each, annotations, override) for each in found]
        general = tuple(each for each in annotations if each.level != "manifest-descriptor")
        planned = editing.append(own, fresh, JoinOptions(general, duplicate=flags["duplicate"]))
        _deliver(context, planned, standing, flags)


@index.command(short_help="Take images out of an index.")
@click.argument("base", metavar="INDEX")
@click.argument("entry", metavar="DIGEST|PLATFORM...", nargs=-1, required=True)
@_TAGS
@_DRY_RUN
@_written
def remove(base: str, entry: tuple[str, ...], **flags: Any) -> None:
    """Take entries out of INDEX, by digest or platform, with their attestations; in its place or under --tag."""
    with _edited(base, flags) as (context, target, standing):
        own = editing.read_base(context, target)
        digests = entries.chosen(own.entries, entry, parsing.parse)
        _deliver(context, editing.remove(own, digests), standing, flags)


@index.command(short_help="Annotate an index, or entries of it.")
@click.argument("base", metavar="INDEX")
@click.argument("entry", metavar="[DIGEST|PLATFORM]...", nargs=-1)
@_TAGS
@_ANNOTATIONS
@click.option("--os", "os_name", metavar="NAME", default="", help="The operating system of the entries.")
@click.option("--arch", metavar="NAME", default="", help="The architecture of the entries.")
@click.option("--variant", metavar="NAME", default="", help="The variant of the entries.")
@click.option("--os-version", metavar="VERSION", default="", help="The system's version of the entries.")
@click.option("--os-features", metavar="LIST", multiple=True, help="The system's features of the entries.")
@_DRY_RUN
@_written
def annotate(base: str, entry: tuple[str, ...], **flags: Any) -> None:
    """Annotate INDEX, in its place or under --tag. With entries, by digest or platform, an annotation without LEVEL is
    theirs, and so are the other options."""
    override = _override(flags)
    annotations = annotating.parse(flags["annotations"], "manifest-descriptor" if entry else "index")
    if not annotations and override == PlatformOverride():
        raise UsageError("nothing to annotate with", remedy="give --annotation KEY=VALUE")
    if override != PlatformOverride() and not entry:
        raise UsageError("--os, --arch and the like are for entries", remedy="name them, by digest or platform")
    with _edited(base, flags) as (context, target, standing):
        own = editing.read_base(context, target)
        digests = entries.chosen(own.entries, entry, parsing.parse)
        planned = editing.annotate(own, digests, JoinOptions(annotations, duplicate="all"), override)
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
@_REFERRERS
@_BUILDER
@_settings
def inspect(image: str, raw: bool, template: str, verbose: bool, **flags: Any) -> None:
    """Show the platforms of IMAGE with their sizes, layers, annotations and attestations."""
    _check_builder(flags["builder"])
    if raw and template:
        raise UsageError("--raw and --format are two ways to print one thing", remedy="give one of them")
    wanted = templates.parse(template) if template not in ("", "json") else ()
    name = names.parse(image)
    with _opened({**flags, "progress": "auto"}) as context:
        source = open_source(name, context.client)
        if raw:
            print_document(source.root().data)
            return
        found = inspection.inspect(str(name), source, referrers=flags["referrers"] and not wanted)
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
@_PLATFORMS
@click.option("-n", "--no-clobber", is_flag=True, help="Short for --expect none: TARGET is not to be there.")
@click.option("--all", is_flag=True, expose_value=False, help="Accepted from habit: all platforms are copied.")
@click.option("-q", "--quiet", is_flag=True, help="Short for --progress quiet.")
@_written
def copy(source: str, target: str, no_clobber: bool, quiet: bool, **flags: Any) -> None:
    """Copy SOURCE to TARGET, byte by byte: all platforms, attestations, and what refers to them.

    Both are

    \b
        REF, docker://REF               in a registry
        oci-layout://DIR[:TAG], oci:DIR in an OCI image layout
        oci-archive:FILE[:TAG]          in a tar file of one
        ./PATH, /PATH                   a layout or an archive, by what is there
    """
    if no_clobber and flags["expect"] not in ("", publishing.NONE):
        raise UsageError("--no-clobber and --expect contradict each other")
    expected = _expected(publishing.NONE if no_clobber else flags["expect"])
    options = JoinOptions(platforms=parsing.parse_list(flags["platforms"]), prefer_index=False)
    flags |= {"dry_run": False, "progress": "quiet" if quiet else flags["progress"]}
    given = source_arguments.parse(source)
    with _opened(flags) as context:
        wanted = _tagged(names.parse_target(target), _tag_of(given))
        standing = publishing.targets(context, (wanted,), expected)
        planned = editing.create(
            editing.read_sources(context, (given,), source_arguments.homes((given,), (wanted,))), options
        )
        _deliver(context, planned, standing, flags)


@click.command(short_help="Print the jobs that build each platform where it is native.")
@click.argument("context", default=".")
@click.option(
    "--platform",
    "platforms",
    metavar="LIST",
    multiple=True,
    required=True,
    shell_complete=complete_platforms,
    help="The platforms of the image, in the order of its index.",
)
@_TAGS
@click.option(
    "--runner",
    "runners",
    metavar="PLATFORM=LABEL",
    multiple=True,
    help=f"The runner for a platform (also in ${matrices.VARIABLE}, with commas).",
)
@click.option("--emulate-on", metavar="LABEL", default="", help="The runner for all others (default: linux/amd64's).")
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
def matrix(context: str, platforms: tuple[str, ...], tags: tuple[str, ...], form: str, **flags: Any) -> None:
    """Print the jobs of a CI system that build CONTEXT for all platforms, and how they are joined.

    A platform for which there is a runner has a job of its own; all others are built in one job, emulated.
    """
    wanted = parsing.parse_list(platforms)
    known = matrices.runners(flags["runners"], os.environ.get(matrices.VARIABLE, ""))
    for each in tags:
        names.parse_target(each)
    found = matrices.Matrix(
        matrices.jobs(wanted, known, flags["emulate_on"]), wanted, context, tags, tuple(flags["options"])
    )
    if form == "json":
        print_json(matrices.document(found))
        return
    for line in (matrices.github(found) if form == "github" else matrices.gitlab(found)).split("\n"):
        print_line(line)


# -- what several have in common


@contextmanager
def _opened(flags: Mapping[str, Any]) -> Iterator[CommandContext]:
    writable(flags.get("metadata_file", ""), "--metadata-file")
    settings = registry_settings.with_flags(
        registry_settings.load_settings(), flags["insecure"], flags["mirrors"], flags["timeouts"]
    )
    with open_display(_MODES[flags["progress"]]) as display, open_context(settings, display) as context:
        yield context


@contextmanager
def _edited(base: str, flags: Mapping[str, Any]) -> Iterator[tuple[CommandContext, Target, tuple[Target, ...]]]:
    """Registries, the index ``base`` as it is, and the targets of what becomes of it: itself unless there are tags."""
    name = named_root(names.parse(base))
    targets = _targets(flags["tags"], required=False)
    by_digest = name.digest if isinstance(name, LayoutName) else name.reference.digest
    if by_digest and not (targets or flags["dry_run"]):
        raise UsageError(
            f"{base[:200]} cannot be changed", why="a digest names what it is", remedy="name the result with -t"
        )
    with _opened(flags) as context:
        wanted = targets or (() if by_digest else (name,))
        standing = publishing.targets(context, wanted, _expected(flags["expect"]), name)
        own = next((each for each in standing if each.name == name), None)
        yield context, own or Target(name, by_digest or publishing.standing(context.client, name)), standing


def _deliver(
    context: CommandContext, planned: PlannedImage, standing: Sequence[Target], flags: Mapping[str, Any]
) -> None:
    """Bring ``planned`` to its targets, and print its digest; or print it itself."""
    root = planned.root.document
    if flags["dry_run"]:
        print_document(root.data + b"\n")
        return
    editing.deliver(context, planned, standing, CopyOptions(flags["referrers"], flags["nondistributable"]))
    if flags["metadata_file"]:
        write_metadata(flags["metadata_file"], planned, [each.name for each in standing])
    print_line(root.descriptor.digest)


def _inputs(flags: Mapping[str, Any]) -> list[RequestedSource]:
    """The sources: files first, as for buildx, then metadata, then words."""
    found = [each for path in flags["files"] for each in source_arguments.read(path)]
    found += [each for path in flags["metadata"] for each in source_arguments.read_metadata(path)]
    source_arguments.check_pins(found)
    return found + [source_arguments.parse(word) for word in flags["sources"]]


def _targets(texts: Sequence[str], *, required: bool) -> tuple[ImageName, ...]:
    if required and not texts:
        raise UsageError(
            "nothing says what to call the index", remedy="name it with --tag REF, or print it with --dry-run"
        )
    return tuple(_tagged(names.parse_target(each), "latest") for each in texts)


def _tagged(name: ImageName, tag: str) -> ImageName:
    """``name`` with ``tag`` if it is that of a layout without one."""
    return replace(name, tag=tag) if isinstance(name, LayoutName) and not name.tag else name


def _tag_of(given: RequestedSource) -> str:
    """What an image that is copied to a layout is called there: its tag, else ``latest``."""
    for name in map(named_root, given.candidates):
        return (name.tag if isinstance(name, LayoutName) else name.reference.tag) or "latest"
    return "latest"


def _expected(text: str) -> str:
    if text in ("", publishing.NONE):
        return text
    try:
        return check_digest(text)
    except ArchiveError as error:
        raise UsageError(f"--expect {text[:200]}", why=str(error), remedy="give a digest, or none") from error


def _override(flags: Mapping[str, Any]) -> PlatformOverride:
    """What ``--os``, ``--arch`` and the like say. Raises ``UsageError`` for names that nobody knows."""
    system = system_name(flags["os_name"])
    architecture, variant = architecture_name(flags["arch"], flags["variant"])
    if system and system not in SYSTEMS:
        raise UsageError(f"--os {system[:200]}: there is no such system{hint(system, SYSTEMS)}")
    if architecture and architecture not in ARCHITECTURES:
        raise UsageError(
            f"--arch {architecture[:200]}: there is no such architecture{hint(architecture, ARCHITECTURES)}"
        )
    features = tuple(each for text in flags["os_features"] for each in text.split(",") if each)
    return PlatformOverride(
        system, architecture, variant if flags["arch"] else flags["variant"], flags["os_version"], features
    )


def _check_builder(name: str) -> None:
    if name not in ("", "default"):
        raise UsageError(f"--builder {name[:200]}: there are no builders to choose from", remedy="leave it out")
