"""kanifold in containers as CI jobs run in (``tests/containers.py``): what works there, and makes the same images."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import containers
import ordinary_user
import pytest
from conftest import Base, Kanifold
from containers import ENVIRONMENTS
from ordinary_user import User

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
USER 9:10
RUN id -u >/dev/stdout && test "$(id -u):$(id -g)" = 9:10 && test -r /proc/self/status && test -x /proc/self/exe
ENV A=b
"""
ISOLATED = {
    "k8s-root": "mapped", "k8s-user": "mapped", "podman-root": "mapped", "podman-user": "mapped",
    "k8s-userns-sys-admin": "namespaces", "docker-sys-admin": "namespaces",
}  # fmt: skip
"""The environments in which steps run, and the mode."""


@dataclass(frozen=True)
class Place:
    """A kind of container in which kanifold can be run: its volume, on this machine, is ``box``."""

    name: str
    box: Path
    scratch: Path

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
                ENVIRONMENTS[self.name], command, self.box, variables=variables, seen=seen, timeout=120,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except containers.UnavailableError as error:
            pytest.skip(str(error))

    def build(self, dockerfile: str, *arguments: str, platforms: str = "linux/amd64", **variables: str) -> str:
        """Build an image with one file in the context; return its digest."""
        folder = self.box / "context"
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text(dockerfile)
        (folder / "file").write_text("content")
        (folder / "word").write_text("secret word")
        for each in (folder, *folder.iterdir()):
            each.chmod(0o755 if each.is_dir() else 0o644)
        out = ["-o", "type=oci,dest=/box/out,tar=false", "--progress", "plain"]
        words = ["build", "/box/context", "--platform", platforms, "--secret", "id=word,src=/box/context/word", *out]
        done = self.run(*words, *arguments, SOURCE_DATE_EPOCH="1000000000", **variables)
        assert done.returncode == 0, done.stdout
        return digest(self.box / "out")


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
def expected(busybox: Base, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of STEPS, built on this machine."""
    from conftest import installed

    home = tmp_path_factory.mktemp("home")
    command, extra = installed()
    folder = home / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(STEPS.format(base=busybox.ref))
    (folder / "file").write_text("content")
    (folder / "file").chmod(0o644)
    (folder / "word").write_text("secret word")
    kanifold = Kanifold(home, command=command, extra=extra)
    kanifold(
        "build", folder, "--platform", "linux/amd64,linux/arm64", "--secret", f"id=word,src={folder}/word",
        "-o", f"type=oci,dest={home}/out,tar=false", SOURCE_DATE_EPOCH="1000000000",
    )  # fmt: skip
    return digest(home / "out")


@pytest.mark.parametrize("name", ISOLATED)
def test_steps_run_for_two_platforms_and_make_the_same_image(
    place: Callable[[str], Place], busybox: Base, expected: str, name: str
) -> None:
    here = place(name)
    assert here.build(STEPS.format(base=busybox.ref), platforms="linux/amd64,linux/arm64") == expected


SPY = """\
FROM {base} AS victim
RUN --mount=type=cache,target=/kept --mount=type=secret,id=word --mount=type=secret,id=word,env=WORD \\
    touch /kept/up; while test ! -e /kept/down; do sleep 0.05; done; : of the victim
FROM {base} AS spy
RUN --mount=type=cache,target=/kept while test ! -e /kept/up; do sleep 0.05; done; for each in /proc/[0-9]*; do \\
    cat $each/cmdline; cat $each/environ $each/root/run/secrets/word $each/maps; ls $each/cwd/; done \\
    >/found 2>/dev/null; touch /kept/down
FROM scratch
COPY --from=victim /bin/sh /
COPY --from=spy /found /
"""


@pytest.mark.parametrize("name", ["k8s-root", "k8s-user", "podman-root"])
def test_where_proc_is_the_containers_a_step_learns_no_more_of_others_than_their_command_lines(
    place: Callable[[str], Place], busybox: Base, name: str
) -> None:
    here = place(name)
    here.build(SPY.format(base=busybox.ref), "-o", "type=local,dest=/box/files", TOKEN="of the executor")
    found = (here.box / "files/found").read_bytes()
    assert b"of the victim" in found, "the spy did not see the victim: nothing was tried"
    assert b"secret word" not in found
    assert b"of the executor" not in found
    assert b"site-packages" not in found
    assert b"\nstore\n" not in found


def test_doctor_runs_a_step_in_each_mode(place: Callable[[str], Place]) -> None:
    for name, mode in ISOLATED.items():
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
