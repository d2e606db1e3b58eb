"""How this host runs another platform's programs: a ladder, of which the best rung that really works is taken.

    native      the processor's own
    compat      the 32-bit sibling, which the kernel runs by itself
    registered  a binfmt_misc handler that somebody has registered for the whole host
    private     a binfmt_misc of the build's own, in its user namespace (Linux 6.7): needs no root and leaves no trace
    register    a handler registered for the whole host by us, as root

Every rung is tried out by running a program of a few instructions before it is taken; the answers are kept as long as
the process lives. ``emulation`` costs some 20 ms for an emulated architecture, nearly all of it in another process: so
it is asked for ahead of time, by ``foresee``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

import msgspec

from platforms import binfmt, elf, probe
from platforms.errors import EnvironmentUnfit
from platforms.host import COMPAT, host
from platforms.platform import Platform, candidates, normalise

USUAL: Final = tuple(
    Platform("linux", architecture, variant)
    for architecture, variant in (
        ("amd64", ""), ("arm64", ""), ("arm", "v7"), ("arm", "v6"), ("386", ""), ("riscv64", ""), ("ppc64le", ""),
        ("s390x", ""), ("loong64", ""), ("mips64le", ""),
    )
)  # fmt: skip
"""The platforms that images are published for."""

_INSTALL: Final = (
    "install qemu's user emulators: apt-get install qemu-user-static (Debian, Ubuntu), dnf install qemu-user-static "
    "(Fedora), pacman -S qemu-user-static (Arch), apk add qemu-{qemu} (Alpine); or put qemu-{qemu}-static into the "
    "directory that KANIFOLD_QEMU_DIR names; or give the build a node that is linux/{architecture} itself"
)


class Rung(StrEnum):
    """The rungs, best first."""

    NATIVE = "native"
    COMPAT = "compat"
    REGISTERED = "registered"
    PRIVATE = "private"
    REGISTER = "register"


class Emulation(msgspec.Struct, frozen=True):
    """How programs of ``architecture`` run here. ``str()`` of it is ``native`` or the emulator's name."""

    rung: Rung
    architecture: str
    interpreter: str = ""
    """The emulator's absolute path; "" when there is none, or when its handler is registered out of our sight."""
    why: str = ""
    """The choice as a sentence."""
    skipped: tuple[str, ...] = ()
    """For each better rung its name and why it was not taken: ``compat: …``."""

    @property
    def emulated(self) -> bool:
        """Whether programs run slower than the processor's own."""
        return self.rung not in (Rung.NATIVE, Rung.COMPAT)

    def __str__(self) -> str:
        if not self.emulated:
            return "native"
        return os.path.basename(self.interpreter) or "emulated"


def emulation(platform: Platform) -> Emulation:
    """The best rung that runs ``platform``'s programs here.

    The rung ``private`` takes effect by ``register_private``, ``register`` by ``register_host``; the others need
    nothing. Raises EnvironmentUnfit, with every rung's reason and the remedy, when there is none.
    """
    return _climb(normalise(platform))


def foresee(platforms: Iterable[Platform]) -> Callable[[], None]:
    """Begin to find out how ``platforms`` are emulated while this thread does something else.

    The call that is returned waits for the end, after which the process has as many threads as before.
    """

    def climb() -> None:
        for each in platforms:
            with contextlib.suppress(EnvironmentUnfit):
                emulation(each)

    thread = threading.Thread(target=climb, name="emulation")
    thread.start()
    return thread.join


def overview() -> tuple[tuple[Platform, Emulation | EnvironmentUnfit], ...]:
    """The usual platforms, each with how it runs here or why it does not."""
    found: list[tuple[Platform, Emulation | EnvironmentUnfit]] = []
    for platform in USUAL:
        try:
            found.append((platform, emulation(platform)))
        except EnvironmentUnfit as unfit:
            found.append((platform, unfit))
    return tuple(found)


