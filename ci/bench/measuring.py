"""One command, measured: wall time, and the peak memory of the largest process that it was or waited for."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Measured:
    """What something took: ``seconds`` of wall time, ``memory``, the largest process's peak resident bytes, and
    ``processor``, the seconds of processors of what was waited for.
    """

    seconds: float
    memory: int
    processor: float = 0.0

    def then(self, other: Measured) -> Measured:
        """Both, one after the other."""
        processor = self.processor + other.processor
        return Measured(self.seconds + other.seconds, max(self.memory, other.memory), processor)


class FailedError(Exception):
    """A command that ended with an error, or had to be ended; the text says how, with the last of its output."""


class Child(Protocol):
    """A child of this process, and leader of a session; ``returncode`` is set when it has ended."""

    @property
    def pid(self) -> int: ...

    returncode: int | None


class Startable(Protocol):
    """What can be measured: it writes its output to ``log``, and is called by ``words`` in messages."""

    @property
    def words(self) -> Sequence[str]: ...

    @property
    def log(self) -> Path: ...

    def start(self) -> Child: ...


@dataclass(frozen=True)
class Command:
    """A command to measure: its words, its whole environment, and the file that its output goes to."""

    words: Sequence[str]
    environment: Mapping[str, str]
    log: Path

    def start(self) -> subprocess.Popen[bytes]:
        """Start it in a session of its own."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.words, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd=self.log.parent,
            )  # fmt: skip


def measure(*commands: Startable, timeout: float) -> Measured:
    """Run ``commands`` at the same time, for ``timeout`` seconds at most. Raises ``FailedError`` when any fails.

    The memory is wait4(2)'s ``ru_maxrss``: the greatest among the process and its descendants that were waited for. A
    process that this one forks begins with *our* peak (about 20 MB), so smaller figures than that mean nothing.
    """
    began = time.perf_counter()
    waiting = [each.start() for each in commands]
    end = began + timeout
    memory, processor = 0, 0.0
    failures: list[str] = []
    for command, process in zip(commands, waiting, strict=True):
        code, usage = _wait(process, end)
        memory = max(memory, usage.ru_maxrss << 10)
        processor += usage.ru_utime + usage.ru_stime
        if code:
            late = f"ended after {timeout:.0f} s" if time.perf_counter() >= end else f"status {code}"
            failures.append(f"{' '.join(command.words[:12])} …: {late}\n{tail(command.log)}")
    seconds = time.perf_counter() - began
    if failures:
        raise FailedError("\n".join(failures))
    return Measured(seconds, memory, processor)


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, indented."""
    text = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line[:300]}" for line in text)


def peak_of(pid: int) -> int:
    """The peak resident bytes so far of the running process ``pid`` (proc(5), VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def forget_peak(pid: int) -> None:
    """Let ``peak_of(pid)`` begin anew (proc(5), clear_refs)."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _wait(process: Child, end: float) -> tuple[int, resource.struct_rusage]:
    """The exit status and the resource usage of ``process``, which is killed at the moment ``end``."""
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(0.0, end - time.perf_counter()) * 1000):
            os.killpg(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        os.close(pidfd)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage
