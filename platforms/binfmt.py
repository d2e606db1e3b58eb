"""binfmt_misc: registering interpreters for the programs of other architectures.

See Documentation/admin-guide/binfmt-misc.rst of the kernel. Handlers are identified by what they match, not by name,
which is arbitrary.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from platforms import elf
from platforms.paths import below

DIRECTORY: Final = "/proc/sys/fs/binfmt_misc"
"""The mount point of the host's binfmt_misc."""

QEMU: Final = {
    "amd64": "x86_64", "386": "i386", "arm64": "aarch64", "arm": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le",
    "ppc64": "ppc64", "s390x": "s390x", "mips64le": "mips64el", "mips64": "mips64", "loong64": "loongarch64",
}  # fmt: skip
"""qemu-user's name of each architecture, the suffix of its program: ``qemu-aarch64``."""

PRIVATE_FLAGS: Final = "OCPF"
"""The flags of a handler in the user namespace of a build.

F: the kernel opens the interpreter at registration, so that steps find it although their root file system has none. P:
the program gets the original argv[0] (busybox needs it); requires qemu 6.0, which is verified by running a program. O:
programs that may be executed but not read are passed as an open file. C (implies O): set-user-id programs run with the
rights of their owner, as su and sudo in a step need; those rights end with the namespace.
"""

HOST_FLAGS: Final = "OPF"
"""PRIVATE_FLAGS without C: on the host, C would let any user with a foreign set-user-id root program run qemu as root,
for which qemu is not written. Debian's qemu-user-static uses the same flags."""

_PATH_LIMIT: Final = 127
"""Maximum length of an interpreter's path in bytes (Documentation/admin-guide/binfmt-misc.rst)."""


class Handler(msgspec.Struct, frozen=True):
    """An entry of a binfmt_misc directory."""

    name: str
    enabled: bool
    interpreter: str
    flags: str
    offset: int = 0
    magic: bytes = b""
    """The bytes that a file must have at ``offset``; empty for handlers that match file name extensions."""
    mask: bytes = b""
    """The bits of ``magic`` that are compared; empty for all."""

    def matches(self, head: bytes) -> bool:
        """Whether the kernel would start this handler for a file that begins with ``head``."""
        if not self.enabled or not self.magic:
            return False
        window = head[self.offset : self.offset + len(self.magic)]
        mask = self.mask or b"\xff" * len(self.magic)
        return len(window) == len(self.magic) and all(
            (each ^ wanted) & bits == 0 for each, wanted, bits in zip(window, self.magic, mask, strict=True)
        )

    @property
    def works_in_a_chroot(self) -> bool:
        """Whether the interpreter was opened at registration (flag F), so that no root file system has to contain
        it."""
        return "F" in self.flags


def magic(architecture: str) -> tuple[bytes, bytes]:
    """Return the first 20 bytes of an executable of ``architecture``, and the mask of the bits to compare.

    qemu's scripts/qemu-binfmt-conf.sh has the same table. Ignored are the OS ABI and its version (glibc's static
    programs have GNU; MIPS and LoongArch number theirs), and the lowest bit of the type: 2 is a program at a fixed
    address, 3 a position-independent one.
    """
    head = elf.program(architecture)[:20]
    little = elf.MACHINES[architecture].little
    kind = b"\xfe\xff" if little else b"\xff\xfe"
    return head, b"\xff" * 7 + b"\x00\x00" + b"\xff" * 7 + kind + b"\xff\xff"


def registration(architecture: str, interpreter: str, flags: str = PRIVATE_FLAGS) -> bytes:
    """Return the line to write to ``register`` of a binfmt_misc: in one write, without a newline.

    The handler is named ``kanifold-`` and qemu's name of the architecture. Raises ValueError for an interpreter with a
    path that the kernel does not accept: relative, longer than 127 bytes, or with a colon.
    """
    path = os.fsencode(interpreter)
    if not path.startswith(b"/") or len(path) > _PATH_LIMIT or b":" in path or b"\n" in path:
        raise ValueError(f"binfmt_misc takes no interpreter with this path: {interpreter}")
    start, mask = (b"".join(b"\\x%02x" % byte for byte in part) for part in magic(architecture))
    return b":%s:M::%s:%s:%s:%s" % (name(architecture).encode(), start, mask, path, flags.encode())


def name(architecture: str) -> str:
    """Return the name of the handler that ``registration`` makes."""
    return f"kanifold-{QEMU[architecture]}"


def handlers(directory: str = DIRECTORY) -> tuple[Handler, ...]:
    """Return all entries of a binfmt_misc; none when it is not mounted or is disabled."""
    try:
        names = os.listdir(directory)
        with open(f"{directory}/status", encoding="ascii") as status:
            if status.read().strip() != "enabled":
                return ()
    except OSError:
        return ()
    found = []
    for each in sorted(names):
        if each not in ("register", "status"):
            try:
                with open(below(directory, each), encoding="utf-8", errors="surrogateescape") as entry:
                    found.append(parse_handler(each, entry.read()))
            except OSError:  # removed since the directory was read
                continue
    return tuple(found)


def parse_handler(name: str, text: str) -> Handler:
    """Parse the file of an entry: ``enabled``, then a key and a value on each line."""
    values = {}
    lines = text.splitlines()
    for line in lines[1:]:
        key, _, value = line.partition(" ")
        values[key.rstrip(":")] = value
    return Handler(
        name,
        enabled=lines[:1] == ["enabled"],
        interpreter=values.get("interpreter", ""),
        flags=values.get("flags", ""),
        offset=int(values.get("offset", "0")),
        magic=bytes.fromhex(values.get("magic", "")),
        mask=bytes.fromhex(values.get("mask", "")),
    )


