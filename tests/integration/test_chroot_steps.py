"""What steps in a chroot find in place of mounts and of /proc (mode ``chroot``)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from sandbox_process import Inside, SandboxProcess, listing, opened

from executor.sandbox import Bind, SecretFile, Spec
from executor.sandbox.report import NOT_SET_UP
from executor.supervised.tree_copies import copy_tree
from platforms import syscalls
from platforms.errors import EnvironmentUnfit


def _cache(inside: Inside, files: dict[str, str]) -> str:
    cache = inside.fresh("fs")
    for name, text in files.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(text)
    os.chown(cache / next(iter(files)), 5, 6)
    return str(cache)


def test_what_is_written_to_a_read_only_cache_is_discarded(chroot_sandbox: SandboxProcess) -> None:
    cache = Path(chroot_sandbox.call(_cache, {"kept": "kept\n", "below/other": "other"}))
    before = listing(str(cache)), (cache / "kept").stat().st_ino
    done = chroot_sandbox.run(
        "cat /cache/kept; stat -c %u:%g /cache/kept; echo more >>/cache/kept; rm -r /cache/below; touch /cache/new;"
        "ln /cache/kept /linked; mv /cache /moved",
        mounts=(Bind(str(cache), "/cache", readonly=True),),
    )
    assert (done.out, done.ended.code) == ("kept\n5:6\n", 0)
    assert (listing(str(cache)), (cache / "kept").stat().st_ino) == before
    assert (cache / "kept").read_text() == "kept\n"


def test_a_file_that_is_linked_into_another_cache_becomes_two(chroot_sandbox: SandboxProcess) -> None:
    """With mounts, link(2) between them fails."""
    one, other = (Path(chroot_sandbox.call(_cache, {"file": name, "below/kept": "kept"})) for name in ("one", "other"))
    done = chroot_sandbox.run(
        "ln /one/file /other/linked && ln /one/file /one/below/second && ln /other/below/kept /other/third",
        mounts=(Bind(str(one), "/one"), Bind(str(other), "/other")),
    )
    assert done.ended.code == 0, done.err
    assert (one / "file").samefile(one / "below/second")
    assert (other / "third").samefile(other / "below/kept")
    assert not (other / "linked").samefile(one / "file")
    assert [each.stat().st_nlink for each in (one / "file", other / "linked", other / "third")] == [2, 1, 2]
    assert (_kept(other / "linked"), (other / "linked").read_text()) == (_kept(one / "file"), "one")


def test_a_cache_has_one_place_in_a_root(chroot_sandbox: SandboxProcess) -> None:
    cache = Path(chroot_sandbox.call(_cache, {"kept": "kept"}))
    for readonly in (True, False):
        mounts = (Bind(str(cache), "/one", readonly=readonly), Bind(str(cache), "/other"))
        done = chroot_sandbox.run("touch /one/new", mounts=mounts)
        assert done.ended.code == NOT_SET_UP
        assert "cannot mount on /other: the same cache directory is on /one" in done.ended.error
        assert os.listdir(cache) == ["kept"]
    both = Bind(str(cache), "/one", readonly=True), Bind(str(cache), "/other", readonly=True)
    done = chroot_sandbox.run("cat /one/kept /other/kept", mounts=both)
    assert (done.out, done.ended.code) == ("keptkept", 0)


def test_a_new_file_is_not_taken_for_one_that_was_removed(chroot_sandbox: SandboxProcess) -> None:
    """File systems give the inode number of a file that nobody has open to the next one."""
    done = chroot_sandbox.run(
        "rm /secret /dev/pts/ptmx; i=0; while [ $i -lt 50 ]; do echo plain >/new$i; i=$((i + 1)); done;"
        "for f in /new*; do [ -t 0 ] <$f && exit 1; done; cat /new* | sort -u; stat -c %F /new* | sort -u",
        mounts=(SecretFile("/secret", b"word\n", 0o400),),
    )
    assert done.out.split() == ["plain", "regular", "file"], done.err


def test_the_mode_of_an_open_file_is_changed_by_its_name_in_proc(chroot_sandbox: SandboxProcess) -> None:
    """As C libraries do for fchmodat(2) with AT_SYMLINK_NOFOLLOW, which tar and rsync call."""
    done = chroot_sandbox.run(
        "mkdir /d; touch /f; exec 3</d 4</f; ls /proc/self/fd >/ls;"
        "chmod 2775 /proc/self/fd/3; chmod 4711 /dev/fd/4; stat -c %a /d /f;"
        "exec 5</proc/version; ls /proc/self/fd >/ls; chmod 777 /proc/self/fd/5"
    )
    assert done.out.split() == ["2775", "4711"], done.err
    assert done.ended.code == 1
    assert "Operation not permitted" in done.err


def test_a_cache_outlives_the_process_that_should_move_it_back(_busybox: None) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with opened(None, mode="chroot") as doomed:
        cache = Path(doomed.call(_cache, {"kept": "kept"}))
        command = "echo new >/cache/new; echo ready; sleep 1000"
        assert "has died" in doomed.call(_killed_in, doomed.spec(command, mounts=(Bind(str(cache), "/cache"),)))
        assert {each.name: each.read_text() for each in cache.iterdir()} == {"kept": "kept", "new": "new\n"}
        assert os.listdir(cache.parent) == ["fs"]


def _killed_in(inside: Inside, spec: Spec) -> str:
    """Kill the reaper of a step with SIGKILL when the step has begun; return what the executor says of it."""
    _, running, out, _ = inside._start(spec)
    assert os.read(out, 100) == b"ready\n"
    zygote = inside.launcher._zygote
    (reaper,) = map(int, Path(f"/proc/{zygote}/task/{zygote}/children").read_text().split())
    os.kill(reaper, signal.SIGKILL)
    try:
        running.wait()
    except EnvironmentUnfit as error:
        return str(error)
    return ""


def test_files_of_proc_are_there_before_they_are_listed(chroot_sandbox: SandboxProcess) -> None:
    """lstat(2) is executed by the kernel, in the step's root."""
    names = "/proc/meminfo /proc/self/exe /proc/self/status /proc/self/fdinfo /proc/self/cwd /proc/net /proc/self/task"
    done = chroot_sandbox.run(f"ls -d {names} && ls -l /proc/self/exe >/dev/null")
    assert (sorted(done.out.split()), done.err) == (sorted(names.split()), "")


