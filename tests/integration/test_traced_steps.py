"""Steps whose foreign programs a tracer starts, as ordinary programs and hostile ones meet it.

A step has busybox for arm64, and this machine's own Python, which is not emulated, for what no shell can do. It runs
where no handler of binfmt_misc exists.
"""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Iterator

import bases
import pytest
from ordinary_user import User
from sandbox_process import QEMU, Done, SandboxProcess, opened

from executor.sandbox import Bind, Tmpfs
from platforms import elf
from platforms.emulation import Emulation, EmulationMode

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="needs Linux on x86-64"),
    pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}"),
]

APPLETS = "sh true echo cat id seq xargs sleep kill env chmod chroot mkdir cp cut grep ls mkfifo su wc"
NAMESPACES = ("namespaces", "mapped", "single")
TRACED = Emulation(EmulationMode.TRACED, "arm64", str(QEMU))
HOST = (Bind("/usr", "/usr", readonly=True),)


@pytest.fixture(
    scope="module",
    params=[
        "root",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("mapped", "single", "chroot", "answered")),
    ],
)
def sandbox(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    user: User | None = None
    if request.param in ("root", "chroot") and os.geteuid() != 0:
        pytest.skip("needs root")
    if request.param not in ("root", "chroot"):
        user = request.getfixturevalue("_user_with_ids" if request.param == "mapped" else "_user_without_ids")
    with opened(user, TRACED, mode=request.param if request.param in ("chroot", "answered") else "") as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def layer(sandbox: SandboxProcess) -> str:
    """busybox for arm64, and a program that ends with the number of its arguments."""
    try:
        archive = bases.busybox_layer("linux/arm64")
    except bases.UnavailableError as reason:
        pytest.skip(str(reason))
    with tarfile.open(archive.path) as files:
        program = files.extractfile(next(each for each in files if each.name.endswith("bin/busybox") and each.isreg()))
        assert program is not None
        content = program.read()
    links = {f"bin/{each}": ("->", "busybox") for each in APPLETS.split()}
    passwd = "root:x:0:0::/:/bin/sh\njoe:x:1000:1000::/:/bin/sh\n"
    return sandbox.plant(
        {
            **links,
            "bin/busybox": content,
            "bin/count": elf.program("arm64"),
            "etc/passwd": passwd,
            "etc/group": "root:x:0:\njoe:x:1000:\n",
            "tmp": ("d", "1777"),
            "usr": None,
            "lib": ("->", "usr/lib"),
            "lib64": ("->", "usr/lib64"),
        }
    )


def shell(sandbox: SandboxProcess, layer: str, script: str, **spec: object) -> Done:
    return sandbox.run("/bin/sh", "-c", script, layers=(layer,), **spec)


def python(sandbox: SandboxProcess, layer: str, script: str) -> Done:
    """Run the script natively: it starts foreign programs by execve(2) itself."""
    if sandbox.isolation.mode not in NAMESPACES:
        pytest.skip("a directory that is mounted there is moved into the root: this machine's must not be")
    return sandbox.run("/usr/bin/python3", "-c", script, layers=(layer,), mounts=HOST)


def test_a_shell_of_another_architecture(sandbox: SandboxProcess, layer: str) -> None:
    done = shell(
        sandbox,
        layer,
        """
        for each in 1 2 3; do /bin/echo $each; done
        printf '#!/bin/sh\\necho script $0 $*\\n' > /tmp/s; chmod +x /tmp/s; cd /tmp; ./s a; PATH=/tmp:$PATH s b
        printf '#!/tmp/s -x  y\\n' > /tmp/t; chmod +x t; ./t c
        printf '#!/missing\\n' > bad; chmod +x bad; ./bad; echo missing=$?
        chmod -x s; ./s; echo forbidden=$?; /tmp; echo directory=$?; ./none; echo none=$?
        seq 40 | xargs -n 7 -P 3 echo | wc -l
        sh -c 'exit 7'; echo $?; sh -c 'kill -9 $$'; echo $?
        count 1 2 3; echo arguments=$?; cp /bin/count ./-n; PATH=.; -n 1; echo dash=$?
        """,
    )
    assert done.ended.code == 0, done.err
    assert done.out.split("\n")[:-1] == [
        *("1", "2", "3", "script ./s a", "script /tmp/s b", "script /tmp/s -x y ./t c"),
        *("missing=127", "forbidden=126", "directory=126", "none=127", "6", "7", "137", "arguments=4", "dash=2"),
    ]
    assert not [each for each in done.diff if each.startswith("dev")]


def test_job_control(sandbox: SandboxProcess, layer: str) -> None:
    done = shell(
        sandbox,
        layer,
        """
        trap 'echo trapped' USR1; sh -c "kill -USR1 $$"
        sleep 60 & set -- $!
        kill -STOP $1; until cut -d' ' -f3 /proc/$1/stat | grep -iq t; do :; done; echo stopped
        kill -CONT $1; while cut -d' ' -f3 /proc/$1/stat | grep -iq t; do :; done; echo continued
        kill $1; wait $1; echo $?
        """,
    )
    assert done.out.split() == ["trapped", "stopped", "continued", "143"], done.err


@pytest.mark.parametrize("target", ["/dev", "/dev/pts"])
def test_a_mount_on_dev_does_not_hide_the_emulator(sandbox: SandboxProcess, layer: str, target: str) -> None:
    done = shell(sandbox, layer, f"/bin/echo run; /bin/true >{target}/x", mounts=(Tmpfs(target),))
    assert (done.out, done.ended.code, done.err) == ("run\n", 0, "")


def test_other_users(sandbox: SandboxProcess, layer: str) -> None:
    if sandbox.isolation.mode == "single":
        pytest.skip("there is no other user")
    done = shell(
        sandbox, layer, "su joe -c 'id -u; sh -c \"id -u\"'; mkdir -m 700 /p; cp /bin/true /p; su joe -c /p/true"
    )
    assert done.out.split() == ["1000", "1000"]
    if sandbox.isolation.mode != "answered":  # there all files are the one user's, whoever a process is
        assert "Permission denied" in done.err
    assert shell(sandbox, layer, "id -u; sh -c 'id -g'", uid=1000, gid=1000).out.split() == ["1000", "1000"]


NATIVE = """
import ctypes, os, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def code(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_native_programs_start_foreign_ones(sandbox: SandboxProcess, layer: str) -> None:
    done = python(
        sandbox,
        layer,
        NATIVE
        + """
run = lambda *a, **k: subprocess.run(a, **k).returncode      # a child of vfork(2)
print(run("/bin/count", "x"), run("anything", executable="/bin/count"), run(executable="/bin/count", *"123456"))
print(run("/bin/count", *["x" * 1000] * 99), run("/bin/count", cwd="/tmp"), run("./count", cwd="/bin"))
os.chdir("/bin")
file = os.open("count", os.O_RDONLY)
os.set_inheritable(file, True)
if not (pid := os.fork()): os.execve(file, ["a", "b"], {})       # execveat(2) with AT_EMPTY_PATH
print(code(pid))
root = os.open("/", os.O_PATH)
os.set_inheritable(root, True)
if not (pid := os.fork()):
    libc.syscall(322, root, b"bin/count", (ctypes.c_char_p * 2)(b"a", None), None, 0)
    os._exit(ctypes.get_errno())
print(code(pid))
os.set_inheritable(file, False)                                  # as with binfmt_misc: nobody could open it
if not (pid := os.fork()):
    try: os.execve(file, ["a", "b"], {})
    except OSError as error: os._exit(100 + error.errno)
print(code(pid))
if not (pid := os.fork()):
    libc.execve(b"/bin/count", None, None)
    os._exit(99)
print(code(pid))
def elsewhere(): os.execv("/bin/count", ["from", "a", "thread"])
if not (pid := os.fork()):
    threading.Thread(target=elsewhere).start()
    threading.Event().wait()
print(code(pid))
""",
    )
    assert done.out.split() == ["2", "1", "6", "100", "1", "1", "2", "1", "102", "1", "3"], done.err


def test_concurrent_children_of_vfork_get_their_own_arguments(sandbox: SandboxProcess, layer: str) -> None:
    done = python(
        sandbox,
        layer,
        NATIVE
        + """
wrong = []
def start(number):
    for each in range(4):
        if (found := subprocess.run(["/bin/count", *["x"] * (number * 9 + each)]).returncode) != number * 9 + each + 1:
            wrong.append((number, each, found))
threads = [threading.Thread(target=start, args=(each,)) for each in range(12)]
for each in threads: each.start()
for each in threads: each.join()
maps = [line for line in open("/proc/self/maps") if line.split()[-1].isdigit() and " 00:00 0" in line]
print(wrong, len(maps) < 200)
""",
    )
    assert done.out.split() == ["[]", "True"], done.err


def test_calls_that_fail_leave_the_caller_as_it_was(sandbox: SandboxProcess, layer: str) -> None:
    done = python(
        sandbox,
        layer,
        NATIVE
        + """
def tried(path, *arguments):
    try: os.execv(path, [path, *arguments])
    except OSError as error: return error.errno
os.symlink("count", "/tmp/dangling")
os.mkfifo("/tmp/fifo", 0o777)
open("/tmp/script", "w").write("#!/tmp/dangling\\n"); os.chmod("/tmp/script", 0o755)
open("/tmp/loop", "w").write("#!/tmp/loop\\n"); os.chmod("/tmp/loop", 0o755)
open("/tmp/text", "w").write("text\\n"); os.chmod("/tmp/text", 0o755)
for _ in range(3):
    print(*[tried(each) for each in ("/none", "/tmp", "/tmp/dangling", "/tmp/fifo", "/tmp/script", "/tmp/loop",
          "/tmp/text", "/etc/passwd", "/bin/count/x", "x" * 4096, "/proc/self/environ", "/dev/null")])
    print(tried("/bin/count", *["x" * 131000] * 60), tried("/bin/count", "x" * 131073))
    libc.execve(ctypes.c_void_p(8), None, None); print(ctypes.get_errno())
    libc.execve(b"/bin/count", ctypes.c_void_p(8), None); print(ctypes.get_errno())
    libc.syscall(322, -1, b"bin/count", None, None, 0); print(ctypes.get_errno())
    checked = libc.syscall(322, -100, b"/bin/count", None, None, 0x10000)   # AT_EXECVE_CHECK
    print(checked == 0 or ctypes.get_errno() == 22)
""",
    )
    assert done.ended.code == 0, done.err
    assert done.out.split("\n")[:-1] == ["2 13 2 13 2 40 8 13 20 36 13 13", "7 7", "14", "14", "9", "True"] * 3, (
        done.err
    )


def test_processes_cannot_leave_their_tracer(sandbox: SandboxProcess, layer: str) -> None:
    """A process that asks not to be traced starts foreign programs as any other, and none can trace another."""
    done = python(
        sandbox,
        layer,
        NATIVE
        + """
pid = libc.syscall(56, 0x00800000 | 17, 0, 0, 0, 0)               # CLONE_UNTRACED
if not pid: os.execv("/bin/count", ["a", "b", "c", "d"])
print(code(pid))
libc.ptrace(0, 0, 0, 0); print(ctypes.get_errno())                  # PTRACE_TRACEME
""",
    )
    assert done.out.split() == ["4", "1"], done.err


def test_a_filter_of_the_steps_own_gets_no_tracer(sandbox: SandboxProcess, layer: str) -> None:
    done = python(
        sandbox,
        layer,
        NATIVE
        + """
import struct
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, 110), (0x06, 0, 0, 0x7FF00000), (0x06, 0, 0, 0x7FFF0000)]   # getppid
code_ = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in lines))
program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(lines), ctypes.addressof(code_)))
libc.prctl(38, 1, 0, 0, 0)
assert libc.syscall(317, 1, 0, program) == 0
print(libc.syscall(110), ctypes.get_errno(), flush=True)
os.execv("/bin/echo", ["echo", "still"])
""",
    )
    assert done.out.split() == ["-1", "38", "still"], done.err


def test_memory_that_changes_while_it_is_read(sandbox: SandboxProcess, layer: str) -> None:
    """Threads change the path and the arguments of a call, and unmap what the tracer has mapped: any result is right
    but one that ends the tracer, and with it the step."""
    done = python(
        sandbox,
        layer,
        NATIVE
        + """
