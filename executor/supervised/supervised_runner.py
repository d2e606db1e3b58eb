"""Starting the process that forks steps, where there are no namespaces.

What it returns is the ``Launcher`` of ``executor.sandbox``: requests, answers and root file systems are the same.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
from typing import TYPE_CHECKING, NoReturn

from msgspec.structs import replace

from executor.sandbox.launcher import Launcher
from executor.supervised import chroot_step, reaper, supervised_zygote
from platforms import binfmt, debug, probe, syscalls, threads
from platforms.descriptors import keep_only
from platforms.emulation import Emulation, EmulationMode
from platforms.errors import EnvironmentUnfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.supervised.supervised_zygote import StepMain


def emulated(found: Emulation | EnvironmentUnfit) -> Emulation | EnvironmentUnfit:
    """Return how programs of a platform run in such steps, if ``found`` is how they run here, or why they do not."""
    if isinstance(found, EnvironmentUnfit) or found.mode is not EmulationMode.PRIVATE:
        return found
    # A handler of the build's own takes a user namespace, and steps run in a chroot.
    if reason := probe.traces():
        return EnvironmentUnfit(
            f"programs for {found.architecture} do not run here",
            why=f"tracing a process: {reason}",
            remedy="allow ptrace(2), or have a handler registered on the host (binfmt_misc), or give the build a node "
            "of that architecture",
        )
    return replace(found, mode=EmulationMode.TRACED)


def start_chroot(found: Emulation | EnvironmentUnfit) -> Launcher:
    """As ``start``, for steps in a chroot. ``found``: how programs of the platform run in them."""
    if isinstance(found, EnvironmentUnfit) or found.mode is not EmulationMode.TRACED:
        return start()
    main = functools.partial(reaper.serve, emulator=(found.architecture, found.interpreter))
    return start(main, functools.partial(chroot_step.prepare, traced=True))


def start_answered(found: Emulation | EnvironmentUnfit | None = None) -> Launcher:
    """As ``start``, for steps whose path calls are answered. ``found``: how programs of the platform run here; None
    for those of this machine.

    From now on no other process of this user can trace this one, or read its memory and environment.
    """
    from executor.supervised import answered_step

    emulator = ("", "")
    if isinstance(found, Emulation) and found.emulated:
        emulator = found.architecture, found.interpreter or binfmt.find_qemu(found.architecture) or ""
    syscalls.set_dumpable(False)
    main = functools.partial(answered_step.serve, emulator=emulator)
    return start(main, answered_step.prepare, recorded=True)


def start(
    main: StepMain = reaper.serve, prepare: Callable[[], None] = chroot_step.prepare, *, recorded: bool = False
) -> Launcher:
    """Fork the zygote. To be called after ``isolation.enter``, while this process has a single thread.

    Each step is run by ``main``; ``recorded``: which writes the records of its root directory. ``prepare`` is called
    once, in the zygote, for what is the same in all steps.
    """
    threads.check_single("start the process that build steps are forked from")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    complaint_read, complaint_write = os.pipe()
    pid = syscalls.fork(0)
    if pid == 0:
        _be_zygote(theirs, main, prepare)
    theirs.close()
    os.close(complaint_write)
    debug.log("process started", name="kanifold-steps", pid=pid)
    return Launcher(pid, ours, complaint_read, recorded=recorded)


def _be_zygote(control: socket.socket, main: StepMain, prepare: Callable[[], None]) -> NoReturn:
    try:
        syscalls.die_with_parent()
        syscalls.set_name("kanifold-steps")
        os.setsid()
        debug.enter("kanifold-steps")
        keep_only(control.fileno())
        for each in (signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        prepare()
        supervised_zygote.serve(control, main)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)
