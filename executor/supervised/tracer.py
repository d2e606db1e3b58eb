"""A tracer that changes certain system calls of a step before the kernel makes them (ptrace(2), seccomp(2)).

The step's filter answers them with SECCOMP_RET_TRACE; nothing else of its threads is stopped but for signals, new
threads and executed programs. For each such call a *rule* says what happens:

    None        the kernel makes the call as it is
    Change      the kernel makes another one, whose strings are written into the caller's memory
    OSError     the call fails with this error

    tracer = Tracer({"execve": rule, "execveat": rule}, proc)
    tracer.seize(pid)                 # the step's first process, before it executes anything
    status = tracer.run(pid)          # its wait status

One process traces one step: ptrace is a matter of threads, and a rule may change its own credentials and root. It need
not be the parent of the step's processes. When it ends, the kernel kills them (PTRACE_O_EXITKILL), and ``run`` reaps
threads that it traces, and children of its own, until the first process has ended.

The step is hostile. What a rule reads of it can change before the kernel reads it, so a rule grants nothing: the kernel
makes every call with the rights of the caller. A stopped thread is identified by the kernel and is no other one until
it has been reaped, and its memory is opened anew at every stop. Strings are written to memory that the caller was made
to map for them, never to its stack: a child of vfork(2) runs on its parent's, of which it may have very little. What is
kept is bounded by the number of the step's threads.

Signals, stops and continuations pass as without a tracer (PTRACE_LISTEN). A step can trace none of its processes, as a
process has one tracer at most.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from executor.supervised.registers import Registers
from platforms import syscalls

_OPTIONS: Final = (
    syscalls.PTRACE_O_TRACESYSGOOD
    | syscalls.PTRACE_O_TRACEFORK
    | syscalls.PTRACE_O_TRACEVFORK
    | syscalls.PTRACE_O_TRACECLONE
    | syscalls.PTRACE_O_TRACEEXEC
    | syscalls.PTRACE_O_TRACESECCOMP
    | syscalls.PTRACE_O_EXITKILL
)
_CREATIONS: Final = (syscalls.PTRACE_EVENT_FORK, syscalls.PTRACE_EVENT_VFORK, syscalls.PTRACE_EVENT_CLONE)
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_STOPPING: Final = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_CLONE_VM: Final = 0x00000100
_CLONE_UNTRACED: Final = 0x00800000
_PROT_READ_WRITE: Final = 3
_MAP_PRIVATE_ANONYMOUS: Final = 0x22

_PAGE: Final = 4096
_REGION: Final = 1 << 14
"""The least number of bytes that a process is made to map."""
_ARGUMENTS: Final = 6 << 20
"""Bytes of the longest list of pointers that is copied: a kernel takes arguments of 6 MiB in total (execve(2))."""


class Arguments(msgspec.Struct, frozen=True):
    """The arguments of a program (argv): ``front``, strings or addresses of some in the caller's memory, followed by
    the pointers at ``rest`` there; none if that is 0."""

    front: tuple[bytes | int, ...]
    rest: int = 0


class Change(msgspec.Struct, frozen=True):
    """Another system call: its name and arguments. Bytes are written to the caller's memory as they are, a string with
    its NUL, and their address is passed."""

    call: str
    arguments: tuple[int | bytes | Arguments, ...]


class CallerMemory:
    """The memory of a stopped thread, by its /proc/PID/mem."""

    def __init__(self, file: int, pointer: int) -> None:
        self.file = file
        self.pointer = pointer
        """Bytes of a pointer."""

    def read(self, address: int, size: int) -> bytes:
        """Return at most ``size`` bytes. Raises OSError (EFAULT) if there are none."""
        try:
            data = os.pread(self.file, size, address)
        except (OSError, OverflowError):
            data = b""
        if not data:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def string(self, address: int, limit: int) -> bytes:
        """Return the string without its NUL. Raises OSError: EFAULT, ENAMETOOLONG if it has ``limit`` bytes or more."""
        found = b""
        while len(found) < limit:
            text, end, _ = self.read(address, _PAGE - address % _PAGE).partition(b"\0")
            found += text
            if end and len(found) < limit:
                return found
            address += len(text)
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def word(self, address: int) -> int:
        """Return the pointer at ``address``. Raises OSError."""
        data = self.read(address, self.pointer)
        return int.from_bytes(data, "little")

    def pointers(self, address: int) -> bytes:
        """Return the pointers from ``address`` up to the first that is null, with that. Raises OSError, E2BIG."""
        found, end = bytearray(), bytes(self.pointer)
        while len(found) < _ARGUMENTS:
            part = self.read(address, _PAGE - address % _PAGE)
            part = part[: len(part) - len(part) % self.pointer] or self.read(address, self.pointer)
            place = part.find(end)
            while place % self.pointer and place >= 0:
                place = part.find(end, place + 1)
            if place >= 0:
                return bytes(found + part[: place + self.pointer])
            found += part
            address += len(part)
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))

    def write(self, address: int, data: bytes) -> None:
        """Raises OSError (EFAULT) if not all of it could be written."""
        try:
            written = os.pwrite(self.file, data, address)
        except (OSError, OverflowError):
            written = -1
        if written != len(data):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


class Caller(msgspec.Struct, frozen=True):
    """A thread that is stopped before a system call, as rules see it."""

    pid: int
    """Its number in the pid namespace of the tracer."""
    directory: str
    """Its directory, relative to the tracer's ``proc``."""
    call: str
    arguments: tuple[int, ...]
    memory: CallerMemory


