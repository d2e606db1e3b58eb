"""Attack 83: a step whose path calls are answered reaches files, sockets or processes of the user that it runs as."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import perl_steps
import pytest
from sandbox_process import Done, Inside, SandboxProcess

from executor.sandbox.spec import Bind

pytestmark = perl_steps.NEEDED

SECRET = "token-of-the-executor"


@pytest.fixture(scope="module")
def perl(answered_sandbox: SandboxProcess) -> str:
    """A layer with perl and its modules, which makes any system call."""
    return perl_steps.layer(answered_sandbox)


@pytest.fixture(scope="module")
def outside(answered_sandbox: SandboxProcess) -> Iterator[Path]:
    """A directory that the executor's user may read and write, with a secret and two sockets."""
    place = Path(answered_sandbox.call(_place))
    with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        for each, name in ((stream, "stream"), (datagrams, "datagrams")):
            each.bind(str(place / name))
            (place / name).chmod(0o777)
        stream.listen()
        yield place


def _place(inside: Inside) -> str:
    place = inside.fresh("outside")
    (place / "secret").write_text(SECRET)
    os.environ["REGISTRY_TOKEN"] = SECRET
    return str(place)


def _fresh(inside: Inside, name: str) -> str:
    return str(inside.fresh(name))


def attack(sandbox: SandboxProcess, perl: str, script: str, values: Mapping[str, object] = {}, **spec: object) -> Done:
    """Run a perl script in a step. ``sys("name", …)`` makes a system call and prints its name and errno, or "done"."""
    numbers = ", ".join(f"{name} => {number}" for name, number in perl_steps.NUMBERS.items())
    given = "".join(f'my ${name} = "{value}"; ' for name, value in values.items())
    head = f"$| = 1; my %n = ({numbers}); {given}" + (
        "sub sys { my $name = shift; $! = 0; my @given = @_; my $got = syscall($n{$name}, @given);"
        ' print "$name ", ($got < 0 ? $! + 0 : "done"), "\\n"; $got }\n'
    )
    done = sandbox.run("/bin/perl", "-e", head + script, layers=(perl, sandbox.busybox), **spec)
    assert done.ended.error == "", done
    return done


def test_no_path_leads_out(answered_sandbox: SandboxProcess, perl: str, outside: Path) -> None:
    script = r"""
    my $up = "/.." x 20;
    symlink("$up$place/secret", "/link"); symlink("/proc/self/root$up$place/secret", "/magic");
    symlink("/proc/self/cwd$up$place/secret", "/here");
    for my $path ("$place/secret", "$up$place/secret", "/proc/self/root$up$place/secret", "/proc/1/root$place/secret",
                  "/proc/self/cwd$up$place/secret", "/proc/thread-self/root$place/secret", "/link", "/magic", "/here",
                  "/proc/@{[getppid]}/root$place/secret", "/proc/@{[getppid]}/cwd$place/secret") {
      open(my $file, "<", $path) and print "read: ", <$file>;
    }
    for my $start ("/", "/proc", "/proc/self", "/proc/self/fd", "/dev", "/sys", "/sys/kernel") {
      my $top = "$start\0"; my $fd = syscall($n{openat}, -100, $top, 0x10000 | 0200000);
      for my $rest ("..$up$place/secret", "root$place/secret", "../root$place/secret", "$fd$up$place/secret") {
        my $path = "$rest\0"; my $got = syscall($n{openat}, $fd, $path, 0);
        print "opened $start $rest\n" if $got >= 0;
        my $how = pack("QQQ", 0, 0, 0); $got = syscall($n{openat2}, $fd, $path, $how, 24);
        print "opened2 $start $rest\n" if $got >= 0;
        syscall($n{fchdir}, $fd); open(my $file, "<", $rest) and print "read: ", <$file>; chdir "/";
        my $name = "/stolen\0"; syscall($n{linkat}, $fd, $path, -100, $name, 0) >= 0 and print "linked\n";
      }
    }
    print "end\n";
    """
    assert attack(answered_sandbox, perl, script, {"place": outside}).out == "end\n"


