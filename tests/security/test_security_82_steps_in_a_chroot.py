"""Attack 82: a step without namespaces leaves its root, or reads, traces, limits or signals what is outside of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import perl_steps
import pytest
from sandbox_process import Done, Inside, SandboxProcess, opened

from executor.sandbox.spec import SecretFile

pytestmark = perl_steps.NEEDED


@pytest.fixture(scope="module")
def perl(chroot_sandbox: SandboxProcess) -> str:
    """A layer with perl, which makes any system call."""
    return perl_steps.layer(chroot_sandbox)


def attack(sandbox: SandboxProcess, perl: str, script: str, values: Mapping[str, object] = {}, **spec: object) -> Done:
    """Run a perl script in a step. ``sys("name", …)`` makes a system call and prints its name and errno."""
    numbers = ", ".join(f"{name} => {number}" for name, number in perl_steps.NUMBERS.items())
    given = "".join(f'my ${name} = "{value}"; ' for name, value in values.items())
    head = f"$| = 1; my %n = ({numbers}); {given}" + (
        "sub sys { my $name = shift; $! = 0; my @given = @_; my $got = syscall($n{$name} // $name, @given);"
        ' print "$name ", ($got < 0 ? $!{EPERM} ? "EPERM" : $! + 0 : "done"), "\\n"; $got }\n'
    ).replace('$!{EPERM} ? "EPERM" : $! + 0', '$! == 1 ? "EPERM" : $! + 0')
    return sandbox.run("/bin/perl", "-e", head + script, layers=(perl, sandbox.busybox), **spec)


@pytest.fixture(params=["chroot_sandbox", "scopeless_sandbox"])
def any_sandbox(request: pytest.FixtureRequest) -> SandboxProcess:
    """Steps in a chroot with all of Landlock, and with that of older kernels."""
    found: SandboxProcess = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def outside(any_sandbox: SandboxProcess) -> Iterator[dict[str, int]]:
    """Processes outside of the step: the executor, with a token in its memory, its zygote, and a stranger."""
    stranger = subprocess.Popen(["sleep", "1000"])
    any_sandbox.call(_hold, TOKEN)
    found = {"executor": any_sandbox.pid, "zygote": any_sandbox.call(_zygote), "stranger": stranger.pid}
    yield found
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


TOKEN = f"token-{secrets.token_hex(8)}"


def _hold(inside: Inside, token: str) -> None:
    os.environ["REGISTRY_TOKEN"] = token
    inside.token = token.encode()  # type: ignore[attr-defined]


def _zygote(inside: Inside) -> int:
    return int(inside.launcher._zygote)


def test_it_cannot_leave_its_root(chroot_sandbox: SandboxProcess, perl: str) -> None:
    done = attack(
        chroot_sandbox, perl,
        'mkdir "/x"; open my $here, "<", "/"; sys("chroot", "/x"); chdir ".." for 1..40; '
        'opendir my $all, "."; print join " ", readdir $all;',
    )  # fmt: skip
    assert done.out.startswith("chroot EPERM\n")
    assert "x" in done.out.split(), done.out


def test_it_reaches_no_process_outside(any_sandbox: SandboxProcess, perl: str, outside: dict[str, int]) -> None:
    script = """
    for my $pid (@pids, getppid) {
      my $buffer = "\\0" x 4096;
      my $iov = pack("QQ", unpack("Q", pack("P", $buffer)), 4096);
      sys("process_vm_readv", $pid + 0, $iov, 1, $iov, 1, 0);
      sys("process_vm_writev", $pid + 0, $iov, 1, $iov, 1, 0);
      sys("ptrace", 0x4206, $pid + 0, 0, 0);
      sys("ptrace", 16, $pid + 0, 0, 0);
      sys("kill", $pid + 0, $_) for 0, 9, 19;
      sys("tgkill", $pid + 0, $pid + 0, 9);
      sys("rt_sigqueueinfo", $pid + 0, 9, "\\0" x 128);
      my $pidfd = syscall(434, $pid + 0, 0);
      sys(424, $pidfd, 9, 0, 0) if $pidfd >= 0;
      sys(438, $pidfd, 0, 0) if $pidfd >= 0;
      sys("prlimit64", $pid + 0, 0, pack("QQ", 1, 1), 0);
      sys("prlimit64", $pid + 0, 7, pack("QQ", 3, 3), 0);
      sys("sched_setaffinity", $pid + 0, 8, pack("Q", 1));
      sys("setpriority", 0, $pid + 0, 19);
    }
    kill 9, -1;
    print "still here\\n";
    """
    pids = " ".join(map(str, outside.values()))
    done = attack(any_sandbox, perl, f"my @pids = split / /, '{pids}';" + script)
    said = [line.split() for line in done.out.splitlines()]
    assert [*said[-1]] == ["still", "here"], done
    assert {answer for _, answer in said[:-1]} == {"EPERM"}, done.out
    assert len(said) > 50


def test_signals_that_the_kernel_sends_reach_nobody_either(
    any_sandbox: SandboxProcess, perl: str, outside: dict[str, int]
) -> None:
    """fcntl(2), F_SETOWN and F_SETSIG: input on a pipe kills whom the step has named."""
    script = """
    for my $pid (@ARGV) {
      pipe(my $read, my $write);
      syscall($n{fcntl}, fileno($read), 8, $pid + 0);
      syscall($n{fcntl}, fileno($read), 10, 9);
      syscall($n{fcntl}, fileno($read), 4, 020000);
      syswrite($write, "x");
    }
    """
    pids = ", ".join(map(str, outside.values()))
    attack(any_sandbox, perl, f"@ARGV = ({pids});" + script)
    time.sleep(0.05)  # nothing is to come, so there is nothing to wait for
    assert any_sandbox.run("true").ended.code == 0


def test_processes_of_a_step_signal_each_other(any_sandbox: SandboxProcess) -> None:
    done = any_sandbox.run(
        "sleep 1000 & kill -0 $!; kill $!; wait $!; echo $?; trap 'echo got' USR1; kill -USR1 $$;"
        "(sleep 1000 & sleep 1000 & kill -KILL 0); echo not here",
    )
    assert (done.out, done.ended.code) == ("143\ngot\n", 137)
    other = any_sandbox.run("(sleep 1000 &); sleep 0.01; kill -KILL -1; echo here", uid=1000)
    assert (other.out, other.ended.code) == ("here\n", 0)


def test_it_finds_neither_processes_nor_secrets_of_others_in_proc(
    any_sandbox: SandboxProcess, outside: dict[str, int]
) -> None:
    places = " ".join(
        f"/proc/{pid}/{name}" for pid in (1, *outside.values())
        for name in ("environ", "cmdline", "maps", "mem", "status", "fd/1", "root/etc/passwd", "cwd/x", "exe")
    )  # fmt: skip
    done = any_sandbox.run(
        f"cat {places} /proc/$PPID/environ; for each in {places}; do readlink $each; test -e $each && echo $each; done;"
        "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; true"
    )
    assert TOKEN not in done.out
    assert "REGISTRY_TOKEN" not in done.out
    assert not re.search(r"^/proc/", done.out, re.M), done.out
    assert str(outside["executor"]) not in any_sandbox.run("ls /proc").out.split()


def test_no_descriptor_that_it_can_get_leads_out(chroot_sandbox: SandboxProcess, perl: str, tmp_path: Path) -> None:
    """Of directories and files of /proc, /sys and /dev: by ``..`` from each, opened, entered, looked at, changed."""
    canary = tmp_path / "canary"
    canary.write_text("canary")
    canary.chmod(0o644)
    script = r"""
    my @places = ("/", "/proc", "/proc/", "/proc/self", "/proc/self/", "/proc/self/fd", "/proc/self/fdinfo",
      "/proc/self/task", "/proc/self/task/$$", "/proc/self/net", "/proc/self/ns", "/proc/self/root", "/proc/self/cwd",
      "/proc/net", "/proc/sys", "/proc/sys/kernel", "/proc/sys/net/ipv4", "/proc/$$", "/proc/thread-self", "/proc/1",
      "/proc/status", "/proc/self/status", "/proc/self/exe", "/proc/self/fd/0", "/proc/cpuinfo", "/sys", "/sys/",
      "/sys/class", "/sys/kernel", "/sys/class/net", "/dev", "/dev/fd", "/dev/pts", "/dev/ptmx", "/dev/stdin",
      "/dev/../proc/self/../self/fd", "//proc//self//root", "/proc/self/root/proc/self/cwd/proc", "/proc/self/cwd/..",
      "/proc/self/task/../../..", "/proc/sys/../..", "/proc/self/map_files", "/proc/self/attr");
    my $buffer = "\0" x 256;
    for my $place (@places) {
      for my $flags (0, 0200000, 010000000, 010200000) {
        my $fd = syscall($n{openat}, -100, $place, $flags, 0);
        next if $fd < 0;
        $tried++;
        for my $depth (1 .. 12) {
          my $path = ("../" x $depth) . $canary;
          for (0, 010000000) {
            my $got = syscall($n{openat}, $fd, $path, $_, 0);
            print "opened $path from $place\n" if $got >= 0;
          }
          print "saw $path from $place\n" if syscall($n{newfstatat}, $fd, $path, $buffer, 0) >= 0;
          print "changed $path from $place\n" if syscall($n{fchmodat}, $fd, $path, 0777) >= 0;
        }
        if (syscall($n{fchdir}, $fd) >= 0) {
          chdir ".." for 1 .. 40;
          print "entered from $place\n" if -e $canary;
          chdir "/";
        }
      }
    }
    print "tried $tried\n";
    """
    done = attack(chroot_sandbox, perl, "my $tried = 0;" + script, {"canary": str(canary)[1:]})
    found = re.fullmatch(r"tried (\d+)\n", done.out)
    assert found, done
    assert int(found[1]) > 40
    assert (canary.read_text(), canary.stat().st_mode & 0o777) == ("canary", 0o644)


def test_terminals_of_the_container_are_not_there(chroot_sandbox: SandboxProcess, perl: str) -> None:
    """Whoever can open one can type commands into it (TIOCSTI)."""
    main, other = pty.openpty()
    name = os.ttyname(other)
    done = attack(
        chroot_sandbox, perl,
        f'sys("openat", -100, "{name}", 2, 0); sys("openat", -100, "/proc/self/fd/0/../..{name}", 2, 0);'
        'my $own = sys("openat", -100, "/dev/ptmx", 2, 0); my $number = "\\0" x 4;'
        'open my $m, "+<&=", $own; ioctl($m, 0x80045430, $number); my $off = pack("i", 0); ioctl($m, 0x40045431, $off);'
        'sys("openat", -100, "/dev/pts/" . unpack("I", $number), 2, 0);',
    )  # fmt: skip
    os.close(main)
    os.close(other)
    assert done.out.splitlines() == ["openat 2", "openat 2", "openat done", "openat done"]


def test_sockets_of_the_container_by_name_are_not_reached(chroot_sandbox: SandboxProcess, perl: str) -> None:
    name = f"kanifold-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        script = 'socket(my $s, 1, 1, 0); $! = 0; connect($s, pack("S a*", 1, "\\0$name")); print $! + 0, "\\n";'
        done = attack(chroot_sandbox, perl, script, {"name": name})
    assert done.out == "1\n"


def test_devices_that_it_makes_or_that_an_image_brings_are_none(chroot_sandbox: SandboxProcess, perl: str) -> None:
    device = os.stat("/dev/zero").st_rdev
    disk = os.makedev(7, 0)
    script = (
        f'sys("mknodat", -100, "/disk", 0060600, {disk}); print -b "/disk" ? "disk" : -s _, "\\n";'
        f'sys("mknodat", -100, "/memory", 0020600, {os.makedev(1, 1)}); print -c "/memory" ? "memory" : -s _, "\\n";'
        f'sys("mknodat", -100, "/zero", 0020600, {device}); print -c "/zero" ? "zero" : "none", "\\n";'
    )
    done = attack(chroot_sandbox, perl, script)
    assert done.out.split() == ["mknodat", "done", "0", "mknodat", "done", "0", "mknodat", "done", "zero"]


def test_what_a_process_may_not_open_it_may_not_open_by_proc(chroot_sandbox: SandboxProcess) -> None:
    """A descriptor that is for reading only is opened again with the rights of the user, not of the supervisor."""
    layer = chroot_sandbox.plant({"file": "text"})
    done = chroot_sandbox.run(
        "exec 5</file; echo more >/proc/self/fd/5; echo more >/dev/fd/5; cat /file",
        layers=(layer, chroot_sandbox.busybox), uid=1000,
    )  # fmt: skip
    assert done.out == "text"
    assert done.err.count("Permission denied") == 2
    done = chroot_sandbox.run("cat /proc/*/environ >/dev/null; cat /proc/$PPID/environ", uid=1000)
    assert TOKEN not in done.out


def test_nothing_survives_its_end(any_sandbox: SandboxProcess, perl: str) -> None:
    """Orphans, sessions of their own, processes that ignore signals, other users', and what forks all the time."""
    script = r"""
    $0 = "surviving-$mark";
    for my $way (0 .. 4) {
      next if fork;
      if (fork) { exit } # adopted
      $SIG{$_} = "IGNORE" for qw(TERM HUP INT);
      syscall($n{setsid} // 112) if $way == 1;
      if ($way == 2) { $( = $) = 1000; $< = $> = 1000; }
      if ($way == 3) { while (1) { exit if fork; } }
      sleep 1000;
    }
    select undef, undef, undef, 0.1;
    print "ends\n";
    """
    mark = secrets.token_hex(4)
    done = attack(any_sandbox, perl, f'my $mark = "{mark}";' + script)
    assert (done.out, done.ended.code) == ("ends\n", 0)
    left = [each for each in Path("/proc").glob("[0-9]*") if mark.encode() in _cmdline(each)]
    assert not left, [(each / "status").read_text() for each in left]


