"""The plan of a build: the Dockerfile, its ignore file and contexts, and the external images that it needs.

It is made once for all platforms, before any executor starts, so that they build from the same sources.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Final

import msgspec

from executor import protocol
from executor.dockerfile import Dockerfile, global_scope, parse
from executor.registry import reference
from executor.solver import builtin_args, graph
from executor.solver.named import Named
from orchestrator import contexts, epoch
from orchestrator.contexts import ContextFiles, ElsewhereError, FetchOptions
from orchestrator.request import BuildRequest
from platforms import regular
from platforms.errors import BuildError, ContextError, DockerfileError, KanifoldError, UsageError
from platforms.paths import below
from platforms.platform import Platform

_TEXT_LIMIT: Final = 16 << 20
"""Maximum size of a Dockerfile or ignore file in bytes."""


NAMES: Final = ("Dockerfile", "dockerfile", "Containerfile")
"""Default names of the Dockerfile in a context; the first that exists is used."""
_IGNORE: Final = ".dockerignore"


class DockerfileSource(msgspec.Struct, frozen=True):
    """A Dockerfile with its ignore file and context."""

    data: bytes
    name: str
    """Its path for error messages."""
    ignore: str
    """The text of the ignore file."""
    files: ContextFiles


class BuildPlan(msgspec.Struct, frozen=True):
    """What all platforms share."""

    dockerfile: Dockerfile
    data: bytes
    """The bytes of the Dockerfile."""
    name: str
    """The path of the Dockerfile for error messages."""
    contexts: tuple[protocol.Context, ...]
    images: tuple[graph.External, ...]
    """External images that a platform needs."""
    used: frozenset[str] = frozenset()
    """The named contexts that a platform uses, according to the Dockerfile."""
    build_args: tuple[tuple[str, str], ...] = ()
    """The build args for executors."""
    running: frozenset[Platform] = frozenset()
    """The platforms whose own programs the Dockerfile runs."""
    may_run: bool = True
    """Whether there may be a RUN."""
    epoch: int | None = None
    """SOURCE_DATE_EPOCH, seconds since 1970."""

    def named(self, platform: Platform) -> Named:
        """Return the named contexts for a build of ``platform``."""
        return Named(frozenset(each.name for each in self.contexts if each.name), platform)


def read(request: BuildRequest, platforms: Iterable[Platform], options: FetchOptions) -> BuildPlan:
    """Read the Dockerfile and contexts; what is remote is fetched.

    Raises ``DockerfileError``, ``ContextError`` or ``UsageError``.
    """
    return plan(request, platforms, source(request, options), options)


def at_hand(request: BuildRequest) -> BuildPlan | None:
    """Return the plan of a build without remote sources; None if there are some, or on an error."""
    try:
        return read(request, request.platforms, FetchOptions(""))
    except (ElsewhereError, KanifoldError):
        return None


def source(request: BuildRequest, options: FetchOptions) -> DockerfileSource:
    """Return the Dockerfile and the main context. Raises as ``read`` does, except for the content of the Dockerfile."""
    main = contexts.main(request.context, options, keep_git_dir=_keeps_git_dir(request))
    data, name, ignore = _dockerfile(request, main, options)
    return DockerfileSource(data, name, ignore, main)


def plan(
    request: BuildRequest, platforms: Iterable[Platform], source: DockerfileSource, options: FetchOptions
) -> BuildPlan:
    """Return the plan for a Dockerfile; without ``platforms``, external images are not determined."""
    dockerfile = parse(source.data, source.name)
    found: list[protocol.Context] = [
        protocol.DirectoryContext("", source.files.directory, source.ignore, source.files.owners, source.files.git)
    ]
    found += [named_context(key, value, options) for key, value in request.build_contexts]
    names = frozenset(each.name for each in found if each.name)
    targets = tuple(platforms)
    scopes = [_scope(request, dockerfile, each) for each in targets]
    given, moment = dict(request.build_args), None
    used: set[str] = set()
    if scopes:
        places = dict(request.build_contexts)
        used.add(Named(names).find(given.get(epoch.NAME, "") or scopes[0].get(epoch.NAME, "")))
        moment = epoch.resolve(dockerfile, given, scopes[0], source.files, places, options)
        given = epoch.with_epoch_argument(given, scopes[0], moment)
    images: dict[str, graph.External] = {}
    running: set[Platform] = set()
    may_run = not scopes
    for target, seen in zip(targets, scopes, strict=True):
        needed = graph.plan(dockerfile, request.options.target, seen, Named(names, target))
        if target in graph.run_on(dockerfile, needed, seen, target):
            running.add(target)
        may_run = may_run or graph.may_run(dockerfile, needed)
        used.update(needed.contexts)
        for image in needed.images:
            images.setdefault(image.name, image)
    for context in found:
        if isinstance(context, protocol.ImageContext) and context.name in used:
            images.setdefault(context.image, graph.External(context.image))
    return BuildPlan(
        dockerfile,
        source.data,
        source.name,
        tuple(found),
        tuple(images.values()),
        frozenset(used),
        tuple(given.items()),
        frozenset(running),
        may_run,
        moment,
    )


def stages(request: BuildRequest, made: BuildPlan, platform: Platform) -> tuple[tuple[str, Platform], ...]:
    """Return the stages that the build of ``platform`` needs, by name or number, with the platform that each is of."""
    seen, dockerfile = _scope(request, made.dockerfile, platform), made.dockerfile
    needed = graph.plan(dockerfile, request.options.target, seen, made.named(platform))
    return tuple(
        (dockerfile.stages[index].label, graph.bottom_platform(dockerfile, needed, index, seen, platform))
        for index in needed.stages
    )


def _scope(request: BuildRequest, dockerfile: Dockerfile, platform: Platform) -> dict[str, str]:
    """Return the variables that FROM sees on ``platform``."""
    stage = request.options.target or dockerfile.stages[-1].name
    predefined = builtin_args.platform_arguments(request.build_platform, platform, stage)
    return global_scope(dockerfile, dict(request.build_args), predefined)


def _keeps_git_dir(request: BuildRequest) -> bool:
    return dict(request.build_args).get("BUILDKIT_CONTEXT_KEEP_GIT_DIR", "").lower() in ("1", "t", "true")


def named_context(name: str, value: str, options: FetchOptions) -> protocol.Context:
    """Return the context of ``--build-context name=value``, with buildx's prefixes."""
    if value.startswith("docker-image://"):
        location = value.removeprefix("docker-image://")
        if location == "scratch":
            return protocol.ScratchContext(name)
        reference.parse(location)
        return protocol.ImageContext(name, location)
    if value.startswith("oci-layout://"):
        return protocol.LayoutContext(name, os.path.abspath(value.removeprefix("oci-layout://")))
    found = contexts.named(name, value, options)
    ignore = "" if found.fetched else _ignore_text((found.directory, _IGNORE))
    return protocol.DirectoryContext(name, found.directory, ignore, git=found.git)


