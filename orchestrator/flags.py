"""The flags of ``kanifold build``, each declared once, and the ``BuildRequest`` that they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, assert_never

from orchestrator import options, values
from orchestrator.options import argument, choice, each, ignored, number, switch, text, texts
from platforms.errors import UsageError
from platforms.paths import settings_file

if TYPE_CHECKING:
    from executor.protocol import Compression
    from executor.registry.reference import Reference
    from executor.registry.registry_settings import RegistrySettings
    from orchestrator.caches import Cache
    from orchestrator.nodes.node_selection import NodeSelection
    from orchestrator.outputs import Output
    from orchestrator.request import Annotation, BuildRequest, Report
    from platforms.platform import Platform

_LOAD: Final = "KANIFOLD_LOAD"
"""The environment's word for which program ``--load`` means."""
_SUMMARY: Final = "GITHUB_STEP_SUMMARY"
"""The environment's word for the file of a step's summary: GitHub's, Gitea's and Forgejo's."""


class BuildFlags(options.Flags):
    """The argument and the flags of ``kanifold build``, in the order of its help."""

    context = argument(default=".", complete=options.complete_directories)
    dockerfile = text(
        "-f",
        "--file",
        metavar="PATH",
        complete=options.complete_files,
        help="The Dockerfile (default: CONTEXT/Dockerfile); - is stdin.",
    )
    platforms = texts(
        "--platform",
        metavar="LIST",
        read=values.platforms_with_nodes,
        complete=options.complete_platforms,
        help=(
            "Target platforms: linux/amd64,linux/arm64,… (default: this host's); linux/arm64=NODE builds it on that "
            "node."
        ),
    )
    nodes = texts(
        "--node",
        metavar="NAME[=URL]",
        read=values.split,
        complete=options.complete_nodes,
        help=(
            "Build on these nodes alone: names of kanifold node ls, NAME=ssh://USER@HOST, or local, which is this "
            "machine (default: $KANIFOLD_NODES, or this machine and all that kanifold node add has added)."
        ),
    )
    bootstrap = switch(
        "--bootstrap/--no-bootstrap",
        default=True,
        help="Send kanifold to nodes that lack this version of it (default), or do without those nodes.",
    )
    tags = texts(
        "-t", "--tag", metavar="REF", read=each(values.tag), help="Name for the result; may be given several times."
    )
    push = switch(
        "--push", help="Push to the registries that the tags name. Tags move only when every platform is built."
    )
    push_by_digest = switch(
        "--push-by-digest",
        help=(
            "Push to the repositories of the tags and move no tag: kanifold index create names what several jobs built."
        ),
    )
    load = switch(
        "--load",
        help=(
            "Hand the image to docker, podman or containerd (nerdctl, ctr), whichever is here: short for "
            "-o type=docker."
        ),
    )
    load_to = text(
        "--load-to",
        metavar="PROGRAM",
        help="Load, and into which: docker, podman, nerdctl or ctr (default: $KANIFOLD_LOAD, or the only one here).",
    )
    outputs = texts(
        "-o",
        "--output",
        metavar="SPEC",
        help=(
            "type=oci,dest=DIR or FILE.tar[,tar=BOOL] · type=docker,dest=FILE · type=registry · type=image,push=true; "
            "also name=, compression=gzip|zstd|uncompressed, compression-level=, oci-mediatypes=, rewrite-timestamp=. "
            "The files alone: type=local,dest=DIR[,platform-split=BOOL][,mode=delete] or DIR · type=tar,dest=FILE or "
            "-. Nothing: type=cacheonly."
        ),
    )
    build_args = texts(
        "--build-arg",
        metavar="NAME[=VALUE]",
        read=values.build_args,
        help="Set an ARG; without a value, from the environment.",
    )
    build_contexts = texts(
        "--build-context",
        metavar="NAME=PLACE",
        read=values.build_contexts,
        help="A further context: a directory, docker-image://REF, oci-layout://PATH[:TAG], or a URL.",
    )
    target = text("--target", metavar="STAGE", help="The stage to build (default: the last).")
    labels = texts("--label", metavar="KEY=VALUE", read=each(values.pair), help="Add a label to every image.")
    annotations = texts(
        "--annotation",
        metavar="[LEVEL:]KEY=VALUE",
        read=values.parse_annotations,
        help=(
            "Annotate; LEVEL is manifest (default), index, manifest-descriptor or index-descriptor, or several with "
            "commas; manifest[PLATFORM] is one of many."
        ),
    )
    secrets = texts(
        "--secret",
        metavar="id=NAME[,src=FILE|,env=VAR]",
        read=each(values.secret),
        help="A secret for RUN --mount=type=secret.",
    )
    ssh = texts(
        "--ssh",
        metavar="ID[=PLACE]",
        read=each(values.agent),
        help="An SSH agent for RUN --mount=type=ssh: default, or ID=SOCKET|KEY.",
    )
    hosts = texts(
        "--add-host", metavar="NAME:ADDRESS", read=each(values.host), help="A line for /etc/hosts of every step."
    )
    network = choice(
        "--network",
        among=("default", "host", "none"),
        default="default",
        read=values.network,
        help="Network of RUN steps; host needs --allow network.host.",
    )
    allow = texts(
        "--allow",
        metavar="ENTITLEMENT",
        read=values.permissions,
        help=(
            "Let the Dockerfile have it: security.insecure, network.host; for RUN --security=, --network=. Let an "
            "output delete what is in a directory outside of this one: buildx.local.delete."
        ),
    )
    shm_size = text("--shm-size", metavar="BYTES", read=values.size, help="Size of /dev/shm in steps: 64m, 1g, …")
    ulimits = texts(
        "--ulimit",
        metavar="NAME=SOFT[:HARD]",
        read=values.ulimits,
        help="A limit of every process in steps: nofile=1024:4096, core=0, …; -1 is none.",
    )
    resources = texts(
        "--resource",
        metavar="NAME=VALUE",
        read=values.limits,
        help=(
            "Bound each step: memory=2g, memory-swap=4g, cpu-shares=, cpu-period=, cpu-quota=, cpuset-cpus=0-3, "
            "cpuset-mems=, pids=512. Needs control groups (cgroup v2) that this user may make."
        ),
    )
    snapshotter = choice(
        "--snapshotter",
        among=("auto", "overlay", "plain"),
        read=values.snapshotter,
        help=(
            "How steps get their files: by an overlay mount (overlay), or in a directory that is a copy of the layers "
            "(plain); auto, the default, is plain where the store's file system takes no overlays. Also: "
            "$KANIFOLD_SNAPSHOTTER."
        ),
    )
    isolation = choice(
        "--isolation",
        among=values.ISOLATION,
        read=values.isolation,
        help=(
            "How steps are isolated: as root (namespaces), in a user namespace with a range of ids (mapped) or one id "
            "(single), as root in a chroot (chroot), or as any user by a supervisor that answers their system calls "
            "(answered); auto, the default, is the first of these that works. Images do not depend on it. Also: "
            "$KANIFOLD_ISOLATION, which executors elsewhere have their own of."
        ),
    )
    cgroup_parent = text(
        "--cgroup-parent",
        metavar="PATH",
        read=values.control_group,
        help="The control group that those of steps are made in.",
    )
    no_cache = switch("--no-cache", help="Run every step, whatever the cache knows.")
    no_cache_stages = texts(
        "--no-cache-filter", metavar="STAGE", read=values.split, help="Run every step of these stages."
    )
    cache_from = texts(
        "--cache-from",
        metavar="SPEC",
        read=each(values.cache_source),
        help=(
            "type=registry,ref=REF · type=local,src=DIR · type=s3,bucket=,region= · type=azblob,account_url= · "
            "type=gha: caches to ask."
        ),
    )
    cache_to = texts(
        "--cache-to",
        metavar="SPEC",
        read=each(values.cache_target),
        help=(
            "type=registry,ref=REF[,mode=max] · type=local,dest=DIR · type=s3 · type=azblob · type=gha, as for "
            "--cache-from · type=inline: caches to write; also ignore-error=false."
        ),
    )
    cache_repo = text(
        "--cache-repo",
        metavar="REF",
        read=values.cache_repository,
        help="Ask and write this registry cache, mode=max (kaniko).",
    )
    cache_ttl = text(
        "--cache-ttl", metavar="AGE", read=values.age, help="Ignore entries of remote caches older than this: 2w, …"
    )
    compression = choice(
        "--compression",
        among=("gzip", "zstd", "uncompressed"),
        read=values.compression,
        help="How new layers are compressed (default: gzip).",
    )
    compression_level = number("--compression-level", help="0 to 9 for gzip, 1 to 22 for zstd.")
    retry = number(
        "--retry",
        least=0,
        help="How often a platform moves to another node when its node fails (default: 1); to an emulator, if need be.",
    )
    dry_run = switch(
        "--dry-run",
        help=(
            "Print what would be built where, and why, and build nothing; nodes are asked. With --progress rawjson as "
            "JSON."
        ),
    )
    check = switch("--check", help="Only check the Dockerfile: short for --call check.")
    call = text(
        "--call",
        metavar="METHOD",
        read=values.method,
        help="Ask instead of build: check, targets or outline, with ,format=json for machines.",
    )
    pull = ignored(
        "--pull", help="Ask the registry for base images (always done for tags; digests are never asked again)."
    )
    builder = text("--builder", metavar="NAME", read=values.builder, help="default: there are no other builders.")
    debug = options.DEBUG
    progress = choice(
        "--progress",
        among=("auto", "live", "plain", "rawjson", "quiet"),
        default="auto",
        help="How the build is shown.",
    )
    quiet = switch("-q", "--quiet", help="Short for --progress quiet.")
    pins = text(
        "--pins",
        metavar="FILE",
        read=values.pins,
        complete=options.complete_files,
        help=(
            "The digests of external images, as kanifold pin --lock or --metadata-file of another build wrote them; "
            "an image that is not there is an error."
        ),
    )
    metadata_file = text(
        "--metadata-file",
        metavar="FILE",
        read=values.writable,
        complete=options.complete_files,
        help="Write digests as JSON.",
    )
    iid_file = text(
        "--iidfile",
        metavar="FILE",
        read=values.writable,
        complete=options.complete_files,
        help="Write the image's id (the index's digest for several platforms).",
    )
    trace = text(
        "--trace",
        metavar="FILE",
        complete=options.complete_files,
        help="Write what happened when, as JSON for Perfetto (ui.perfetto.dev) and Chrome.",
    )
    reports = texts(
        "--report",
        metavar="TYPE=FILE",
        read=each(values.report),
        help=(
            "Write a report, also when the build fails: html (a page with the timeline; FILE.html does as well), junit "
            "(steps as test cases), dotenv (the digest for later jobs), codequality (warnings by line, for GitLab) or "
            "markdown."
        ),
    )
    jobs = number("--jobs", "-j", least=0, help="Platforms built at once (default: all).")
    keep_going = switch(
        "--keep-going", help="Let other platforms end when one fails. Nothing is published all the same."
    )
    audit = choice(
        "--audit",
        among=("error", "warn", "off"),
        default="warn",
        help="What to do about programs of another architecture in an image.",
    )
    audit_allow = texts(
        "--audit-allow",
        metavar="[PLATFORM:]PATTERN",
        read=each(values.allowed),
        help="Paths whose foreign programs are intended.",
    )
    insecure = options.INSECURE
    mirrors = options.MIRRORS
    timeouts = options.TIMEOUT
    emulator_image = text(
        "--emulator-image",
        metavar="REF@DIGEST",
        read=values.emulator_image,
        help=(
            "Emulate other platforms with qemu out of this image only, kept in the store (default: "
            "$KANIFOLD_EMULATOR_IMAGE, what kanifold emulators add has added, or what is installed)."
        ),
    )
    root = text(
        "--root",
        metavar="DIR",
        complete=options.complete_directories,
        help="The store (default: $KANIFOLD_ROOT or $XDG_DATA_HOME/kanifold).",
    )


