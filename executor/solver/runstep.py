"""RUN as a step: what it sees, the sandbox it runs in, and how it failed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from executor import limits
from executor.dockerfile.instructions import Run
from executor.protocol import BuildWarning, Job, Log
from executor.rootfs.tree import Tree
from executor.sandbox import cgroup
from executor.sandbox.network import NO_HELPER
from executor.sandbox.spec import Ended, Mount, Spec
from executor.snapshotter.rootfs import Rootfs
from executor.solver import output, scope, users
from executor.solver.state import State
from executor.solver.workshop import Workshop
from executor.store import faults
from platforms import debug
from platforms.errors import Interrupted, Problem, StepFailed

_SHARED_REMEDY = "kanifold doctor tells what a network of their own needs"


class Running(msgspec.Struct, frozen=True):
    """A RUN, worked out: what it executes."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    """Complete, but for HOME."""
    script: tuple[str, bytes] | None = None
    """A here-document with ``#!``: the name of its file, and its content."""


def environment(state: State, proxies: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """What a step of ``state`` has in its environment: ENV and ARG, and proxy settings that nothing declared.

    A proxy is set in both spellings, whichever of them was given (BuildKit, solver/llbsolver/ops/exec.go).
    """
    declared = {name for name, _ in state.env}
    given = dict(proxies)
    both = {name.upper(): value for name, value in proxies} | {name.lower(): value for name, value in proxies} | given
    return (*state.env, *((name, value) for name, value in both.items() if name not in declared))


def asked_network(job: Job, instruction: Run) -> str:
    """``host`` or ``none``, if the step or the build asks for it; else ``""``."""
    return job.network if instruction.network == "default" else instruction.network


def network(job: Job, instruction: Run) -> Literal["isolated", "host", "none"]:
    """The network that the step gets."""
    match asked_network(job, instruction) or job.default_network:
        case "none":
            return "none"
        case "host":
            return "host"
        case _:
            return "isolated"


def execute(
    workshop: Workshop,
    step: int,
    instruction: Run,
    running: Running,
    state: State,
    tree: Tree,
    rootfs: Rootfs,
    mounts: tuple[Mount, ...],
    secrets: tuple[str, ...],
) -> None:
    """Run the step in ``rootfs``, whose files are ``tree``; ``secrets`` are not told.

    Raises ``StepFailed`` with the tail of the output, ``EnvironmentUnfit``, or ``Interrupted``.
    """
    if workshop.unfit is not None and state.platform == workshop.platform:
        raise workshop.unfit
    who = users.identity(tree, state.config.user)
    env = running.env
    if not any(name == "HOME" for name, _ in env):
        env = (*env, ("HOME", who.home))
    job = workshop.job
    spec = Spec(
        rootfs=rootfs,
        argv=running.argv,
        env=tuple(f"{name}={value}" for name, value in env),
        cwd=state.workdir,
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        mounts=mounts,
        network=network(job, instruction),
        insecure=instruction.security == "insecure",
        hostname=scope.host_name(job.build_args),
        hosts=job.hosts,
        shm_size=job.shm_size or 64 << 20,
        ulimits=job.ulimits,
    )
    tail = output.Tail()

    def tell(lines: str, stream: int) -> None:
        workshop.tell(Log(step, lines, stream))

    if debug.on:
        shown = tuple(output.masked(each, secrets) for each in spec.argv)
        debug.log("step runs", step=step, argv=shown, user=spec.uid, cwd=spec.cwd, network=spec.network)
    bounds = cgroup.group(job.cgroup_parent, limits.files(job.limits))
    with bounds as group, output.told(secrets, output.Limits.of(os.environ), tail, tell) as (stdout, stderr):
        ended = workshop.runner().run(replace(spec, cgroup=group), stdout, stderr, workshop.cancelled)
        starved = cgroup.killed(group)
    debug.log("step ended", step=step, code=ended.code, error=output.masked(ended.error, secrets))
    if ended.shared and ended.shared != NO_HELPER:
        problem = Problem("Network", "steps share the network of this machine", ended.shared, _SHARED_REMEDY)
        workshop.tell(BuildWarning(problem, problem.kind))
    if workshop.cancelled.done():
        raise Interrupted("the build was cancelled")
    if ended.code == 0 and not ended.error:
        return
    command = " ".join(running.argv)
    why = ended.error or f"exit code: {ended.code}"
    if starved:
        why += " (it needed more memory than --resource allows)"
    elif ended.oom:
        why += " (the kernel ran out of memory)"
    raise StepFailed(
        f'process "{command}" did not complete successfully',
        why=why,
        remedy=_remedy(ended) or faults.full_disk_remedy(workshop.store.root),
        where=instruction.location,
        log=tail.lines,
    )


def _remedy(ended: Ended) -> str:
    if ended.code == 127 and ended.error.startswith("exec /"):  # execve(2) of a file that is there
        return "the file is there, but not the interpreter that its #! line or its ELF header names (another libc?)"
    if ended.code == 127:
        return "the program is not in the stage: install it in an earlier step, or check its name and PATH"
    if ended.code == 126:
        return "the file is there but cannot be executed: check its mode, its architecture and its #! line"
    return ""