path = ctypes.create_string_buffer(b"/bin/count", 32)
argv = (ctypes.c_void_p * 64)(*[ctypes.addressof(path)] * 63)
def change():
    while True:
        ctypes.memmove(path, b"/tmp", 5); ctypes.memmove(path, b"/bin/count", 11)
        argv[20] = None; argv[20] = 8; argv[20] = ctypes.addressof(path)
def unmap():
    while True:
        for line in open("/proc/self/maps"):
            first, last = (int(each, 16) for each in line.split()[0].split("-"))
            if last - first == 16384 and " rw-p 00000000 00:00 0" in line: libc.munmap(ctypes.c_void_p(first), 16384)
for _ in range(12):
    if not (pid := os.fork()):
        for each in (change, unmap): threading.Thread(target=each, daemon=True).start()
        for _ in range(200): libc.execve(path, argv, None)
        os._exit(0)
    code(pid)
print("alive", subprocess.run(["/bin/count"]).returncode)
""",
    )
    assert done.out.split() == ["alive", "1"], done.err


def test_processes_that_are_killed_at_any_moment(sandbox: SandboxProcess, layer: str) -> None:
    done = python(
        sandbox,
        layer,
        NATIVE
        + """
import random, signal, time
random.seed(1)
for _ in range(30):
    if not (pid := os.fork()):
        while True:
            if not (child := os.fork()): os.execv("/bin/count", ["x"] * 50)
            os.waitpid(child, os.WNOHANG)
    time.sleep(random.random() / 100)
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
print("alive", subprocess.run(["/bin/count"]).returncode)
""",
    )
    assert done.out.split() == ["alive", "1"], done.err


def test_a_step_that_is_cancelled_ends_with_all_its_processes(sandbox: SandboxProcess, layer: str) -> None:
    spec = sandbox.spec("/bin/sh", "-c", "sleep 1000 & sleep 1000 & echo begun; wait", layers=(layer,))
    done = sandbox.run_until(spec, "begun", "cancel")
    assert done.ended.error == "cancelled"
    assert shell(sandbox, layer, "echo next").out == "next\n"


def test_background_processes_end_with_the_step(sandbox: SandboxProcess, layer: str) -> None:
    assert shell(sandbox, layer, "sleep 1000 & echo done").out == "done\n"