def request(given: Mapping[str, Any]) -> BuildRequest:
    """The request that the command line makes of which click has ``given`` this. Raises ``UsageError``."""
    from executor.protocol import BuildOptions
    from executor.step_options import StepOptions
    from orchestrator import caches
    from orchestrator.outputs import DELETE
    from orchestrator.request import BuildRequest
    from platforms import host

    flags = BuildFlags(given)
    tags = flags.tags
    outputs = _outputs(flags, tags)
    contexts = flags.build_contexts
    if flags.context == flags.dockerfile == "-":
        raise UsageError("stdin cannot be both the build context and the Dockerfile")
    both = flags.cache_repo
    cache_from, cache_to = (*flags.cache_from, *both), (*flags.cache_to, *both)
    compression = _compression(flags, outputs)
    caches.check(cache_to, compression)
    flags.builder  # noqa: B018 - which refuses all but one
    chosen = flags.platforms
    platforms = tuple(each for each, _ in chosen) or (host.default_platform(),)
    return BuildRequest(
        context=flags.context,
        dockerfile=flags.dockerfile,
        platforms=platforms,
        tags=tags,
        outputs=outputs,
        build_args=flags.build_args,
        build_contexts=contexts,
        annotations=_annotations(flags, platforms, outputs),
        secrets=flags.secrets,
        cache_accounts=caches.accounts((*cache_from, *cache_to)),
        ssh=flags.ssh,
        load_to=flags.load_to or os.environ.get(_LOAD, ""),
        progress="quiet" if flags.quiet else flags.progress,
        pins=flags.pins,
        metadata_file=flags.metadata_file,
        iid_file=flags.iid_file,
        trace=flags.trace,
        reports=_reports(flags),
        jobs=flags.jobs or 0,
        keep_going=flags.keep_going,
        audit=flags.audit,
        audit_allow=flags.audit_allow,
        nodes=_nodes(flags, chosen, native=platforms == (host.default_platform(),)),
        retry=1 if flags.retry is None else flags.retry,
        dry_run=flags.dry_run,
        options=BuildOptions(
            target=flags.target,
            labels=flags.labels,
            compression=compression,
            rewrite_timestamps=_rewrites_timestamps(outputs),
            no_cache=flags.no_cache,
            no_cache_stages=flags.no_cache_stages,
            cache_from=caches.locations(cache_from),
            cache_to=caches.exports(cache_to),
            cache_ttl=flags.cache_ttl,
            registries=_registries(flags, tags, outputs, (*cache_from, *cache_to)),
            root=flags.root,
            emulator_image=flags.emulator_image,
            snapshotter=flags.snapshotter,
            isolation=flags.isolation,
            implicit_platform=not chosen,
            steps=StepOptions(
                hosts=flags.hosts,
                network=flags.network,
                default_network=values.default_network(os.environ.get("KANIFOLD_NETWORK", "")),
                shm_size=flags.shm_size,
                ulimits=flags.ulimits,
                limits=flags.resources,
                cgroup_parent=flags.cgroup_parent,
                allow=tuple(each for each in flags.allow if each != DELETE),
            ),
        ),
    )


