"""Sequences of any length in constant memory: their end is kept as objects, what comes before it in a file.

The file has no name, so that it goes when nobody has it open. What is in it is MessagePack, some hundred items at a
time.
"""

from __future__ import annotations

import os
from array import array
from typing import IO, TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from executor.store.faults import translated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")

BATCH: Final = 512
"""Items that are written and read together."""
HELD: Final = 4096
"""Items that are kept as objects: what most layers have is never written."""

_ENCODER: Final = msgspec.msgpack.Encoder()


class Batches(Generic[T]):
    """Groups of items in a file in ``directory`` (by default the system's for temporary files), by their number.

    ``decoder`` reads a list of items. Several threads may read at the same time.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[list[T]], directory: str | None) -> None:
        self._decoder = decoder
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._ends = array("Q", [0])
        self._kept: dict[int, Sequence[T]] = {}
        self.items = 0
        """How many items all groups have together."""

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, items: Sequence[T]) -> None:
        """Add a group."""
        import tempfile

        try:
            data = _ENCODER.encode(items)
        except OverflowError:  # a time beyond what MessagePack has numbers for
            data = b""
            self._kept[len(self)] = tuple(items)
        with translated(self._directory or tempfile.gettempdir(), "cannot write a temporary file"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0, dir=self._directory)  # noqa: SIM115
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self._ends.append(self._ends[-1] + len(data))
        self.items += len(items)

    def __getitem__(self, number: int) -> Sequence[T]:
        """The group ``number``."""
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        assert self._file is not None
        start, end = self._ends[number], self._ends[number + 1]
        return self._decoder.decode(os.pread(self._file.fileno(), end - start, start))


class Spool(Generic[T]):
    """A sequence that grows by ``append`` and may be gone through any number of times, by several threads at once."""

    def __init__(
        self, decoder: msgspec.msgpack.Decoder[list[T]], directory: str | None = None, items: Iterable[T] = ()
    ) -> None:
        self._batches: Batches[T] = Batches(decoder, directory)
        self._tail: list[T] = []
        for each in items:
            self.append(each)

    @classmethod
    def of(cls, batches: Batches[T], tail: list[T]) -> Spool[T]:
        """The items of ``batches`` and then those of ``tail``, none of which changes any more."""
        made = cls.__new__(cls)
        made._batches, made._tail = batches, tail
        return made

    def append(self, item: T) -> None:
        """Add ``item``. Nobody may be reading meanwhile."""
        self._tail.append(item)
        if len(self._tail) >= HELD:
            for start in range(0, HELD, BATCH):
                self._batches.add(self._tail[start : start + BATCH])
            self._tail = []

    def __len__(self) -> int:
        return self._batches.items + len(self._tail)

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._batches)):
            yield from self._batches[number]
        yield from self._tail
