"""ELF executables: detecting the architecture, and the smallest program for each architecture.

The numbers are those of the System V ABI's ELF chapter and its processor supplements; ``readelf -h`` shows them.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

HEADER: Final = 64
"""Number of bytes of a file that suffice to detect its architecture."""

_MAGIC: Final = b"\x7fELF"
_PT_LOAD: Final = 1
_PT_INTERP: Final = 3
_PT_GNU_STACK: Final = 0x6474E551
_ADDRESS: Final = 0x400000
_PAGE: Final = 0x10000  # the largest page size of these architectures


class ElfMachine(msgspec.Struct, frozen=True):
    """The ELF header fields of an architecture, and a program that exits with its number of arguments."""

    architecture: str
    bits: int
    little: bool
    number: int
    """``e_machine``."""
    flags: int
    """``e_flags`` that a kernel accepts; not 0 for ARM (EABI 5), MIPS (64r2), POWER (ELFv2) and LoongArch."""
    code: bytes
    """Instructions of exit(argc). At the entry point the stack pointer is at argc, on all architectures."""


def _words(order: str, *words: int) -> bytes:
    return struct.pack(f"{order}{len(words)}I", *words)


MACHINES: Final = {
    each.architecture: each
    for each in (
        # mov edi, [rsp]; mov eax, 60; syscall
        ElfMachine("amd64", 64, True, 62, 0, bytes.fromhex("8b3c24 b83c000000 0f05")),
        # mov ebx, [esp]; mov eax, 1; int 0x80
        ElfMachine("386", 32, True, 3, 0, bytes.fromhex("8b1c24 b801000000 cd80")),
        # ldr x0, [sp]; mov x8, 93; svc 0
        ElfMachine("arm64", 64, True, 183, 0, _words("<", 0xF94003E0, 0xD2800BA8, 0xD4000001)),
        # ldr r0, [sp]; mov r7, 1; svc 0
        ElfMachine("arm", 32, True, 40, 0x5000000, _words("<", 0xE59D0000, 0xE3A07001, 0xEF000000)),
        # ld a0, 0(sp); li a7, 93; ecall
        ElfMachine("riscv64", 64, True, 243, 0, _words("<", 0x00013503, 0x05D00893, 0x00000073)),
        # ld 3, 0(1); li 0, 1; sc
        ElfMachine("ppc64le", 64, True, 21, 2, _words("<", 0xE8610000, 0x38000001, 0x44000002)),
        ElfMachine("ppc64", 64, False, 21, 2, _words(">", 0xE8610000, 0x38000001, 0x44000002)),
        # lg %r2, 0(%r15); svc 1
        ElfMachine("s390x", 64, False, 22, 0, bytes.fromhex("e320f0000004 0a01")),
        # ld a0, 0(sp); li v0, 5058; syscall
        ElfMachine("mips64le", 64, True, 8, 0x80000000, _words("<", 0xDFA40000, 0x240213C2, 0x0000000C)),
        ElfMachine("mips64", 64, False, 8, 0x80000000, _words(">", 0xDFA40000, 0x240213C2, 0x0000000C)),
        # ld.d a0, sp, 0; li.w a7, 93; syscall 0
        ElfMachine("loong64", 64, True, 258, 0x43, _words("<", 0x28C00064, 0x0281740B, 0x002B0000)),
    )
}
"""The architectures that kanifold can run or emulate."""


def architecture(head: bytes) -> str | None:
    """Return the architecture of the ELF file that begins with ``head`` (``HEADER`` bytes suffice).

    None for a file that is not ELF or of none of ``MACHINES``.
    """
    if len(head) < 20 or head[:4] != _MAGIC:
        return None
    kind = (head[4], head[5])
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    for each in MACHINES.values():
        if (each.number, _ident(each)) == (number, kind):
            return each.architecture
    return None


def program(architecture: str, code: bytes = b"") -> bytes:
    """Return a static executable of some 200 bytes that runs ``code``, by default exit(argc).

    It requests a stack that is not executable; without that, 32-bit kernels would make all data executable, also for
    whatever it executes (READ_IMPLIES_EXEC, personality(2)).
    """
    machine = MACHINES[architecture]
    code = code or machine.code
    order = "<" if machine.little else ">"
    ident = _MAGIC + bytes((*_ident(machine), 1)) + bytes(9)
    if machine.bits == 64:
        head, segment = 64, 56
        start = head + 2 * segment
        size = start + len(code)
        load = struct.pack(f"{order}IIQQQQQQ", _PT_LOAD, 5, 0, _ADDRESS, _ADDRESS, size, size, _PAGE)
        stack = struct.pack(f"{order}IIQQQQQQ", _PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16)
        fields = "HHIQQQIHHHHHH"
    else:
        head, segment = 52, 32
        start = head + 2 * segment
        size = start + len(code)
        load = struct.pack(f"{order}IIIIIIII", _PT_LOAD, 0, _ADDRESS, _ADDRESS, size, size, 5, _PAGE)
        stack = struct.pack(f"{order}IIIIIIII", _PT_GNU_STACK, 0, 0, 0, 0, 0, 6, 16)
        fields = "HHIIIIIHHHHHH"
    rest = (2, machine.number, 1, _ADDRESS + start, head, 0, machine.flags, head, segment, 2, 0, 0, 0)
    return ident + struct.pack(order + fields, *rest) + load + stack + code


def is_static(data: bytes) -> bool:
    """Whether the ELF executable that begins with ``data`` requests no dynamic loader.

    ``data`` must include its program headers (4 KiB do, for any that a linker writes); False if not.
    """
    if len(data) < HEADER or data[:4] != _MAGIC:
        return False
    order = "<" if data[5] == 1 else ">"
    if data[4] == 2:
        (start,) = struct.unpack_from(f"{order}Q", data, 32)
        size, count = struct.unpack_from(f"{order}HH", data, 54)
    else:
        (start,) = struct.unpack_from(f"{order}I", data, 28)
        size, count = struct.unpack_from(f"{order}HH", data, 42)
    if not count or start + size * count > len(data):
        return False
    kinds = (struct.unpack_from(f"{order}I", data, start + size * index)[0] for index in range(count))
    return _PT_INTERP not in kinds


def _ident(machine: ElfMachine) -> tuple[int, int]:
    """Return the bytes EI_CLASS and EI_DATA."""
    return machine.bits // 32, 1 if machine.little else 2
