"""kanifold in containers as CI jobs run in (``tests/containers.py``): what works there, and makes the same images."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import containers
import ordinary_user
import pytest
from conftest import Base, Kanifold, installed
from containers import ENVIRONMENTS, Root
from ordinary_user import User
from registry_server import MemoryRegistry, digest_of, served
from small_images import CONFIG, LAYER, MANIFEST, Images

from executor.sandbox.network import SCOPES
from platforms import syscalls

STEPS = """\
FROM {base} AS made
WORKDIR /made
COPY --chown=5:6 file here/
RUN chown 7:8 here && ln here/file here/other && mkdir -m 700 empty && touch -d @1 empty/.. && cat /etc/hosts >/dev/null
RUN --mount=type=secret,id=word --mount=type=cache,target=/kept --mount=type=tmpfs,target=/gone \\
    sha1sum </run/secrets/word >sum && echo kept >/kept/it && echo gone >/gone/it
FROM {base}
COPY --from=made /made /made
RUN --mount=from=made,target=/seen cp /seen/made/sum / && rm -r /made/empty
RUN --network=none hostname >/dev/null && ls /sys/class >/dev/null
USER 9:10
RUN id -u >/dev/stdout && test "$(id -u):$(id -g)" = 9:10 && test -r /proc/self/status && test -x /proc/self/exe
ENV A=b
"""
ISOLATED = {
    "k8s-root": "mapped", "k8s-user": "mapped", "podman-root": "mapped", "podman-user": "mapped",
    "k8s-userns-sys-admin": "namespaces", "docker-sys-admin": "namespaces", "docker-root": "chroot",
    "k8s-userns": "chroot", "docker-user": "answered", "k8s-restricted": "answered", "k8s-drop-all": "answered",
}  # fmt: skip
"""The environments in which steps run, and the mode."""
PLATFORMS = "linux/amd64,linux/arm64"
WITHOUT_NAMESPACES = [name for name, mode in ISOLATED.items() if mode in ("chroot", "answered")]


def _some(names: Iterable[str], *usual: str) -> list[object]:
    """Return parameters of which only ``usual`` ones are tried in every run."""
    return [pytest.param(each, marks=() if each in usual else pytest.mark.slow) for each in names]


@dataclass(frozen=True)
class Place:
    """A kind of container in which kanifold can be run: its volume, on this machine, is ``box``."""

    name: str
    box: Path
    scratch: Path
    options: tuple[str, ...] = ()
    """Of the volume's mount."""

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run kanifold."""
        user = User("user", ENVIRONMENTS[self.name].user, ENVIRONMENTS[self.name].user, self.box)
        found = ordinary_user.reachable(user, self.scratch)
        if found is None:
            pytest.skip(f"no Python that an ordinary user may run (this one is {sys.executable})")
        command, extra = found
        return self.any([*command, *arguments], KANIFOLD_ROOT="/box/store", **extra, **variables)

    def any(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """Run any command."""
        seen = [Path(sys.prefix), Path(__file__).resolve().parents[2], self.scratch]
        try:
            return containers.run(
                ENVIRONMENTS[self.name], command, self.box, root=Root(options=self.options), variables=variables,
                seen=seen, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except containers.UnavailableError as error:
            pytest.skip(str(error))

    def files(self, dockerfile: str) -> None:
        """Write the context."""
        write_context(self.box / "context", dockerfile)

    def build(self, dockerfile: str, *arguments: str, platforms: str = "linux/amd64", **variables: str) -> str:
        """Build an image; return its digest."""
        self.files(dockerfile)
        out = ["-o", "type=oci,dest=/box/out,tar=false", "--progress", "plain"]
        words = ["build", "/box/context", "--platform", platforms, "--secret", "id=word,src=/box/context/word", *out]
        done = self.run(*words, *arguments, SOURCE_DATE_EPOCH="1000000000", **variables)
        assert done.returncode == 0, done.stdout
        return digest(self.box / "out")


def write_context(folder: Path, dockerfile: str) -> None:
    """Write a context, readable for all."""
    folder.mkdir(exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    (folder / "file").write_text("content")
    (folder / "word").write_text("secret word")
    (folder / "archive.tar").write_bytes(archive())
    for each in (folder, *folder.iterdir()):
        each.chmod(0o755 if each.is_dir() else 0o644)


def archive() -> bytes:
    """Return an archive whose files have owners, devices, capabilities, and no permissions for their owners."""
    return tar_of(
        ("locked/", 0o000, 0), ("locked/file", 0o000, 3), ("bound", 0o4711, 1000), ("null", CHARACTER, 0),
        ("pipe", FIFO, 7), ("locked/link", SYMLINK, 8), ("set/", 0o2500, 9),
    )  # fmt: skip


CHARACTER, FIFO, SYMLINK = 0o20666, 0o10000, 0o120777
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0).decode()


def tar_of(*members: tuple[str, int | str, int]) -> bytes:
    """Return an archive of ``members``: name, mode or target of a hard link, owner. Set-user-id files have
    attributes."""
    kinds = {CHARACTER: tarfile.CHRTYPE, FIFO: tarfile.FIFOTYPE, SYMLINK: tarfile.SYMTYPE}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode, owner in members:
            member = tarfile.TarInfo(name.rstrip("/"))
            member.uid = member.gid = owner
            member.mtime, member.linkname, member.devmajor, member.devminor = 1, "file", 1, 3
            if isinstance(mode, str):
                member.type, member.linkname = tarfile.LNKTYPE, mode
            else:
                member.mode = mode & 0o7777
                member.type = tarfile.DIRTYPE if name.endswith("/") else kinds.get(mode, tarfile.REGTYPE)
                if mode & 0o4000 and mode < 0o10000:
                    member.pax_headers = {
                        "SCHILY.xattr.security.capability": CAPABILITY, "SCHILY.xattr.user.own": "mark",
                    }  # fmt: skip
            tar.addfile(member)
    return buffer.getvalue()


def digest(layout: Path) -> str:
    """Return the digest of the image in a layout."""
    found: str = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    return found


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Place]:
    """``place("docker-root")`` is such a container."""

    def make(name: str) -> Place:
        for each in (tmp_path, *tmp_path.parents[:2]):
            each.chmod(0o755)
        made = Place(name, tmp_path / name, tmp_path / "scratch")
        made.box.mkdir()
        made.scratch.mkdir(exist_ok=True)
        return made

    return make


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """``expected(dockerfile, platforms)`` is the digest of the image, built on this machine."""

    @functools.cache
    def build(dockerfile: str, platforms: str) -> str:
        home = tmp_path_factory.mktemp("home")
        command, extra = installed()
        kanifold = Kanifold(home, command=command, extra=extra)
        write_context(home / "context", dockerfile)
        kanifold(
            "build", home / "context", "--platform", platforms, "--secret", f"id=word,src={home}/context/word",
            "-o", f"type=oci,dest={home}/out,tar=false", SOURCE_DATE_EPOCH="1000000000",
        )  # fmt: skip
        return digest(home / "out")

    return build


@pytest.mark.parametrize("name", _some(ISOLATED, "k8s-user", "docker-sys-admin", "docker-root", "k8s-restricted"))
def test_steps_run_for_two_platforms_and_make_the_same_image(
    place: Callable[[str], Place], busybox: Base, expected: Callable[[str, str], str], name: str
) -> None:
    dockerfile, platforms = STEPS.format(base=busybox.ref), PLATFORMS
    assert place(name).build(dockerfile, platforms=platforms) == expected(dockerfile, platforms)


@pytest.mark.parametrize("name", _some(["k8s-user", "docker-sys-admin", "docker-root"], "docker-sys-admin"))
def test_a_store_in_the_containers_own_root_makes_the_same_image(
    place: Callable[[str], Place], busybox: Base, expected: Callable[[str, str], str], name: str
) -> None:
    dockerfile, platforms = STEPS.format(base=busybox.ref), PLATFORMS
    assert place(name).build(dockerfile, "--root", "/tmp/store", platforms=platforms) == expected(dockerfile, platforms)


@pytest.mark.slow
def test_a_volume_without_programs_devices_and_set_user_id_is_enough_for_overlays_alone(
    place: Callable[[str], Place], busybox: Base, expected: Callable[[str, str], str]
) -> None:
    dockerfile = f"FROM {busybox.ref}\nRUN cat /proc/self/cmdline >/made\n"
    here = replace(place("k8s-root"), options=("noexec", "nodev", "nosuid"))
    assert here.build(dockerfile) == expected(dockerfile, "linux/amd64")
    refused = here.run("build", "/box/context", "--no-cache", "--snapshotter", "plain")
    assert refused.returncode == 3
    assert "its file system is mounted with noexec" in refused.stdout
    assert "have it mounted without noexec" in refused.stdout


@pytest.mark.parametrize("name", _some(["docker-root", "docker-user", "k8s-restricted"], "docker-root"))
def test_a_volume_without_programs_is_refused_without_namespaces(
    place: Callable[[str], Place], busybox: Base, name: str
) -> None:
    here = replace(place(name), options=("noexec",))
    here.files(f"FROM {busybox.ref}\nRUN true\n")
    refused = here.run("build", "/box/context", "--progress", "plain")
    assert refused.returncode == 3, refused.stdout
    assert "its file system is mounted with noexec" in refused.stdout
    assert "have it mounted without noexec" in refused.stdout
    assert "Traceback" not in refused.stdout


@pytest.mark.parametrize("name", _some(["docker-root", "docker-user"]))
def test_a_volume_without_devices_and_set_user_id_is_enough_without_namespaces(
    place: Callable[[str], Place], busybox: Base, expected: Callable[[str, str], str], name: str
) -> None:
    dockerfile = STEPS.format(base=busybox.ref)
    here = replace(place(name), options=("nodev", "nosuid"))
    assert here.build(dockerfile) == expected(dockerfile, "linux/amd64")


@pytest.mark.parametrize("name", _some(["docker-root", "docker-user"], "docker-root"))
@pytest.mark.parametrize(
    ("size", "step"), [("16m", "cat /dev/zero >/large"), pytest.param("1m", "true", marks=pytest.mark.slow)]
)
def test_a_volume_that_becomes_full_is_told_of(
    place: Callable[[str], Place], busybox: Base, name: str, size: str, step: str
) -> None:
    """By a step, or by the copy of the image that it runs in."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    here = place(name)
    user = f"uid={ENVIRONMENTS[name].user}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777,{user}", "none", here.box], check=True)
    try:
        here.files(f"FROM {busybox.ref}\nRUN {step}\n")
        refused = here.run("build", "/box/context", "--progress", "plain")
    finally:
        subprocess.run(["umount", "-l", here.box], check=True)
    assert refused.returncode == 1, refused.stdout
    assert re.search("(the disk of /box/store is full|no space left on the disk of /box/store)", refused.stdout)
    assert "remedy: " in refused.stdout
    assert "Traceback" not in refused.stdout