def register_private(emulations: Iterable[Emulation]) -> int | None:
    """Give this process's user namespace handlers for those of ``emulations`` whose rung is ``private``.

    To be called by a process that is inside of a user and mount namespace of its own and holds all capabilities
    there. Nothing is mounted in any directory: the handlers hang on the descriptor returned, and are gone when its
    last copy is closed. It is close-on-exec, so a process that lasts as long as the step must keep it open. Handlers
    of the host do not count in this namespace any more. None when no rung is ``private``. Raises OSError.
    """
    wanted = [(each.architecture, each.interpreter) for each in emulations if each.rung is Rung.PRIVATE]
    return binfmt.mount_private(wanted) if wanted else None


def register_host(emulation: Emulation) -> None:
    """Register ``emulation``'s interpreter for the whole host, and see that it works. Nothing to do on other rungs.

    The handler stays until the host restarts, or until ``-1`` is written to its file. Raises EnvironmentUnfit.
    """
    if emulation.rung is not Rung.REGISTER:
        return
    architecture = emulation.architecture
    try:
        binfmt.register_host(architecture, emulation.interpreter)
        probe.executes.cache_clear()
        reason = probe.executes(architecture)
    except OSError as error:
        if error.errno == errno.EEXIST:
            reason = f"there is one named {binfmt.name(architecture)} that does not match or is switched off"
        else:
            reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if reason:
        raise EnvironmentUnfit(
            f"cannot register {emulation.interpreter} for programs of {architecture}",
            why=reason,
            remedy=f"look at {binfmt.DIRECTORY}/{binfmt.name(architecture)}, or give the build a node that is "
            f"linux/{architecture} itself",
        )


@functools.cache
def _climb(want: Platform) -> Emulation:
    own = host()
    if sys.platform != "linux" or want.os != "linux":
        raise EnvironmentUnfit(
            f"cannot run programs of {want} here",
            why=f"steps run on Linux, for Linux; this is {sys.platform}",
            remedy=f"give the build a node that is {want}",
        )
    architecture = want.architecture
    if architecture == own.architecture:
        return _native(want, own)
    if architecture not in elf.MACHINES:
        raise EnvironmentUnfit(
            f"cannot run programs of {want} here",
            why=f"no emulator is known for {architecture}; there are some for {', '.join(sorted(elf.MACHINES))}",
            remedy=f"give the build a node that is {want}",
        )
    skipped = [f"{Rung.NATIVE}: this host is {own}"]
    handler = binfmt.handler(architecture)
    runs = probe.executes(architecture)

    if architecture in COMPAT.get(own.architecture, ()):
        if not runs and handler is None:
            return Emulation(Rung.COMPAT, architecture, why=f"the kernel runs {architecture} programs by itself")
        skipped.append(f"{Rung.COMPAT}: {f'the handler {handler.name} takes its programs' if handler else runs}")

    _refuse_level(want)
    interpreter = binfmt.find_qemu(architecture)
    if not runs and (handler is None or handler.works_in_a_chroot):
        if not _within_reach(handler):
            return _registered(architecture, handler, skipped)
        # A private one's interpreter can be read-only; that of the host's handler was opened by somebody else.
        if interpreter is None or probe.executes_privately(architecture, interpreter):
            return _registered(architecture, handler, skipped, ", which steps can reach and change")
        skipped.append(f"{Rung.REGISTERED}: steps could reach the host's emulator by /proc/PID/exe and change it")
    else:
        skipped.append(f"{Rung.REGISTERED}: {_unregistered(architecture, handler, runs)}")

    if interpreter is None:
        dynamic = binfmt.qemus(architecture)
        reason = f"{dynamic[0]} is linked dynamically" if dynamic else f"no qemu-{binfmt.QEMU[architecture]} is here"
        skipped += [f"{rung}: {reason}" for rung in (Rung.PRIVATE, Rung.REGISTER)]
        raise _unfit(want, skipped, _INSTALL.format(qemu=binfmt.QEMU[architecture], architecture=architecture))

    if not (reason := probe.executes_privately(architecture, interpreter)):
        why = f"{interpreter} is registered in the build's own user namespace"
        return Emulation(Rung.PRIVATE, architecture, interpreter, why, tuple(skipped))
    skipped.append(f"{Rung.PRIVATE}: {reason}{_obstacle()}")

    if not (reason := binfmt.may_register()):
        why = f"{interpreter} is registered for the whole host, as root"
        return Emulation(Rung.REGISTER, architecture, interpreter, why, tuple(skipped))
    skipped.append(f"{Rung.REGISTER}: {reason}")
    raise _unfit(
        want,
        skipped,
        f"allow user namespaces on Linux 6.7 or later; or let root register {interpreter} on the host, as the packages "
        f"qemu-user-static (Fedora), qemu-user-binfmt and binfmt-support (Debian, Ubuntu) do; "
        f"or give the build a node that is linux/{architecture} itself",
    )


