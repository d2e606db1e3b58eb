"""Without root: the same command, the same images."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Base, Kanifold, Reader

Context = Callable[[Mapping[str, str | bytes]], Path]

DOCKERFILE = """\
FROM {base} AS page
RUN echo "as $(id -u)" > /who && mkdir -m 1777 /open && touch /open/file && chown 1000:50 /open/file
FROM {base}
COPY --from=page /who /open/ /srv/
COPY --chown=7:8 file /
RUN uname -m > /machine
USER user
CMD ["cat", "/who"]
"""


@pytest.fixture(params=["subordinate ids", "one id only"])
def ordinary(request: pytest.FixtureRequest) -> Kanifold:
    """An ordinary user, of both kinds."""
    name = "kanifold_as_user" if request.param == "subordinate ids" else "kanifold_as_bare_user"
    found: Kanifold = request.getfixturevalue(name)
    return found


def build(kanifold: Kanifold, folder: Path, platforms: str) -> tuple[Path, str]:
    dest, digest = kanifold.folder("out") / "layout", kanifold.home / "digest"
    kanifold(
        "build", folder, "--platform", platforms, "-o", f"type=oci,dest={dest}", "--iidfile", digest,
        SOURCE_DATE_EPOCH="1700000000",
    )  # fmt: skip
    return dest, digest.read_text()


def test_an_ordinary_user_builds_what_root_builds(
    kanifold: Kanifold, ordinary: Kanifold, busybox: Base, read: Reader, context: Context
) -> None:
    folder = context({"Dockerfile": DOCKERFILE.format(base=busybox.ref), "file": "x"})
    platforms = "linux/amd64,linux/arm64"
    dest, digest = build(ordinary, folder, platforms)
    for platform, machine in (("linux/amd64", "x86_64"), ("linux/arm64", "aarch64")):
        seen = read(dest, platform)
        assert seen.text("/machine").strip() == machine
        assert seen.text("/srv/who") == "as 0\n"
        owned = seen.tree["srv/file"]
        assert (owned.uid, owned.gid) == (1000, 50)
        assert (seen.tree["file"].uid, seen.tree["file"].gid) == (7, 8)
    _, roots = build(kanifold, folder, platforms)
    assert digest == roots


REWRITTEN = """\
FROM {base}
RUN echo hi > /a && chown 33:42 /a && chmod 750 /a && sed -i s/hi/ho/ /a
RUN useradd joe && groupadd staff2 && usermod -aG staff2 joe && echo joe:secret | chpasswd && passwd -q -l joe
RUN useradd -m -u 2000 jim && cp -a /home/jim /jim && cp -p /etc/shadow /copied && cp --preserve=mode /etc/shadow /plain
RUN mkdir /t && tar c -C / a etc/shadow etc/gshadow var/mail | tar x -C /t
RUN --mount=type=tmpfs,target=/m cp -a /jim /m/jim && mv /m/jim /moved && install -p -o jim -g mail -m 640 /a /installed
RUN touch /var/local/handed && mkdir /var/mail/d && mv /var/local/handed /var/mail/ && touch /var/mail/d/handed
RUN mknod /null c 1 3 && mknod -m 640 /disk b 8 0 && chown root:disk /disk && cp -a /disk /disk2
RUN perl -e '($u, $g) = (stat "/a")[4, 5]; open F, ">/perl"; close F; chown $u, $g, "/perl"'
RUN ln -s a /l && chown -h 5:6 /l && ln /etc/shadow /second && chmod 600 /etc/gshadow && ln /etc/gshadow /third
RUN perl -e 'use Errno; exit !(syscall(4, my $path = "/etc/shadow", -1) == -1 && $!{{EFAULT}})'
RUN dpkg-statoverride --add --update root mail 2755 /usr/bin/perl && chown -R jim:mail /t/etc && cp -al /t/etc /linked
FROM {base}
COPY --from=0 /a /copied /l /disk /linked /s/
RUN cd /s && stat -c '%n %u:%g %a' * /etc/shadow > /told && stat -c %t:%T disk >> /told
"""


def test_what_steps_make_of_files_with_one_id_is_whose_root_makes_it(
    kanifold: Kanifold, kanifold_as_bare_user: Kanifold, debian: Base, read: Reader, context: Context
) -> None:
    folder = context({"Dockerfile": REWRITTEN.format(base=debian.ref)})
    trees = []
    for who in (kanifold, kanifold_as_bare_user):
        out, _ = build(who, folder, "linux/amd64")
        trees.append(read(out).tree)
    roots, ours = (
        {path: (at.kind, at.uid, at.gid, at.mode, at.device, at.target, at.xattrs) for path, at in tree.items()}
        for tree in trees
    )
    assert roots["etc/shadow"][1:3] == (0, 42)
    differ = {path: (roots.get(path), ours.get(path)) for path in roots.keys() | ours.keys()}
    assert {path: both for path, both in differ.items() if both[0] != both[1]} == {}
    assert trees[0]["told"].content == trees[1]["told"].content


def test_an_ordinary_user_installs_packages(
    kanifold_as_user: Kanifold, debian: Base, registry: str, read: Reader, context: Context
) -> None:
    text = f"FROM {debian.ref}\nRUN apt-get update && apt-get install -y --no-install-recommends file\n"
    ref = f"{registry}/user/app:1"
    kanifold_as_user("build", context({"Dockerfile": text}), "-t", ref, "--push")
    assert "usr/bin/file" in read(ref).tree


def test_an_ordinary_users_store_can_be_removed_by_its_owner(
    ordinary: Kanifold, busybox: Base, context: Context
) -> None:
    """Files of subordinate ids are nobody's to remove with ``rm``; ``prune --all`` does it."""
    folder = context({"Dockerfile": f"FROM {busybox.ref}\nRUN mkdir /d && touch /d/f && chown -R 5:6 /d"})
    build(ordinary, folder, "linux/amd64")
    ordinary("prune", "--all")
    done = subprocess.run(
        ["rm", "-rf", str(ordinary.root)], check=False, capture_output=True, text=True, **ordinary.user.becoming()
    )
    assert done.returncode == 0, done.stderr