Rule = Callable[[Caller], "Change | None"]


class _Region(msgspec.Struct, frozen=True):
    """Memory of a process that is mapped for strings."""

    address: int
    size: int


class _Space:
    """An address space, which threads, and processes between vfork(2) and execve(2), share."""

    def __init__(self, free: list[_Region]) -> None:
        self.free = free
        """The regions that no thread uses."""

    def take(self, size: int) -> _Region | None:
        for index, each in enumerate(self.free):
            if each.size >= size:
                return self.free.pop(index)
        return None


class _Injected(msgspec.Struct, frozen=True):
    """A thread makes a call for the tracer, then its own one: ``before``. ``size``: of a region; 0 for another call."""

    before: Registers
    size: int


class _Changed(msgspec.Struct, frozen=True):
    """A thread makes a changed call; when that fails, its registers are those from ``before``, with the result."""

    before: Registers


class _Thread:
    """What is known of a traced thread."""

    def __init__(self, space: _Space) -> None:
        self.space = space
        self.region: _Region | None = None
        self.doing: _Injected | _Changed | None = None
        self.tried_dumpable = False
        """Whether it was made dumpable for its present call."""
        self.tried_region = False

    def release(self) -> None:
        """Give its region back."""
        if self.region is not None:
            self.space.free.append(self.region)
        self.region = None