def test_no_other_call_leads_to_files(answered_sandbox: SandboxProcess, perl: str) -> None:
    script = """
    my $path = "/etc\\0"; my $space = "\\0" x 512;
    for my $name (qw(mount unshare setns chroot pivot_root open_by_handle_at name_to_handle_at io_uring_setup open_tree
                     userfaultfd kcmp inotify_add_watch setxattrat nosuch)) {
      sys($name, $path, $space, $space, 0, 0);
    }
    """
    out = attack(answered_sandbox, perl, script).out
    assert "done" not in out
    assert len(out.splitlines()) == 14


def test_it_reaches_no_process_outside(answered_sandbox: SandboxProcess, perl: str) -> None:
    script = r"""
    for my $pid ($executor + 0, getppid) {
      my $space = "\0" x 4096; my $iov = pack("PQ", $space, 4096);
      my $limit = pack("QQ", 1, 1); my $mask = pack("Q", 1);
      sys("process_vm_readv", $pid, $iov, 1, $iov, 1, 0);
      sys("ptrace", 0x4206, $pid, 0, 0);
      sys("kill", $pid, $_) for 0, 9, 19;
      sys("tgkill", $pid, $pid, 9);
      sys("rt_sigqueueinfo", $pid, 9, $space);
      sys("pidfd_open", $pid, 0);
      sys("prlimit64", $pid, 7, $limit, 0);
      sys("sched_setaffinity", $pid, 8, $mask);
      sys("setpriority", 0, $pid, 19);
      pipe(my $read, my $write); sys("fcntl", fileno($read), 8, $pid); sys("fcntl", fileno($read), 10, 9);
      for my $name (qw(environ mem maps status cwd root fd)) { print "proc done\n" if -e "/proc/$pid/$name" }
    }
    kill 9, -1; kill 9, -$executor;
    print "still here\n";
    """
    out = attack(answered_sandbox, perl, script, {"executor": answered_sandbox.pid}).out
    assert "done" not in out
    assert out.endswith("still here\n")
    assert answered_sandbox.run("true").ended.code == 0, "the executor lives"


def test_sockets_lead_nowhere(answered_sandbox: SandboxProcess, perl: str, outside: Path) -> None:
    """Not even those that other calls make, on which the kernel would execute connect(2) and bind(2)."""
    script = r"""
    my $stream = pack("Sa108", 1, "$place/stream"); my $datagrams = pack("Sa108", 1, "$place/datagrams");
    my $new = pack("Sa108", 1, "$place/new");
    for my $kind (1, 2, 5) {
      socket(my $one, 1, $kind, 0); socketpair(my $two, my $three, 1, $kind, 0);
      for my $each ($one, $two, $three) {
        for my $to ($stream, $datagrams) { connect($each, $to) and print "connected $kind\n" }
        bind($each, $new) and print "bound $kind\n";
      }
    }
    socket(my $named, 1, 1, 0); connect($named, pack("Sa*", 1, "\0$name")) and print "connected by name\n";
    print "end\n";
    """
    with socket.socket(socket.AF_UNIX) as named:
        named.bind("\0kanifold-test")
        named.listen()
        assert attack(answered_sandbox, perl, script, {"place": outside, "name": "kanifold-test"}).out == "end\n"
    assert not (outside / "new").exists()


def test_a_connected_socket_has_a_name(answered_sandbox: SandboxProcess, perl: str) -> None:
    """So the kernel cannot bind it to a path that another thread writes to memory after the check."""
    script = r"""
    socket(my $server, 1, 1, 0); bind($server, pack("Sa108", 1, "/server")) or print "not bound: $!\n";
    socket(my $client, 1, 1, 0); connect($client, pack("Sa108", 1, "/server")) or print "not connected: $!\n";
    accept(my $accepted, $server);
    print length(getsockname($_)) > 2 ? "named\n" : "without a name\n" for $client, $accepted;
    """
    assert attack(answered_sandbox, perl, script).out == "named\nnamed\n"


