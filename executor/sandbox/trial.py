"""Trying which isolation modes this host allows: each in a process of its own, by running a step there.

The step's root file system is in memory, or a temporary directory, so the result does not depend on the store.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from executor.sandbox import isolation, launcher
from executor.sandbox.isolation import SUPERVISED_MODES, IsolationMode
from executor.sandbox.spec import Spec
from executor.snapshotter.rootfs import Directory, Overlay, Rootfs
from platforms import elf, syscalls, threads
from platforms.errors import EnvironmentUnfit
from platforms.host import host

_PLACE: Final = "/proc/driver"
"""The mount point of the step's file system. Every Linux has this directory, and the staging area does not use it."""


class ModeAvailability(msgspec.Struct, frozen=True):
    """The result of trying a mode. ``why`` it cannot be used, and the ``remedy``; both "" if it can."""

    mode: IsolationMode
    usable: bool
    why: str = ""
    remedy: str = ""


def probe_modes() -> tuple[ModeAvailability, ...]:
    """Try each mode. Requires a process with a single thread."""
    return tuple(_probe_in_child(mode) for mode in IsolationMode)


def _probe_in_child(mode: IsolationMode) -> ModeAvailability:
    threads.check_single("try out how build steps can be isolated here")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            os.write(write, "\0".join(_try_mode(mode)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with open(read, encoding="utf-8") as answer:
        why, _, remedy = answer.read().partition("\0")
    _, status = os.waitpid(child, 0)
    if status:
        why, remedy = f"the trial ended with status {status}", isolation.NO_MODE
    return ModeAvailability(mode, not why, why, remedy)


def _try_mode(mode: IsolationMode) -> tuple[str, str]:
    """Return why ``mode`` cannot be used, and the remedy; both "" if it can. Changes this process."""
    try:
        isolation.climb(mode)
        return (_run_step() if mode not in SUPERVISED_MODES else _run_supervised_step(mode)), ""
    except isolation.ModeUnavailableError as unusable:
        return unusable.why, unusable.remedy
    except EnvironmentUnfit as unfit:
        return unfit.problem.why or unfit.problem.what, unfit.problem.remedy
    except OSError as error:
        return str(error), isolation.unfit_remedy()


def _run_step() -> str:
    """Run a step that executes the smallest program; return what was wrong with it, or "". Raises EnvironmentUnfit."""
    syscalls.mount("kanifold", _PLACE, "tmpfs", syscalls.MS_NOSUID, "mode=755")
    layer, upper, work = (f"{_PLACE}/{name}" for name in ("layer", "upper", "work"))
    for directory in (layer, upper, work):
        os.mkdir(directory, 0o755)
    _write_program(layer)
    return _result(launcher.start(), Overlay((layer,), upper, work))


def _run_supervised_step(mode: IsolationMode) -> str:
    """As ``_run_step``, in a temporary directory."""
    import tempfile

    from executor.supervised import supervised_runner

    with tempfile.TemporaryDirectory() as place:
        os.mkdir(root := f"{place}/root", 0o755)
        _write_program(root)
        steps = supervised_runner.start_answered() if mode is IsolationMode.ANSWERED else supervised_runner.start()
        return _result(steps, Directory(root))


def _write_program(directory: str) -> None:
    program = os.open(f"{directory}/program", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755)
    os.write(program, elf.program(host().architecture))
    os.close(program)


def _result(steps: launcher.Launcher, rootfs: Rootfs) -> str:
    """Run the program in ``rootfs``; return what was wrong with it, or ""."""
    nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        argv = ("/program", "1")
        ended = steps.start(Spec(rootfs, argv), nothing, nothing).wait()
    finally:
        os.close(nothing)
        steps.stop()
    # The program's exit status is the number of its arguments.
    return "" if ended.code == len(argv) else ended.error or f"a program ended with status {ended.code}"
