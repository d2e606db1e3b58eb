"""The tracer that starts the foreign programs of a step, in a process beside it."""

from __future__ import annotations

from functools import partial

from executor.supervised.foreign_programs import ForeignPrograms
from executor.supervised.tracer import Tracer
from platforms import process_numbers


def attached(pid: int, architecture: str, emulator: str, proc: int) -> Tracer:
    """Trace ``pid``, the step's first process, whose root directory this process has. Raises OSError.

    ``emulator``: its path there. ``proc``: a descriptor of a /proc that shows the step's processes and this one.
    """
    rule = ForeignPrograms(architecture, emulator, proc)
    number = partial(process_numbers.number_in, proc) if process_numbers.differ_in(proc) else int
    tracer = Tracer({"execve": rule, "execveat": rule}, proc, number)
    tracer.seize(pid)
    return tracer
