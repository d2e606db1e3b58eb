"""What a step meets: run for real, on every isolation mode that this machine has."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from sandbox_process import ARM64, BUSYBOX, QEMU, Done, Inside, Node, SandboxProcess, opened

from executor.sandbox import Bind, BindFd, IsolationMode, SecretFile, Tmpfs, staging
from executor.sandbox.spec import Ended, Spec
from executor.snapshotter.rootfs import Overlay
from platforms import elf, syscalls
from platforms.errors import EnvironmentUnfit

pytestmark = pytest.mark.skipif(not BUSYBOX.exists(), reason="no /bin/busybox (Debian: busybox-static)")


def not_single(sandbox: SandboxProcess) -> None:
    if sandbox.isolation.mode is IsolationMode.SINGLE:
        pytest.skip("there is one user and one group")


# -- ending ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 3, 126, 255])
def test_exit_code_is_the_programs(sandbox: SandboxProcess, code: int) -> None:
    done = sandbox.run(f"exit {code}")
    assert (done.ended.code, done.ended.signal, done.ended.error) == (code, 0, "")


def test_a_signal_counts_as_shells_count_it(sandbox: SandboxProcess) -> None:
    done = sandbox.run("sh -c 'kill -9 $$'; echo $?")
    assert done.out == "137\n"


def test_the_program_is_process_one_and_alone(sandbox: SandboxProcess) -> None:
    done = sandbox.run("echo $$; cat /proc/1/comm; ls -d /proc/[0-9]*; true")
    assert done.out.splitlines()[:3] == ["1", "sh", "/proc/1"]
    assert len(done.out.splitlines()) <= 4


def test_a_killed_first_process_reports_its_signal(sandbox: SandboxProcess) -> None:
    done = sandbox.run("/bin/sh", "-c", "ulimit -t 1; while :; do :; done")
    assert (done.ended.code, done.ended.signal) == (137, 9)


@pytest.mark.parametrize(
    ("argv", "code", "error"),
    [
        (("nope",), 127, 'exec: "nope": executable file not found in $PATH'),
        (("/bin/nope",), 127, 'exec: "/bin/nope": stat /bin/nope: no such file or directory'),
        (("/tmp",), 126, 'exec: "/tmp": is a directory'),
        (("/plain",), 126, 'exec: "/plain": permission denied'),
        (("/garbage",), 126, "exec /garbage: exec format error"),
        (("/orphan",), 127, "exec /orphan: no such file or directory"),
        ((), 127, "no command given"),
    ],
)
def test_what_cannot_be_started_says_why(sandbox: SandboxProcess, argv: tuple[str, ...], code: int, error: str) -> None:
    layer = sandbox.plant({"plain": "text", "garbage": b"\x00\x01\x02", "orphan": b"#!/no/such/interpreter\n"})
    done = sandbox.run(*argv, layers=(layer, sandbox.busybox))
    assert (done.ended.code, done.ended.error) == (code, error)
    assert done.diff == {}


def test_a_reason_of_any_length_is_told(sandbox: SandboxProcess) -> None:
    done = sandbox.run("/" + "a" * 100_000)
    assert done.ended.code == 127
    assert done.ended.error.startswith('exec: "/aaa')


def test_any_number_of_mount_points_is_taken_back(sandbox: SandboxProcess) -> None:
    """More than a pipe has room for tells of them."""
    mounts = tuple(Tmpfs(f"/{'d' * 250}/{'e' * 240}{number}") for number in range(150))
    done = sandbox.run("mount | grep -c eee", mounts=mounts)
    assert (done.ended.code, done.out, done.diff) == (0, "150\n", {})


@pytest.mark.parametrize("spec", [{"argv": ("/bin/true", "a\0b")}, {"env": ("A=a\0b",), "argv": ("/bin/true",)}])
def test_what_no_program_can_be_given_is_refused(sandbox: SandboxProcess, spec: dict[str, tuple[str, ...]]) -> None:
    """Both may come out of a base image's config."""
    done = sandbox.run("true", **spec)
    assert (done.ended.code, done.out) == (126, "")
    assert "cannot be passed to a program" in done.ended.error


def test_a_name_is_not_cut_at_a_nul(sandbox: SandboxProcess) -> None:
    assert sandbox.run("/bin/true\0x").ended.code == 127
    assert sandbox.run("/bin/true", cwd="/bin\0x").ended.code == 125


