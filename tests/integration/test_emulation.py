"""Emulation modes on a real kernel: namespaces, handlers, and programs of other architectures.

Each test that changes anything does it in a forked child, in namespaces that end with it. Those marked ``ids`` run
twice where root runs them: as root, and as an ordinary user (nobody), who is mapped to root of the new namespace.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import struct
import subprocess
import sys
import tarfile
import traceback
from pathlib import Path

import pytest
from msgspec.structs import replace

from platforms import binfmt, elf, emulation, probe, syscalls
from platforms.emulation import Emulation, EmulationMode
from platforms.errors import EnvironmentUnfit, UsageError
from platforms.host import COMPAT, host
from platforms.parsing import parse
from platforms.platform import Platform, normalise

sys.path.append(str(Path(__file__).parent.parent))  # for ``bases``

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")

ORDINARY = pwd.getpwnam("nobody")
FOREIGN = [each for each in elf.MACHINES if each != host().architecture]
PLATFORMS = ("linux/arm64", "linux/arm/v7", "linux/386", "linux/riscv64", "linux/ppc64le", "linux/s390x")


def forked(work):
    """Run ``work`` in a child of its own and return the text that it returns; its exceptions fail the test."""
    report, child_report = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            for cached in (emulation._choose, probe.executes, probe.executes_privately, probe.traces):
                cached.cache_clear()
            text, status = str(work()), 0
        except BaseException:
            text, status = traceback.format_exc(), 1
        os.write(child_report, text.encode())
        os._exit(status)
    os.close(child_report)
    with open(report, encoding="utf-8") as stream:
        text = stream.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, text
    return text


def enter(user=None):
    """Become ``user`` if one is given, then root of a new user and mount namespace, with one id mapped."""
    if user:
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        syscalls.set_dumpable(True)  # or /proc/self/uid_map would be root's
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def output(*command, root=None, argv0=None):
    """What ``command`` prints when it is run, by a child, with ``root`` (a descriptor) as its root directory."""
    report, child_report = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.dup2(child_report, 1)
            os.dup2(child_report, 2)
            if root is not None:
                os.fchdir(root)
                os.chroot(".")
            os.execve(command[0], (argv0 or command[0], *command[1:]), {"PATH": "/bin"})
        except OSError as error:
            os.write(2, str(error.strerror).encode())
        finally:
            os._exit(127)
    os.close(child_report)
    with open(report, encoding="utf-8") as stream:
        text = stream.read().strip()
    os.waitpid(pid, 0)
    return text


def ids(test):
    """Run ``test(user)`` as this user (None), and as an ordinary one too when this one is root."""
    users = [pytest.param(None, id="root" if os.geteuid() == 0 else "ordinary")]
    if os.geteuid() == 0:
        users.append(pytest.param(ORDINARY, id="ordinary"))
    return pytest.mark.parametrize("user", users)(test)


@functools.cache
def unprivate():
    """Why the private mode cannot be had on this machine; "" when it can."""
    foreign = next(each for each in FOREIGN if each != "386")
    qemu = binfmt.find_qemu(foreign)
    return probe.executes_privately(foreign, qemu) if qemu else "qemu-user-static is not installed"


needs_private = pytest.mark.skipif(bool(unprivate()), reason=f"no private binfmt_misc: {unprivate()}")


@pytest.fixture(scope="session")
def busybox(tmp_path_factory):
    """``busybox(platform)``: a descriptor of a root file system of that platform's busybox."""
    import bases

    kept = {}

    def root(platform):
        if platform not in kept:
            try:
                layer = bases.busybox_layer(platform)
            except bases.UnavailableError as reason:
                pytest.skip(str(reason))
            directory = tmp_path_factory.mktemp("busybox")
            with tarfile.open(layer.path) as archive:
                archive.extraction_filter = getattr(
                    tarfile, "fully_trusted_filter", None
                )  # Debian 12's Python has none
                archive.extractall(directory)
            directory.chmod(0o755)
            kept[platform] = os.open(directory, os.O_PATH | os.O_DIRECTORY)
        return kept[platform]

    yield root
    for each in kept.values():
        os.close(each)


# -- running --------------------------------------------------------------------------------------------------------


@needs_private
@ids
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_step_of_another_platform_runs_in_its_own_root(platform, user, busybox):
    root = busybox(platform)
    chosen = emulation.emulation(parse(platform))

    def step():
        enter(user)
        held = emulation.register_private([chosen])
        # Every stage of the pipe is a program of its own that the kernel must find the handler for again.
        text = output("/bin/sh", "-c", "echo $((6*7)) | sed s/4/four-/ | cat; uname -m", root=root)
        assert (held is None) == (chosen.mode is not EmulationMode.PRIVATE)
        return text

    words = forked(step).split()
    assert words[0] == "four-2"
    machines = {"arm64": "aarch64", "arm": "armv7l", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}
    if chosen.mode is EmulationMode.PRIVATE:
        assert words[1] == machines[chosen.architecture]


@needs_private
@ids
@pytest.mark.parametrize("architecture", FOREIGN)
def test_every_architecture_of_the_table_runs(architecture, user):
    interpreter = binfmt.find_qemu(architecture)
    if interpreter is None:
        pytest.skip(f"no qemu-{binfmt.QEMU[architecture]}")

    def work():
        if user:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            syscalls.set_dumpable(True)
        return probe.executes_privately(architecture, interpreter)

    assert forked(work) == ""


@needs_private
def test_programs_see_the_name_they_were_called_by(busybox):
    root = busybox("linux/arm64")
    chosen = emulation.emulation(parse("linux/arm64"))

    def step():
        enter()
        held = emulation.register_private([chosen])
        text = output("/bin/busybox", "as", "echo", root=root, argv0="echo")
        os.close(held)
        return text

    assert forked(step) == "as echo"


@needs_private
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to map more than one id")
def test_set_user_id_programs_get_their_owners_rights(tmp_path_factory):
    root = tmp_path_factory.mktemp("setuid")
    root.chmod(0o755)
    # mov x8, 175 (geteuid); svc; mov x8, 93 (exit); svc: exits with its effective user id
    code = b"".join(each.to_bytes(4, "little") for each in (0xD28015E8, 0xD4000001, 0xD2800BA8, 0xD4000001))
    program = elf.program("arm64", code)
    for name, mode in (("plain", 0o755), ("setuid", 0o4755)):
        (root / name).write_bytes(program)
        os.chown(root / name, 7, 7)
        (root / name).chmod(mode)
    chosen = emulation.emulation(parse("linux/arm64"))
    ready, mapped = os.pipe(), os.pipe()

    def status(directory, name):
        if (pid := os.fork()) == 0:
            try:
                os.fchdir(directory)
                os.setgid(1000)
                os.setuid(1000)
                os.execv(f"./{name}", [name])
            finally:
                os._exit(127)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def step():
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        os.write(ready[1], b"x")
        os.read(mapped[0], 1)
        held = emulation.register_private([chosen])
        # Opened here: by a mount of another namespace, set-user-id bits have no effect.
        directory = os.open(root, os.O_PATH)
        found = status(directory, "plain"), status(directory, "setuid")
        os.close(held)
        return found

    if (mapper := os.fork()) == 0:
        os.read(ready[0], 1)
        child = int(Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()[-1])
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{kind}").write_text("0 0 65536")
        os.write(mapped[1], b"x")
        os._exit(0)
    try:
        assert forked(step) == f"({1000 & 0xFF}, 7)"
    finally:
        os.waitpid(mapper, 0)
        for end in (*ready, *mapped):
            os.close(end)


# -- the lifetime of handlers ---------------------------------------------------------------------------------------


