"""``python -m executor``: do one job, with the protocol's messages on stdin and stdout."""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> int:
    """Do one job. Returns the exit status: that of the job's error, or 0."""
    from executor import protocol, resources
    from executor.conversation import Conversation
    from executor.worker import serve
    from platforms import debug

    debug.enter("executor")
    conversation = Conversation(*_take_streams(), protocol.PATIENCE)
    status = serve((conversation,), _emulated(), resources.measure())
    debug.log("process ends", status=status)
    return status


def _emulated() -> tuple[str, ...]:
    """The architectures for which an emulator is installed, or was added to the default store."""
    from executor.store.emulators import StoreEmulators
    from platforms import binfmt

    installed = binfmt.emulated()
    with contextlib.closing(StoreEmulators("")) as emulators:
        return (*installed, *(each for each in binfmt.QEMU if each not in installed and emulators.find(each)))


def preload() -> None:
    """Import what every job needs, for processes that are forked from this one."""
    import sqlite3  # noqa: F401 - which the store loads when it is opened

    import executor.solver.jobclient
    import executor.worker  # noqa: F401


def preload_registries() -> None:
    """Import what a client of registries needs."""
    import encodings.idna  # noqa: F401 - in which host names are looked up

    from executor import transport
    from executor.registry import client  # noqa: F401

    transport.load_httpx()


def _take_streams() -> tuple[int, int]:
    """The descriptors of the protocol, moved away from stdin and stdout, which libraries may read and print to."""
    import fcntl

    incoming = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    outgoing = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return incoming, outgoing


if __name__ == "__main__":
    sys.exit(main())