def _dockerfile(request: BuildRequest, main: ContextFiles, options: FetchOptions) -> tuple[bytes, str, str]:
    """Return the Dockerfile, its name for error messages, and the text of its ignore file."""
    ignore_file = () if main.fetched else ((main.directory, _IGNORE),)
    if request.dockerfile == "-":
        path = os.path.join(options.directory(), "Dockerfile")
        contexts.stdin(path, options)
        return _read("", path, "Dockerfile"), "Dockerfile", _ignore_text(*ignore_file)
    if main.dockerfile:
        if request.context == "-" and request.dockerfile:
            raise UsageError("two Dockerfiles: --file names one, and what comes on stdin is another, not an archive")
        return _read("", main.dockerfile, "Dockerfile"), "Dockerfile", ""
    if main.fetched:
        return *_dockerfile_in(main.directory, request.dockerfile), ""
    path = request.dockerfile or os.path.join(request.context, NAMES[0])
    if not request.dockerfile and not os.path.lexists(path):
        for other in NAMES[1:]:
            if os.path.lexists(below(request.context, other)):
                path = below(request.context, other)
                break
    name = path if os.path.isabs(path) else os.path.relpath(path)
    top, inside = _in_context(main.directory, path)
    own = (top, inside + _IGNORE) if top else (os.path.dirname(path) or os.curdir, os.path.basename(path) + _IGNORE)
    return _read(top, inside or path, path), name, _ignore_text(own, *ignore_file)


def _in_context(context: str, path: str) -> tuple[str, str]:
    """Return ``context`` and the path in it, if ``path`` is in it by any name; else "" twice: the user chose it.

    Links in the context are not resolved, as the user did not choose their targets.
    """
    whole = os.path.abspath(path)
    top = os.stat(context)
    real = os.path.realpath(os.path.dirname(whole))
    for place in (whole, below(real, os.path.basename(whole)) if real != whole else whole):
        above = os.path.dirname(place)
        while True:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(above), top):
                    return context, os.path.relpath(place, above)
            if above == os.path.dirname(above):
                break
            above = os.path.dirname(above)
    return "", ""


def _dockerfile_in(directory: str, path: str) -> tuple[bytes, str]:
    """Return the Dockerfile in a fetched context, and its name: ``path``, or a default name."""
    from executor.rootfs.tree import open_directory

    tree = open_directory(directory)
    try:
        for name in (path,) if path else NAMES:
            data = tree.read(os.fsencode(name), _TEXT_LIMIT)
            if data is not None:
                return data, name
    except (BuildError, OSError) as error:
        raise DockerfileError(f"cannot read the Dockerfile {name} of the context", why=str(error)) from error
    finally:
        tree.close()
    raise DockerfileError(
        f"there is no {path or NAMES[0]} in the build context",
        remedy="--file names a path inside of a context that is fetched, or - for stdin",
    )


def _read(directory: str, path: str, name: str) -> bytes:
    """Return the Dockerfile ``path`` in ``directory``, or anywhere if that is ""; ``name`` is for error messages."""
    try:
        with regular.open_below(directory, path) if directory else regular.open_file(path) as file:
            return _bounded(file.read(_TEXT_LIMIT + 1), name)
    except OSError as error:
        raise DockerfileError(
            f"cannot read the Dockerfile {name}",
            why=error.strerror or str(error),
            remedy="name the file with --file, or the directory that holds it as CONTEXT",
        ) from error


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > _TEXT_LIMIT:
        raise DockerfileError(f"{name} is too large", why=f"more than {_TEXT_LIMIT >> 20} MiB")
    return data


def _ignore_text(*places: tuple[str, str]) -> str:
    """Return the first existing ignore file, by directory and path: that of the Dockerfile precedes the context's."""
    for directory, path in places:
        try:
            with regular.open_below(directory, path) as file:
                return _bounded(file.read(_TEXT_LIMIT + 1), path).decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            whole = os.path.normpath(f"{directory}/{path}")
            raise ContextError(f"cannot read the ignore file {whole}", why=error.strerror or str(error)) from error
    return ""