@needs_private
@ids
def test_handlers_end_with_the_descriptor_and_are_nobody_elses(user, busybox):
    root = busybox("linux/s390x")
    chosen = emulation.emulation(parse("linux/s390x"))

    def step():
        enter(user)
        held = emulation.register_private([chosen])
        during = output("/bin/echo", "here", root=root)
        os.close(held)
        return during, output("/bin/echo", "here", root=root)

    before = probe.executes("s390x")
    assert forked(step) == "('here', 'Exec format error')"
    probe.executes.cache_clear()
    assert probe.executes("s390x") == before


@needs_private
def test_several_emulators_at_once(busybox):
    names = ("linux/arm64", "linux/s390x", "linux/ppc64le")
    roots = [busybox(name) for name in names]
    chosen = [emulation.emulation(parse(name)) for name in names]

    def step():
        enter()
        held = emulation.register_private(chosen)
        said = [output("/bin/uname", "-m", root=root) for root in roots]
        os.close(held)
        return " ".join(said)

    assert forked(step) == "aarch64 s390x ppc64le"


def test_nothing_is_mounted_when_no_rung_is_private():
    assert emulation.register_private([Emulation(EmulationMode.NATIVE, "amd64")]) is None
    emulation.register_host(Emulation(EmulationMode.NATIVE, "amd64"))


# -- choosing -------------------------------------------------------------------------------------------------------


def test_our_own_platform_is_native():
    chosen = emulation.emulation(host())
    assert chosen.mode is EmulationMode.NATIVE
    assert not chosen.emulated
    assert str(chosen) == "native"
    assert chosen.skipped == ()


def test_the_32_bit_sibling_is_taken_when_the_kernel_runs_it():
    for architecture in COMPAT.get(host().architecture, ()):
        if binfmt.handler(architecture) is not None or probe.executes(architecture):
            continue
        sibling = normalise(Platform("linux", architecture, "v8" if architecture == "arm" else ""))
        assert emulation.emulation(sibling).mode is EmulationMode.COMPAT
        assert not emulation.emulation(sibling).emulated


@needs_private
def test_an_emulated_platform_says_how_and_why():
    chosen = emulation.emulation(parse("linux/s390x"))
    if chosen.mode is EmulationMode.REGISTERED:
        pytest.skip("this host has a handler for s390x")
    assert chosen == emulation.emulation(parse("linux/s390x"))
    assert chosen.mode is EmulationMode.PRIVATE
    assert chosen.interpreter == binfmt.find_qemu("s390x")
    assert str(chosen) == os.path.basename(chosen.interpreter)
    assert [each.split(":")[0] for each in chosen.skipped] == ["native", "registered"]


@pytest.mark.parametrize(
    ("platform", "why"),
    [
        ("windows/amd64", "steps run on Linux"),
        ("linux/wasm", "no emulator is known for wasm"),
    ],
)
def test_what_no_rung_can_run(platform, why):
    with pytest.raises(EnvironmentUnfit) as caught:
        emulation.emulation(parse(platform))
    assert why in caught.value.problem.why
    assert platform in caught.value.problem.remedy


@pytest.mark.skipif(host().architecture != "amd64", reason="needs an amd64 host")
def test_a_level_that_this_processor_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(emulation, "host", lambda: parse("linux/amd64/v2"))
    emulation._choose.cache_clear()
    assert emulation.emulation(parse("linux/amd64")).mode is EmulationMode.NATIVE
    assert emulation.emulation(parse("linux/amd64/v2")).mode is EmulationMode.NATIVE
    with pytest.raises(EnvironmentUnfit, match=r"this host's processor is linux/amd64/v2"):
        emulation.emulation(parse("linux/amd64/v3"))
    emulation._choose.cache_clear()


@pytest.mark.skipif(host().architecture != "amd64", reason="needs qemu-x86_64 to look at")
def test_the_level_that_qemu_lacks_is_refused_on_other_hosts(monkeypatch):
    """glibc's dynamic linker tells which levels the processor that it runs on has."""
    qemu, linker = binfmt.find_qemu("amd64"), "/lib64/ld-linux-x86-64.so.2"
    if qemu is None or not os.path.exists(linker):
        pytest.skip("needs qemu-x86_64-static and glibc")
    told = subprocess.run([qemu, linker, "--help"], capture_output=True, text=True, check=False).stdout
    assert "x86-64-v3 (supported" in told
    assert "x86-64-v4 (supported" not in told

    monkeypatch.setattr(emulation, "host", lambda: parse("linux/arm64"))
    emulation._choose.cache_clear()
    with pytest.raises(EnvironmentUnfit, match="AVX-512"):
        emulation.emulation(parse("linux/amd64/v4"))
    emulation._choose.cache_clear()


