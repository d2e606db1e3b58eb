"""What the kernel would start for a path: ``#!`` lines as fs/binfmt_script.c reads them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from executor.supervised import programs
from executor.supervised.programs import Interpreter
from platforms import elf


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"#!/bin/sh\n", Interpreter(b"/bin/sh")),
        (b"#! \t/bin/sh\t -e  -u \t\nrest", Interpreter(b"/bin/sh", b"-e  -u")),
        (b"#!sh\n", Interpreter(b"sh")),
        (b"#!/bin/sh", Interpreter(b"/bin/sh")),  # the file ends
        (b"#!/bin/sh -x", Interpreter(b"/bin/sh", b"-x")),
        (b"#!/bin/sh\0-x\n", Interpreter(b"/bin/sh")),
        (b"#!/bin/sh\r\n", Interpreter(b"/bin/sh\r")),
        (b"#!/" + b"x" * 252 + b"\n", Interpreter(b"/" + b"x" * 252)),  # 256 bytes
        (b"#!/" + b"x" * 300 + b"\n", None),  # its end is not known
        (b"#!/bin/sh " + b"x" * 300 + b"\n", Interpreter(b"/bin/sh", b"x" * 245)),
        (b"#!\n", None),
        (b"#!   \n", None),
        (b"#!" + b" " * 300, None),
        (b"# !/bin/sh\n", None),
        (b"", None),
        (b"#", None),
        (elf.program("arm64"), None),
    ],
)
def test_interpreters(head: bytes, expected: Interpreter | None) -> None:
    assert programs.interpreter(head) == expected


class Root:
    """A directory as ``opened`` of ``find``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, data: bytes) -> None:
        (self.path / name).write_bytes(data)

    def __call__(self, path: bytes) -> int:
        return os.open(self.path / os.fsdecode(path), os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = Root(tmp_path)
    made.write("program", elf.program("arm64"))
    return made


def test_a_program(root: Root) -> None:
    found = programs.find(b"program", b"program", root)
    os.close(found.file)
    assert (found.path, found.front, elf.architecture(found.head)) == (b"program", None, "arm64")


def test_a_script_of_a_script(root: Root) -> None:
    root.write("inner", b"#!program -i\n")
    root.write("outer", b"#!inner -o\n")
    found = programs.find(b"outer", b"/dev/fd/5/outer", root)
    os.close(found.file)
    assert found.path == b"program"
    assert found.front == (b"program", b"-i", b"inner", b"-o", b"/dev/fd/5/outer")


def test_as_many_scripts_as_the_kernel_follows(root: Root) -> None:
    root.write("s0", b"#!program\n")
    for number in range(1, 7):
        root.write(f"s{number}", b"#!s%d\n" % (number - 1))
    found = programs.find(b"s4", b"s4", root)
    os.close(found.file)
    assert found.front == (b"program", b"s0", b"s1", b"s2", b"s3", b"s4")
    with pytest.raises(OSError) as raised:
        programs.find(b"s5", b"s5", root)
    assert raised.value.errno == errno.ELOOP


def test_a_script_that_is_its_own_interpreter_ends(root: Root) -> None:
    root.write("loop", b"#!loop\n")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="symbolic links"):
        programs.find(b"loop", b"loop", root)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_interpreter_is_the_openers_error(root: Root) -> None:
    root.write("script", b"#!missing\n")
    with pytest.raises(FileNotFoundError):
        programs.find(b"script", b"script", root)