def test_steps_do_not_meet_where_they_could_hand_each_other_directories(scopeless_sandbox: SandboxProcess) -> None:
    """By a socket with a name in the abstract namespace, which Landlock keeps apart from Linux 6.12 on."""
    command = "cut -d' ' -f1 /proc/uptime; sleep 0.1; cut -d' ' -f1 /proc/uptime"
    done = scopeless_sandbox.run_all([scopeless_sandbox.spec(command) for _ in range(3)])
    spans = sorted([float(each) for each in step.out.split()] for step in done)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), spans


def _cmdline(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("victim", ["reaper", "supervisor", "zygote", "executor"])
def test_nothing_survives_whom_somebody_kills(chroot_sandbox: SandboxProcess, victim: str) -> None:
    mark = f"{secrets.randbelow(10**6)}.{secrets.randbelow(10**6)}"
    with opened(None, mode="chroot") as doomed:
        doomed.begin(
            doomed.spec(f"trap '' TERM HUP; (sleep 1{mark} &); (sleep 2{mark} &); echo ready; sleep 3{mark}"), "ready"
        )
        zygote = doomed.call(_zygote)
        (reaper,) = _children(zygote)
        supervisor = _named(reaper, "kanifold-answer")
        chosen = {"reaper": reaper, "supervisor": supervisor, "zygote": zygote, "executor": doomed.pid}[victim]
        os.kill(chosen, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while left := [each for each in Path("/proc").glob("[0-9]*") if mark.encode() in _cmdline(each)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


@pytest.mark.usefixtures("chroot_sandbox")
def test_its_supervisor_is_an_ancestor_of_all_of_its_processes() -> None:
    """With kernel.yama.ptrace_scope 1 only ancestors read a process's memory, and with it the paths of its calls."""
    mark = f"{secrets.randbelow(10**6)}.{secrets.randbelow(10**6)}"
    with opened(None, mode="chroot") as sandbox:
        ways = f"(sleep 1{mark} &); sleep 2{mark} & (sh -c 'sleep 3{mark} & exit' &)"
        sandbox.begin(sandbox.spec(f"{ways}; echo ready; sleep 4{mark}"), "ready")
        (reaper,) = _children(sandbox.call(_zygote))
        supervisor = _named(reaper, "kanifold-answer")
        wanted = {f"sleep\0{number}{mark}\0".encode() for number in (1, 2, 3)}
        deadline = time.monotonic() + 10
        while not wanted <= (found := {_cmdline(each) for each in _all_below(supervisor)}):
            assert time.monotonic() < deadline, found


def _all_below(pid: int) -> list[Path]:
    return [found for each in _children(pid) for found in (Path(f"/proc/{each}"), *_all_below(each))]


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def _named(parent: int, name: str) -> int:
    """The child of ``parent`` that is called ``name``, as soon as it is."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for each in _children(parent):
            with contextlib.suppress(OSError):  # it has ended
                if Path(f"/proc/{each}/comm").read_text().strip() == name:
                    return each
    raise AssertionError(name)


def test_what_is_open_from_outside_is_not_opened_for_writing_by_its_name_in_proc(any_sandbox: SandboxProcess) -> None:
    """The supervisor has opened it for reading. The kernel shows its path as if it were in the root."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag")  # what is written to it is what it has
    if not setting.exists():
        pytest.skip(f"no {setting}")
    done = any_sandbox.run(
        f"exec 5<{setting} 6</proc/sys/kernel/hostname 7</run/secrets/word 8>/own; read value <{setting};"
        "echo $value >/proc/self/fd/5; echo x >>/dev/fd/6; echo x >/proc/self/fd/7; echo x 1<>/proc/self/fd/7;"
        "echo own >/proc/self/fd/8; cat /own /proc/self/fd/7",
        mounts=(SecretFile("/run/secrets/word", b"word\n"),),
    )
    assert done.out == "own\nword\n"
    refused = [line.rpartition(": ")[2] for line in done.err.splitlines()]
    assert refused == ["Permission denied", "Permission denied", "Operation not permitted", "Operation not permitted"]
    assert os.uname().nodename != "x"


@pytest.mark.parametrize(
    ("user", "results"),
    [
        (0, "truncate done, fchownat done, setxattr done, word, listxattr done, setxattr done, removexattr done,"
            " setxattr EPERM, linkat done, fchmodat done, fchmodat2 done"),
        (1000, "truncate 13, fchownat EPERM, setxattr 13, none, listxattr done, setxattr EPERM, removexattr EPERM,"
            " setxattr EPERM, linkat EPERM, fchmodat EPERM, fchmodat2 EPERM"),
    ],
)  # fmt: skip
def test_an_open_file_is_changed_by_its_name_in_proc_as_the_caller_may(
    any_sandbox: SandboxProcess, user: int, results: str
) -> None:
    """As by systemd-tmpfiles, and whoever opens a file before its attributes are changed. The file is root's."""
    done = attack(
        any_sandbox, perl_steps.layer(any_sandbox),
        'open my $f, "<", "/bin/busybox"; my $n = "/proc/self/fd/" . fileno($f); my $trusted = "trusted.a";'
        'my $capability = "security.capability"; my $value = pack("V5", 0x2000000 | 1, 1 << 7, 0, 0, 0);'
        'my $name = "user.a"; my $word = "word"; my $read = "\\0" x 16; my $names = "\\0" x 64;'
        'sys("truncate", $n, 3); sys("fchownat", -100, $n, 5, 6, 0); sys("setxattr", $n, $name, $word, 4, 0);'
        'my $l = syscall($n{getxattr}, $n, $name, $read, 16); print $l < 0 ? "none" : substr($read, 0, $l), "\\n";'
        'sys("listxattr", $n, $names, 64); sys("setxattr", $n, $capability, $value, 20, 0);'
        'sys("removexattr", $n, $capability); sys("setxattr", $n, $trusted, $word, 4, 0);'
        'my $new = "/linked"; sys("linkat", -100, $n, -100, $new, 0x400);'
        'open my $d, "<", "/bin"; my $below = "/proc/self/fd/" . fileno($d) . "/perl";'
        'sys("fchmodat", -100, $below, 0755);'
        'my $kept = "/proc/self/exe"; sys("fchmodat2", -100, $kept, 0755, 0);',
        uid=user,
    )  # fmt: skip
    assert done.out.splitlines() == results.split(", "), done.err


def test_a_file_without_a_name_is_linked_only_where_the_caller_may_search(
    chroot_sandbox: SandboxProcess, perl: str
) -> None:
    number = perl_steps.NUMBERS["linkat"]
    done = attack(
        chroot_sandbox, perl,
        'mkdir "/w"; chmod 0777, "/w"; mkdir "/c", 0700; mkdir "/c/o"; chmod 0777, "/c/o"; $) = "1000 1000";'
        '$( = 1000; $< = $> = 1000; exec "/bin/perl", "-e", q{chdir "/w"; open my $f, ">", "f"; '
        'my $n = "/proc/self/fd/" . fileno($f); for ("/c/o/x", "../c/o/x", "x", "/w/y") { my $to = $_;'
        f' $! = 0; syscall({number}, -100, $n, -100, $to, 0x400); print $! + 0, "\n" }}}};',
    )  # fmt: skip
    assert done.out.split() == ["13", "13", "0", "0"], done.err


def test_a_step_without_capabilities_does_not_get_them_by_names_in_proc(
    chroot_sandbox: SandboxProcess, perl: str
) -> None:
    """capset(2) with none: root then has no more rights to a file of another user than that file's mode gives."""
    done = attack(
        chroot_sandbox, perl,
        'mkdir "/d"; open my $f, ">", "/d/f"; chown 5, 5, "/d/f"; my $n = "/proc/self/fd/" . fileno($f);'
        'my $head = pack("Ll", 0x20080522, 0); my $none = "\\0" x 24; sys("capset", $head, $none);'
        'sys("fchmodat", -100, $n, 0777); sys("fchownat", -100, $n, 0, 0, 0); sys("truncate", $n, 0);',
    )  # fmt: skip
    assert done.out.splitlines() == ["capset done", "fchmodat EPERM", "fchownat EPERM", "truncate EPERM"]


def test_what_is_hidden_in_sys_is_not_opened_by_its_path(any_sandbox: SandboxProcess) -> None:
    done = any_sandbox.run(
        "for each in /sys/firmware/memmap/0/start /sys/class/powercap /sys/firmware/../firmware/acpi/tables/APIC; do"
        " cat $each; readlink $each; test -e $each && echo there; done"
    )
    assert done.out == ""
