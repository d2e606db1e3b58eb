"""The beginning of a build, which is mostly modules being loaded: by several processes at once.

(1) A nursery is forked before anything is loaded that understands the flags. (2) asyncio loads ``ssl``, to speak TLS,
wherever there is one, and here its loop only knows pipes. (3) Emulators are tried out while this process loads what it
needs itself.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

from orchestrator import prefork, registries
from orchestrator.prefork import PreforkServer
from platforms.errors import EnvironmentUnfit
from platforms.loading import without


def foresee(arguments: Sequence[str]) -> PreforkServer | None:
    """The nursery of the build that the ``arguments`` of ``kanifold build`` seem to ask for, to be closed, or None.

    Whoever understands the flags takes as long to load as what a nursery loads meanwhile. A guess may be wrong: a
    nursery that is not needed is closed, and one that is and was not foreseen is begun by ``run``. With ``--debug``
    none is: that is a flag which all processes have to know.
    """
    asks = {"-h", "--help", "--check", "--debug"}.intersection(arguments)
    calls = any(each.startswith("--call") for each in arguments)
    debugs = any(each[0] == "-" != each[1:2] and "D" in each for each in arguments if each)
    if asks or calls or debugs or sys.platform != "linux":
        return None
    gc.disable()  # what is loaded stays: looking for cycles in it, while there is more and more of it, finds nothing
    try:
        return prefork.begin()
    except (OSError, EnvironmentUnfit):  # as it will be again, and said, when the flags are known
        return None


def run(flags: dict[str, Any], begun: PreforkServer | None) -> int:
    """Build what ``flags`` say, and return the exit status; a nursery may have ``begun``.

    Raises ``KanifoldError`` for what is wrong with the flags.
    """
    gc.disable()
    with prefork.opened(begun) as server:  # (1)
        from orchestrator import flags as parsing
        from orchestrator import plan

        request = parsing.request(flags)
        planned = plan.at_hand(request)
        with without("ssl"):  # (2), while there is one thread
            import asyncio  # noqa: F401
        from platforms import emulation

        foreseen = emulation.prefetch(request.platforms if planned is None or planned.may_run else ())  # (3)
        from orchestrator import command

        gc.freeze()
        gc.enable()
        foreseen()
        return command.build(
            request, planned, server, registries.direct if server is None else server.registries.connect
        )
