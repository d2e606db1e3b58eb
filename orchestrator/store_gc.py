"""Garbage collection at the end of a build.

Files of steps belong to ids that exist only in a user namespace with the same mapping. So this runs in a forked process
that enters one; the caller waits for it, and it is killed with the caller.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from functools import partial

from executor.store import garbage_collection
from executor.store.policy import Policy
from executor.store.store import open_store
from orchestrator import forking
from platforms import syscalls
from platforms.errors import KanifoldError


def collect_after_build(root: str, policy: Policy) -> None:
    """Collect garbage in the store at ``root``, if it is due. Errors are ignored: the build is not affected."""
    if sys.platform != "linux" or not policy.enabled:
        return
    try:
        with open_store(root) as store:
            if not garbage_collection.is_due(store, policy):
                return
    except (KanifoldError, OSError):
        return
    try:
        child = forking.start("kanifold-tidy", partial(_work, root, policy, os.getpid()))
    except (KanifoldError, OSError):
        return
    try:
        os.waitpid(child, 0)
    except KeyboardInterrupt:  # the build has succeeded, and the store is crash-only
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _work(root: str, policy: Policy, parent: int) -> int:
    from executor.sandbox import isolation

    syscalls.die_with_parent(signal.SIGKILL)
    with contextlib.suppress(KanifoldError):
        isolation.enter()
    syscalls.die_with_parent(signal.SIGKILL)  # again: a change of ids clears it
    if os.getppid() != parent:
        return 1
    with contextlib.suppress(KanifoldError, OSError), open_store(root) as store:
        garbage_collection.collect(store, policy)
    return 0
