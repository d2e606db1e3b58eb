"""What can go wrong, as data: one tree of errors for all three rooms.

Every error says *what* failed, *where* (file, line and the lines around it), *why*, and what to do about it.
``Problem`` is that sentence as frozen data: it crosses the executor's protocol, and one renderer turns it into a line
for a pipe or a panel for a terminal. ``KanifoldError`` carries it; the subclass fixes the exit code.

    KanifoldError
    ├── UsageError            2  flags or arguments that make no sense
    ├── EnvironmentUnfit      3  this host cannot do it: no emulator, no isolation
    ├── Interrupted         130  the user, or a closed protocol stream, asked to stop
    └── BuildError            1  the build itself failed
        ├── DockerfileError      a line of the Dockerfile is wrong
        ├── StepFailed           a RUN step ended with a non-zero status
        ├── ContextError         a path of the build context is missing or leads outside
        ├── RegistryError        a registry refused, vanished or lied
        ├── PlatformMissing      an image or index lacks the platform that was asked for
        ├── ArchiveError         a layer or archive is broken or hostile
        ├── AuditError           an image holds binaries of another architecture
        ├── StoreError           the local store cannot be read or written (a full disk, say)
        └── ProtocolError        the other end of the executor protocol broke its promises
"""

from __future__ import annotations

from typing import ClassVar, Self

import msgspec


class Location(msgspec.Struct, frozen=True):
    """Lines of a file that an error is about. ``line`` and ``end_line`` count from 1, both inclusive."""

    file: str
    line: int
    end_line: int
    source: tuple[str, ...] = ()
    """The file's lines around the place, the first of which is line ``first``."""
    first: int = 1


class Problem(msgspec.Struct, frozen=True):
    """An error as data: ``what`` failed, ``why``, the ``remedy``, and ``where``. ``log`` is a failed step's tail."""

    kind: str
    what: str
    why: str = ""
    remedy: str = ""
    where: Location | None = None
    log: tuple[str, ...] = ()


def sayable(problem: Problem) -> Problem:
    """``problem`` as text that every pipe takes: file names and strangers' words may hold what is none.

    Half of a surrogate pair, which is how Python holds a byte that is not UTF-8, becomes a question mark.
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


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()


class KanifoldError(Exception):
    """The root of all errors a user can cause or meet. Never shown as a traceback."""

    exit_code: ClassVar[int] = 1

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
        """The error that ``problem`` was taken from, rebuilt on the other side of a protocol stream."""
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
    """Flags or arguments that make no sense."""

    exit_code = 2


class EnvironmentUnfit(KanifoldError):
    """This host cannot do what was asked: no emulator, no isolation, no executor."""

    exit_code = 3


class Interrupted(KanifoldError):
    """The user, or the other end of the protocol, asked to stop."""

    exit_code = 130


class BuildError(KanifoldError):
    """The build failed for a reason of its own."""


class DockerfileError(BuildError):
    """A line of the Dockerfile is wrong."""


class StepFailed(BuildError):
    """A RUN step ended with a non-zero status."""


class ContextError(BuildError):
    """A path of the build context is missing or leads outside of it."""


class RegistryError(BuildError):
    """A registry refused, vanished or lied."""


class PlatformMissing(BuildError):
    """An image or index lacks the platform that was asked for."""


class ArchiveError(BuildError):
    """A layer or an archive is broken or hostile."""


class AuditError(BuildError):
    """An image holds binaries of another architecture."""


class StoreError(BuildError):
    """The local store cannot be read or written."""


class ProtocolError(BuildError):
    """The other end of the executor protocol broke its promises."""
