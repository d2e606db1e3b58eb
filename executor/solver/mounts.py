"""What ``RUN --mount`` shows to a step: contexts, stages and images, caches, empty file systems, secrets.

A bind mount shows files as COPY would see them: without what the ignore file hides, and owned by root when they come
from a context. What a step writes to a writable one is thrown away with it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from executor.dockerfile import Dockerfile, Stage
from executor.dockerfile.instructions import Heredoc, Run
from executor.dockerfile.instructions import Mount as Wanted
from executor.protocol import AskAgent, AskSecret
from executor.rootfs import moment
from executor.rootfs.tree import Tree
from executor.sandbox.spec import Bind, BindFd, Mount, Secret, Tmpfs
from executor.snapshotter import materialise
from executor.snapshotter.snapshotter import Parents
from executor.solver import content, copying, graph, keys, scope, treename
from executor.solver.agent import forwarded
from executor.solver.copying import normal_path
from executor.solver.graph import MAIN_CONTEXT, FromStage, Origin, Scratch
from executor.solver.inputs import Input
from executor.solver.named import Named
from executor.solver.once import Once
from executor.solver.sources import Files
from executor.solver.state import State
from executor.solver.treename import Name, Observed
from executor.solver.workshop import Workshop
from executor.store import cachemounts, locks, snapshots
from executor.store.snapshots import Snapshot
from platforms.errors import BuildError, DockerfileError

SCRIPTS: Final = "/dev/pipes"
"""Where a here-document that is a program is put (BuildKit's dockerfile2llb)."""
_SHORTEST_MASKED: Final = 4
"""Characters: a shorter secret would mask half of the log."""

Maker = Callable[[ExitStack, tuple[str, ...]], Mount | None]
"""Makes one mount for a step whose files rest on what those outside caches say; what has to end with the step goes on
the stack."""


class Origins(Protocol):
    """What ``from=`` may name, and the files of it."""

    dockerfile: Dockerfile
    named: Named

    def source(self, origin: Origin) -> Files:
        """The files that ``origin`` names, to copy from."""
        ...

    def snapshots_of(self, origin: Origin) -> Parents:
        """The layers of what ``origin`` names."""
        ...


class Mounts(msgspec.Struct, frozen=True):
    """The mounts of one RUN: what counts for its key, and how to have them while it runs."""

    key: Observed
    same: Callable[[], Observed] | None
    """The key with what is mounted from stages by its content rather than by the run that made it; None when that is no
    difference."""
    open: Callable[[ExitStack], tuple[Mount, ...]]
    masked: Callable[[], tuple[str, ...]]
    """Texts that never appear in a log, none of them longer than a line; longest first."""

    @contextmanager
    def mounted(self) -> Iterator[tuple[Mount, ...]]:
        """The mounts, while the step runs."""
        with ExitStack() as stack:
            yield self.open(stack)


def prepare(
    origins: Origins, workshop: Workshop, stage: Stage, state: State, instruction: Run, script: Heredoc | None
) -> Mounts:
    """The mounts of ``instruction``; nothing is opened yet."""
    parts: list[Observed] = []
    contents: dict[int, Callable[[], Observed]] = {}
    makers: list[Maker] = []
    secrets: list[Callable[[], bytes | None]] = []
    for wanted in instruction.mounts:
        target = normal_path(state.workdir, wanted.target) if wanted.target else ""
        if target == "/":
            raise DockerfileError(f'invalid mount target "{wanted.target}"', where=instruction.location)
        maker: Maker | None
        taken = workshop.inputs.add(f"{wanted.type} mount")
        match wanted.type:
            case "bind":
                origin = _origin(origins, stage, instruction, wanted) or MAIN_CONTEXT
                part, same, maker = _bind(origins, workshop, origin, wanted, target, taken)
                if same is not None:
                    contents[len(parts)] = same
            case "cache":
                part, maker = _cache(
                    origins, workshop, _origin(origins, stage, instruction, wanted), wanted, target, taken
                )
            case "tmpfs":
                taken.nothing()
                part, maker = ("tmpfs", target, wanted.size), _always(Tmpfs(target, wanted.size))
            case "secret":
                value = Once(lambda wanted=wanted: _secret(workshop, wanted))  # type: ignore[misc]
                secrets.append(value)
                part, maker = _secret_mount(wanted, target, value, taken)
            case "ssh":
                position = sum(1 for each in instruction.mounts[: len(parts)] if each.type == "ssh")
                part, maker = _ssh(workshop, wanted, target or f"/run/buildkit/ssh_agent.{position}", taken)
        parts.append(part)
        if maker is not None:
            makers.append(maker)
    if script is not None:
        content = script.content.encode()
        name = script.file()
        parts.append(("script", name, content))
        makers.append(_always(Secret(f"{SCRIPTS}/{name}", content, mode=0o755)))

    def masked() -> tuple[str, ...]:
        found: list[str] = []
        for secret in secrets:
            text = (secret() or b"").decode("utf-8", "replace").strip()
            found += [line for line in set(text.splitlines()) if len(line) >= _SHORTEST_MASKED]
        return tuple(sorted(found, key=len, reverse=True))

    told = treename.places((state.tree, *parts))
    if any(each.type == "cache" for each in instruction.mounts):
        parts.append(treename.by_content("", told))  # what the directories are those of

    def opened(stack: ExitStack) -> tuple[Mount, ...]:
        made = [maker(stack, told) for maker in makers]
        return tuple(mount for mount in made if mount is not None)

    def by_content() -> Observed:
        return tuple(contents[number]() if number in contents else part for number, part in enumerate(parts))

    return Mounts(tuple(parts), by_content if contents else None, opened, Once(masked))


def secret_variables(workshop: Workshop, instruction: Run) -> tuple[tuple[str, str], ...]:
    """The secrets that ``instruction`` wants as environment variables; "" for one that it can do without.

    BuildKit (llbsolver/ops/exec.go, ``loadSecretEnv``) sets the variable in any case, over one of the image's own.
    """
    found: list[tuple[str, str]] = []
    for wanted in instruction.mounts:
        if wanted.type == "secret" and wanted.env is not None:
            value = _secret(workshop, wanted) or b""
            found.append((wanted.env, value.decode("utf-8", "surrogateescape")))
    return tuple(found)


def _always(mount: Mount) -> Maker:
    return lambda _stack, _told: mount


def _origin(origins: Origins, stage: Stage, instruction: Run, wanted: Wanted) -> Origin | None:
    """What ``from=`` of a mount names; None without one."""
    if not wanted.from_:
        return None
    where = instruction.location
    return graph.named_origin(origins.dockerfile, wanted.from_, stage.index, where, origins.named, numbers=False)


def _bind(
    origins: Origins, workshop: Workshop, origin: Origin, wanted: Wanted, target: str, taken: Input
) -> tuple[Observed, Callable[[], Observed] | None, Maker]:
    """A bind mount: its key, the same by the content of a stage that it shows, and how it is made."""
    found = origins.source(origin)
    path = normal_path("/", wanted.source or "/")
    source = copying.Source(found.open(taken), path, wildcards=False, context=True) if found.identity is None else None
    identity: Observed = found.identity
    if source is not None:
        identity = content.select(workshop, source).name()
    else:
        taken.nothing()

    def make(stack: ExitStack, _told: tuple[str, ...]) -> Mount:
        if source is not None:
            made, inside = _materialised(workshop, source)
            parents: Parents = (made,)
        else:
            parents, inside = origins.snapshots_of(origin), path
        shown = stack.enter_context(workshop.snapshotter.mounted(parents, inside, readonly=wanted.readonly))
        return BindFd(shown.fd, target, readonly=wanted.readonly, layers=shown.directories)

    def shown() -> Observed:
        tree = found.open(taken)
        there = tree.lstat(tree.resolve(os.fsencode(path))) is not None
        whole = copying.Source(tree, path, wildcards=False, contents=False)
        text = content.select(workshop, whole).name() if there else ""
        return "bind", target, path, treename.by_content(text, treename.places(identity)), wanted.readonly

    part: Observed = ("bind", target, path, identity, wanted.readonly)
    return part, shown if isinstance(origin, FromStage) else None, make


def _materialised(workshop: Workshop, source: copying.Source) -> tuple[Snapshot, str]:
    """A snapshot that looks like the tree of ``source``, and where in it is what ``source`` names."""
    plan = copying.Plan(None, workshop.directory, moment.nanoseconds(workshop.job.epoch))
    path = copying.matches(source)[0].path.decode("utf-8", "surrogateescape")
    real = replace(source, pattern=f"/{path}", contents=not path)
    for match, top, found in content.select(workshop, real).matches():
        copying.copy_match(plan, real, match, top, found, f"/{path.rpartition('/')[0]}/", copying.CopyOptions())
    entries = plan.finish()
    key = f"context:{content.name(workshop, entries)}"
    made = snapshots.find(workshop.store, key)
    if made is None:
        with locks.lock(workshop.store, key, cancel=workshop.cancelled):
            made = snapshots.find(workshop.store, key)
            if made is None:
                made = materialise.write(workshop.store, content.unchanged(entries), keys=(key,))
    return made, path


def _cache(
    origins: Origins, workshop: Workshop, origin: Origin | None, wanted: Wanted, target: str, taken: Input
) -> tuple[Observed, Maker]:
    """A cache directory: its key, and how it is made.

    Steps whose files rest on the word of outside caches have directories of their own: what such a step writes is found
    by those that rest on the same caches, and by no other.
    """
    name = scope.cache_name(workshop.job.build_args, wanted.id or target)
    source, seed = None, treename.name("")
    if origin is not None and not isinstance(origin, Scratch):
        source = origins.source(origin)
        seed = _name_of(workshop, source, taken)
    else:
        taken.nothing()

    # A cache with other owners or modes, or filled with other files, is another one; else the id alone names it.
    special = (wanted.uid or 0, wanted.gid or 0, 0o755 if wanted.mode is None else wanted.mode)
    identity = name if special == (0, 0, 0o755) else "{} ({}:{} {:o})".format(name, *special)
    filled = f" from {wanted.source or '/'} of " if source is not None else ""

    def populate(directory: str) -> None:
        if source is not None:
            _seed(workshop, source.open(taken), wanted.source, directory)
        uid, gid, mode = special
        try:
            os.chown(directory, uid, gid)
        except OSError as error:
            # Where a step has one id only, the directory is that one's already, and there is no other to give it to.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
        os.chmod(directory, mode)

    def make(stack: ExitStack, told: tuple[str, ...]) -> Mount:
        whose = f" told by {', '.join(told)}" if told else ""
        directory = stack.enter_context(
            cachemounts.acquire(
                workshop.store,
                identity + filled + seed.here + whose,
                wanted.sharing or "shared",
                populate=populate,
                cancel=workshop.cancelled,
            )
        )
        return Bind(directory, target, readonly=wanted.readonly, owner=special[:2])

    return ("cache", target, identity, filled, seed, wanted.readonly), make


def _name_of(workshop: Workshop, found: Files, taken: Input) -> Name:
    """Names the files ``found``: the result that they are, or a hash of their content."""
    if found.identity is not None:
        taken.nothing()
        return found.identity
    source = copying.Source(found.open(taken), "/", wildcards=False, context=True)
    return treename.name(keys.key("files", content.select(workshop, source).name()))


def _seed(workshop: Workshop, tree: Tree, path: str, directory: str) -> None:
    """Fill a new cache directory with the files below ``path`` in ``tree``."""
    plan = copying.Plan(None, workshop.directory, moment.nanoseconds(workshop.job.epoch))
    copying.copy(
        plan,
        copying.Source(tree, normal_path("/", path or "/"), wildcards=False),
        "/",
        copying.CopyOptions(),
    )
    materialise.materialise(plan.finish(), directory)


def ssh_socket(state: State, instruction: Run) -> str:
    """Where the first SSH agent of ``instruction`` listens, for SSH_AUTH_SOCK; "" without one."""
    for wanted in instruction.mounts:
        if wanted.type == "ssh":
            return normal_path(state.workdir, wanted.target) if wanted.target else "/run/buildkit/ssh_agent.0"
    return ""


def _ssh(workshop: Workshop, wanted: Wanted, target: str, taken: Input) -> tuple[keys.Part, Maker]:
    name = wanted.id or "default"
    uid, gid, mode = wanted.uid or 0, wanted.gid or 0, 0o600 if wanted.mode is None else wanted.mode
    if wanted.required:
        taken.nothing()  # that it is there counts for a step that is run, not for one that is found
    given = None if wanted.required else workshop.conversation.ask(AskAgent(name)) is not None

    def make(stack: ExitStack, _told: tuple[str, ...]) -> Mount | None:
        if workshop.conversation.ask(AskAgent(name)) is None:
            if wanted.required:
                raise BuildError(
                    f"no SSH agent {name} forwarded from the client",
                    why="the step requires it",
                    remedy="pass --ssh default, or --ssh ID=SOCKET-OR-KEY",
                )
            return None
        path = stack.enter_context(forwarded(workshop, name, workshop.scratch(), uid=uid, gid=gid, mode=mode))
        return Bind(path, target)

    return ("ssh", name, target, uid, gid, mode, given), make


def _secret(workshop: Workshop, wanted: Wanted) -> bytes | None:
    name = wanted.id or os.path.basename(wanted.target)
    value = workshop.conversation.ask(AskSecret(name))
    if value is None and wanted.required:
        raise BuildError(
            f"secret {name}: not found",
            why="the step requires it",
            remedy=f"pass it with --secret id={name},src=FILE or --secret id={name},env=VARIABLE",
        )
    return value


def _secret_mount(
    wanted: Wanted, target: str, value: Callable[[], bytes | None], taken: Input
) -> tuple[keys.Part, Maker | None]:
    name = wanted.id or os.path.basename(wanted.target)
    uid, gid, mode = wanted.uid or 0, wanted.gid or 0, 0o400 if wanted.mode is None else wanted.mode
    # Its value never counts, but a step that can do without it does something else without it.
    if wanted.required:
        taken.nothing()  # that it is there counts for a step that is run, not for one that is found
    given = None if wanted.required else value() is not None
    part: keys.Part = ("secret", name, target, wanted.env, uid, gid, mode, given)
    if wanted.env is not None and not target:
        return part, None
    place = target or f"/run/secrets/{os.path.basename(name)}"

    def make(_stack: ExitStack, _told: tuple[str, ...]) -> Mount | None:
        data = value()
        return None if data is None else Secret(place, data, uid, gid, mode)

    return part, make