def test_few_open_files_are_enough_to_be_started(sandbox: SandboxProcess) -> None:
    assert sandbox.run("ulimit -n", ulimits=(("nofile", 5, 5),)).out == "5\n"


def test_a_relative_program_is_found_from_the_working_directory(sandbox: SandboxProcess) -> None:
    assert sandbox.run("./busybox", "echo", "hi", cwd="/bin").out == "hi\n"
    assert sandbox.run("busybox", "echo", "hi", cwd="/bin", env=("PATH=:/none",)).out == "hi\n"


# -- streams ---------------------------------------------------------------------------------------------------------


def test_output_comes_apart_and_in_order(sandbox: SandboxProcess) -> None:
    done = sandbox.run("for i in $(seq 500); do echo out $i; echo err $i >&2; done")
    assert done.out == "".join(f"out {i}\n" for i in range(1, 501))
    assert done.err == "".join(f"err {i}\n" for i in range(1, 501))


def test_standard_input_is_given_bytes_or_nothing(sandbox: SandboxProcess) -> None:
    data = bytes(range(256)) * 4096
    assert sandbox.run("wc -c; echo end", stdin=data).out == f"{len(data)}\nend\n"
    assert sandbox.run("cat; readlink /proc/self/fd/0").out == "/dev/null\n"


def test_only_three_descriptors_are_open(sandbox: SandboxProcess) -> None:
    done = sandbox.run("/bin/busybox", "ls", "/proc/self/fd")
    assert done.out.split() == ["0", "1", "2", "3"]  # 3 is the listing's own


def test_streams_can_be_opened_again_by_an_ordinary_user(sandbox: SandboxProcess) -> None:
    done = sandbox.run("echo one > /dev/stdout; echo two > /proc/self/fd/2", uid=1000, gid=1000)
    assert (done.out, done.err) == ("one\n", "two\n")


def test_broken_pipes_end_a_program_quietly(sandbox: SandboxProcess) -> None:
    done = sandbox.run("seq 1 1000000 | head -n 1; echo $?")
    assert (done.out, done.err) == ("1\n0\n", "")


# -- surroundings ----------------------------------------------------------------------------------------------------


def test_environment_is_exact(sandbox: SandboxProcess) -> None:
    done = sandbox.run("/bin/env", env=("PATH=/bin", "EMPTY=", "A=b=c", "Ü=ö", "Z=1"))
    assert done.out.splitlines() == ["PATH=/bin", "EMPTY=", "A=b=c", "Ü=ö", "Z=1"]


def test_host_name_and_hosts(sandbox: SandboxProcess) -> None:
    done = sandbox.run("hostname; cat /etc/hosts", hosts=(("db", "10.0.0.7"), ("v6", "fd00::1")))
    assert done.out == (
        "buildkitsandbox\n127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        "10.0.0.7\tdb\nfd00::1\tv6\n"
    )
    assert sandbox.run("/bin/hostname", hostname="other").out == "other\n"


def test_name_servers_are_the_hosts_and_writing_them_harms_nobody(sandbox: SandboxProcess) -> None:
    before = Path("/etc/resolv.conf").read_text()
    done = sandbox.run("cat /etc/resolv.conf; echo x > /etc/resolv.conf && echo y >> /etc/hosts && echo written")
    assert done.out == f"{before}written\n"
    assert Path("/etc/resolv.conf").read_text() == before
    assert done.diff == {}
    assert sandbox.run("cat /etc/resolv.conf; true").out == before


def test_network_none_has_only_a_loopback_that_works(sandbox: SandboxProcess) -> None:
    done = sandbox.run("ls /proc/sys/net/ipv4/conf; ip -o addr; ip link show lo | grep -c ,UP", network="none")
    assert "127.0.0.1/8" in done.out
    assert done.out.splitlines()[-1] == "1"
    assert {"all", "default", "lo"} >= {line for line in done.out.splitlines() if line.isalpha()}


def test_network_host_is_the_hosts(sandbox: SandboxProcess) -> None:
    mine = sorted(os.listdir("/proc/sys/net/ipv4/conf"))
    assert sandbox.run("ls /proc/sys/net/ipv4/conf; true").out.split() == mine


def test_identity(sandbox: SandboxProcess) -> None:
    not_single(sandbox)
    done = sandbox.run("id -u; id -g; id -G; grep Groups /proc/self/status", uid=1000, gid=1001, groups=(1001, 7, 8))
    assert done.out.splitlines()[:2] == ["1000", "1001"]
    assert sorted(done.out.splitlines()[3].split()[1:]) == ["1001", "7", "8"]
    assert sandbox.run("grep Groups /proc/self/status").out.split() == ["Groups:"]


