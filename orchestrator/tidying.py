"""Garbage collection at the end of a build.

What steps have made belongs to ids that only exist in a namespace like theirs. So the work is a forked process's, which
enters one; this one waits for it, and it does not outlive this one.
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


def tidy(root: str, policy: Policy) -> None:
    """Bring the store at ``root`` to its size. Whatever goes wrong in this is no fault of the build's."""
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
    except KeyboardInterrupt:  # the build is done all the same, and a store whole at any moment
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _work(root: str, policy: Policy, parent: int) -> int:
    from executor.sandbox import isolation

    syscalls.die_with_parent(signal.SIGKILL)
    with contextlib.suppress(KanifoldError):
        isolation.enter()
    syscalls.die_with_parent(signal.SIGKILL)  # which a change of ids takes back
    if os.getppid() != parent:
        return 1
    with contextlib.suppress(KanifoldError, OSError), open_store(root) as store:
        garbage_collection.collect(store, policy)
    return 0
