"""``python -m executor``: take one job on stdin, answer with events and a result on stdout.

Nothing else is ever written to stdout, and nothing survives this process: steps live in process namespaces that die
with the launcher, the launcher dies with us, and we end when stdin does.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from executor import __version__, job
from executor.conversation import Conversation
from platforms.errors import EnvironmentUnfit, Interrupted, KanifoldError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from executor.build.exchange import Exchange
    from executor.build.workshop import Workshop
    from executor.registry.client import Client
    from executor.rootfs.tree import Tree
    from executor.sandbox.isolation import Isolation
    from executor.sandbox.launcher import Launcher
    from platforms.emulation import Emulation

_LAST_MOMENT = 1.2
"""Seconds after the orchestrator has gone until this process ends itself, whatever it was doing."""
_STEPS = 8
"""Steps that may run at once however few processors there are: many wait for a network or a disk."""
_PARTING = 0.4
"""Seconds after a cancellation in which registries are told of uploads given up, until all connections are cut."""


def main() -> int:
    """Do one job. The exit status says what the last message said."""
    incoming, outgoing = _take_streams()
    conversation = Conversation(incoming, outgoing)
    try:
        order = conversation.receive_job()
        return _work(conversation, order)
    except KanifoldError as error:
        conversation.send(job.Failed(error.problem))
        return error.exit_code
    except MemoryError:
        conversation.send(job.Failed(Problem("BuildError", "the executor ran out of memory")))
        return 1


def preload(*, pushes: bool) -> None:
    """Load what a job needs (with ``pushes``, what speaks to registries), so that forks of this process need not."""
    import sqlite3  # noqa: F401 - which the store loads when it is opened

    import executor.build.export
    import executor.build.solve
    import executor.sandbox.launcher
    import executor.store.durability  # noqa: F401

    if pushes:
        import encodings.idna  # noqa: F401 - in which host names are looked up

        from executor.registry.wire import load_httpx

        load_httpx()


def _take_streams() -> tuple[int, int]:
    """The protocol's descriptors, out of the way of anything that reads stdin or prints."""
    import fcntl

    incoming = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 10)
    outgoing = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return incoming, outgoing


def _work(conversation: Conversation, order: job.Job) -> int:
    from executor.sandbox import isolation, launcher
    from platforms import emulation, host, parse

    platform = parse(order.platform)
    found: Emulation | EnvironmentUnfit
    try:
        found = emulation.emulation(platform)
    except EnvironmentUnfit as unfit:  # of no account as long as nothing of that platform is run
        found = unfit
    place = isolation.enter()
    # The launcher forks before any thread exists; everything after may use threads.
    steps = launcher.start(None if isinstance(found, EnvironmentUnfit) else found)
    try:
        conversation.send(job.Hello(job.VERSION, __version__, str(host.host()), place.rung.value))
        return _build(conversation, order, found, place, steps)
    finally:
        steps.stop()


def _build(
    conversation: Conversation, order: job.Job, found: Emulation | EnvironmentUnfit, place: Isolation, steps: Launcher
) -> int:
    import tempfile
    import time
    from concurrent.futures import Future, ThreadPoolExecutor

    from executor.build import files
    from executor.build.once import Once, known
    from executor.build.workshop import Workshop
    from executor.store import durability
    from executor.store.removal import remove_tree
    from executor.store.store import open_store
    from platforms import host, parse

    cancelled: Future[None] = Future()
    stopping = threading.Event()

    def cancel() -> None:
        stopping.set()
        if not cancelled.done():
            cancelled.set_result(None)
        steps.cancel_all()

    def on_close() -> None:
        cancel()
        threading.Timer(_LAST_MOMENT, os._exit, (130,)).start()

    conversation.on_close = on_close
    conversation.listen()
    began = time.monotonic()
    with open_store(order.root or None) as store, ThreadPoolExecutor(8, "background") as background:
        directory = tempfile.mkdtemp(dir=os.path.join(store.root, "tmp"), prefix="job-")
        empty = os.path.join(directory, "empty")
        os.mkdir(empty)
        workshop = Workshop(
            order=order,
            platform=parse(order.platform),
            native=host.default_platform(),
            store=store,
            conversation=conversation,
            registry=Once(lambda: _client(workshop, stopping)),
            exchange=Once(lambda: _exchange(workshop)),
            launcher=known(steps),
            background=background,
            slots=threading.Semaphore(max(_STEPS, os.cpu_count() or 1)),
            cancelled=cancelled,
            cancel=cancel,
            empty=empty,
            directory=directory,
            how="" if isinstance(found, EnvironmentUnfit) else str(found),
            unfit=found if isinstance(found, EnvironmentUnfit) else None,
        )
        # What earlier builds have left is on the disk by now; waiting for our own would cost seconds.
        background.submit(durability.settle, store, durability.WRITTEN_BACK)
        try:
            result, tree = _whole_image(workshop, began)
            conversation.send(result)
            while not isinstance(request := conversation.next_request(), job.Done):
                if isinstance(request, job.Fetch):
                    _hand_over(workshop, request.digest)
                else:
                    files.send(workshop, tree(), request.prefix)
        except BaseException:
            cancel()
            raise
        finally:
            workshop.trees.close()
            remove_tree(directory)
    if conversation.closed.is_set() and cancelled.done():
        raise Interrupted("the orchestrator is gone")
    return 0