def test_a_file_of_a_mount_is_not_linked_or_moved_out_of_it(
    answered_sandbox: SandboxProcess, perl: str, outside: Path
) -> None:
    """A link to a file of a read-only mount could be written to; one to a file of a cache is in a layer and a cache."""
    script = r"""
    open(my $held, "<", "/source/secret"); my $empty = "\0"; my $name = "/byfd\0"; my $other = "/bymagic\0";
    my $magic = "/proc/self/fd/@{[fileno $held]}\0";
    sys("linkat", fileno($held), $empty, -100, $name, 0x1000);
    sys("linkat", -100, $magic, -100, $other, 0x400);
    link("/source/secret", "/linked") or print "link ", $! + 0, "\n";
    open(my $new, ">", "/cache/file"); close $new;
    link("/cache/file", "/kept") or print "link ", $! + 0, "\n";
    rename("/cache/file", "/kept") or print "rename ", $! + 0, "\n";
    rename("/cache/file", "/cache/other") and link("/cache/other", "/cache/third") and print "within\n";
    """
    cache = answered_sandbox.call(_fresh, "cache")
    mounts = (Bind(str(outside), "/source", readonly=True), Bind(cache, "/cache"))
    out = attack(answered_sandbox, perl, script, mounts=mounts).out
    assert out == "linkat 18\nlinkat 18\nlink 18\nlink 18\nrename 18\nwithin\n"


def test_a_read_only_mount_is_not_truncated_by_opening_it_for_reading(
    answered_sandbox: SandboxProcess, perl: str, outside: Path
) -> None:
    script = r"""
    my $path = "/source/secret\0"; my $name = "secret\0"; my $top = "/source\0";
    sys("openat", -100, $path, 01000);
    sys("openat", syscall($n{openat}, -100, $top, 0200000), $name, 01000);
    open(my $held, "<", "/source/secret"); my $magic = "/proc/self/fd/@{[fileno $held]}\0";
    sys("openat", -100, $magic, 01000);
    chdir "/source"; sys("openat", -100, $name, 01000);
    """
    out = attack(answered_sandbox, perl, script, mounts=(Bind(str(outside), "/source", readonly=True),)).out
    assert out == "openat 30\n" * 4
    assert (outside / "secret").read_text() == SECRET


def test_hidden_files_of_proc_are_hidden_from_a_step_that_is_there(answered_sandbox: SandboxProcess, perl: str) -> None:
    script = r"""
    chdir "/proc/self" or print "not there\n";
    for my $name ("mem", "attr/current", "pagemap", "ns/mnt", "map_files") {
      open(my $file, "<", $name) and print "opened $name\n";
    }
    open(my $file, "+<", "environ") and print "writable\n";
    open($file, "<", "comm") and print <$file>;
    """
    assert attack(answered_sandbox, perl, script).out == "perl\n"


def test_no_argument_ends_the_supervisor(answered_sandbox: SandboxProcess, perl: str) -> None:
    script = r"""
    my $path = "/file\0"; my $name = "user.a\0"; my $text = "x"; open(my $file, ">", "/file"); close $file;
    sys("truncate", $path, -1);
    sys("setxattr", $path, $name, $text, 1, -1);
    sys("kill", -1, -1);
    sys("kill", -1, 0x7fffffff);
    sys("openat", -100, -1, 0); sys("readlinkat", -100, -1, -1, -1); sys("openat2", -100, $path, -1, 24);
    print "end\n";
    """
    out = attack(answered_sandbox, perl, script).out
    assert "done" not in out.replace("kill done", "")
    assert out.endswith("end\n")


def test_it_makes_no_process_without_the_tracer(answered_sandbox: SandboxProcess, perl: str) -> None:
    script = 'my $pid = sys("clone", 0x00800000 | 17, 0, 0, 0, 0); exit if !$pid;'
    assert attack(answered_sandbox, perl, script).out == "clone 1\n"


