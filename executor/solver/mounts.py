"""The mounts of ``RUN --mount``: contexts, stages and images, caches, empty file systems, secrets, SSH agents.

A bind mount shows files as COPY would see them: without what the ignore file hides, and owned by root when they come
from a context. What a step writes to a writable one is thrown away with it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final, Protocol, assert_never

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.conversation import Conversation
from executor.dockerfile import Stage
from executor.dockerfile.instructions import Mount as Wanted
from executor.dockerfile.instructions import Run, inline_script
from executor.protocol import AskAgent, AskSecret
from executor.sandbox.spec import Bind, BindFd, Mount, ScriptFile, SecretFile, Tmpfs
from executor.snapshotter import materialise
from executor.snapshotter.snapshotter import Snapshotter
from executor.solver import builtin_args, content, copying, keys, lifetime, treename
from executor.solver.content import Contents
from executor.solver.copying import CopySource, normal_path
from executor.solver.graph import MAIN_CONTEXT, FromScratch, FromStage, Origin
from executor.solver.inputs import Input
from executor.solver.lazy import Lazy
from executor.solver.origins import Origins
from executor.solver.services import Memory, Services
from executor.solver.sources import FileSource
from executor.solver.state import State
from executor.solver.treename import Name, Observed
from executor.store import locks, snapshots
from executor.store.snapshots import Snapshot
from platforms.errors import BuildError, DockerfileError

SCRIPTS: Final = "/dev/pipes"
"""Where a here-document that is a program is put (BuildKit's dockerfile2llb)."""
_SHORTEST_MASKED: Final = 4
"""Characters: a shorter secret would mask half of the log."""


class StepMount(Protocol):
    """A mount of a RUN, before it is mounted."""

    @property
    def key(self) -> Observed:
        """The mount's part of the step's cache key."""
        ...

    def by_content(self) -> Observed:
        """Return ``key`` with a digest of the files of a stage in place of the name of the result that they are
        from."""
        ...

    def open(self, stack: ExitStack, sources: tuple[str, ...]) -> Mount | None:
        """Return the mount for the sandbox; None for none. What has to be closed after the step is added to ``stack``.

        ``sources`` are the remote caches that the files of the step rest on.
        """
        ...


class Mounts(msgspec.Struct, frozen=True):
    """The mounts of one RUN: their part of its cache key, and how they are mounted while it runs."""

    mounts: tuple[StepMount, ...]
    secrets: tuple[SecretValue, ...]
    agent: str
    """The path of the first SSH agent's socket, for SSH_AUTH_SOCK; "" without one."""
    sources: tuple[str, ...]
    """The remote caches that the files of the stage and of the mounts rest on."""

    @property
    def key(self) -> Observed:
        """The mounts' part of the step's cache key."""
        return (*(each.key for each in self.mounts), *self._rests_on)

    def by_content(self) -> Observed | None:
        """Return ``key`` with digests for files of stages; None if no mount has any."""
        if not any(isinstance(each, BindMount) and each.of_stage for each in self.mounts):
            return None
        return (*(each.by_content() for each in self.mounts), *self._rests_on)

    @property
    def _rests_on(self) -> tuple[Name, ...]:
        """The remote caches whose directories the cache mounts are."""
        caches = any(isinstance(each, CacheMount) for each in self.mounts)
        return (treename.by_content("", self.sources),) if caches else ()

    @contextmanager
    def mounted(self) -> Iterator[tuple[Mount, ...]]:
        """Open the mounts while the block runs."""
        with ExitStack() as stack:
            opened = [each.open(stack, self.sources) for each in self.mounts]
            yield tuple(each for each in opened if each is not None)

    def variables(self) -> tuple[tuple[str, str], ...]:
        """Return the secrets that are environment variables; "" for an optional one that does not exist.

        BuildKit (llbsolver/ops/exec.go, ``loadSecretEnv``) sets the variable in any case, over one of the image's own.
        """
        return tuple(
            (each.wanted.env, (each.value() or b"").decode("utf-8", "surrogateescape"))
            for each in self.secrets
            if each.wanted.env is not None
        )

    def masked(self) -> tuple[str, ...]:
        """Return the lines of secrets that logs must not contain, longest first."""
        found: list[str] = []
        for secret in self.secrets:
            text = (secret.value() or b"").decode("utf-8", "replace").strip()
            found += [line for line in set(text.splitlines()) if len(line) >= _SHORTEST_MASKED]
        return tuple(sorted(found, key=len, reverse=True))


class MountPlanner(msgspec.Struct, frozen=True):
    """Plans the mounts of one job's steps."""

    job: protocol.Job
    services: Services
    memory: Memory
    origins: Origins
    made_ns: int
    """The modification time of directories that are created, nanoseconds."""

    def plan(self, stage: Stage, state: State, instruction: Run) -> Mounts:
        """Return the mounts of ``instruction``. Mounts nothing."""
        mounts: list[StepMount] = []
        secrets: list[SecretValue] = []
        agents: list[str] = []
        for wanted in instruction.mounts:
            target = normal_path(state.workdir, wanted.target) if wanted.target else ""
            if target == "/":
                raise DockerfileError(f'invalid mount target "{wanted.target}"', where=instruction.location)
            origin = None
            if wanted.from_:
                origin = self.origins.named(wanted.from_, stage, instruction.location, numbers=False)
            input_ = self.memory.inputs.add(f"{wanted.type} mount")
            match wanted.type:
                case "bind":
                    mounts.append(self._bind(origin or MAIN_CONTEXT, wanted, target, input_))
                case "cache":
                    mounts.append(self._cache(origin or FromScratch(), wanted, target, input_))
                case "tmpfs":
                    input_.mark_static()
                    mounts.append(Fixed(("tmpfs", target, wanted.size), Tmpfs(target, wanted.size)))
                case "secret":
                    secrets.append(SecretValue(wanted, Lazy(partial(self._value, wanted))))
                    mounts.append(_secret_mount(secrets[-1], target, input_))
                case "ssh":
                    agents.append(target or f"/run/buildkit/ssh_agent.{len(agents)}")
                    mounts.append(self._ssh(wanted, agents[-1], input_))
                case _:
                    assert_never(wanted.type)
        script = inline_script(instruction)
        if script is not None:
            data, name = script.content.encode(), script.file()
            mounts.append(Fixed(("script", name, data), ScriptFile(f"{SCRIPTS}/{name}", data)))
        sources = treename.sources((state.tree, *(each.key for each in mounts)))
        return Mounts(tuple(mounts), tuple(secrets), next(iter(agents), ""), sources)

    def _bind(self, origin: Origin, wanted: Wanted, target: str, input_: Input) -> BindMount:
        files, contents = self.origins.files(origin), self.memory.contents
        path = normal_path("/", wanted.source or "/")
        identity: Name | str | None = files.identity
        if identity is None:
            identity = contents.select(_shown(files, path, input_)).name()
        else:
            input_.mark_static()
        return BindMount(
            contents=contents,
            snapshotter=self.services.snapshotter,
            made_ns=self.made_ns,
            files=files,
            input_=input_,
            target=target,
            path=path,
            readonly=wanted.readonly,
            identity=identity,
            of_stage=isinstance(origin, FromStage),
        )

    def _cache(self, origin: Origin, wanted: Wanted, target: str, input_: Input) -> StepMount:
        files = None if isinstance(origin, FromScratch) else self.origins.files(origin)
        seed = treename.name("")
        if files is None:
            input_.mark_static()
        elif files.identity is not None:
            input_.mark_static()
            seed = files.identity
        else:
            found = self.memory.contents.select(_shown(files, "/", input_))
            seed = treename.name(keys.key("files", found.name()))
        name = builtin_args.cache_name(self.job.build_args, wanted.id or target)
        metadata = wanted.uid or 0, wanted.gid or 0, 0o755 if wanted.mode is None else wanted.mode
        identity = CacheIdentity(name, metadata, None if files is None else wanted.source or "/", seed)
        return CacheMount(self.memory.contents, self.made_ns, identity, files, input_, wanted, target)

    def _ssh(self, wanted: Wanted, target: str, input_: Input) -> SshMount:
        conversation, given = self.services.conversation, None
        if wanted.required:
            input_.mark_static()  # its existence matters to a step that is run, not to one that is found
        else:
            given = conversation.ask(AskAgent(wanted.id or "default")) is not None
        return SshMount(conversation, self.memory.scratch, wanted, target, given)

    def _value(self, wanted: Wanted) -> bytes | None:
        """Return the value of a secret; None for an optional one that does not exist."""
        name = _secret_name(wanted)
        value = self.services.conversation.ask(AskSecret(name))
        if value is None and wanted.required:
            raise BuildError(
                f"secret {name}: not found",
                why="the step requires it",
                remedy=f"pass it with --secret id={name},src=FILE or --secret id={name},env=VARIABLE",
            )
        return value


class Fixed(msgspec.Struct, frozen=True):
    """A mount that is defined by the Dockerfile alone."""

    key: Observed
    mount: Mount

    def by_content(self) -> Observed:
        return self.key

    def open(self, _stack: ExitStack, _sources: tuple[str, ...]) -> Mount:
        return self.mount


# -- bind -----------------------------------------------------------------------------------------------------------


class BindMount(msgspec.Struct, frozen=True):
    """Files of a context, a stage or an image."""

    contents: Contents
    snapshotter: Snapshotter
    made_ns: int
    files: FileSource
    input_: Input
    target: str
    path: str
    """The path in ``files`` that is mounted."""
    readonly: bool
    identity: Name | str
    """The name of the file system, or the digest of what is mounted of a context."""
    of_stage: bool

    @property
    def key(self) -> Observed:
        return "bind", self.target, self.path, self.identity, self.readonly

    def by_content(self) -> Observed:
        if not self.of_stage:
            return self.key
        tree = self.files.open(self.input_)
        there = tree.lstat(tree.resolve(os.fsencode(self.path))) is not None
        whole = CopySource(tree, self.path, wildcards=False, contents=False)
        text = self.contents.select(whole).name() if there else ""
        name = treename.by_content(text, treename.sources(self.identity))
        return "bind", self.target, self.path, name, self.readonly

    def open(self, stack: ExitStack, _sources: tuple[str, ...]) -> Mount:
        parents, inside = self.files.snapshots(), self.path
        if parents is None:
            snapshot, inside = _materialised(self.contents, _shown(self.files, self.path, self.input_), self.made_ns)
            parents = (snapshot,)
        shown = stack.enter_context(self.snapshotter.mounted(parents, inside, readonly=self.readonly))
        return BindFd(shown.fd, self.target, readonly=self.readonly, layers=shown.directories)


def _shown(files: FileSource, path: str, input_: Input) -> CopySource:
    """Return the files of a context that are mounted."""
    return CopySource(files.open(input_), path, wildcards=False, context=True)


def _materialised(contents: Contents, source: CopySource, made_ns: int) -> tuple[Snapshot, str]:
    """Return a snapshot with the files of ``source``, and the path of ``source`` in it."""
    store = contents.store
    plan = copying.CopyPlan(None, contents.directory, made_ns)
    path = copying.matches(source)[0].path.decode("utf-8", "surrogateescape")
    real = replace(source, pattern=f"/{path}", contents=not path)
    for matched in contents.select(real).matches():
        copying.copy_match(plan, real, matched, f"/{path.rpartition('/')[0]}/", copying.CopyOptions())
    entries = plan.finish()
    key = f"context:{contents.name(entries)}"
    made = snapshots.find(store, key)
    if made is None:
        with locks.lock(store, key, cancel=contents.cancellation.future):
            made = snapshots.find(store, key)
            if made is None:
                made = materialise.write(store, content.unchanged(entries), keys=(key,))
    return made, path


# -- cache ----------------------------------------------------------------------------------------------------------


class CacheIdentity(msgspec.Struct, frozen=True):
    """What a cache directory is known by: mounts with equal ones share a directory."""

    name: str
    """The id, with the namespace of the build."""
    metadata: tuple[int, int, int]
    """Owner, group and mode of the directory."""
    path: str | None
    """The path in the mount's source that the initial content is copied from; None if a new directory is empty."""
    seed: Name
    """The name of the source's files."""

    @property
    def key(self) -> tuple[str, str, Name]:
        """The identity's part of the step's cache key."""
        named = self.name if self.metadata == (0, 0, 0o755) else "{} ({}:{} {:o})".format(self.name, *self.metadata)
        return named, f" from {self.path} of " if self.path is not None else "", self.seed

    def directory_id(self, sources: tuple[str, ...]) -> str:
        """Return the id under which the store has the directory (``cachemounts.acquire``), for a step whose files rest
        on the remote caches ``sources``.

        The directory is shared by all steps that get this id, and no digest covers what they write there. So it has to
        contain all that a step must agree on with the others:

        - the name, which has the namespace of the build;
        - owner, group and mode, which only the first step sets;
        - where the initial content is from, by its name in this store: a remote cache may state a false result, which
          must not fill the directory of steps that do not import from it;
        - the remote caches: who can write to one can choose the programs of steps above its layers. What these leave in
          the directory is seen only by steps that rest on the same remote caches, as their ids end with these.

        The format is that of existing stores. With other ids they would lose their directories.
        """
        named, filled, seed = self.key
        return named + filled + seed.local + (f" told by {', '.join(sources)}" if sources else "")


class CacheMount(msgspec.Struct, frozen=True):
    """A cache directory in the store."""

    contents: Contents
    made_ns: int
    identity: CacheIdentity
    files: FileSource | None
    """The initial content of a new directory."""
    input_: Input
    wanted: Wanted
    target: str

    @property
    def key(self) -> Observed:
        return "cache", self.target, *self.identity.key, self.wanted.readonly

    def by_content(self) -> Observed:
        return self.key

    def open(self, stack: ExitStack, sources: tuple[str, ...]) -> Mount:
        from executor.store import cachemounts  # when such a step runs

        held = cachemounts.acquire(
            self.contents.store,
            self.identity.directory_id(sources),
            self.wanted.sharing or "shared",
            populate=self._populate,
            cancel=self.contents.cancellation.future,
        )
        uid, gid, _ = self.identity.metadata
        return Bind(stack.enter_context(held), self.target, readonly=self.wanted.readonly, owner=(uid, gid))

    def _populate(self, directory: str) -> None:
        """Write the initial content, owner and mode of a new ``directory``."""
        if self.files is not None:
            path = normal_path("/", self.wanted.source or "/")
            source = CopySource(self.files.open(self.input_), path, wildcards=False)
            if self.files.identity is None:
                source.tree.fetch(each.entry for each in self.contents.select(source).reached)
            plan = copying.CopyPlan(None, self.contents.directory, self.made_ns)
            copying.copy(plan, source, "/", copying.CopyOptions())
            materialise.materialise(plan.finish(), directory)
        uid, gid, mode = self.identity.metadata
        try:
            os.chown(directory, uid, gid)
        except OSError as error:
            # With a single mapped id the directory has that owner already, and chown(2) to another fails.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
        os.chmod(directory, mode)


# -- ssh ------------------------------------------------------------------------------------------------------------


class SshMount(msgspec.Struct, frozen=True):
    """A socket that forwards to an SSH agent of the user."""

    conversation: Conversation
    scratch: lifetime.ScratchSpace
    wanted: Wanted
    target: str
    given: bool | None
    """Whether the agent exists, of an optional one: the step may behave differently without. None if it is required."""

    @property
    def key(self) -> Observed:
        return "ssh", self._name, self.target, *self._metadata, self.given

    def by_content(self) -> Observed:
        return self.key

    def open(self, stack: ExitStack, _sources: tuple[str, ...]) -> Mount | None:
        if self.conversation.ask(AskAgent(self._name)) is None:
            if self.wanted.required:
                raise BuildError(
                    f"no SSH agent {self._name} forwarded from the client",
                    why="the step requires it",
                    remedy="pass --ssh default, or --ssh ID=SOCKET-OR-KEY",
                )
            return None
        from executor.solver.agent import forwarded  # which few steps need

        uid, gid, mode = self._metadata
        directory = self.scratch.new()
        socket = forwarded(self.conversation, self._name, directory, uid=uid, gid=gid, mode=mode)
        return Bind(stack.enter_context(socket), self.target, owner=(uid, gid))

    @property
    def _name(self) -> str:
        return self.wanted.id or "default"

    @property
    def _metadata(self) -> tuple[int, int, int]:
        """Owner, group and mode of the socket."""
        return self.wanted.uid or 0, self.wanted.gid or 0, 0o600 if self.wanted.mode is None else self.wanted.mode


# -- secrets --------------------------------------------------------------------------------------------------------


class SecretValue(msgspec.Struct, frozen=True):
    """A secret of a step, requested once."""

    wanted: Wanted
    value: Lazy[bytes | None]
    """None if it does not exist."""


class SecretMount(msgspec.Struct, frozen=True):
    """A secret that is a file, an environment variable, or both."""

    secret: SecretValue
    target: str
    """The path; "" for the default."""
    given: bool | None
    """Whether the secret exists, of an optional one; None if it is required. Its value is no part of the key."""

    @property
    def key(self) -> Observed:
        return "secret", self._name, self.target, self.secret.wanted.env, *self._metadata, self.given

    def by_content(self) -> Observed:
        return self.key

    def open(self, _stack: ExitStack, _sources: tuple[str, ...]) -> Mount | None:
        if self.secret.wanted.env is not None and not self.target:
            return None
        data = self.secret.value()
        path = self.target or f"/run/secrets/{os.path.basename(self._name)}"
        return None if data is None else SecretFile(path, data, *self._metadata)

    @property
    def _name(self) -> str:
        return _secret_name(self.secret.wanted)

    @property
    def _metadata(self) -> tuple[int, int, int]:
        """Owner, group and mode of the file."""
        wanted = self.secret.wanted
        return wanted.uid or 0, wanted.gid or 0, 0o400 if wanted.mode is None else wanted.mode


def _secret_mount(secret: SecretValue, target: str, input_: Input) -> SecretMount:
    given = None
    if secret.wanted.required:
        input_.mark_static()  # its existence matters to a step that is run, not to one that is found
    else:
        given = secret.value() is not None
    return SecretMount(secret, target, given)


def _secret_name(wanted: Wanted) -> str:
    return wanted.id or os.path.basename(wanted.target)