def _nodes(flags: BuildFlags, chosen: Sequence[tuple[Platform, str]], *, native: bool) -> NodeSelection | None:
    """The nodes that may be used; None for this machine alone. ``native``: it is all that is built, on Linux here."""
    forced = tuple((each, node) for each, node in chosen if node)
    names, bootstrap = flags.nodes, flags.bootstrap
    asked = names or forced or os.environ.get("KANIFOLD_NODES")
    if not asked and ((native and sys.platform == "linux") or not os.path.exists(settings_file("nodes.yaml"))):
        return None  # and nothing of nodes is loaded: no other one would be asked
    from orchestrator.nodes import node_selection

    return node_selection.select(names, forced, bootstrap)


def _outputs(flags: BuildFlags, tags: Sequence[Reference]) -> tuple[Output, ...]:
    """The destinations of the build: ``--output``, ``--push`` and ``--load``."""
    from msgspec.structs import replace

    from executor.registry import reference
    from orchestrator.outputs import DELETE, Push, gather, image_options

    found = gather(
        flags.outputs,
        push=flags.push or flags.push_by_digest,
        tags=[str(each) for each in tags],
        load=flags.load or bool(flags.load_to),
        may_delete=DELETE in flags.allow,
    )
    if flags.push_by_digest:
        found = tuple(replace(each, by_digest=True) if isinstance(each, Push) else each for each in found)
    for output in found:
        for name in image_options(output).names:
            reference.parse(name)
        dangling = output.dangling if isinstance(output, Push) else ""
        if dangling and (parsed := reference.parse(dangling)) != parsed.repository_only():
            raise UsageError(f"--output: dangling-name-prefix={dangling} is not the name of a repository")
    return found


