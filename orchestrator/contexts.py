"""Build contexts, main and named: their kinds, and their files on this machine.

Git repositories, URLs and stdin are fetched here, once, so that all platforms build the same, and executors need
neither network nor credentials for it. The kinds of contexts are buildx's, and their treatment BuildKit's
(frontend/dockerui/context.go, namedcontext.go): a main context that is an archive is unpacked; one that is another file
is the Dockerfile; the ignore file applies to directories only.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from executor.protocol import GitOrigin
from executor.solver.named import canonical
from orchestrator.view import events
from platforms.errors import ContextError, Interrupted, StoreError, UsageError
from platforms.paths import below

if TYPE_CHECKING:
    from executor.context.gitreference import GitReference

_WATCH: Final = 0.1
"""Interval in seconds at which waiting for stdin checks for cancellation."""
_FILE: Final = "context"
"""The name of a fetched file."""


class ElsewhereError(Exception):
    """Something would have to be fetched."""


class FetchedContexts:
    """The contexts that the builds of a session have fetched, below the directory ``scratch``. Thread-safe."""

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch
        self._lock = threading.Lock()
        self._found: dict[object, Future[ContextFiles]] = {}

    def get(self, key: object, fetch: Callable[[], ContextFiles]) -> ContextFiles:
        """Return the context ``key``; the first who asks for it has to ``fetch`` it. Raises what ``fetch`` raises."""
        with self._lock:
            first = key not in self._found
            future = self._found.setdefault(key, Future())
        if first:
            try:
                future.set_result(fetch())
            except BaseException as error:
                future.set_exception(error)
                raise
        return future.result()


class FetchOptions(msgspec.Struct, frozen=True):
    """Options and state for fetching."""

    scratch: str
    """An existing directory that is kept until executors have ended; "" to fetch nothing (``ElsewhereError``)."""
    secret: Callable[[str], bytes | None] = lambda _: None
    """The build's secrets by id."""
    ssh_socket: str = ""
    """The socket of the SSH agent of the build; "" for none."""
    cancel: Future[None] = msgspec.field(default_factory=Future)
    """Done when the build is cancelled."""
    emit: Callable[[events.Event], None] = lambda _: None
    fetched: FetchedContexts | None = None
    """Those of other builds of the session; None for a build alone."""
    access: object = None
    """What stands for the secrets and the agent of the build: others with the same may use what it fetches."""

    def directory(self) -> str:
        """Make a new directory."""
        if not self.scratch:
            raise ElsewhereError
        import tempfile

        return tempfile.mkdtemp(dir=self.scratch)


class ContextFiles(msgspec.Struct, frozen=True):
    """The files of a context."""

    directory: str
    fetched: bool = False
    """Whether it was fetched, so that its paths on this machine mean nothing to the user."""
    owners: bool = False
    """Whether its files keep their owners, as those of an archive do; else they belong to root."""
    dockerfile: str = ""
    """The file that is the Dockerfile if there is no other; "" to look for one."""
    modified: int | None = None
    """The time of the source's last change (of a commit, ``Last-Modified``) in seconds since 1970."""
    git: GitOrigin | None = None
    """The commit that it is, for who can fetch it, too."""


def main(text: str, options: FetchOptions, *, keep_git_dir: bool = False) -> ContextFiles:
    """Return the files of the CONTEXT ``text``: a directory, ``-`` for stdin, a git repository or a URL.

    Raises ``ContextError``.
    """
    if text == "-":
        return _stdin(options)
    if os.path.isdir(text):
        return _directory(text)
    if options.fetched is not None and options.scratch and is_remote(text):
        own = replace(options, fetched=None, scratch=options.fetched.scratch)
        key = text, keep_git_dir, options.access
        return options.fetched.get(key, partial(main, text, own, keep_git_dir=keep_git_dir))
    repository = _repository(text)
    if repository is not None:
        return _git(text, replace(repository, keep_git_dir=True) if keep_git_dir else repository, options)
    if _is_url(text):
        path, modified = _download(text, options)
        return replace(_taken_apart(path, options), modified=modified)
    if os.path.lexists(text):
        raise ContextError(
            f"the build context {text} is not a directory", remedy=f"if it is an archive: kanifold build - < {text}"
        )
    raise ContextError(
        f"no build context {text}",
        why="the directory does not exist",
        remedy="a context is a directory, - for stdin, a git repository, or the URL of an archive or a Dockerfile",
    )


def named(name: str, text: str, options: FetchOptions) -> ContextFiles:
    """Return the files of ``--build-context name=text`` (a directory, a git repository, a URL). Raises
    ``ContextError``."""
    repository = _repository(text)
    if repository is not None:
        return _git(text, repository, options)
    if _is_url(text):
        path, modified = _download(text, options)
        return ContextFiles(os.path.dirname(path), fetched=True, modified=modified)
    if not os.path.isdir(text):
        raise ContextError(
            f"build context {name}: no directory {text}",
            remedy="a named context is a directory, docker-image://REF, oci-layout://PATH, or a URL",
        )
    return _directory(text)


def _directory(path: str) -> ContextFiles:
    whole = os.path.abspath(path)
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        raise ContextError(f"cannot use the build context {path!r}", why="its path is not UTF-8") from error
    return ContextFiles(whole)


