"""Steps whose root is a plain directory, which they write to in place: what they find, and what they leave."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sandbox_process import Inside, SandboxProcess, listing

from executor.sandbox import Bind, Spec, Tmpfs
from executor.snapshotter import records
from executor.snapshotter.inplace import Before, wait_for_clock_tick
from executor.snapshotter.records import Record
from executor.snapshotter.rootfs import Directory
from platforms import syscalls


@dataclass(frozen=True)
class Left:
    """How a step ended, what it said and what is in its root."""

    code: int
    out: str
    files: dict[str, str]
    owners: dict[str, str]
    """Those that are recorded."""
    times: dict[str, int]


def run(sandbox: SandboxProcess, command: str, root: str, **spec: Any) -> Left:
    made = Spec(Directory(root), ("/bin/sh", "-c", command), ("PATH=/bin",), **spec)
    left: Left = sandbox.call(_run, made)
    return left


def _run(inside: Inside, spec: Spec) -> Left:
    read, write = os.pipe()
    running = inside.launcher.start(spec, write, write)
    os.close(write)
    with open(read, encoding="utf-8", errors="replace") as stream:
        said = stream.read()
    ended = running.wait()
    root = spec.rootfs.path  # type: ignore[union-attr]
    owners = {os.fsdecode(each.path): f"{each.uid}:{each.gid}" for each in records.read(root).values()}
    files = {path: kind for path, kind in listing(root).items() if not path.startswith("bin")}
    times = {path: os.lstat(f"{root}/{path}").st_mtime_ns for path in files}
    return Left(ended.code, said or ended.error, files, owners, times)


def test_nothing_is_left_of_what_mounts_needed(sandbox: SandboxProcess) -> None:
    """An image may lack /etc, /proc and the rest, and the targets of mounts: the step has them, its root has not."""
    root = sandbox.call(Inside.busybox)
    first = run(sandbox, "ls -d /etc/resolv.conf /proc/1 /dev/null /sys/kernel /a/b && touch /new", root)
    assert first.code != 0  # there is no /a
    done = run(sandbox, "ls -d /etc/resolv.conf /proc/1 /dev/null /sys/kernel /a/b", root, mounts=(Tmpfs("/a/b"),))
    assert (done.code, done.files) == (0, {"tmp": "d 1777"})


def test_directories_keep_their_times_and_what_the_step_has_made(sandbox: SandboxProcess) -> None:
    root = sandbox.call(Inside.busybox)
    sandbox.call(_dated, root)
    done = run(sandbox, "true", root, mounts=(Tmpfs("/etc/own/place"), Tmpfs("/srv/x")))
    assert done.files == {"tmp": "d 1777", "etc": "d 755", "etc/own": "d 755", "srv": "d 755"}
    assert {done.times[path] for path in ("etc", "etc/own", "srv")} == {10**18}
    done = run(sandbox, "touch /etc/mine; touch -d @5 /etc /srv", root, mounts=(Tmpfs("/srv/x"),))
    assert set(done.files) == {"tmp", "etc", "etc/own", "etc/mine", "srv"}
    assert (done.times["etc"], done.times["srv"]) == (5 * 10**9, 5 * 10**9)


def _dated(_: Inside, root: str) -> None:
    for name in ("etc/own", "srv"):
        Path(root, name).mkdir(parents=True)
    for name in ("etc/own", "etc", "srv"):
        os.utime(Path(root, name), ns=(10**18, 10**18))


def test_a_mount_in_a_mount_of_the_same_disk_is_not_taken_for_the_root(sandbox: SandboxProcess) -> None:
    """A cache directory is on the file system that the root is on: what is made in it for a mount is not the root's."""
    root, cache = sandbox.call(Inside.busybox), sandbox.plant({"file": "text"})
    done = run(sandbox, "cat /c/file; ls -d /c/x/y", root, mounts=(Bind(cache, "/c"), Tmpfs("/c/x/y")))
    assert (done.code, done.out, done.files) == (0, "text/c/x/y\n", {"tmp": "d 1777"})


def test_devices_in_the_root_cannot_be_opened(root_sandbox: SandboxProcess) -> None:
    root = root_sandbox.call(Inside.busybox)
    done = run(root_sandbox, "mknod /z c 1 5 && head -c 1 /z; cat /proc/mounts | head -n 1", root)
    assert "Permission denied" in done.out
    assert "nodev" in done.out


def test_a_step_cannot_leave_its_root(sandbox: SandboxProcess) -> None:
    root = sandbox.call(Inside.busybox)
    done = run(sandbox, "cd ../../../../..; pwd -P; ls -d /proc/1/root/tmp; ls ..", root)
    assert done.out.splitlines()[:2] == ["/", "/proc/1/root/tmp"]
    assert set(done.out.splitlines()[2:]) == {"bin", "dev", "etc", "proc", "sys", "tmp"}


# -- owners where there is one id ------------------------------------------------------------------------------------


def test_owners_are_recorded_from_step_to_step(single_sandbox: SandboxProcess) -> None:
    root = single_sandbox.call(Inside.busybox)
    done = run(single_sandbox, "touch /a /b /c; chown 3:4 /a; chown 5 /b; mkdir /d; chown 7:8 /d; chmod 2755 /d", root)
    assert done.owners == {"a": "3:4", "b": "5:0", "d": "7:8"}
    done = run(single_sandbox, "stat -c %u:%g /a /b /d; mv /a /e; chown 0 /b; touch /d/f; stat -c %u:%g /d/f /e", root)
    assert done.out.split() == ["3:4", "5:0", "7:8", "0:8", "3:4"]
    assert done.owners == {"e": "3:4", "d": "7:8", "d/f": "0:8"}
    done = run(single_sandbox, "stat -c %u:%g /b /e /d/f", root)
    assert (done.out.split(), done.owners) == (["0:0", "3:4", "0:8"], {"e": "3:4", "d": "7:8", "d/f": "0:8"})


