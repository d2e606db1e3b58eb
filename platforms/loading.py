"""Modules that libraries would load and that are of no use here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from types import ModuleType


@contextmanager
def without(*names: str) -> Iterator[None]:
    """While this lasts, the modules ``names`` are not there for whoever imports them, unless they are loaded.

    For libraries that can do without a module and load it whenever it can be found. An entry of None in
    ``sys.modules`` makes its import an ``ImportError`` (Python reference, 5.3.1). All threads see that, so no other may
    be about to import one of them.
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