def _whole_image(workshop: Workshop, began: float) -> tuple[job.Result, Callable[[], Tree]]:
    """``_image``, begun again whenever an outside cache could not keep its promise: what it said is forgotten then."""
    from executor.build.layer import LayerLost

    while True:
        try:
            return _image(workshop, began)
        except LayerLost:
            workshop.check()


def _image(workshop: Workshop, began: float) -> tuple[job.Result, Callable[[], Tree]]:
    """The image, and its file system for whoever wants to see that."""
    import time

    from executor.build import export
    from executor.build.solve import Solver
    from executor.dockerfile import parse
    from executor.rootfs.elf import foreign

    order = workshop.order
    dockerfile = parse(order.dockerfile, order.dockerfile_name)
    solver = Solver(workshop, dockerfile)
    sending = export.pushes(workshop)
    state = solver.solve(sending.layer)
    if order.cache_from and not solver.cached:
        workshop.exchange().complain()
    manifest, descriptor = export.export(workshop, state, sending, solver.made)
    if any(each.kind != "inline" for each in order.cache_to):
        export.share(workshop, solver.made)
    result = job.Result(
        manifest=descriptor,
        config=manifest.config,
        layers=manifest.layers,
        size=manifest.config.size + sum(each.size for each in manifest.layers),
        findings=tuple(
            job.Finding(layer.blob().descriptor.digest, path, machine.name)
            for layer in state.layers
            if layer.machines is not None
            for machine in layer.machines()
            if foreign(machine.name, workshop.platform.architecture)
            for path in machine.paths
        ),
        cached=solver.cached,
        ran=solver.ran,
        seconds=round(time.monotonic() - began, 3),
    )
    return result, lambda: solver.tree_of(state)


def _client(workshop: Workshop, stopping: threading.Event) -> Client:
    import msgspec

    from executor.registry.auth import Credential
    from executor.registry.client import Client

    credentials = msgspec.json.Decoder(Credential)

    def keychain(registry: str) -> Credential | None:
        answer = workshop.conversation.ask("credential", registry)
        return None if answer is None else credentials.decode(answer)

    def progress(action: str, name: str, done: int, total: int) -> None:
        workshop.tell(job.Moved(action, name, done, total))

    client = Client(workshop.order.registries, keychain, progress=progress, cancel=stopping)

    def hang_up(_: Future[None]) -> None:
        timer = threading.Timer(_PARTING, client.close)
        timer.daemon = True
        timer.start()

    workshop.cancelled.add_done_callback(hang_up)
    return client


def _exchange(workshop: Workshop) -> Exchange:
    from executor.build import exchange

    order = workshop.order
    sources, targets = exchange.places(order, workshop.registry)

    def warn(problem: Problem) -> None:
        workshop.tell(job.Warned(problem, problem.kind))

    return exchange.Exchange(sources, targets, warn, order.cache_ttl)


def _hand_over(workshop: Workshop, digest: str) -> None:
    from executor.store import blobs

    path = blobs.path(workshop.store, digest)
    size = os.stat(path).st_size
    workshop.conversation.send_file(job.Blob(digest, size), path, size)


if __name__ == "__main__":
    sys.exit(main())