class Tracer:
    """The tracer of a step. ``rules``: by the names of calls, which ``registers`` has the numbers of.

    ``proc``: a descriptor of a /proc that shows the step's processes. ``number``: the number there of a thread of this
    process's pid namespace.
    """

    def __init__(self, rules: Mapping[str, Rule], proc: int, number: Callable[[int], int] = int) -> None:
        self.rules = rules
        self.proc = proc
        self.number = number
        self.threads: dict[int, _Thread] = {}

    def seize(self, pid: int) -> None:
        """Trace ``pid``, which has a single thread, and all processes that it will start. Raises OSError."""
        syscalls.ptrace(syscalls.PTRACE_SEIZE, pid, 0, _OPTIONS)

    def run(self, first: int) -> int:
        """Let the step run until its process ``first`` has ended; return its wait status."""
        while True:
            pid, status = os.waitpid(-1, syscalls.WALL)
            if not os.WIFSTOPPED(status):
                if thread := self.threads.pop(pid, None):
                    thread.release()
                if pid == first:
                    return status
                continue
            with contextlib.suppress(ProcessLookupError):  # it was killed, which the next wait tells
                self._continue(pid, status >> 16, os.WSTOPSIG(status))

    def _continue(self, pid: int, event: int, number: int) -> None:
        """Handle a stop of ``pid``, by the event or the signal ``number``, and let it continue."""
        how, passed = syscalls.PTRACE_CONT, 0
        if event == syscalls.PTRACE_EVENT_SECCOMP:
            how = self._before_call(pid)
        elif event in _CREATIONS:
            self._created(pid, event)
        elif event == syscalls.PTRACE_EVENT_EXEC:
            self._executed(pid)
        elif event == syscalls.PTRACE_EVENT_STOP:
            if number in _STOPPING:
                how = syscalls.PTRACE_LISTEN
        elif number == _SYSCALL_STOP:
            self._after_call(pid)
        elif not event:
            passed = number
        syscalls.ptrace(how, pid, 0, passed)

    def _thread(self, pid: int) -> _Thread:
        if pid not in self.threads:
            self.threads[pid] = _Thread(_Space([]))
        return self.threads[pid]

    def _created(self, pid: int, event: int) -> None:
        """Note which address space the child that ``pid`` has just made is in."""
        child = syscalls.ptrace_message(pid)
        shared = _shares_memory(Registers.read(pid), event)
        space = self._thread(pid).space if shared else _Space([])
        if child in self.threads:  # its own first stop was seen before
            self.threads[child].space = space
        elif self._is_there(child):
            self.threads[child] = _Thread(space)

    def _is_there(self, child: int) -> bool:
        """Whether ``child``, a traced thread, has not ended and been reaped before its creation was reported."""
        try:
            os.stat(str(self.number(child)), dir_fd=self.proc)
        except OSError:
            return False
        return True

    def _executed(self, pid: int) -> None:
        """Note that ``pid`` has another address space. It has another number if it was not the first of its threads."""
        for each in {pid, syscalls.ptrace_message(pid)}:
            if thread := self.threads.pop(each, None):
                thread.release()

    def _before_call(self, pid: int) -> int:
        """Ask the rule for the call that ``pid`` is about to make; return how to continue."""
        thread = self._thread(pid)
        registers = Registers.read(pid)
        call = registers.call
        if call == "clone":
            flags, *rest = registers.arguments
            registers.replaced(call, (flags & ~_CLONE_UNTRACED, *rest)).write(pid, before=True)
            return syscalls.PTRACE_CONT
        if call not in self.rules:  # by a filter of the step's own, which has no tracer
            registers.failed(errno.ENOSYS).write(pid, before=True)
            return syscalls.PTRACE_CONT
        try:
            directory = str(self.number(pid))
            file = self._open_memory(directory)
            if file is None:
                return self._make_dumpable(pid, thread, registers)
            try:
                memory = CallerMemory(file, registers.layout.pointer)
                change = self.rules[call](Caller(pid, directory, call, registers.arguments, memory))
                return syscalls.PTRACE_CONT if change is None else self._change(pid, thread, registers, memory, change)
            finally:
                os.close(file)
        except ProcessLookupError:
            raise
        except OSError as error:
            thread.tried_dumpable = thread.tried_region = False
            registers.failed(error.errno or errno.EIO).write(pid, before=True)
            return syscalls.PTRACE_CONT

    def _open_memory(self, directory: str) -> int | None:
        """Open the memory of a thread; None if it is not dumpable. Raises OSError."""
        try:
            return os.open(f"{directory}/mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.proc)
        except PermissionError:
            pass
        try:
            with acting_as(file_identity(self.proc, directory)):
                return os.open(f"{directory}/mem", os.O_RDWR | os.O_CLOEXEC, dir_fd=self.proc)
        except PermissionError:
            return None

    def _make_dumpable(self, pid: int, thread: _Thread, registers: Registers) -> int:
        """Let ``pid`` make itself dumpable: it is not after a change of its user. Raises OSError if it did already."""
        if thread.tried_dumpable:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        thread.tried_dumpable = True
        thread.doing = _Injected(registers, 0)
        registers.replaced("prctl", (syscalls.PR_SET_DUMPABLE, 1, 0, 0, 0)).write(pid, before=True)
        return syscalls.PTRACE_SYSCALL

    def _change(self, pid: int, thread: _Thread, registers: Registers, memory: CallerMemory, change: Change) -> int:
        """Replace the call, or first let ``pid`` map memory for its strings. Raises OSError."""
        block = _Block(memory)
        for each in change.arguments:
            block.add(each)
        if thread.region is not None and thread.region.size < block.size:
            thread.release()
        if block.size and thread.region is None:
            thread.region = thread.space.take(block.size)
        if block.size and thread.region is None:
            if thread.tried_region:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return self._map(pid, thread, registers, block.size)
        if thread.region is not None:
            try:
                memory.write(thread.region.address, block.at(thread.region.address))
            except OSError:  # it is mapped no more
                thread.region = None
                if thread.tried_region:
                    raise
                return self._map(pid, thread, registers, block.size)
        address = 0 if thread.region is None else thread.region.address
        registers.replaced(change.call, block.arguments(address)).write(pid, before=True)
        thread.doing = _Changed(registers)
        thread.tried_dumpable = thread.tried_region = False
        return syscalls.PTRACE_SYSCALL

    def _map(self, pid: int, thread: _Thread, registers: Registers, size: int) -> int:
        size = max(_REGION, (size + _PAGE - 1) & -_PAGE)
        thread.tried_region = True
        thread.doing = _Injected(registers, size)
        arguments = (0, size, _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, registers.layout.mask, 0)
        registers.replaced("mmap", arguments).write(pid, before=True)
        return syscalls.PTRACE_SYSCALL

    def _after_call(self, pid: int) -> None:
        """Handle the end of a call that was injected or changed."""
        thread = self._thread(pid)
        doing, thread.doing = thread.doing, None
        if doing is None:
            return
        after = Registers.read(pid)
        if isinstance(doing, _Changed):
            doing.before.ended(after).write(pid, before=False)
            thread.release()
            return
        if doing.size and not -_PAGE < after.result < 0:
            thread.region = _Region(after.result & after.layout.mask, doing.size)
        doing.before.again().write(pid, before=False)


class _Block:
    """The strings and pointers of a change, as they are laid out in a region."""

    def __init__(self, memory: CallerMemory) -> None:
        self.memory = memory
        self.parts: list[bytes | list[int | bytes]] = []
        """Bytes, or pointers of which some are to parts of this block: their offsets, negative and less one."""
        self.size = 0
        self.values: list[tuple[int, bool]] = []
        """The arguments: values, or offsets in the block."""

    def add(self, argument: int | bytes | Arguments) -> None:
        """Append an argument. Raises OSError for pointers that cannot be read."""
        match argument:
            case int():
                self.values.append((argument, False))
            case bytes():
                self.values.append((self._put(argument), True))
            case Arguments(front, rest):
                words: list[int | bytes] = [
                    each if isinstance(each, int) else -1 - self._put(each + b"\0") for each in front
                ]
                tail = self.memory.pointers(rest) if rest else bytes(self.memory.pointer)
                self.values.append((self.size, True))
                self.parts.append([*words, tail])
                self.size += len(front) * self.memory.pointer + len(tail)

    def at(self, address: int) -> bytes:
        """Return the block's content for a region at ``address``."""
        content = b""
        for part in self.parts:
            if isinstance(part, bytes):
                content += part
                continue
            for each in part:
                if isinstance(each, bytes):
                    content += each
                else:
                    value = each if each >= 0 else address - 1 - each
                    content += value.to_bytes(self.memory.pointer, "little")
        return content

    def arguments(self, address: int) -> tuple[int, ...]:
        return tuple(address + value if within else value for value, within in self.values)

    def _put(self, data: bytes) -> int:
        place = self.size
        padded = data.ljust((len(data) + 7) & ~7, b"\0")
        self.parts.append(padded)
        self.size += len(padded)
        return place


class FileIdentity(msgspec.Struct, frozen=True):
    """The ids by which a thread accesses files."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def file_identity(proc: int, directory: str) -> FileIdentity:
    """Return those of the thread with this directory in ``proc`` (proc_pid_status(5)). Raises OSError."""
    file = os.open(f"{directory}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    with open(file, "rb") as lines:
        found = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in lines if line[:3] in _IDS}
    return FileIdentity(found[b"Uid:"][3], found[b"Gid:"][3], found[b"Groups:"])


_IDS: Final = (b"Uid", b"Gid", b"Gro")


@contextlib.contextmanager
def acting_as(other: FileIdentity) -> Iterator[None]:
    """Access files as ``other`` for the length of the block, in a process with a single thread."""
    own, groups = (os.geteuid(), os.getegid()), os.getgroups()
    if (other.uid, other.gid) == own:
        yield
        return
    with contextlib.suppress(PermissionError):
        os.setgroups(other.groups)
    syscalls.setfsgid(other.gid)
    syscalls.setfsuid(other.uid)
    try:
        yield
    finally:
        syscalls.setfsuid(own[0])
        syscalls.setfsgid(own[1])
        with contextlib.suppress(PermissionError):
            os.setgroups(groups)


def _shares_memory(parent: Registers, event: int) -> bool:
    """Whether the child that the stopped ``parent`` has just made is in the same address space."""
    if parent.call == "clone":
        return bool(parent.arguments[0] & _CLONE_VM)
    # Of clone3(2) the flags are in memory, where they may have changed.
    return event != syscalls.PTRACE_EVENT_FORK
