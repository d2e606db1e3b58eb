"""The steps of a job as they are shown to people: numbered from 1 over all stages, each with its place in its stage.

Instructions are told apart by their place, never by their line or identity: the triggers of a base image all stand in
the line of the FROM that meets them, and an instruction is another object once its variables are expanded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Final

from executor import protocol
from executor.dockerfile import Dockerfile, Stage
from executor.dockerfile.instructions import Add, Copy, Instruction, Run, Workdir
from executor.solver.graph import FromStage, Graph

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
        found: list[protocol.Step] = []
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

    def add_stage(self, stage: Stage, *, has_base: bool) -> tuple[protocol.Step, ...]:
        """Number the steps of ``stage``, its FROM among them if it ``has_base`` to be fetched."""
        with self._lock:
            base: tuple[protocol.Step, ...] = ()
            total = has_base + _count(stage.instructions)
            if has_base:
                self._bases[stage.index] = self._next
                base = (self._step(stage, stage.base, 1, total),)
            numbers, steps = self._number(stage, stage.instructions, int(has_base), total)
            self._steps[stage.index] = numbers
            return (*base, *steps)

    def triggers(
        self, stage: Stage, instructions: Sequence[Instruction]
    ) -> tuple[tuple[int, ...], tuple[protocol.Step, ...]]:
        """The numbers of the ``instructions`` that the base of ``stage`` adds (ONBUILD), and those as steps."""
        with self._lock:
            return self._number(stage, instructions, 0, _count(instructions))

    def _number(
        self, stage: Stage, instructions: Sequence[Instruction], before: int, total: int
    ) -> tuple[tuple[int, ...], tuple[protocol.Step, ...]]:
        numbers: list[int] = []
        steps: list[protocol.Step] = []
        for each in instructions:
            if isinstance(each, LAYERED):
                numbers.append(self._next)
                steps.append(self._step(stage, each, before + len(steps) + 1, total))
            else:
                numbers.append(0)
        return tuple(numbers), tuple(steps)

    def _step(self, stage: Stage, instruction: Instruction, position: int, total: int) -> protocol.Step:
        label = stage.label if self._several else ""
        step = protocol.Step(self._next, label, instruction.original, instruction.location.line, position, total)
        self._next += 1
        return step


def _count(instructions: Iterable[Instruction]) -> int:
    return sum(isinstance(each, LAYERED) for each in instructions)
