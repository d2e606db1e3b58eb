"""The program that executes a step's own, on every architecture that kanifold runs on."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from executor.sandbox import report, starter, targets
from platforms import binfmt, elf
from platforms.host import host


def run(architecture: str, folder: Path, *arguments: str) -> tuple[int, bytes, bytes]:
    """Run it with these arguments: its status, its output, and what it reports."""
    file = folder / "starter"
    file.write_bytes(starter.program(architecture))
    file.chmod(0o755)
    program, argv = str(file), list(arguments)
    if architecture != host().architecture:
        program = f"/usr/bin/qemu-{binfmt.QEMU[architecture]}-static"
        if not os.path.exists(program):
            pytest.skip(f"no {program} (ci/packages installs it on Debian, as root)")
        argv = [program, "-0", arguments[0], str(file), *arguments[1:]]
    out, out_write = os.pipe()
    told, told_write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.dup2(out_write, 1)
            os.dup2(told_write, report.FD)
            os.execve(program, argv, {"A": "1", "B": "2"})
        finally:
            os._exit(1)
    os.close(out_write)
    os.close(told_write)
    with open(out, "rb") as output, open(told, "rb") as pipe:
        seen = output.read(), pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *seen


@pytest.mark.parametrize("architecture", starter.CODE)
def test_it_executes_with_arguments_and_environment(architecture: str, tmp_path: Path) -> None:
    said = 'echo "$0|$1|$2|$A$B"; ls -l /proc/self/fd/3'
    code, out, reported = run(architecture, tmp_path, "/bin/sh", "name", "-c", said, "zero", "one", "two words")
    assert out.decode() == "zero|one|two words|12\n"
    assert code != 0  # of ls: the report's descriptor is closed
    assert reported == b""


@pytest.mark.parametrize("architecture", starter.CODE)
def test_it_reports_why_it_cannot(architecture: str, tmp_path: Path) -> None:
    code, out, reported = run(architecture, tmp_path, "/no/such/program", "name")
    assert (code, out) == (127, b"")
    order = "<" if elf.MACHINES[architecture].little else ">"
    assert struct.unpack(f"{order}i", reported) == (-2,)


def test_an_architecture_without_one_is_said_to_be_unknown() -> None:
    with pytest.raises(OSError, match="mips64, is unknown"):
        starter.program("mips64")


def test_the_last_word_counts_and_an_errno_makes_it_final() -> None:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            told = report.StartReporter(write)
            root = targets.Root.__new__(targets.Root)
            root.made, root.touched = [("etc/hosts", 5)], {}
            told.mounted(root, "")
            told.refused(125, "first")
            told.executing("/bin/tool")
            os.write(report.FD, struct.pack("=i", -13))
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    seen = report.read(read)
    assert (seen.code, seen.error) == (report.NOT_EXECUTABLE, "exec /bin/tool: permission denied")
    assert seen.made == (("etc/hosts", 5),)
