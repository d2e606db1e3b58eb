"""The tracer on a real arm64 machine: it starts programs for amd64 by ``echo``, which prints what an emulator gets."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from arm_machine import ArmMachine

from orchestrator.nodes import wheels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="the disk of the machine has files of all users"),
]

CODE = Path(__file__).parents[2]
TRACING = r"""
import os, sys
sys.path.insert(0, "/tmp/code")
from executor.sandbox import seccomp
from executor.supervised.foreign_programs import ForeignPrograms
from executor.supervised.tracer import Tracer
from platforms import elf, probe, syscalls

assert probe.traces() == ""
for path, content in (("/tmp/foreign", elf.program("amd64")), ("/tmp/script", b"#!/tmp/foreign -a b\n")):
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, 0o755)
ready, go = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(ready, 1)
    syscalls.no_new_privileges()
    syscalls.seccomp_filter(seccomp.program(confined=False, traced=seccomp.EXECUTING))
    os.execv(sys.executable, ["python3", "/tmp/code/traced.py"])
proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
rule = ForeignPrograms("amd64", "/bin/echo", proc)
tracer = Tracer({"execve": rule, "execveat": rule}, proc)
tracer.seize(pid)
os.write(go, b"1")
assert tracer.run(pid) == 0
assert not tracer.threads
"""
TRACED = r"""
import ctypes, os, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
subprocess.run(["/tmp/foreign", "1", "2"])
subprocess.run(["/tmp/script", "3"])
for path, arguments in (("/none", []), ("/tmp/foreign", ["x" * 131000] * 60)):
    try:
        os.execv(path, [path, *arguments])
    except OSError as error:
        print(error.errno, flush=True)
libc.execve(ctypes.c_void_p(8), None, None)
print(ctypes.get_errno(), flush=True)
pid = libc.syscall(220, 0x00800000 | 17, 0, 0, 0, 0)  # clone(CLONE_UNTRACED)
if not pid:
    os.execv("/tmp/foreign", ["untraced"])
os.waitpid(pid, 0)
right = []
def start(number):
    given = [str(each) for each in range(number)]
    for _ in range(3):
        said = subprocess.run(["/tmp/foreign", *given], capture_output=True, text=True).stdout
        right.append(said.split() == ["-0", "/tmp/foreign", "/tmp/foreign", *given])
threads = [threading.Thread(target=start, args=(each,)) for each in range(6)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(len(right), all(right), flush=True)
threading.Thread(target=os.execv, args=("/tmp/foreign", ["thread"])).start()
threading.Event().wait()
"""
PRINTED = """\
-0 /tmp/foreign /tmp/foreign 1 2
-0 /tmp/foreign /tmp/foreign -a b /tmp/script 3
2
7
14
-0 untraced /tmp/foreign
18 True
-0 thread /tmp/foreign
"""


def test_programs_are_started_with_the_registers_of_arm64(arm_machine: ArmMachine, tmp_path: Path) -> None:
    target = wheels.target(".cpython-311-aarch64-linux-gnu.so", "glibc 2.36")
    assert target is not None
    (wheel,) = wheels.fetch(["msgspec"], target, str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "wheel")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for each in (CODE / "executor", CODE / "platforms", tmp_path / "wheel/msgspec"):
            tar.add(each, f"code/{each.name}")
        for name, text in (("tracing.py", TRACING), ("traced.py", TRACED)):
            (tmp_path / name).write_text(text)
            tar.add(tmp_path / name, f"code/{name}")
    command = ("ssh", arm_machine.name, "tar -xf - -C /tmp && python3 /tmp/code/tracing.py")
    done = subprocess.run(
        command, input=buffer.getvalue(), env=arm_machine.environment, capture_output=True, check=False, timeout=200
    )
    assert (done.stdout.decode(), done.stderr.decode()) == (PRINTED, "")
