"""One mapped id: owners are recorded rather than refused, in the form that whoever reads the layer knows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sandbox_process import Inside, SandboxProcess

from executor.sandbox import Spec, Tmpfs, owners
from executor.sandbox.inode_records import InodeRecords
from executor.snapshotter import records
from executor.snapshotter.records import DeviceNumber, Record


@dataclass(frozen=True)
class Recorded:
    """A step's end, and the owners it left, as ``UID:GID`` by path."""

    code: int
    out: str
    err: str
    owners: dict[str, str]
    records: dict[str, Record]
    diff: dict[str, str]


def run(sandbox: SandboxProcess, command: str, *layers: str, **spec: Any) -> Recorded:
    made = sandbox.spec("/bin/sh", "-c", command, layers=(*layers, sandbox.busybox), **spec)
    return sandbox.call(_run, made)


def _run(inside: Inside, spec: Spec) -> Recorded:
    from msgspec.structs import replace

    own = inside.fresh("own")
    for name in ("upper", "work"):
        (own / name).mkdir()
    done = inside.run_all(
        [replace(spec, rootfs=replace(spec.rootfs, upper=str(own / "upper"), work=str(own / "work")))]
    )[0]
    found = {os.fsdecode(path): record for path, record in sorted(records.read(str(own / "upper")).items())}
    owned = {path: f"{record.uid}:{record.gid}" for path, record in found.items()}
    return Recorded(done.ended.code, done.out, done.err, owned, found, done.diff)


def test_owners_are_recorded(single_sandbox: SandboxProcess) -> None:
    done = run(
        single_sandbox,
        "mkdir -p /d/e; touch /d/f /g /h /i; cd /d; chown 33:44 f ../g .; chown 5 /h; chown 1:1 /i; chown 0:0 /i;"
        "chown -R 7:8 e; chown 99999:4294967294 /d/e; echo $?",
    )
    assert (done.out, done.err) == ("0\n", "")
    assert done.owners == {"d": "33:44", "d/e": "99999:4294967294", "d/f": "33:44", "g": "33:44", "h": "5:0"}


def test_files_of_lower_layers_are_copied_up_and_keep_what_was_recorded(single_sandbox: SandboxProcess) -> None:
    layer = single_sandbox.plant({"a": "1", "b": "2", "c": "3"})
    single_sandbox.call(_mark, layer)
    done = run(single_sandbox, "chown 9:8 /a; chown 0:0 /b; chmod 600 /c", layer)
    assert done.diff == {"a": "f 644", "b": "f 644", "c": "f 600"}
    assert done.owners == {"a": "9:8", "c": "1:2"}


def _mark(_: Inside, layer: str) -> None:
    records.write(layer, [Record(name, 1, 2) for name in (b"a", b"b", b"c")])


def test_links_and_pipes_have_owners_too(single_sandbox: SandboxProcess) -> None:
    done = run(
        single_sandbox, "mkdir /d; touch /t; ln -s /t /d/link; mknod /pipe p; chown -h 3:4 /d/link; chown 5:6 /pipe"
    )
    assert done.owners == {"d/link": "3:4", "pipe": "5:6"}
    done = run(single_sandbox, "ln -s t /a; ln -s t /b; chown -h 3:4 /a; chown -h 0:0 /a /b")
    assert done.owners == {}
    done = run(single_sandbox, "touch /t; ln -s t /link; chown 3:4 /link; chown 5:5 /link/; echo $?")
    assert done.owners == {"t": "3:4"}
    assert "Not a directory" in done.err


def test_owners_go_with_their_files(single_sandbox: SandboxProcess) -> None:
    done = run(
        single_sandbox,
        "touch /a /b; chown 3:4 /a; mv /a /c; ln /c /d; mkdir /e; chown 5:6 /b; mv /b /e/; rm -r /e; touch /b",
    )
    assert done.owners == {"c": "3:4", "d": "3:4"}


def test_the_owner_of_a_file_that_is_gone_is_nobodys(single_sandbox: SandboxProcess) -> None:
    """The file system gives its inode to the next file that is made."""
    done = run(single_sandbox, "for n in 1 2 3 4 5 6 7 8; do touch /f; chown 9 /f; rm /f; touch /new$n; done")
    assert (done.owners, len(done.diff)) == ({}, 8)


SEEN = "stat -c '%n %F %u:%g %a' "


