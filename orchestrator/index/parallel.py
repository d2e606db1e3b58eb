"""Concurrent calls that end when one of them fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def run_all(function: Callable[[_T], _R], items: Iterable[_T], threads: int, stop: threading.Event) -> list[_R]:
    """Return the results of ``function`` for ``items``, called in ``threads``. Raises the first error.

    ``stop`` is then set, which ends the calls in progress, such as long transfers.
    """
    with ThreadPoolExecutor(threads, "together") as pool:
        futures = [pool.submit(function, each) for each in items]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((each for each in futures if each in done and each.exception() is not None), None)
        if failed is None:
            return [each.result() for each in futures]
        stop.set()
        for each in futures:
            each.cancel()
        raise failed.exception() or AssertionError