def _reports(flags: BuildFlags) -> tuple[Report, ...]:
    """``--report``, and the step summary of a CI system."""
    summary = os.environ.get(_SUMMARY, "")
    if not summary:
        return flags.reports
    from orchestrator.request import Report

    return (*flags.reports, Report("step-summary", summary))


def _rewrites_timestamps(outputs: Sequence[Output]) -> bool:
    """Whether files' times are bounded; the outputs of one build share its layers."""
    from orchestrator.outputs import image_options

    said = {image_options(each).rewrite_timestamp for each in outputs} - {None}
    if len(said) > 1:
        raise UsageError("--output: one build has one rewrite-timestamp", why="its outputs ask for both")
    return said != {False}


def _registries(
    flags: BuildFlags, tags: Sequence[Reference], outputs: Sequence[Output], caches: Sequence[Cache]
) -> RegistrySettings:
    """The settings, with what flags, outputs and caches say of registries."""
    from executor.registry import reference, registry_settings
    from orchestrator.outputs import Push

    pushes = [each for each in outputs if isinstance(each, Push) and each.insecure]
    names = [name for each in pushes for name in (*each.image.names, each.dangling) if name]
    wanted = [each.registry for each in (*(tags if pushes else ()), *map(reference.parse, names))]
    insecure = (*flags.insecure, *wanted, *(each.insecure for each in caches if each.insecure))
    return registry_settings.with_flags(registry_settings.load_settings(), insecure, flags.mirrors, flags.timeouts)


