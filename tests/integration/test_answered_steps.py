"""Steps whose path calls are answered: what they believe about files and themselves, and what is recorded of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sandbox_process import BUSYBOX, Done, Inside, SandboxProcess

from executor.sandbox import Spec
from executor.sandbox.spec import Tmpfs
from executor.snapshotter import records
from executor.snapshotter.records import DeviceNumber, Record


@dataclass(frozen=True)
class Recorded:
    """A step's end, and the records that it left, by path."""

    done: Done
    records: dict[str, Record]


def run(sandbox: SandboxProcess, command: str, **spec: Any) -> Recorded:
    users = "echo nobody:x:65534:65534::/:/bin/sh >>/etc/passwd; "
    made = sandbox.spec("/bin/sh", "-c", users + command, layers=(sandbox.busybox,), **spec)
    found: Recorded = sandbox.call(_run, made)
    return found


def _run(inside: Inside, spec: Spec) -> Recorded:
    from msgspec.structs import replace

    rootfs = inside.writable(spec.rootfs)
    done = inside.run_all([replace(spec, rootfs=rootfs)])[0]
    found = records.read(rootfs.path)
    return Recorded(done, {os.fsdecode(path): record for path, record in found.items()})


def test_owners_and_permissions_are_told_and_recorded(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox,
        "cd /tmp; touch f; chown 33:44 f; chmod 4751 f; ln -s f l; chown -h 7:8 l; mkdir d; chown 5:6 d; chmod 2070 d;"
        "umask 077; touch m; stat -c '%n %u:%g %a' f l d m",
    )
    assert found.done.out == "f 33:44 4751\nl 7:8 777\nd 5:6 2070\nm 0:0 600\n"
    assert found.records["tmp/f"] == Record(b"tmp/f", 33, 44)
    assert found.records["tmp/l"] == Record(b"tmp/l", 7, 8)
    assert found.records["tmp/d"] == Record(b"tmp/d", 5, 6, mode=0o2070)
    assert found.done.diff["tmp/f"].startswith("f 4751")


def test_a_file_without_permissions_is_roots_to_read(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox, "echo secret >/f; chmod 0 /f; cat /f; stat -c %a /f; su -s /bin/sh nobody -c 'cat /f'"
    )
    assert found.done.out == "secret\n0\n"
    assert "Permission denied" in found.done.err
    assert found.records["f"] == Record(b"f", mode=0)


def test_what_another_user_makes_is_his(answered_sandbox: SandboxProcess) -> None:
    command = "mkdir -m 1777 /all; su -s /bin/sh nobody -c 'id -u; touch /all/mine; rm -f /all/roots; touch /etc/x'; "
    found = run(answered_sandbox, "mkdir -m 1777 /all; touch /all/roots; " + command.partition("; ")[2] + "ls /all")
    assert found.done.out == "65534\nmine\nroots\n"
    assert found.records["all/mine"].uid == 65534


def test_the_user_of_the_step(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox, "id; touch /tmp/f; stat -c %u:%g /tmp/f; ! touch /f", uid=70000, gid=70001, groups=(9,)
    )
    assert found.done.out == "uid=70000 gid=70001 groups=9\n70000:70001\n"
    assert (found.records["tmp/f"].uid, found.records["tmp/f"].gid) == (70000, 70001)


def test_devices_are_recorded(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox, "mknod /c c 1 3; mknod -m 640 /b b 8 300; stat -c '%F %t:%T' /c /b; mknod /p p; test -p /p"
    )
    assert found.done.out == "character special file 1:3\nblock special file 8:12c\n"
    assert found.records["c"].device == DeviceNumber("c", 1, 3)
    assert found.records["b"].device == DeviceNumber("b", 8, 300)


def test_names_of_a_file_share_its_owner_and_a_new_file_has_none(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox,
        "touch /a; chown 5:5 /a; ln /a /b; mv /a /c; stat -c '%h %u' /b /c; rm /b /c;"
        "i=0; while [ $i -lt 30 ]; do touch /new$i; i=$((i+1)); done; stat -c %u /new* | sort -u",
    )
    assert found.done.out == "2 5\n2 5\n0\n"
    assert not [path for path in found.records if path.startswith("new")]


def test_pipes_wait_for_their_other_end(answered_sandbox: SandboxProcess) -> None:
    found = run(answered_sandbox, "mkfifo /p; (sleep 0.1; echo through >/p) & cat /p; wait; echo x >/p & cat /p; wait")
    assert found.done.out == "through\nx\n"


def test_mounts_are_listed(answered_sandbox: SandboxProcess) -> None:
    found = run(answered_sandbox, "grep -h ' /a' /proc/mounts /proc/self/mountinfo", mounts=(Tmpfs("/a b"),))
    assert re.findall(r" / (\S+) | (/\S+) tmpfs", found.done.out) == [("", r"/a\040b"), (r"/a\040b", "")]


