"""The commit of a git checkout: what a release file can say of it.

Nothing in the repository is executed (``executor.context.gitprogram``): only commands are used that read objects and
references. In CI systems, which check out a commit and no branch, the branch is the environment's.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Mapping
from typing import Final

import msgspec

from executor.context.gitprogram import Access, Git, GitFailed
from platforms.errors import EnvironmentUnfit

_VERSION: Final = re.compile(
    r"v?(?P<major>0|[1-9]\d*)\.(?P<minor>0|[1-9]\d*)\.(?P<patch>0|[1-9]\d*)(?:-(?P<pre>[0-9A-Za-z.-]+))?"
    r"(?:\+[0-9A-Za-z.-]+)?"
)
"""A tag that is a version (semver.org, 2.0.0), with or without a ``v`` before it."""
_PARTS: Final = ("major", "minor", "patch", "pre")
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.]+")
_TAG_LIMIT: Final = 128


class CheckedOutCommit(msgspec.Struct, frozen=True):
    """A commit."""

    sha: str
    time: int
    """Its committer's time, in seconds since 1970."""
    tag: str = ""
    """A tag of it, of several the highest version; "" for none."""
    branch: str = ""
    """"" if it is not known."""

    def variables(self) -> dict[str, str]:
        """Return the variables ``git.…``. Those of the version are "" unless there is a tag that is one."""
        version = _VERSION.fullmatch(self.tag)
        major, minor, patch, pre = (version[name] or "" for name in _PARTS) if version else ("",) * len(_PARTS)
        return {
            "git.sha": self.sha,
            "git.short-sha": self.sha[:7],
            "git.tag": self.tag,
            "git.branch": self.branch,
            "git.branch-tag": _UNFIT.sub("-", self.branch).strip("-.")[:_TAG_LIMIT],
            "git.version": (f"{major}.{minor}.{patch}" + (f"-{pre}" if pre else "")) if version else "",
            "git.major": major,
            "git.minor": minor,
            "git.patch": patch,
            "git.prerelease": pre,
            "git.time": str(self.time),
        }


VARIABLES: Final = tuple(CheckedOutCommit("", 0).variables())
"""The names of all variables of a checkout."""


def read(directory: str, environ: Mapping[str, str]) -> CheckedOutCommit | None:
    """Return the commit that ``directory`` is a checkout of; None if it is none, or git is not installed."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(GitFailed, EnvironmentUnfit):
        repository = _Repository(Git(scratch, (), Access()), os.path.abspath(directory))
        sha = repository.ask("rev-parse", "--verify", "--end-of-options", "HEAD^{commit}")
        named = ("--sort=-v:refname", f"--points-at={sha}", "--format=%(refname:lstrip=2)", "refs/tags")
        tags = repository.ask("for-each-ref", *named)
        head = re.search(r"^committer .*> (\d+) [+-]\d+$", repository.ask("cat-file", "commit", sha), re.MULTILINE)
        branch = ""
        with contextlib.suppress(GitFailed):
            branch = repository.ask("symbolic-ref", "--short", "HEAD")
        return CheckedOutCommit(
            sha, int(head[1]) if head else 0, _highest(tags.splitlines()), branch or _branch_of_ci(environ)
        )
    return None


class _Repository(msgspec.Struct, frozen=True):
    """A repository of this machine, which is asked only what executes nothing."""

    git: Git
    directory: str

    def ask(self, *arguments: str) -> str:
        """Return what git prints, without the last line break. Raises ``GitFailed``."""
        # Whose it is does not matter, as nothing of it is executed.
        return self.git.text("-c", "safe.directory=*", "-C", self.directory, *arguments).rstrip("\n")


def _highest(tags: list[str]) -> str:
    """Return the first of ``tags``, which are sorted, that is a version; else the first."""
    versions = [each for each in tags if _VERSION.fullmatch(each)]
    released = [each for each in versions if "-" not in each]
    return next(iter((*released, *versions, *tags)), "")


def _branch_of_ci(environ: Mapping[str, str]) -> str:
    """Return the branch that a CI system builds; "" if it says none."""
    reference = environ.get("GITHUB_REF", "")
    if reference.startswith("refs/heads/"):
        return reference.removeprefix("refs/heads/")
    return environ.get("GITHUB_HEAD_REF", "") or environ.get("CI_COMMIT_BRANCH", "")
