"""Lazy values: computed at most once, by the first caller; other threads wait for the result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lazy(Generic[T]):
    """A value that is computed by the first call, on the caller's thread. An error is kept and raised to every
    caller."""

    __slots__ = ("_error", "_lock", "_make", "_value")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def __call__(self) -> T:
        if self._make is not None:
            with self._lock:
                if self._make is not None:
                    try:
                        self._value = self._make()
                    except BaseException as error:
                        self._error = error
                    self._make = None
        if self._error is not None:
            raise self._error
        return self._value

    @property
    def done(self) -> bool:
        """Whether the value (or error) is available without computing."""
        return self._make is None


def ready(value: T) -> Lazy[T]:
    """Return a ``Lazy`` with the given value."""
    once = Lazy(lambda: value)
    once()
    return once