@pytest.mark.parametrize("name", _some(WITHOUT_NAMESPACES, "docker-user", "k8s-restricted"))
def test_what_runs_no_step_is_built_anywhere_for_any_platform(
    place: Callable[[str], Place], busybox: Base, expected: Callable[[str, str], str], name: str
) -> None:
    dockerfile, platforms = COPIES.format(base=busybox.ref), "linux/amd64,linux/arm64,linux/s390x"
    assert place(name).build(dockerfile, platforms=platforms) == expected(dockerfile, platforms)


COPIES = """\
FROM {base} AS files
WORKDIR /made
COPY --chown=5:6 --chmod=0 file here/
ADD archive.tar /unpacked
FROM {base}
COPY --from=files /made /unpacked /again/
COPY --from=files --chown=1000:1000 /bin/sh /etc/
ENV A=b
USER 9:10
"""
"""Of the instructions that need no isolation."""


@pytest.mark.parametrize(("filled", "name"), [("k8s-user", "k8s-restricted")])
def test_steps_that_are_cached_need_no_isolation_and_others_are_told_why_they_cannot_run(
    place: Callable[[str], Place], busybox: Base, filled: str, name: str
) -> None:
    dockerfile = f"FROM {busybox.ref}\nRUN touch /made\nUSER 5\nRUN touch /tmp/made\n"
    there = place(filled)
    made = there.build(dockerfile)
    here = replace(there, name=name)
    assert here.build(dockerfile) == made
    here.files(dockerfile + "RUN true\n")
    asked = ("--isolation", "mapped", "--progress", "plain")
    refused = here.run("build", "/box/context", *asked, SOURCE_DATE_EPOCH="1000000000")
    assert refused.returncode == 3
    assert "cannot isolate build steps here: mapped: " in refused.stdout
    assert "seccompProfile.type: Unconfined" in refused.stdout
    assert ">>> RUN true" in refused.stdout