DOCKERS = "00000000a80425fb"


def capabilities(text: str) -> dict[str, str]:
    return {line.split()[0][3:-1]: line.split()[1] for line in text.splitlines() if line.startswith("Cap")}


def test_capabilities_are_dockers(sandbox: SandboxProcess) -> None:
    root = capabilities(sandbox.run("cat /proc/self/status; true", network="none").out)
    assert root == {"Inh": "0" * 16, "Prm": DOCKERS, "Eff": DOCKERS, "Bnd": DOCKERS, "Amb": "0" * 16}
    other = capabilities(sandbox.run("cat /proc/self/status; true", uid=1000, network="none").out)
    assert other == {"Inh": "0" * 16, "Prm": "0" * 16, "Eff": "0" * 16, "Bnd": DOCKERS, "Amb": "0" * 16}


def test_insecure_has_what_we_have(sandbox: SandboxProcess) -> None:
    command = (
        "grep CapEff /proc/self/status; mkdir /m; mount -t tmpfs none /m && echo mounted; ls /proc/kcore; umount /m"
    )
    done = sandbox.run(command, insecure=True)
    assert int(done.out.split()[1], 16) & 1 << syscalls.CAP_SYS_ADMIN
    assert "mounted" in done.out
    assert done.diff == {"m": "d 755"}
    assert "permission denied" in sandbox.run("mkdir /m; mount -t tmpfs none /m").err


def test_set_user_id_programs_work(sandbox: SandboxProcess) -> None:
    not_single(sandbox)
    accounts = "root::0:0::/:/bin/sh\nme::1000:1000::/:/bin/sh\n"
    layer = sandbox.plant({"set/su": ("x", "4755", str(BUSYBOX)), "etc/passwd": accounts, "etc/group": "root:x:0:\n"})
    done = sandbox.run("id -u; /set/su -c 'id -u; id -g'", layers=(layer, sandbox.busybox), uid=1000, gid=1000)
    assert done.out == "1000\n0\n0\n"


def test_umask_and_limits(sandbox: SandboxProcess) -> None:
    done = sandbox.run("umask; ulimit -n; ulimit -c; touch /f", ulimits=(("nofile", 77, 99), ("core", 0, 0)))
    assert done.out.split() == ["0022", "77", "0"]
    assert done.diff == {"f": "f 644"}
    refused = sandbox.run("true", ulimits=(("nosuch", 1, 1),)).ended
    assert (refused.code, refused.error) == (125, "unknown ulimit nosuch")


# -- devices, /proc, /sys --------------------------------------------------------------------------------------------


def test_devices(sandbox: SandboxProcess) -> None:
    done = sandbox.run("ls /dev; echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c")
    names = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert done.out.split() == [*names.split(), "3", "5"]
    assert done.err == ""
    assert "No space left" in sandbox.run("echo x > /dev/full").err
    assert sandbox.run("ls -la /dev/pts/ptmx | cut -c1; echo x > /dev/shm/y && cat /dev/shm/y").out.endswith("x\n")
    assert sandbox.run("awk '$2==\"/dev/shm\" {print $4}' /proc/mounts", shm_size=1 << 20).out.count("size=1024k") == 1


def test_the_hosts_device_files_cannot_be_changed(sandbox: SandboxProcess) -> None:
    before = os.stat("/dev/null")
    done = sandbox.run("chmod 600 /dev/null; chown 5 /dev/null; rm -f /dev/null; echo still > /dev/null; echo $?")
    after = os.stat("/dev/null")
    assert done.out == "0\n"
    assert (before.st_mode, before.st_uid, before.st_ino) == (after.st_mode, after.st_uid, after.st_ino)


_OPEN_DEVICES = "for d in / /dev/ /tmp/ /dev/shm/; do mknod ${d}z c 1 5; head -c 1 ${d}z; done; echo end"
"""1:1 is /dev/mem, 1:5 /dev/zero: harmless ones stand for the disk."""


def test_device_nodes_made_by_a_step_cannot_be_opened(sandbox: SandboxProcess) -> None:
    not_single(sandbox)
    done = sandbox.run(_OPEN_DEVICES)
    assert done.out == "end\n"
    assert "Permission denied" in done.err or "Operation not permitted" in done.err


