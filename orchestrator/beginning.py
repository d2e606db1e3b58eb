"""The beginning of a build, which is mostly modules being loaded: by several processes at once.

(1) A nursery is forked before the flags are understood. (2) asyncio loads ``ssl``, to speak TLS, wherever there is one,
and here its loop only knows pipes. (3) Emulators are tried out while this process loads what it needs itself.
"""

from __future__ import annotations

import gc
from typing import Any

from orchestrator import nursery, registries
from platforms.loading import without


def run(flags: dict[str, Any]) -> int:
    """Build what ``flags`` say, and return the exit status. Raises ``KanifoldError`` for what is wrong with them."""
    gc.disable()  # what is loaded stays: looking for cycles in it, while there is more and more of it, finds nothing
    with nursery.opened() as brood:  # (1)
        from orchestrator import flags as parsing
        from orchestrator import plan

        request = parsing.request(flags)
        planned = plan.at_hand(request)
        with without("ssl"):  # (2), while there is one thread
            import asyncio  # noqa: F401
        from platforms import emulation

        foreseen = emulation.foresee(request.platforms if planned is None or planned.may_run else ())  # (3)
        from orchestrator import build as building

        gc.freeze()
        gc.enable()
        foreseen()
        return building.build(request, planned, brood, registries.here if brood is None else brood.speaker.enter)
