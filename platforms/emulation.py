"""How this host runs the programs of another platform: the first mode, in this order, that works.

    native      the processor runs them
    compat      the 32-bit sibling, which the kernel supports
    registered  a binfmt_misc handler registered on the host
    private     a binfmt_misc in the build's own user namespace (Linux 6.7): needs no root and leaves nothing behind
    register    a handler that kanifold registers on the host, as root
    traced      a tracer of each step starts the emulator in place of the kernel: where no handler can be registered

A mode is verified by running a program of a few instructions; results are cached for the life of the process. An
emulator out of an image (``ImageEmulator``) is used in the modes ``private`` and ``traced`` only, before a handler of
the host, and runs nothing but steps: what is tried is whether a program of kanifold's own can be registered in its
place, or whether processes can be traced.

KANIFOLD_EMULATION forces one of ``private``, ``register`` and ``traced`` for all emulated platforms.

``emulation`` takes some 20 ms for an emulated architecture, nearly all of it in another process; ``prefetch`` starts it
ahead of time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterable
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from platforms import binfmt, elf, probe
from platforms.errors import EnvironmentUnfit, UsageError
from platforms.host import COMPAT, host
from platforms.platform import Platform, candidates, normalise

USUAL: Final = tuple(
    Platform("linux", architecture, variant)
    for architecture, variant in (
        ("amd64", ""), ("arm64", ""), ("arm", "v7"), ("arm", "v6"), ("386", ""), ("riscv64", ""), ("ppc64le", ""),
        ("s390x", ""), ("loong64", ""), ("mips64le", ""),
    )
)  # fmt: skip
"""The platforms that images are usually published for."""

_INSTALL: Final = (
    "install qemu's user emulators: apt-get install qemu-user-static (Debian, Ubuntu), dnf install qemu-user-static "
    "(Fedora), pacman -S qemu-user-static (Arch), apk add qemu-{qemu} (Alpine); or put qemu-{qemu}-static into the "
    "directory that KANIFOLD_QEMU_DIR names; or take one out of an image: kanifold emulators add {architecture}; or "
    "give the build a node that is linux/{architecture} itself"
)


class EmulationMode(StrEnum):
    """The modes, best first."""

    NATIVE = "native"
    COMPAT = "compat"
    REGISTERED = "registered"
    PRIVATE = "private"
    REGISTER = "register"
    TRACED = "traced"


VARIABLE: Final = "KANIFOLD_EMULATION"
"""The environment variable that forces a mode."""
_OURS: Final = (EmulationMode.PRIVATE, EmulationMode.REGISTER, EmulationMode.TRACED)


class Emulation(msgspec.Struct, frozen=True):
    """How programs of ``architecture`` run here. ``str()`` gives ``native`` or the emulator's name."""

    mode: EmulationMode
    architecture: str
    interpreter: str = ""
    """The absolute path of the emulator; "" when there is none, or when it cannot be seen from here."""
    why: str = ""
    """The reason for the choice, as a sentence."""
    skipped: tuple[str, ...] = ()
    """For each earlier mode, its name and why it was not taken: ``compat: …``."""

    @property
    def emulated(self) -> bool:
        """Whether programs are slower than native ones."""
        return self.mode not in (EmulationMode.NATIVE, EmulationMode.COMPAT)

    def __str__(self) -> str:
        if not self.emulated:
            return "native"
        return os.path.basename(self.interpreter) or "emulated"


class ImageEmulator(msgspec.Struct, frozen=True):
    """An emulator out of an image, which nobody has tried: only steps may run it."""

    path: str
    """Its absolute path."""
    image: str
    """The name of the image, with its digest."""
    stand_in: str
    """The path of a program of this host that ends with the number of its arguments (``elf.program``)."""


class ImageEmulators(Hashable, Protocol):
    """Emulators out of images."""

    @property
    def required(self) -> str:
        """The name of the image that emulators have to be from; "" if others may be used."""
        ...

    def find(self, architecture: str) -> ImageEmulator | None:
        """Return the emulator of programs of ``architecture``; None if there is none."""
        ...


def emulation(platform: Platform, emulators: ImageEmulators | None = None) -> Emulation:
    """Return the first mode that runs programs of ``platform`` here; ``emulators`` are those out of images.

    ``private`` takes effect by ``register_private``, ``register`` by ``register_host``, ``traced`` by a tracer of each
    step; the others need nothing. Raises EnvironmentUnfit, with the reason for every mode and the remedy, when there is
    none, and UsageError if $KANIFOLD_EMULATION names no mode.
    """
    return _choose(normalise(platform), emulators)


def prefetch(platforms: Iterable[Platform], emulators: ImageEmulators | None = None) -> Callable[[], None]:
    """Start to determine how ``platforms`` are emulated, on another thread.

    The function that is returned waits for the end, after which the thread is gone.
    """

    def climb() -> None:
        for each in platforms:
            with contextlib.suppress(EnvironmentUnfit):
                emulation(each, emulators)

    thread = threading.Thread(target=climb, name="emulation")
    thread.start()
    return thread.join