def test_device_nodes_made_with_one_id_are_records_that_nothing_is_read_from(single_sandbox: SandboxProcess) -> None:
    done = single_sandbox.run(_OPEN_DEVICES)
    assert (done.out, done.diff["z"]) == ("end\n", "f 644")


@pytest.mark.parametrize("path", ["kcore", "keys", "timer_list", "sched_debug", "latency_stats", "timer_stats"])
def test_masked_files_are_empty(sandbox: SandboxProcess, path: str) -> None:
    assert sandbox.run(f"cat /proc/{path} 2>/dev/null | wc -c").out == "0\n"


@pytest.mark.parametrize("path", ["/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"])
@pytest.mark.parametrize("network", ["host", "none"])
def test_masked_directories_are_empty(sandbox: SandboxProcess, path: str, network: str) -> None:
    assert sandbox.run(f"ls -A {path} 2>/dev/null; touch {path}/x", network=network).out == ""


@pytest.mark.parametrize("path", ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/mm/lru_gen/enabled"])
@pytest.mark.parametrize("network", ["host", "none"])
def test_kernel_settings_are_read_only(sandbox: SandboxProcess, path: str, network: str) -> None:
    done = sandbox.run(f"echo x > {path}; echo $?", network=network)
    assert done.out == "1\n"


def test_control_groups_are_seen_and_read_only_whatever_the_network(sandbox: SandboxProcess) -> None:
    assert sandbox.run(CGROUPS, network="none").out == sandbox.run(CGROUPS).out


CGROUPS = "ls /sys/fs/cgroup; grep cgroup /proc/mounts | grep -v ' ro,'; mkdir /sys/fs/cgroup/unified/x; true"


def test_an_isolated_step_sees_the_same_of_sys() -> None:
    """In a sandbox process of its own, for the network's helper stays as long as the sandbox process."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with opened(None) as sandbox:
        assert sandbox.run("ls -A /sys/firmware /sys/devices/virtual/powercap 2>/dev/null", network="isolated").out in (
            "", "/sys/firmware:\n\n/sys/devices/virtual/powercap:\n", "/sys/firmware:\n"
        )  # fmt: skip
        assert sandbox.run("echo x > /sys/kernel/mm/lru_gen/enabled; echo $?", network="isolated").out == "1\n"
        assert sandbox.run(CGROUPS, network="isolated").out == sandbox.run(CGROUPS).out


def test_mount_table_tells_nothing_of_the_host(sandbox: SandboxProcess) -> None:
    done = sandbox.run("cat /proc/mounts /proc/self/mountinfo")
    assert "kanifold-tests" not in done.out
    assert str(Path(__file__).parent) not in done.out


# -- system calls ----------------------------------------------------------------------------------------------------


def test_sync_calls_succeed_at_once(sandbox: SandboxProcess) -> None:
    # A pipe cannot be synced: EINVAL, had the call been made.
    done = sandbox.run("sync && printf fine | dd conv=fsync")
    assert (done.out, done.ended.code) == ("fine", 0)
    assert sandbox.run("sync && printf fine | dd conv=fsync", insecure=True).out == "fine"


@pytest.mark.parametrize("flag", ["-m", "-u", "-i", "-n", "-p", "-U"])
def test_new_namespaces_are_refused(sandbox: SandboxProcess, flag: str) -> None:
    done = sandbox.run(f"unshare {flag} true; echo $?", network="none")
    assert done.out == "1\n"
    assert "Operation not permitted" in done.err


# -- the root file system --------------------------------------------------------------------------------------------


def test_the_diff_is_what_the_step_changed(sandbox: SandboxProcess) -> None:
    layer = sandbox.plant({"keep": "1", "gone": "2", "dir/inner": "3"})
    command = "rm /gone; echo new > /made; mkdir /sub; ln -s made /link; rm -r /dir; mkdir /dir; chmod 700 /keep"
    done = sandbox.run(command, layers=(layer, sandbox.busybox))
    assert done.diff == {
        "gone": "c 0:0", "made": "f 644", "sub": "d 755", "link": "l made", "dir": "d 755", "keep": "f 700",
    }  # fmt: skip
    assert done.left == ()


def test_an_empty_image_stays_empty(sandbox: SandboxProcess) -> None:
    tool = sandbox.plant({"true": BUSYBOX.read_bytes()})
    done = sandbox.run("/t/true", layers=(), mounts=(Bind(tool, "/t", readonly=True),))
    assert (done.ended.code, done.ended.error) == (0, "")
    assert (done.diff, done.left) == ({}, ())
    assert done.root_mtime == 10**18


def test_hundreds_of_layers(sandbox: SandboxProcess) -> None:
    layers = [sandbox.plant({f"layer{index}": str(index), "top": str(index)}) for index in range(300)]
    done = sandbox.run("cat /top; ls -d /layer* | wc -l", layers=(*layers, sandbox.busybox))
    assert done.out == "0300\n"


def test_a_long_path_to_a_layer(sandbox: SandboxProcess) -> None:
    deep = "/".join("x" * 200 + str(index) for index in range(6))
    layer = sandbox.plant({f"{deep}/found:here,there": "yes"})
    done = sandbox.run("cat /found*", layers=(f"{layer}/{deep}", sandbox.busybox))
    assert done.out == "yes"


def test_files_of_all_layers_look_like_one_file_system(sandbox: SandboxProcess) -> None:
    layer = sandbox.plant({"etc/own": "1"})
    done = sandbox.run("stat -c %d / /etc /etc/own /bin/busybox; find / -xdev | sort", layers=(layer, sandbox.busybox))
    assert len(set(done.out.splitlines()[:4])) == 1
    assert "/etc/own" in done.out


def test_thirty_steps_at_once(sandbox: SandboxProcess) -> None:
    specs = [sandbox.spec(f"echo {number}; echo {number} > /n; exit {number}") for number in range(30)]
    for number, done in enumerate(sandbox.run_all(specs)):
        assert (done.ended.code, done.out, done.diff) == (number, f"{number}\n", {"n": "f 644"})


# -- working directory -----------------------------------------------------------------------------------------------


def test_working_directory_is_made_when_missing(sandbox: SandboxProcess) -> None:
    done = sandbox.run("/bin/sh", "-c", "pwd", cwd="/a/b")
    assert done.out == "/a/b\n"
    assert done.diff == {"a": "d 755", "a/b": "d 755"}


def test_working_directory_through_a_link_stays_inside(sandbox: SandboxProcess) -> None:
    layer = sandbox.plant({"w": ("->", "/../../../etc/place")})
    done = sandbox.run("/bin/sh", "-c", "pwd -P; touch here", cwd="/w", layers=(layer, sandbox.busybox))
    assert done.out == "/etc/place\n"
    assert set(done.diff) == {"etc", "etc/place", "etc/place/here"}
    assert not Path("/etc/place").exists()


def test_working_directory_that_is_a_file(sandbox: SandboxProcess) -> None:
    ended = sandbox.run("true", cwd="/bin/busybox").ended
    assert ended.code == 125
    assert ended.error == "cannot change to the working directory /bin/busybox: Not a directory"


# -- mounts ----------------------------------------------------------------------------------------------------------


def test_binds(sandbox: SandboxProcess) -> None:
    source = sandbox.plant({"file": "content", "sub/deep": "x"})
    mounts = (Bind(source, "/mnt/rw"), Bind(source, "/mnt/ro", readonly=True), Bind(f"{source}/file", "/one"))
    done = sandbox.run("cat /one /mnt/ro/file; touch /mnt/ro/x; touch /mnt/rw/new; ls /mnt/ro", mounts=mounts)
    assert done.out == "contentcontentfile\nnew\nsub\n"
    assert "Read-only file system" in done.err
    assert done.diff == {}
    assert done.root_mtime == 10**18


@pytest.mark.parametrize("part", ["", "sub", "/link", "up/sub/"])
def test_bind_by_descriptor(sandbox: SandboxProcess, part: str) -> None:
    done = sandbox.call(_bind_by_descriptor, part)
    assert (done.ended.error, done.out) == ("", "content")
    assert done.diff == {}


def test_a_part_of_a_bind_that_is_missing(sandbox: SandboxProcess) -> None:
    done = sandbox.call(_bind_by_descriptor, "none/such")
    assert done.ended.error == "cannot mount on /deep/er: none/such: openat2: No such file or directory"
    assert done.diff == {}


def _bind_by_descriptor(inside: Inside, part: str) -> Done:
    nodes: dict[str, Node] = {"file": "content", "sub/file": "content", "link": ("->", "/sub"), "up": ("->", "../..")}
    source = inside.plant(nodes)
    fd = syscalls.open_tree(syscalls.AT_FDCWD, source, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
    from executor.sandbox import Spec

    spec = Spec(
        Overlay((inside.busybox(),), "", ""),
        ("/bin/cat", "/deep/er/file"),
        mounts=(BindFd(fd, "/deep/er", True, part),),
    )
    return inside.run_all([spec])[0]


def test_tmpfs(sandbox: SandboxProcess) -> None:
    done = sandbox.run(
        "stat -c %a /t /t/u; dd if=/dev/zero of=/t/big bs=1024 count=2048; touch /t/u/x",
        mounts=(Tmpfs("/t/u", mode=0o700), Tmpfs("/t", size=1 << 20)),
    )
    assert done.out == "1777\n700\n"
    assert "No space left" in done.err
    assert done.diff == {}


def test_secret(sandbox: SandboxProcess) -> None:
    mount = SecretFile("/run/secrets/key", b"hidden", uid=1000, gid=1000)
    done = sandbox.run(
        "cat /run/secrets/key; ls -ln /run/secrets/key; echo x > /run/secrets/key", mounts=(mount,), uid=1000
    )
    group = "0   " if sandbox.isolation.mode is IsolationMode.SINGLE else "1000"
    assert done.out.startswith(f"hidden-r--------    1 1000     {group}             6")
    assert done.diff == {}
    assert sandbox.run("ls /run; true", mounts=()).out == ""


def test_mount_points_leave_nothing_but_what_the_step_made_beside_them(sandbox: SandboxProcess) -> None:
    layer = sandbox.plant({"srv/old": "x"})
    mounts = (Tmpfs("/srv/cache"), Tmpfs("/opt/a/b"), Tmpfs("/opt/a/c"))
    done = sandbox.run("touch /opt/a/mine", layers=(layer, sandbox.busybox), mounts=mounts)
    assert done.diff == {"opt": "d 755", "opt/a": "d 755", "opt/a/mine": "f 644"}


def test_a_changed_parent_of_a_mount_point_stays(sandbox: SandboxProcess) -> None:
    layer = sandbox.plant({"srv/old": "x"})
    done = sandbox.run("chmod 700 /srv", layers=(layer, sandbox.busybox), mounts=(Tmpfs("/srv/cache"),))
    assert done.diff == {"srv": "d 700"}


def test_mount_points_hidden_by_whiteouts(sandbox: SandboxProcess) -> None:
    if sandbox.isolation.mode is not IsolationMode.NAMESPACES:
        pytest.skip("only root makes device nodes")
    top = sandbox.plant({"etc/resolv.conf": ("c", "0", "0"), "proc": ("c", "0", "0"), "srv": ("c", "0", "0")})
    below = sandbox.plant({"srv/old": "x"})
    done = sandbox.run(
        "ls /srv; cat /proc/1/comm; true", layers=(top, below, sandbox.busybox), mounts=(Tmpfs("/srv/x"),)
    )
    assert done.out == "x\nsh\n"
    assert done.diff == {}


def test_the_last_mount_on_a_target_counts_and_parents_come_first(sandbox: SandboxProcess) -> None:
    first, second = sandbox.plant({"x": "first"}), sandbox.plant({"x": "second", "in": None})
    mounts = (Tmpfs("/m/in"), Bind(first, "/m"), Bind(second, "//m/./"))
    assert sandbox.run("cat /m/x; ls /m/in", mounts=mounts).out == "second"


@pytest.mark.parametrize(
    ("mount", "error"),
    [
        (Tmpfs("/"), "cannot mount over the root directory"),
        (Tmpfs("/bin/busybox"), "cannot mount on /bin/busybox: /bin/busybox: Not a directory"),
        (SecretFile("/bin", b""), "cannot mount on /bin: /bin: Is a directory"),
        (Bind("/no/such", "/x"), "cannot mount on /x: /no/such: open_tree: No such file or directory"),
    ],
)
def test_mounts_that_cannot_be_made(sandbox: SandboxProcess, mount: Tmpfs | SecretFile | Bind, error: str) -> None:
    done = sandbox.run("true", mounts=(Tmpfs("/made/before"), mount))
    assert (done.ended.code, done.ended.error) == (125, error)
    assert done.diff == {}


# -- dying -----------------------------------------------------------------------------------------------------------


def children(pid: int) -> dict[int, set[int]]:
    """The children of every process, by the kernel's table; ``pid`` has an entry in any case."""
    found: dict[int, set[int]] = {pid: set()}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):  # it may have ended since it was listed
                parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
                found.setdefault(parent, set()).add(int(name))
    return found


