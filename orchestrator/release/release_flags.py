"""The flags of ``kanifold release``, and what they make of its file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from orchestrator import options
from orchestrator.flags import BuildFlags
from orchestrator.options import each, number, switch, text, texts
from orchestrator.release import build_order, entitlements, overrides, release_jobs, release_sources
from orchestrator.release.build_order import SelectedImages
from orchestrator.release.image_request import arguments, parameters
from orchestrator.release.model import Release, ReleaseImage
from orchestrator.release.release_jobs import FOLDER, ReleaseJob
from orchestrator.request import BuildRequest
from platforms.errors import UsageError


def variables(given: Iterable[str], flag: str) -> dict[str, str]:
    """Parse ``NAME=VALUE``."""
    found = {}
    for each_ in given:
        name, equals, value = each_.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} {each_!r} is not NAME=VALUE")
        found[name] = value
    return found


class ReleaseFlags(options.Flags):
    """The flags of ``kanifold release``, in the order of its help."""

    file = text(
        "-f",
        "--file",
        metavar="FILE",
        complete=options.complete_files,
        help="The release file, a bake file or a Compose file (default: kanifold.yaml, else what bake finds).",
    )
    push = switch(
        "--push", help="Push all images that were named. Tags move only when every image is built and tested."
    )
    load = switch("--load", help="Hand the images to docker, podman or containerd, when all are built and tested.")
    only = texts(
        "--only",
        metavar="KEY=VALUE[,…]",
        read=each(build_order.only),
        help="Build some platforms alone (platform=linux/arm64), or the images with these values of a matrix.",
    )
    overrides = texts(
        "--set",
        metavar="IMAGE.KEY=VALUE",
        read=each(overrides.parse),
        help="Override what the file says of an image, as docker buildx bake does: web.args.VERSION=2, *.platform=…",
    )
    variables = texts(
        "--var", metavar="NAME=VALUE", read=variables, help="The value of a variable that the file declares."
    )
    allow = texts(
        "--allow",
        metavar="ENTITLEMENT",
        read=entitlements.parse,
        help=(
            "Let the file have it: test.script, ssh, fs.read=PATH, fs.write=PATH outside of its directory; "
            "network.host, security.insecure and buildx.local.delete as for a build."
        ),
    )
    dry_run = switch(
        "--dry-run", help="Print what would be built, as a table; with --progress rawjson as JSON. Build nothing."
    )
    show = switch("--print", help="Print the plan as docker buildx bake --print does. Build nothing.")
    job = text(
        "--job",
        metavar="NAME",
        help=(
            "Build and test one platform of one image, push it by digest and move no tag: a job of kanifold matrix, "
            "such as web.linux-arm64."
        ),
    )
    join = switch("--join", help="Publish together what the jobs of a matrix have built, all or nothing.")
    metadata = text(
        "--metadata",
        metavar="DIR",
        complete=options.complete_directories,
        help=f"Where jobs leave what --join reads (default: {FOLDER}).",
    )
    jobs = number("--jobs", "-j", least=0, help="Platforms built at once, of all images together (default: all).")
    nodes = BuildFlags.nodes
    bootstrap = BuildFlags.bootstrap
    no_cache = BuildFlags.no_cache
    audit = BuildFlags.audit
    retry = BuildFlags.retry
    snapshotter = BuildFlags.snapshotter
    isolation = BuildFlags.isolation
    load_to = BuildFlags.load_to
    debug = options.DEBUG
    progress = BuildFlags.progress
    quiet = BuildFlags.quiet
    metadata_file = text(
        "--metadata-file",
        metavar="FILE",
        read=BuildFlags.metadata_file.read,
        complete=options.complete_files,
        help="Write the digests of all images as JSON, by image.",
    )
    trace = BuildFlags.trace
    reports = BuildFlags.reports
    insecure = options.INSECURE
    mirrors = options.MIRRORS
    timeouts = options.TIMEOUT
    emulator_image = BuildFlags.emulator_image
    root = BuildFlags.root


_SHARED: Final = (
    "audit", "retry", "snapshotter", "isolation", "load_to", "insecure", "mirrors", "timeouts", "emulator_image",
    "root", "bootstrap", "progress", "quiet", "trace", "reports", "jobs", "dry_run",
)  # fmt: skip
"""The flags of a build that are those of all builds of the release."""


class ReleasePlan(msgspec.Struct, frozen=True):
    """What the command line asks for."""

    release: Release
    selected: SelectedImages
    names: tuple[str, ...]
    """Those that were given."""
    given: Mapping[str, Any]
    allowed: tuple[str, ...]
    job: ReleaseJob | None = None
    """The job of a matrix that is all that is built; None for the whole release."""
    provided: Mapping[str, str] = {}
    """The places of images that other jobs have built, by name."""

    @property
    def metadata(self) -> str:
        """The directory in which jobs leave their metadata."""
        return ReleaseFlags(self.given).metadata or FOLDER

    def request(self, image: ReleaseImage, places: Mapping[str, str]) -> BuildRequest:
        """Return the request of ``image``; ``places`` are those of the images that it is built from, by name."""
        words = arguments(image, self.release.directory, places)
        shared = {key: self.given[key] for key in _SHARED}
        if self.given["nodes"]:
            shared["nodes"] = self.given["nodes"]
        if self.given["no_cache"]:
            shared["no_cache"] = True
        shared["allow"] = entitlements.of_builds(self.allowed)
        shared["push_by_digest"] = self.job is not None and image.name in self.selected.wanted
        return parameters(image, words, shared)

    def first_requests(self) -> tuple[BuildRequest, ...]:
        """Return the requests of all images as far as they are known before anything is built.

        Raises ``UsageError`` for paths that the file may not name; joining jobs uses none.
        """
        found = []
        for image in self.selected.images:
            places = {**dict.fromkeys(image.depends_on, "docker-image://scratch"), **self.provided}
            request = self.request(image, places)
            if not self.given["join"]:
                entitlements.check_paths(image, request, self.release.directory, self.allowed)
            found.append(request)
        return tuple(found)


def plan(given: Mapping[str, Any], names: tuple[str, ...], environ: Mapping[str, str]) -> ReleasePlan:
    """Return the plan of the command line of which click has ``given`` this. Raises ``KanifoldError``."""
    flags = ReleaseFlags(given)
    release = release_sources.read(flags.file, flags.variables, environ, flags.overrides)
    if flags.job or flags.join:
        return _part(flags, release, names)
    selected = build_order.select(release, names, flags.only)
    if selected.narrowed and flags.push:
        raise UsageError(
            "--push needs all platforms",
            why="--only platform= leaves some out, and the tags would lose them",
            remedy="leave one of the two out; --set '*.platform=…' says that an image has these platforms alone",
        )
    selected = replace(selected, images=tuple(_with_destinations(each, flags) for each in selected.images))
    entitlements.check(selected.images, flags.allow)
    return ReleasePlan(release, selected, names, given, flags.allow)


def _part(flags: ReleaseFlags, release: Release, names: tuple[str, ...]) -> ReleasePlan:
    """Return the plan of a job of a matrix, or of joining them."""
    if flags.job and flags.join:
        raise UsageError("--job and --join are two commands: the one builds, the other publishes what was built")
    flag = "--job" if flags.job else "--join"
    if flags.only or flags.load or flags.load_to:
        raise UsageError(f"{flag} goes with none of --only, --load, --load-to")
    selected = build_order.select(release, names, ())
    if not flags.job:
        images = tuple(overrides.with_push(each, True) for each in selected.images if each.name in selected.wanted)
        published = tuple(each for each in images if each.tags)
        return ReleasePlan(release, replace(selected, images=published), names, flags.given, flags.allow)
    job = release_jobs.find(selected, flags.job)
    selected, provided = release_jobs.select(release, job, flags.metadata or FOLDER)
    images = tuple(
        overrides.with_push(each, True) if each.name in selected.wanted else each for each in selected.images
    )
    entitlements.check(images, flags.allow)
    return ReleasePlan(release, replace(selected, images=images), names, flags.given, flags.allow, job, provided)


def _with_destinations(image: ReleaseImage, flags: ReleaseFlags) -> ReleaseImage:
    if flags.push:
        image = overrides.with_push(image, True)
    return overrides.with_load(image, True) if flags.load or flags.load_to else image