def test_a_step_sees_the_owners_that_are_recorded(single_sandbox: SandboxProcess) -> None:
    """Those of the layers below and those it has set itself, by whichever path and call it looks."""
    layer = single_sandbox.plant({"d/a": "1", "d/b": "2", "plain": "3"})
    single_sandbox.call(_own, layer)
    done = run(
        single_sandbox,
        f"cd /d; {SEEN} a ./a ../d/a /d/a /d /plain; ls -ln /d/b | awk '{{ print $3, $4 }}'; "
        f"ln -s d/a /l; {SEEN} /l; stat -L -c '%u:%g' /l; chown -h 9:9 /l; {SEEN} /l; find / -user 5 -group 6; "
        "chown 77 a; stat -c %u:%g a; echo more >> b; stat -c %u:%g b; mv b /c; stat -c %u:%g /c; cp /c /new; "
        "stat -c %u:%g /new; awk '{ exit }' < /c; stat -L -c %u:%g /dev/stdin < /c",
        layer,
    )
    assert done.out.splitlines() == [
        *(f"{path} regular file 5:6 644" for path in ("a", "./a", "../d/a", "/d/a")),
        "/d directory 3:4 755",
        "/plain regular file 0:0 644",
        "7 8",
        "/l symbolic link 0:0 777",
        "5:6",
        "/l symbolic link 9:9 777",
        "/d/a",
        "77:6",
        "7:8",
        "7:8",
        "0:0",
        "7:8",
    ], done.err
    assert done.owners == {"d": "3:4", "d/a": "77:6", "c": "7:8", "l": "9:9"}


def _own(_: Inside, layer: str) -> None:
    records.write(layer, [Record(b"d", 3, 4), Record(b"d/a", 5, 6), Record(b"d/b", 7, 8)])


@pytest.mark.parametrize(
    "copy",
    [
        "cp -p /a /b",
        "cp -a /a /b",
        "tar c a | tar x -C /t && mv /t/a /b",
        "cp -a /a /m/b && mv /m/b /b",
        "sed -i s/hi/ho/ /a && mv /a /b",
        "cp /a /b && chown $(stat -c %u:%g /a) /b",
        "cpio -o -H newc < /list | (cd /t && cpio -i) && mv /t/a /b",
    ],
)
def test_what_is_made_of_a_file_inherits_its_owner(single_sandbox: SandboxProcess, copy: str) -> None:
    """As GNU's tools and busybox's do it; /m is another file system."""
    done = run(
        single_sandbox,
        f"mkdir /t; echo a > /list; echo hi > /a; chmod 640 /a; chown 33:42 /a; cd /; {copy}; echo $?",
        mounts=(Tmpfs("/m"),),
    )
    assert done.out.splitlines()[-1] == "0", done.err
    assert (done.owners["b"], done.diff["b"]) == ("33:42", "f 640")


def test_all_names_of_a_file_have_its_owner(single_sandbox: SandboxProcess) -> None:
    """To overlayfs, a name that is made after a file was copied up leads to another inode than the first."""
    layer = single_sandbox.plant({"a": "1", "b": "2", "c": "3", "d": "4"})
    single_sandbox.call(_own_two, layer)
    done = run(
        single_sandbox,
        "chown 9:9 /a; ln /a /a2; stat -c %u /a2; ln /a2 /a3; rm /a; ln /b /b2; chown 7:7 /b2; stat -c %u /b; "
        "ln /c /c2; chmod 600 /d; ln /d /d2; chown 0:0 /d",
        layer,
    )
    assert done.out == "9\n7\n"
    assert done.owners == {"a2": "9:9", "a3": "9:9", "b": "7:7", "b2": "7:7", "c": "5:5", "c2": "5:5"}


def _own_two(_: Inside, layer: str) -> None:
    records.write(layer, [Record(b"c", 5, 5), Record(b"d", 6, 6)])


def test_devices_are_seen_and_copied(single_sandbox: SandboxProcess) -> None:
    layer = single_sandbox.plant({"disk": ""})
    single_sandbox.call(_device, layer)
    done = run(
        single_sandbox,
        f"{SEEN} /disk; stat -c %t:%T /disk; cp -a /disk /copy; mknod -m 600 /null c 1 3; chown 5:6 /null; {SEEN} /null"
        ";tar c null copy | tar x -C /tmp; mknod /zero c 0 0; echo $?; mknod /null c 1 3; mknod /no/where b 1 2; "
        "mknod /pipe p; umask 077; mknod /closed b 300 70000",
        layer,
    )
    assert done.out.splitlines() == [
        "/disk block special file 0:6 660", "8:1", "/null character special file 5:6 600", "1",
    ]  # fmt: skip
    assert [each in done.err for each in ("File exists", "No such file", "not permitted")] == [True] * 3
    found = {path: (record.device, record.uid, record.gid) for path, record in done.records.items()}
    disk, null = (DeviceNumber("b", 8, 1), 0, 6), (DeviceNumber("c", 1, 3), 5, 6)
    assert found == {
        "copy": disk, "null": null, "tmp/copy": disk, "tmp/null": null, "closed": (DeviceNumber("b", 300, 70000), 0, 0)
    }  # fmt: skip
    assert (done.diff["null"], done.diff["closed"], done.diff["pipe"]) == ("f 600", "f 600", "p 644")


def _device(_: Inside, layer: str) -> None:
    os.chmod(f"{layer}/disk", 0o660)
    records.write(layer, [Record(b"disk", 0, 6, DeviceNumber("b", 8, 1))])