def test_without_an_emulator_the_error_names_the_packages(monkeypatch, tmp_path):
    def work():
        os.environ["PATH"] = str(tmp_path)
        os.environ.pop("KANIFOLD_QEMU_DIR", None)
        with pytest.raises(EnvironmentUnfit) as caught:
            emulation.emulation(parse("linux/loong64"))
        problem = caught.value.problem
        return "\n".join((problem.what, problem.why, problem.remedy))

    if not probe.executes("loong64"):
        pytest.skip("this host has a handler for loong64")
    what, why, remedy = forked(work).splitlines()
    assert "linux/loong64" in what
    assert "no qemu-loongarch64 is here" in why
    for words in ("qemu-user-static", "qemu-loongarch64", "KANIFOLD_QEMU_DIR", "linux/loong64"):
        assert words in remedy


@needs_private
def test_a_dynamic_emulator_is_named_as_the_reason(tmp_path):
    shutil.copy("/bin/sh", tmp_path / "qemu-loongarch64")

    def work():
        os.environ["PATH"] = str(tmp_path)
        with pytest.raises(EnvironmentUnfit) as caught:
            emulation.emulation(parse("linux/loong64"))
        return caught.value.problem.why

    assert f"{tmp_path}/qemu-loongarch64 is linked dynamically" in forked(work)


@needs_private
def test_an_emulator_that_does_not_work_is_not_taken(tmp_path):
    """A wrong program in an emulator's place: what it does with the arguments shows."""
    fake = tmp_path / "qemu-loongarch64"
    fake.write_bytes(elf.program(host().architecture))
    fake.chmod(0o755)
    # The kernel hands an interpreter (flag P) its own name, the program's path, and the program's seven arguments.
    assert probe.executes_privately("loong64", str(fake)) == "a program of loong64 got 9 arguments instead of 7"


@needs_private
def test_without_user_namespaces_the_next_rung_is_tried_and_the_setting_is_named():
    """In a namespace that allows no further ones; there we are root and may register handlers for all of it."""

    def work():
        enter()
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        chosen = emulation.emulation(parse("linux/s390x"))
        emulation.register_host(chosen)
        emulation.register_host(chosen)  # somebody was faster
        handler = binfmt.handler("s390x")
        return "\n".join((chosen.mode, chosen.skipped[-1], handler.name, handler.flags, probe.executes("s390x")))

    mode, skipped, name, flags, runs = forked(work).split("\n")
    assert mode == EmulationMode.REGISTER
    assert skipped.startswith("private: unshare: ")
    assert "user.max_user_namespaces is 0" in skipped
    assert (name, sorted(flags), runs) == ("kanifold-s390x", ["F", "O", "P"], "")


@needs_private
def test_without_any_rung_the_error_tells_all_reasons():
    def work():
        enter()
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        syscalls.capset(0, 0, 0)
        refuse_tracing()
        with pytest.raises(EnvironmentUnfit) as caught:
            emulation.emulation(parse("linux/s390x"))
        return caught.value.problem.why + "\n" + caught.value.problem.remedy

    why, remedy = forked(work).split("\n")
    for mode in (
        *("native: this host is", "registered: no handler", "private: unshare", "register: mounting"),
        "traced: tracing a process: ptrace: Operation not permitted",
    ):
        assert mode in why
    assert "Linux 6.7" in remedy
    assert "ptrace(2)" in remedy


