"""The first program that the process of a step executes; it executes the step's program.

While the kernel resolves a program, its ``#!`` interpreter and its ELF interpreter, ``/proc/self/exe`` is the
executable of the process that called execve. For kanifold's own process that is the host's Python: an image could name
it as its program, run it with an ELF interpreter of its own, and write to it (CVE-2019-5736). So that process executes
this program, some 200 bytes in a read-only mount, and only then are names resolved that the image controls. The
executable, the memory and the descriptors of kanifold are gone by then.

Its arguments are the path to execute, then the arguments of the program from argv[0] on. It marks descriptor 3
close-on-exec and calls execve; if that returns, it writes the result, the negated errno, to the descriptor as a 32-bit
number.
"""

from __future__ import annotations

import struct
from typing import Final

from platforms import elf
from platforms.host import host


def _words(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


# Each is fcntl(3, F_SETFD, FD_CLOEXEC); execve(argv[0], argv + 1, envp); write(3, &result, 4); exit_group(127).
# At the entry point the stack pointer is at argc, argv follows, then NULL and envp (System V ABI, process stack).
CODE: Final = {
    "amd64": bytes.fromhex(
        "bf03000000 be02000000 ba01000000 b848000000 0f05"
        # mov rcx, [rsp]; mov rdi, [rsp+8]; lea rsi, [rsp+16]; lea rdx, [rsi+rcx*8]; mov eax, 59; syscall
        "488b0c24 488b7c2408 488d742410 488d14ce b83b000000 0f05"
        "48890424 bf03000000 4889e6 ba04000000 b801000000 0f05 bf7f000000 b8e7000000 0f05"
    ),
    "386": bytes.fromhex(
        "bb03000000 b902000000 ba01000000 b8dd000000 cd80"
        # mov eax, [esp]; mov ebx, [esp+4]; lea ecx, [esp+8]; lea edx, [ecx+eax*4]; mov eax, 11; int 0x80
        "8b0424 8b5c2404 8d4c2408 8d1481 b80b000000 cd80"
        "890424 bb03000000 89e1 ba04000000 b804000000 cd80 bb7f000000 b8fc000000 cd80"
    ),
    "arm64": _words(
        0xD2800060, 0xD2800041, 0xD2800022, 0xD2800328, 0xD4000001,
        # ldr x3, [sp]; ldr x0, [sp, 8]; add x1, sp, 16; add x2, x1, x3, lsl 3; mov x8, 221; svc 0
        0xF94003E3, 0xF94007E0, 0x910043E1, 0x8B030C22, 0xD2801BA8, 0xD4000001,
        0xB90003E0, 0xD2800060, 0x910003E1, 0xD2800082, 0xD2800808, 0xD4000001, 0xD2800FE0, 0xD2800BC8, 0xD4000001,
    ),
    "arm": _words(
        0xE3A00003, 0xE3A01002, 0xE3A02001, 0xE3A070DD, 0xEF000000,
        # ldr r3, [sp]; ldr r0, [sp, 4]; add r1, sp, 8; add r2, r1, r3, lsl 2; mov r7, 11; svc 0
        0xE59D3000, 0xE59D0004, 0xE28D1008, 0xE0812103, 0xE3A0700B, 0xEF000000,
        0xE58D0000, 0xE3A00003, 0xE1A0100D, 0xE3A02004, 0xE3A07004, 0xEF000000, 0xE3A0007F, 0xE3A070F8, 0xEF000000,
    ),
    "riscv64": _words(
        0x00300513, 0x00200593, 0x00100613, 0x01900893, 0x00000073,
        # ld a3, 0(sp); ld a0, 8(sp); addi a1, sp, 16; slli a3, a3, 3; add a2, a1, a3; li a7, 221; ecall
        0x00013683, 0x00813503, 0x01010593, 0x00369693, 0x00D58633, 0x0DD00893, 0x00000073,
        0x00A12023, 0x00300513, 0x00010593, 0x00400613, 0x04000893, 0x00000073, 0x07F00513, 0x05E00893, 0x00000073,
    ),
    "ppc64le": _words(
        0x38600003, 0x38800002, 0x38A00001, 0x38000037, 0x44000002,
        # ld 6, 0(1); ld 3, 8(1); addi 4, 1, 16; sldi 6, 6, 3; add 5, 4, 6; li 0, 11; sc; neg 3, 3
        0xE8C10000, 0xE8610008, 0x38810010, 0x78C61F24, 0x7CA43214, 0x3800000B, 0x44000002, 0x7C6300D0,
        0x90610000, 0x38600003, 0x7C240B78, 0x38A00004, 0x38000004, 0x44000002, 0x3860007F, 0x380000EA, 0x44000002,
    ),
    "s390x": bytes.fromhex(
        "a7290003 a7390002 a7490001 0a37"
        # lg %r5, 0(%r15); lg %r2, 8(%r15); la %r3, 16(%r15); sllg %r5, %r5, 3; la %r4, 0(%r5, %r3); svc 11
        "e350f0000004 e320f0080004 4130f010 eb550003000d 41453000 0a0b"
        "5020f000 a7290003 b904003f a7490004 0a04 a729007f 0af8 0707"
    ),
    "loong64": _words(
        0x02800C04, 0x02800805, 0x02800406, 0x0280640B, 0x002B0000,
        # ld.d a3, sp, 0; ld.d a0, sp, 8; addi.d a1, sp, 16; slli.d a3, a3, 3; add.d a2, a1, a3; li.w a7, 221; syscall 0
        0x28C00067, 0x28C02064, 0x02C04065, 0x00410CE7, 0x00109CA6, 0x0283740B, 0x002B0000,
        0x29800064, 0x02800C04, 0x02C00065, 0x02801006, 0x0281000B, 0x002B0000, 0x0281FC04, 0x0281780B, 0x002B0000,
    ),
}  # fmt: skip
"""Instructions, by architecture as in ``platforms``."""


def program(architecture: str = "") -> bytes:
    """Return the executable for this host, or for ``architecture``. Raises OSError if there is none."""
    wanted = architecture or host().architecture
    if wanted not in CODE:
        raise OSError(f"steps cannot be started on this host: its architecture, {wanted}, is unknown")
    return elf.program(wanted, CODE[wanted])
