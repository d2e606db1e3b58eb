"""The tracer of a step whose path calls are answered: it also tells who makes, becomes and ends which thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from executor.supervised.processes import CLONE_THREAD
from executor.supervised.registers import Registers
from executor.supervised.tracer import Rule, Tracer
from platforms import syscalls

if TYPE_CHECKING:
    from executor.supervised.processes import Processes


class AnsweredTracer(Tracer):
    """The tracer of the threads in ``processes``."""

    def __init__(self, rules: Mapping[str, Rule], proc: int, processes: Processes) -> None:
        super().__init__(rules, proc)
        self._processes = processes
        self._held: set[int] = set()
        """New threads that have stopped before it was known who made them."""

    def wait(self, *, block: bool = False) -> dict[int, int]:
        """Handle what threads have stopped for; return the wait status of processes that have ended.

        ``block``: wait until there is something. Raises ChildProcessError then if there is nothing to wait for.
        """
        ended: dict[int, int] = {}
        while True:
            try:
                pid, status = os.waitpid(-1, syscalls.WALL | (0 if block else os.WNOHANG))
            except ChildProcessError:
                if block:
                    raise
                return ended
            if not pid:
                return ended
            block = False
            if os.WIFSTOPPED(status):
                with contextlib.suppress(ProcessLookupError):  # it was killed, which the next wait tells
                    self._continue(pid, status >> 16, os.WSTOPSIG(status))
                continue
            if thread := self.threads.pop(pid, None):
                thread.release()
            self._held.discard(pid)
            self._processes.ended(pid)
            ended[pid] = status

    def _continue(self, pid: int, event: int, number: int) -> None:
        if pid not in self._processes.threads:
            self._held.add(pid)
            return
        super()._continue(pid, event, number)

    def _created(self, pid: int, event: int) -> None:
        super()._created(pid, event)
        child = syscalls.ptrace_message(pid)
        registers = Registers.read(pid)
        flags = registers.arguments[0] if registers.call == "clone" else 0
        if not self._is_there(child):  # ended and reaped already: its number may become another's
            return
        self._processes.started(pid, child, flags & ~(0 if event == syscalls.PTRACE_EVENT_CLONE else CLONE_THREAD))
        if child in self._held:
            self._held.discard(child)
            with contextlib.suppress(ProcessLookupError):
                syscalls.ptrace(syscalls.PTRACE_CONT, child)

    def _executed(self, pid: int) -> None:
        former = syscalls.ptrace_message(pid)
        super()._executed(pid)
        self._processes.executed(pid, former)
