"""The first moments of a build, most of which are modules being loaded: by several processes at once.

(1) The prefork server is forked before what understands the flags is loaded. (2) asyncio is loaded without ``ssl``,
which it imports wherever it can: its loop only has pipes here, unless a node is in a cluster. (3) Emulators are tried
while modules are loaded.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator import prefork, registries
from orchestrator.prefork import PreforkServer
from platforms.errors import EnvironmentUnfit
from platforms.loading import without

if TYPE_CHECKING:
    from orchestrator.request import BuildRequest
    from platforms.emulation import ImageEmulators
    from platforms.platform import Platform


def start_early(arguments: Sequence[str]) -> PreforkServer | None:
    """A prefork server, to be closed, if the ``arguments`` of ``kanifold build`` look like a build; else None.

    What understands the flags takes as long to load as what the server loads meanwhile. The guess may be wrong: a
    server that is not needed is closed, and ``run`` starts one that is needed and was not expected. With ``--debug``
    there is none, because all processes have to know that flag.
    """
    asks = {"-h", "--help", "--check", "--debug"}.intersection(arguments)
    calls = any(each.startswith("--call") for each in arguments)
    debugs = any(each[0] == "-" != each[1:2] and "D" in each for each in arguments if each)
    if asks or calls or debugs or sys.platform != "linux":
        return None
    gc.disable()  # what is loaded stays, so garbage collection would find nothing, and take longer with each module
    try:
        return prefork.begin()
    except (OSError, EnvironmentUnfit):  # ``run`` tries again and reports it, once the flags are known
        return None


def run(flags: dict[str, Any], started: PreforkServer | None) -> int:
    """Build what ``flags`` say and return the exit status. ``started`` is the server of ``start_early``.

    Raises ``KanifoldError`` for what is wrong with the flags.
    """
    gc.disable()
    with prefork.opened(started) as server:  # (1)
        from orchestrator import flags as parsing
        from orchestrator import plan

        request = parsing.request(flags)
        planned = plan.at_hand(request)
        in_clusters = request.nodes is not None and request.nodes.in_clusters
        with without(*(() if in_clusters else ("ssl",))):  # (2), while there is one thread
            import asyncio  # noqa: F401
        from platforms import emulation

        here = request.nodes is None or request.nodes.entry("local") is not None
        platforms = request.platforms if here and (planned is None or planned.may_run) else ()
        with image_emulators(platforms, request) as emulators:
            tried = emulation.prefetch(platforms, emulators)  # (3)
            from orchestrator import command

            gc.freeze()
            gc.enable()
            tried()
            connect = registries.direct if server is None else server.registries.connect
            return command.build(request, planned, server, connect, emulators)


@contextlib.contextmanager
def image_emulators(platforms: Sequence[Platform], request: BuildRequest) -> Iterator[ImageEmulators | None]:
    """Yield the emulators out of images for steps of ``platforms``; None if no platform is a foreign one."""
    from platforms import host

    own = host.host().architecture
    if sys.platform != "linux" or all(each.architecture == own for each in platforms):
        yield None
        return
    from executor.store.emulators import StoreEmulators

    image = request.options.emulator_image
    if image and not request.dry_run:
        from orchestrator import emulator_commands

        emulator_commands.provide(request, [each.architecture for each in platforms])
    with contextlib.closing(StoreEmulators(request.options.root, image)) as emulators:
        yield emulators