def test_the_owner_of_a_file_that_is_gone_is_nobodys(single_sandbox: SandboxProcess) -> None:
    """In a layer it stays as long as the step; in place, the file system gives its inode to the next file."""
    root = single_sandbox.call(Inside.busybox)
    run(single_sandbox, "for n in 1 2 3 4 5 6 7 8; do touch /f$n; done; chown 9 /f*", root)
    done = run(single_sandbox, "rm /f*; for n in 1 2 3 4 5 6 7 8; do touch /new$n; done; stat -c %u /new*", root)
    assert (set(done.out.split()), done.owners) == ({"0"}, {})


def test_what_another_user_makes_is_that_users(single_sandbox: SandboxProcess) -> None:
    root = single_sandbox.call(Inside.busybox)
    run(single_sandbox, "touch /tmp/a /tmp/old; chown 3:4 /tmp/a; chmod 666 /tmp/a", root)
    done = run(single_sandbox, "echo more >> /tmp/a; touch /tmp/mine; echo >> /tmp/old", root, uid=1000, gid=100)
    assert done.owners == {"tmp/a": "3:4", "tmp/mine": "1000:100"}


def test_what_was_made_just_before_is_not_the_steps(single_sandbox: SandboxProcess) -> None:
    """A root is made right before its first step, in less time than the clock of files takes from tick to tick."""
    for _ in range(5):
        done = run_at_once(single_sandbox, "touch /d/mine", uid=1000, gid=100)
        assert done.owners == {"d": "0:7", "d/mine": "1000:100"}
        done = run_at_once(single_sandbox, "touch /d/mine; chmod 600 /d/old; stat -c %g /d/old /d/mine")
        assert (done.out.split(), done.owners) == (["0", "7"], {"d": "0:7", "d/mine": "0:7"})


def run_at_once(sandbox: SandboxProcess, command: str, **spec: Any) -> Left:
    left: Left = sandbox.call(_run_at_once, command, spec)
    return left


def _run_at_once(inside: Inside, command: str, spec: dict[str, Any]) -> Left:
    """Run a step in a root whose directory ``d`` hands its group down, and which has just been made."""
    root = inside.busybox()
    Path(root, "d").mkdir()
    records.write(root, [Record(b"d", 0, 7)])
    Path(root, "d").chmod(0o2777)
    Path(root, "d", "old").touch()
    return _run(inside, Spec(Directory(root), ("/bin/sh", "-c", command), ("PATH=/bin",), **spec))


def test_a_user_who_renames_a_file_leaves_it_to_its_owner(single_sandbox: SandboxProcess) -> None:
    root = single_sandbox.call(Inside.busybox)
    run(single_sandbox, "mkdir -m 777 /d /d/e; cd /d; touch a b e/f; chown 3:4 a b e e/f", root)
    done = run(single_sandbox, "cd /d; mv a x; ln b y; mv e z; touch new", root, uid=1000, gid=100)
    assert (done.code, done.out) == (0, "")
    kept = {f"d/{name}": "3:4" for name in ("x", "b", "y", "z", "z/f")}
    assert done.owners == kept | {"d/new": "1000:100"}


def test_new_files_are_known_where_nothing_says_when_they_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system without creation times (statx(2), ``STATX_BTIME``)."""
    monkeypatch.setattr(syscalls, "birth", lambda _: 0)
    root = tmp_path / "root" / "fs"
    (root / "old").mkdir(parents=True)
    (root / "theirs").touch()
    records.write(str(root), (Record(b"theirs", 3, 4),))
    before = Before(str(root), wait_for_clock_tick())
    (root / "old" / "new").mkdir()
    (root / "theirs").rename(root / "old" / "moved")
    (root / "theirs").touch()
    (root / "old").chmod(0o700)
    owners = {each.path: each.uid for each in before.claimed(1000, 100)}
    assert owners == {b"old/new": 1000, b"theirs": 1000, b"old/moved": 3}


def test_an_owner_under_a_mount_is_not_the_mounts(single_sandbox: SandboxProcess) -> None:
    """Both are on one disk: a file of the mount has the path of one of the root that it covers."""
    root, cache = single_sandbox.call(Inside.busybox), single_sandbox.plant({"f": "cached"})
    single_sandbox.call(_covered, root)
    done = run(single_sandbox, "chown 9:9 /c/f; stat -c %u /c/f", root, mounts=(Bind(cache, "/c"),))
    assert (done.out.split(), done.owners) == (["9"], {"c/f": "1:2"})


def _covered(_: Inside, root: str) -> None:
    Path(root, "c").mkdir()
    Path(root, "c", "f").touch()
    records.write(root, [Record(b"c/f", 1, 2)])


def test_what_is_recorded_is_carried_where_owners_can_be_set(mapped_sandbox: SandboxProcess) -> None:
    root = mapped_sandbox.call(Inside.busybox)
    mapped_sandbox.call(_recorded, root)
    done = run(mapped_sandbox, "echo more >> /a; rm /b; touch /b; chown 7:7 /c; mv /d /e", root)
    assert done.owners == {"a": "1:2", "c": "7:7"}


def _recorded(_: Inside, root: str) -> None:
    for name in ("a", "b", "c", "d"):
        Path(root, name).touch()
    records.write(root, [Record(name, 1, 2) for name in (b"a", b"b", b"c", b"d")])
