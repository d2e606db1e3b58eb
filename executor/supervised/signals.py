"""Signals between the processes of a step, where Landlock cannot keep them from others (before Linux 6.12).

The step's filter hands over the calls that send signals (``chroot_calls.SIGNALLING``). A process may signal itself:
while it waits for the answer, its number is its own. To others of the step the signal is sent here, by a descriptor
(pidfd_open(2)), which stays that process's, under the rules of kill(2). It then comes from this process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from executor.sandbox.listener import SystemCall
    from executor.supervised.proc_files import ProcFiles

_WORD: Final = (1 << 32) - 1
_ALL: Final = -1


class StepSignals:
    """Sends the signals of one step, whose processes ``proc`` knows."""

    def __init__(self, proc: ProcFiles) -> None:
        self._proc = proc

    def handle(self, call: SystemCall) -> bool:
        """Do what ``call`` asks for; return False if the kernel may execute it. Raises OSError."""
        first, second, third = (_signed(each) for each in call.arguments[:3])
        own = self._proc.process(call.pid)
        match call.name:
            case "tgkill" | "rt_tgsigqueueinfo":
                if first == own:
                    return False
                self._send(call.pid, [first], third)
            case "tkill":
                if first == call.pid:
                    return False
                self._send(call.pid, [self._proc.process(first)], second)
            case "pidfd_send_signal":
                self._send(call.pid, [self._proc.process_of_pidfd(call.pid, first)], second)
            case _:
                if first == own:
                    return False
                self._send(call.pid, self._targets(own, first), second)
        return True

    def _targets(self, own: int, target: int) -> list[int]:
        """Return the processes that a number of kill(2) stands for."""
        if target > 0:
            return [target]
        found = self._proc.processes()
        if target == _ALL:
            return [each for each in found if each != own]
        group = -target if target else self._proc.group(own)
        return [each for each in found if self._proc.group(each) == group]

    def _send(self, caller: int, targets: Iterable[int], number: int) -> None:
        """Send the signal ``number`` to ``targets``. Raises OSError if it reaches none: EPERM if there is one."""
        failure = errno.ESRCH
        reached = False
        for target in targets:
            try:
                pidfd = os.pidfd_open(target)
            except OSError:
                continue
            try:
                if not self._proc.belongs(target) or not self._may(caller, target):
                    failure = errno.EPERM
                    continue
                signal.pidfd_send_signal(pidfd, number)
                reached = True
            except ProcessLookupError:
                continue
            finally:
                os.close(pidfd)
        if not reached:
            raise OSError(failure, os.strerror(failure))

    def _may(self, caller: int, target: int) -> bool:
        """Whether the user of ``caller`` may signal the process ``target``."""
        with contextlib.suppress(OSError):
            real, effective, _ = self._proc.users(caller)
            theirs, _, saved = self._proc.users(target)
            return not effective or bool({real, effective} & {theirs, saved})
        return False


def _signed(value: int) -> int:
    value &= _WORD
    return value - (1 << 32) if value >> 31 else value