def alive_below(pid: int) -> set[int]:
    """All processes that descend from ``pid``."""
    table = children(pid)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = table.get(waiting.pop(), set())
        found |= below
        waiting += below
    return found


def settles(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` comes true soon; for what is left to the kernel and has no event."""
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def gone(pidfds: list[int]) -> bool:
    """Wait, briefly, for all of them to end."""
    import select

    deadline = time.monotonic() + 5
    for fd in pidfds:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        os.close(fd)
        if not ready:
            return False
    return True


@pytest.mark.parametrize("how", ["cancel", "cancel_all"])
def test_cancelling_kills_everything_of_the_step(sandbox: SandboxProcess, how: str) -> None:
    spec = sandbox.spec("trap '' TERM INT HUP; (sleep 1000 &); touch /f; echo ready; sleep 1000")
    started = time.monotonic()
    done = sandbox.run_until(spec, "ready", how)
    assert time.monotonic() - started < 30
    assert (done.ended.code, done.ended.signal, done.ended.error) == (137, 9, "cancelled")
    assert sandbox.run("true").ended.code == 0
    assert settles(lambda: len(alive_below(sandbox.pid)) <= 2)  # the zygote, and the process of the next step


def _begun_too_late(inside: Inside) -> Ended:
    cancelled: Future[None] = Future()
    cancelled.set_result(None)
    inside.launcher.cancel_all()
    spec = Spec(inside.writable(Overlay((inside.busybox(),), "", "")), ("/bin/sleep", "1000"), env=("PATH=/bin",))
    return inside.launcher.run(spec, 2, 2, cancelled)


def test_a_step_that_begins_just_after_all_were_cancelled_is_cancelled_too(sandbox: SandboxProcess) -> None:
    ended = sandbox.call(_begun_too_late)
    assert (ended.signal, ended.error) == (9, "cancelled")


@pytest.mark.parametrize("victim", ["executor", "zygote"])
def test_nothing_survives_a_killed_executor(
    request: pytest.FixtureRequest, sandbox: SandboxProcess, victim: str
) -> None:
    users = {IsolationMode.MAPPED: "_user_with_ids", IsolationMode.SINGLE: "_user_without_ids"}
    user = request.getfixturevalue(users[mode]) if (mode := sandbox.isolation.mode) in users else None
    with opened(user, mode=mode) as doomed:
        for _ in range(3):
            doomed.begin(doomed.spec("trap '' TERM; (sleep 1000 &); (nc -l -p 1 &); echo ready; sleep 1000"), "ready")
        below = alive_below(doomed.pid)
        assert len(below) >= 1 + 3 * 2
        pidfds = list(_pidfds(below))
        zygote = _child(doomed.pid)
        os.kill(doomed.pid if victim == "executor" else zygote, signal.SIGKILL)
        assert gone(pidfds)
        assert "kanifold" not in Path("/proc/self/mountinfo").read_text()
        if victim == "zygote":
            with pytest.raises(AssertionError, match="EnvironmentUnfit: the process that starts build steps has died"):
                doomed.run("true")


def _end_without_zygote(inside: Inside, spec: Spec) -> str:
    """How a step ends when the zygote is killed while it runs."""
    _, running, out, _ = inside._start(spec)
    assert os.read(out, 4096) == b"ready\n"
    os.kill(inside.launcher._zygote, signal.SIGKILL)
    try:
        return repr(running.wait())
    except EnvironmentUnfit as unfit:
        return str(unfit)


def test_a_step_that_a_killed_zygote_takes_with_it_has_no_result(
    request: pytest.FixtureRequest, sandbox: SandboxProcess
) -> None:
    users = {IsolationMode.MAPPED: "_user_with_ids", IsolationMode.SINGLE: "_user_without_ids"}
    user = request.getfixturevalue(users[mode]) if (mode := sandbox.isolation.mode) in users else None
    with opened(user, mode=mode) as doomed:
        said = doomed.call(_end_without_zygote, doomed.spec("echo ready; sleep 1000"))
    assert "the process that starts build steps has died" in said


def _pidfds(pids: set[int]) -> Iterator[int]:
    """A descriptor for each of ``pids`` that still lives: short helpers may have ended since they were listed."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            yield os.pidfd_open(pid)


def _child(pid: int) -> int:
    """The one child of ``pid``."""
    (child,) = children(pid)[pid]
    return child


def test_steps_leak_nothing(sandbox: SandboxProcess) -> None:
    def count() -> tuple[int, int]:
        zygote = _child(sandbox.pid)
        return len(os.listdir(f"/proc/{sandbox.pid}/fd")), len(os.listdir(f"/proc/{zygote}/fd"))

    if os.geteuid() != 0:
        pytest.skip("needs root, to look into the sandbox process's descriptors")
    sandbox.run("true")
    assert settles(lambda: len(alive_below(sandbox.pid)) <= 2)
    before = count()
    sandbox.run_all([sandbox.spec("true", network="none") for _ in range(20)])
    sandbox.run("nope")
    assert settles(lambda: count() == before), (count(), before)


# -- emulation -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not QEMU.exists(), reason=f"no {QEMU}")
@pytest.mark.parametrize("mode", ["private", "mapped", "single"])
def test_a_private_emulator_runs_foreign_programs(request: pytest.FixtureRequest, mode: str) -> None:
    users = {"mapped": "_user_with_ids", "single": "_user_without_ids"}
    user = request.getfixturevalue(users[mode]) if mode in users else None
    if mode == "private" and os.geteuid() != 0:
        pytest.skip("needs root")
    with opened(user, ARM64) as sandbox:
        layer = sandbox.plant({"arm64": elf.program("arm64")})
        done = sandbox.run("/arm64; echo $?; /arm64 a b; echo $?; touch /f", layers=(layer, sandbox.busybox))
        assert done.out == "1\n3\n"
        assert done.diff == {"f": "f 644"}


def test_the_next_step_needs_not_have_the_shape_of_the_last(sandbox: SandboxProcess) -> None:
    shown = "ls /sys/class/net 2>/dev/null; stat -f -c %b /dev/shm; touch /f"
    kinds = [{}, {"network": "none"}, {"shm_size": 1 << 20}, {}, {"network": "none", "shm_size": 1 << 20}]
    alone = [sandbox.run(shown, **kind).out for kind in kinds]
    for kind, out in zip(kinds, alone, strict=True):
        assert sandbox.run(shown, **kind).out == out
    assert len(set(alone)) == 4


def test_a_prepared_process_that_was_killed_is_not_missed(root_sandbox: SandboxProcess) -> None:
    root_sandbox.run("true")
    (spare,) = children(zygote := _child(root_sandbox.pid))[zygote]
    pidfds = [os.pidfd_open(spare)]
    os.kill(spare, signal.SIGKILL)
    assert gone(pidfds)
    done = root_sandbox.run("echo $$ >/f")
    assert done.ended.code == 0
    assert done.diff == {"f": "f 644"}


def _prepare(inside: Inside) -> None:
    inside.launcher.prepare(isolated=False)


def test_nothing_is_made_ready_before_a_step_is_to_come() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with opened(None) as sandbox:
        mounts = Path(f"/proc/{_child(sandbox.pid)}/mountinfo")
        set_up = f" {staging.PLACE} "
        assert set_up not in mounts.read_text()
        sandbox.call(_prepare)
        assert settles(lambda: set_up in mounts.read_text())
        assert sandbox.run("echo $$").out == "1\n"


def test_a_host_that_does_not_allow_a_step_is_told_of_by_that_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError(1, "Operation not permitted", "proc")

    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setattr(staging, "preflight", refused)
    with opened(None) as sandbox:
        for _ in range(2):
            with pytest.raises(AssertionError, match=r"EnvironmentUnfit: cannot isolate build steps here: .*proc"):
                sandbox.run("true")


def test_an_unusable_upper_directory_is_an_unfit_environment(root_sandbox: SandboxProcess) -> None:
    with pytest.raises(AssertionError, match="EnvironmentUnfit: cannot run build steps here: cannot mount an overlay"):
        root_sandbox.run("true", upper="/proc", work="/proc")


def test_unfit_environments_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the capabilities for it, no mode is entered, and the error says what to do."""
    from executor.sandbox import isolation

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            syscalls.drop_bounding(syscalls.CAP_SYS_ADMIN) if os.geteuid() == 0 else None
            syscalls.capset(0, 0, 0)
            try:
                isolation.climb(isolation.IsolationMode.NAMESPACES)
            except isolation.ModeUnavailableError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert EnvironmentUnfit.exit_code == 3
