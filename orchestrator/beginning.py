"""The beginning of a build, which is mostly modules being loaded: by several processes at once.

(1) A nursery is forked before the flags are understood. (2) Emulators are tried out while this process loads what it
needs itself.
"""

from __future__ import annotations

from typing import Any

from orchestrator import nursery, registries


def run(flags: dict[str, Any]) -> int:
    """Build what ``flags`` say, and return the exit status. Raises ``KanifoldError`` for what is wrong with them."""
    with nursery.opened() as brood:  # (1)
        from orchestrator import flags as parsing
        from orchestrator import plan

        request = parsing.request(flags)
        planned = plan.at_hand(request)
        from platforms import emulation

        foreseen = emulation.foresee(request.platforms if planned is None or planned.may_run else ())  # (2)
        from orchestrator import build as building

        foreseen()
        return building.build(request, planned, brood, registries.here if brood is None else brood.speaker.enter)
