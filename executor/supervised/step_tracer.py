"""The tracer of a step that is in a mount namespace: it starts the step's foreign programs."""

from __future__ import annotations

import os
from functools import partial

from executor.supervised.foreign_programs import ForeignPrograms
from executor.supervised.tracer import Tracer
from platforms import process_numbers, syscalls


def attached(pid: int, mounts: int, architecture: str, emulator: str, proc: int) -> Tracer:
    """Enter the mount namespace ``mounts``, whose root directory is the step's, and trace ``pid``. Raises OSError.

    ``mounts`` is closed. ``emulator``: its path there. ``proc``: a descriptor of a /proc that shows the step's
    processes and this one.
    """
    syscalls.setns(mounts, syscalls.CLONE_NEWNS)
    os.close(mounts)
    rule = ForeignPrograms(architecture, emulator, proc)
    number = partial(process_numbers.number_in, proc) if process_numbers.differ_in(proc) else int
    tracer = Tracer({"execve": rule, "execveat": rule}, proc, number)
    tracer.seize(pid)
    return tracer
