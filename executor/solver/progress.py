"""The progress of a job's steps as users see it: their numbers, and the messages as they start and end.

Steps are numbered from 1 over all stages, and have a position in their stage. An instruction is identified by its
position: all triggers of a base image have the line of the FROM, and an instruction becomes another object when its
variables are expanded.
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
    """A step that has started."""

    number: int
    started: float
    waited: float = 0.0
    """Seconds that it has waited for other steps."""


class Progress:
    """Sends the progress of steps, each of which runs on a thread of its own, and counts them. Thread-safe."""

    def __init__(self, tell: protocol.Tell) -> None:
        self._tell: Final = tell
        self._lock = threading.Lock()
        self._clocks = threading.local()
        """``step``: the clock of the step that runs on this thread."""
        self._failures: list[BaseException] = []
        """Errors that were reported for a step."""
        self.cached = 0
        """The number of steps that were found in a cache."""
        self.ran = 0
        """The number of steps that were made."""

    def start(self, number: int) -> Clock:
        """Start the step ``number`` on this thread."""
        self._tell(protocol.Started(number))
        clock = self._clocks.step = Clock(number, time.monotonic())
        return clock

    def end(self, clock: Clock) -> None:
        """End a step that does not count as found or made (a base image)."""
        self._tell(protocol.Finished(clock.number, self._stop(clock)))

    def finish(self, clock: Clock, *, cached: bool, missed: str = "") -> None:
        """End a step that was found in a cache (``cached``) or made, because it was ``missed`` in caches."""
        self._tell(protocol.Finished(clock.number, self._stop(clock), cached, missed=missed))
        with self._lock:
            if cached:
                self.cached += 1
            else:
                self.ran += 1

    def fail(self, clock: Clock, error: KanifoldError) -> None:
        """End a step with ``error``.

        The error is reported for the first step that has it, not for those that waited for this one or were cancelled.
        """
        with self._lock:
            told = isinstance(error, Interrupted) or any(each is error for each in self._failures)
            self._failures.append(error)
        seconds = self._stop(clock)
        if not told:
            self._tell(protocol.Finished(clock.number, seconds, error=str(error)))

    @contextmanager
    def waiting(self, what: protocol.Awaited) -> Iterator[None]:
        """Mark the step of this thread, if any, as waiting for ``what`` (``protocol.Held``) while the block runs.

        The time is not counted as the step's.
        """
        clock: Clock | None = getattr(self._clocks, "step", None)
        if clock is None:
            yield
            return
        self._tell(protocol.Held(clock.number, what))
        began = time.monotonic()
        self._clocks.step = None  # other steps may run on this thread meanwhile
        try:
            yield
        finally:
            clock.waited += time.monotonic() - began
            self._clocks.step = clock
            self._tell(protocol.Held(clock.number))

    @contextmanager
    def turn(self, slots: threading.Semaphore) -> Iterator[None]:
        """Hold one of the ``slots`` for running steps while the block runs."""
        if not slots.acquire(blocking=False):
            with self.waiting("turn"):
                slots.acquire()
        try:
            yield
        finally:
            slots.release()

    def _stop(self, clock: Clock) -> float:
        """Return the seconds that the step took, without those that it waited."""
        self._clocks.step = None
        return round(time.monotonic() - clock.started - clock.waited, 3)


# -- numbers --------------------------------------------------------------------------------------------------------

LAYERED: Final = (Run, Copy, Add, Workdir)
"""Instructions that can have a layer: these are steps."""


class Numbers:
    """The numbers of all steps. Thread-safe: stages add the triggers of their base images in parallel."""

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
        """The steps that are known from the Dockerfile alone."""

    def base(self, stage: Stage) -> int:
        """Return the number of the FROM of ``stage``; 0 if it is built on another stage."""
        return self._bases.get(stage.index, 0)

    def of(self, stage: Stage) -> tuple[int, ...]:
        """Return the numbers of the instructions of ``stage``, in order; 0 for those that are not steps."""
        return self._steps[stage.index]

    def add_stage(self, stage: Stage, *, has_base: bool) -> tuple[protocol.StepInfo, ...]:
        """Number the steps of ``stage``, including its FROM if it ``has_base``, an image to fetch."""
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
        """Number the ``instructions`` that the base image of ``stage`` adds (ONBUILD); returns the numbers and the
        steps."""
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