LAYERS = (
    tar_of(
        ("tight/", 0o555, 3), ("tight/file", 0o000, 4), ("tight/gone", 0o644, 0), ("tight/deep/", 0o311, 5),
        ("tight/deep/set", 0o4711, 0), ("usr/", 0o755, 0), ("usr/kept", 0o644, 1000), ("usr/read", 0o444, 7),
        ("usr/linked", "usr/read", 0), ("usr/gone/", 0o500, 0), ("usr/gone/file", 0o644, 0),
    ),
    # Directories without entries, a hard link to a file below, and deletions.
    tar_of(
        ("tight/.wh.gone", 0, 0), ("tight/other", "tight/file", 0), ("tight/deep/more", 0o644, 6),
        ("usr/.wh.gone", 0, 0), ("implicit/new", 0o604, 1000),
    ),
)  # fmt: skip
"""Layers that are unpacked onto what is below them."""


@pytest.mark.parametrize("name", _some(["docker-root", "docker-user"], "docker-user"))
def test_layers_that_need_those_below_are_unpacked_without_mounts(
    place: Callable[[str], Place], expected: Callable[[str, str], str], name: str
) -> None:
    images = Images()
    config = {
        "os": "linux", "architecture": "amd64", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(each) for each in LAYERS]},
    }  # fmt: skip
    layers = [images.blob(LAYER, each) for each in LAYERS]
    base = images.document(MANIFEST, {"config": images.blob(CONFIG, json.dumps(config).encode()), "layers": layers})
    registry = MemoryRegistry()
    images.put(registry, "base", {"latest": base})
    with served(registry) as found:
        dockerfile = (
            f"FROM {found.host}/base AS base\nCOPY file /tight/deep/\nFROM scratch\nCOPY --from=base / /copy/\n"
        )
        assert place(name).build(dockerfile) == expected(dockerfile, "linux/amd64")


