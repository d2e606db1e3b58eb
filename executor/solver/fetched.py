"""The sources of ADD that are fetched: URLs and git repositories. As in ``sources``, avoided for a key if possible."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from executor import protocol
from executor.context import gitreference, http
from executor.context.gitreference import GitReference
from executor.conversation import Conversation
from executor.dockerfile.instructions import Add
from executor.rootfs.tree import Tree, open_directory
from executor.solver import copying, keys
from executor.solver.agent import forwarded
from executor.solver.archives import copy_archive
from executor.solver.copying import CopyOptions, CopyPlan, CopySource
from executor.solver.inputs import Input
from executor.solver.lifetime import Cancellation, ScratchSpace
from executor.solver.services import Downloads
from executor.store import metadata_cache
from executor.store.store import Store
from platforms import decoding
from platforms.errors import ContextError, Interrupted

if TYPE_CHECKING:
    from executor.context.git import ResolvedRef
    from executor.context.gitprogram import Access

_AGENT: Final = "default"
"""The SSH agent that git may use (BuildKit, llb.MountSSHSock)."""
_ANSWER: Final = 15.0
"""Seconds in which the git server of a context has to answer: from a cluster it may be out of reach, with packets that
are dropped."""
_SOCKET_DIRECTORY: Final = 100
"""Bytes that the path of a socket's directory may have: unix(7) allows 107 for the whole path."""

# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_REMEMBERED: Final[msgspec.json.Decoder[tuple[str, http.Validators]]] = msgspec.json.Decoder(
    tuple[str, http.Validators]
)


class Fetcher(msgspec.Struct, frozen=True):
    """Fetches URLs and repositories for one job, each of them once."""

    store: Store
    conversation: Conversation
    cancellation: Cancellation
    scratch: ScratchSpace
    downloads: Downloads

    def secret(self, name: str) -> bytes | None:
        """Return the user's secret ``name``, a credential for a server; None if there is none."""
        return self.conversation.ask(protocol.AskSecret(name))

    def request_options(self, url: str) -> http.RequestOptions:
        """Return the credential and the cancellation for requests to ``url``."""
        return http.RequestOptions(http.authorization(url, self.secret), self.cancellation.future)

    def download(self, url: str, checksum: str) -> http.Downloaded:
        """Download ``url`` and verify it by ``checksum``."""
        with self.downloads.lock:
            found = self.downloads.files.get((url, checksum))
            if found is None:
                found = http.download(url, self.scratch.new(), self.request_options(url), checksum=checksum)
                self.downloads.files[url, checksum] = found
                known = (found.digest, found.validators)
                metadata_cache.put(self.store, "url", url, msgspec.json.encode(known))
            return found

    def resolve(self, repository: GitReference) -> ResolvedRef:
        """Resolve the reference ``repository`` to a commit."""
        from executor.context import git

        with self.downloads.lock:
            found = self.downloads.commits.get(repository)
            if found is None:
                with self.access(repository) as access:
                    found = self.downloads.commits[repository] = git.resolve(
                        repository, self.scratch.new(), access=access, cancel=self.cancellation.future
                    )
            return found

    def check_out(self, repository: GitReference) -> str:
        """Check out ``repository``; returns the directory with the files."""
        from executor.context import git

        resolved, cancel = self.resolve(repository), self.cancellation.future
        with self.access(repository) as access:
            return git.checkout(repository, resolved, self.scratch.new(), access=access, cancel=cancel).path

    @contextmanager
    def access(self, repository: GitReference) -> Iterator[Access]:
        """Yield the credentials for ``repository``: secrets, and the SSH agent of ``--ssh default``."""
        from executor.context import git, gitprogram

        authorization = git.authorization(repository, self.secret)
        if self.conversation.ask(protocol.AskAgent(_AGENT)) is None:
            yield gitprogram.Access(authorization)
            return
        with ExitStack() as stack:
            directory = self.scratch.new()
            if len(os.fsencode(directory)) > _SOCKET_DIRECTORY:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kanifold-ssh-"))
            socket = forwarded(self.conversation, _AGENT, directory, uid=os.geteuid(), gid=os.getegid(), mode=0o600)
            yield gitprogram.Access(authorization, stack.enter_context(socket))