def _native(want: Platform, own: Platform) -> Emulation:
    """Our own architecture: no emulator can stand in, for its handler would catch the emulator too."""
    # An arm64 processor does not tell its version, only its features: what was asked for is believed.
    if want in candidates(own) or want.architecture == "arm64":
        return Emulation(Rung.NATIVE, want.architecture, why=f"this host is {own}")
    raise EnvironmentUnfit(
        f"cannot run programs of {want} here",
        why=f"this host's processor is {own}",
        remedy=f"give the build a node that is {want}, or build for {own}",
    )


def _refuse_level(want: Platform) -> None:
    if want.architecture == "amd64" and want.variant == "v4":
        raise EnvironmentUnfit(
            f"cannot run programs of {want} here",
            why="qemu does not emulate the AVX-512 instructions of this level",
            remedy=f"give the build a node that is {want}, or build for linux/amd64/v3",
        )


def _registered(architecture: str, handler: binfmt.Handler | None, skipped: list[str], warning: str = "") -> Emulation:
    """The host's handler; None is one that is out of sight."""
    if handler is None:
        why = f"{architecture} programs run here, by a handler that cannot be seen from here{warning}"
        return Emulation(Rung.REGISTERED, architecture, "", why, tuple(skipped))
    why = f"the handler {handler.name} of this host starts {handler.interpreter}{warning}"
    return Emulation(Rung.REGISTERED, architecture, handler.interpreter, why, tuple(skipped))


def _within_reach(handler: binfmt.Handler | None) -> bool:
    """Whether the steps of this user's build could change the interpreter of the host's handler, which is the file
    behind /proc/PID/exe of all programs that it runs: root's can, and those of the file's owner."""
    if os.geteuid() == 0 or handler is None:
        return os.geteuid() == 0
    try:
        return os.stat(handler.interpreter).st_uid == os.geteuid()
    except OSError:
        return False


def _unregistered(architecture: str, handler: binfmt.Handler | None, runs: str) -> str:
    if handler is None:
        if binfmt.mounted():
            return f"no handler of this host matches {architecture} programs"
        return f"no handler takes {architecture} programs, and {binfmt.DIRECTORY} is not mounted"
    if not handler.works_in_a_chroot:
        return f"the handler {handler.name} lacks the flag F: no root file system has its {handler.interpreter}"
    return f"the handler {handler.name} does not run {architecture} programs: {runs}"


def _obstacle() -> str:
    """The settings that are known to stand in the way of a private binfmt_misc, in parentheses; "" when none does."""
    found = []
    for path, value in (
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("vm/memfd_noexec", "2"),
    ):
        try:
            with open(f"/proc/sys/{path}", encoding="ascii") as setting:
                if setting.read().strip() == value:
                    found.append(f"{path.replace('/', '.')} is {value}")
        except OSError:
            continue
    release = os.uname().release
    major, minor, *_ = (*(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()), 0, 0)
    if (major, minor) < (6, 7):
        found.append(f"Linux 6.7 is needed, this is {release}")
    return f" ({', '.join(found)})" if found else ""


def _unfit(want: Platform, skipped: list[str], remedy: str) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"cannot run programs of {want} on this {host()} host", why="; ".join(skipped), remedy=remedy
    )
