"""The listener of a seccomp filter: calls of another process are received and answered."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable

from executor.sandbox import seccomp
from executor.sandbox.listener import Listener, SystemCall
from platforms import syscalls
from platforms.descriptors import receive_fds

_PR_SET_NO_NEW_PRIVS = 38
_CALLS = "mkdirat 258 296 34 323 287 289 34\n"


def answered(answer: Callable[[Listener, SystemCall], None], call: Callable[[], object]) -> object:
    """Run ``call`` in a child whose mkdirat(2) is handed to ``answer``; return its result, or its errno."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        return _answered(answer, call, ours, theirs)


def _answered(
    answer: Callable[[Listener, SystemCall], None],
    call: Callable[[], object],
    ours: socket.socket,
    theirs: socket.socket,
) -> object:
    calls = seccomp.calls(_CALLS)
    child = os.fork()
    if child == 0:
        try:
            syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)
            (_, number), *_ = [each for each, (spoken, _) in calls.items() if spoken == os.uname().machine]
            lines = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x7FC00000), (0x06, 0, 0, 0x7FFF0000))
            code = b"".join(struct.pack("=HBBI", *each) for each in lines)
            socket.send_fds(theirs, [b"-"], [syscalls.seccomp_filter(code, syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER)])
            theirs.recv(1)
            try:
                result = call()
            except OSError as error:
                result = f"errno {error.errno}"
            theirs.send(str(result).encode())
        finally:
            os._exit(0)
    _, (fd,) = receive_fds(ours, 1, 1)
    ours.send(b"-")
    listener = Listener(fd, calls)
    while (received := listener.receive()) is not None:
        answer(listener, received)
    os.close(fd)
    assert os.waitpid(child, 0) == (child, 0)
    return ours.recv(100).decode()


def _mkdirat(path: int | bytes) -> Callable[[], object]:
    return lambda: ctypes.CDLL(None, use_errno=True).mkdirat(syscalls.AT_FDCWD, path, 0o700)


def _make() -> None:
    os.mkdir("x", dir_fd=os.open("/proc", os.O_RDONLY))


def test_a_call_returns_what_it_is_answered() -> None:
    assert answered(lambda listener, call: listener.answer(call, 7), _mkdirat(b"/x")) == "7"


def test_a_call_fails_with_the_errno_that_it_is_answered() -> None:
    failing = answered(lambda listener, call: listener.answer(call, error=errno.EDQUOT), _make)
    assert failing == f"errno {errno.EDQUOT}"


def test_a_descriptor_is_added_and_returned() -> None:
    def answer(listener: Listener, call: SystemCall) -> None:
        file = os.memfd_create("x")
        os.write(file, b"content")
        listener.add_descriptor(call, file)
        os.close(file)

    assert answered(answer, lambda: os.pread(int(str(_mkdirat(b"/x")())), 10, 0)) == "b'content'"


def test_a_descriptor_that_cannot_be_added_fails_the_call() -> None:
    def answer(listener: Listener, call: SystemCall) -> None:
        file = os.open("/", os.O_PATH)
        listener.add_descriptor(call, file)
        os.close(file)

    assert answered(answer, _make) == f"errno {errno.EBADF}"


def test_the_memory_of_the_caller_is_read_and_written() -> None:
    text = ctypes.create_string_buffer(b"/name", 9000)

    def answer(listener: Listener, call: SystemCall) -> None:
        assert (call.name, call.pid > 0) == ("mkdirat", True)
        assert listener.string(call, call.arguments[1]) == b"/name"
        assert listener.read(call, call.arguments[1], 8000) == b"/name".ljust(8000, b"\0")
        listener.write(call, call.arguments[1], b"x" * 8000)
        listener.answer(call)

    def change() -> str:
        ctypes.CDLL(None).mkdirat(syscalls.AT_FDCWD, text, 0o700)
        return str(len(text.value))

    assert answered(answer, change) == "8000"


def test_invalid_addresses_are_an_error() -> None:
    found = []

    def answer(listener: Listener, call: SystemCall) -> None:
        for attempt in (
            lambda: listener.string(call, 8),
            lambda: listener.read(call, 8, 8),
            lambda: listener.write(call, 8, b"x"),
        ):
            try:
                attempt()
            except OSError as error:
                found.append(error.errno)
        listener.proceed(call)

    answered(answer, _make)
    assert found == [errno.EFAULT] * 3


def test_a_string_without_an_end_is_too_long() -> None:
    failing: list[int | None] = []

    def answer(listener: Listener, call: SystemCall) -> None:
        try:
            listener.string(call, call.arguments[1])
        except OSError as error:
            failing.append(error.errno)
        listener.answer(call)

    assert answered(answer, _mkdirat(b"x" * 5000)) == "0"
    assert failing == [errno.ENAMETOOLONG]