def test_who_cannot_be_traced_is_not_taken_for_root() -> None:
    """The supervisor opens files as the owner of the caller's directory in /proc: the kernel keeps that the effective
    user, although the files in it become root's (prctl(2), PR_SET_DUMPABLE)."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    held, release = os.pipe()
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.setresgid(6, 6, 6)
        os.setresuid(5, 5, 5)
        syscalls.set_dumpable(False)
        os.write(say, b"ready")
        os.read(held, 1)
        os._exit(0)
    os.close(say)
    try:
        assert os.read(said, 5) == b"ready"
        owners = [(each.st_uid, each.st_gid) for each in map(os.stat, (f"/proc/{child}", f"/proc/{child}/mem"))]
    finally:
        os.close(release)
        os.waitpid(child, 0)
    assert owners == [(5, 6), (0, 0)]


def test_a_copy_of_a_tree_has_all_but_sockets_and_devices(tmp_path: Path) -> None:
    """Links are not followed, and are as many files as names."""
    source = tmp_path / "source"
    deep = source / "/".join(["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 3_000_000)
    (deep / "file").chmod(0o4711)
    os.utime(deep / "file", ns=(1, 2))
    (source / "second").hardlink_to(deep / "file")
    (source / "link").symlink_to(tmp_path)
    os.mkfifo(source / "pipe", 0o640)
    if os.geteuid() == 0:
        os.chown(deep / "file", 5, 6)
        os.chmod(deep / "file", 0o4711)
        os.mknod(source / "disk", 0o60600, os.makedev(7, 0))
        os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    os.utime(source / "d", ns=(3, 4))
    before = listing(str(source))
    copy_tree(str(source), str(tmp_path / "copy"))
    before.pop("disk", None)
    assert listing(str(tmp_path / "copy")) == before
    copied = tmp_path / "copy" / deep.relative_to(source) / "file"
    assert copied.read_bytes() == (deep / "file").read_bytes()
    assert _kept(copied) == _kept(deep / "file")
    assert (copied.stat().st_nlink, (tmp_path / "copy/d").stat().st_mtime_ns) == (1, 4)


def _kept(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns
