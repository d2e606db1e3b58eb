"""A step that may have a layer, as a value: what it can observe, how it is made, and how it is shown.

``run``, ``copy`` and ``workdir`` have the kinds of steps. ``caching`` finds what a step came to, or has it made.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from executor.rootfs.entry import Entry
from executor.solver.inputs import Input
from executor.solver.state import State
from executor.solver.treename import Observed
from executor.store.spool import SpooledList


class Made(msgspec.Struct, frozen=True):
    """What came of making a step."""

    result: str
    """The name of the result, for cache keys."""
    entries: SpooledList[Entry] | None = None
    """The layer; None when a directory in the store holds it, under the name of the result."""


class Step(Protocol):
    """One step of a stage."""

    @property
    def number(self) -> int:
        """Under which the orchestrator knows the step."""
        ...

    @property
    def state(self) -> State:
        """The stage that the step's layer goes on. Its configuration is as the step leaves it."""
        ...

    @property
    def text(self) -> str:
        """The step in the history of the image."""
        ...

    @property
    def by_content(self) -> bool:
        """Whether the result is named by its content.

        Such a result is the same layer on any other layers, and may be worked out again at any time by ``make``. One
        that is named by chance is the change to the layers of ``state``, and is made once.
        """
        ...

    def key(self, taken: Input) -> Observed:
        """What the step can observe. Accounts for ``taken``; else the job's answer is not cacheable."""
        ...

    def other_key(self) -> Observed | None:
        """A key that takes longer to work out and holds for more; None when there is no other."""
        ...

    def make(self) -> Made:
        """Do the step."""
        ...