def _annotations(flags: BuildFlags, platforms: Sequence[Platform], outputs: Sequence[Output]) -> tuple[Annotation, ...]:
    """``--annotation`` and those of outputs. What nothing of the build would bear is refused, as BuildKit does."""
    from orchestrator.outputs import image_options

    said = [image_options(each) for each in outputs]
    theirs = (values.output_annotation(*each, "--output") for image in said for each in image.annotations)
    found = (*flags.annotations, *theirs)
    built = [str(each) for each in platforms]
    docker = not all(each.oci_media_types for each in said)
    for annotation in found:
        if annotation.platform and annotation.platform not in built:
            raise UsageError(
                f"the annotation {annotation.key!r} is for {annotation.platform}, which is not built",
                why=f"this build is for {', '.join(built)}",
            )
        if docker and annotation.level != "manifest":
            raise UsageError(
                f"the annotation {annotation.key!r} of {annotation.level} needs OCI media types",
                why="an output asks for Docker's (oci-mediatypes=false), which have no place for it",
            )
    return found


def _compression(flags: BuildFlags, outputs: Sequence[Output]) -> Compression:
    """``--compression``, or what an output asks for; the whole build has one."""
    from executor.protocol import Compression, CompressionKind
    from orchestrator.outputs import image_options

    said = [image_options(each) for each in outputs]
    kinds = {flags.compression, *(each.compression for each in said)} - {None}
    levels = {flags.compression_level, *(each.compression_level for each in said)} - {None}
    if len(kinds) > 1 or len(levels) > 1:
        raise UsageError("one build has one compression", why="its outputs ask for several")
    kind = next(iter(kinds), None) or CompressionKind.GZIP
    level = next(iter(levels), None)
    match kind:
        case CompressionKind.GZIP:
            lowest, highest = 0, 9
        case CompressionKind.ZSTD:
            lowest, highest = 1, 22
        case CompressionKind.UNCOMPRESSED:
            lowest = highest = 0
        case _:
            assert_never(kind)
    if level is not None and not lowest <= level <= highest:
        raise UsageError(
            f"--compression-level {level} is not one of {kind}'s", why=f"they go from {lowest} to {highest}"
        )
    if kind is CompressionKind.ZSTD and not all(each.oci_media_types for each in said):
        raise UsageError("zstd layers need OCI media types", why="Docker's own have no name for them")
    force = any(each.force_compression for each in said)
    return Compression(kind, level if kind is not CompressionKind.UNCOMPRESSED else None, force)