def refuse_tracing():
    """Have ptrace(2) fail, as under the seccomp profiles of old container engines."""
    number = {"x86_64": 101, "aarch64": 117}[os.uname().machine]
    load, compare, leave = 0x20, 0x15, 0x06
    lines = ((load, 0, 0, 0), (compare, 0, 1, number), (leave, 0, 0, 0x50001), (leave, 0, 0, 0x7FFF0000))
    syscalls.no_new_privileges()
    syscalls.seccomp_filter(b"".join(struct.pack("=HBBI", *each) for each in lines))


@ids
@needs_private
def test_where_no_handler_can_be_had_steps_are_traced(user):
    def work():
        enter(user)
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
        syscalls.capset(0, 0, 0)
        chosen = emulation.emulation(parse("linux/s390x"))
        return "\n".join((chosen.mode, chosen.interpreter, chosen.why, *chosen.skipped))

    mode, interpreter, why, *skipped = forked(work).split("\n")
    assert (mode, interpreter) == (EmulationMode.TRACED, binfmt.find_qemu("s390x"))
    assert why == f"{interpreter} is started by a tracer of each step"
    assert [each.partition(":")[0] for each in skipped] == ["native", "registered", "private", "register"]


@pytest.mark.parametrize("mode", ["private", "traced"])
def test_a_mode_can_be_asked_for(mode, monkeypatch):
    if mode == "private" and unprivate():
        pytest.skip(f"no private binfmt_misc: {unprivate()}")
    monkeypatch.setenv("KANIFOLD_EMULATION", mode)

    def work():
        chosen = emulation.emulation(parse("linux/s390x"))
        return "\n".join((chosen.mode, *chosen.skipped))

    chosen, *skipped = forked(work).split("\n")
    assert chosen == mode
    assert f"registered: KANIFOLD_EMULATION is {mode}" in skipped


def test_a_mode_that_nobody_knows_cannot_be_asked_for(monkeypatch):
    monkeypatch.setenv("KANIFOLD_EMULATION", "magic")

    def work():
        with pytest.raises(UsageError) as caught:
            emulation.emulation(parse("linux/s390x"))
        return caught.value.problem.remedy

    assert forked(work) == "use auto, private, register, traced"


def test_a_mode_that_is_asked_for_and_impossible_is_an_error(monkeypatch):
    monkeypatch.setenv("KANIFOLD_EMULATION", "traced")

    def work():
        refuse_tracing()
        with pytest.raises(EnvironmentUnfit) as caught:
            emulation.emulation(parse("linux/s390x"))
        return caught.value.problem.why

    assert "private: KANIFOLD_EMULATION is traced; register: KANIFOLD_EMULATION is traced; traced: tracing" in forked(
        work
    )


def test_a_traced_emulator_that_does_not_work_is_not_taken(tmp_path):
    fake = tmp_path / "qemu-loongarch64"
    fake.write_bytes(elf.program(host().architecture))
    fake.chmod(0o755)
    # It gets its own path, -0, the program's argv[0], its path, and the other six of its arguments.
    assert probe.emulates("loong64", str(fake)) == "a program of loong64 got 10 arguments instead of 7"


# -- handlers of the host, played by a namespace with a binfmt_misc where the host's would be ------------------------


def as_host(flags, *, architecture="s390x", name="some-name"):
    """Enter a namespace and register a handler there by other means than our own."""
    enter()
    syscalls.mount("binfmt_misc", binfmt.DIRECTORY, "binfmt_misc")
    line = binfmt.registration(architecture, binfmt.find_qemu(architecture), flags)
    Path(f"{binfmt.DIRECTORY}/register").write_bytes(line.replace(binfmt.name(architecture).encode(), name.encode()))


def no_user_namespaces():
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


@needs_private
def test_a_registered_handler_is_taken():
    def work():
        as_host("F")
        no_user_namespaces()
        chosen = emulation.emulation(parse("linux/s390x"))
        return "\n".join((chosen.mode, chosen.interpreter, chosen.why))

    # F alone: its program gets the path as argv[0], and still seven arguments.
    mode, interpreter, why = forked(work).split("\n")
    assert (mode, interpreter) == (EmulationMode.REGISTERED, binfmt.find_qemu("s390x"))
    assert "some-name" in why
    assert why.endswith("which steps can reach and change")  # it is root who asks


