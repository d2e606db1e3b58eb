"""The children of a supervisor: its step's first process, and those that this and others leave behind.

The supervisor is an ancestor of every process of its step (PR_SET_CHILD_SUBREAPER). So it may read their memory also
where Yama lets nobody else do that (kernel.yama.ptrace_scope 1, the default of Ubuntu and others).
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from typing import Final

from platforms import syscalls

NUMBER: Final = struct.Struct("=i")
"""What is told: the number of the first process, and later its wait status."""
_SIGNALS: Final = (signal.SIGCHLD,)
_READ: Final = 4096


class StepChildren:
    """The children of this process. The status of the ``first`` is written to the descriptor ``tell``.

    ``fd`` is readable when some have ended.
    """

    def __init__(self, first: int, tell: int) -> None:
        # Blocked, as one that arrives while a descriptor is added would have the caller get another one.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self.fd = syscalls.signal_descriptor(_SIGNALS)
        self._first = first
        self._tell = tell
        os.write(tell, NUMBER.pack(first))

    def reap(self) -> bool:
        """Reap those that have ended; return whether any is left."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, _READ)
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._first:
                    os.write(self._tell, NUMBER.pack(ended[1]))
        except ChildProcessError:
            return False
        return True
