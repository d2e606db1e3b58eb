"""The architecture of ELF files, and whether they belong into an image of another one.

Binaries of a wrong architecture are the most common mistake in multi-platform images: a URL with ``amd64`` in it, a
cross-build that did not cross. Executables and shared objects are checked. Not checked are:

- relocatable objects (``.o``, kernel modules) and core files: nothing in a container executes them, and cross compilers
  have foreign ones;
- eBPF programs: they run on every kernel;
- firmware (``lib/firmware``), and machines that no container platform has (microcontrollers): they are for devices;
- 386 and x32 binaries in amd64 images, which amd64 kernels run. 32-bit arm in arm64 images *is* a finding: many 64-bit
  cores do not run it.

Header: ELF-64 Object File Format and the processor supplements (``man 5 elf``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal

from executor.rootfs.entry import Entry, Kind

SMALLEST: Final = 52
"""Size in bytes of the smallest ELF header."""
HEAD: Final = 64
"""Number of bytes of a file that ``machine`` needs."""

_EXECUTABLE: Final = 2  # e_type
_SHARED: Final = 3
_MIPS: Final = 8
_BPF: Final = 247
_MIPS_ABI2: Final = 0x20
"""e_flags of the n32 ABI: 32-bit files for a 64-bit processor."""

# e_machine, 64-bit, little endian
_NAMES: Final = {
    (2, False, False): "sparc",
    (3, False, True): "386",
    (4, False, False): "m68k",
    (8, False, False): "mips",
    (8, False, True): "mipsle",
    (8, True, False): "mips64",
    (8, True, True): "mips64le",
    (15, False, False): "hppa",
    (20, False, False): "ppc",
    (21, True, False): "ppc64",
    (21, True, True): "ppc64le",
    (22, False, False): "s390",
    (22, True, False): "s390x",
    (40, False, False): "armbe",
    (40, False, True): "arm",
    (42, False, True): "sh4",
    (43, True, False): "sparc64",
    (50, True, True): "ia64",
    (62, False, True): "amd64p32",
    (62, True, True): "amd64",
    (183, False, True): "arm64p32",
    (183, True, False): "arm64be",
    (183, True, True): "arm64",
    (243, False, True): "riscv",
    (243, True, True): "riscv64",
    (258, True, True): "loong64",
    (0x9026, True, True): "alpha",
}
"""Architectures by Go's, and so Docker's, names; ``amd64p32`` is x32."""
_COMPATIBLE: Final = {"amd64": ("386", "amd64p32"), "mips64": ("mips64p32",), "mips64le": ("mips64p32le",)}
_FIRMWARE: Final = (b"lib/firmware/", b"usr/lib/firmware/")


def machine(head: bytes) -> str | None:
    """Return the architecture of the executable or shared object that begins with ``head``.

    ``EM_n`` if machine ``n`` has no name; None for anything else: other files, relocatable objects, core files, eBPF
    programs, invalid headers.
    """
    if len(head) < SMALLEST or not head.startswith(b"\x7fELF") or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    wide, little = head[4] == 2, head[5] == 1
    order: Literal["little", "big"] = "little" if little else "big"
    kind = int.from_bytes(head[16:18], order)
    number = int.from_bytes(head[18:20], order)
    if kind not in (_EXECUTABLE, _SHARED) or number in (0, _BPF):
        return None
    if number == _MIPS and not wide and int.from_bytes(head[36:40], order) & _MIPS_ABI2:
        return "mips64p32le" if little else "mips64p32"
    return _NAMES.get((number, wide, little), f"EM_{number}")


def machine_of_file(source: bytes) -> str | None:
    """Return ``machine`` of the file at the path ``source``; None also if it is not a regular file that can be read."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return machine(os.read(fd, HEAD)) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(fd)


def foreign(found: str, architecture: str) -> bool:
    """Whether a file for the machine ``found`` does not belong into an image for ``architecture``."""
    if found == architecture or found.startswith("EM_"):
        return False
    return found not in _COMPATIBLE.get(architecture, ())


def firmware(path: bytes) -> bool:
    """Whether ``path``, relative to the root, is where Linux distributions keep firmware."""
    return path.startswith(_FIRMWARE)


def audit(entries: Iterable[Entry], architecture: str, allow: Sequence[str] = ()) -> tuple[tuple[bytes, str], ...]:
    """Yield the paths of ``entries`` that are for another machine than ``architecture``, with their machines.

    ``allow``: paths to skip, as shell patterns in which ``*`` matches slashes too; a directory includes everything
    below it. A leading slash makes no difference.
    """
    patterns = tuple(each.strip("/") for each in allow)
    found = []
    for entry in entries:
        if entry.kind is not Kind.FILE or entry.size < SMALLEST or firmware(entry.path):
            continue
        name = machine_of_file(entry.source)
        if name is not None and foreign(name, architecture) and not _allowed(entry.path, patterns):
            found.append((entry.path, name))
    return tuple(found)


def _allowed(path: bytes, patterns: Sequence[str]) -> bool:
    text = os.fsdecode(path)
    return any(fnmatchcase(text, each) or fnmatchcase(text, f"{each}/*") for each in patterns)
