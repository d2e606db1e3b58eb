"""A process of executors: greets on each of its channels, takes a job from each, and does them side by side.

Nothing outlives the process: steps are in process namespaces that end with the process that they are forked from, that
process ends with this one, and a job ends when the orchestrator closes its pipe.

Several jobs in one process save the start of a process, which is most of what a small job costs. They share only the
isolation that the process is in; a build that loses one platform has failed anyway.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from executor import __version__, protocol
from executor.conversation import Conversation
from executor.rootfs.elf_audit import foreign
from executor.rootfs.tree import Tree
from executor.sandbox import isolation, launcher
from executor.sandbox.isolation import Isolation
from executor.sandbox.launcher import Launcher
from executor.snapshotter.kinds import snapshotter
from executor.solver import export
from executor.solver.content import Contents
from executor.solver.graph import JobPlan, job_plan
from executor.solver.inputs import Inputs
from executor.solver.layer import Layer, LayerLost, Layers
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation, ScratchSpace
from executor.solver.services import Memory, Services
from executor.solver.solver import Solver
from executor.store import blobs, durability, faults, garbage_collection, policy
from executor.store.removal import remove_tree
from executor.store.store import Store, open_store
from platforms import debug, emulation, host
from platforms.emulation import Emulation
from platforms.errors import EnvironmentUnfit, Interrupted, KanifoldError, Problem
from platforms.parsing import parse

if TYPE_CHECKING:
    from executor.registry.client import Client
    from executor.sandbox.runner import Runner
    from executor.solver.remote_cache import RemoteCaches
    from executor.store.prune import Pruned

_ROOM_TRIES: Final = 3
"""How often a job is begun again because the disk was full and something could be removed."""
_LAST_MOMENT = 1.2
"""Seconds after the last orchestrator has gone until this process ends itself, whatever it was doing."""
_STEPS = 8
"""Steps of a job that may run at once however few processors there are: many wait for a network or a disk."""


class _Task(msgspec.Struct, frozen=True):
    """A job that can begin."""

    conversation: Conversation
    job: protocol.Job
    plan: JobPlan
    emulation: Emulation | EnvironmentUnfit | None
    """How programs of the platform run here, or why they do not; None when nothing is run."""
    steps: Launcher | None
    """None when nothing is run."""


def serve(channels: Sequence[tuple[int, int]], emulators: tuple[str, ...] = ()) -> int:
    """Do a job for each of ``channels``: descriptors to read from and to write to. Needs a process with one thread.

    ``emulators`` are the architectures that the greeting names as emulated. Returns the exit status: the highest of
    those of the jobs' errors (``platforms.errors``), or 0.
    """
    isolated = Lazy(isolation.enter)
    greeting = _greeting(isolated, emulators)  # enters while there is no job yet
    conversations = [Conversation(*each) for each in channels]
    for each in conversations:
        each.send(greeting)
    statuses: list[int] = []
    tasks = [task for each in conversations if (task := _prepared(each, isolated, statuses)) is not None]
    if len(tasks) == 1:
        _work(tasks[0], tasks, statuses)
    else:
        threads = [
            threading.Thread(target=_work, args=(task, tasks, statuses), name=task.job.platform) for task in tasks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return max(statuses)


def _greeting(isolated: Lazy[Isolation], emulators: tuple[str, ...]) -> protocol.Handshake:
    """What the process is. Where it cannot be isolated each job will be told why."""
    mode = ""
    with contextlib.suppress(EnvironmentUnfit):
        mode = isolated().mode.value
    processors = len(os.sched_getaffinity(0))
    return protocol.Handshake(protocol.VERSION, __version__, str(host.host()), mode, processors, emulators)


def _prepared(conversation: Conversation, isolated: Lazy[Isolation], statuses: list[int]) -> _Task | None:
    """The job of ``conversation``, as ``_prepare`` leaves it; None when that failed."""
    with _reported(conversation, statuses):
        return _prepare(conversation, isolated)
    conversation.close()
    return None


def _prepare(conversation: Conversation, isolated: Lazy[Isolation]) -> _Task:
    """Take a job, and do for it what needs a process with one thread: fork the process of its steps."""
    job = conversation.receive_job()
    debug.log("job taken", platform=job.platform, target=job.options.target or "the last stage", build=job.build)
    platform = parse(job.platform)
    plan = job_plan(job, host.default_platform(), platform)
    debug.log("isolation", mode=isolated().mode.value)
    if not plan.may_run:
        return _Task(conversation, job, plan, None, None)
    found: Emulation | EnvironmentUnfit
    try:
        found = job.emulation or emulation.emulation(platform)
    except EnvironmentUnfit as unfit:  # an error only when a program of the platform is to be run
        found = unfit
    steps = launcher.start(None if isinstance(found, EnvironmentUnfit) else found)
    return _Task(conversation, job, plan, found, steps)


def _work(task: _Task, tasks: Sequence[_Task], statuses: list[int]) -> None:
    """Do ``task``, one of ``tasks``."""
    own: list[int] = []
    try:
        with _reported(task.conversation, own):
            try:
                _build(task, tasks)
            finally:
                if task.steps is not None:
                    task.steps.stop()
        debug.log("job ends", platform=task.job.platform, status=own[0])
        statuses += own
    finally:
        task.conversation.close()


@contextlib.contextmanager
def _reported(conversation: Conversation, statuses: list[int]) -> Iterator[None]:
    """Send the block's error to the orchestrator rather than raise it; add its exit status, or 0, to ``statuses``."""
    try:
        yield
    except KanifoldError as error:
        conversation.send(protocol.Failed(error.problem))
        statuses.append(error.exit_code)
    except MemoryError:
        conversation.send(protocol.Failed(Problem("BuildError", "the executor ran out of memory")))
        statuses.append(1)
    else:
        statuses.append(0)