def test_mounts_are_busy_and_hide_what_they_cover(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox, "rmdir /proc; rm /etc/hosts; mv /dev /x; ls -d /proc /dev/null /etc/hosts; echo 1 >/etc/hosts"
    )
    assert found.done.out == "/dev/null\n/etc/hosts\n/proc\n"
    assert found.done.err.count("busy") == 3
    assert set(found.done.diff) == {"etc", "etc/passwd"}


def test_threads_and_children_have_a_working_directory_each(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox, "mkdir -p /a/b; cd /a; (cd b; pwd; touch here); pwd; cd b/..; pwd; cd ../a/b && pwd; ls /a/b"
    )
    assert found.done.out == "/a/b\n/a\n/a\n/a/b\nhere\n"


def test_what_is_executed(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox,
        "printf '#!/bin/sh -e\\necho script $0 $@\\n' >/s; chmod 755 /s; /s one two; mkdir /x; cp /bin/busybox /x/echo;"
        "/x/echo copied; chmod 644 /x/echo; /x/echo no; readlink /proc/self/exe; cd /; ./s",
    )
    assert found.done.out == "script /s one two\ncopied\n/bin/busybox\nscript ./s\n"
    assert "/x/echo: Permission denied" in found.done.err


def test_a_program_that_is_open_for_writing_is_not_executed(answered_sandbox: SandboxProcess) -> None:
    found = run(
        answered_sandbox,
        "cp /bin/busybox /echo; printf '#!/bin/sh\\necho ran\\n' >/s; chmod 755 /s;"
        "for each in /echo /s; do $each ran 9>>$each; echo $?; $each ran; done",
    )
    assert found.done.out == "126\nran\n126\nran\n"
    assert found.done.err.count("Text file busy") == 2


def test_a_changed_program_is_executed_as_it_is(answered_sandbox: SandboxProcess) -> None:
    """Also when its size is the same, and its time on a kernel whose clock has not ticked."""
    place = BUSYBOX.read_bytes().index(b"BusyBox v")
    found = run(
        answered_sandbox,
        "mkdir /x; cp /bin/busybox /x; for each in 1 2 3 4 5 6; do"
        f" printf $each | dd of=/x/busybox bs=1 seek={place} conv=notrunc 2>/dev/null;"
        " /x/busybox | head -n 1 | cut -c 1; done",
    )
    assert found.done.out.split() == ["1", "2", "3", "4", "5", "6"]


def test_a_new_file_is_not_taken_for_one_that_stood_for_a_link(tmp_path: Path) -> None:
    """Its inode number could be the same, once nobody has the other open."""
    from executor.supervised.file_metadata import MetadataTable
    from executor.supervised.file_view import FileView, MountedFile
    from executor.supervised.processes import Processes
    from executor.supervised.step_context import StepContext
    from executor.supervised.step_proc import StepProc

    root, place = tmp_path / "fs", tmp_path / "step"
    root.mkdir()
    place.mkdir()
    (root / "link").symlink_to("nowhere")
    processes = Processes()
    view = FileView([MountedFile(b"", bytes(root))], set(), StepProc(processes, str(place / "proc"), (b"", b"")))
    context = StepContext(None, view, MetadataTable(str(root)), processes, str(place))  # type: ignore[arg-type]
    link = os.open(root / "link", os.O_PATH | os.O_NOFOLLOW)
    for number in range(20):
        os.close(context.stand_in(link))
        (root / str(number)).mkdir()
        status = os.stat(root / str(number))
        assert context.told_status(status) is status
    os.close(link)


def test_holes_of_a_program_are_not_copied(answered_sandbox: SandboxProcess) -> None:
    found = run(answered_sandbox, "cp /bin/busybox /echo; truncate -s 1099511627776 /echo; /echo ran")
    assert (found.done.out, found.done.err) == ("ran\n", "")


@pytest.mark.skipif(not shutil.which("setcap"), reason="no setcap (Debian: libcap2-bin)")
def test_file_capabilities_are_recorded(answered_sandbox: SandboxProcess) -> None:
    program = shutil.which("setcap") or ""
    libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    paths = [word for line in libraries.splitlines() for word in line.split() if word.startswith("/")]
    nodes = {"bin/setcap": ("x", "755", program)} | {
        path[1:]: ("x", "755", path) for path in map(str, map(Path, paths))
    }
    layer = answered_sandbox.plant(nodes)
    command = (
        "cp /bin/busybox /b; cp /b /e; chmod 2755 /e; setcap cap_net_raw=ep /e; stat -c %a /e;"
        "setcap cap_net_raw=ep /b; cp /b /c; mv /b /d; chown 1 /d; setcap cap_net_raw=ep /c"
    )
    made = answered_sandbox.spec("/bin/sh", "-c", command, layers=(layer, answered_sandbox.busybox))
    found: Recorded = answered_sandbox.call(_run, made)
    assert (found.done.out, found.done.err) == ("2755\n", "")
    assert found.records["c"].capability[:1] == b"\x01"
    assert found.records["d"] == Record(b"d", 1), "chown(2) removes capabilities"