def test_a_directory_hands_its_group_down(single_sandbox: SandboxProcess) -> None:
    done = run(
        single_sandbox,
        "mkdir /d; chown 0:50 /d; chmod 2775 /d; cd /d; touch f; mkdir e; touch e/g; touch /x; mv /x x; mv f /f;"
        "touch z; chown 0:0 z; ln -s f l; mkdir /plain; mv e/g /plain/; touch e/h; stat -c '%n %g' e e/h z x /f",
    )
    assert done.out.splitlines() == ["e 50", "e/h 50", "z 0", "x 0", "/f 50"]
    assert done.owners == {
        "d": "0:50", "d/e": "0:50", "d/e/h": "0:50", "d/l": "0:50", "f": "0:50", "plain/g": "0:50",
    }  # fmt: skip


def test_the_rest_of_chown_happens(single_sandbox: SandboxProcess) -> None:
    done = run(single_sandbox, "touch /f; chmod 6755 /f; chown 3 /f; mkdir /d; chmod 2755 /d; chown 3 /d")
    assert done.diff == {"f": "f 755", "d": "d 2755"}


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("chown 3 /missing", "No such file or directory"),
        ("chown 3 /proc/version", ""),
        ("chown 3 /bin/busybox/x", "Not a directory"),
        ("chown 3 /sys/kernel", "Read-only file system"),
        ("ln -s loop /loop; chown 3 /loop", "Too many levels of symbolic links|Symbolic link loop"),
    ],
)
def test_errors_are_those_of_chown(single_sandbox: SandboxProcess, command: str, error: str) -> None:
    done = run(single_sandbox, command)
    assert any(each in done.err for each in error.split("|")), done.err


def test_links_stay_inside(single_sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = run(
        single_sandbox, f"ln -s /../../../..{tmp_path} /out; chown 3 /out; chown 3 /../../etc; chown 3 /proc/self/root"
    )
    assert "No such file" in done.err
    assert os.listxattr(tmp_path) == []
    assert done.owners == {"etc": "3:0"}


def test_a_chrooted_process_is_seen_as_it_sees_itself(single_sandbox: SandboxProcess) -> None:
    done = run(
        single_sandbox,
        "mkdir -p /r/bin; cp /bin/busybox /r/bin; /bin/busybox chroot /r /bin/busybox sh -c "
        "'/bin/busybox touch /x; /bin/busybox chown 3:4 /x'; touch /x; chown 5:6 /x",
    )
    assert (done.owners["r/x"], done.owners["x"]) == ("3:4", "5:6"), done.err


def test_an_id_can_be_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.chdir("/proc")
    fd = os.open(file, os.O_PATH)
    table = InodeRecords(str(tmp_path), (), 0)
    seen = []
    for uid, gid in ((-1, 5), (7, -1), (-1, -1), (0, -1), (-1, 0)):
        owners.change(table, fd, uid, gid)
        known = table.of(fd, os.fstat(fd))
        assert known is not None
        seen.append((known.uid, known.gid))
    os.close(fd)
    assert seen == [(0, 5), (7, 5), (7, 5), (0, 5), (0, 0)]


def test_root_only_has_to_try(single_sandbox: SandboxProcess) -> None:
    """su, apt and the like change to users that do not exist here; they are told that it has worked."""
    accounts = "root::0:0::/:/bin/sh\nwww::33:33::/:/bin/sh\n"
    layer = single_sandbox.plant({"etc/passwd": accounts, "etc/group": "root:x:0:\nwww:x:33:\n"})
    done = run(single_sandbox, "su www -c 'id -u; touch /f'; echo $?", layer)
    assert done.out == "0\n0\n"
    assert done.diff["f"] == "f 644"


def test_another_user_has_its_number_and_owns_what_it_makes(single_sandbox: SandboxProcess) -> None:
    layer = single_sandbox.plant({"home/old": "x", "home/other": "y"})
    done = run(
        single_sandbox,
        "id -u; id -g; cd /home; echo more >> old; touch new; mkdir dir; ln -s new link; rm other; stat -c %u:%g new",
        layer, uid=1000, gid=100,
    )  # fmt: skip
    assert done.out == "1000\n100\n1000:100\n"
    assert done.owners == {"home/new": "1000:100", "home/dir": "1000:100", "home/link": "1000:100"}
    assert done.diff["home/other"] == "c 0:0"
    assert run(single_sandbox, "grep Cap /proc/self/status", uid=1000).out.count("0" * 16) == 4


def test_thirty_changing_owners_at_once(single_sandbox: SandboxProcess) -> None:
    specs = [single_sandbox.spec("/bin/sh", "-c", f"touch /f; chown {n} /f; echo $?") for n in range(1, 31)]
    assert [done.out for done in single_sandbox.run_all(specs)] == ["0\n"] * 30


def test_a_killed_step_takes_its_supervisor_along(single_sandbox: SandboxProcess) -> None:
    spec = single_sandbox.spec("touch /f; while :; do chown 3 /f; echo ready; done")
    assert single_sandbox.run_until(spec, "ready", "cancel").ended.error == "cancelled"
    assert run(single_sandbox, "touch /f; chown 3 /f").owners == {"f": "3:0"}
