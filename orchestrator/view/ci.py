"""What GitHub Actions and GitLab CI read out of a job's output, written by us and kept from everybody else.

GitHub's runner obeys lines that begin with ``::command ...::`` after any white space (actions/runner,
src/Runner.Common/ActionCommand.cs); a step of a build must not give such orders. What is obeyed anywhere in a line is
in no text that was cleaned (``untrusted``). GitLab folds what stands between two markers made of a control sequence and
a carriage return (docs.gitlab.com, "Job logs"), which cleaned text cannot contain.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from orchestrator.view.untrusted import clean_line
from platforms.errors import Problem


def in_actions(environ: Mapping[str, str]) -> bool:
    """Whether this is a GitHub Actions job (also those of Forgejo and Gitea, which read the same commands)."""
    return environ.get("GITHUB_ACTIONS", "") == "true"


def harmless(line: str) -> str:
    """``line``, which is cleaned already, with nothing at its beginning that a GitHub runner obeys."""
    bare = line.lstrip()
    return f"{line[: len(line) - len(bare)]}: :{bare[2:]}" if bare.startswith("::") else line


def annotation(level: str, problem: Problem) -> str:
    """The command that shows ``problem`` on the job's page and, where it has a place, beside the line of the file."""
    where = problem.where
    facts = {"title": problem.what}
    if where:
        facts |= {"file": where.file, "line": str(where.line), "endLine": str(max(where.line, where.end_line))}
    shown = ",".join(
        f"{name}={_escaped(value).replace(':', '%3A').replace(',', '%2C')}" for name, value in facts.items()
    )
    return f"::{level} {shown}::{_escaped(problem.why or problem.what)}"


def _escaped(value: str) -> str:
    lines = (clean_line(line).replace("%", "%25") for line in value.split("\n"))
    return "%0A".join(lines)


class Groups(Protocol):
    """How a CI's log folds a step's lines under a title."""

    def fold(self, name: str, title: str, lines: tuple[str, ...]) -> str:
        """The group as text to write at once; ``name`` is unique in the job; all text is cleaned already."""
        ...

    def line(self, line: str) -> str:
        """One line outside of all groups."""
        ...


class GitHubGroups:
    """``::group::`` and ``::endgroup::``; between them commands are off until a token nobody can guess."""

    def fold(self, name: str, title: str, lines: tuple[str, ...]) -> str:
        """See ``Groups``."""
        import secrets

        token = secrets.token_hex(16)
        return "\n".join(
            (f"::group::{_escaped(title)}", f"::stop-commands::{token}", *lines, f"::{token}::", "::endgroup::", "")
        )

    def line(self, line: str) -> str:
        """See ``Groups``."""
        return f"{harmless(line)}\n"


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
    """The groups of the CI that this job runs in; None where there is none that folds."""
    if in_actions(environ):
        return GitHubGroups()
    return GitLabGroups() if environ.get("GITLAB_CI", "") not in ("", "false") else None