def overview(emulators: ImageEmulators | None = None) -> tuple[tuple[Platform, Emulation | EnvironmentUnfit], ...]:
    """Return the usual platforms, each with how it runs here or why it does not."""
    found: list[tuple[Platform, Emulation | EnvironmentUnfit]] = []
    for platform in USUAL:
        try:
            found.append((platform, emulation(platform, emulators)))
        except EnvironmentUnfit as unfit:
            found.append((platform, unfit))
    return tuple(found)


def register_private(emulations: Iterable[Emulation]) -> int | None:
    """Register handlers, in this process's user namespace, for those of ``emulations`` whose mode is ``private``.

    To be called by a process in a user and a mount namespace of its own, with all capabilities there. Nothing is
    mounted in a directory: the handlers exist until the last copy of the returned descriptor is closed. It is
    close-on-exec, so a process that lives as long as the step must hold it. Handlers of the host are not effective in
    this namespace any more. Returns None when no mode is ``private``. Raises OSError.
    """
    wanted = [(each.architecture, each.interpreter) for each in emulations if each.mode is EmulationMode.PRIVATE]
    return binfmt.mount_private(wanted) if wanted else None


def register_host(emulation: Emulation) -> None:
    """Register the interpreter of ``emulation`` on the host and verify that it works. Does nothing in other modes.

    The handler stays until the host restarts, or until ``-1`` is written to its file. Raises EnvironmentUnfit.
    """
    if emulation.mode is not EmulationMode.REGISTER:
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
def _choose(want: Platform, emulators: ImageEmulators | None) -> Emulation:
    own = host()
    if sys.platform != "linux" or want.os != "linux":
        raise EnvironmentUnfit(
            f"cannot run programs of {want} here",
            why=f"steps run on Linux, for Linux; this is {sys.platform}",
            remedy=f"give the build a node that is {want}: kanifold node add NAME ssh://USER@HOST",
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
    skipped = [f"{EmulationMode.NATIVE}: this host is {own}"]
    handler = binfmt.handler(architecture)
    runs = probe.executes(architecture)

    if architecture in COMPAT.get(own.architecture, ()):
        if not runs and handler is None:
            return Emulation(
                EmulationMode.COMPAT, architecture, why=f"the kernel runs {architecture} programs by itself"
            )
        skipped.append(
            f"{EmulationMode.COMPAT}: {f'the handler {handler.name} takes its programs' if handler else runs}"
        )

    _refuse_level(want)
    asked = _asked()
    if emulators is not None and (found := _of_image(want, emulators, asked, skipped)) is not None:
        return found
    interpreter = binfmt.find_qemu(architecture)
    if asked is not None:
        skipped.append(f"{EmulationMode.REGISTERED}: {VARIABLE} is {asked}")
    elif not runs and (handler is None or handler.works_in_a_chroot):
        if not _within_reach(handler):
            return _registered(architecture, handler, skipped)
        # The interpreter of a private handler is read-only; that of the host's was opened by another process.
        if interpreter is None or probe.executes_privately(architecture, interpreter):
            return _registered(architecture, handler, skipped, ", which steps can reach and change")
        skipped.append(
            f"{EmulationMode.REGISTERED}: steps could reach the host's emulator by /proc/PID/exe and change it"
        )
    else:
        skipped.append(f"{EmulationMode.REGISTERED}: {_unregistered(architecture, handler, runs)}")

    if interpreter is None:
        dynamic = binfmt.qemus(architecture)
        reason = f"{dynamic[0]} is linked dynamically" if dynamic else f"no qemu-{binfmt.QEMU[architecture]} is here"
        skipped += [f"{mode}: {reason}" for mode in _OURS]
        raise _unfit(want, skipped, _INSTALL.format(qemu=binfmt.QEMU[architecture], architecture=architecture))

    for mode, obstacle, why in (
        (EmulationMode.PRIVATE, _no_private, "is registered in the build's own user namespace"),
        (EmulationMode.REGISTER, _no_register, "is registered for the whole host, as root"),
        (EmulationMode.TRACED, _no_traced, "is started by a tracer of each step"),
    ):
        reason = f"{VARIABLE} is {asked}" if asked not in (None, mode) else obstacle(architecture, interpreter)
        if not reason:
            return Emulation(mode, architecture, interpreter, f"{interpreter} {why}", tuple(skipped))
        skipped.append(f"{mode}: {reason}")
    raise _unfit(
        want,
        skipped,
        f"allow user namespaces on Linux 6.7 or later; or let processes trace each other (ptrace(2)); or let root "
        f"register {interpreter} on the host, as the packages "
        f"qemu-user-static (Fedora), qemu-user-binfmt and binfmt-support (Debian, Ubuntu) do; "
        f"or give the build a node that is linux/{architecture} itself",
    )


def _no_private(architecture: str, interpreter: str) -> str:
    """Return why no private handler can start ``interpreter``; "" if one can."""
    reason = probe.executes_privately(architecture, interpreter)
    return reason and f"{reason}{_obstacle()}"


def _no_register(architecture: str, interpreter: str) -> str:
    return binfmt.may_register()


def _no_traced(architecture: str, interpreter: str) -> str:
    """Return why no tracer can start ``interpreter``; "" if one can."""
    return _untraced() or probe.emulates(architecture, interpreter)


def _untraced() -> str:
    """Return why steps cannot be traced here; "" if they can."""
    reason = probe.traces()
    return reason and f"tracing a process: {reason}{_tracing_obstacle()}"


def _tracing_obstacle() -> str:
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as setting:
            scope = setting.read().strip()
    except OSError:
        return ""
    return "" if scope == "0" else f" (kernel.yama.ptrace_scope is {scope})"


def _asked() -> EmulationMode | None:
    """Return the mode that $KANIFOLD_EMULATION names; None for the first that works. Raises UsageError."""
    name = os.environ.get(VARIABLE, "")
    if name in ("", "auto"):
        return None
    if name not in _OURS:
        raise UsageError(
            f"{VARIABLE}={name!r} is no emulation mode that can be asked for", remedy=f"use auto, {', '.join(_OURS)}"
        )
    return EmulationMode(name)


def _native(want: Platform, own: Platform) -> Emulation:
    """Return how our own architecture runs: never by an emulator, whose handler would match the emulator too."""
    # An arm64 processor tells its features, not its version: any variant is assumed to run.
    if want in candidates(own) or want.architecture == "arm64":
        return Emulation(EmulationMode.NATIVE, want.architecture, why=f"this host is {own}")
    raise EnvironmentUnfit(
        f"cannot run programs of {want} here",
        why=f"this host's processor is {own}",
        remedy=f"give the build a node that is {want}, or build for {own}",
    )


def _of_image(
    want: Platform, emulators: ImageEmulators, asked: EmulationMode | None, skipped: list[str]
) -> Emulation | None:
    """Return the mode for an emulator out of an image; None, and the reason in ``skipped``, if there is no such way.

    Raises EnvironmentUnfit if that image's emulator is required.
    """
    architecture = want.architecture
    emulator = emulators.find(architecture)
    if emulator is None:
        if emulators.required:
            raise _unfit(
                want,
                [*skipped, f"{EmulationMode.PRIVATE}: no emulator out of {emulators.required} is here"],
                f"kanifold emulators add --image {emulators.required} {architecture}; or build without "
                "--emulator-image",
            )
        return None
    program = f"{os.path.basename(emulator.path)} of the image {emulator.image}"
    registered = f"{EmulationMode.REGISTERED}: an emulator out of an image was asked for"
    private = f"{VARIABLE} is {asked}"
    if asked in (None, EmulationMode.PRIVATE):
        private = probe.registers_privately(architecture, emulator.stand_in)
        if not private:
            why = f"{program} is registered in the build's own user namespace"
            return Emulation(EmulationMode.PRIVATE, architecture, emulator.path, why, (*skipped, registered))
    traced = _untraced() if asked in (None, EmulationMode.TRACED) else f"{VARIABLE} is {asked}"
    remedy = "allow user namespaces on Linux 6.7 or later, or let processes trace each other (ptrace(2))"
    if os.statvfs(emulator.path).f_flag & os.ST_NOEXEC:
        private = private and "its file system is mounted noexec"
        remedy = "put the store on one that is not (--root, KANIFOLD_ROOT)"
    skipped.append(f"{EmulationMode.PRIVATE}, with {program}: {private}{_obstacle()}")
    if not traced:
        why = f"{program} is started by a tracer of each step"
        return Emulation(EmulationMode.TRACED, architecture, emulator.path, why, (*skipped, registered))
    skipped.append(f"{EmulationMode.TRACED}, with {program}: {traced}")
    if emulators.required:
        raise _unfit(want, skipped, f"{remedy}; or build without --emulator-image")
    return None


def _refuse_level(want: Platform) -> None:
    if want.architecture == "amd64" and want.variant == "v4":
        raise EnvironmentUnfit(
            f"cannot run programs of {want} here",
            why="qemu does not emulate the AVX-512 instructions of this level",
            remedy=f"give the build a node that is {want}, or build for linux/amd64/v3",
        )


def _registered(architecture: str, handler: binfmt.Handler | None, skipped: list[str], warning: str = "") -> Emulation:
    """Return the mode for the host's handler; None stands for one that cannot be seen from here."""
    if handler is None:
        why = f"{architecture} programs run here, by a handler that cannot be seen from here{warning}"
        return Emulation(EmulationMode.REGISTERED, architecture, "", why, tuple(skipped))
    why = f"the handler {handler.name} of this host starts {handler.interpreter}{warning}"
    return Emulation(EmulationMode.REGISTERED, architecture, handler.interpreter, why, tuple(skipped))


def _within_reach(handler: binfmt.Handler | None) -> bool:
    """Whether steps could modify the interpreter of the host's handler, which is the file behind /proc/PID/exe of all
    programs that it runs: those of root can, and those of the file's owner."""
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
    """Return the settings that are known to prevent a private binfmt_misc, in parentheses; "" when there are none."""
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
