"""The command ``kanifold build``, from a request to the exit status: display, interruption, and what is printed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from executor.store import policy
from executor.store.store import default_root
from orchestrator import build as building
from orchestrator import build_history, session
from orchestrator.build import PlatformsFailedError
from orchestrator.nodes.local_node import LocalNode
from orchestrator.nodes.node import Node
from orchestrator.outputs import writes_stdout
from orchestrator.plan import BuildPlan
from orchestrator.prefork import PreforkServer
from orchestrator.registries import Connect
from orchestrator.request import BuildRequest, Report
from orchestrator.results import BuildResult
from orchestrator.view import events, open_display
from orchestrator.view.events import Emit
from platforms.emulation import ImageEmulators
from platforms.errors import BuildError, EnvironmentUnfit, Interrupted, KanifoldError

_LAST_MOMENT: Final = 1.9
"""Seconds from an interruption to the forced end of the process; a clean stop takes less."""

_T = TypeVar("_T")


def build(
    request: BuildRequest,
    plan: BuildPlan | None,
    server: PreforkServer | None,
    connect: Connect,
    emulators: ImageEmulators | None = None,
) -> int:
    """Build, show it, and return the process's exit status (``platforms.errors`` lists them).

    The ``plan`` has been made if everything for it was at hand; executors for this machine come from ``server``, its
    ``emulators`` may be out of images. Registries are taken up by ``connect``.
    """
    nodes = _nodes(request, LocalNode(server, request.options.isolation, emulators))
    if request.dry_run:
        from orchestrator import dry_run

        return dry_run.show(request, plan, nodes)
    if not request.ssh:
        return _build_and_collect(request, plan, nodes, connect)
    from orchestrator.ssh_agent import start_agents

    with start_agents(request.ssh) as sockets:
        return _build_and_collect(replace(request, agents=sockets), plan, nodes, connect)


def _nodes(request: BuildRequest, here: Node) -> tuple[Node, ...]:
    """Return the nodes that the build may use; ``here`` is this machine."""
    if request.nodes is None:
        return (here,)
    from orchestrator.nodes import node_selection

    platforms = (*request.platforms, request.build_platform)
    named = (request.context, request.dockerfile, request.options.target, *map(str, request.tags))
    build = "\0".join((os.getcwd(), *named))
    return node_selection.nodes(request.nodes, here, sends=not request.dry_run, platforms=platforms, build=build)


def _build_and_collect(request: BuildRequest, plan: BuildPlan | None, nodes: tuple[Node, ...], connect: Connect) -> int:
    """Build on ``nodes`` and return the exit status; then collect garbage in the store, unless it was interrupted."""
    root = os.path.abspath(request.options.root or default_root())
    wanted = policy.load(root)
    status = _build_displayed(root, request, plan, nodes, connect)
    if status != Interrupted.exit_code:
        from orchestrator import store_gc

        store_gc.collect_after_build(root, wanted)
    return status


def _build_displayed(
    root: str, request: BuildRequest, plan: BuildPlan | None, nodes: tuple[Node, ...], connect: Connect
) -> int:
    """Build on ``nodes`` with a display and a trace, print the digest, and return the exit status.

    The build is recorded in the history of the store ``root``.
    """
    with (
        open_display(request.progress) as display,
        traced(request.trace, display.emit) as traced_emit,
        reported(request.reports, traced_emit) as reported_emit,
        build_history.recorded(root, request.reports, reported_emit) as emit,
    ):
        try:
            with descriptors_needed():
                result = asyncio.run(interruptible(run(request, plan, nodes, connect, emit)))
        except KanifoldError as error:
            outcome: events.Outcome = "cancelled" if isinstance(error, Interrupted) else "failed"
            troubles = error.troubles if isinstance(error, PlatformsFailedError) else (events.Failure(error.problem),)
            emit(events.BuildEnded(outcome=outcome, troubles=troubles))
            return error.exit_code
        emit(events.BuildEnded(outcome="built", digest=result.root.digest))
    _print_digest(request, result)
    return 0


@contextlib.contextmanager
def descriptors_needed() -> Iterator[None]:
    """Raise ``EnvironmentUnfit`` in place of EMFILE and ENFILE, also when a module could not be loaded."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise EnvironmentUnfit(
            "cannot build", why=error.strerror or str(error), remedy="raise the limit of open files (`ulimit -n`)"
        ) from error


async def run(
    request: BuildRequest, plan: BuildPlan | None, nodes: tuple[Node, ...], connect: Connect, emit: Emit
) -> BuildResult:
    """Build and publish ``request`` in a session of its own on ``nodes``, and write the files of its result."""
    async with session.opened(nodes, request.options.root, request.options.registries, connect, emit) as opened:
        result = await building.build(opened, request, plan)
        if request.metadata_file or request.iid_file:
            from orchestrator import metadata_file

            metadata_file.write(request, result)
    return result


async def interruptible(work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of ``work``. The first SIGINT, SIGTERM or SIGHUP cancels it; later ones are ignored.

    Raises ``Interrupted`` when it was cancelled. After ``_LAST_MOMENT`` the process ends in any case.
    """
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which is how nohup says that it may go on
        signals.append(signal.SIGHUP)

    def stop() -> None:
        task.cancel()
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_IGN)
        last = threading.Timer(_LAST_MOMENT, os._exit, (Interrupted.exit_code,))
        last.daemon = True
        last.start()

    for each in signals:
        loop.add_signal_handler(each, stop)
    try:
        return await task
    except asyncio.CancelledError as error:
        raise Interrupted("the build was interrupted") from error


def traced(path: str, emit: Emit) -> contextlib.AbstractContextManager[Emit]:
    """Return ``emit`` that also writes a trace to the file ``path``; "" for no trace."""
    if not path:
        return contextlib.nullcontext(emit)
    from orchestrator.trace import recorded

    return recorded(path, emit)


def reported(reports: Sequence[Report], emit: Emit) -> contextlib.AbstractContextManager[Emit]:
    """Return ``emit`` that also writes ``reports`` when the build ends."""
    if not reports:
        return contextlib.nullcontext(emit)
    from orchestrator.reports import recording

    return recording.reported(reports, emit)


def _print_digest(request: BuildRequest, result: BuildResult) -> None:
    """Print the digest, and nothing else, on stdout, unless stdout is an output or there is no output."""
    if request.outputs and not any(map(writes_stdout, request.outputs)):
        try:
            print(result.root.digest, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer would fail again at the exit
            raise BuildError("cannot write the digest to stdout", why=error.strerror or str(error)) from error
