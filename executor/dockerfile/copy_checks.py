"""Validation of expanded COPY and ADD instructions, before any file is read.

Source: Dockerfile reference, "ADD" and "COPY". Errors are ``ValueError``, or ``DockerfileError`` without a location,
which the caller adds.
"""

from __future__ import annotations

import re

from executor.dockerfile import modes
from executor.dockerfile.instructions import Add, Copy
from platforms.errors import ContextError, DockerfileError

_CHECKSUM = r"sha256:[0-9a-f]{64}"  # compiled when used, which few builds do
_MAY_BE_GIT = ("://", "@", "github.com/")


def check(instruction: Copy | Add) -> None:
    """Raise for an invalid mode, a kind of source that the instruction does not take, a flag without those that it
    requires, and a here-document whose name is no file name."""
    if instruction.chmod:
        modes.parse(instruction.chmod)
    if instruction.link and not numeric(instruction.chown):
        raise DockerfileError(
            f"--chown={instruction.chown}: user and group names can't be resolved when used with --link",
            remedy="use numeric uid[:gid] instead",
        )
    for source in instruction.sources:
        _check_source(instruction, source)
    for document in instruction.heredocs:
        document.file()


def numeric(chown: str) -> bool:
    """Whether ``--chown=chown`` can be resolved without a passwd file."""
    return all(part.isdigit() or part == "root" for part in chown.split(":") if part)


def _check_source(instruction: Copy | Add, source: str) -> None:
    checksum = instruction.checksum if isinstance(instruction, Add) else ""
    if any(mark in source for mark in _MAY_BE_GIT):
        from executor.context import gitreference

        try:
            repository = gitreference.parse(source)
            if repository is not None and not repository.indistinguishable_from_local:
                if isinstance(instruction, Copy):
                    raise ValueError("source can't be a git ref for COPY")
                gitreference.with_flags(repository, keep_git_dir=instruction.keep_git_dir, checksum=checksum)
                return
        except ContextError as wrong:
            problem = wrong.problem
            raise DockerfileError(problem.what, why=problem.why, remedy=problem.remedy) from wrong
    if source.startswith(("http://", "https://")):
        if isinstance(instruction, Copy):
            raise ValueError("source can't be a URL for COPY")
        if checksum and not re.fullmatch(_CHECKSUM, checksum):
            raise DockerfileError(
                f"invalid checksum {checksum[:100]!r}", remedy="write sha256: and 64 hexadecimal digits"
            )
    elif checksum:
        raise ValueError("checksum requires HTTP(S) or Git sources")
