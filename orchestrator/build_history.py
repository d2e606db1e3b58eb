"""The last builds of a store: what they made, how long they took, and where their reports are.

A file of JSON lines in the store, one a build, appended when the build ends. It is bounded: when it has become too
long, the older builds are dropped. A line that was cut by a crash is passed over. Losing a line is no reason to fail a
build.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from executor import protocol
from orchestrator.request import Report
from orchestrator.view import events
from orchestrator.view.events import Emit
from platforms import decoding
from platforms.descriptors import write_all

FILE: Final = "history.jsonl"
"""The name of the file in the store."""
BUILDS: Final = 100
"""Number of builds that are kept at least, if there were so many."""
LINE_LIMIT: Final = 8192
"""Maximum length of a line in bytes; a build with a longer one is not recorded."""
_FILE_LIMIT: Final = 2 * BUILDS * LINE_LIMIT
_NAMES: Final = 16
"""Maximum number of platforms, tags and reports of a build that are recorded."""
_TEXT: Final = 300
_TRIES: Final = 3
_LINE: Final = msgspec.json.Encoder()


class BuildRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A build that has ended."""

    began: float
    """In seconds since 1970."""
    seconds: float
    name: str
    """What was built: the first tag, or the context."""
    outcome: events.Outcome
    platforms: tuple[str, ...] = ()
    digest: str = ""
    tags: tuple[str, ...] = ()
    """Those that were set, and paths of files that were written."""
    cached: int = 0
    ran: int = 0
    warnings: int = 0
    error: str = ""
    reports: tuple[str, ...] = ()
    """Absolute paths of the reports that were written."""


_RECORD: Final = msgspec.json.Decoder(BuildRecord)


@contextlib.contextmanager
def recorded(root: str, reports: Sequence[Report], emit: Emit) -> Iterator[Emit]:
    """Yield a function that passes events to ``emit`` and records the build in the store ``root`` when it ends."""
    yield _HistoryRecorder(root, reports, emit).emit


class _HistoryRecorder:
    """Collects what is recorded. Each value is set by one event, so it is safe for threads."""

    def __init__(self, root: str, reports: Sequence[Report], emit: Emit) -> None:
        self._root = root
        self._reports = reports
        self._emit = emit
        self._began = time.time()
        self._clock = time.monotonic()
        self._started: events.BuildStarted | None = None
        self._counts: dict[str, tuple[int, int]] = {}
        self._tags: list[str] = []
        self._warnings = 0

    def emit(self, event: events.Event) -> None:
        self._emit(event)
        match event:
            case events.FromExecutor(platform=platform, message=protocol.Result(cached=cached, ran=ran)):
                self._counts[platform] = cached, ran
            case events.FromExecutor(message=protocol.BuildWarning()) | events.WarningRaised():
                self._warnings += 1
            case events.BuildStarted():
                self._started = event
            case events.Published(ref=ref):
                self._tags.append(ref)
            case events.BuildEnded():
                with contextlib.suppress(OSError):
                    append(self._root, self._record(event))

    def _record(self, ended: events.BuildEnded) -> BuildRecord:
        started = self._started
        return BuildRecord(
            began=self._began,
            seconds=round(time.monotonic() - self._clock, 3),
            name=_name(started.name) if started is not None else "",
            outcome=ended.outcome,
            platforms=tuple(each.platform[:_TEXT] for each in started.platforms[:_NAMES])
            if started is not None
            else (),
            digest=ended.digest,
            tags=tuple(each[:_TEXT] for each in self._tags[:_NAMES]),
            cached=sum(cached for cached, _ in self._counts.values()),
            ran=sum(ran for _, ran in self._counts.values()),
            warnings=self._warnings,
            error=ended.troubles[0].problem.what[:_TEXT] if ended.troubles else "",
            reports=tuple(os.path.abspath(each.path) for each in self._reports[:_NAMES] if each.kind != "step-summary"),
        )


def _name(name: str) -> str:
    """Return what a build is called, also elsewhere: a directory by its absolute path."""
    return (os.path.abspath(name) if os.path.isdir(name) else name)[:_TEXT]


def append(root: str, record: BuildRecord) -> None:
    """Add ``record`` to the history of the store ``root``, if there is one. Raises ``OSError``."""
    try:
        line = _LINE.encode(record)
    except UnicodeEncodeError:  # a name that is not UTF-8
        return
    path = f"{root}/{FILE}"
    if len(line) > LINE_LIMIT or not os.path.isdir(root):
        return
    for _ in range(_TRIES):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "rb") as file:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not _is_current(fd, path):
                continue  # another build has shortened it meanwhile
            size = os.fstat(fd).st_size
            whole = size == 0 or os.pread(fd, 1, size - 1) == b"\n"
            write_all(fd, (b"" if whole else b"\n") + line + b"\n")
            if size > _FILE_LIMIT or (size > BUILDS * 512 and file.read().count(b"\n") > 2 * BUILDS):
                _shorten(path)
            return


def _is_current(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _shorten(path: str) -> None:
    """Keep the last builds. Readers see the old file or the new one."""
    with open(path, "rb") as file:
        lines = [each for each in file.read().splitlines() if len(each) <= LINE_LIMIT]
    incoming = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(incoming)
    fd = os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, b"".join(each + b"\n" for each in lines[-BUILDS:]))
    finally:
        os.close(fd)
    os.replace(incoming, path)


def read(root: str) -> tuple[BuildRecord, ...]:
    """Return the builds that are recorded in the store ``root``, the last one first."""
    try:
        fd = os.open(f"{root}/{FILE}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ()
    with os.fdopen(fd, "rb") as file:
        data = file.read(2 * _FILE_LIMIT)
    found: list[BuildRecord] = []
    for line in data.splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            found.append(decoding.decode(_RECORD, line))
    return tuple(reversed(found[-2 * BUILDS :]))


def clear(root: str) -> None:
    """Forget all builds of the store ``root``."""
    with contextlib.suppress(OSError):
        os.unlink(f"{root}/{FILE}")