def changed(found: ContextFiles, options: FetchOptions) -> int | None:
    """Return the time of the last change of fetched files in seconds since 1970; None for files of this machine.

    Without a time from the source, it is that of the newest file in an archive (BuildKit, dockerfile2llb/epoch.go).
    """
    if not found.fetched or found.modified is not None:
        return found.modified
    if found.owners:
        return _newest(found.directory)
    path = os.path.join(found.directory, _FILE)
    return _newest(directory) if (directory := _unpacked(path, options)) else None


def _newest(directory: str) -> int | None:
    times = [
        status.st_mtime
        for above, _, names in os.walk(directory)
        for name in names
        if stat.S_ISREG((status := os.lstat(below(above, name))).st_mode)
    ]
    return int(max(times)) if times else None


def is_remote(text: str) -> bool:
    """Whether ``text`` is a git repository or a URL."""
    return _repository(text) is not None or _is_url(text)


def _repository(text: str) -> GitReference | None:
    from executor.context import gitreference

    return gitreference.parse(text)


def _is_url(text: str) -> bool:
    return text.startswith(("https://", "http://"))


def stdin(path: str, options: FetchOptions) -> None:
    """Write stdin to the new file ``path``. Raises ``ContextError``, ``StoreError``, ``Interrupted``."""
    with open(path, "xb") as file:
        while True:
            try:
                ready, _, _ = select.select([0], [], [], _WATCH)
                block = os.read(0, 1 << 20) if ready else None
            except OSError as error:
                raise ContextError("cannot read stdin", why=error.strerror or str(error)) from error
            if options.cancel.done():
                raise Interrupted("the build was interrupted")
            if block == b"":
                return
            try:
                file.write(block or b"")
            except OSError as error:
                raise StoreError("cannot keep what came on stdin", why=error.strerror or str(error)) from error


def _stdin(options: FetchOptions) -> ContextFiles:
    path = os.path.join(options.directory(), _FILE)
    stdin(path, options)
    found = _taken_apart(path, options)
    # A Dockerfile alone: as in buildx, the context is empty.
    return found if not found.dockerfile else ContextFiles(options.directory(), fetched=True, dockerfile=path)


def _download(url: str, options: FetchOptions) -> tuple[str, int | None]:
    """Return the file of ``url``, named ``context`` in a new directory; and its ``Last-Modified``."""
    from executor.context import http

    options.emit(events.Resolving(ref=http.shown(url)))
    access = http.RequestOptions(http.authorization(url, options.secret), options.cancel)
    found = http.download(url, options.directory(), access)
    options.emit(events.Resolved(ref=http.shown(url), digest=found.digest))
    path = os.path.join(options.directory(), _FILE)
    os.rename(found.path, path)
    return path, found.mtime


def _taken_apart(path: str, options: FetchOptions) -> ContextFiles:
    """Return the content of the archive ``path``; if it is none, the file is the Dockerfile."""
    directory = _unpacked(path, options)
    if directory is None:
        return ContextFiles(os.path.dirname(path), fetched=True, dockerfile=path)
    os.unlink(path)
    return ContextFiles(directory, fetched=True, owners=True)


def _unpacked(path: str, options: FetchOptions) -> str | None:
    """Return a new directory with the content of the archive ``path``; None if it is none.

    What the kernel refused to set on its files is recorded beside it (``executor.snapshotter.records``).
    """
    from executor.context import add_archive
    from executor.snapshotter import records

    directory = os.path.join(options.directory(), "fs")
    os.mkdir(directory)
    found = add_archive.extract(path, directory)
    if found is None:
        return None
    records.write(directory, found.records)
    return directory


def _git(text: str, repository: GitReference, options: FetchOptions) -> ContextFiles:
    from executor.context import git, gitprogram

    options.emit(events.Resolving(ref=str(repository)))
    access = gitprogram.Access(git.authorization(repository, options.secret), options.ssh_socket)
    resolved = git.resolve(repository, options.directory(), access=access, cancel=options.cancel)
    options.emit(events.Resolved(ref=str(repository), digest=resolved.commit))
    found = git.checkout(repository, resolved, options.directory(), access=access, cancel=options.cancel)
    origin = GitOrigin(text, resolved.ref, resolved.target, found.commit)
    # A password stays here, and .git is not the same in two clones.
    shared = repository.userinfo is None and not repository.keep_git_dir and text.isascii()
    return ContextFiles(found.path, fetched=True, modified=found.time, git=origin if shared else None)


def named_canonically(contexts: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return ``contexts`` (name, value) by the canonical names of FROM and ``--from``.

    Raises ``UsageError`` for an invalid name, and for two spellings of the same name.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, place in contexts:
        try:
            key = canonical(name)
        except UsageError as error:
            raise UsageError(
                f"--build-context: {name!r} cannot be the name of a context",
                why=error.problem.why or error.problem.what,
                remedy="a name is that of an image, of a stage, or what a --from says",
            ) from error
        if key in found:
            first = found[key][0]
            raise UsageError(
                f"--build-context: the name {name!r} is there twice",
                why="" if first == name else f"it means the same as {first!r}",
            )
        found[key] = name, place
    return tuple((key, place) for key, (_, place) in found.items())
