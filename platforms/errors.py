"""The errors of all packages, as data.

Every error says *what* failed, *where* (file, line and the lines around it), *why*, and how to remedy it. ``Problem``
has these as frozen data: it crosses the executor protocol, and one renderer turns it into a line in a pipe or a panel
on a terminal. ``KanifoldError`` carries it; the subclass determines the exit code.

    KanifoldError
    ├── UsageError            2  invalid flags or arguments
    ├── EnvironmentUnfit      3  this host lacks something: an emulator, isolation
    │   └── NotBootstrapped      kanifold has not been sent to a node yet, and was not to be
    ├── Interrupted         130  stopped by the user, or by a closed protocol stream
    └── BuildError            1  the build failed
        ├── DockerfileError      a line of the Dockerfile is invalid
        ├── StepFailed           a RUN step exited with a non-zero status
        │   └── StepStarved      because its machine has no memory or disk space left
        ├── ContextError         a path of the build context is missing or leads outside
        ├── RegistryError        a registry refused, was not reachable, or sent invalid data
        │   └── RegistryUnreachable  no connection, or none that can be trusted, came about from this machine
        ├── CacheError           a remote cache refused, was not reachable, or sent invalid data
        ├── PlatformMissing      an image or index lacks the requested platform
        ├── ArchiveError         a layer or archive is damaged or hostile
        ├── AuditError           an image contains binaries of another architecture
        ├── StoreError           the local store cannot be read or written (a full disk, say)
        ├── OutOfMemory          a process of kanifold could have no more memory
        ├── PodDisrupted         a cluster has taken an executor's Pod away
        └── ProtocolError        the other end violated the executor protocol
            └── ConnectionLost   the other end ended, or fell silent, in the middle

A job that fails on one node may succeed on another, if the error is one of the machine and not of the build: the class
tells (``KanifoldError.retry``).
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import msgspec

from platforms.decoding import Int64

Retry = Literal["never", "elsewhere", "anywhere", "again"]
"""Where a job that has failed may succeed: nowhere; on another node; there, and on the same one after all; on the same
one, and only then on others."""


class Location(msgspec.Struct, frozen=True):
    """The lines of a file that an error is about. ``line`` and ``end_line`` count from 1, inclusive."""

    file: str
    line: Int64
    end_line: Int64
    source: tuple[str, ...] = ()
    """The lines around them; the first is line ``first``."""
    first: Int64 = 1


class Problem(msgspec.Struct, frozen=True):
    """An error as data. ``log`` is the end of the output of a failed step."""

    kind: str
    what: str
    why: str = ""
    remedy: str = ""
    where: Location | None = None
    log: tuple[str, ...] = ()


def sayable(problem: Problem) -> Problem:
    """Return ``problem`` with lone surrogates replaced by question marks, so that it can be encoded.

    Python holds a byte that is not UTF-8, in a file name for example, as a lone surrogate.
    """
    where = problem.where
    return Problem(
        problem.kind,
        _text(problem.what),
        _text(problem.why),
        _text(problem.remedy),
        where and Location(_text(where.file), where.line, where.end_line, tuple(map(_text, where.source)), where.first),
        tuple(map(_text, problem.log)),
    )


def printable(text: str, limit: int = 300) -> str:
    """A stranger's ``text`` as it may stand in an error: one line, no control characters, at most ``limit`` long."""
    line = "".join(character if character.isprintable() else " " for character in text[: limit * 4])
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()


class KanifoldError(Exception):
    """The base class of all errors that a user can cause or meet. Never shown as a traceback."""

    exit_code: ClassVar[int] = 1
    retry: ClassVar[Retry] = "never"
    """Where a job that has failed with it may succeed."""

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        remedy: str = "",
        where: Location | None = None,
        log: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what)
        self.problem = Problem(type(self).__name__, what, why, remedy, where, log)

    def __str__(self) -> str:
        problem = self.problem
        return f"{problem.what}: {problem.why}" if problem.why else problem.what

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Return the error that ``problem`` was taken from, on the other side of a protocol stream."""
        kind = _kinds().get(problem.kind, cls)
        error = kind.__new__(kind)
        Exception.__init__(error, problem.what)
        error.problem = problem
        return error  # type: ignore[return-value]


def _kinds() -> dict[str, type[KanifoldError]]:
    found: dict[str, type[KanifoldError]] = {}
    waiting = [KanifoldError]
    while waiting:
        kind = waiting.pop()
        found[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return found


class UsageError(KanifoldError):
    """Invalid flags or arguments."""

    exit_code = 2


class EnvironmentUnfit(KanifoldError):
    """This host cannot do what was requested: no emulator, no isolation, no executor."""

    exit_code = 3
    retry: ClassVar[Retry] = "elsewhere"


class NotBootstrapped(EnvironmentUnfit):
    """A node to which kanifold has not been sent yet, asked without sending it."""


class Interrupted(KanifoldError):
    """Stopped by the user or by the other end of the protocol."""

    exit_code = 130
    retry: ClassVar[Retry] = "anywhere"  # by an executor whose connection to the orchestrator was lost


class BuildError(KanifoldError):
    """The build failed."""


class DockerfileError(BuildError):
    """A line of the Dockerfile is invalid."""


class StepFailed(BuildError):
    """A RUN step exited with a non-zero status."""


class StepStarved(StepFailed):
    """A RUN step failed on a machine without memory, or whose disk is full."""

    retry: ClassVar[Retry] = "elsewhere"


class ContextError(BuildError):
    """A path of the build context is missing or leads outside of it."""


class RegistryError(BuildError):
    """A registry refused, was not reachable, or sent invalid data."""


class RegistryUnreachable(RegistryError):
    """No connection to a registry came about from this machine, or none that can be trusted, as with a wrong clock."""

    retry: ClassVar[Retry] = "elsewhere"


class CacheError(BuildError):
    """A remote cache refused, was not reachable, or sent invalid data."""


class PlatformMissing(BuildError):
    """An image or index lacks the requested platform."""


class ArchiveError(BuildError):
    """A layer or an archive is damaged or hostile."""


class AuditError(BuildError):
    """An image contains binaries of another architecture."""


class StoreError(BuildError):
    """The local store cannot be read or written."""

    retry: ClassVar[Retry] = "elsewhere"


class OutOfMemory(BuildError):
    """A process of kanifold could have no more memory."""

    retry: ClassVar[Retry] = "elsewhere"


class PodDisrupted(BuildError):
    """A cluster has taken an executor's Pod away: evicted, preempted or deleted it. The next one goes where room is."""

    retry: ClassVar[Retry] = "again"


class ProtocolError(BuildError):
    """The other end violated the executor protocol."""

    retry: ClassVar[Retry] = "elsewhere"


class ConnectionLost(ProtocolError):
    """The other end of a protocol stream ended before its time, or fell silent."""

    retry: ClassVar[Retry] = "anywhere"
