"""Attack 46 (review): the kernel follows /proc's links while it looks for a program, and found programs of the host.

A step's process held descriptors of host directories until its execve. A program, an entry of PATH, a shell, a ``#!``
or an ELF interpreter that was named through them was the host's file, which the image's own ELF interpreter could then
open and, an execve later, write to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import Base, Kanifold
from sandbox_process import Inside, Node, SandboxProcess

from executor.sandbox import IsolationMode
from platforms import elf
from platforms.host import host

NUMBERS = range(3, 65)
PROCESSES = ("self", "1", "thread-self", "self/task/1")
REACHED = "a program of the host was executed"


@pytest.fixture(scope="module")
def canary(sandbox: SandboxProcess) -> str:
    """The path of a program of the host, from any of the sandbox process's directories."""
    place: str = sandbox.call(_plant_canary)
    return f"../{Path(place).name}/tool"


def _plant_canary(inside: Inside) -> str:
    return inside.plant({"tool": f"#!/bin/sh\necho {REACHED}\n".encode()})


def refused(sandbox: SandboxProcess, spec: dict[str, object], argv: tuple[str, ...], nodes: Mapping[str, Node]) -> None:
    layers = (sandbox.plant(nodes), sandbox.busybox)
    done = sandbox.run(*argv, layers=layers, **spec)
    assert done.ended.code in (126, 127), done
    assert done.ended.error.startswith("exec")
    assert REACHED not in done.out


@pytest.mark.parametrize("process", PROCESSES)
def test_the_program(sandbox: SandboxProcess, canary: str, process: str) -> None:
    specs = [sandbox.spec(f"/proc/{process}/fd/{number}/{canary}") for number in NUMBERS]
    for done in sandbox.run_all(specs):
        assert (done.ended.code, done.out) == (127, ""), done
        assert done.ended.error.startswith("exec: ")


def test_a_directory_of_path(sandbox: SandboxProcess, canary: str) -> None:
    directories = (f"/proc/{process}/fd/{number}/{canary[:-5]}" for number in NUMBERS for process in PROCESSES)
    path = "PATH=" + ":".join([*directories, "."])
    if sandbox.isolation.mode is IsolationMode.ANSWERED:  # where a step has no /proc/self before it runs
        assert sandbox.run("tool", env=(path,), cwd="/proc/self").ended.code == 125
    else:
        refused(sandbox, {"env": (path,), "cwd": "/proc/self"}, ("tool",), {})


def test_the_interpreter_of_a_script(sandbox: SandboxProcess, canary: str) -> None:
    scripts: dict[str, Node] = {
        f"script{number}": f"#!/proc/self/fd/{number}/{canary}\n".encode() for number in NUMBERS
    }
    layers = (sandbox.plant(scripts), sandbox.busybox)
    for done in sandbox.run_all([sandbox.spec(f"/{name}", layers=layers) for name in scripts]):
        assert (done.ended.code, done.out) in ((127, ""), (126, "")), done


def test_the_elf_interpreter(sandbox: SandboxProcess, canary: str) -> None:
    programs: dict[str, Node] = {
        f"program{number}": interpreted(f"/proc/self/fd/{number}/{canary}") for number in NUMBERS
    }
    layers = (sandbox.plant(programs), sandbox.busybox)
    for done in sandbox.run_all([sandbox.spec(f"/{name}", layers=layers) for name in programs]):
        assert (done.ended.code, done.out) in ((127, ""), (126, "")), done
        assert done.ended.error.endswith(("no such file or directory", "not a directory", "permission denied")), done


@pytest.mark.parametrize("link", ["/proc/self/root", "/proc/1/root", "/proc/self/cwd", "/proc/1/cwd/../.."])
def test_the_other_links_of_proc_stay_inside(sandbox: SandboxProcess, canary: str, link: str) -> None:
    outside = sandbox.call(_plant_canary) + "/tool"
    refused(sandbox, {}, (f"{link}/{outside}",), {})
    refused(sandbox, {}, ("/script",), {"script": f"#!{link}/{outside}\n".encode()})


def test_links_that_an_image_has_of_those_of_proc(sandbox: SandboxProcess, canary: str) -> None:
    links: dict[str, Node] = {f"link{number}": ("->", f"/proc/self/fd/{number}/{canary}") for number in NUMBERS}
    layers = (sandbox.plant(links), sandbox.busybox)
    for done in sandbox.run_all([sandbox.spec(f"/{name}", layers=layers) for name in links]):
        assert (done.ended.code, done.out) == (127, ""), done


def interpreted(path: str) -> bytes:
    """An executable of this host whose ELF interpreter is at ``path``."""
    program = bytearray(elf.program(host().architecture))
    if program[4] != 2:
        pytest.skip("written for 64-bit ELF files")
    order = "<" if program[5] == 1 else ">"
    # The second program header, which asks for a stack, becomes PT_INTERP.
    text = path.encode() + b"\0"
    struct.pack_into(f"{order}IIQQQQQQ", program, 64 + 56, 3, 4, len(program), 0, 0, len(text), len(text), 1)
    return bytes(program) + text


# -- the same by what a Dockerfile and a base image say ----------------------------------------------------------------


@pytest.fixture(params=["kanifold", "kanifold_as_user", "kanifold_as_bare_user"])
def command(request: pytest.FixtureRequest) -> Kanifold:
    """The command on every mode."""
    found: Kanifold = request.getfixturevalue(request.param)
    return found


def test_of_a_dockerfile_and_of_a_base(
    command: Kanifold, busybox: Base, context: Callable[[Mapping[str, str | bytes]], Path]
) -> None:
    folder = command.folder("canary")
    tool = folder / "tool"
    tool.write_text(f"#!/bin/sh\necho {REACHED}\n")
    tool.chmod(0o755)
    path = ":".join(f"/proc/self/fd/{number}{'/..' * 12}{folder}" for number in NUMBERS)
    ways = [f'ENV PATH={path}\nRUN ["tool"]']
    ways += [f'SHELL ["/proc/self/fd/{number}{"/.." * 12}{tool}"]\nRUN true' for number in (11, 12, 13, 14)]
    for way in ways:
        folder = context({"Dockerfile": f"FROM {busybox.ref}\n{way}\n"})
        done = command.run("build", folder, "--platform", "linux/amd64")
        assert done.code == 1, (way, done.said)
        assert REACHED not in done.said
        assert "exec: " in done.said

    base = command.home / "evil"
    text = f"FROM {busybox.ref}\nENV PATH={path}:/bin\n"
    command(
        "build", context({"Dockerfile": text}), "--platform", "linux/amd64", "-o", f"type=oci,dest={base},tar=false"
    )
    victim = 'FROM evil\nRUN ["tool"]\n'
    done = command.run(
        "build", context({"Dockerfile": victim}), "--platform", "linux/amd64",
        "--build-context", f"evil=oci-layout://{base}",
    )  # fmt: skip
    assert done.code == 1
    assert "executable file not found" in done.said
    assert REACHED not in done.said
