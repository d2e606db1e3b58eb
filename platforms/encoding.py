"""msgspec, loaded without typing_extensions.

Where that is installed, msgspec takes from it what ``typing`` has had since Python 3.11, and loading it takes about as
long as msgspec itself. An entry of None in ``sys.modules`` is the import system's way of saying that a module is not
there (Python reference, 5.3.1).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from types import ModuleType

_NAME: Final = "typing_extensions"

_modules = cast("dict[str, ModuleType | None]", sys.modules)
_absent = _NAME not in _modules
if _absent:
    _modules[_NAME] = None
try:
    import msgspec  # noqa: F401
finally:
    if _absent:
        del _modules[_NAME]
