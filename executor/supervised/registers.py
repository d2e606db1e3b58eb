"""The registers of a stopped thread, as far as its system call is concerned: what is where, for each architecture.

The sets of registers are those of PTRACE_GETREGSET with NT_PRSTATUS: struct user_regs_struct (sys/user.h) and, on
aarch64, struct user_pt_regs (asm/ptrace.h). The thread is stopped before its system call (PTRACE_EVENT_SECCOMP), where
``call`` and ``arguments`` can be replaced, or after it, where there is a result. ``again`` makes it a stop from which
the thread continues with the instruction of the system call.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

import msgspec

from platforms import syscalls


class RegisterLayout(msgspec.Struct, frozen=True):
    """Where an architecture has the registers of a system call, by their positions in the set."""

    word: str
    """The type of a register and of a pointer, for ``struct``."""
    count: int
    """The number of registers in the set."""
    number: int
    """The call's number, as it was made; where it takes effect is another place if ``number_apart``."""
    result: int
    arguments: tuple[int, ...]
    instruction: int
    """The program counter: after the instruction of the system call, at both kinds of stops."""
    length: int
    """Bytes of that instruction."""
    restart: int
    """The register that has to contain the call's number when the instruction is executed."""
    number_apart: bool
    """Whether the number is changed in a set of its own (NT_ARM_SYSTEM_CALL)."""
    calls: dict[str, int]
    """The numbers of calls, by name."""

    @property
    def size(self) -> int:
        """Bytes of the set."""
        return self.count * self.pointer

    @property
    def pointer(self) -> int:
        """Bytes of a pointer."""
        return struct.calcsize(f"={self.word}")

    @property
    def mask(self) -> int:
        """The largest value of a register: -1."""
        return (1 << 8 * self.pointer) - 1


X86_64: Final = RegisterLayout(
    # r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss, and segments
    word="Q", count=27, number=15, result=10, arguments=(14, 13, 12, 7, 9, 8), instruction=16, length=2, restart=10,
    number_apart=False,
    calls={
        "execve": 59, "execveat": 322, "mmap": 9, "prctl": 157, "clone": 56, "clone3": 435, "fork": 57, "vfork": 58,
        "chdir": 80, "bind": 49, "connect": 42,
    },
)  # fmt: skip
I386: Final = RegisterLayout(
    # ebx ecx edx esi edi ebp eax ds es fs gs orig_eax eip cs eflags esp ss
    word="I", count=17, number=11, result=6, arguments=(0, 1, 2, 3, 4, 5), instruction=12, length=2, restart=6,
    number_apart=False,
    calls={
        "execve": 11, "execveat": 358, "mmap": 192, "prctl": 172, "clone": 120, "clone3": 435, "fork": 2, "vfork": 190,
        "chdir": 12, "bind": 361, "connect": 362,
    },
)  # fmt: skip
AARCH64: Final = RegisterLayout(
    # x0 to x30, sp, pc, pstate
    word="Q", count=34, number=8, result=0, arguments=(0, 1, 2, 3, 4, 5), instruction=32, length=4, restart=8,
    number_apart=True,
    calls={
        "execve": 221, "execveat": 281, "mmap": 222, "prctl": 167, "clone": 220, "clone3": 435, "chdir": 49,
        "bind": 200, "connect": 203,
    },
)  # fmt: skip

LAYOUTS: Final = {
    # os.uname().machine: those of its threads, which are told apart by their size
    "x86_64": (X86_64, I386),
    "aarch64": (AARCH64,),
}

_LARGEST: Final = max(each.size for several in LAYOUTS.values() for each in several)


class Registers:
    """The registers of a stopped thread. Changes take effect by ``write``."""

    def __init__(self, layout: RegisterLayout, values: list[int], number: int | None = None) -> None:
        self.layout = layout
        self.values = values
        self.number = values[layout.number] if number is None else number
        """The number of the call."""

    @classmethod
    def read(cls, pid: int, machine: str = "") -> Registers:
        """Return those of the thread ``pid``. Raises OSError: ESRCH if it was killed."""
        data = bytearray(_LARGEST)
        size = syscalls.ptrace_registers(syscalls.PTRACE_GETREGSET, pid, syscalls.NT_PRSTATUS, data)
        return cls.unpack(bytes(data[:size]), machine)

    @classmethod
    def unpack(cls, data: bytes, machine: str = "") -> Registers:
        """Return the registers of a set. Raises OSError (ENOSYS) for a set of another layout than the known ones."""
        for layout in LAYOUTS.get(machine or os.uname().machine, ()):
            if layout.size == len(data):
                return cls(layout, list(struct.unpack(f"={layout.count}{layout.word}", data)))
        raise OSError(errno.ENOSYS, "unknown registers")

    def pack(self) -> bytes:
        """Return the set."""
        return struct.pack(f"={self.layout.count}{self.layout.word}", *self.values)

    @property
    def call(self) -> str:
        """The name of the system call; "" for one that ``calls`` lacks."""
        return next((name for name, each in self.layout.calls.items() if each == self.number), "")

    @property
    def arguments(self) -> tuple[int, ...]:
        return tuple(self.values[each] for each in self.layout.arguments)

    @property
    def result(self) -> int:
        """The result of the call, after it: negative for an error."""
        value, mask = self.values[self.layout.result], self.layout.mask
        return value - mask - 1 if value > mask >> 1 else value

    def replaced(self, call: str, arguments: tuple[int, ...]) -> Registers:
        """Return them with another call, to be written before the call. Further arguments stay as they are."""
        values = list(self.values)
        for place, each in zip(self.layout.arguments, arguments, strict=False):
            values[place] = each
        return Registers(self.layout, values, self.layout.calls[call])

    def failed(self, number: int) -> Registers:
        """Return them with no call, and with the error ``number`` as its result, to be written before the call."""
        values = list(self.values)
        values[self.layout.result] = -number & self.layout.mask
        return Registers(self.layout, values, self.layout.mask)

    def ended(self, after: Registers) -> Registers:
        """Return them, as read before a call, with the result that the thread has ``after`` another one."""
        values = list(self.values)
        values[self.layout.result] = after.values[self.layout.result]
        return Registers(self.layout, values)

    def again(self) -> Registers:
        """Return them, as read before a call, such that the thread makes that call when it continues from the stop
        after another one."""
        values = list(self.values)
        values[self.layout.restart] = self.number
        values[self.layout.instruction] -= self.layout.length
        return Registers(self.layout, values)

    def write(self, pid: int, *, before: bool) -> None:
        """Write them to the thread ``pid``, which is stopped before a system call or not. Raises OSError."""
        if before and self.layout.number_apart:
            number = bytearray(struct.pack("=I", self.number & 0xFFFFFFFF))
            syscalls.ptrace_registers(syscalls.PTRACE_SETREGSET, pid, syscalls.NT_ARM_SYSTEM_CALL, number)
        elif before:
            self.values[self.layout.number] = self.number
        syscalls.ptrace_registers(syscalls.PTRACE_SETREGSET, pid, syscalls.NT_PRSTATUS, bytearray(self.pack()))
