"""Running one job: its services, its image, and the orchestrator's requests afterwards."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from executor import protocol
from executor.conversation import Conversation
from executor.rootfs.tree import Tree
from executor.snapshotter.kinds import snapshotter
from executor.solver import export
from executor.solver.content import Contents
from executor.solver.graph import JobPlan
from executor.solver.inputs import Inputs
from executor.solver.layer import Layer, LayerLost, Layers
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation, ScratchSpace
from executor.solver.services import Memory, Services
from executor.solver.solver import Solver
from executor.store import blobs, durability, faults, garbage_collection, policy
from executor.store.removal import remove_tree
from executor.store.store import Store, open_store
from platforms.emulation import Emulation
from platforms.errors import EnvironmentUnfit, Interrupted, KanifoldError, Problem
from platforms.parsing import parse

if TYPE_CHECKING:
    from executor.registry.client import Client
    from executor.sandbox.runner import Runner
    from executor.solver.remote_cache import RemoteCaches
    from executor.store.prune import Pruned

_ROOM_TRIES: Final = 3
"""How often a job is started again after a full disk, if something could be removed."""
_STEPS: Final = 8
"""Minimum number of concurrent steps of a job, whatever the number of processors: many wait for network or disk."""
_BACKGROUND: Final = 8
"""Number of background threads of a job."""


class Task(msgspec.Struct, frozen=True):
    """A job that is ready to run."""

    conversation: Conversation
    job: protocol.Job
    plan: JobPlan
    emulation: Emulation | EnvironmentUnfit | None
    """How programs of the platform run here, or why they do not; None if nothing is run."""
    steps: Runner | None
    """None if nothing is run."""
    mounts: bool
    """Whether this process can mount file systems."""
    ids: int
    """The ids from 0 up to this one, exclusive, can own files."""


def run(task: Task, cancellation: Cancellation) -> None:
    """Run the job of ``task``, send its result, and serve requests until the orchestrator is done.

    Raises ``KanifoldError``. ``cancellation`` ends it.
    """
    conversation, job, inputs = task.conversation, task.job, Inputs()
    if task.steps is not None:
        cancellation.future.add_done_callback(partial(_kill, task.steps))
    conversation.listen(inputs.asked)
    began = time.monotonic()
    with (
        open_store(job.options.root or None) as store,
        _watched(store, partial(_send_room_warning, conversation)),
        ThreadPoolExecutor(_BACKGROUND, "background") as background,
    ):
        directory = store.session.temporary()
        os.mkdir(directory, 0o700)
        memory = Memory(
            inputs, ScratchSpace(directory), Contents(store, directory, background, cancellation, job.build, job.latest)
        )
        services = _services(task, store, background, cancellation, memory)
        # Data of earlier builds is mostly written back; waiting for this build's would cost seconds.
        background.submit(durability.sync, store, durability.WRITTEN_BACK)
        background.submit(garbage_collection.measure, store)
        try:
            result, tree = _JobRun(job, task.plan, services, memory, began).image()
            conversation.send(result)
            while not isinstance(request := conversation.next_request(), protocol.Done):
                if isinstance(request, protocol.Fetch):
                    _hand_over(store, conversation, request.digest)
                else:
                    from executor.solver import files  # for outputs other than images

                    files.Sender(conversation, cancellation, job.epoch).send(tree(), request.prefix)
        except BaseException:
            cancellation.cancel()
            raise
        finally:
            memory.scratch.close()
            services.snapshotter.close()
            remove_tree(directory)
    if conversation.closed.is_set() and not conversation.dismissed:
        raise Interrupted("the orchestrator is gone")


def _watched(store: Store, removed: Callable[[Pruned], None]) -> contextlib.AbstractContextManager[object]:
    """Monitor the disk of ``store`` during the block, unless garbage collection is disabled."""
    if not policy.load(store.root).enabled:
        return contextlib.nullcontext()
    return contextlib.closing(garbage_collection.DiskMonitor(partial(open_store, store.root), store.root, removed))


def _room_made(done: Pruned) -> Problem:
    return Problem(
        "StoreNearlyFull",
        "the disk of the store was nearly full",
        why=f"{done.freed >> 20} MiB of what was used longest ago have been removed",
        remedy="make room there, or choose another place with --root or KANIFOLD_ROOT",
    )


def _runner(steps: Runner | None) -> Runner:
    assert steps is not None, "a step where none could come"
    return steps


def _kill(steps: Runner, _: Future[None]) -> None:
    steps.cancel_all()


def _send_room_warning(conversation: Conversation, done: Pruned) -> None:
    conversation.send(protocol.BuildWarning(_room_made(done), "StoreNearlyFull"))


def _services(
    task: Task, store: Store, background: ThreadPoolExecutor, cancellation: Cancellation, memory: Memory
) -> Services:
    job, conversation, inputs = task.job, task.conversation, memory.inputs
    ids = task.ids if task.mounts else 0
    made = snapshotter(job.options.snapshotter, store, memory.scratch.directory, ids)
    registry = Lazy(partial(_client, job, conversation, inputs, cancellation))
    caches = Lazy(partial(_remote_caches, job, conversation, inputs, registry, cancellation))
    return Services(
        store=store,
        conversation=conversation,
        registry=registry,
        remote_caches=caches,
        snapshotter=made,
        runner=Lazy(partial(_runner, task.steps)),
        layers=Layers(job, store, conversation.send, cancellation, made, registry, caches),
        slots=threading.Semaphore(max(_STEPS, os.cpu_count() or 1)),
        background=background,
        cancellation=cancellation,
        platform=parse(job.platform),
        emulation=task.emulation,
        clock_ahead=job.clock_ahead,
    )


class _JobRun(msgspec.Struct, frozen=True):
    """A running job, started at ``began`` (``time.monotonic``)."""

    job: protocol.Job
    plan: JobPlan
    services: Services
    memory: Memory
    began: float

    def image(self) -> tuple[protocol.Result, Callable[[], Tree]]:
        """Build the image; returns the result and a function that opens its file system.

        Starts again without a remote cache whose layer is not available, and after a full disk if something could be
        removed. Finished steps are found in the cache.
        """
        tries = _ROOM_TRIES
        while True:
            try:
                return self._image()
            except LayerLost:
                self.services.cancellation.check()
            except KanifoldError as error:
                if not faults.is_full(error) or not tries or not self._given_room():
                    raise
                self.services.cancellation.check()
                tries -= 1

    def _given_room(self) -> bool:
        """Remove the least recently used until twice as much of the disk is free. Returns whether more is free now."""
        root = self.services.store.root
        if not policy.load(root).enabled:
            return False
        before = policy.disk(root).free
        with open_store(root) as store:
            done = garbage_collection.make_room(store, 2 * before, self.services.cancellation.future)
        if done.removed:
            _send_room_warning(self.services.conversation, done)
        return policy.disk(root).free > before

    def _image(self) -> tuple[protocol.Result, Callable[[], Tree]]:
        job, services = self.job, self.services
        pushes = export.pushes(job, services)
        solver = Solver(job, self.plan, services, self.memory, pushes)
        state = solver.solve()
        if job.options.cache_from and not solver.progress.cached:
            services.remote_caches().complain()
        exporter = export.Exporter(job, services.platform, services, pushes)
        manifest, descriptor = exporter.export(state, solver.steps)
        if any(not isinstance(each.to, protocol.CacheInImage) for each in job.options.cache_to):
            from executor.solver import sharing

            sharing.share(job, services, solver.steps)
        result = protocol.Result(
            manifest=descriptor,
            config=manifest.config,
            layers=manifest.layers,
            size=manifest.config.size + sum(each.size for each in manifest.layers),
            findings=_findings(state.layers, services.platform.architecture),
            cached=solver.progress.cached,
            ran=solver.progress.ran,
            seconds=round(time.monotonic() - self.began, 3),
            contexts=solver.contexts,
            dependencies=self.memory.inputs.record(),
        )
        return result, partial(solver.tree, state)


def _client(job: protocol.Job, conversation: Conversation, inputs: Inputs, cancellation: Cancellation) -> Client:
    from executor.solver.jobclient import JobClient

    return JobClient(job, conversation, inputs, cancellation)


def _remote_caches(
    job: protocol.Job,
    conversation: Conversation,
    inputs: Inputs,
    registry: Lazy[Client],
    cancellation: Cancellation,
) -> RemoteCaches:
    from executor.solver import remote_cache  # rarely needed

    report = remote_cache.CacheReport(conversation.send, inputs)
    settings = job.options.registries
    return remote_cache.of_job(
        job, remote_cache.Connections(registry, conversation, settings, cancellation.event, report)
    )


def _hand_over(store: Store, conversation: Conversation, digest: str) -> None:
    path = blobs.path(store, digest)
    size = os.stat(path).st_size
    conversation.send_file(protocol.BlobContent(digest, size), path, size)


def _findings(layers: Sequence[Layer], architecture: str) -> tuple[protocol.Finding, ...]:
    if all(layer.machines is None for layer in layers):
        return ()
    from executor.solver.findings import foreign_programs

    return foreign_programs(layers, architecture)
