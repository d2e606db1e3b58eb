"""Keeping libraries from importing optional modules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from types import ModuleType


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Make imports of the modules ``names`` fail for the length of the block, unless they are loaded already.

    For libraries that import an optional module whenever it is installed. None in ``sys.modules`` makes its import an
    ``ImportError`` (Python reference, 5.3.1). It is seen by all threads, so no other may import one of them meanwhile.
    """
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            if modules.get(name, sys) is None:
                del modules[name]
