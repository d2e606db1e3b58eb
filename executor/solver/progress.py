"""The steps of a job as they are shown to people: their numbers, and how they come along.

Steps are numbered from 1 over all stages, each with its place in its stage. An instruction is told apart by its place,
never by its line or identity: the triggers of a base image all stand in the line of the FROM that meets them, and an
instruction is another object once its variables are expanded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from executor import protocol
from executor.dockerfile import Dockerfile, Stage
from executor.dockerfile.instructions import Add, Copy, Instruction, Run, Workdir
from executor.solver.graph import FromStage, Graph
from platforms.errors import Interrupted, KanifoldError


class Clock(msgspec.Struct):
    """A step that has begun."""

    number: int
    started: float
    waited: float = 0.0
    """Seconds in which it waited for others."""


class Progress:
    """The steps that are under way, each on a thread of its own, and how many are done. Safe for threads."""

    def __init__(self, tell: protocol.Tell) -> None:
        self._tell: Final = tell
        self._lock = threading.Lock()
        self._clocks = threading.local()
        """``step``: the clock of the step that this thread does."""
        self._failures: list[BaseException] = []
        """Errors that were told as some step's."""
        self.cached = 0
        """Steps that were found in the cache."""
        self.ran = 0
        """Steps that were done."""

    def start(self, number: int) -> Clock:
        """The step ``number`` begins on this thread."""
        self._tell(protocol.Started(number))
        clock = self._clocks.step = Clock(number, time.monotonic())
        return clock

    def end(self, clock: Clock) -> None:
        """A step that is neither found nor done (a base image) has ended well."""
        self._tell(protocol.Finished(clock.number, self._stop(clock)))

    def finish(self, clock: Clock, *, cached: bool) -> None:
        """A step has ended well: it was found, or it was done."""
        self._tell(protocol.Finished(clock.number, self._stop(clock), cached))
        with self._lock:
            if cached:
                self.cached += 1
            else:
                self.ran += 1

    def fail(self, clock: Clock, error: KanifoldError) -> None:
        """A step has failed.

        Told of the one whose ``error`` it is; of none that waited for it or was stopped with it.
        """
        with self._lock:
            told = isinstance(error, Interrupted) or any(each is error for each in self._failures)
            self._failures.append(error)
        seconds = self._stop(clock)
        if not told:
            self._tell(protocol.Finished(clock.number, seconds, error=str(error)))

    @contextmanager
    def waiting(self, what: protocol.Awaited) -> Iterator[None]:
        """While the step of this thread, if any, waits for ``what`` (``protocol.Held``).

        That is none of its own time.
        """
        clock: Clock | None = getattr(self._clocks, "step", None)
        if clock is None:
            yield
            return
        self._tell(protocol.Held(clock.number, what))
        began = time.monotonic()
        self._clocks.step = None  # what others do on this thread is not part of the step
        try:
            yield
        finally:
            clock.waited += time.monotonic() - began
            self._clocks.step = clock
            self._tell(protocol.Held(clock.number))

    @contextmanager
    def turn(self, slots: threading.Semaphore) -> Iterator[None]:
        """One of the ``slots`` for steps that run, for the length of the block."""
        if not slots.acquire(blocking=False):
            with self.waiting("turn"):
                slots.acquire()
        try:
            yield
        finally:
            slots.release()

    def _stop(self, clock: Clock) -> float:
        """How many seconds the step took."""
        self._clocks.step = None
        return round(time.monotonic() - clock.started - clock.waited, 3)


# -- numbers --------------------------------------------------------------------------------------------------------

LAYERED: Final = (Run, Copy, Add, Workdir)
"""Instructions that may make a layer, and are therefore steps."""


class Numbers:
    """The numbers of all steps. Safe for threads: stages find out at the same time what their bases add."""

    def __init__(self, dockerfile: Dockerfile, needed: Graph) -> None:
        self._several = len(dockerfile.stages) > 1
        self._lock = threading.Lock()
        self._next = 1
        self._bases: dict[int, int] = {}
        self._steps: dict[int, tuple[int, ...]] = {}
        found: list[protocol.StepInfo] = []
        for index in needed.stages:
            found += self.add_stage(dockerfile.stages[index], has_base=not isinstance(needed.bases[index], FromStage))
        self.steps = tuple(found)
        """Those that the Dockerfile alone tells of."""

    def base(self, stage: Stage) -> int:
        """The number of the FROM of ``stage``; 0 when it is built on another stage."""
        return self._bases.get(stage.index, 0)

    def of(self, stage: Stage) -> tuple[int, ...]:
        """The numbers of the instructions of ``stage``, in order; 0 for those that are no steps."""
        return self._steps[stage.index]

    def add_stage(self, stage: Stage, *, has_base: bool) -> tuple[protocol.StepInfo, ...]:
        """Number the steps of ``stage``, its FROM among them if it ``has_base`` to be fetched."""
        with self._lock:
            base: tuple[protocol.StepInfo, ...] = ()
            total = has_base + _count(stage.instructions)
            if has_base:
                self._bases[stage.index] = self._next
                base = (self._step(stage, stage.base, 1, total),)
            numbers, steps = self._number(stage, stage.instructions, int(has_base), total)
            self._steps[stage.index] = numbers
            return (*base, *steps)

    def triggers(
        self, stage: Stage, instructions: Sequence[Instruction]
    ) -> tuple[tuple[int, ...], tuple[protocol.StepInfo, ...]]:
        """The numbers of the ``instructions`` that the base of ``stage`` adds (ONBUILD), and those as steps."""
        with self._lock:
            return self._number(stage, instructions, 0, _count(instructions))

    def _number(
        self, stage: Stage, instructions: Sequence[Instruction], before: int, total: int
    ) -> tuple[tuple[int, ...], tuple[protocol.StepInfo, ...]]:
        numbers: list[int] = []
        steps: list[protocol.StepInfo] = []
        for each in instructions:
            if isinstance(each, LAYERED):
                numbers.append(self._next)
                steps.append(self._step(stage, each, before + len(steps) + 1, total))
            else:
                numbers.append(0)
        return tuple(numbers), tuple(steps)

    def _step(self, stage: Stage, instruction: Instruction, position: int, total: int) -> protocol.StepInfo:
        label = stage.label if self._several else ""
        step = protocol.StepInfo(self._next, label, instruction.original, instruction.location.line, position, total)
        self._next += 1
        return step


def _count(instructions: Iterable[Instruction]) -> int:
    return sum(isinstance(each, LAYERED) for each in instructions)