@needs_private
def test_root_takes_no_registered_handler_where_a_private_one_can_be_had():
    def work():
        as_host("F")
        chosen = emulation.emulation(parse("linux/s390x"))
        return "\n".join((chosen.mode, chosen.skipped[-1]))

    mode, skipped = forked(work).split("\n")
    assert mode == EmulationMode.PRIVATE
    assert skipped == "registered: steps could reach the host's emulator by /proc/PID/exe and change it"


def test_an_ordinary_user_takes_a_handler_whose_interpreter_is_somebody_elses(monkeypatch, tmp_path):
    interpreter = tmp_path / "qemu"
    interpreter.touch()
    if os.geteuid() == 0:
        os.chown(interpreter, 1000, -1)
    handler = binfmt.Handler("some-name", True, str(interpreter), "F")
    owner = interpreter.stat().st_uid
    for user, reached in ((owner, True), (owner + 1, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert emulation._within_reach(handler) is reached
        assert not emulation._within_reach(None)


@needs_private
@pytest.mark.parametrize(
    ("flags", "after", "reason"),
    [
        ("OC", "", "the handler some-name lacks the flag F"),
        ("F", "disabled", "no handler of this host matches s390x programs"),
    ],
)
def test_a_registered_handler_that_a_step_could_not_use_is_passed_over(flags, after, reason):
    def work():
        as_host(flags)
        if after:
            Path(f"{binfmt.DIRECTORY}/some-name").write_text("0")
        chosen = emulation.emulation(parse("linux/s390x"))
        return "\n".join((chosen.mode, chosen.skipped[-1]))

    mode, skipped = forked(work).split("\n")
    assert mode == EmulationMode.PRIVATE
    assert skipped.startswith(f"registered: {reason}")


@needs_private
def test_a_handler_for_another_architecture_counts_for_nothing():
    def work():
        as_host("F", architecture="arm64", name="qemu-s390x")
        return emulation.emulation(parse("linux/s390x")).skipped[-1]

    assert forked(work) == "registered: no handler of this host matches s390x programs"


@needs_private
def test_a_handler_that_cannot_be_seen_is_found_by_trying():
    """In a container the host's handlers work, though no binfmt_misc is mounted there."""

    def work():
        enter()
        held = binfmt.mount_private([("s390x", binfmt.find_qemu("s390x"))])
        no_user_namespaces()
        chosen = emulation.emulation(parse("linux/s390x"))
        os.close(held)
        return "\n".join((chosen.mode, chosen.interpreter, str(chosen), chosen.why))

    mode, interpreter, shown, why = forked(work).split("\n")
    assert (mode, interpreter, shown) == (EmulationMode.REGISTERED, "", "emulated")
    assert "cannot be seen" in why


@needs_private
def test_a_name_that_is_taken_by_something_else_is_an_error():
    def work():
        as_host("F", architecture="arm64", name="kanifold-s390x")
        chosen = replace(emulation.emulation(parse("linux/s390x")), mode=EmulationMode.REGISTER)
        with pytest.raises(EnvironmentUnfit) as caught:
            emulation.register_host(chosen)
        return caught.value.problem.why

    assert "there is one named kanifold-s390x that does not match" in forked(work)


def children():
    listed = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False).stdout
    return {pid for pid in listed.split() if Path(f"/proc/{pid}").exists()}  # pgrep itself is gone by now


def test_probing_leaves_nothing_behind():
    probe.executes.cache_clear()
    probe.executes_privately.cache_clear()
    emulation._choose.cache_clear()
    mounts, files, others = Path("/proc/self/mounts").read_text(), sorted(os.listdir("/proc/self/fd")), children()
    emulation.overview()
    assert Path("/proc/self/mounts").read_text() == mounts
    assert sorted(os.listdir("/proc/self/fd")) == files
    assert children() <= others, "a child is left"