def test_devices_that_it_makes_cannot_be_opened(answered_sandbox: SandboxProcess, perl: str) -> None:
    script = r"""
    for ([0060600, 254 << 8], [0020600, (1 << 8) | 1], [0020600, (1 << 8) | 5]) {
      my ($mode, $number) = @$_; my $path = "/device\0"; unlink "/device";
      sys("mknodat", -100, $path, $mode, $number);
      open(my $file, "<", "/device") and print "opened\n";
    }
    """
    assert attack(answered_sandbox, perl, script).out == "mknodat done\n" * 3


def test_what_it_replaces_while_it_is_looked_up_leads_nowhere(
    answered_sandbox: SandboxProcess, perl: str, outside: Path
) -> None:
    """One process exchanges a directory for a link to the outside, another opens files in it."""
    script = r"""
    mkdir "/real"; open(my $file, ">", "/real/secret"); print $file "inside"; close $file;
    symlink($place, "/away"); rename("/real", "/swapped");
    my $pid = fork;
    unless ($pid) {
      while (1) { rename("/swapped", "/kept"); rename("/away", "/swapped"); rename("/swapped", "/away");
                  rename("/kept", "/swapped") }
    }
    my $found = 0;
    for (1..300) {
      open(my $file, "<", "/swapped/secret") or next; my $text = <$file>; $found++;
      print "read: $text\n" if $text ne "inside";
      unlink "/swapped/other"; open(my $new, ">", "/swapped/other");
    }
    kill 9, $pid; wait; print $found > 0 ? "end\n" : "never\n";
    """
    assert attack(answered_sandbox, perl, script, {"place": outside}).out == "end\n"
    assert sorted(os.listdir(outside)) == ["datagrams", "secret", "stream"]


def test_nothing_is_left_of_it(answered_sandbox: SandboxProcess, perl: str) -> None:
    script = (
        "for (1..3) { if (!fork) { fork and exit; setpgrp; $SIG{TERM} = $SIG{HUP} = 'IGNORE'; sleep 1000 } } sleep 0.1;"
    )
    assert attack(answered_sandbox, perl, script).ended.code == 0
    assert answered_sandbox.call(_processes, "perl", 0) == 0


def test_who_is_killed_while_it_waits_for_a_pipe_leaves_no_process(answered_sandbox: SandboxProcess, perl: str) -> None:
    """The supervisor forks a process for each open(2) of a pipe that has no other end."""
    script = r"""
    my $path = "/pipe\0"; syscall($n{mknodat}, -100, $path, 0010644, 0); $| = 1;
    my @all = map { my $pid = fork; $pid or do { open(my $pipe, "<", "/pipe"); exit }; $pid } 1..20;
    select(undef, undef, undef, 0.3); kill 9, @all; waitpid($_, 0) for @all;
    print "ready\n"; sleep 2;
    """
    numbers = ", ".join(f"{name} => {number}" for name, number in perl_steps.NUMBERS.items())
    argv = ("/bin/perl", "-e", f"my %n = ({numbers}); {script}")
    answered_sandbox.begin(answered_sandbox.spec(*argv, layers=(perl, answered_sandbox.busybox)), "ready")
    assert answered_sandbox.call(_processes, "kanifold-calls", 1) == 1
    answered_sandbox.call(_processes, "perl", 0)


def _processes(inside: Inside, name: str, expected: int) -> int:
    """The number of this user's processes called ``name``, when it is as expected, or after 4 seconds."""
    until, own = time.monotonic() + 4, f"Uid:\t{os.getuid()}\t"
    while True:
        lines = [_status(each) for each in os.listdir("/proc") if each.isdigit()]
        found = sum(f"Name:\t{name}" in each and any(line.startswith(own) for line in each) for each in lines)
        if found == expected or time.monotonic() > until:
            return found
        time.sleep(0.05)


def _status(name: str) -> list[str]:
    try:
        return Path(f"/proc/{name}/status").read_text().splitlines()
    except OSError:
        return []