def _watched(store: Store, removed: Callable[[Pruned], None]) -> contextlib.AbstractContextManager[object]:
    """Keep the disk of ``store`` from becoming full, unless the user wants to see to that."""
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


def _runner(steps: Launcher | None) -> Runner:
    assert steps is not None, "a step where none could come"
    return steps


def _build(task: _Task, others: Sequence[_Task]) -> None:
    conversation, job = task.conversation, task.job
    cancellation, inputs = Cancellation(), Inputs()
    if task.steps is not None:
        cancellation.future.add_done_callback(partial(_kill, task.steps))
    conversation.on_close = partial(_orchestrator_gone, cancellation, others)
    conversation.listen(inputs.asked)
    began = time.monotonic()
    with (
        open_store(job.options.root or None) as store,
        _watched(store, partial(_send_room_warning, conversation)),
        ThreadPoolExecutor(8, "background") as background,
    ):
        directory = store.session.temporary()
        os.mkdir(directory, 0o700)
        memory = Memory(
            inputs, ScratchSpace(directory), Contents(store, directory, background, cancellation, job.build, job.latest)
        )
        services = _services(task, store, background, cancellation, memory)
        # What earlier builds have left is on the disk by now; waiting for our own would cost seconds.
        background.submit(durability.sync, store, durability.WRITTEN_BACK)
        background.submit(garbage_collection.measure, store)
        try:
            result, tree = _JobBuild(job, task.plan, services, memory, began).run()
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


def _kill(steps: Launcher, _: Future[None]) -> None:
    steps.cancel_all()


def _orchestrator_gone(cancellation: Cancellation, others: Sequence[_Task]) -> None:
    """End this job, and this process soon if there is no other orchestrator."""
    cancellation.cancel()
    if all(each.conversation.closed.is_set() for each in others):
        threading.Timer(_LAST_MOMENT, os._exit, (130,)).start()


def _send_room_warning(conversation: Conversation, done: Pruned) -> None:
    conversation.send(protocol.BuildWarning(_room_made(done), "StoreNearlyFull"))


def _services(
    task: _Task, store: Store, background: ThreadPoolExecutor, cancellation: Cancellation, memory: Memory
) -> Services:
    job, conversation, inputs = task.job, task.conversation, memory.inputs
    made = snapshotter(job.options.snapshotter, store, memory.scratch.directory)
    registry = Lazy(partial(_client, job, conversation, inputs, cancellation))
    caches = Lazy(partial(_remote_caches, job, conversation, inputs, registry))
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
    )


class _JobBuild(msgspec.Struct, frozen=True):
    """One job at work."""

    job: protocol.Job
    plan: JobPlan
    services: Services
    memory: Memory
    began: float

    def run(self) -> tuple[protocol.Result, Callable[[], Tree]]:
        """The image, and its file system for whoever wants to see that.

        Begun again whenever an outside cache could not keep its promise: what it said is forgotten then. Also when the
        disk was full and something could be removed from it. What was done by then is found again.
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
        """Whether more of the disk is free now, by as much again as there was, than when it was too little."""
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


def _findings(layers: Iterable[Layer], architecture: str) -> tuple[protocol.Finding, ...]:
    """The files of new layers that are for another architecture, but for those that are meant to be beside ours."""
    found = tuple(
        protocol.Finding(layer.blob().descriptor.digest, path, machine.name)
        for layer in layers
        if layer.machines is not None
        for machine in layer.machines()
        for path in machine.paths
    )
    strange = tuple(each for each in found if foreign(each.machine, architecture))
    if not strange:
        return ()
    from executor.rootfs.prebuilt import by_design

    meant = by_design(((each.path, each.machine) for each in found), architecture)
    return tuple(each for each in strange if each.path not in meant)


def _client(job: protocol.Job, conversation: Conversation, inputs: Inputs, cancellation: Cancellation) -> Client:
    from executor.solver.jobclient import JobClient

    return JobClient(job.options.registries, conversation, inputs, cancellation)


def _remote_caches(
    job: protocol.Job, conversation: Conversation, inputs: Inputs, registry: Lazy[Client]
) -> RemoteCaches:
    from executor.solver import remote_cache  # which few builds have

    sources, targets = remote_cache.places(job, registry)
    return remote_cache.RemoteCaches(sources, targets, conversation.send, job.options.cache_ttl, inputs)


def _hand_over(store: Store, conversation: Conversation, digest: str) -> None:
    path = blobs.path(store, digest)
    size = os.stat(path).st_size
    conversation.send_file(protocol.BlobContent(digest, size), path, size)