def handler(architecture: str, directory: str = DIRECTORY) -> Handler | None:
    """Return the handler that the kernel would start for a program of ``architecture``; one with flag F if any has it.

    The kernel prefers the one registered last, which the directory does not tell; handlers rarely overlap.
    """
    head = elf.program(architecture)
    fitting = [each for each in handlers(directory) if each.matches(head)]
    return max(fitting, key=lambda each: each.works_in_a_chroot, default=None)


def emulated() -> tuple[str, ...]:
    """The architectures that a handler of the host or a static qemu-user is here for; none of them is tried out."""
    known = handlers()
    return tuple(
        each for each in QEMU if any(found.matches(elf.program(each)) for found in known) or find_qemu(each) is not None
    )


def mount_private(interpreters: Iterable[tuple[str, str]]) -> int:
    """Mount a binfmt_misc for this process's user namespace, with a handler for each (architecture, interpreter).

    To be called within a user and a mount namespace of the caller's own. Programs that run under a handler have its
    interpreter in their /proc/PID/exe, but cannot modify it (see ``_readonly``). Returns the descriptor of a detached
    mount: the handlers exist until its last copy is closed. Raises OSError.
    """
    mount = _mount()
    try:
        for architecture, interpreter in interpreters:
            with _readonly(interpreter), _acceptable(interpreter) as path:
                _register(mount, registration(architecture, path))
    except BaseException:
        os.close(mount)
        raise
    return mount


def _mount() -> int:
    """Return a descriptor of this user namespace's binfmt_misc, as a detached mount."""
    from platforms import syscalls

    context = syscalls.fsopen("binfmt_misc")
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context)
    finally:
        os.close(context)


@contextlib.contextmanager
def _readonly(path: str) -> Iterator[None]:
    """Bind-mount ``path`` read-only on itself, in this mount namespace, for the length of the block.

    Who opens it meanwhile, as the kernel does for flag F, keeps that mount: a program that opens the file by
    /proc/PID/exe of an interpreter cannot write to it nor change its mode, owner or attributes, even as the owner of
    the file or as root.
    """
    from platforms import syscalls

    syscalls.mount(path, path, flags=syscalls.MS_BIND)
    try:
        syscalls.mount_setattr(syscalls.AT_FDCWD, path, 0, add=syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID)
        yield
    finally:
        syscalls.umount(path, syscalls.MNT_DETACH)


@contextlib.contextmanager
def _acceptable(path: str) -> Iterator[str]:
    """Yield a path of the file ``path`` that ``registration`` accepts: the kernel opens it at once (flag F)."""
    if len(os.fsencode(path)) <= _PATH_LIMIT and ":" not in path:
        yield path
        return
    file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _register(directory: int, line: bytes) -> None:
    file = os.open("register", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def may_register() -> str:
    """Return why this process cannot register handlers on the host (or in its container); "" when it can. Changes
    nothing."""
    if mounted():
        if os.access(f"{DIRECTORY}/register", os.W_OK):
            return ""
        return f"{DIRECTORY}/register cannot be written"
    if not os.path.isdir(DIRECTORY):
        return f"the kernel has no binfmt_misc: there is no {DIRECTORY}"
    try:
        os.close(_mount())
    except OSError as error:
        return f"mounting binfmt_misc: {os.strerror(error.errno or 0)}"
    return ""


def register_host(architecture: str, interpreter: str) -> None:
    """Register ``interpreter`` with HOST_FLAGS in the host's binfmt_misc, which is mounted if necessary.

    Does nothing if there is a matching handler of this name (another process was faster). Raises OSError.
    """
    import threading

    from platforms import mount_namespace

    line = registration(architecture, interpreter, HOST_FLAGS)
    failed: list[OSError] = []

    def register() -> None:
        try:
            mount_namespace.enter_mount_namespace()
            with _readonly(interpreter):
                _register(directory, line)
        except OSError as error:
            failed.append(error)

    if not mounted():
        from platforms import syscalls

        syscalls.mount("binfmt_misc", DIRECTORY, "binfmt_misc")
    directory = os.open(DIRECTORY, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        thread = threading.Thread(target=register, name="binfmt")  # whose mount namespace is changed
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
    except FileExistsError:
        found = [each for each in handlers() if each.name == name(architecture)]
        if not any(each.matches(elf.program(architecture)) for each in found):
            raise
    finally:
        os.close(directory)


def mounted(directory: str = DIRECTORY) -> bool:
    """Whether a binfmt_misc is mounted at ``directory``."""
    return os.path.exists(f"{directory}/register")


def find_qemu(architecture: str) -> str | None:
    """Return the absolute path of a statically linked ``qemu-ARCH-static`` or ``qemu-ARCH``; None if there is none.

    Searched in the directory KANIFOLD_QEMU_DIR of the environment, then on PATH. A dynamically linked one is skipped:
    within a root file system it would load the libraries of another architecture.
    """
    return next((path for path in qemus(architecture) if _is_static(path)), None)


def qemus(architecture: str) -> tuple[str, ...]:
    """Return all programs that ``find_qemu`` considers, in its order, also dynamically linked ones."""
    directories = [os.environ.get("KANIFOLD_QEMU_DIR", ""), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    paths = (
        below(os.path.abspath(directory), f"qemu-{QEMU[architecture]}{suffix}")
        for directory in directories
        if directory
        for suffix in ("-static", "")
    )
    return tuple(path for path in paths if os.path.isfile(path) and os.access(path, os.X_OK))


def _is_static(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return elf.is_static(file.read(4096))
    except OSError:
        return False
