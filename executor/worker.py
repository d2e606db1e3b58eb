"""An executor process: sends a greeting on each of its channels, receives a job from each, and runs them concurrently.

Nothing outlives the process: steps are in pid namespaces that end with their zygote, the zygote ends with this process,
and a job ends when the orchestrator closes its pipe.

Several jobs in a process save the start of processes, which is most of the time of a small job. They share only the
isolation of the process; if it dies, all of its jobs fail, and a build that fails for one platform fails anyway.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from executor import __version__, jobrun, protocol
from executor.conversation import Conversation
from executor.jobrun import Task
from executor.sandbox import isolation, launcher
from executor.sandbox.isolation import Isolation, IsolationMode
from executor.solver.graph import job_plan
from executor.solver.lazy import Lazy
from executor.solver.lifetime import Cancellation
from executor.store import faults
from platforms import debug, emulation, host
from platforms.emulation import Emulation
from platforms.errors import BuildError, EnvironmentUnfit, KanifoldError, OutOfMemory, Problem
from platforms.parsing import parse

if TYPE_CHECKING:
    from executor.sandbox.runner import Runner
    from executor.store.emulators import StoreEmulators
    from platforms.platform import Platform

_LAST_MOMENT: Final = 1.2
"""Seconds after the last orchestrator has gone until this process exits unconditionally."""


def serve(
    conversations: Sequence[Conversation],
    emulators: tuple[str, ...] = (),
    resources: protocol.Resources | None = None,
    mode: str = "",
) -> int:
    """Run a job for each of ``conversations``. Requires a process with a single thread.

    ``emulators`` and ``resources`` are for the greeting, ``mode`` is for ``isolation.enter``. Returns the exit status:
    the highest of the jobs' errors (``platforms.errors``), or 0.
    """
    isolated = Lazy(partial(isolation.enter, mode))
    greeting = _greeting(isolated, emulators, resources)  # enters while there is no job yet
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


def _greeting(
    isolated: Lazy[Isolation], emulators: tuple[str, ...], resources: protocol.Resources | None
) -> protocol.Handshake:
    """Return the greeting. If isolation is impossible, each job that has to run a step will
    report why."""
    mode = ""
    with contextlib.suppress(EnvironmentUnfit):
        mode = isolated().mode.value
    processors = len(os.sched_getaffinity(0))
    return protocol.Handshake(protocol.VERSION, __version__, str(host.host()), mode, processors, emulators, resources)


def _prepared(conversation: Conversation, isolated: Lazy[Isolation], statuses: list[int]) -> Task | None:
    """Return the job of ``conversation`` from ``_prepare``; None when that failed."""
    with _reported(conversation, statuses):
        return _prepare(conversation, isolated)
    conversation.close()
    return None


def _prepare(conversation: Conversation, isolated: Lazy[Isolation]) -> Task:
    """Receive a job, and do what requires a process with a single thread: fork the zygote."""
    job = conversation.receive_job()
    debug.log("job taken", platform=job.platform, target=job.options.target or "the last stage", build=job.build)
    platform = parse(job.platform)
    plan = job_plan(job, parse(job.build_platform) if job.build_platform else host.default_platform(), platform)
    unavailable: Runner | None = None
    ids, mounts = 1, False
    try:
        mode, ids = isolated().mode, isolated().uid_limit
        mounts = mode not in isolation.SUPERVISED_MODES
        debug.log("isolation", mode=mode.value)
        if job.options.isolation not in ("", mode):
            raise EnvironmentUnfit(
                "cannot isolate build steps here as requested",
                why=f"this executor does so by {mode}, not {job.options.isolation}",
                remedy=f"set {isolation.VARIABLE}={job.options.isolation} where it is started",
            )
    except EnvironmentUnfit as impossible:  # an error only if a step has to run
        from executor.sandbox.runner import Unavailable

        debug.log("isolation", why=impossible.problem.why)
        unavailable, mounts = Unavailable(impossible), False
    if not plan.may_run:
        return Task(conversation, job, plan, None, None, mounts=mounts, ids=ids)
    found: Emulation | EnvironmentUnfit
    try:
        found = job.emulation or emulation.emulation(platform, _image_emulators(job, platform))
    except EnvironmentUnfit as unfit:  # an error only if a program of the platform has to run
        found = unfit
    if unavailable is None and mounts:
        steps: Runner = launcher.start(None if isinstance(found, EnvironmentUnfit) else found)
    elif unavailable is None:
        from executor.supervised import supervised_runner

        if mode is IsolationMode.ANSWERED:
            steps = supervised_runner.start_answered(found)
        else:
            found = supervised_runner.emulated(found)
            steps = supervised_runner.start_chroot(found)
    else:
        steps = unavailable
    return Task(conversation, job, plan, found, steps, mounts=mounts, ids=ids)


def _image_emulators(job: protocol.Job, platform: Platform) -> StoreEmulators | None:
    """Return the emulators of the job's store, with the one that it names; None if the platform needs none.

    Raises ``EnvironmentUnfit`` if that cannot be fetched.
    """
    if platform.architecture == host.host().architecture:
        return None
    from executor.store.emulators import StoreEmulators

    found = StoreEmulators(job.options.root, job.options.emulator_image)
    if found.required and found.find(platform.architecture) is None:
        from executor import emulator_fetch

        emulator_fetch.fetch(job, platform.architecture)
    return found


def _work(task: Task, tasks: Sequence[Task], statuses: list[int]) -> None:
    """Run ``task``, one of ``tasks``."""
    cancellation = Cancellation()
    task.conversation.on_close = partial(_orchestrator_gone, cancellation, tasks)
    own: list[int] = []
    try:
        with _reported(task.conversation, own):
            try:
                jobrun.run(task, cancellation)
            finally:
                if task.steps is not None:
                    task.steps.stop()
        debug.log("job ends", platform=task.job.platform, status=own[0])
        statuses += own
    finally:
        task.conversation.close()


@contextlib.contextmanager
def _reported(conversation: Conversation, statuses: list[int]) -> Iterator[None]:
    """Send an error of the block to the orchestrator instead of raising it; add its exit status, or 0, to
    ``statuses``."""
    try:
        yield
    except KanifoldError as error:
        conversation.send(protocol.Failed(error.problem))
        statuses.append(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        what = "the files of a stage cannot be read"
        conversation.send(protocol.Failed(Problem(BuildError.__name__, what, faults.TOO_LONG, faults.LESS_DEEP)))
        statuses.append(1)
    except MemoryError:
        conversation.send(protocol.Failed(Problem(OutOfMemory.__name__, "the executor ran out of memory")))
        statuses.append(1)
    else:
        statuses.append(0)


def _orchestrator_gone(cancellation: Cancellation, others: Sequence[Task]) -> None:
    """End this job, and soon the process if there is no other orchestrator."""
    cancellation.cancel()
    if all(each.conversation.closed.is_set() for each in others):
        threading.Timer(_LAST_MOMENT, os._exit, (130,)).start()
