"""The sources of ADD that are fetched: URLs and git repositories. As in ``sources``, not for a key if that can be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from executor import protocol
from executor.context import gitreference, http
from executor.context.gitreference import GitReference
from executor.dockerfile.instructions import Add
from executor.rootfs.tree import open_directory
from executor.solver import copying, keys
from executor.solver.agent import forwarded
from executor.solver.archives import copy_archive
from executor.solver.copying import CopyOptions, CopyPlan, CopySource
from executor.solver.inputs import Input
from executor.solver.workshop import Workshop
from executor.store import metadata_cache
from platforms import decoding

if TYPE_CHECKING:
    from executor.context.git import ResolvedRef
    from executor.context.gitprogram import Access

_AGENT: Final = "default"
"""The SSH agent that git may use (BuildKit, llb.MountSSHSock)."""
_SOCKET_DIRECTORY: Final = 100
"""Bytes of a directory's path below which a socket can be told to a program: unix(7) allows 107 with its name."""

# Made here, by one thread: two that make the decoder of one type at the same moment crash msgspec.
_REMEMBERED: Final[msgspec.json.Decoder[tuple[str, http.Validators]]] = msgspec.json.Decoder(
    tuple[str, http.Validators]
)


def part(instruction: Add, text: str) -> FromUrl | FromGit | None:
    """The source argument ``text`` if it is one of ours. Raises ``ContextError`` for no repository."""
    repository = gitreference.parse(text)
    if repository is not None and not repository.indistinguishable_from_local:
        checksum, keep = instruction.checksum, instruction.keep_git_dir
        return FromGit(gitreference.with_flags(repository, keep_git_dir=keep, checksum=checksum))
    if text.startswith(("http://", "https://")):
        return FromUrl(text, instruction.checksum, bool(instruction.unpack))
    return None


class FromUrl(msgspec.Struct, frozen=True):
    """A file behind a URL."""

    url: str
    checksum: str
    unpack: bool

    def key(self, workshop: Workshop, taken: Input) -> keys.Part:
        taken.pinned(self.checksum)
        return ("url", http.file_name(self.url), self.checksum or self._digest(workshop), self.unpack)

    def copy_to(self, workshop: Workshop, plan: CopyPlan, destination: str, treatment: CopyOptions) -> None:
        found = self._download(workshop)
        if self.unpack and copy_archive(workshop, plan, os.fsencode(found.path), destination, treatment):
            return
        tree = workshop.trees.keep(open_directory(os.path.dirname(found.path), owner=(0, 0)))
        copying.copy_file(plan, tree, os.path.basename(found.path), found.name, destination, treatment)

    def _digest(self, workshop: Workshop) -> str:
        """The content's digest: remembered, as long as the server says that the file is the same."""
        data = metadata_cache.get(workshop.store, "url", self.url)
        if data is not None:
            digest, validators = decoding.decode(_REMEMBERED, data)
            if http.unchanged(self.url, validators, self._options(workshop)):
                return digest
        return self._download(workshop).digest

    def _download(self, workshop: Workshop) -> http.Downloaded:
        with workshop.downloading:
            found = workshop.downloads.get((self.url, self.checksum))
            if found is None:
                found = http.download(self.url, workshop.scratch(), self._options(workshop), checksum=self.checksum)
                workshop.downloads[self.url, self.checksum] = found
                known = (found.digest, found.validators)
                metadata_cache.put(workshop.store, "url", self.url, msgspec.json.encode(known))
            return found

    def _options(self, workshop: Workshop) -> http.RequestOptions:
        authorization = http.authorization(self.url, lambda name: workshop.conversation.ask(protocol.AskSecret(name)))
        return http.RequestOptions(authorization, workshop.cancelled)


class FromGit(msgspec.Struct, frozen=True):
    """A git repository, or a directory of it."""

    repository: GitReference

    def key(self, workshop: Workshop, taken: Input) -> keys.Part:
        from executor.context import git  # the repository is asked what it points to: ``taken`` is not accounted for

        return git.identity(self.repository, _resolved(workshop, self.repository))

    def copy_to(self, workshop: Workshop, plan: CopyPlan, destination: str, treatment: CopyOptions) -> None:
        tree = workshop.trees.keep(open_directory(_git_files(workshop, self.repository), owner=(0, 0)))
        source = CopySource(tree, "/", wildcards=False, contents=True, context=True)
        copying.copy(plan, source, destination, treatment)


def _resolved(workshop: Workshop, repository: GitReference) -> ResolvedRef:
    """What ``repository`` points to, asked once a job."""
    from executor.context import git

    with workshop.downloading:
        found = workshop.commits.get(repository)
        if found is None:
            with _git_access(workshop, repository) as access:
                found = workshop.commits[repository] = git.resolve(
                    repository, workshop.scratch(), access=access, cancel=workshop.cancelled
                )
        return found


def _git_files(workshop: Workshop, repository: GitReference) -> str:
    """The directory with the files of ``repository``."""
    from executor.context import git

    resolved = _resolved(workshop, repository)
    with _git_access(workshop, repository) as access:
        return git.checkout(repository, resolved, workshop.scratch(), access=access, cancel=workshop.cancelled).path


@contextmanager
def _git_access(workshop: Workshop, repository: GitReference) -> Iterator[Access]:
    """What the build may use to reach ``repository``: its secrets, and the agent that ``--ssh default`` names."""
    from executor.context import git, gitprogram

    ask = workshop.conversation.ask
    authorization = git.authorization(repository, lambda name: ask(protocol.AskSecret(name)))
    if ask(protocol.AskAgent(_AGENT)) is None:
        yield gitprogram.Access(authorization)
        return
    with ExitStack() as stack:
        directory = workshop.scratch()
        if len(os.fsencode(directory)) > _SOCKET_DIRECTORY:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="kanifold-ssh-"))
        socket = forwarded(workshop, _AGENT, directory, uid=os.geteuid(), gid=os.getegid(), mode=0o600)
        yield gitprogram.Access(authorization, stack.enter_context(socket))
