"""Step: an instruction that can have a layer, as a value with its cache keys, its history text and a way to make it.

The kinds are in ``run``, ``copy`` and ``workdir``. ``caching`` finds or makes steps.
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
    """The result of a step that was made."""

    result: str
    """The name of the result, which later cache keys contain."""
    entries: SpooledList[Entry] | None = None
    """The layer; None if it is the snapshot of ``result`` (``cache.snapshot_key``)."""


class Step(Protocol):
    """One step of a stage."""

    @property
    def number(self) -> int:
        """The number of the step in messages to the orchestrator."""
        ...

    @property
    def state(self) -> State:
        """The state that the layer is added to, with the configuration that it has after the step."""
        ...

    @property
    def text(self) -> str:
        """The text of the step in the history of the image."""
        ...

    @property
    def by_content(self) -> bool:
        """Whether the name of the result is a digest of its content.

        Such a layer is valid on any layers, and ``make`` can compute it again. Else the name is random, and the layer
        is a diff against the layers of ``state``.
        """
        ...

    @property
    def title(self) -> str:
        """The instruction as written, by which the same step of an earlier build is found."""
        ...

    @property
    def key_parts(self) -> tuple[str, ...]:
        """What the parts of ``key`` after its kind are, for users; the last but one stands for any number of parts."""
        ...

    def key(self, input_: Input) -> Observed:
        """Return everything that the step can observe. Has to account for ``input_``, else the result is not
        cacheable."""
        ...

    def content_key(self) -> Observed | None:
        """Return the key by content: ``key`` with digests of the files that the step mounts of stages, in place of the
        names of the results that they are from; None if it mounts none.

        It takes longer to compute, as the files are read, and still matches after a stage was run again with the same
        result.
        """
        ...

    def make(self) -> Made:
        """Make the step."""
        ...
