"""``python -m executor``: take one job on stdin, answer with events and a result on stdout.

Nothing else is ever written to stdout.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Do one job. The exit status says what the last message said."""
    from executor.worker import serve
    from platforms import binfmt, debug

    debug.enter("executor")
    status = serve((_take_streams(),), binfmt.emulated())
    debug.log("process ends", status=status)
    return status


def preload() -> None:
    """Load what every job needs, so that forks of this process need not."""
    import sqlite3  # noqa: F401 - which the store loads when it is opened

    import executor.solver.jobclient
    import executor.worker  # noqa: F401


def preload_registries() -> None:
    """Load what speaks to registries."""
    import encodings.idna  # noqa: F401 - in which host names are looked up

    from executor import transport
    from executor.registry import client  # noqa: F401

    transport.load_httpx()


def _take_streams() -> tuple[int, int]:
    """The protocol's descriptors, out of the way of anything that reads stdin or prints."""
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