def part(fetcher: Fetcher, instruction: Add, text: str) -> FromUrl | FromGit | None:
    """Return the source ``text`` if it is a URL or a repository, else None. Raises ``ContextError`` if it is
    invalid."""
    repository = gitreference.parse(text)
    if repository is not None and not repository.indistinguishable_from_local:
        checksum, keep = instruction.checksum, instruction.keep_git_dir
        return FromGit(fetcher, gitreference.with_flags(repository, keep_git_dir=keep, checksum=checksum))
    if text.startswith(("http://", "https://")):
        return FromUrl(fetcher, text, instruction.checksum, bool(instruction.unpack))
    return None


class FromUrl(msgspec.Struct, frozen=True):
    """The file at a URL."""

    fetcher: Fetcher
    url: str
    checksum: str
    unpack: bool

    def key(self, input_: Input) -> keys.Part:
        input_.mark_pinned(self.checksum)
        return ("url", http.file_name(self.url), self.checksum or self._digest(), self.unpack)

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        scratch = self.fetcher.scratch
        found = self.fetcher.download(self.url, self.checksum)
        if self.unpack and copy_archive(scratch, plan, os.fsencode(found.path), destination, copy_options):
            return
        tree = scratch.keep(open_directory(os.path.dirname(found.path), owner=(0, 0)))
        copying.copy_file(plan, tree, os.path.basename(found.path), found.name, destination, copy_options)

    def _digest(self) -> str:
        """Return the digest of the content: the recorded one if the server says that the file is unchanged."""
        data = metadata_cache.get(self.fetcher.store, "url", self.url)
        if data is not None:
            digest, validators = decoding.decode(_REMEMBERED, data)
            if http.unchanged(self.url, validators, self.fetcher.request_options(self.url)):
                return digest
        return self.fetcher.download(self.url, self.checksum).digest


class FromGit(msgspec.Struct, frozen=True):
    """A git repository, or a directory of it."""

    fetcher: Fetcher
    repository: GitReference

    def key(self, input_: Input) -> keys.Part:
        from executor.context import git  # the repository is asked what it points to: ``input_`` is not accounted for

        return git.identity(self.repository, self.fetcher.resolve(self.repository))

    def copy_to(self, plan: CopyPlan, destination: str, copy_options: CopyOptions) -> None:
        tree = self.fetcher.scratch.keep(open_directory(self.fetcher.check_out(self.repository), owner=(0, 0)))
        source = CopySource(tree, "/", wildcards=False, contents=True, context=True)
        copying.copy(plan, source, destination, copy_options)


def check_out_origin(fetcher: Fetcher, origin: protocol.GitOrigin) -> Tree:
    """Check out the commit that a context is of, whose files are known by their digests.

    Raises ``ContextError``; ``EnvironmentUnfit`` without git.
    """
    from executor.context import git

    repository = gitreference.parse(origin.address)
    if repository is None:
        raise ContextError(f"{origin.address} is no git repository")
    resolved = git.ResolvedRef(origin.ref, origin.target, origin.commit)
    scratch, cancellation = fetcher.scratch, fetcher.cancellation
    with fetcher.access(repository) as access:
        _find_server(repository, access, scratch.new(), cancellation)
        found = git.checkout(repository, resolved, scratch.new(), access=access, cancel=cancellation.future)
    return scratch.keep(open_directory(found.path, owner=(0, 0)))


def _find_server(repository: GitReference, access: Access, directory: str, cancellation: Cancellation) -> None:
    """Raise ``ContextError`` unless the server of ``repository`` answers a small request soon."""
    from executor.context import git

    ref = "" if gitreference.is_commit(repository.ref) else repository.ref
    asked = replace(repository, ref=ref, checksum="", fetch_by_commit=False)
    stop: Future[None] = Future()
    timer = threading.Timer(_ANSWER, _stop, (stop,))
    timer.daemon = True
    timer.start()
    cancellation.future.add_done_callback(partial(_stop, stop))
    try:
        git.resolve(asked, directory, access=access, cancel=stop)
    except Interrupted as error:
        cancellation.check()
        raise ContextError("the server does not answer", why=f"there was nothing in {_ANSWER:.0f} seconds") from error
    finally:
        timer.cancel()


def _stop(stop: Future[None], *_: object) -> None:
    with suppress(InvalidStateError):  # it was stopped before
        stop.set_result(None)