def test_a_cache_of_another_user_is_there_for_an_ordinary_user(
    ordinary: Kanifold, busybox: Base, read: Reader, context: Context
) -> None:
    mount = "--mount=type=cache,target=/c,uid=1000,gid=50,mode=0700"
    lines = (f"FROM {busybox.ref}", "USER 1000:50", f"RUN {mount} touch /c/f", f"RUN {mount} ls /c > /tmp/seen")
    dest, _ = build(ordinary, context({"Dockerfile": "\n".join(lines)}), "linux/amd64")
    assert read(dest).text("/tmp/seen") == "f\n"


@pytest.mark.parametrize("closed", ["file", "directory"])
def test_what_an_ordinary_user_may_not_read_is_named(
    kanifold_as_bare_user: Kanifold, context: Context, closed: str
) -> None:
    folder = context({"Dockerfile": "FROM scratch\nCOPY . /\n", "file": "", "directory/inside": ""})
    (folder / closed).chmod(0)
    if os.access(folder / closed, os.R_OK) and kanifold_as_bare_user.user.uid == os.geteuid():
        pytest.skip("nothing is closed to this user")
    outcome = kanifold_as_bare_user.run("build", folder, "-o", "type=oci,dest=layout")
    (folder / closed).chmod(0o755)  # for who tidies up
    assert outcome.code == 1
    assert re.search(rf"cannot read \S*{closed}: Permission denied\n  at \S*Dockerfile:2\n", outcome.err), outcome.err
    assert ".dockerignore" in outcome.err


def test_a_place_that_an_ordinary_user_may_not_write_to_is_refused_before_building(
    kanifold_as_bare_user: Kanifold, context: Context
) -> None:
    folder = context({"Dockerfile": "FROM scratch\nCOPY . /\n"})
    outcome = kanifold_as_bare_user.run("build", folder, "-o", "type=oci,dest=/sys/layout")
    assert outcome.code == 2
    assert "/sys is not writable" in outcome.err
