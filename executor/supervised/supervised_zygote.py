"""The process that a job's steps are forked from, where there are no namespaces: small and single-threaded.

Requests and answers are those of ``executor.sandbox.zygote``; each step gets a reaper (``reaper``), which answers. This
process adopts what a killed reaper leaves behind, and kills it. When the executor ends or is killed, it has the reapers
end, which kill their steps, and waits for them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from executor.sandbox import spec
from executor.sandbox.zygote import FDS, RUN
from executor.supervised import reaper
from platforms import debug, syscalls
from platforms.child_processes import children, kill
from platforms.descriptors import receive_fds

_PACKET: Final = 1 << 17
StepMain = Callable[[spec.Spec, socket.socket, tuple[int, int]], NoReturn]
"""Runs a step, and answers on the socket. The descriptors are its stdout and stderr."""
Reapers = dict[int, socket.socket]
"""The processes that run steps, each with the socket that it answers on."""


def serve(control: socket.socket, main: StepMain = reaper.serve) -> NoReturn:
    """Serve requests, each step by ``main`` in a new process, until the other end of ``control`` is closed or this
    process is told to end; then exit."""
    wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for each in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(each, _noted)
    syscalls.adopt_orphans()
    parent = os.getppid()
    syscalls.die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    reapers: Reapers = {}
    # In a step's root, Python would import modules of the image. Everything needed is loaded.
    sys.meta_path.clear()
    gc.freeze()  # so that the collector does not write to, and thereby copy, memory shared with children
    gc.disable()
    while True:
        for fd, _ in poll.poll():
            if fd == wake:
                told = os.read(wake, 4096)
                _reap(reapers)
                if signal.SIGTERM in told:
                    _end(reapers)
                continue
            packet, fds = receive_fds(control, _PACKET, FDS)
            if not packet:
                _end(reapers)
            if packet == RUN:
                pid, reply = _start(control, fds, main, reapers)
                reapers[pid] = reply


def _start(control: socket.socket, fds: list[int], main: StepMain, others: Reapers) -> tuple[int, socket.socket]:
    reply = socket.socket(fileno=fds[0])
    try:
        pid = syscalls.fork(0)
        if pid == 0:
            for each in (control, *others.values()):
                each.close()
            with open(fds[1], "rb") as file:
                wanted = spec.unpack(file.read(), fds[4:])
            main(wanted, reply, (fds[2], fds[3]))
    finally:
        for fd in fds[1:]:
            os.close(fd)
    debug.log("step taken", reaper=pid)
    return pid, reply


def _reap(reapers: Reapers) -> None:
    """Reap children that have ended; kill those that a killed reaper has left behind. Only then does the requester see
    that nobody answers."""
    killed, replies = False, []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if (reply := reapers.pop(ended[0], None)) is not None:
                killed |= bool(ended[1])
                replies.append(reply)
    if killed:
        _kill_orphans(frozenset(reapers))
    for each in replies:
        each.close()


def _kill_orphans(reapers: frozenset[int]) -> None:
    """Kill all children but ``reapers``, until there are none."""
    while orphans := children() - reapers:
        kill(orphans)
        for each in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(each, 0)


def _end(reapers: Reapers) -> NoReturn:
    """Have all steps end, and then this process."""
    for each in reapers:
        os.kill(each, signal.SIGTERM)
    for each in reapers:
        os.waitpid(each, 0)
    _kill_orphans(frozenset())
    debug.log("process ends")
    os._exit(0)


def _noted(_signal: int, _frame: object) -> None:
    """A signal whose arrival is told by the descriptor for waking up."""