SPY = """\
FROM {base} AS victim
RUN --mount=type=cache,target=/kept --mount=type=secret,id=word --mount=type=secret,id=word,env=WORD \\
    touch /kept/up; while test ! -e /kept/down; do sleep 0.05; done; : of the victim
FROM {base} AS spy
RUN --mount=type=cache,target=/kept {more} while test ! -e /kept/up; do sleep 0.05; done; \\
    for each in /proc/[0-9]*; do cat $each/cmdline; cat $each/environ $each/root/run/secrets/word $each/maps; \\
    ls $each/cwd/; done >/found 2>/dev/null; touch /kept/down
FROM scratch
COPY --from=victim /bin/sh /
COPY --from=spy /found /
"""


@pytest.mark.parametrize("more", ["", "--security=insecure"])
@pytest.mark.parametrize("name", _some(["k8s-root", "k8s-user"], "k8s-user"))
def test_where_proc_is_the_containers_a_step_learns_no_more_of_others_than_their_command_lines(
    place: Callable[[str], Place], busybox: Base, name: str, more: str
) -> None:
    if more and syscalls.landlock_version() < SCOPES:
        pytest.skip("needs the scopes of Landlock (Linux 6.12)")
    here = place(name)
    arguments = ("-o", "type=local,dest=/box/files", "--allow", "security.insecure")
    here.build(SPY.format(base=busybox.ref, more=more), *arguments, TOKEN="of the executor")
    found = (here.box / "files/found").read_bytes()
    assert b"of the victim" in found, "the spy did not see the victim: nothing was tried"
    assert b"secret word" not in found
    assert b"of the executor" not in found
    assert b"site-packages" not in found
    assert b"\nstore\n" not in found


