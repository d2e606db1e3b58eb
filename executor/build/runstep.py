"""RUN as a step: what it sees, the sandbox it runs in, its output line by line, and how it failed."""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from executor.build import scope, users
from executor.build.state import State
from executor.build.workshop import Workshop
from executor.dockerfile.instructions import Run
from executor.job import Job, Log, Warned
from executor.rootfs.tree import Tree
from executor.sandbox.network import NO_HELPER
from executor.sandbox.spec import Ended, Mount, Spec
from executor.store import faults
from platforms.errors import Interrupted, Problem, StepFailed

TAIL = 20
"""Lines of a failed step's output that its error shows."""
_LINE_LIMIT = 64 << 10
"""Bytes of output without a newline that are shown as a line of their own."""
_OVERWRITTEN_SECONDS = 1.0
"""Seconds between two states of a progress bar that are shown."""


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


def asked_network(order: Job, instruction: Run) -> str:
    """``host`` or ``none``, if the step or the build asks for it; else ``""``."""
    return order.network if instruction.network == "default" else instruction.network


def network(order: Job, instruction: Run) -> Literal["isolated", "host", "none"]:
    """The network that the step gets."""
    match asked_network(order, instruction) or order.default_network:
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
    directories: tuple[str, ...],
    upper: str,
    work: str,
    mounts: tuple[Mount, ...],
    redact: Callable[[str], str],
) -> None:
    """Run the step on top of ``directories`` (top first), its changes going to ``upper``.

    Raises ``StepFailed`` with the tail of the output, ``EnvironmentUnfit``, or ``Interrupted``.
    """
    if workshop.unfit is not None and state.platform == workshop.platform:
        raise workshop.unfit
    who = users.identity(tree, state.config.user)
    env = running.env
    if not any(name == "HOME" for name, _ in env):
        env = (*env, ("HOME", who.home))
    order = workshop.order
    spec = Spec(
        layers=directories,
        upper=upper,
        work=work,
        argv=running.argv,
        env=tuple(f"{name}={value}" for name, value in env),
        cwd=state.workdir,
        uid=who.uid,
        gid=who.gid,
        groups=who.groups,
        mounts=mounts,
        network=network(order, instruction),
        insecure=instruction.security == "insecure",
        hostname=scope.host_name(order.build_args),
        hosts=order.hosts,
        shm_size=order.shm_size or 64 << 20,
        ulimits=order.ulimits,
    )
    tail: list[str] = []

    def line(text: str, stream: int) -> None:
        text = redact(text)
        tail.append(text)
        del tail[:-TAIL]
        workshop.tell(Log(step, text, stream))

    ended = _run(workshop, spec, line)
    if ended.shared and ended.shared != NO_HELPER:
        problem = Problem("Network", "steps share the network of this machine", ended.shared, _SHARED_REMEDY)
        workshop.tell(Warned(problem, problem.kind))
    if workshop.cancelled.done():
        raise Interrupted("the build was cancelled")
    if ended.code == 0 and not ended.error:
        return
    command = " ".join(running.argv)
    why = ended.error or f"exit code: {ended.code}"
    if ended.oom:
        why += " (the kernel ran out of memory)"
    raise StepFailed(
        f'process "{command}" did not complete successfully',
        why=why,
        remedy=_remedy(ended) or faults.room(workshop.store.root),
        where=instruction.location,
        log=tuple(tail),
    )


def _remedy(ended: Ended) -> str:
    if ended.code == 127 and ended.error.startswith("exec /"):  # execve(2) of a file that is there
        return "the file is there, but not the interpreter that its #! line or its ELF header names (another libc?)"
    if ended.code == 127:
        return "the program is not in the stage: install it in an earlier step, or check its name and PATH"
    if ended.code == 126:
        return "the file is there but cannot be executed: check its mode, its architecture and its #! line"
    return ""


def _run(workshop: Workshop, spec: Spec, line: Callable[[str, int], None]) -> Ended:
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    reader = threading.Thread(target=_pump, args=(out_read, err_read, line), name="output", daemon=True)
    reader.start()
    try:
        return workshop.launcher().run(spec, out_write, err_write, workshop.cancelled)
    finally:
        os.close(out_write)
        os.close(err_write)
        reader.join()


def _pump(out: int, err: int, line: Callable[[str, int], None]) -> None:
    """Turn two pipes into lines until both end. Of a line that is written over and over, some states are lines too."""
    pending = {out: b"", err: b""}
    number = {out: 1, err: 2}
    due = {out: 0.0, err: 0.0}
    with selectors.DefaultSelector() as selector:
        for fd in pending:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            for ready, _ in selector.select():
                fd = ready.fd
                data = os.read(fd, 1 << 16)
                if not data:
                    selector.unregister(fd)
                    if pending[fd]:
                        line(pending[fd].decode("utf-8", "replace"), number[fd])
                    os.close(fd)
                    continue
                *lines, rest = (pending[fd] + data).split(b"\n")
                for each in lines:
                    line(each.decode("utf-8", "replace"), number[fd])
                if len(rest) > _LINE_LIMIT:
                    line(rest.decode("utf-8", "replace"), number[fd])
                    rest = b""
                returned = rest.rfind(b"\r", 0, -1)  # a last one may be half of a line's end
                if returned >= 0 and time.monotonic() >= due[fd]:
                    due[fd] = time.monotonic() + _OVERWRITTEN_SECONDS
                    if state := rest[:returned].rpartition(b"\r")[2]:
                        line(state.decode("utf-8", "replace"), number[fd])
                    rest = rest[returned + 1 :]
                pending[fd] = rest
