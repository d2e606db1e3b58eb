"""Spooled lists: sequences of any length in constant memory, the end as objects and the rest in a temporary file.

The file has no name, so that it is deleted when it is closed. Its content is MessagePack, some hundred items at a time.
"""

from __future__ import annotations

import os
from array import array
from typing import IO, TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from executor.store.faults import translated
from platforms.descriptors import write_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")

BATCH: Final = 512
"""Number of items that are written and read together."""
HELD: Final = 4096
"""Number of items that are kept as objects: most layers have fewer and are never written."""

_ENCODER: Final = msgspec.msgpack.Encoder()


class Batches(Generic[T]):
    """Batches of items in a temporary file in ``directory`` (default: the system's), by number.

    ``decoder`` decodes a list of items. Safe for several readers.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[list[T]], directory: str | None) -> None:
        self._decoder = decoder
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._ends = array("Q", [0])
        self._kept: dict[int, Sequence[T]] = {}
        self.items = 0
        """Number of items in all batches."""

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, items: Sequence[T]) -> None:
        """Append a batch."""
        import tempfile

        try:
            data = _ENCODER.encode(items)
        except OverflowError:  # a time beyond the integers of MessagePack
            data = b""
            self._kept[len(self)] = tuple(items)
        with translated(self._directory or tempfile.gettempdir(), "cannot write a temporary file"):
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0, dir=self._directory)  # noqa: SIM115
            write_all(self._file.fileno(), data)
        self._ends.append(self._ends[-1] + len(data))
        self.items += len(items)

    def __getitem__(self, number: int) -> Sequence[T]:
        """Return the batch ``number``."""
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        assert self._file is not None
        start, end = self._ends[number], self._ends[number + 1]
        return self._decoder.decode(os.pread(self._file.fileno(), end - start, start))


class SpooledList(Generic[T]):
    """A list that grows by ``append`` and can be iterated any number of times, by several threads at once."""

    def __init__(
        self, decoder: msgspec.msgpack.Decoder[list[T]], directory: str | None = None, items: Iterable[T] = ()
    ) -> None:
        self._batches: Batches[T] = Batches(decoder, directory)
        self._tail: list[T] = []
        for each in items:
            self.append(each)

    @classmethod
    def of(cls, batches: Batches[T], tail: list[T]) -> SpooledList[T]:
        """Return a list of the items of ``batches`` followed by those of ``tail``, which must not change any more."""
        made = cls.__new__(cls)
        made._batches, made._tail = batches, tail
        return made

    def append(self, item: T) -> None:
        """Append ``item``. Not safe while others read."""
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