@pytest.mark.parametrize("mode", _some(["mapped", "single"], "single"))
def test_a_mode_that_is_asked_for_makes_the_same_image(
    place: Callable[[str], Place], busybox: Base, expected: Callable[[str, str], str], mode: str
) -> None:
    dockerfile, platforms = STEPS.format(base=busybox.ref), "linux/amd64,linux/arm64"
    for name in ("k8s-user", "docker-sys-admin"):
        there = replace(place(name + mode), name=name)
        assert there.build(dockerfile, "--isolation", mode, platforms=platforms) == expected(dockerfile, platforms)


def test_doctor_runs_a_step_in_each_mode(place: Callable[[str], Place]) -> None:
    for name, mode in (
        ("k8s-user", "mapped"),
        ("docker-sys-admin", "namespaces"),
        ("docker-root", "chroot"),
        ("k8s-restricted", "answered"),
    ):
        said = place(name).run("doctor").stdout
        assert f"ok {mode}  <- in use" in said, said


LEAVE = """\
FROM {base}
RUN mkdir /x && perl -e 'chroot "/x" or die; chdir ".." for 1..20; chroot "." or die; exit(-e "/box" ? 1 : !-e "/x")'
"""


def test_a_root_that_was_moved_onto_the_old_one_is_not_left_by_chroot(
    place: Callable[[str], Place], debian: Base
) -> None:
    """Docker's profile has no pivot_root(2), and steps may call chroot(2)."""
    place("docker-sys-admin").build(LEAVE.format(base=debian.ref))


def test_the_table_of_environments_says_the_same() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/environments.md").read_text()
    found = dict(re.findall(r"^\| `([\w-]+)`: .*?\| `?(\w+)`? \|", page, re.MULTILINE))
    assert found == {name: ISOLATED.get(name, "none") for name in ENVIRONMENTS}


PACKAGES = """\
FROM {base}
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends cron libcap2-bin && \\
    useradd -m someone && setcap cap_net_raw=ep /usr/bin/crontab && mknod /srv/device b 8 1 && chown 5:6 /srv && \\
    rm -r /var/lib/apt/lists /var/cache /var/log && rm /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/sub?id-
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["docker-user"])
def test_packages_are_installed_as_root_would(place: Callable[[str], Place], debian: Base, name: str) -> None:
    """Every path of the layer has the same kind, owner, permissions, device, capability, link and content."""
    dockerfile = PACKAGES.format(base=debian.ref)
    made = []
    for each in (name, "docker-sys-admin"):
        there = place(each)
        there.build(dockerfile)
        made.append(last_layer(there.box / "out"))
    assert made[0] == made[1]
    assert made[0]["usr/bin/crontab"][1:4] == (0o2755, 0, 101)


def last_layer(layout: Path) -> dict[str, tuple[object, ...]]:
    """What the last layer of an image has at each path, but for times."""
    blobs = layout / "blobs/sha256"
    found = json.loads((layout / "index.json").read_text())
    while "layers" not in found:
        found = json.loads((blobs / found["manifests"][0]["digest"].partition(":")[2]).read_text())
    entries = {}
    with tarfile.open(blobs / found["layers"][-1]["digest"].partition(":")[2]) as layer:
        for each in layer:
            content = layer.extractfile(each) if each.isreg() else None
            entries[each.name] = (
                each.type, each.mode, each.uid, each.gid, each.devmajor, each.devminor, each.linkname,
                each.pax_headers.get("SCHILY.xattr.security.capability"),
                hashlib.sha256(content.read()).hexdigest() if content is not None else "",
            )  # fmt: skip
    return entries
