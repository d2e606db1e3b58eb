"""Log commands of GitHub Actions and sections of GitLab CI: written by kanifold, and neutralised in any other text.

GitHub's runner executes lines that begin with ``::command ...::`` after any white space (actions/runner,
src/Runner.Common/ActionCommand.cs); output of a build's steps must not contain such commands. Commands that are
recognised anywhere in a line are removed by ``untrusted``. GitLab folds text between two markers, made of a control
sequence and a carriage return (docs.gitlab.com, "Job logs"), which cleaned text cannot contain.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

from orchestrator.view.untrusted import clean_line
from platforms.errors import Problem

Level = Literal["warning", "error"]
VARIABLE: Final = "KANIFOLD_ANNOTATIONS"


def in_actions(environ: Mapping[str, str]) -> bool:
    """Whether this is a GitHub Actions job (also of Forgejo and Gitea, which support the same commands)."""
    return environ.get("GITHUB_ACTIONS", "") == "true"


def neutralise(line: str) -> str:
    """Return ``line``, cleaned already, without a command of GitHub's runner at its beginning."""
    bare = line.lstrip()
    return f"{line[: len(line) - len(bare)]}: :{bare[2:]}" if bare.startswith("::") else line


def repository_path(file: str, environ: Mapping[str, str]) -> str:
    """Return ``file`` relative to the checked-out repository, as CI systems name files; unchanged if it is not in it.

    The repository is ``GITHUB_WORKSPACE`` or ``CI_PROJECT_DIR``; links are resolved, except at ``file`` itself.
    """
    root = environ.get("GITHUB_WORKSPACE", "") or environ.get("CI_PROJECT_DIR", "")
    if not root or "\0" in file:
        return file
    top, (head, name) = os.path.realpath(root), os.path.split(os.path.abspath(file))
    inside = os.path.relpath(f"{os.path.realpath(head)}/{name}", top)  # for display: nothing is opened
    return file if inside.split(os.sep, 1)[0] == os.pardir else inside


def annotated(level: Level, problem: Problem, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command that annotates ``problem``; () outside of GitHub Actions and where the level is not wanted.

    ``KANIFOLD_ANNOTATIONS`` is ``all``, ``errors`` or ``none``: of the jobs of a matrix one may show warnings, which
    are the same in all of them.
    """
    wanted = environ.get(VARIABLE, "") or "all"
    if not in_actions(environ) or wanted == "none" or (wanted == "errors" and level != "error"):
        return ()
    return (annotation(level, problem, environ),)


def annotation(level: Level, problem: Problem, environ: Mapping[str, str]) -> str:
    """Return the command that shows ``problem`` on the page of the job and, if it has a location, at the line of the
    file."""
    where = problem.where
    facts = {"title": problem.what}
    if where:
        facts |= {
            "file": repository_path(where.file, environ),
            "line": str(where.line),
            "endLine": str(max(where.line, where.end_line)),
        }
    shown = ",".join(
        f"{name}={_escaped(value).replace(':', '%3A').replace(',', '%2C')}" for name, value in facts.items()
    )
    return f"::{level} {shown}::{_escaped(problem.why or problem.what)}"


def _escaped(value: str) -> str:
    lines = (clean_line(line).replace("%", "%25") for line in value.split("\n"))
    return "%0A".join(lines)


class Groups(Protocol):
    """How the log of a CI system folds the lines of a step under a title."""

    def fold(self, name: str, title: str, lines: tuple[str, ...]) -> str:
        """Return the group as text to write at once. ``name`` is unique in the job; all text is cleaned already."""
        ...

    def line(self, line: str) -> str:
        """Return a line outside of groups."""
        ...


class GitHubGroups:
    """``::group::`` and ``::endgroup::``; commands between them are disabled by a random token."""

    def fold(self, name: str, title: str, lines: tuple[str, ...]) -> str:
        """See ``Groups``."""
        import secrets

        token = secrets.token_hex(16)
        return "\n".join(
            (f"::group::{_escaped(title)}", f"::stop-commands::{token}", *lines, f"::{token}::", "::endgroup::", "")
        )

    def line(self, line: str) -> str:
        """See ``Groups``."""
        return f"{neutralise(line)}\n"


class GitLabGroups:
    """Collapsed sections."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def fold(self, name: str, title: str, lines: tuple[str, ...]) -> str:
        """See ``Groups``."""
        section = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        now = int(self._clock())
        start = f"\x1b[0Ksection_start:{now}:{section}[collapsed=true]\r\x1b[0K{title}\n"
        return "".join((start, *(f"{line}\n" for line in lines), f"\x1b[0Ksection_end:{now}:{section}\r\x1b[0K\n"))

    def line(self, line: str) -> str:
        """See ``Groups``."""
        return f"{line}\n"


def groups_of(environ: Mapping[str, str]) -> Groups | None:
    """Return the groups of the CI system that this job runs in; None if it has none."""
    if in_actions(environ):
        return GitHubGroups()
    return GitLabGroups() if environ.get("GITLAB_CI", "") not in ("", "false") else None
